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
from functools import partial
from typing import Any, NamedTuple, Protocol

from . import servers
from .conf import Settings, get_settings
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
from .link import Group, Held, Link
from .protocol import TOPIC_HEARTBEAT, CloseCode, encode_heartbeat, encode_publication
from .servers import Wire, text_frame

logger = logging.getLogger("realtime.hub")

FAREWELL = (int(CloseCode.GOING_AWAY), "server shutdown")
"""The code and the reason that connections are closed with when the hub stops."""
SAME_SLOT = 60.0
"""A beat that lags behind the newest by up to these seconds is a repetition; one further behind, a clock put back."""


REPORTED_TOPICS = 1000
"""The most topics that a report names."""
HELD_LIMIT = 1 << 20
"""The most bytes that are kept back for a connection that fetches a snapshot."""
RECENT_CLOSES = 100
"""How many closes by user or session are remembered for handshakes that are under way."""
FLUSH_TIME = 1.0
"""Seconds after its end was told in which a session may still be found in the database."""
KEY_CHANGED = ""
"""Stands for a session whose key was changed under a connection, which was allowed to stay."""


class Peer(NamedTuple):
    """
    Say who is at the other end of a connection, as found out at the handshake.

    ``user_id`` is the primary key as text, empty where nobody signed in; ``session`` the digest of the session that
    signed in, None where another credential did.
    """

    user_id: str = ""
    username: str = ""
    session: str | None = None
    address: str = ""
    path: str = ""
    user_agent: str = ""


class Connection:
    """Be one accepted connection, as the hub knows it."""

    __slots__ = ("__weakref__", "connected_at", "id", "opened", "peer", "topics", "wire")

    def __init__(self, wire: Wire, peer: Peer = Peer()) -> None:  # noqa: B008 - it is immutable
        self.id = str(uuid.uuid4())
        self.wire = wire
        self.peer = peer
        self.connected_at = time.time()
        self.opened = time.monotonic()
        self.topics: dict[str, Group] = {}

    @property
    def uptime(self) -> int:
        """The connection's age in whole seconds."""
        return int(time.monotonic() - self.opened)

    # A wire does not raise. One that does all the same must not keep the hub from the other connections.

    def write(self, frame: bytes) -> None:
        """Write one frame."""
        try:
            self.wire.write(frame)
        except Exception:
            logger.exception("event=write_failed connection=%s", self.id)
            self.abort()

    def close(self, code: int, reason: str) -> None:
        """Close with ``code`` and ``reason``; 1006 drops the TCP connection instead."""
        if code == CloseCode.INTERRUPTED:
            self.abort()
            return
        try:
            self.wire.close(code, reason)
        except Exception:
            logger.exception("event=close_failed connection=%s", self.id)
            self.abort()

    def abort(self) -> None:
        """Drop the TCP connection."""
        try:
            self.wire.abort()
        except Exception:
            logger.exception("event=abort_failed connection=%s", self.id)


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
"""Called when a hub starts, to make what is to observe it."""


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
        self.connections: dict[str, Connection] = {}
        self.loop = asyncio.get_running_loop()
        self.last_beat = 0.0
        """When the newest beat arrived here (``time.monotonic``), 0 before one has."""
        self.observers: list[Observer] = []
        self._recent_closes: deque[tuple[float, CloseEvent]] = deque(maxlen=RECENT_CLOSES)
        """Closes by user or session with when they came, for handshakes that are under way meanwhile."""
        self._nobody_left = asyncio.Event()
        self._newest_slot = 0.0
        self._beat_timer: asyncio.TimerHandle | None = None

    # Life

    def start(self) -> None:
        """Begin to deliver. The layer need not be there yet."""
        servers.stop_hooks.append(self.stop)
        self.observers = [observer for make in observers if (observer := make(self)) is not None]
        self.link.start()

    async def stop(self) -> None:
        """
        Close every connection, drop those that have not left after ``DRAIN_TIMEOUT``, and leave the layer.

        From the first moment on new connections are refused.
        """
        self.draining = True
        self._nobody_left.clear()
        for connection in list(self.connections.values()):
            connection.close(*FAREWELL)
        try:
            if self.connections:
                async with asyncio.timeout(self.settings.DRAIN_TIMEOUT):
                    await self._nobody_left.wait()
        except TimeoutError:
            logger.info("event=drain_timeout dropped=%d", len(self.connections))
            for connection in list(self.connections.values()):
                connection.abort()
        if self._beat_timer is not None:
            self._beat_timer.cancel()
        if self.stop in servers.stop_hooks:
            servers.stop_hooks.remove(self.stop)
        await asyncio.gather(self.link.stop(), *(observer.stop() for observer in self.observers))

    # Connections and their topics

    def connected(self, connection: Connection, since: float = math.inf) -> None:
        """
        Take note of an accepted connection whose handshake began at ``since`` (``time.monotonic``).

        It is closed at once when the hub has been stopped meanwhile, or when its session or its user was to be closed.
        """
        self.connections[connection.id] = connection
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
        if group is None or not (group.subscribers or group.held):
            return
        group.last = event.sent_at
        frame = text_frame(encode_publication(event.topic, event.payload, event.sent_at))
        for connection in tuple(group.subscribers):
            connection.write(frame)
        for connection, held in group.held.items():
            held.frames.append(frame)
            held.size += len(frame)
            if held.size > HELD_LIMIT:
                held.frames.clear()
                connection.close(CloseCode.SLOW_CONSUMER, "slow consumer")

    def _beat(self, event: BeatEvent) -> None:
        if 0 <= self._newest_slot - event.slot < SAME_SLOT:
            return
        self._newest_slot = event.slot
        self.last_beat = time.monotonic()
        frames: dict[int, bytes] = {}
        group = self.link.groups.get(TOPIC_HEARTBEAT)
        if group is None:
            return
        group.last = event.sent_at
        for connection in tuple(group.subscribers):
            uptime = connection.uptime
            if uptime not in frames:
                frames[uptime] = text_frame(encode_heartbeat(event.sent_at, uptime))
            connection.write(frames[uptime])

    def _schedule_beat(self) -> None:
        now = time.time()
        slot = next_slot(self.settings.HEARTBEAT_INTERVAL, now)
        self._beat_timer = self.loop.call_later(slot - now, self._beat_locally, slot)

    def _beat_locally(self, slot: float) -> None:
        """Beat without a broadcaster: on the in-memory layer this process is the whole system."""
        self._beat_timer = None
        if self.subscribers(TOPIC_HEARTBEAT):
            self._beat(BeatEvent(slot=slot, sent_at=time.time()))
            self._schedule_beat()

    def _close(self, event: CloseEvent) -> None:
        chosen = [connection for connection in self._chosen(event) if not connection.wire.closed]
        for connection, delay in zip(chosen, stagger(len(chosen), event.spread), strict=True):
            if event.spread:
                self.loop.call_later(delay, connection.close, event.code, event.reason)
            else:
                connection.close(event.code, event.reason)
        logger.info("event=close code=%d connections=%d spread=%g", event.code, len(chosen), event.spread)
        self._reply(event.reply_to, AckEvent(server=self.id, connections=len(chosen)))

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
            send = partial(self.link.layer.send, channel, event.to_message())
            self.link.spawn(self.link.guarded("reply", send))


_hubs: dict[asyncio.AbstractEventLoop, Hub] = {}


def get_hub() -> Hub:
    """Return the hub of the running event loop, and start it if there is none yet."""
    loop = asyncio.get_running_loop()
    layer = configured_layer()
    hub = _hubs.get(loop)
    if hub is None or hub.link.layer is not layer:
        for other in [other for other in _hubs if other.is_closed()]:
            del _hubs[other]
        if hub is not None:  # the layer was replaced, as tests do
            hub.link.spawn(hub.stop())
        hub = _hubs[loop] = Hub(layer, get_settings())
        hub.start()
    return hub


def find_hub() -> Hub | None:
    """Return a hub of this process for whoever is not on its event loop, or None if none runs."""
    for loop, hub in reversed(list(_hubs.items())):
        if loop.is_running() and not hub.draining:
            return hub
    return None
