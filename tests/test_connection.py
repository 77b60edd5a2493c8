"""One connection: its outbox, its limits, and what it is closed for."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
import weakref
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime import connection as module
from realtime import limits, logs
from realtime.conf import Settings
from realtime.connection import AGE_JITTER, LARGE, LINGER, Connection, Peer
from realtime.limits import Count
from realtime.servers import AsgiWire, text_frame

from .memory import ListWire

LIMIT = 1 << 17
"""The least outbox that there may be."""


class Clock:
    """Be the time, which stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + 1_700_000_000


class Timers:
    """Be the event loop's timers, which go off when a test says so."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.waiting: list[tuple[float, Any]] = []

    def call_later(self, delay: float, callback: Any, *args: Any) -> None:
        self.waiting.append((self.clock.now + delay, lambda: callback(*args)))

    def pass_time(self, seconds: float) -> None:
        """Let so much time pass, and what is due happen."""
        end = self.clock.now + seconds
        while due := [entry for entry in self.waiting if entry[0] <= end]:
            first = min(due, key=lambda entry: entry[0])
            self.waiting.remove(first)
            self.clock.now = max(self.clock.now, first[0])
            first[1]()
        self.clock.now = end


class SlowWire(ListWire):
    """A wire whose server holds what is written, while ``stuck``."""

    def __init__(self) -> None:
        super().__init__()
        self.stuck = False

    def write(self, frame: bytes) -> None:
        if not self.closed:
            super().write(frame)
            if self.stuck:
                self.buffered += len(frame)

    def congest(self) -> None:
        """Hold what is written from now on, and say so."""
        self.stuck = True
        self.listener.congested()

    def drain(self) -> None:
        """Write everything, and say so."""
        self.stuck = False
        self.buffered = 0
        self.listener.writable()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that connections and limits see."""
    clock = Clock()
    for seeing in (module, limits, logs):
        monkeypatch.setattr(seeing, "time", clock)
    logs._complaints.clear()
    return clock


@pytest.fixture
def timers(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Timers:
    """The timers that connections set."""
    timers = Timers(clock)
    monkeypatch.setattr(module.asyncio, "get_running_loop", lambda: timers)
    return timers


def settings(**keys: Any) -> Settings:
    return Settings(**({"OUTBOX_LIMIT": LIMIT} | keys))


def connection_of(wire: Any = None, **keys: Any) -> tuple[Connection, Any, Any]:
    """Return a connection, its wire, and what is counted against it."""
    wire = SlowWire() if wire is None else wire
    counts: Counter[Count] = Counter()
    return Connection(wire, Peer(), settings(**keys), counts), wire, counts


def frame(text: Any, size: int = 0) -> bytes:
    """Return a frame that holds ``text``, of about ``size`` bytes."""
    return text_frame(json.dumps({"text": text, "filling": "x" * size}).encode())


def texts(wire: Any) -> list[Any]:
    return [message["text"] for message in wire.messages]


def slow(wire: Any) -> bool:
    return wire.closed_with == (3008, "slow consumer")


# Writing


def test_frame_goes_straight_through_and_nothing_is_watched_while_nothing_waits() -> None:
    connection, wire, counts = connection_of()
    for number in range(100):
        connection.write(frame(number))
    assert texts(wire) == list(range(100))
    assert connection.backlog is None
    assert counts == {}


def test_frame_of_a_latest_topic_goes_straight_through_while_nothing_waits() -> None:
    connection, wire, _ = connection_of()
    for number in range(3):
        connection.write_latest("prices", frame(number))
    assert texts(wire) == [0, 1, 2]
    assert connection.backlog is None


def test_frame_is_written_while_there_is_room_for_it(timers: Timers) -> None:
    connection, wire, _ = connection_of()
    wire.congest()
    for number in range(3):
        connection.write(frame(number, 20_000))
    assert texts(wire) == [0, 1, 2]
    assert not wire.closed


def test_frame_that_fills_the_outbox_to_the_brim_is_written() -> None:
    connection, wire, _ = connection_of()
    wire.congest()
    wire.buffered = LIMIT - len(frame("last"))
    connection.write(frame("last"))
    assert texts(wire) == ["last"]
    assert not wire.closed


def test_frame_too_many_closes_the_connection(timers: Timers) -> None:
    connection, wire, counts = connection_of()
    wire.congest()
    wire.buffered = LIMIT - len(frame("last")) + 1
    connection.write(frame("last"))
    assert texts(wire) == []
    assert slow(wire)
    assert connection.closed_with == 3008
    assert counts == {Count.SLOW_CONSUMERS: 1}


def test_frames_after_one_too_many_count_no_more(timers: Timers, caplog: pytest.LogCaptureFixture) -> None:
    connection, wire, counts = connection_of()
    wire.congest()
    for number in range(10):
        connection.write(frame(number, LIMIT // 2))
        connection.write_latest("prices", frame(number, LIMIT // 2))
    assert counts == {Count.SLOW_CONSUMERS: 1}
    assert caplog.text.count("event=slow_consumer reason=full") == 1


def test_slow_consumer_is_dropped_if_it_does_not_read_the_close_frame_either(timers: Timers) -> None:
    connection, wire, _ = connection_of()
    wire.congest()
    connection.write(frame("x", LIMIT))
    timers.pass_time(LINGER - 0.1)
    assert not wire.aborted
    timers.pass_time(0.2)
    assert wire.aborted
    assert connection.closed_with == 3008


def test_large_frame_is_written_where_it_has_room() -> None:
    connection, wire, _ = connection_of()
    connection.write(frame("large", LIMIT - 100))
    assert texts(wire) == ["large"]


def test_large_frame_that_can_never_fit_closes_the_connection(timers: Timers) -> None:
    connection, wire, counts = connection_of()
    connection.write(frame("large", LIMIT))
    assert texts(wire) == []
    assert slow(wire)
    assert counts == {Count.SLOW_CONSUMERS: 1}


def test_large_frame_is_looked_at_though_nobody_said_that_it_is_congested(timers: Timers) -> None:
    connection, wire, _ = connection_of()
    wire.buffered = LIMIT - LARGE
    connection.write(frame("large", LARGE))
    assert slow(wire)


def test_write_to_a_wire_that_is_closed_does_nothing() -> None:
    connection, wire, counts = connection_of()
    wire.congest()
    wire.closed = True
    wire.buffered = LIMIT
    connection.write(frame("x"))
    connection.write_latest("prices", frame("y"))
    assert (texts(wire), counts, connection.closed_with) == ([], {}, None)


class RaisingWire(SlowWire):
    """A wire that breaks its word."""

    def write(self, frame: bytes) -> None:
        raise ZeroDivisionError

    def close(self, code: int, reason: str) -> None:
        raise ZeroDivisionError


def test_wire_that_raises_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    connection, wire, _ = connection_of(RaisingWire())
    connection.write(frame("x"))
    assert wire.aborted
    assert f"event=write_failed connection={connection.id}" in caplog.text


def test_wire_that_raises_when_closed_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    connection, wire, _ = connection_of(RaisingWire())
    connection.close(1001, "")
    assert wire.aborted
    assert "event=close_failed" in caplog.text


# The newest alone


def test_latest_frame_takes_the_place_of_the_one_before_while_congested() -> None:
    connection, wire, counts = connection_of()
    wire.congest()
    for number in range(5):
        connection.write_latest("prices", frame(number))
    assert texts(wire) == []
    assert counts == {Count.CONFLATED: 4}
    wire.drain()
    assert texts(wire) == [4]
    assert connection.backlog is None


def test_latest_frames_of_several_topics_are_written_in_the_order_of_their_newest() -> None:
    connection, wire, _ = connection_of()
    wire.congest()
    for topic, text in (("a", 1), ("b", 2), ("c", 3), ("a", 4)):
        connection.write_latest(topic, frame(text))
    wire.drain()
    assert texts(wire) == [2, 3, 4]


def test_latest_frames_that_are_not_written_yet_wait_when_it_is_congested_anew() -> None:
    connection, wire, _ = connection_of()
    wire.congest()
    for number in range(4):
        connection.write_latest(f"t{number}", frame(number))
    written = wire.write

    def write_and_congest(data: bytes) -> None:
        written(data)
        if len(wire.messages) == 2:
            wire.congest()

    wire.write = write_and_congest
    wire.drain()
    assert texts(wire) == [0, 1]
    connection.write_latest("t3", frame("newer"))
    wire.drain()
    assert texts(wire) == [0, 1, 2, "newer"]
    assert connection.backlog is None


def test_latest_frames_count_for_the_outbox(timers: Timers) -> None:
    connection, wire, counts = connection_of()
    wire.congest()
    for number in range(10):
        connection.write_latest(f"t{number}", frame(number, LIMIT // 5))
    assert slow(wire)
    assert counts == {Count.SLOW_CONSUMERS: 1}


def test_latest_frames_count_for_the_outbox_beside_others(timers: Timers) -> None:
    connection, wire, _ = connection_of()
    wire.congest()
    connection.write_latest("prices", frame(1, LIMIT // 2))
    connection.write(frame(2, LIMIT // 2))
    assert slow(wire)


def test_latest_frame_that_was_replaced_counts_for_nothing() -> None:
    connection, wire, _ = connection_of()
    wire.congest()
    for number in range(1000):
        connection.write_latest("prices", frame(number, LIMIT * 3 // 4))
    assert not wire.closed


def test_latest_frames_count_for_the_outbox_after_it_is_congested_anew(timers: Timers) -> None:
    connection, wire, _ = connection_of()
    wire.congest()
    connection.write_latest("a", frame(1))
    connection.write_latest("b", frame(2, LIMIT // 2))
    written = wire.write

    def write_and_congest(data: bytes) -> None:
        written(data)
        wire.congest()

    wire.write = write_and_congest
    wire.drain()
    assert texts(wire) == [1]
    connection.write(frame(3, LIMIT // 2))
    assert slow(wire)


def test_latest_frames_are_not_written_once_the_connection_was_closed(timers: Timers) -> None:
    connection, wire, _ = connection_of()
    wire.congest()
    connection.write_latest("prices", frame(1))
    connection.close(1001, "server shutdown")
    wire.drain()
    assert texts(wire) == []


def test_latest_frames_are_dropped_with_a_slow_consumer(timers: Timers) -> None:
    connection, wire, _ = connection_of()
    wire.congest()
    connection.write_latest("prices", frame(1))
    connection.write(frame(2, LIMIT))
    assert connection.backlog is not None
    assert (connection.backlog.latest, connection.backlog.latest_size) == ({}, 0)


def test_frame_of_a_topic_that_is_forgotten_is_not_written() -> None:
    connection, wire, _ = connection_of()
    wire.congest()
    connection.write_latest("a", frame(1, LIMIT // 2))
    connection.write_latest("b", frame(2))
    connection.forget("a")
    connection.write_latest("c", frame(3, LIMIT // 2))  # for which there is room again
    wire.drain()
    assert texts(wire) == [2, 3]


@pytest.mark.parametrize("congested", [True, False])
def test_forgetting_a_topic_of_which_nothing_waits_is_harmless(congested: bool) -> None:
    connection, wire, _ = connection_of()
    if congested:
        wire.congest()
    connection.forget("a")
    assert not wire.closed


def test_writable_that_comes_unasked_is_harmless() -> None:
    connection, wire, _ = connection_of()
    connection.writable()
    assert (texts(wire), connection.backlog) == ([], None)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans()) | st.sampled_from(["congest", "drain"]), max_size=40))
def test_latest_topic_ends_with_its_newest_frame_and_goes_never_back(steps: list[Any]) -> None:
    connection, wire, counts = connection_of()
    newest: dict[str, int] = {}
    sent = 0
    for number, step in enumerate(steps):
        if step == "congest":
            wire.congest()
        elif step == "drain":
            wire.drain()
        else:
            sent += 1
            newest[step[0]] = number
            connection.write_latest(step[0], frame([step[0], number]))
    wire.drain()
    for topic, number in newest.items():
        seen = [n for name, n in texts(wire) if name == topic]
        assert seen == sorted(set(seen))
        assert seen[-1] == number
    assert len(wire.messages) + counts[Count.CONFLATED] == sent


# Not reading


def test_client_that_reads_nothing_is_closed_in_time(clock: Clock, timers: Timers) -> None:
    connection, wire, counts = connection_of(WRITE_TIMEOUT=10)
    wire.congest()
    wire.buffered = 1000
    connection.look_after(clock.now)
    connection.look_after(clock.now + 9.9)
    assert not wire.closed
    connection.look_after(clock.now + 10)
    assert slow(wire)
    assert counts == {Count.SLOW_CONSUMERS: 1}


def test_client_that_reads_nothing_is_closed_in_time_though_nobody_said_that_it_is_congested(
    clock: Clock, timers: Timers
) -> None:
    connection, wire, _ = connection_of(WRITE_TIMEOUT=10)
    wire.buffered = 10
    for second in range(11):
        assert not wire.closed
        connection.look_after(clock.now + second)
    assert slow(wire)


def test_client_that_reads_a_little_now_and_then_stays(clock: Clock, timers: Timers) -> None:
    connection, wire, _ = connection_of(WRITE_TIMEOUT=10)
    wire.congest()
    wire.buffered = 100_000
    for second in range(1, 300):
        if second % 9 == 0:
            wire.buffered -= 1
        connection.look_after(clock.now + second)
    assert not wire.closed


def test_client_that_reads_as_much_as_it_is_sent_stays(clock: Clock, timers: Timers) -> None:
    connection, wire, _ = connection_of(WRITE_TIMEOUT=10)
    wire.congest()
    wire.buffered = 50_000
    for second in range(1, 100):
        connection.write(frame(second, 1000))
        wire.buffered -= 1000
        connection.look_after(clock.now + second)
    assert not wire.closed


def test_client_that_reads_nothing_is_closed_in_time_though_more_is_written(clock: Clock, timers: Timers) -> None:
    connection, wire, _ = connection_of(WRITE_TIMEOUT=10)
    wire.congest()
    wire.buffered = 1000
    for second in range(12):
        connection.look_after(clock.now + second)
        connection.write(frame(second, 100))
    assert slow(wire)


class CompressingWire(SlowWire):
    """A wire whose server makes half of everything, as with permessage-deflate."""

    def write(self, frame: bytes) -> None:
        super().write(frame)
        if self.stuck and not self.closed:
            self.buffered -= len(frame) // 2


def test_client_that_reads_nothing_is_closed_in_time_though_the_server_compresses(clock: Clock, timers: Timers) -> None:
    connection, wire, _ = connection_of(CompressingWire(), WRITE_TIMEOUT=10)
    wire.congest()
    wire.buffered = 1000
    for second in range(12):
        connection.look_after(clock.now + second)
        connection.write(frame(second, 100))
    assert slow(wire)


async def test_client_that_reads_nothing_is_closed_in_time_over_plain_asgi(clock: Clock) -> None:
    async def send(message: Any) -> None:
        await asyncio.Event().wait()

    wire = AsgiWire(send)
    connection, _, counts = connection_of(wire, WRITE_TIMEOUT=10)
    try:
        connection.write(frame(0, LARGE - 1000))
        connection.write(frame(0, 2000))
        for second in range(12):
            connection.look_after(clock.now + second)
            connection.write(frame(second, 100))
        assert counts == {Count.SLOW_CONSUMERS: 1}
    finally:
        assert wire._task is not None
        wire._task.cancel()
        await asyncio.wait([wire._task])


def test_client_that_has_read_everything_is_watched_no_more(clock: Clock) -> None:
    connection, wire, _ = connection_of()
    wire.buffered = 10
    connection.look_after(clock.now)
    assert connection.backlog is not None
    wire.buffered = 0
    connection.look_after(clock.now + 1)
    assert connection.backlog is None
    connection.look_after(clock.now + 1000)
    assert not wire.closed


def test_client_that_is_sent_nothing_is_never_slow(clock: Clock) -> None:
    connection, wire, _ = connection_of(MAX_CONNECTION_AGE=None)
    for second in range(0, 100_000, 100):
        connection.look_after(clock.now + second)
    assert not wire.closed


def test_answers_of_the_server_itself_count_as_written(clock: Clock, timers: Timers) -> None:
    connection, wire, _ = connection_of(WRITE_TIMEOUT=10)
    wire.congest()
    for second in range(12):
        connection.look_after(clock.now + second)
        wire.buffered += 100  # a pong
        connection.controlled(100)
    assert slow(wire)


def test_answers_of_the_server_itself_count_for_the_outbox(timers: Timers) -> None:
    connection, wire, counts = connection_of()
    wire.congest()
    wire.buffered = LIMIT
    connection.controlled(0)
    assert not wire.closed
    wire.buffered += 1
    connection.controlled(1)
    assert slow(wire)
    assert counts == {Count.SLOW_CONSUMERS: 1}


# Age and silence


@pytest.mark.parametrize("draw", [0.0, 0.5, 0.999])
def test_connection_is_closed_at_its_age_or_a_little_before(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, draw: float
) -> None:
    monkeypatch.setattr(module.random, "random", lambda: draw)
    connection, wire, counts = connection_of(MAX_CONNECTION_AGE=1000)
    age = 1000 * (1 - draw * AGE_JITTER)
    connection.look_after(clock.now + age - 0.001)
    assert not wire.closed
    connection.look_after(clock.now + age)
    assert wire.closed_with == (1001, "maximum age")
    assert connection.closed_with == 1001
    assert counts == {Count.AGED: 1}


def test_connections_of_one_moment_are_closed_at_different_ages_within_a_tenth(clock: Clock) -> None:
    ages = [connection_of(MAX_CONNECTION_AGE=1000)[0].expires - clock.now for _ in range(200)]
    assert 900 <= min(ages) < 920
    assert 980 < max(ages) <= 1000
    assert len(set(ages)) > 190


def test_connection_that_is_too_old_is_counted_once(clock: Clock) -> None:
    connection, _, counts = connection_of(MAX_CONNECTION_AGE=1000)
    for second in (1000, 1001, 1002):
        connection.look_after(clock.now + second)
    assert counts == {Count.AGED: 1}


def test_connection_of_any_age_stays_where_there_is_no_greatest(clock: Clock) -> None:
    connection, wire, _ = connection_of(MAX_CONNECTION_AGE=None)
    connection.look_after(clock.now + 1e9)
    assert not wire.closed


def test_connection_that_says_nothing_is_closed(clock: Clock) -> None:
    connection, wire, counts = connection_of(FIRST_MESSAGE_TIMEOUT=5)
    connection.look_after(clock.now + 4.9)
    assert not wire.closed
    connection.look_after(clock.now + 5)
    assert wire.closed_with == (1008, "no message")
    assert counts == {Count.SILENT: 1}


def test_connection_that_has_said_something_may_be_silent(clock: Clock) -> None:
    connection, wire, _ = connection_of(FIRST_MESSAGE_TIMEOUT=5)
    connection.silent_until = math.inf  # as the consumer does
    connection.look_after(clock.now + 5000)
    assert not wire.closed


def test_connection_may_say_nothing_by_default(clock: Clock) -> None:
    connection, wire, _ = connection_of()
    connection.look_after(clock.now + 80_000 * 0.9)
    assert not wire.closed


def test_connection_that_is_closed_is_looked_after_no_more(clock: Clock) -> None:
    connection, wire, counts = connection_of(FIRST_MESSAGE_TIMEOUT=5, MAX_CONNECTION_AGE=10)
    connection.close(1000, "done")
    connection.look_after(clock.now + 1000)
    assert (wire.closed_with, counts) == ((1000, "done"), {})


# Asking for too much


def test_control_frames_within_the_burst_change_nothing(timers: Timers) -> None:
    connection, wire, _ = connection_of(RATE_LIMIT=10, RATE_BURST=5)
    for _ in range(5):
        connection.controlled(0)
    assert (wire.reading, timers.waiting) == (True, [])


def test_control_frame_over_the_limit_pauses_reading_until_there_is_a_token(timers: Timers) -> None:
    connection, wire, _ = connection_of(RATE_LIMIT=10, RATE_BURST=5)
    for _ in range(6):
        connection.controlled(0)
    assert not wire.reading
    timers.pass_time(0.19)
    assert not wire.reading
    timers.pass_time(0.02)
    assert wire.reading


def test_control_frames_over_the_limit_pause_reading_until_the_last_has_a_token(timers: Timers) -> None:
    connection, wire, _ = connection_of(RATE_LIMIT=10, RATE_BURST=5)
    for _ in range(5 + 100):
        connection.controlled(0)
    timers.pass_time(9)
    assert not wire.reading
    timers.pass_time(1.2)
    assert wire.reading


def test_control_frames_of_any_number_pause_nothing_where_there_is_no_limit(timers: Timers) -> None:
    connection, wire, _ = connection_of(RATE_LIMIT=None)
    for _ in range(10_000):
        connection.controlled(0)
    assert wire.reading


def test_reading_is_not_resumed_on_a_connection_that_was_closed_meanwhile(timers: Timers) -> None:
    connection, wire, _ = connection_of(RATE_LIMIT=10, RATE_BURST=1)
    connection.controlled(0)
    connection.controlled(0)
    connection.close(1001, "")
    timers.pass_time(60)
    assert not wire.reading


def test_control_frames_on_a_closed_connection_take_nothing(timers: Timers) -> None:
    connection, wire, _ = connection_of(RATE_LIMIT=10, RATE_BURST=1)
    wire.closed = True
    for _ in range(100):
        connection.controlled(0)
    assert timers.waiting == []


def test_client_that_floods_is_closed(clock: Clock, timers: Timers, caplog: pytest.LogCaptureFixture) -> None:
    connection, wire, counts = connection_of(RATE_LIMIT=10, RATE_BURST=5, FLOOD_TIMEOUT=10)
    began = clock.now
    while not wire.closed:
        connection.controlled(0)
        timers.pass_time(0.05)
        assert clock.now < began + 60
    assert clock.now - began == pytest.approx(10, abs=1)
    assert wire.closed_with == (1008, "flooding")
    assert connection.closed_with == 1008
    assert counts == {Count.FLOODERS: 1}
    assert f"event=flooding connection={connection.id}" in caplog.text


def test_client_that_bursts_now_and_then_is_not_closed(timers: Timers) -> None:
    connection, wire, counts = connection_of(RATE_LIMIT=10, RATE_BURST=5, FLOOD_TIMEOUT=10)
    for _ in range(30):
        for _ in range(7):
            connection.controlled(0)
        timers.pass_time(3)
        assert wire.reading
    assert (wire.closed, counts) == (False, {})


def test_flooder_that_does_not_flood_is_not_closed() -> None:
    for keys in ({}, {"RATE_LIMIT": None}):
        connection, wire, _ = connection_of(**keys)
        if connection.bucket is not None:
            for _ in range(1001):
                connection.bucket.take()
        assert not connection.close_flooder()
        assert not wire.closed


# Its end


def test_close_is_remembered_by_its_first_code() -> None:
    connection, wire, _ = connection_of()
    connection.close(1001, "server shutdown")
    connection.close(1008, "session ended")
    assert (connection.closed_with, wire.closed_with) == (1001, (1001, "server shutdown"))


def test_close_of_what_the_client_has_closed_is_not_remembered() -> None:
    connection, wire, _ = connection_of()
    wire.closed = True
    connection.close(1001, "server shutdown")
    assert connection.closed_with is None


def test_interrupt_drops_the_connection() -> None:
    connection, wire, _ = connection_of()
    connection.close(1006, "")
    assert wire.aborted
    assert connection.closed_with == 1006


def test_detached_connection_hears_nothing_any_more() -> None:
    connection, wire, _ = connection_of()
    wire.congest()
    connection.write_latest("prices", frame(1))
    connection.detach()
    assert wire.listener is None
    assert connection.backlog is None


def test_detached_connection_is_freed_at_once() -> None:
    connection, wire, _ = connection_of()
    wire.congest()
    connection.detach()
    gone = weakref.ref(connection)
    gc.disable()
    try:
        del connection
        assert gone() is None
    finally:
        gc.enable()


def test_uptime_is_in_whole_seconds(clock: Clock) -> None:
    connection, _, _ = connection_of()
    clock.now += 41.9
    assert connection.uptime == 41


def test_slow_consumers_are_logged_by_the_reason(
    clock: Clock, timers: Timers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    full, wire, _ = connection_of()
    wire.congest()
    full.write(frame("x", LIMIT))
    stalled, other, _ = connection_of(WRITE_TIMEOUT=1)
    other.congest()
    other.buffered = 7
    stalled.look_after(clock.now)
    stalled.look_after(clock.now + 1)
    assert [record.getMessage() for record in caplog.records] == [
        f"event=slow_consumer reason=full connection={full.id} buffered=0",
        f"event=slow_consumer reason=stalled connection={stalled.id} buffered=7",
    ]
