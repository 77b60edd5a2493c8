"""
What comes first when a server is told to stop.

Servers stop at once: uvicorn closes everybody with 1012, Daphne drops them. So their signal handlers are put behind
ours, which lets clients go first and then hands the signal on.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import multiprocessing
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from contextvars import Context
from types import FrameType
from typing import Any

logger = logging.getLogger("realtime.servers")

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO = 1.0
"""Seconds in which a worker may be told twice: by its supervisor, and by whoever told that one."""
DEFAULTS = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler, None)
"""Handlers that no server has set."""


def before_stop(
    loop: asyncio.AbstractEventLoop, drain: Callable[[], Awaitable[None]], abort: Callable[[], None]
) -> Callable[[], None]:
    """
    Have ``drain`` run on ``loop`` before a server acts upon SIGTERM or SIGINT, and return what undoes this.

    When a signal comes once more, ``abort`` is called at once. Handlers can only be set on the main thread, and
    only those that a server has set before are put behind ours: elsewhere nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    handler = _Handler(loop, drain, abort)
    handler.install()
    return handler.uninstall


def _is_of_asyncio(handler: Any) -> bool:
    """Return whether ``handler`` is what ``asyncio.run`` sets for Ctrl-C, which no server has."""
    return isinstance(handler, functools.partial) and getattr(handler.func, "__module__", "") == "asyncio.runners"


class _Handler:
    def __init__(
        self, loop: asyncio.AbstractEventLoop, drain: Callable[[], Awaitable[None]], abort: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._drain = drain
        self._abort = abort
        self._behind: dict[int, Any] = {}
        """The server's own handlers by their signals."""
        self._draining: asyncio.Task[None] | None = None
        self._first = 0.0
        self._handed_on = False

    def install(self) -> None:
        for number in SIGNALS:
            behind = signal.getsignal(number)
            while isinstance(behind, _Handler) and behind._loop.is_closed():
                behind = behind._behind[number]
            if behind not in DEFAULTS and not _is_of_asyncio(behind):
                self._behind[number] = behind
                signal.signal(number, self)

    def uninstall(self) -> None:
        for number, behind in self._behind.items():
            current: Any = signal.getsignal(number)
            if current is self and threading.current_thread() is threading.main_thread():
                signal.signal(number, behind)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        # This runs on the main thread between any two of its instructions, so it does next to nothing.
        if self._handed_on or not self._loop.is_running():
            self._behind[number](number, frame)
        else:
            # On behalf of nobody: it may have interrupted what is done for some connection.
            self._loop.call_soon_threadsafe(self._told, number, context=Context())

    def _told(self, number: int) -> None:
        now = time.monotonic()
        if self._draining is None:
            self._first = now
            logger.info("event=draining signal=%s", signal.Signals(number).name)
            self._draining = self._loop.create_task(self._drain_and_hand_on(number))
        elif now - self._first > ECHO or multiprocessing.parent_process() is None:
            self._abort()

    async def _drain_and_hand_on(self, number: int) -> None:
        try:
            await self._drain()
        except Exception:
            logger.exception("event=drain_failed")
        finally:
            self._handed_on = True
            self._behind[number](number, None)
