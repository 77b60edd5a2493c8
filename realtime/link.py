"""
The hub's link to the channel layer: its one channel, the groups that it is in, and whether the layer is up.

Two tasks keep it going. ``_receive_for_ever`` takes events from the layer. ``_maintain_for_ever`` sends
a ping through the layer now and then: when it comes back all is well, and memberships, which expire, are
renewed; when it does not, the layer counts as down until one does, and then every group is joined again.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from .events import ALL_GROUP, CHANNEL_PREFIX, Event, PingEvent, PublicationEvent, from_message, group_name
from .exceptions import LayerUnavailable
from .layers import bounded, is_local, reconnect, renewal_interval

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


async def open_channel(layer: Any) -> str:
    """Return a new channel on ``layer``. Raises whatever the layer raises."""
    # new_channel() leaves something behind when it fails, so find out first whether the layer answers.
    await layer.group_send(ALL_GROUP, PingEvent(nonce="").to_message())
    channel: str = await layer.new_channel(CHANNEL_PREFIX)
    return channel


class Held:
    """Keep frames back for one connection; ``size`` is how many bytes they are."""

    __slots__ = ("frames", "size")

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.size = 0

    def clear(self) -> None:
        self.frames.clear()
        self.size = 0


class Group:
    """Be a topic's subscribers in this process, and the membership of its group on the layer."""

    __slots__ = (
        "entered",
        "held",
        "joined",
        "joining",
        "last",
        "latest",
        "leaving",
        "lock",
        "name",
        "since",
        "subscribers",
        "topic",
    )

    def __init__(self, topic: str, name: str) -> None:
        self.topic = topic
        self.name = name
        self.subscribers: dict[Any, None] = {}
        """The hub's connections, in the order in which they subscribed."""
        self.held: dict[Any, Held] = {}
        """What is kept back for connections that fetch a snapshot before they subscribe."""
        self.last = 0.0
        """When the newest event that arrived here was published (seconds since the epoch)."""
        self.latest = False
        """Whether only the newest publication counts, for clients that cannot keep up."""
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


class Link:
    """Be in the groups that are wanted, and hand each event that arrives to ``on_event``."""

    def __init__(self, layer: Any, on_event: Callable[[Event], None]) -> None:
        self.layer = layer
        self.local = is_local(layer)
        """Whether the layer reaches only this process."""
        self.channel: str | None = None
        self.up = False
        """Whether the layer is believed to work."""
        self.groups: dict[str, Group] = {}
        """The groups by their topics, wanted or on their way out."""
        self.loop = asyncio.get_running_loop()
        self._on_event = on_event
        self._all = Group("", ALL_GROUP)
        self._all.joining = 1
        self._unheard = 0
        """Pings that the layer took and that did not come back, in a row."""
        self._pings: dict[str, asyncio.Future[None]] = {}
        self._probe_now = asyncio.Event()
        self._started = asyncio.Event()
        self._receiver: asyncio.Task[None] | None = None
        self._maintainer: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._said: set[str] = set()

    # Life

    def start(self) -> None:
        """Begin to receive. The layer need not be there yet."""
        self._maintainer = self.spawn(self._maintain_for_ever())

    @property
    def running(self) -> bool:
        """Whether the link looks after itself: it was started, and neither was stopped nor failed."""
        return self._maintainer is not None and not self._maintainer.done()

    async def stop(self) -> None:
        """Leave the layer."""
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1)
        await self._leave_everything()

    async def _leave_everything(self) -> None:
        async def leave() -> None:
            for group in [self._all, *self.groups.values()]:
                if group.entered and self.channel is not None:
                    await self.layer.group_discard(group.name, self.channel)

        try:
            await bounded(leave(), 1)
        except Exception as error:  # noqa: BLE001 - the layer may be gone before us
            logger.debug("event=leave_failed error=%r", error)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do ``work`` in the background, until it ends or the link is stopped."""
        task = self.loop.create_task(work)
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
            group = self.groups[topic] = Group(topic, group_name(topic))
        group.joining += 1
        if not group.joined and (self.up or not self._started.is_set()):
            try:
                await bounded(self._settle_first(group), JOIN_TIMEOUT)
            except asyncio.CancelledError:
                self.release(group)
                raise
            except Exception as error:  # noqa: BLE001 - each layer raises its own kind
                self.failed("join", error)
        return group

    async def _settle_first(self, group: Group) -> None:
        await self._started.wait()
        if self.up:
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
        elif self.up:  # else the next probe that comes back does it
            self.spawn(self.guarded("leave", partial(self._settle, group)))

    async def _settle(self, group: Group, *, renew: bool = False) -> None:
        """Join or leave until the membership is what is wanted. Raises whatever the layer raises."""
        async with group.lock:
            while self.channel is not None:
                if group.wanted and (renew or not group.joined):
                    renew = False
                    group.entered = True
                    await self.layer.group_add(group.name, self.channel)
                    if not group.joined and not self.local:
                        await self._confirm(group.name)
                    group.joined = True
                elif group.entered and not group.wanted:
                    group.joined = False
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

    async def _confirm(self, group: str) -> None:
        """
        Send a ping to ``group`` and wait until it arrives here.

        Redis' SUBSCRIBE travels on another connection than PUBLISH, and no layer waits for its answer:
        only what has come through proves that the next event will. The ping itself may be too early, so
        it is sent again until one arrives.
        """
        nonce = uuid.uuid4().hex
        arrived = self._pings[nonce] = self.loop.create_future()
        try:
            await self.layer.group_send(group, PingEvent(nonce=nonce).to_message())
            self._unheard += 1
            for wait in PING_AGAIN:
                await asyncio.wait([arrived], timeout=wait)
                if arrived.done():
                    break
                await self.layer.group_send(group, PingEvent(nonce=nonce).to_message())
            await arrived
            self._unheard = 0
        finally:
            del self._pings[nonce]

    async def round_trip(self) -> float:
        """
        Return how many seconds an event takes from here to the hub's own channel.

        Raises whatever the layer raises, ``LayerUnavailable`` while it is known to be down, and ``TimeoutError``
        when nothing has come back after ``PROBE_TIMEOUT``.
        """
        await self._started.wait()
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

    async def _maintain_for_ever(self) -> None:
        renewal = renewal_interval(self.layer)
        renewed = 0.0
        failures = 0
        while True:
            self._probe_now.clear()
            try:
                await bounded(self._probe(), PROBE_TIMEOUT)
                returned = not self.up
                self.up = True
                self._started.set()
                if returned or self.loop.time() - renewed >= renewal:
                    await self._settle_all(again=returned)
                    renewed = self.loop.time()
                if returned:
                    logger.info("event=layer_up groups=%d", len(self.groups))
                failures = 0
            except Exception as error:  # noqa: BLE001 - each layer raises its own kind
                self.failed("probe", error)
                self._probe_now.clear()  # but after the backoff
                failures += 1
                if self._unheard >= DEAF_AFTER:
                    await self._listen_anew()
            self._started.set()
            wait = BACKOFF[min(failures, len(BACKOFF)) - 1] if failures else min(PROBE_INTERVAL, renewal)
            try:
                async with asyncio.timeout(wait):
                    await self._probe_now.wait()
            except TimeoutError:
                pass

    async def _probe(self) -> None:
        """Prove that the layer takes events and that they come through. Raises whatever the layer raises."""
        if self.channel is None:
            self.channel = await open_channel(self.layer)
            self._receiver = self.spawn(self._receive_for_ever(self.channel))
        await self._settle(self._all, renew=True)
        await self._confirm(ALL_GROUP)

    async def _listen_anew(self) -> None:
        """Give up a connection or a channel on which nothing arrives any more. The next probe makes another."""
        logger.warning("event=deaf channel=%s", self.channel)
        self._unheard = 0
        if await reconnect(self.layer):
            return
        if self._receiver is not None:
            self._receiver.cancel()
        await self._leave_everything()
        for group in [self._all, *self.groups.values()]:
            group.entered = group.leaving = group.joined = False
        self.channel = None

    async def _settle_all(self, *, again: bool) -> None:
        """Renew every membership, or with ``again`` join every group anew. Raises whatever the layer raises."""
        groups = list(self.groups.values())
        for group in groups:
            group.joined = group.joined and not again
        for number, group in enumerate(groups):
            await bounded(self._settle(group, renew=True), PROBE_TIMEOUT)
            if number % 100 == 99:  # some layers never suspend
                await asyncio.sleep(0)

    def failed(self, action: str, error: BaseException) -> None:
        """Take the layer for down, and look after it at once."""
        if self.up or not self._started.is_set():
            logger.warning("event=layer_down action=%s error=%r", action, error)
        self.up = False
        self._probe_now.set()

    async def guarded(self, action: str, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Do ``work`` on the layer, and take its failure for the layer's, if it fails twice."""
        for last in (False, True):  # a pooled connection that died is found out by using it
            try:
                await bounded(work(), PROBE_TIMEOUT)
                return
            except Exception as error:  # noqa: BLE001 - each layer raises its own kind
                if last:
                    self.failed(action, error)

    # Events

    async def _receive_for_ever(self, channel: str) -> None:
        failures = 0
        turn_began = self.loop.time()
        size = 0
        while True:
            try:
                message = await self.layer.receive(channel)
                failures = 0
            except Exception as error:  # noqa: BLE001 - each layer raises its own kind
                self.failed("receive", error)
                # The first failure may be one message that cannot be read.
                await asyncio.sleep(BACKOFF[min(failures, len(BACKOFF)) - 1] if failures else 0)
                failures += 1
                continue
            size += self.handle(message)
            # receive() does not give way while messages wait.
            if size > LARGEST_TURN or self.loop.time() - turn_began > LONGEST_TURN:
                await self._give_way(size)
                turn_began, size = self.loop.time(), 0

    @staticmethod
    async def _give_way(size: int) -> None:
        # A turn writes to each client what its socket takes, on Daphne 128 KiB at most.
        for _ in range(1 + size // LARGEST_TURN):
            await asyncio.sleep(0)

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
        try:
            self._on_event(event)
        except Exception:
            logger.exception("event=event_failed kind=%s", event.kind)
        return len(event.payload) if isinstance(event, PublicationEvent) else 0

    def _say_once(self, what: str, event: str) -> None:
        if what not in self._said and len(self._said) < 100:
            self._said.add(what)
            logger.warning("event=%s kind=%s", event, what)
