"""
One accepted connection, as the hub knows it: what it is sent, and the limits that it keeps to.

Frames go straight to the server, whose own buffer is the outbox. While that is empty nothing is counted. Once it holds
something that could not be written at once, a ``Backlog`` watches it: more than the limit, or nothing written for a
while, and the connection is closed as a slow consumer.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
import uuid
from collections import Counter
from typing import Any, NamedTuple

from .conf import Settings
from .limits import Bucket, Count, Counts
from .logs import complain
from .protocol import CloseCode
from .servers import LINGER, Wire

logger = logging.getLogger("realtime.connection")

LARGE = 1 << 16
"""Bytes of a frame from which on the outbox is looked at before it is written."""
AGE_JITTER = 0.1
"""By which part of the greatest age connections are closed earlier, at random, so that few come back at once."""
DEFAULTS = Settings()


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


class Backlog:
    """Watch what the server holds for one connection, since some of it could not be written at once."""

    __slots__ = ("buffered", "congested", "latest", "latest_size", "moved", "written")

    def __init__(self, buffered: int, *, congested: bool = False) -> None:
        self.moved = time.monotonic()
        """When bytes were last known to leave."""
        self.buffered = buffered
        """What the server held when it was last looked at, in bytes."""
        self.written = 0
        """What it was given since, in bytes."""
        self.congested = congested
        """Whether the server has said that it had better get no more."""
        self.latest: dict[str, bytes] = {}
        """What waits until that is over: the newest frame of each topic of which only that counts."""
        self.latest_size = 0


class Connection:
    """Be one accepted connection."""

    __slots__ = (
        *("__weakref__", "backlog", "bucket", "closed_with", "connected_at", "expires", "id", "opened", "peer"),
        *("paused_until", "silent_until", "task", "topics", "wire", "_counts", "_resuming", "_settings"),
    )

    def __init__(
        self,
        wire: Wire,
        peer: Peer = Peer(),  # noqa: B008 - it is immutable
        settings: Settings = DEFAULTS,
        counts: Counts | None = None,
    ) -> None:
        self.id = str(uuid.uuid4())
        self.wire = wire
        self.peer = peer
        self.connected_at = time.time()
        self.opened = time.monotonic()
        self.topics: dict[str, Any] = {}
        """The hub's groups by the topics that are subscribed to."""
        self.backlog: Backlog | None = None
        self.bucket = None if settings.RATE_LIMIT is None else Bucket(settings.RATE_LIMIT, settings.RATE_BURST)
        self.closed_with: int | None = None
        """The code that this side has closed with."""
        age = settings.MAX_CONNECTION_AGE
        self.expires = math.inf if age is None else self.opened + age * (1 - random.random() * AGE_JITTER)
        """When it is to be closed for its age (``time.monotonic``)."""
        silence = settings.FIRST_MESSAGE_TIMEOUT
        self.silent_until = math.inf if silence is None else self.opened + silence
        """When it is to be closed for having said nothing (``time.monotonic``)."""
        self.paused_until = -math.inf
        """Until when nothing is read from the client (``time.monotonic``)."""
        self._resuming: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[Any] | None = None
        """What serves the connection."""
        self._settings = settings
        self._counts: Counts = Counter() if counts is None else counts
        wire.listener = self

    @property
    def uptime(self) -> int:
        """The connection's age in whole seconds."""
        return int(time.monotonic() - self.opened)

    # A wire does not raise. One that does all the same must not keep the hub from the other connections.

    @property
    def crowded(self) -> bool:
        """Whether half the outbox is full: what a client asks for then has to wait, so as not to close it."""
        return (
            self.backlog is not None and not self.wire.closed and self.wire.buffered > self._settings.OUTBOX_LIMIT // 2
        )

    def write(self, frame: bytes) -> None:
        """Write one frame, unless that would be more than the outbox takes: then close the connection."""
        try:
            if self.backlog is None and len(frame) < LARGE:
                self.wire.write(frame)
            else:
                self._write_watched(frame)
        except Exception as error:  # noqa: BLE001 - a wire does not raise, and one that does is logged
            complain(logger, logging.ERROR, "event=write_failed", "connection=%s", self.id, error=error)
            self.abort()

    def write_latest(self, topic: str, frame: bytes) -> None:
        """Write one frame of ``topic``; while the server cannot write, keep it, or what comes in its place."""
        backlog = self.backlog
        if backlog is None or not backlog.congested:
            self.write(frame)
            return
        if (old := backlog.latest.pop(topic, None)) is not None:
            backlog.latest_size -= len(old)
            self._counts[Count.CONFLATED] += 1
        if self._fits(backlog, frame):
            backlog.latest[topic] = frame
            backlog.latest_size += len(frame)

    def _write_watched(self, frame: bytes) -> None:
        if self._fits(self.backlog, frame):
            before = self.wire.buffered
            if not before and self.backlog is not None and not self.backlog.congested:
                self.backlog = None  # what waited has been written
            self.wire.write(frame)
            if self.backlog is not None:  # by how much it grows differs from the frame where it is compressed
                self.backlog.written += max(0, self.wire.buffered - before)

    def _fits(self, backlog: Backlog | None, frame: bytes) -> bool:
        """Return whether the outbox can take ``frame``; if not, close the connection."""
        if self.wire.closed:
            return False
        waiting = backlog.latest_size if backlog is not None else 0
        if self.wire.buffered + waiting + len(frame) <= self._settings.OUTBOX_LIMIT:
            return True
        self.close_slow("full")
        return False

    def close(self, code: int, reason: str) -> None:
        """Close with ``code`` and ``reason``; 1006 drops the TCP connection instead."""
        if code == CloseCode.INTERRUPTED:
            self.abort()
            return
        if self.closed_with is None and not self.wire.closed:
            self.closed_with = code
        try:
            self.wire.close(code, reason)
        except Exception as error:  # noqa: BLE001 - a wire does not raise, and one that does is logged
            complain(logger, logging.ERROR, "event=close_failed", "connection=%s", self.id, error=error)
            self.abort()

    def close_slow(self, why: str) -> None:
        """Close a connection whose client does not read, and drop it soon, as it may never read the close frame."""
        if self.closed_with is not None or self.wire.closed:
            return
        self._counts[Count.SLOW_CONSUMERS] += 1
        kind = f"event=slow_consumer reason={why}"
        complain(logger, logging.WARNING, kind, "connection=%s buffered=%d", self.id, self.wire.buffered)
        self.close(CloseCode.SLOW_CONSUMER, "slow consumer")
        if self.backlog is not None:
            self.backlog.latest.clear()
            self.backlog.latest_size = 0
        asyncio.get_running_loop().call_later(LINGER, self.abort)

    def abort(self) -> None:
        """Drop the TCP connection."""
        if self.closed_with is None:
            self.closed_with = int(CloseCode.INTERRUPTED)
        try:
            self.wire.abort()
        except Exception as error:  # noqa: BLE001 - a wire does not raise, and one that does is logged
            complain(logger, logging.ERROR, "event=abort_failed", "connection=%s", self.id, error=error)

    def forget(self, topic: str) -> None:
        """Send nothing of ``topic`` that still waits."""
        if self.backlog is not None and (frame := self.backlog.latest.pop(topic, None)) is not None:
            self.backlog.latest_size -= len(frame)

    # What the wire tells

    def congested(self) -> None:
        if self.backlog is None:
            self.backlog = Backlog(self.wire.buffered, congested=True)
        else:
            self.backlog.congested = True

    def writable(self) -> None:
        backlog, self.backlog = self.backlog, None
        if backlog is None:
            return
        waiting = backlog.latest
        while waiting and self.backlog is None:
            self.write(waiting.pop(next(iter(waiting))))
        if self.backlog is not None:  # congested again
            self.backlog.latest = waiting
            self.backlog.latest_size = sum(map(len, waiting.values()))

    def controlled(self, written: int) -> None:
        if self.backlog is not None:
            self.backlog.written += written
            if self.wire.buffered > self._settings.OUTBOX_LIMIT:
                self.close_slow("full")
        if self.bucket is None or self.wire.closed:
            return
        wait = self.bucket.take()
        if wait and not self.close_flooder():
            self.pause_reading(wait)

    def pause_reading(self, seconds: float) -> None:
        """Take nothing more from the client for so long, unless that is the case already for longer."""
        self.paused_until = max(self.paused_until, time.monotonic() + seconds)
        self.wire.pause_reading()
        if self._resuming is None:
            self._resuming = asyncio.get_running_loop().call_later(seconds, self._read_on)

    def _read_on(self) -> None:
        self._resuming = None
        left = self.paused_until - time.monotonic()
        if self.wire.closed:
            return
        if left > 0:
            self._resuming = asyncio.get_running_loop().call_later(left, self._read_on)
        else:
            self.wire.resume_reading()

    def close_flooder(self) -> bool:
        """Close a connection that has asked for too much for too long. Return whether it has."""
        if self.bucket is None or self.bucket.flooded_for < self._settings.FLOOD_TIMEOUT:
            return False
        self._counts[Count.FLOODERS] += 1
        complain(logger, logging.WARNING, "event=flooding", "connection=%s", self.id)
        self.close(CloseCode.POLICY_VIOLATION, "flooding")
        return True

    # What is looked at now and then

    def look_after(self, now: float) -> None:
        """Close a connection that is too old, has said nothing for too long, or does not read (``now``: monotonic)."""
        try:
            if not self.wire.closed:
                self._look_after(now)
        except Exception as error:  # noqa: BLE001 - a wire does not raise, and one that does is logged
            complain(logger, logging.ERROR, "event=look_failed", "connection=%s", self.id, error=error)
            self.abort()

    def _look_after(self, now: float) -> None:
        if now >= self.expires:
            self._counts[Count.AGED] += 1
            self.close(CloseCode.GOING_AWAY, "maximum age")
        elif now >= self.silent_until:
            self._counts[Count.SILENT] += 1
            self.close(CloseCode.POLICY_VIOLATION, "no message")
        elif self.backlog is not None:
            self._watch(self.backlog, now)
        elif buffered := self.wire.buffered:
            self.backlog = Backlog(buffered)

    def _watch(self, backlog: Backlog, now: float) -> None:
        buffered = self.wire.buffered
        if not buffered and not backlog.congested:
            self.backlog = None
        elif buffered < backlog.buffered + backlog.written or not buffered:
            backlog.moved = now
        elif now - backlog.moved >= self._settings.WRITE_TIMEOUT:
            self.close_slow("stalled")
        backlog.buffered, backlog.written = buffered, 0

    def detach(self) -> None:
        """Listen to the wire no more: the connection has ended."""
        self.wire.listener = None
        self.backlog = None
        self.task = None
        if self._resuming is not None:
            self._resuming.cancel()
            self._resuming = None
