"""What realtime knows of channel layers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from channels.layers import BaseChannelLayer, InMemoryChannelLayer, get_channel_layer
from channels_redis.core import RedisChannelLayer
from channels_redis.pubsub import RedisPubSubChannelLayer
from django.core.exceptions import ImproperlyConfigured

from realtime.layers import configured_layer, count_members, is_local, renewal_interval

NOBODY_LISTENS = ["redis://127.0.0.1:1"]


def test_configured_layer_is_the_default() -> None:
    assert configured_layer() is get_channel_layer()


def test_configured_layer_is_the_one_that_the_settings_name(settings: Any) -> None:
    settings.CHANNEL_LAYERS = {"other": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
    settings.REALTIME = {"CHANNEL_LAYER": "other"}
    assert configured_layer() is get_channel_layer("other")


def test_configured_layer_that_is_missing_is_named(settings: Any) -> None:
    settings.REALTIME = {"CHANNEL_LAYER": "other"}
    with pytest.raises(ImproperlyConfigured, match="CHANNEL_LAYERS has no 'other'"):
        configured_layer()


def test_in_memory_layer_is_local() -> None:
    assert is_local(InMemoryChannelLayer())
    assert is_local(type("Mine", (InMemoryChannelLayer,), {})())


def test_other_layers_are_not_local() -> None:
    assert not is_local(BaseChannelLayer())
    assert not is_local(RedisPubSubChannelLayer(hosts=NOBODY_LISTENS))


@pytest.mark.parametrize(
    ("layer", "shortest_expiry"),
    [
        (InMemoryChannelLayer(), 60),
        (InMemoryChannelLayer(expiry=1), 1),
        (InMemoryChannelLayer(expiry=600, group_expiry=8), 8),
        (SimpleNamespace(), 600),
        (SimpleNamespace(group_expiry=None), 600),
        (SimpleNamespace(group_expiry=30), 30),
        (RedisChannelLayer(hosts=NOBODY_LISTENS), 600),
    ],
)
def test_renewal_is_well_below_every_expiry(layer: Any, shortest_expiry: float) -> None:
    assert renewal_interval(layer) == shortest_expiry / 4


async def test_renewal_on_the_pubsub_layer() -> None:
    assert renewal_interval(RedisPubSubChannelLayer(hosts=NOBODY_LISTENS)) == 150


async def test_count_members_on_the_in_memory_layer() -> None:
    layer = InMemoryChannelLayer()
    await layer.group_add("g", "one")
    await layer.group_add("g", "two")
    assert await count_members(layer, "g") == 2
    assert await count_members(layer, "nobody") == 0


@pytest.mark.parametrize("kind", [RedisChannelLayer, RedisPubSubChannelLayer])
async def test_count_members_is_unknown_while_redis_is_down(kind: Any) -> None:
    assert await count_members(kind(hosts=NOBODY_LISTENS), "g") is None


async def test_count_members_is_unknown_on_an_unknown_layer() -> None:
    assert await count_members(BaseChannelLayer(), "g") is None
