"""WebSocket frames, and the wire over plain ASGI."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from channels.sessions import InstanceSessionWrapper
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from realtime.servers import AsgiWire, wire_for
from realtime.servers.asgi import HIGH_WATER, WrappedWire
from realtime.servers.base import binary_frame, is_text, payload_of, text_frame

from .memory import until

LENGTHS = [0, 1, 125, 126, 127, 65535, 65536, 70000]


def parsed(data: bytes) -> Frame:
    """Return the one frame in ``data``, as the ``websockets`` library reads it."""
    reader = StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    parser = Frame.parse(reader.read_exact, mask=False)
    with pytest.raises(StopIteration) as stopped:
        next(parser)
    assert reader.buffer == b""
    frame: Frame = stopped.value.value
    return frame


@pytest.mark.parametrize("length", LENGTHS)
def test_text_frame_is_what_websockets_reads(length: int) -> None:
    assert parsed(text_frame(b"x" * length)) == Frame(Opcode.TEXT, b"x" * length)


@pytest.mark.parametrize("length", LENGTHS)
def test_binary_frame_is_what_websockets_reads(length: int) -> None:
    assert parsed(binary_frame(b"\xff" * length)) == Frame(Opcode.BINARY, b"\xff" * length)


@pytest.mark.parametrize("length", LENGTHS)
def test_frame_has_the_shortest_header(length: int) -> None:
    assert text_frame(b"x" * length) == Frame(Opcode.TEXT, b"x" * length).serialize(mask=False)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("build", [text_frame, binary_frame])
def test_frame_gives_its_payload_back(build: Any, length: int) -> None:
    assert payload_of(build(b"x" * length)) == b"x" * length


def test_frame_knows_whether_it_is_text() -> None:
    assert is_text(text_frame(b""))
    assert not is_text(binary_frame(b""))


class Server:
    """The server's side: keeps what is sent, takes it only while the way is free, and raises once broken."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.way = asyncio.Event()
        self.way.set()
        self.broken = False

    async def send(self, message: Any) -> None:
        await self.way.wait()
        if self.broken:
            raise OSError("gone")
        self.sent.append(message)


@pytest.fixture
def server() -> Server:
    return Server()


async def test_wire_sends_text_and_binary(server: Server) -> None:
    wire = AsgiWire(server.send)
    wire.write(text_frame("é".encode()))
    wire.write(binary_frame(b"\xff"))
    await until(lambda: len(server.sent) == 2)
    assert server.sent == [{"type": "websocket.send", "text": "é"}, {"type": "websocket.send", "bytes": b"\xff"}]


async def test_wire_never_waits_and_keeps_the_order(server: Server) -> None:
    server.way.clear()
    wire = AsgiWire(server.send)
    for number in range(100):
        wire.write(text_frame(str(number).encode()))
    wire.close(4000, "bye")
    server.way.set()
    await until(lambda: len(server.sent) == 101)
    assert [message["text"] for message in server.sent[:-1]] == [str(number) for number in range(100)]
    assert server.sent[-1] == {"type": "websocket.close", "code": 4000, "reason": "bye"}


async def test_wire_counts_what_it_holds(server: Server) -> None:
    server.way.clear()
    wire = AsgiWire(server.send)
    wire.write(text_frame(b"x" * 200))
    wire.write(text_frame(b"x" * 100))
    await asyncio.sleep(0)
    assert wire.buffered == 300
    server.way.set()
    await until(lambda: wire.buffered == 0)


class Listening:
    """Take note of what ``wire`` tells, and of how much it holds then."""

    def __init__(self, wire: Any) -> None:
        self.wire = wire
        self.told: list[tuple[str, int]] = []
        wire.listener = self

    def congested(self) -> None:
        self.told.append(("congested", self.wire.buffered))

    def writable(self) -> None:
        self.told.append(("writable", self.wire.buffered))

    def controlled(self, written: int) -> None:
        self.told.append(("controlled", written))


OVER = HIGH_WATER + 1


async def test_wire_tells_once_that_it_is_congested_and_once_that_it_has_drained(server: Server) -> None:
    server.way.clear()
    wire = AsgiWire(server.send)
    listening = Listening(wire)
    wire.write(text_frame(b"x" * OVER))
    wire.write(text_frame(b"x"))
    await asyncio.sleep(0)
    assert listening.told == [("congested", OVER)]
    server.way.set()
    await until(lambda: len(listening.told) > 1)
    assert listening.told == [("congested", OVER), ("writable", 0)]


async def test_wire_tells_again_when_it_is_congested_again(server: Server) -> None:
    wire = AsgiWire(server.send)
    listening = Listening(wire)
    for number in (1, 2):
        wire.write(text_frame(b"x" * OVER))
        await until(lambda expected=2 * number: len(listening.told) == expected)
    assert [what for what, _ in listening.told] == ["congested", "writable"] * 2


async def test_wire_tells_nothing_below_the_mark(server: Server) -> None:
    server.way.clear()
    wire = AsgiWire(server.send)
    listening = Listening(wire)
    wire.write(text_frame(b"x" * HIGH_WATER))
    await asyncio.sleep(0)
    server.way.set()
    await until(lambda: wire._task is None)
    assert listening.told == []


async def test_wire_may_be_written_to_by_whoever_is_told_that_it_has_drained(server: Server) -> None:
    wire = AsgiWire(server.send)
    listening = Listening(wire)
    listening.writable = lambda: wire.write(text_frame(b"more"))  # type: ignore[method-assign]
    wire.write(text_frame(b"x" * OVER))
    await until(lambda: len(server.sent) == 2)
    assert server.sent[1] == {"type": "websocket.send", "text": "more"}


async def test_wire_that_nobody_listens_to_drains_all_the_same(server: Server) -> None:
    wire = AsgiWire(server.send)
    wire.write(text_frame(b"x" * OVER))
    await until(lambda: server.sent)
    await until(lambda: wire.buffered == 0)


async def test_wire_that_is_closed_writes_nothing(server: Server) -> None:
    wire = AsgiWire(server.send)
    wire.close(1000, "")
    wire.write(text_frame(b"x"))
    wire.close(1001, "again")
    assert wire.closed
    await until(lambda: server.sent)
    await asyncio.sleep(0)
    assert server.sent == [{"type": "websocket.close", "code": 1000, "reason": ""}]


async def test_wire_that_is_aborted_drops_what_waits_and_closes_with_1001(server: Server) -> None:
    server.way.clear()
    wire = AsgiWire(server.send)
    for _ in range(10):
        wire.write(text_frame(b"x"))
    await asyncio.sleep(0)
    wire.abort()
    assert wire.closed
    server.way.set()
    await until(lambda: wire._task is None)
    assert [message["type"] for message in server.sent] == ["websocket.send", "websocket.close"]
    assert server.sent[-1]["code"] == 1001


async def test_wire_that_is_aborted_holds_no_more_than_what_is_on_its_way(server: Server) -> None:
    server.way.clear()
    wire = AsgiWire(server.send)
    for _ in range(10):
        wire.write(text_frame(b"x"))
    await asyncio.sleep(0)
    wire.abort()
    assert wire.buffered <= 1
    server.way.set()


async def test_wire_whose_client_has_gone_raises_nothing(server: Server) -> None:
    server.broken = True
    wire = AsgiWire(server.send)
    wire.write(text_frame(b"x"))
    wire.write(text_frame(b"y"))
    await until(lambda: wire.closed)
    wire.write(text_frame(b"z"))
    wire.close(1000, "")
    wire.abort()
    assert wire.buffered == 0


async def test_wire_leaves_no_task(server: Server) -> None:
    before = asyncio.all_tasks()
    wire = AsgiWire(server.send)
    wire.write(text_frame(b"x"))
    await until(lambda: server.sent)
    await until(lambda: asyncio.all_tasks() == before)


async def test_wire_cannot_hold_reading_back(server: Server) -> None:
    wire = AsgiWire(server.send)
    wire.pause_reading()
    wire.resume_reading()
    assert server.sent == []


class Inner:
    """The server's own wire, below one that goes through a middleware."""

    def __init__(self) -> None:
        self.listener: Any = None
        self.closed = False
        self.buffered = 0

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


async def test_wrapped_wire_tells_that_it_has_drained_only_once_both_parts_have(server: Server) -> None:
    server.way.clear()
    inner: Any = Inner()
    wire = WrappedWire(inner, server.send)
    listening = Listening(wire)
    wire.write(text_frame(b"x" * OVER))
    inner.listener.congested()
    inner.listener.writable()
    assert "writable" not in [what for what, _ in listening.told]
    server.way.set()
    await until(lambda: listening.told[-1:] == [("writable", 0)])


async def test_wire_for_an_unknown_server_is_plain_asgi(server: Server) -> None:
    wire = wire_for({"type": "websocket"}, asyncio.Queue().get, server.send)
    assert isinstance(wire, AsgiWire)


async def test_wire_for_a_connection_behind_sessions_sends_through_them(server: Server) -> None:
    wrapper = InstanceSessionWrapper({"type": "websocket", "cookies": {}, "session": None}, server.send)
    wire = wire_for(wrapper.scope, asyncio.Queue().get, wrapper.send)
    wire.write(text_frame(b"x"))
    await until(lambda: server.sent)
    assert server.sent == [{"type": "websocket.send", "text": "x"}]
