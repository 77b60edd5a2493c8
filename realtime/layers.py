"""What realtime needs to know of the channel layers that Channels' own interface does not tell."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from channels.layers import InMemoryChannelLayer, get_channel_layer
from django.core.exceptions import ImproperlyConfigured

from .conf import get_settings

T = TypeVar("T")

SLICES = 10
"""Into how many waits a time limit is cut."""
CHANNEL_TRIES = 5
"""Tries to open a channel on a shard that is up."""
CHANNEL_TIMEOUT = 0.3
"""Seconds that each of them may take."""
COUNT_TIMEOUT = 1.0
"""Seconds that counting a group's members may take."""


_making = threading.Lock()
"""Held while a layer may be made: of threads that begin at once, Channels would give each one of its own."""


def _unlock_in_child() -> None:
    global _making
    _making = threading.Lock()  # the thread that held the old one did not come along


os.register_at_fork(after_in_child=_unlock_in_child)


def configured_layer() -> Any:
    """Return the layer that ``REALTIME["CHANNEL_LAYER"]`` names. Raises ``ImproperlyConfigured`` if there is none."""
    alias = get_settings().CHANNEL_LAYER
    with _making:
        layer = get_channel_layer(alias)
    if layer is None:
        raise ImproperlyConfigured(f"CHANNEL_LAYERS has no {alias!r}, the channel layer that realtime uses")
    return layer


def is_local(layer: Any) -> bool:
    """Return whether ``layer`` reaches only its own process."""
    return isinstance(layer, InMemoryChannelLayer)


def renewal_interval(layer: Any) -> float:
    """
    Return after how many seconds memberships are to be renewed: well below every expiry.

    A membership ends ``group_expiry`` seconds after joining; on the in-memory layer also when a message
    has waited longer than ``expiry``.
    """
    expiries = [600.0, getattr(layer, "group_expiry", None)]
    if is_local(layer):
        expiries.append(layer.expiry)
    return min(float(expiry) for expiry in expiries if expiry) / 4


async def bounded(work: Coroutine[Any, Any, T], seconds: float) -> T:
    """
    Return what ``work`` returns. Raises ``TimeoutError`` after ``seconds``, whatever becomes of ``work`` then.

    ``asyncio.timeout`` waits until what it cancels has ended, and redis-py can swallow a cancellation
    (``asyncio.wait_for`` does so in Python 3.11): on a frozen Redis that takes many seconds.
    """
    task = asyncio.ensure_future(work)
    try:
        # In slices, so that time in which the event loop itself was held up does not count against the work.
        for _ in range(SLICES):
            await asyncio.wait([task], timeout=seconds / SLICES)
            if task.done():
                break
    finally:
        if not task.done():
            task.cancel()
            task.add_done_callback(lambda task: task.cancelled() or task.exception())  # of no interest any more
    if not task.done():
        raise TimeoutError(f"nothing came of it within {seconds:g} s")
    return task.result()


def shard_of(layer: Any, name: str, *, group: bool = True) -> int:
    """Return the number of the Redis that a group, or a channel, is on: 0 where the layer has but one."""
    if hasattr(layer, "_get_group_channel_name"):  # channels_redis.pubsub
        return int(layer._shards.index(layer._get_shard(layer._get_group_channel_name(name) if group else name)))
    if hasattr(layer, "consistent_hash"):  # channels_redis.core
        return int(layer.consistent_hash(name[: name.find("!") + 1] or name))  # a process' channels share a queue
    return 0


def shard_count(layer: Any) -> int:
    """Return on how many Redis the layer's groups are."""
    if hasattr(layer, "_get_group_channel_name"):
        return len(layer._shards)
    return int(getattr(layer, "ring_size", 1))


async def new_channel(layer: Any, prefix: str) -> str:
    """
    Return a new channel. Raises whatever the layer raises.

    Its name, and so the shard that it is on, is a matter of chance: where there are several, one may be down.
    """
    for _ in range(CHANNEL_TRIES if shard_count(layer) > 1 else 0):
        try:
            return str(await bounded(layer.new_channel(prefix), CHANNEL_TIMEOUT))
        except Exception:  # noqa: BLE001 - each layer raises its own kind
            continue
    return str(await layer.new_channel(prefix))


async def reconnect(layer: Any, shard: int) -> bool:
    """
    Drop the connection that ``layer`` listens on for one shard. Return whether it makes a new one by itself.

    The pub/sub layer does, and subscribes to everything again.
    """
    if not hasattr(layer, "_get_group_channel_name"):
        return False
    pubsub = layer._shards[shard]._pubsub
    if pubsub is not None and pubsub.connection is not None:
        await pubsub.connection.disconnect(nowait=True)
    return True


def waiting(layer: Any, channel: str | None, loop: asyncio.AbstractEventLoop) -> int | None:
    """
    Return how many messages wait in this process for whoever receives on ``channel``, or None where that is not known.

    ``loop`` is the receiver's event loop, on which this need not run. Like ``count_members`` this looks behind the
    layers it knows.
    """
    if "receive_buffer" not in vars(layer) and (layers := vars(layer).get("_layers")) is not None:
        layer = layers.get(loop)  # channels_redis.pubsub's for that loop
    queues = getattr(layer, "channels", None)  # the in-memory layer's and channels_redis.pubsub's
    if queues is None:
        queues = getattr(layer, "receive_buffer", {})  # channels_redis.core's
    queue = dict.get(queues, channel)  # some make one when they are asked
    return None if queue is None else int(queue.qsize())


async def count_members(layer: Any, group: str) -> int | None:
    """
    Return how many channels are in ``group``, or None where the layer gives no way to know.

    Channels has no such call, so this looks behind the layers it knows: one wrong guess costs whoever
    closes connections a wait, no more.
    """
    try:
        return await bounded(_count_members(layer, group), COUNT_TIMEOUT)
    except Exception:  # noqa: BLE001 - the private parts of another package, on a network
        return None


async def _count_members(layer: Any, group: str) -> int | None:
    if is_local(layer):
        return len(layer.groups.get(group, ()))
    if hasattr(layer, "_get_group_channel_name"):  # channels_redis.pubsub
        channel = layer._get_group_channel_name(group)
        redis = layer._get_shard(channel)._redis
        return int((await redis.pubsub_numsub(channel))[0][1])
    if hasattr(layer, "_group_key"):  # channels_redis.core
        key = layer._group_key(group)
        return int(await layer.connection(layer.consistent_hash(group)).zcard(key))
    return None
