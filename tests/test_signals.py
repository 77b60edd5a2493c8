"""Signals: clients go first, and the server is told after."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from realtime.servers import signals
from realtime.servers.signals import ECHO, SIGNALS, before_stop

from .memory import until

NUMBERS = pytest.mark.parametrize("number", SIGNALS, ids=[number.name for number in SIGNALS])


class Clock:
    """Be the time, which stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Server:
    """A server with its signal handlers, and a hub that drains until a test lets it end."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.empty = asyncio.Event()
        self.failing = False

    def handle(self, number: int, frame: Any) -> None:
        self.log.append(("stopped", number))

    async def drain(self) -> None:
        self.log.append("draining")
        await self.empty.wait()
        if self.failing:
            raise ZeroDivisionError
        self.log.append("drained")

    def abort(self) -> None:
        self.log.append("aborted")
        self.empty.set()


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    """Restore the process's handlers, whatever a test did to them."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that the handlers see."""
    clock = Clock()
    monkeypatch.setattr(signals, "time", clock)
    return clock


@pytest.fixture
async def server() -> Server:
    """A server that has set its handlers."""
    server = Server()
    for number in SIGNALS:
        signal.signal(number, server.handle)
    return server


def behind(server: Server) -> Any:
    """Put the server's handlers behind ours, and return what undoes this."""
    return before_stop(asyncio.get_running_loop(), server.drain, server.abort)


@NUMBERS
async def test_signal_drains_first_and_is_handed_on_then(server: Server, number: int) -> None:
    behind(server)
    signal.raise_signal(number)
    await until(lambda: server.log)
    assert server.log == ["draining"]
    server.empty.set()
    await until(lambda: len(server.log) == 3)
    assert server.log == ["draining", "drained", ("stopped", number)]


async def test_signal_is_logged(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    behind(server)
    signal.raise_signal(signal.SIGTERM)
    await until(lambda: server.log)
    assert "event=draining signal=SIGTERM" in caplog.text
    server.empty.set()
    await until(lambda: len(server.log) == 3)


@NUMBERS
async def test_signal_once_more_aborts_at_once(server: Server, number: int) -> None:
    behind(server)
    signal.raise_signal(number)
    await until(lambda: server.log)
    signal.raise_signal(number)
    await until(lambda: len(server.log) == 4)
    assert server.log == ["draining", "aborted", "drained", ("stopped", number)]


class Parent:
    """Stand for ``multiprocessing``, in a worker."""

    @staticmethod
    def parent_process() -> Any:
        return object()


async def test_echo_of_a_signal_in_a_worker_does_not_abort(
    server: Server, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(signals, "multiprocessing", Parent)
    behind(server)
    signal.raise_signal(signal.SIGINT)
    await until(lambda: server.log)
    clock.now += ECHO
    signal.raise_signal(signal.SIGINT)
    server.empty.set()
    await until(lambda: ("stopped", signal.SIGINT) in server.log)
    assert "aborted" not in server.log


async def test_signal_that_comes_again_later_in_a_worker_aborts(
    server: Server, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(signals, "multiprocessing", Parent)
    behind(server)
    signal.raise_signal(signal.SIGINT)
    await until(lambda: server.log)
    clock.now += ECHO + 0.01
    signal.raise_signal(signal.SIGINT)
    await until(lambda: ("stopped", signal.SIGINT) in server.log)
    assert "aborted" in server.log


async def test_signal_after_it_was_handed_on_goes_straight_through(server: Server) -> None:
    behind(server)
    server.empty.set()
    signal.raise_signal(signal.SIGTERM)
    await until(lambda: ("stopped", signal.SIGTERM) in server.log)
    server.log.clear()
    signal.raise_signal(signal.SIGTERM)
    assert server.log == [("stopped", signal.SIGTERM)]


async def test_signal_is_handed_on_though_draining_fails(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    behind(server)
    server.failing = True
    server.empty.set()
    signal.raise_signal(signal.SIGTERM)
    await until(lambda: ("stopped", signal.SIGTERM) in server.log)
    assert "event=drain_failed" in caplog.text


async def test_another_signal_aborts_as_well(server: Server) -> None:
    behind(server)
    signal.raise_signal(signal.SIGTERM)
    await until(lambda: server.log)
    signal.raise_signal(signal.SIGINT)
    await until(lambda: len(server.log) == 4)
    assert server.log == ["draining", "aborted", "drained", ("stopped", signal.SIGTERM)]


async def test_another_signal_after_one_was_handed_on_goes_straight_through(server: Server) -> None:
    behind(server)
    server.empty.set()
    signal.raise_signal(signal.SIGTERM)
    await until(lambda: ("stopped", signal.SIGTERM) in server.log)
    server.log.clear()
    signal.raise_signal(signal.SIGINT)
    assert server.log == [("stopped", signal.SIGINT)]


async def test_signal_once_the_loop_is_closed_goes_straight_through(server: Server) -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    before_stop(loop, server.drain, server.abort)
    signal.raise_signal(signal.SIGTERM)
    assert server.log == [("stopped", signal.SIGTERM)]


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler])
async def test_handler_that_no_server_has_set_is_left_alone(server: Server, handler: Any) -> None:
    signal.signal(signal.SIGTERM, handler)
    behind(server)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert signal.getsignal(signal.SIGINT) != server.handle  # which a server has set


async def test_undoing_puts_the_servers_handlers_back(server: Server) -> None:
    undo = behind(server)
    assert all(signal.getsignal(number) != server.handle for number in SIGNALS)
    undo()
    assert all(signal.getsignal(number) == server.handle for number in SIGNALS)


async def test_undoing_leaves_a_handler_alone_that_was_set_since(server: Server) -> None:
    undo = behind(server)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    undo()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) == server.handle


async def test_undoing_twice_is_harmless(server: Server) -> None:
    undo = behind(server)
    undo()
    undo()
    assert all(signal.getsignal(number) == server.handle for number in SIGNALS)


async def test_nothing_is_done_off_the_main_thread(server: Server) -> None:
    loop = asyncio.get_running_loop()
    undo: list[Any] = []
    thread = threading.Thread(target=lambda: undo.append(before_stop(loop, server.drain, server.abort)))
    thread.start()
    thread.join()
    assert all(signal.getsignal(number) == server.handle for number in SIGNALS)
    undo[0]()
    assert all(signal.getsignal(number) == server.handle for number in SIGNALS)


async def test_undoing_off_the_main_thread_does_nothing(server: Server) -> None:
    undo = behind(server)
    ours = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=undo)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is ours
