"""
The hub: local fan-out. Each server process has one, and it has one channel on the channel layer.

The hub joins a topic's group with the first local subscriber and leaves it with the last (its link does),
so an event crosses the layer once a process, however many connections there are. Each event is encoded
once, and the same bytes are written to every subscriber. Nothing here waits for a client.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import Context
from typing import Any, Protocol

from . import servers, telemetry
from .conf import Settings, get_settings
from .connection import Connection, Peer
from .events import (
    AckEvent,
    BeatEvent,
    CloseEvent,
    Envelope,
    Event,
    PublicationEvent,
    ReportEvent,
    SurveyEvent,
    next_slot,
)
from .layers import configured_layer
from .limits import SPARE_DESCRIPTORS, Count, Counts, Door, descriptors
from .link import Group, Held, Link
from .logs import complain, escaped, tell_repetitions
from .protocol import TOPIC_HEARTBEAT, CloseCode, Gap, encode, encode_heartbeat, encode_publication
from .servers import text_frame
from .servers.signals import before_stop
from .telemetry import Attributes, Key, LoopLag, Name, SpanKind, Stats, get_tracing, message_attributes

__all__ = ["HUB", "Connection", "Hub", "Peer", "find_hub", "get_hub", "hub_of", "observers"]

logger = logging.getLogger("realtime.hub")

HUB = "realtime.hub"
"""The extension in a connection's scope by which a server brings a hub of its own."""
FAREWELL = (int(CloseCode.GOING_AWAY), "server shutdown")
"""The code and the reason that connections are closed with when the hub stops."""
SAME_SLOT = 60.0
"""A beat that lags behind the newest by up to these seconds is a repetition; one further behind, a clock put back."""
MISSED_BEATS = 3
"""Heartbeat intervals without a beat after which something is wrong."""
REPORTED_TOPICS = 1000
"""The most topics that a report names."""
RECENT_CLOSES = 100
"""How many closes by user or session are remembered for handshakes that are under way."""
FLUSH_TIME = 1.0
"""Seconds after its end was told in which a session may still be found in the database."""
KEY_CHANGED = ""
"""Stands for a session whose key was changed under a connection, which was allowed to stay."""
LOOK_INTERVAL = 1.0
"""Seconds between two looks at every connection: at its age, and at what waits for it."""
CONNECTIONS_A_TURN = 500
"""Connections that are looked at before others get a turn on the event loop."""
DRAIN_STEP = 0.1
"""Seconds between two batches of clients that are closed when the server is told to stop."""
LEAVE_INTERVAL = 0.02
"""Seconds between two looks at whether all clients have left."""
DRAIN_BATCH = 50
"""The fewest clients in a batch: a small server has no need to take its time."""


class Observer(Protocol):
    """Be told what connections a hub has, on its event loop, by calls that neither wait nor raise."""

    def connected(self, connection: Connection) -> None: ...

    def disconnected(self, connection: Connection) -> None:
        """Take note that a connection has gone, and with it all its subscriptions."""

    def subscribed(self, connection: Connection, topic: str) -> None: ...

    def unsubscribed(self, connection: Connection, topic: str) -> None: ...

    async def stop(self) -> None:
        """Take note that the hub stops: every connection has gone."""


observers: list[Callable[[Hub], Observer | None]] = []
"""Called when a hub starts, to make what is to observe it, if there is anything."""


def stagger(count: int, spread: float) -> list[float]:
    """Return after how many seconds each of ``count`` connections is to be closed, evenly over ``spread`` seconds."""
    return [spread * number / count for number in range(count)]


class Hub:
    """Deliver what crosses ``layer`` to the connections of this process. It belongs to one event loop."""

    def __init__(self, layer: Any, settings: Settings) -> None:
        self.link = Link(layer, self.act)
        self.settings = settings
        self.id = uuid.uuid4().hex
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.draining = False
        """Whether the server was told to stop: nobody is let in any more."""
        self.stats = Stats()
        self.counts: Counts = self.stats.counts
        self.tracing = get_tracing(settings.TRACER_PROVIDER)
        self.door = Door(settings)
        self.connections: dict[str, Connection] = {}
        self.loop = asyncio.get_running_loop()
        self.last_beat = 0.0
        """When the newest beat arrived here (``time.monotonic``), 0 before one has."""
        self._told_of_missing_beats = False
        self.observers: list[Observer] = []
        self._recent_closes: deque[tuple[float, CloseEvent]] = deque(maxlen=RECENT_CLOSES)
        """Closes by user or session with when they came, for handshakes that are under way meanwhile."""
        self._nobody_left = asyncio.Event()
        self._leaving: list[Connection] = []
        """Connections that have ended here, and whose TCP connection the server has not ended yet."""
        self._drained = False
        self.aborted = False
        """Whether everybody was dropped, so that the server can stop."""
        self._forget_signals: Callable[[], None] = lambda: None
        self.loop_lag: LoopLag | None = None
        """By how much the event loop is late."""
        self.at_stop: list[Callable[[], None]] = []
        """Called when the hub has stopped."""
        self._newest_slot = 0.0
        self._beat_timer: asyncio.TimerHandle | None = None

    # Life

    def start(self) -> None:
        """Begin to deliver. The layer need not be there yet."""
        servers.stop_hooks.append(self.stop)
        self.loop_lag = LoopLag(self.loop)
        self._forget_signals = before_stop(self.loop, self.drain, self.abort_all)
        self.observers = [observer for make in observers if (observer := self._made(make)) is not None]
        most = self.settings.MAX_CONNECTIONS
        if most is not None and (files := descriptors()) < most + SPARE_DESCRIPTORS:
            logger.warning("event=few_descriptors limit=%d max_connections=%d", files, most)
        self.link.start()
        self.link.spawn(self._look_after_connections())

    def _made(self, make: Callable[[Hub], Observer | None]) -> Observer | None:
        try:
            return make(self)
        except Exception as error:  # noqa: BLE001 - whatever it is, clients do not depend on it
            complain(logger, logging.ERROR, f"event=observer_failed error={type(error).__name__}", "", error=error)
            return None

    async def drain(self) -> None:
        """
        Close every connection, batch by batch, and drop those that have not left after ``DRAIN_TIMEOUT``.

        From the first moment on new connections are refused.
        """
        self.draining = True
        self._nobody_left.clear()
        waiting = list(self.connections.values())
        steps = max(1, math.ceil(self.settings.DRAIN_SECONDS / DRAIN_STEP))
        size = max(DRAIN_BATCH, math.ceil(len(waiting) / steps)) if self.settings.DRAIN_SECONDS else len(waiting)
        while waiting:
            batch, waiting = waiting[:size], waiting[size:]
            for connection in batch:
                connection.close(*FAREWELL)
            if waiting and not self._nobody_left.is_set():
                await asyncio.sleep(DRAIN_STEP)
        try:
            async with asyncio.timeout(self.settings.DRAIN_TIMEOUT):
                if self.connections:
                    await self._nobody_left.wait()
                while self._still_leaving() and not self.aborted:
                    await asyncio.sleep(LEAVE_INTERVAL)
        except TimeoutError:
            self.abort_all()
        self._drained = True

    def _still_leaving(self) -> bool:
        self._leaving = [connection for connection in self._leaving if not connection.wire.gone]
        return bool(self._leaving)

    def abort_all(self) -> None:
        """Drop every connection at once, and wait for none any more."""
        self.draining = self.aborted = True
        self._still_leaving()
        left = [*self.connections.values(), *self._leaving]
        if left:
            logger.warning("event=drain_aborted dropped=%d", len(left))
            self.counts[Count.DRAIN_ABORTED] += len(left)
        for connection in left:
            connection.abort()
            if connection.task is not None:  # it may hang in a handler
                connection.task.cancel()
        self._nobody_left.set()

    async def stop(self) -> None:
        """Drain, if that was not done, and leave the layer."""
        self._forget_signals()
        if not self._drained:
            await self.drain()
        if self._beat_timer is not None:
            self._beat_timer.cancel()
        if self.loop_lag is not None:
            self.loop_lag.stop()
        if self.stop in servers.stop_hooks:
            servers.stop_hooks.remove(self.stop)
        await asyncio.gather(self.link.stop(), *(observer.stop() for observer in self.observers))
        for call in self.at_stop:
            call()
        await telemetry.worker.finish()

    async def _look_after_connections(self) -> None:
        while True:
            await asyncio.sleep(LOOK_INTERVAL)
            tell_repetitions()
            self._look_for_beats()
            self._still_leaving()
            everybody = list(self.connections.values())
            outbox = congested = 0
            while everybody:
                now = time.monotonic()
                for connection in everybody[-CONNECTIONS_A_TURN:]:
                    connection.look_after(now)
                    if (backlog := connection.backlog) is not None:
                        outbox += backlog.buffered + backlog.latest_size
                        congested += backlog.congested
                del everybody[-CONNECTIONS_A_TURN:], connection, backlog  # or else the last one would be kept alive
                await asyncio.sleep(0)
            self.stats.outbox, self.stats.congested = outbox, congested

    # Connections and their topics

    def connected(self, connection: Connection, since: float = math.inf) -> None:
        """
        Take note of an accepted connection whose handshake began at ``since`` (``time.monotonic``).

        It is closed at once when the hub has been stopped meanwhile, or when its session or its user was to be closed.
        """
        self.connections[connection.id] = connection
        self.stats.accepted += 1
        for observer in self.observers:
            observer.connected(connection)
        if self.draining:
            connection.close(*FAREWELL)
        for came, event in self._recent_closes:
            # A session is flushed a moment after its end was told.
            begun = since - FLUSH_TIME if event.session is not None else since
            if came >= begun and self._concerns(event, connection):
                connection.close(event.code, event.reason)

    def disconnected(self, connection: Connection) -> None:
        """Forget a connection and all its subscriptions."""
        connection.detach()
        if not connection.wire.gone:
            self._leaving.append(connection)
        for topic in list(connection.topics):
            self._remove(connection, topic)
        if self.connections.pop(connection.id, None) is not None:
            for observer in self.observers:
                observer.disconnected(connection)
        if not self.connections:
            self._nobody_left.set()

    def add(self, connection: Connection, group: Group) -> None:
        """Deliver the group's events to ``connection`` from now on."""
        group.joining -= 1
        if not group.subscribers:
            group.since = time.monotonic()
        group.subscribers[connection] = None
        connection.topics[group.topic] = group
        group.flow.subscriptions += 1
        if self.link.local and group.topic == TOPIC_HEARTBEAT and self._beat_timer is None:
            self._schedule_beat()
        for observer in self.observers:
            observer.subscribed(connection, group.topic)

    @contextmanager
    def hold(self, connection: Connection, group: Group) -> Iterator[list[bytes]]:
        """Keep back the group's publications for ``connection``, for the length of a ``with`` block."""
        held = group.held[connection] = Held()
        try:
            yield held.frames
        finally:
            del group.held[connection]

    def remove(self, connection: Connection, topic: str) -> bool:
        """Deliver nothing of ``topic`` to ``connection`` any more. Return whether it was subscribed."""
        if not self._remove(connection, topic):
            return False
        for observer in self.observers:
            observer.unsubscribed(connection, topic)
        return True

    def _remove(self, connection: Connection, topic: str) -> bool:
        group = connection.topics.pop(topic, None)
        if group is None:
            return False
        del group.subscribers[connection]
        group.flow.subscriptions -= 1
        connection.forget(topic)
        self.link.leave_if_unwanted(group)
        return True

    def subscribers(self, topic: str) -> Iterable[Connection]:
        """Return the connections of this process that subscribe to ``topic``."""
        group = self.link.groups.get(topic)
        return tuple(group.subscribers) if group is not None else ()

    # Events

    def act(self, event: Event) -> None:
        """Do what an event asks for."""
        match event:
            case PublicationEvent():
                self._publish(event)
            case BeatEvent():
                self._beat(event)
            case CloseEvent():
                self._close(event)
            case SurveyEvent():
                self._report(event)

    def _publish(self, event: PublicationEvent) -> None:
        group = self.link.groups.get(event.topic)
        if group is None:
            return
        if not (group.subscribers or group.held):
            group.heard.clear()
            return
        if event.publisher and not self._notice_gap(group, event):
            return
        began = 0 if event.traceparent is None else time.time_ns()
        group.last = event.sent_at
        frame = text_frame(encode_publication(event.topic, event.payload, event.sent_at))
        if group.latest:
            for connection in tuple(group.subscribers):
                connection.write_latest(group.topic, frame)
        else:
            for connection in tuple(group.subscribers):
                connection.write(frame)
        for connection, held in group.held.items():
            if group.latest:
                held.clear()
            held.frames.append(frame)
            held.size += len(frame)
            if held.size > self.settings.OUTBOX_LIMIT:
                held.clear()
                connection.close_slow("full")
        deliveries = len(group.subscribers) + len(group.held)
        self._count_delivery(group, deliveries, event)
        if began:
            pattern = group.flow.pattern
            self._note_delivery(f"{Name.DELIVER} {pattern}", pattern, deliveries, event, began)

    def _count_delivery(self, group: Group, deliveries: int, event: PublicationEvent | BeatEvent) -> None:
        group.flow.publications += 1
        group.flow.deliveries += deliveries
        self.stats.lag.add(max(0.0, time.time() - event.sent_at))  # clocks differ

    def _note_delivery(
        self, name: str, pattern: str, deliveries: int, event: PublicationEvent | BeatEvent, began: int
    ) -> None:
        if self.tracing.on:
            # A child, so that the whole way is one trace, and a link besides, as is the convention for messages.
            links = [event.traceparent] if event.traceparent is not None else []
            attributes = {**message_attributes(Name.DELIVER, pattern), Key.CONNECTIONS: deliveries}
            self.tracing.note(name, SpanKind.CONSUMER, attributes, event.traceparent, links, began=began)

    def _notice_gap(self, group: Group, event: PublicationEvent) -> bool:
        """Tell subscribers of what is missing before a publication. Return whether it may be delivered itself."""
        missing = group.heard.missing(event.publisher, event.sequence)
        if missing < 0:
            self.counts[Count.REPEATED] += 1
            return False
        if missing:
            self.counts[Count.GAPS] += 1
            self.counts[Count.LOST] += missing
            complain(logger, logging.WARNING, "event=gap", "topic=%s lost=%d", escaped(group.topic), missing)
            if group.report_gaps:
                frame = text_frame(encode(Gap(topic=group.topic)))
                for connection in tuple(group.subscribers):
                    connection.write(frame)
                for held in group.held.values():
                    held.add_gap(frame)
        return True

    def _beat(self, event: BeatEvent) -> None:
        if 0 <= self._newest_slot - event.slot < SAME_SLOT:
            return
        self._newest_slot = event.slot
        self.last_beat = time.monotonic()
        if self._told_of_missing_beats:
            self._told_of_missing_beats = False
            logger.info("event=beats_back")
        frames: dict[int, bytes] = {}
        group = self.link.groups.get(TOPIC_HEARTBEAT)
        if group is None or not group.subscribers:
            return
        began = time.time_ns()
        group.last = event.sent_at
        for connection in tuple(group.subscribers):
            uptime = connection.uptime
            if uptime not in frames:
                frames[uptime] = text_frame(encode_heartbeat(event.sent_at, uptime))
            connection.write_latest(TOPIC_HEARTBEAT, frames[uptime])
        self._count_delivery(group, len(group.subscribers), event)
        if event.traceparent is not None or self.link.local:  # else whoever sent it has decided that it is not traced
            self._note_delivery(Name.HEARTBEAT, TOPIC_HEARTBEAT, len(group.subscribers), event, began)

    @property
    def beats_missing(self) -> bool:
        """Whether somebody here subscribes to heartbeats, and none has come for three intervals."""
        group = self.link.groups.get(TOPIC_HEARTBEAT)
        if group is None or not group.subscribers:
            return False
        silence = time.monotonic() - max(self.last_beat, group.since)
        return silence > MISSED_BEATS * self.settings.HEARTBEAT_INTERVAL

    def _look_for_beats(self) -> None:
        if self.beats_missing and not self._told_of_missing_beats:
            self._told_of_missing_beats = True
            logger.warning("event=beats_missing intervals=%d hint=%r", MISSED_BEATS, "does run_heartbeats run?")

    def now(self) -> float:
        """Return the time that heartbeats tell (seconds since the epoch)."""
        return time.time()

    def _schedule_beat(self) -> None:
        now = self.now()
        slot = next_slot(self.settings.HEARTBEAT_INTERVAL, now)
        self._beat_timer = self.loop.call_later(slot - now, self._beat_locally, slot, context=Context())

    def _beat_locally(self, slot: float) -> None:
        """Beat without a broadcaster: on the in-memory layer this process is the whole system."""
        self._beat_timer = None
        if self.subscribers(TOPIC_HEARTBEAT):
            self._beat(BeatEvent(slot=slot, sent_at=self.now()))
            self._schedule_beat()

    def _close(self, event: CloseEvent) -> None:
        began = time.time_ns()
        chosen = [connection for connection in self._chosen(event) if not connection.wire.closed]
        for connection, delay in zip(chosen, stagger(len(chosen), event.spread), strict=True):
            if event.spread:
                self.loop.call_later(delay, connection.close, event.code, event.reason)
            else:
                connection.close(event.code, event.reason)
        logger.info("event=close code=%d connections=%d spread=%g", event.code, len(chosen), event.spread)
        self._reply(event.reply_to, AckEvent(server=self.id, part=event.part, connections=len(chosen)))
        if event.traceparent is not None and self.tracing.on:
            attributes: Attributes = {Key.CODE: event.code, Key.CONNECTIONS: len(chosen)}
            self.tracing.note(Name.CLOSE, SpanKind.CONSUMER, attributes, event.traceparent, began=began)

    def _chosen(self, event: CloseEvent) -> Iterable[Connection]:
        everybody = self.connections.values()
        if event.ids is not None:
            return [self.connections[key] for key in event.ids if key in self.connections]
        if event.topic is not None:
            return self.subscribers(event.topic)
        if event.user is None and event.session is None:
            return everybody
        self._recent_closes.append((time.monotonic(), event))
        return [connection for connection in everybody if self._concerns(event, connection)]

    @staticmethod
    def _concerns(event: CloseEvent, connection: Connection) -> bool:
        """Return whether a close by user or by session is meant for ``connection``."""
        peer = connection.peer
        if event.session is not None:
            return peer.session == event.session or (peer.session == KEY_CHANGED and peer.user_id == event.user)
        if peer.user_id != event.user:
            return False
        if event.keep_session is not None and peer.session == event.keep_session:
            connection.peer = peer._replace(session=KEY_CHANGED)
            return False
        return True

    def _report(self, event: SurveyEvent) -> None:
        groups = [group for group in self.link.groups.values() if group.subscribers][:REPORTED_TOPICS]
        topics = [(group.topic, len(group.subscribers), group.last) for group in groups]
        connections = len(self.connections)
        report = ReportEvent(server=self.id, name=self.name, connections=connections, topics=topics)
        self._reply(event.reply_to, report)

    def _reply(self, channel: str | None, event: Envelope) -> None:
        if channel is not None:
            self.link.spawn(self.link.reply(channel, event.to_message()))


_hubs: dict[asyncio.AbstractEventLoop, Hub] = {}
_stopping: set[asyncio.Task[None]] = set()
"""What ends hubs that were replaced."""


def get_hub() -> Hub:
    """Return the hub of the running event loop, and start it if there is none yet."""
    loop = asyncio.get_running_loop()
    layer = configured_layer()
    hub = _hubs.get(loop)
    if hub is None or hub.link.layer is not layer:
        for other in [other for other in _hubs if other.is_closed()]:
            del _hubs[other]
        if hub is not None:  # the layer was replaced, as tests do
            stopping = loop.create_task(hub.stop(), context=Context())  # no task of the link's, which it would cancel
            _stopping.add(stopping)
            stopping.add_done_callback(_stopping.discard)
        hub = _hubs[loop] = Hub(layer, get_settings())
        hub.start()
    return hub


def hub_of(scope: Any) -> Hub:
    """Return the hub that a connection belongs to: its server's own, or the one of the running event loop."""
    hub: Hub | None = (scope.get("extensions") or {}).get(HUB)
    return get_hub() if hub is None else hub


def _forget_parents_hubs() -> None:
    """Begin anew in a forked child, where the parent's loops seem to run and do not."""
    _parents.append(dict(_hubs))
    _hubs.clear()


_parents: list[dict[asyncio.AbstractEventLoop, Hub]] = []
"""The hubs of the processes that this one was forked from: to end their loops here would unsettle them there."""
os.register_at_fork(after_in_child=_forget_parents_hubs)


def find_hub() -> Hub | None:
    """Return a hub of this process for whoever is not on its event loop, or None if none runs."""
    for loop, hub in reversed(list(_hubs.items())):
        if loop.is_running() and not hub.draining:
            return hub
    return None
