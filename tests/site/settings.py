"""The demo's settings, with topics and pages that tests need."""

import json
import os

from demows_project.settings import *  # noqa: F403
from demows_project.settings import CHANNEL_LAYERS, INSTALLED_APPS, REDIS_URL, env
from realtime.redis import redis_layer

INSTALLED_APPS = [*INSTALLED_APPS, "tests.site"]
ROOT_URLCONF = "tests.site.urls"
ASGI_APPLICATION = "tests.site.asgi.application"
REALTIME = {
    "AUTHENTICATE": "tests.site.tokens.authenticate",
    "CONNECTION_REGISTRY": False,
    "HANDLER_TIMEOUT": 1.0,
    "RATE_LIMIT": 1e6,  # what is tested elsewhere is not in the way of floods that test something else
    "RATE_BURST": 1_000_000,
    "OUTBOX_LIMIT": 1 << 26,
    "DRAIN_SECONDS": 0.5,
    "DRAIN_TIMEOUT": 3.0,
}
# Any key can be set by the environment, as JSON.
REALTIME |= {
    name.removeprefix("REALTIME_"): json.loads(value)
    for name, value in os.environ.items()
    if name.startswith("REALTIME_")
}
if (layer := env.str("TEST_CHANNEL_LAYER", default="")).startswith("{"):  # a host for redis_layer, as JSON
    CHANNEL_LAYERS = {"default": redis_layer(json.loads(layer))}
elif layer and REDIS_URL:
    # "core" is the core Redis layer as the checks advise to configure it, "core-defaults" as most sites have it.
    host = {"address": REDIS_URL, "socket_timeout": None} if layer == "core" else REDIS_URL
    config = {"hosts": [host], "capacity": 10_000} if layer == "core" else {"hosts": [host]}
    CHANNEL_LAYERS = {"default": {"BACKEND": "channels_redis.core.RedisChannelLayer", "CONFIG": config}}
CHANNEL_LAYERS["default"]["CONFIG"] |= json.loads(env.str("TEST_LAYER_CONFIG", default="{}"))
