"""System checks: what is configured wrong, each with a hint how to mend it. Ids are never used twice."""

from __future__ import annotations

import fnmatch
import sys
from typing import Any

from channels.layers import channel_layers
from django.apps import apps
from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Warning, register
from django.core.exceptions import ImproperlyConfigured
from pydantic import ValidationError

from .conf import Settings, explain, get_settings
from .events import CHANNEL_PREFIX
from .servers import daphne

MIN_CAPACITY = 10_000
"""The messages that the hub's channel should hold: a burst this long, while the process is busy."""
CORE = "channels_redis.core.RedisChannelLayer"
LAYERS_WITH_CAPACITY = ("channels.layers.InMemoryChannelLayer", CORE)


@register("realtime")
def check_settings(**_: Any) -> list[CheckMessage]:
    """Check the keys and the values of ``REALTIME``."""
    try:
        Settings.model_validate(getattr(django_settings, "REALTIME", {}))
    except ValidationError as error:
        hints = {
            "unknown": ("realtime.E002", "Remove the key, or mend its spelling."),
            "value": ("realtime.E003", "docs/settings.md lists every key with what it takes."),
        }
        return [Error(text, hint=hints[kind][1], id=hints[kind][0]) for kind, text in explain(error)]
    return []


def _layer_config(alias: str) -> tuple[str, dict[str, Any]] | None:
    config = channel_layers.configs.get(alias)
    return None if config is None else (config.get("BACKEND", ""), config.get("CONFIG", {}))


@register("realtime")
def check_channel_layer(**_: Any) -> list[CheckMessage]:
    """Check that there is a channel layer, and that it holds what the hub needs it to hold."""
    try:
        alias = get_settings().CHANNEL_LAYER
        layer = _layer_config(alias)
    except ImproperlyConfigured:
        return []  # E002 or E003 says so
    if layer is None:
        return [
            Error(
                f"realtime has no channel layer: CHANNEL_LAYERS has no {alias!r}.",
                hint=f"Set CHANNEL_LAYERS, e.g. to {{{alias!r}: redis_layer('redis://localhost:6379')}}, "
                "with redis_layer of realtime.redis; REALTIME['CHANNEL_LAYER'] names another alias.",
                id="realtime.E001",
            )
        ]
    backend, config = layer
    return [
        *_check_socket_timeout(backend, config),
        *_check_capacity(backend, config),
        *_check_sharding(backend, config),
    ]


def _check_sharding(backend: str, config: dict[str, Any]) -> list[CheckMessage]:
    if backend != CORE or len(config.get("hosts") or ()) < 2:
        return []
    return [
        Warning(
            "The core Redis channel layer with several hosts loses what is sent to a single process.",
            hint="It sends that to another host than it waits on, so closing connections reports servers as unknown "
            "and /readyz says that the layer fails. Name one host, or use channels_redis.pubsub."
            "RedisPubSubChannelLayer, e.g. by redis_layer of realtime.redis.",
            id="realtime.W005",
        )
    ]


def _check_socket_timeout(backend: str, config: dict[str, Any]) -> list[CheckMessage]:
    if backend != CORE:
        return []
    import redis

    hosts = config.get("hosts") or [{}]
    if int(redis.__version__.split(".")[0]) < 8 or all(isinstance(h, dict) and "socket_timeout" in h for h in hosts):
        return []
    return [
        Warning(
            "The core Redis channel layer times out every 5 s while nothing is published.",
            hint="redis-py 8 ends a read after 5 s, which is how long this layer waits for a message. Set "
            "'socket_timeout': None on each host ({'address': 'redis://...', 'socket_timeout': None}), or use "
            "channels_redis.pubsub.RedisPubSubChannelLayer.",
            id="realtime.W001",
        )
    ]


def _check_capacity(backend: str, config: dict[str, Any]) -> list[CheckMessage]:
    if backend not in LAYERS_WITH_CAPACITY:
        return []
    name = f"{CHANNEL_PREFIX}.process!channel"
    by_channel = config.get("channel_capacity") or {}
    capacities = [number for pattern, number in by_channel.items() if fnmatch.fnmatch(name, str(pattern))]
    capacity = [*capacities, config.get("capacity", 100)][0]
    if capacity >= MIN_CAPACITY:
        return []
    if backend == LAYERS_WITH_CAPACITY[0]:  # it never compiles its channel_capacity
        hint = f"Set 'capacity': {MIN_CAPACITY} in the layer's CONFIG."
    else:
        hint = (
            f"Set 'channel_capacity': {{'{CHANNEL_PREFIX}.*': {MIN_CAPACITY}}} in the layer's CONFIG, or use "
            "channels_redis.pubsub.RedisPubSubChannelLayer, which has no such limit."
        )
    return [
        Warning(
            f"The channel layer drops events silently when more than {capacity} wait for a process.",
            hint=hint,
            id="realtime.W002",
        )
    ]


@register("realtime")
def check_allowed_hosts(**_: Any) -> list[CheckMessage]:
    """Check that ``ALLOWED_HOSTS`` can tell the site's own pages from others, where cookies say who connects."""
    if "*" not in django_settings.ALLOWED_HOSTS or not apps.is_installed("django.contrib.sessions"):
        return []
    return [
        Warning(
            "ALLOWED_HOSTS has '*', so WebSockets are accepted under any host name, with the user's cookies.",
            hint="Name the site's hosts in ALLOWED_HOSTS; a page is allowed to connect when its origin is one of them.",
            id="realtime.W004",
        )
    ]


@register("realtime")
def check_daphne(**_: Any) -> list[CheckMessage]:
    """Check that Daphne, where it runs, is a version that realtime knows how to repair."""
    if "daphne.server" not in sys.modules or daphne.install():
        return []
    return [
        Warning(
            "This version of Daphne is unknown to realtime: close codes and reasons may not reach clients.",
            hint="Install daphne>=4.2,<5 and autobahn>=24, or look for a newer demows.",
            id="realtime.W003",
        )
    ]
