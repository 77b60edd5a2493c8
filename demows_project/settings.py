"""The demo's settings. What differs from machine to machine is read from the environment."""

import json
import logging
from pathlib import Path

import environ
from django.core.exceptions import ImproperlyConfigured

from .secret_key import secret_key

BASE_DIR = Path(__file__).resolve().parent.parent
env = environ.Env()

DEBUG = env.bool("DEBUG", default=False)
SECRET_KEY = env.str("SECRET_KEY", default="") or secret_key(BASE_DIR / ".secret-key")
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"])

INSTALLED_APPS = [
    "daphne",  # first, so that runserver is Daphne's
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "channels",
    "realtime",
    "demows_project",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "demows_project.views.content_security_policy",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "demows_project.urls"
ASGI_APPLICATION = "demows_project.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

DATABASES = {"default": env.db("DATABASE_URL", default=f"sqlite:///{BASE_DIR / 'db.sqlite3'}")}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    # Readers and the one writer do not wait for each other, and a transaction that writes waits at its beginning.
    DATABASES["default"]["OPTIONS"] = {
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
        "transaction_mode": "IMMEDIATE",
    }
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator")
]

REDIS_URL = env.str("REDIS_URL", default="")
if REDIS_URL:
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    from realtime.redis import redis_layer, split_urls

    CHANNEL_LAYERS = {"default": redis_layer(REDIS_URL)}
    _cache_options = {
        "serializer": json,  # Django's own is pickle: whoever can write to Redis could run code here
        "socket_connect_timeout": 1,
        "socket_timeout": 1,
        "retry": Retry(NoBackoff(), 1),
    }
    # For the page's board. Without Redis it is in Django's default, the process's memory.
    CACHES = {
        "default": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": split_urls(REDIS_URL)[:1],  # in a list, or Django would split it at commas
            "OPTIONS": _cache_options,
        }
    }
else:
    CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer", "CONFIG": {"capacity": 1_000_000}}}
REALTIME = {"HEARTBEAT_INTERVAL": env.float("REALTIME_HEARTBEAT_INTERVAL", default=5.0)}

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "static/"
STATICFILES_DIRS = [("docs", BASE_DIR / "docs")]  # the page links to them
WHITENOISE_USE_FINDERS = True  # plain Daphne serves no static files, and nothing is collected for a demo
WHITENOISE_MIMETYPES = {".md": "text/plain"}

LOG_FORMAT = env.str("LOG_FORMAT", default="") or "line"
LOG_FORMATTERS = {"line": "realtime.logs.LineFormatter", "json": "realtime.logs.JsonFormatter"}
if LOG_FORMAT not in LOG_FORMATTERS:
    raise ImproperlyConfigured(f"LOG_FORMAT is {LOG_FORMAT!r}: set it to {' or '.join(LOG_FORMATTERS)}")
_server_loggers: dict[str, object] = {}
if LOG_FORMAT == "json":
    # uvicorn has given its loggers handlers of their own, and Python writes warnings past all of them.
    _server_loggers = {name: {"handlers": [], "propagate": True} for name in ("uvicorn", "uvicorn.access")}
    logging.captureWarnings(True)
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {name: {"()": formatter} for name, formatter in LOG_FORMATTERS.items()},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": LOG_FORMAT}},
    "root": {"handlers": ["console"], "level": "INFO"},
    "loggers": {
        "django": {"handlers": [], "propagate": True},
        # While Redis is down this one logs a traceback every second; the hub says once that it is down.
        "channels_redis.pubsub": {"level": "CRITICAL"},
        # And this one a warning a second while the collector is down.
        "opentelemetry.exporter.otlp": {"level": "ERROR"},
        **_server_loggers,
    },
}
