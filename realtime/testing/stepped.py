"""A hub whose clock can be put forward, and whose heartbeats can be paused and asked for."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from ..conf import Settings
from ..events import BeatEvent, next_slot
from ..hub import Hub
from ..protocol import TOPIC_HEARTBEAT

MOST_BEATS = 100_000
"""Beats that may fall into the time by which a clock is put forward."""
BEATS_A_TURN = 50
"""Beats that are sent before what they are written to gets a turn."""


class SteppedHub(Hub):
    """Be the hub of one session of a test server."""

    def __init__(self, layer: Any, settings: Settings, *, offset: float = 0.0, beating: bool = True) -> None:
        super().__init__(layer, settings)
        self.offset = offset
        """By how many seconds the clock was put forward."""
        self.beating = beating

    def now(self) -> float:
        return time.time() + self.offset

    def _schedule_beat(self) -> None:
        if self.beating:
            super()._schedule_beat()

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
        Put the clock forward: send the heartbeats of that time, and close who becomes too old or silent in it.

        Raises ``ValueError`` for a time that is negative, or has too many heartbeats in it.
        """
        interval = self.settings.HEARTBEAT_INTERVAL
        if not 0 <= seconds / interval <= MOST_BEATS:
            most = MOST_BEATS * interval
            raise ValueError(f"the clock can be put forward by 0 to {most:g} s at once, but not by {seconds!r} s")
        self._cancel_beat()
        end, beats = self.now() + seconds, 0
        while self.beating and (slot := next_slot(interval, self.now())) <= end:
            self._step(slot - self.now())
            self._newest_slot = 0.0
            self._beat(BeatEvent(slot=slot, sent_at=slot))
            beats += 1
            if beats % BEATS_A_TURN == 0:
                await asyncio.sleep(0)
        self._step(max(0.0, end - self.now()))
        self._cancel_beat()
        if self.subscribers(TOPIC_HEARTBEAT):
            self._schedule_beat()

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
