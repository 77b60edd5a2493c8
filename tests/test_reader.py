"""Reading no faster than the application keeps up: in pieces, and in order whatever happens meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime.servers import reader as module
from realtime.servers.reader import CLOSING_LIMIT, MAX_UNREAD, MAX_UNREAD_BYTES, PIECE, PIECES_A_TURN, Reader

from .memory import until

FULL = b"m" * (PIECE * MAX_UNREAD)
"""As much as brings more messages than are to wait, where a piece is a message."""


class Parser(Reader):
    """A server's wire whose parser makes a message of each piece, of each byte ``m``, or none."""

    def __init__(self, each_byte: bool = False, silent: bool = False) -> None:
        super().__init__(asyncio.Queue())
        self.queue: asyncio.Queue[Any] = self._queue
        self.each_byte = each_byte
        self.silent = silent
        self.pieces: list[bytes] = []
        self.reading = True
        self.parsing = 0
        self.deepest = 0
        self.on_piece: Any = None

    def _parse(self, data: bytes) -> None:
        self.parsing += 1
        self.deepest = max(self.deepest, self.parsing)
        self.pieces.append(data)
        if self.on_piece is not None:
            self.on_piece(data)
        for _ in range(0 if self.silent else data.count(b"m") if self.each_byte else 1):
            self.queue.put_nowait(data)
        self.parsing -= 1

    def _stop_reading(self) -> None:
        self.reading = False

    def _start_reading(self) -> None:
        self.reading = True

    @property
    def whole(self) -> bytes:
        return b"".join(self.pieces)


async def turns(count: int = 3) -> None:
    """Let others have some turns on the event loop."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_little_is_parsed_at_once_and_read_on_after() -> None:
    reader = Parser()
    reader.take(b"abc")
    assert (reader.pieces, reader.rest, reader.reading) == ([b"abc"], b"", True)


async def test_much_is_parsed_in_pieces() -> None:
    reader = Parser()
    reader.take(b"x" * (PIECE + 1))
    assert [len(piece) for piece in reader.pieces] == [PIECE, 1]
    assert reader.reading


async def test_very_much_is_parsed_over_several_turns_and_not_read_on_meanwhile() -> None:
    reader = Parser(silent=True)
    reader.take(b"x" * (PIECE * PIECES_A_TURN * 20))
    assert len(reader.pieces) == PIECES_A_TURN
    assert not reader.reading
    await until(lambda: reader.reading)
    assert len(reader.pieces) == PIECES_A_TURN * 20


async def test_nothing_more_is_parsed_while_many_messages_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UNREAD_BYTES", 1 << 30)
    reader = Parser()
    reader.take(FULL + b"the rest")
    await turns(MAX_UNREAD)
    assert reader.queue.qsize() == MAX_UNREAD
    assert bytes(reader.rest) == b"the rest"
    assert not reader.reading


async def test_nothing_more_is_parsed_while_few_messages_wait_that_are_large() -> None:
    reader = Parser()
    reader.take(b"x" * (MAX_UNREAD_BYTES + 1))
    await until(lambda: len(reader.rest) == 1)
    await turns()
    assert reader.queue.qsize() == MAX_UNREAD_BYTES // PIECE
    assert bytes(reader.rest) == b"x"
    assert not reader.reading
    while reader.queue.qsize() > 1:
        reader.queue.get_nowait()
    assert bytes(reader.rest) == b"x"
    reader.queue.get_nowait()
    assert reader.pieces[-1] == b"x"
    assert reader.reading


async def test_message_that_is_larger_than_all_that_may_wait_is_parsed_whole() -> None:
    reader = Parser(each_byte=True)
    reader.take(b"x" * (3 * MAX_UNREAD_BYTES) + b"m")
    await until(lambda: reader.queue.qsize() == 1)
    assert reader.reading


async def test_piece_with_many_messages_is_the_last_for_now() -> None:
    reader = Parser(each_byte=True)
    reader.take(b"m" * (PIECE + 1))
    await turns()
    assert reader.queue.qsize() == PIECE
    assert bytes(reader.rest) == b"m"
    assert not reader.reading


async def test_nothing_more_is_read_while_many_messages_wait_though_all_is_parsed() -> None:
    reader = Parser(each_byte=True)
    reader.take(b"m" * MAX_UNREAD)
    await turns()
    assert bytes(reader.rest) == b""
    assert not reader.reading


async def test_parsing_resumes_once_fewer_than_half_of_the_messages_wait() -> None:
    reader = Parser(each_byte=True)
    reader.take(b"m" * PIECE + b"the rest")
    while reader.queue.qsize() > MAX_UNREAD // 2:
        await reader.queue.get()
        assert len(reader.pieces) == 1
    await reader.queue.get()
    assert reader.pieces[1:] == [b"the rest"]
    assert reader.reading


async def test_reading_resumes_once_fewer_than_half_of_the_messages_wait() -> None:
    reader = Parser(each_byte=True)
    reader.take(b"m" * MAX_UNREAD)
    while reader.queue.qsize() > MAX_UNREAD // 2:
        await reader.queue.get()
        assert not reader.reading
    await reader.queue.get()
    assert reader.reading


async def test_queue_is_left_alone_once_all_is_parsed_and_read() -> None:
    reader = Parser(each_byte=True)
    reader.take(b"m" * MAX_UNREAD)
    assert "_get" in vars(reader.queue)
    while not reader.queue.empty():
        await reader.queue.get()
    assert "_get" not in vars(reader.queue)


async def test_messages_are_taken_from_the_queue_in_order() -> None:
    reader = Parser()
    sent = [bytes([number]) * PIECE for number in range(200)]
    reader.take(b"".join(sent))
    assert [await asyncio.wait_for(reader.queue.get(), 5) for _ in sent] == sent


async def test_message_is_waited_for_by_who_asked_before_it_came() -> None:
    reader = Parser()
    waiting = asyncio.ensure_future(reader.queue.get())
    await turns(1)
    reader.take(FULL)
    assert await waiting == b"m" * PIECE


async def test_what_is_held_is_not_parsed() -> None:
    reader = Parser()
    reader.pause_reading()
    assert not reader.reading
    reader.take(b"abc")
    await turns()
    assert (reader.pieces, bytes(reader.rest), reader.reading) == ([], b"abc", False)


async def test_what_was_held_is_parsed_in_order_and_read_on_after() -> None:
    reader = Parser()
    reader.pause_reading()
    reader.take(b"abc")
    reader.take(b"def")
    reader.resume_reading()
    assert reader.whole == b"abcdef"
    assert reader.reading


async def test_hold_during_a_piece_keeps_the_next_one_back() -> None:
    reader = Parser()
    reader.on_piece = lambda data: reader.pause_reading()
    reader.take(b"x" * PIECE * 3)
    await turns()
    assert len(reader.pieces) == 1
    assert not reader.reading
    reader.resume_reading()
    assert len(reader.pieces) == 2


async def test_hold_between_turns_keeps_the_next_one_back() -> None:
    reader = Parser()
    reader.take(b"x" * (PIECE * PIECES_A_TURN * 2))
    reader.pause_reading()
    await turns()
    assert len(reader.pieces) == PIECES_A_TURN
    reader.resume_reading()
    assert len(reader.pieces) == PIECES_A_TURN * 2


async def test_hold_while_messages_are_taken_keeps_the_rest_back() -> None:
    reader = Parser(each_byte=True)
    reader.take(b"m" * PIECE + b"the rest")
    reader.pause_reading()
    while not reader.queue.empty():
        await reader.queue.get()
    assert (bytes(reader.rest), reader.reading) == (b"the rest", False)
    reader.resume_reading()
    assert reader.pieces[1:] == [b"the rest"]
    assert reader.reading


async def test_resuming_reads_nothing_on_while_many_messages_wait() -> None:
    reader = Parser(each_byte=True)
    reader.take(b"m" * PIECE)
    reader.pause_reading()
    reader.resume_reading()
    assert not reader.reading


async def test_resuming_what_was_not_held_changes_nothing() -> None:
    reader = Parser()
    reader.resume_reading()
    assert (reader.pieces, reader.reading) == ([], True)


async def test_what_a_closed_connection_left_is_dropped() -> None:
    reader = Parser()

    def close(data: bytes) -> None:
        reader.rest = b""

    reader.on_piece = close
    reader.take(b"x" * PIECE * 3)
    await turns()
    assert len(reader.pieces) == 1
    assert reader.rest == b""


async def test_parser_is_not_entered_while_it_parses() -> None:
    reader = Parser()
    reader.on_piece = lambda data: reader.resume_reading()
    reader.take(b"x" * PIECE * 3)
    await until(lambda: reader.reading)
    assert reader.whole == b"x" * PIECE * 3
    assert reader.deepest == 1


async def test_parser_that_raises_is_given_the_next_piece_all_the_same() -> None:
    reader = Parser()

    def fail(data: bytes) -> None:
        reader.on_piece = None
        raise ZeroDivisionError

    reader.on_piece = fail
    with pytest.raises(ZeroDivisionError):
        reader.take(b"first")
    reader.take(b"second")
    assert reader.pieces == [b"first", b"second"]


async def test_what_comes_while_there_is_a_rest_waits_its_turn() -> None:
    reader = Parser()
    reader.take(FULL + b"first")
    reader.take(b"second")
    while not reader.queue.empty():
        await reader.queue.get()
    assert reader.whole == FULL + b"firstsecond"


STEPS = st.lists(
    st.tuples(st.just("take"), st.binary(max_size=40) | st.integers(0, 3 * PIECE).map(bytes))
    | st.tuples(st.sampled_from(["hold", "resume", "turn"]), st.none())
    | st.tuples(st.just("get"), st.integers(1, 200)),
    max_size=40,
)


@given(STEPS, st.booleans())
def test_every_byte_is_parsed_once_and_in_order_whatever_happens(steps: list[tuple[str, Any]], each: bool) -> None:
    async def go() -> None:
        reader = Parser()
        taken = []
        sent = b""
        for step, value in steps:
            match step:
                case "take":
                    sent += value
                    reader.take(value)
                case "hold":
                    reader.pause_reading()
                case "resume":
                    reader.resume_reading()
                case "turn":
                    await asyncio.sleep(0)
                case "get":
                    taken += [reader.queue.get_nowait() for _ in range(min(value, reader.queue.qsize()))]
            assert len(reader.whole) + len(reader.rest) == len(sent)
            assert reader.queue.qsize() <= MAX_UNREAD
            assert all(len(piece) <= PIECE for piece in reader.pieces)
            if reader.reading:
                assert not reader.held
                assert not reader.rest
        reader.resume_reading()
        while reader.rest or not reader.queue.empty():
            taken += [reader.queue.get_nowait() for _ in range(reader.queue.qsize())]
            await asyncio.sleep(0)
        assert reader.whole == sent == b"".join(taken)
        assert reader.reading

    asyncio.run(go())


@pytest.mark.parametrize("size", [1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE])
async def test_chunks_of_any_size_are_parsed_whole(size: int) -> None:
    reader = Parser()
    data = bytes(number % 251 for number in range(20_000))
    for start in range(0, len(data), size):
        reader.take(data[start : start + size])
        while not reader.queue.empty():
            reader.queue.get_nowait()
    await until(lambda: not reader.rest)
    assert reader.whole == data


async def test_after_this_side_has_closed_only_so_much_is_parsed_in_search_of_a_close_frame() -> None:
    reader = Parser()
    reader.pause_reading()
    reader.expect_close()
    assert (reader.held, reader.reading) == (False, True)
    reader.take(b"x" * PIECE)
    assert len(reader.pieces) == 1
    reader.take(b"x" * 2 * CLOSING_LIMIT)
    await turns(20)
    assert sum(map(len, reader.pieces)) <= CLOSING_LIMIT
    assert (reader.rest, reader.reading) == (b"", False)
