"""Broadcast heartbeats to the subscribers of every server, until told to stop."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ...conf import get_settings
from ...events import next_slot
from ...exceptions import LayerUnavailable
from ...layers import configured_layer, is_local
from ...publishing import abeat

logger = logging.getLogger("realtime.heartbeats")

BACKOFF = (0.1, 0.2, 0.5, 1.0)
"""Seconds between two tries of one beat; the last repeats."""
PARENT_CHECK = 0.5
"""Seconds between two looks whether the parent process is still there."""


class Command(BaseCommand):
    """Beat on wall-clock slots, so that any number of these may run side by side."""

    help = "Broadcasts heartbeats through the channel layer. Several at once are harmless: each slot is delivered once."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--interval", type=float, help="seconds between beats (REALTIME['HEARTBEAT_INTERVAL'])")
        parser.add_argument("--count", type=int, help="stop after so many beats (default: never)")
        parser.add_argument(
            "--with-parent",
            nargs="?",
            type=int,
            const=True,
            metavar="PID",
            help="stop when the process that started this ends; with its PID also if that was before this could look",
        )

    def handle(
        self, *args: Any, interval: float | None, count: int | None, with_parent: int | None, **options: Any
    ) -> None:
        interval = get_settings().HEARTBEAT_INTERVAL if interval is None else interval
        if not 0 < interval < math.inf:
            raise CommandError(f"--interval takes a number of seconds above 0, not {interval:g}")
        if count is not None and count < 1:
            raise CommandError(f"--count takes a whole number from 1 on, not {count}")
        if is_local(configured_layer()):
            raise CommandError(
                "The in-memory channel layer reaches only this process, so these heartbeats would reach nobody. "
                "A server on that layer beats by itself; for several processes set REDIS_URL."
            )
        parent = os.getppid() if with_parent is True else with_parent or None
        sent = asyncio.run(_beat(interval, count, parent))
        self.stdout.write(f"Stopped after {sent} beats.")


async def _beat(interval: float, count: int | None, parent: int | None) -> int:
    """Beat until stopped. Return how many beats the layer took."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    watch = asyncio.create_task(_stop_with(parent, stop)) if parent is not None else None
    sent = failures = 0
    logger.info("event=heartbeats_started interval=%g", interval)
    while not stop.is_set() and sent != count:
        slot = next_slot(interval, time.time())
        await _sleep_until(slot, stop)
        while not stop.is_set() and time.time() < slot + interval:
            try:
                await abeat(slot)
            except LayerUnavailable as error:
                if failures == 0:
                    logger.warning("event=heartbeat_failed error=%s", error)
                await _sleep_until(time.time() + BACKOFF[min(failures, len(BACKOFF) - 1)], stop)
                failures += 1
            else:
                if failures:
                    logger.info("event=heartbeats_resumed tries=%d", failures)
                sent, failures = sent + 1, 0
                break
    if watch is not None:
        watch.cancel()
    return sent


async def _stop_with(parent: int, stop: asyncio.Event) -> None:
    """Set ``stop`` when the parent process has ended, however it ended: another process adopts this one then."""
    while os.getppid() == parent:
        await asyncio.sleep(PARENT_CHECK)
    stop.set()


async def _sleep_until(moment: float, stop: asyncio.Event) -> None:
    """Wait until ``moment`` (epoch seconds) by the wall clock, or until ``stop``."""
    stopping = asyncio.ensure_future(stop.wait())
    while (left := moment - time.time()) > 0 and not stop.is_set():
        await asyncio.wait([stopping], timeout=left)
    stopping.cancel()
