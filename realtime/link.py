"""
The hub's link to the channel layer: its one channel, the groups that it is in, and whether the layer is up.

``_receive_for_ever`` takes events from the layer. ``_maintain_for_ever``, one task for each Redis that the layer
is spread over, sends a ping through it now and then: when it comes back all is well, and memberships, which expire,
are renewed; when it does not, that shard counts as down until one does, and then its groups are joined again.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import partial
from typing import Any

from channels.layers import InMemoryChannelLayer

from .events import (
    ALL_GROUP,
    CHANNEL_PREFIX,
    PROBE_PREFIX,
    BeatEvent,
    Event,
    PingEvent,
    PublicationEvent,
    from_message,
    group_name,
)
from .exceptions import LayerUnavailable
from .layers import bounded, is_local, new_channel, reconnect, renewal_interval, shard_count, shard_of
from .logs import complain, described
from .sequences import Heard
from .telemetry import Flow

logger = logging.getLogger("realtime.link")

JOIN_TIMEOUT = 1.0
"""Seconds that a subscriber waits for the layer at most."""
DEAF_AFTER = 3
"""Pings in a row that the layer takes without their coming back, before the hub listens on another channel."""
PROBE_INTERVAL = 10.0
"""Seconds between two pings while the layer is up."""
PROBE_TIMEOUT = 2.0
"""Seconds after which a ping that has not come back means that the layer is down."""
BACKOFF = (0.1, 0.2, 0.5, 1.0)
"""Seconds between two tries while the layer is down; the last repeats."""
PING_AGAIN = (0.05, 0.1, 0.2, 0.4)
"""Seconds after which a ping that has not come back is sent again, in turn."""
LONGEST_TURN = 0.005
"""Seconds that a burst of events may take before others on the event loop get a turn."""
LARGEST_TURN = 1 << 16
"""Bytes of publications that a burst may bring before the servers get a turn to write them."""
JOINS_AT_ONCE = 8
"""Groups that are joined side by side when a shard is back: each has to wait for its own ping."""


async def ping(layer: Any, group: str) -> None:
    """
    Send ``group`` what nobody waits for, to find out whether the layer answers. Raises whatever the layer raises.

    Do so before ``new_channel()``, which leaves something behind when it fails.
    """
    await layer.group_send(group, PingEvent(nonce="").to_message())


class Held:
    """Keep frames back for one connection; ``size`` is how many bytes they are."""

    __slots__ = ("frames", "gap", "size")

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.size = 0
        self.gap: bytes | None = None
        """What tells that something was lost meanwhile."""

    def add_gap(self, frame: bytes) -> None:
        self.gap = frame
        self.frames.append(frame)

    def clear(self) -> None:
        """Give up the publications, but not what tells of others."""
        self.frames[:] = [] if self.gap is None else [self.gap]
        self.size = 0


class Group:
    """Be a topic's subscribers in this process, and the membership of its group on the layer."""

    __slots__ = (
        "entered",
        "flow",
        "heard",
        "held",
        "joined",
        "joining",
        "last",
        "latest",
        "leaving",
        "lock",
        "name",
        "report_gaps",
        "shard",
        "since",
        "subscribers",
        "topic",
    )

    def __init__(self, topic: str, name: str, shard: Shard) -> None:
        self.topic = topic
        self.name = name
        self.shard = shard
        self.subscribers: dict[Any, None] = {}
        """The hub's connections, in the order in which they subscribed."""
        self.held: dict[Any, Held] = {}
        """What is kept back for connections that fetch a snapshot before they subscribe."""
        self.last = 0.0
        """When the newest event that arrived here was published (seconds since the epoch)."""
        self.latest = False
        """Whether only the newest publication counts, for clients that cannot keep up."""
        self.report_gaps = False
        """Whether subscribers are told of what was lost."""
        self.heard = Heard()
        self.flow = Flow()
        """What counts what goes through the topics of the same pattern."""
        self.since = 0.0
        """When the first of those who subscribe now did so (``time.monotonic``)."""
        self.joining = 0
        self.entered = False
        """Whether the layer was asked to join the group, and not yet to leave it."""
        self.leaving = False
        """Whether it was asked to leave the group, and has not done so yet."""
        self.joined = False
        """Whether events are known to come through."""
        self.lock = asyncio.Lock()

    @property
    def wanted(self) -> bool:
        """Whether the hub has to be in the group."""
        return bool(self.subscribers or self.joining)


class Shard:
    """Be one Redis that groups are on, or the whole of a layer that is not spread, and know whether it works."""

    def __init__(self, number: int, name: str) -> None:
        self.number = number
        self.probe = Group("", name, self)
        """A group that only this hub is in, for its pings: those of a hundred hubs must not meet in one."""
        self.probe.joining = 1
        self.up = False
        self.started = asyncio.Event()
        """Set once it is known whether it works."""
        self.probe_now = asyncio.Event()
        self.unheard = 0
        """Pings that the layer took and that did not come back, in a row."""
        self.returns = 0
        """How often it worked again after it had not."""


class Link:
    """Be in the groups that are wanted, and hand each event that arrives to ``on_event``."""

    def __init__(self, layer: Any, on_event: Callable[[Event], None]) -> None:
        self.layer = layer
        self.local = is_local(layer)
        """Whether the layer reaches only this process."""
        self.direct = type(layer) is InMemoryChannelLayer
        """Whether what is published here need not go through the layer, which then adds nothing but work."""
        self.channel: str | None = None
        self.groups: dict[str, Group] = {}
        """The groups by their topics, wanted or on their way out."""
        self.loop = asyncio.get_running_loop()
        self._on_event = on_event
        self._shards = [Shard(number, self._probe_name(number)) for number in range(shard_count(layer))]
        self._all = self._group("", ALL_GROUP)
        self._all.joining = 1
        self._opening = asyncio.Lock()
        self._pings: dict[str, asyncio.Future[None]] = {}
        self._receiver: asyncio.Task[None] | None = None
        self._maintainers: list[asyncio.Task[None]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._said: set[str] = set()
        self._turn_began = self.loop.time()
        self._turn_size = 0
        self._taking = asyncio.Lock()

    def _probe_name(self, shard: int) -> str:
        while True:
            name = f"{PROBE_PREFIX}.{uuid.uuid4().hex}"
            if shard_of(self.layer, name) == shard:
                return name

    def _group(self, topic: str, name: str) -> Group:
        return Group(topic, name, self._shards[shard_of(self.layer, name)])

    @property
    def returns(self) -> int:
        """How often the layer, or a shard of it, worked again after it had not."""
        return sum(shard.returns for shard in self._shards)

    @property
    def up(self) -> bool:
        """Whether the layer is believed to work: all of it, where it is spread over several Redis."""
        return all(shard.up for shard in self._shards)

    # Life

    def start(self) -> None:
        """Begin to receive. The layer need not be there yet."""
        self._maintainers = [self.spawn(self._maintain_for_ever(shard)) for shard in self._shards]

    @property
    def running(self) -> bool:
        """Whether the link looks after itself: it was started, and neither was stopped nor failed."""
        return bool(self._maintainers) and not any(task.done() for task in self._maintainers)

    async def stop(self) -> None:
        """Leave the layer."""
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1)
        if self.channel is not None:
            await self._leave_everything(self.channel)

    async def _leave_everything(self, channel: str) -> None:
        await asyncio.gather(*(self._leave(shard, channel) for shard in self._shards))

    async def _leave(self, shard: Shard, channel: str) -> None:
        async def leave() -> None:
            for group in self._every_group():
                if group.shard is shard and group.entered:
                    await self.layer.group_discard(group.name, channel)

        try:
            await bounded(leave(), 1)
        except Exception as error:  # noqa: BLE001 - the layer may be gone before us
            logger.debug("event=leave_failed shard=%d error=%r", shard.number, error)

    def _groups_on(self, shard: Shard) -> list[Group]:
        return [group for group in self.groups.values() if group.shard is shard]

    def _every_group(self) -> list[Group]:
        return [*(shard.probe for shard in self._shards), self._all, *self.groups.values()]

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do ``work`` in the background, on behalf of nobody, until it ends or the link is stopped."""
        task = self.loop.create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Groups

    async def join(self, topic: str) -> Group:
        """
        Return the group of ``topic``, joined on the layer, unless that is down or takes over a second.

        Whatever comes of it, the group is joined as soon as the layer is back. Call ``add`` or ``release``
        next, once, with what this returns.
        """
        group = self.groups.get(topic)
        if group is None:
            group = self.groups[topic] = self._group(topic, group_name(topic))
        group.joining += 1
        if not group.joined and (group.shard.up or not group.shard.started.is_set()):
            try:
                await bounded(self._settle_first(group), JOIN_TIMEOUT)
            except asyncio.CancelledError:
                self.release(group)
                raise
            except Exception as error:  # noqa: BLE001 - each layer raises its own kind
                self.failed("join", error, group.shard)
        return group

    async def _settle_first(self, group: Group) -> None:
        await group.shard.started.wait()
        if group.shard.up:
            await self._settle(group)

    def release(self, group: Group) -> None:
        """Undo a ``join`` that no ``add`` followed."""
        group.joining -= 1
        self.leave_if_unwanted(group)

    def leave_if_unwanted(self, group: Group) -> None:
        """Leave a group that has lost its last subscriber, in the background."""
        if group.wanted:
            return
        if not group.entered and not group.lock.locked():
            self.groups.pop(group.topic, None)
        elif group.shard.up:  # else the next probe that comes back does it
            self.spawn(self._guarded("leave", partial(self._settle, group), group.shard))

    async def _settle(self, group: Group, *, renew: bool = False) -> None:
        """Join or leave until the membership is what is wanted. Raises whatever the layer raises."""
        async with group.lock:
            while self.channel is not None:
                if group.wanted and (renew or not group.joined):
                    renew = False
                    group.entered = True
                    await self.layer.group_add(group.name, self.channel)
                    if not group.joined and not self.local:
                        await self._confirm(group)
                    group.joined = True
                elif group.entered and not group.wanted:
                    group.joined = False
                    group.heard.clear()
                    if group.leaving:
                        # A try failed half-way. The pub/sub layer forgot the member first, and does nothing now.
                        await self.layer.group_add(group.name, self.channel)
                    group.leaving = True
                    await self.layer.group_discard(group.name, self.channel)
                    group.entered = group.leaving = False
                else:
                    break
            if not group.wanted and not group.entered and self.groups.get(group.topic) is group:
                del self.groups[group.topic]

    async def _confirm(self, group: Group) -> None:
        """
        Send a ping to ``group`` and wait until it arrives here.

        Redis' SUBSCRIBE travels on another connection than PUBLISH, and no layer waits for its answer:
        only what has come through proves that the next event will. The ping itself may be too early, so
        it is sent again until one arrives.
        """
        nonce = uuid.uuid4().hex
        arrived = self._pings[nonce] = self.loop.create_future()
        try:
            await self.layer.group_send(group.name, PingEvent(nonce=nonce).to_message())
            if group is group.shard.probe:  # of those that are joined side by side many may be under way
                group.shard.unheard += 1
            for wait in PING_AGAIN:
                await asyncio.wait([arrived], timeout=wait)
                if arrived.done():
                    break
                await self.layer.group_send(group.name, PingEvent(nonce=nonce).to_message())
            await arrived
            group.shard.unheard = 0
        finally:
            del self._pings[nonce]

    async def round_trip(self) -> float:
        """
        Return how many seconds an event takes from here to the hub's own channel.

        Raises whatever the layer raises, ``LayerUnavailable`` while it is known to be down, and ``TimeoutError``
        when nothing has come back after ``PROBE_TIMEOUT``.
        """
        for shard in self._shards:
            await shard.started.wait()
        if not self.up or self.channel is None:
            raise LayerUnavailable("the channel layer is down")
        nonce = uuid.uuid4().hex
        arrived = self._pings[nonce] = self.loop.create_future()
        began = time.monotonic()  # uvloop's time() knows no more than milliseconds
        try:
            await self.layer.send(self.channel, PingEvent(nonce=nonce).to_message())
            async with asyncio.timeout(PROBE_TIMEOUT):  # also where the layer has swallowed a cancellation
                await arrived
        finally:
            del self._pings[nonce]
        return time.monotonic() - began

    # Up and down

    async def _maintain_for_ever(self, shard: Shard) -> None:
        renewal = renewal_interval(self.layer)
        renewed = 0.0
        failures = 0
        while True:
            shard.probe_now.clear()
            try:
                await bounded(self._probe(shard), PROBE_TIMEOUT)
                returned = not shard.up
                if returned and shard.started.is_set():
                    shard.returns += 1
                shard.up = True
                shard.started.set()
                if returned or self.loop.time() - renewed >= renewal:
                    await self._settle_all(shard, again=returned)
                    renewed = self.loop.time()
                if returned:
                    logger.info("event=layer_up shard=%d groups=%d", shard.number, len(self._groups_on(shard)))
                failures = 0
            except Exception as error:  # noqa: BLE001 - each layer raises its own kind
                self.failed("probe", error, shard)
                shard.probe_now.clear()  # but after the backoff
                failures += 1
                if shard.unheard >= DEAF_AFTER:
                    await self._listen_anew(shard)
            shard.started.set()
            wait = BACKOFF[min(failures, len(BACKOFF)) - 1] if failures else min(PROBE_INTERVAL, renewal)
            try:
                async with asyncio.timeout(wait):
                    await shard.probe_now.wait()
            except TimeoutError:
                pass

    async def _probe(self, shard: Shard) -> None:
        """Prove that a shard takes events and that they come through. Raises whatever the layer raises."""
        if self.channel is None:
            await ping(self.layer, shard.probe.name)  # before the lock, which others wait for
        async with self._opening:
            if self.channel is None:
                self.channel = await new_channel(self.layer, CHANNEL_PREFIX)
                self._receiver = self.spawn(self._receive_for_ever(self.channel))
        await self._settle(shard.probe, renew=True)
        await self._confirm(shard.probe)
        if shard is self._all.shard:
            self._all.joined = self._all.joined and shard.up
            await self._settle(self._all, renew=True)

    async def _listen_anew(self, shard: Shard) -> None:
        """Give up a connection or a channel on which nothing arrives any more. The next probe makes another."""
        logger.warning("event=deaf channel=%s shard=%d", self.channel, shard.number)
        shard.unheard = 0
        try:
            if await reconnect(self.layer, shard.number):
                return
        except Exception as error:  # noqa: BLE001 - it was no use any more
            logger.debug("event=reconnect_failed shard=%d error=%r", shard.number, error)
            return
        channel, self.channel = self.channel, None
        if channel is None:  # another shard's task has given it up just now
            return
        if self._receiver is not None:
            self._receiver.cancel()
        async with self._opening:  # nobody opens another before this one is left
            await self._leave_everything(channel)
            for group in self._every_group():
                group.entered = group.leaving = group.joined = False
        for other in self._shards:  # their groups have to be joined from the new channel
            self.failed("listen_anew", LayerUnavailable("nothing is heard on the hub's channel any more"), other)

    async def _settle_all(self, shard: Shard, *, again: bool) -> None:
        """Renew a shard's memberships, or with ``again`` join its groups anew. Raises whatever the layer raises."""
        groups = self._groups_on(shard)
        for group in groups:
            group.joined = group.joined and not again
        for start in range(0, len(groups), JOINS_AT_ONCE):
            some = groups[start : start + JOINS_AT_ONCE]
            await asyncio.gather(*(bounded(self._settle(group, renew=True), PROBE_TIMEOUT) for group in some))
            await asyncio.sleep(0)  # some layers never suspend

    def failed(self, action: str, error: BaseException, shard: Shard) -> None:
        """Take a shard for down, and look after it at once."""
        if shard.up or not shard.started.is_set():
            logger.warning("event=layer_down action=%s shard=%d error=%s", action, shard.number, described(error))
        shard.up = False
        shard.probe_now.set()

    async def reply(self, channel: str, message: dict[str, Any]) -> None:
        """Send a message to a channel of another process, and take a failure for the layer's, if it fails twice."""
        shard = self._shards[shard_of(self.layer, channel, group=False)]
        await self._guarded("reply", partial(self.layer.send, channel, message), shard)

    async def _guarded(self, action: str, work: Callable[[], Coroutine[Any, Any, Any]], shard: Shard) -> None:
        for last in (False, True):  # a pooled connection that died is found out by using it
            try:
                await bounded(work(), PROBE_TIMEOUT)
                return
            except Exception as error:  # noqa: BLE001 - each layer raises its own kind
                if last:
                    self.failed(action, error, shard)

    # Events

    async def _receive_for_ever(self, channel: str) -> None:
        failures = 0
        while True:
            try:
                message = await self.layer.receive(channel)
                failures = 0
            except Exception as error:  # noqa: BLE001 - each layer raises its own kind
                self.failed("receive", error, self._shards[shard_of(self.layer, channel, group=False)])
                # The first failure may be one message that cannot be read.
                await asyncio.sleep(BACKOFF[min(failures, len(BACKOFF)) - 1] if failures else 0)
                failures += 1
                continue
            # receive() does not give way while messages wait.
            await self._give_way(self.handle(message))

    async def take(self, event: PublicationEvent | BeatEvent) -> None:
        """Act on an event of this process, which the layer would only bring back. It runs on the hub's event loop."""
        async with self._taking:  # in turn, as each may have to give way before the next is written
            await self._give_way(Context().run(self._act, event))  # what is written is written on behalf of nobody

    async def _give_way(self, size: int) -> None:
        """Count what is to be written, and have servers write it before that, or the turn, becomes too much."""
        self._turn_size += size
        if self._turn_size <= LARGEST_TURN and self.loop.time() - self._turn_began <= LONGEST_TURN:
            return
        turns = 1 + self._turn_size // LARGEST_TURN
        self._turn_size = 0
        for _ in range(turns):  # a turn writes to each client what its socket takes, on Daphne 128 KiB at most
            await asyncio.sleep(0)
        self._turn_began = self.loop.time()

    def handle(self, message: Any) -> int:
        """
        Act on one message of the layer, and return how much is to be written because of it, for each subscriber.

        Raises nothing: what is not understood is logged once a kind.
        """
        try:
            event = from_message(message)
        except ValueError:
            fields = message if isinstance(message, dict) else {}
            self._say_once(f"{fields.get('type')!r:.80}/{fields.get('kind')!r:.80}", "unknown_event")
            return 0
        if isinstance(event, PingEvent):
            arrived = self._pings.get(event.nonce)
            if arrived is not None and not arrived.done():
                arrived.set_result(None)
            return 0
        return self._act(event)

    def _act(self, event: Event) -> int:
        try:
            self._on_event(event)
        except Exception as error:  # noqa: BLE001 - one event must not end all
            complain(logger, logging.ERROR, f"event=event_failed kind={event.kind}", "", error=error)
        return len(event.payload) if isinstance(event, PublicationEvent) else 0

    def _say_once(self, what: str, event: str) -> None:
        if what not in self._said and len(self._said) < 100:
            self._said.add(what)
            logger.warning("event=%s kind=%s", event, what)
