"""The demo's settings, with topics and pages that tests need."""

from demows_project.settings import *  # noqa: F403
from demows_project.settings import INSTALLED_APPS, REDIS_URL, env

INSTALLED_APPS = [*INSTALLED_APPS, "tests.site"]
ROOT_URLCONF = "tests.site.urls"
ASGI_APPLICATION = "tests.site.asgi.application"
REALTIME = {
    "AUTHENTICATE": "tests.site.tokens.authenticate",
    "CONNECTION_REGISTRY": env.bool("REALTIME_CONNECTION_REGISTRY", default=False),
    "HEARTBEAT_INTERVAL": env.float("REALTIME_HEARTBEAT_INTERVAL", default=5.0),
    "HANDLER_TIMEOUT": env.float("REALTIME_HANDLER_TIMEOUT", default=1.0),
    "DRAIN_TIMEOUT": env.float("REALTIME_DRAIN_TIMEOUT", default=3.0),
}
if (layer := env.str("TEST_CHANNEL_LAYER", default="")) and REDIS_URL:
    # "core" is the core Redis layer as the checks advise to configure it, "core-defaults" as most sites have it.
    host = {"address": REDIS_URL, "socket_timeout": None} if layer == "core" else REDIS_URL
    config = {"hosts": [host], "capacity": 10_000} if layer == "core" else {"hosts": [host]}
    CHANNEL_LAYERS = {"default": {"BACKEND": "channels_redis.core.RedisChannelLayer", "CONFIG": config}}
