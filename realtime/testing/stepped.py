"""A hub whose clock can be put forward, and whose heartbeats can be paused and asked for."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Callable
from contextvars import Context
from typing import Any

from ..conf import Settings
from ..events import BeatEvent, next_slot
from ..hub import Hub
from ..limits import Door
from ..protocol import TOPIC_HEARTBEAT

MOST_EVENTS = 100_000
"""Heartbeats, and other things that happen by the clock, in the time by which a clock is put forward."""
EVENTS_A_TURN = 50
"""Of those, how many happen before what they are written to gets a turn."""


class Timer:
    """Call something once, at a time of a hub's clock."""

    def __init__(self, hub: SteppedHub, delay: float, call: Callable[[], None]) -> None:
        self.when = hub.now() + delay
        self._hub = hub
        self._call = call
        self._handle: asyncio.TimerHandle | None = None
        hub.timers[self] = None
        self.arm()

    def arm(self) -> None:
        """Wait for as long as it takes now."""
        if self._handle is not None:
            self._handle.cancel()
        self._handle = self._hub.loop.call_later(max(0.0, self.when - self._hub.now()), self.fire, context=Context())

    def fire(self) -> None:
        """Do it now, which ends it."""
        self.cancel()
        self._call()

    def cancel(self) -> None:
        self._hub.timers.pop(self, None)
        if self._handle is not None:
            self._handle.cancel()


class SteppedDoor(Door):
    """Be a door whose limits can change while connections are there."""

    def use(self, settings: Settings) -> None:
        """Have the limits be those of ``settings``."""
        self._settings = settings

    def _count(self, kind: str, whose: str, limit: int | None) -> bool:
        # Who came while there was no limit leaves when there may be one, and is counted so long.
        return super()._count(kind, whose, sys.maxsize if limit is None else limit)


class SteppedHub(Hub):
    """Be the hub of one session of a test server."""

    def __init__(self, layer: Any, settings: Settings, *, offset: float = 0.0, beating: bool = True) -> None:
        super().__init__(layer, settings)
        self.door: SteppedDoor = SteppedDoor(settings)
        self.offset = offset
        """By how many seconds the clock was put forward."""
        self.beating = beating
        self.timers: dict[Timer, None] = {}

    def use_settings(self, settings: Settings) -> None:
        """Have these settings from now on."""
        self.settings = settings
        self.door.use(settings)

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        """Call ``call`` in ``delay`` seconds of this clock."""
        return Timer(self, delay, call)

    async def stop(self) -> None:
        await super().stop()  # in which what is delayed may still be sent
        for timer in list(self.timers):
            timer.cancel()

    def now(self) -> float:
        return time.time() + self.offset

    def _schedule_beat(self) -> None:
        if self.beating:
            super()._schedule_beat()

    @property
    def _beats(self) -> bool:
        """Whether heartbeats are sent by itself, and to anybody."""
        return self.beating and bool(self.subscribers(TOPIC_HEARTBEAT))

    def pause_beats(self) -> None:
        """Send no more heartbeats by itself."""
        self.beating = False
        self._cancel_beat()

    def resume_beats(self) -> None:
        """Send heartbeats by itself again."""
        self.beating = True
        self._cancel_beat()
        if self.subscribers(TOPIC_HEARTBEAT):
            self._schedule_beat()

    def _cancel_beat(self) -> None:
        if self._beat_timer is not None:
            self._beat_timer.cancel()
            self._beat_timer = None

    def beat(self) -> int:
        """Send a heartbeat now. Return to how many connections."""
        now = self.now()
        self._newest_slot = 0.0  # or else a second one in the same moment would be a repetition
        self._beat(BeatEvent(slot=now, sent_at=now))
        return len(tuple(self.subscribers(TOPIC_HEARTBEAT)))

    async def advance(self, seconds: float) -> None:
        """
        Put the clock forward, do all that is to be done in that time, and close who becomes too old or silent in it.

        Raises ``ValueError`` for a time that is negative, or in which too much would happen.
        """
        self.check(seconds)
        self._cancel_beat()
        end = self.now() + seconds
        try:
            await self._do_until(end)
            self._step(max(0.0, end - self.now()))
        finally:
            for timer in self.timers:
                timer.arm()
            self._cancel_beat()
            if self.subscribers(TOPIC_HEARTBEAT):
                self._schedule_beat()

    def check(self, seconds: float) -> None:
        """Raise ``ValueError`` for a time by which the clock cannot be put forward, as far as that shows beforehand."""
        most = MOST_EVENTS * self.settings.HEARTBEAT_INTERVAL if self._beats else math.inf
        if not 0 <= seconds <= most or seconds == math.inf:
            raise ValueError(f"the clock can be put forward by 0 to {most:g} s at once, but not by {seconds!r} s")

    async def _do_until(self, end: float) -> None:
        interval = self.settings.HEARTBEAT_INTERVAL
        for count in range(2 * MOST_EVENTS):
            slot = next_slot(interval, self.now()) if self._beats else math.inf
            timer = min(self.timers, key=lambda timer: timer.when, default=None)
            when = min(slot, math.inf if timer is None else timer.when)
            if when > end:
                return
            self._step(max(0.0, when - self.now()))
            if timer is not None and timer.when <= slot:
                timer.fire()
            else:
                self._newest_slot = 0.0
                self._beat(BeatEvent(slot=slot, sent_at=slot))
            if count % EVENTS_A_TURN == EVENTS_A_TURN - 1:
                await asyncio.sleep(0)
        raise ValueError(
            f"over {2 * MOST_EVENTS:,} things happened before the clock was put forward by all of that: "
            f"{end - self.now():g} s are left"
        )

    def _step(self, seconds: float) -> None:
        self.offset += seconds
        now = time.monotonic()
        for connection in list(self.connections.values()):
            connection.look_after(now)
            connection.opened -= seconds
            connection.expires -= seconds
            connection.silent_until -= seconds
            if connection.backlog is not None:
                connection.backlog.moved -= seconds
            connection.look_after(now)
