"""The threads for synchronous code."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from realtime.exceptions import ThreadsBusy
from realtime.threads import Threads, get_threads

from .memory import clean_process, until  # noqa: F401


async def test_run_returns_what_the_function_returns() -> None:
    assert await Threads(1).run(lambda a, *, b: (a, b), 1, b=2) == (1, 2)


async def test_run_raises_what_the_function_raises() -> None:
    with pytest.raises(ZeroDivisionError):
        await Threads(1).run(lambda: 1 / 0)


async def test_run_of_a_function_that_raises_stop_iteration_ends() -> None:
    """No future can hold a StopIteration, so whoever waits would wait for ever."""
    with pytest.raises((RuntimeError, TypeError)):
        await asyncio.wait_for(Threads(1).run(lambda: next(iter([]))), 2)


async def test_run_takes_a_thread_of_its_own() -> None:
    name = await Threads(1).run(lambda: threading.current_thread().name)
    assert name.startswith("realtime")


async def test_run_gives_the_thread_back_after_an_exception() -> None:
    threads = Threads(1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await threads.run(lambda: 1 / 0)


async def test_run_uses_as_many_threads_as_there_are() -> None:
    barrier = threading.Barrier(3)
    threads = Threads(3)
    await asyncio.gather(*(threads.run(barrier.wait, 10) for _ in range(3)))


async def test_run_while_all_threads_are_busy_raises_at_once() -> None:
    threads, release = Threads(1), threading.Event()
    hung = asyncio.create_task(threads.run(release.wait))
    await asyncio.sleep(0)
    with pytest.raises(ThreadsBusy, match="all 1 threads"):
        await threads.run(int)
    release.set()
    assert await hung


async def test_thread_left_behind_is_busy_until_it_ends() -> None:
    threads, began, release = Threads(1), threading.Event(), threading.Event()

    def hang() -> None:
        began.set()
        release.wait()

    hung = asyncio.create_task(threads.run(hang))
    await until(began.is_set)
    hung.cancel()
    await asyncio.wait([hung])
    with pytest.raises(ThreadsBusy):
        await threads.run(int)
    release.set()
    await until(lambda: threads._busy == 0)
    assert await threads.run(int) == 0


async def test_run_cancelled_before_its_thread_took_it_up_leaves_the_thread_free() -> None:
    release, called = threading.Event(), []

    class SlowToStart(Threads):
        def _serve(self) -> None:
            release.wait()
            super()._serve()

    threads = SlowToStart(1)
    waiting = asyncio.create_task(threads.run(called.append, 1))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    release.set()
    await until(lambda: threads._busy == 0)
    assert await threads.run(int) == 0
    assert called == []


@pytest.mark.parametrize("failing_call", [1, 2])
async def test_run_whose_database_clean_up_raises_loses_no_thread(
    monkeypatch: pytest.MonkeyPatch, failing_call: int
) -> None:
    calls = []

    def clean_up() -> None:
        calls.append(1)
        if len(calls) == failing_call:
            raise ConnectionError

    monkeypatch.setattr("realtime.threads.close_old_connections", clean_up)
    threads = Threads(1)
    try:
        await asyncio.wait_for(threads.run(int), 2)
    except ConnectionError:
        pass
    assert await asyncio.wait_for(threads.run(int), 2) == 0


def test_get_threads_has_as_many_as_the_settings_say(settings: Any) -> None:
    settings.REALTIME = {"SYNC_THREADS": 3}
    assert get_threads()._limit == 3


def test_get_threads_gives_the_same_each_time() -> None:
    assert get_threads() is get_threads()
