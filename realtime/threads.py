"""
The threads for a site's synchronous code.

It never runs in the event loop's default executor (a hung call there would hold up name look-ups) nor
on the one thread that Channels shares between all connections. A thread cannot be cancelled: whoever
waits for one too long leaves it behind, and while all are busy nothing new is started.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import lru_cache, partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from asgiref.sync import iscoroutinefunction
from django.db import close_old_connections

from .conf import get_settings
from .exceptions import ThreadsBusy
from .telemetry import carried

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """
    Run synchronous functions on at most ``limit`` threads.

    The threads are daemons, unlike an executor's, so that one that hangs does not keep the process from ending.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._pid = os.getpid()
        self._started = 0
        self._busy = 0
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()

    @property
    def busy(self) -> int:
        """How many calls are under way or wait for a thread."""
        return self._busy

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what ``function`` returns. Raises ``ThreadsBusy`` at once when no thread is free."""
        with self._lock:
            if self._busy >= self._limit:
                raise ThreadsBusy(f"all {self._limit} threads for synchronous code are busy (SYNC_THREADS)")
            future = self._submit(partial(function, *args, **kwargs))
        return await asyncio.wrap_future(future)

    async def run_queued(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what ``function`` returns, once a thread was free for it. Cancelling takes it out of the queue."""
        with self._lock:
            future = self._submit(partial(function, *args, **kwargs))
        return await asyncio.wrap_future(future)

    def _submit(self, function: Callable[[], T]) -> Future[T]:
        if self._pid != os.getpid():  # forked: the threads did not come along, nor did what they were to do
            self._begin_anew()
        future: Future[T] = Future()
        self._busy += 1
        if self._started < min(self._busy, self._limit):
            self._started += 1
            threading.Thread(target=self._serve, name=f"realtime-{self._started}", daemon=True).start()
        self._work.put((future, carried(function)))
        return future

    def _serve(self) -> None:
        while True:
            self._call(*self._work.get())

    def _call(self, future: Future[Any], function: Callable[[], Any]) -> None:
        wanted = future.set_running_or_notify_cancel()
        try:
            close_old_connections()
            try:
                result = function() if wanted else None
            finally:
                close_old_connections()
        except StopIteration as error:  # no coroutine can be made to raise it
            finish = partial(future.set_exception, RuntimeError(f"the function raised {error!r}"))
        except BaseException as error:  # noqa: BLE001 - it is raised again where the result is awaited
            finish = partial(future.set_exception, error)
        else:
            finish = partial(future.set_result, result)
        with self._lock:
            self._busy -= 1
        if wanted:
            finish()


@lru_cache(maxsize=1)
def get_threads() -> Threads:
    """Return the threads of this process."""
    return Threads(get_settings().SYNC_THREADS)


async def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """
    Return what a function of the site's returns: awaited if it is asynchronous, else run on one of our threads.

    Raises ``ThreadsBusy`` at once when no thread is free.
    """
    if iscoroutinefunction(function):
        return await function(*args, **kwargs)
    result = await get_threads().run(function, *args, **kwargs)
    return await result if inspect.isawaitable(result) else result
