"""The engine on the wire: what goes out is what stands between says, in order, whatever WebSocket allows."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import InvalidStatus

from realtime import Topic
from realtime.protocol import CloseMessage
from realtime.testing import DemoWebsocketServer, controls
from realtime.testing.engine import Engine, listen
from realtime.testing.frames import (
    Action,
    Drop,
    Frame,
    HalfClose,
    Handshake,
    Opcode,
    ReadOn,
    StopReading,
    Wait,
    Write,
    close_frame,
)
from realtime.testing.transcript import FrameReader, Log

from . import raw
from .live import Client, eventually
from .raw import Raw

topic = Topic("engine.{name}", public=True)
HOUR = 3600.0
ECHO = b'{"type":"echo_request","echo":"x"}'
ANSWER = b'{"type":"echo_response","status":"OK","data":{"echo":"x"}}'


def as_usual(frame: Frame) -> Sequence[Action]:
    return [Write(frame.encode())]


@dataclass
class Script:
    """Do what a test says, and as usual where it says nothing."""

    answer: Handshake | None = None
    at_first: Sequence[Action] = ()
    instead: Callable[[Frame], Sequence[Action]] = as_usual
    heed: Callable[[Frame], Sequence[Action] | None] = lambda frame: None
    ticks: list[tuple[float, Sequence[Action]]] = field(default_factory=list)
    number: int = 0

    def handshake(self) -> Handshake | None:
        return self.answer

    def opened(self) -> Sequence[Action]:
        return self.at_first

    def outgoing(self, frame: Frame) -> Sequence[Action]:
        return self.instead(frame)

    def incoming(self, frame: Frame) -> Sequence[Action] | None:
        return self.heed(frame)

    def tick(self) -> tuple[float, Sequence[Action]] | None:
        return self.ticks.pop(0) if self.ticks else None


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DemoWebsocketServer]:
    """A server whose faults are scripts, each for the connections that it is given to."""
    monkeypatch.setattr(controls, "interposer_for", lambda faults, number: faults[0])
    async with DemoWebsocketServer("127.0.0.1:0", heartbeat_interval=HOUR) as server:
        yield server


def pongs_are(*actions: Action) -> Callable[[Frame], Sequence[Action]]:
    """Do ``actions`` in place of each pong."""
    return lambda frame: actions if frame.opcode == Opcode.PONG else as_usual(frame)


async def test_actions_stand_in_place_of_a_frame(server: DemoWebsocketServer) -> None:
    server.set_faults([Script(instead=pongs_are(Write(b"any"), Write(b" bytes")))])
    async with Raw(server.port) as client:
        await client.open()
        await client.send(raw.frame(raw.PING, b"x"))
        assert await client.take(9) == b"any bytes"
        await client.send(raw.frame(raw.TEXT, ECHO))
        assert await client.frame() == (raw.TEXT, ANSWER)


async def test_wait_holds_back_all_that_follows_on_that_connection_alone(server: DemoWebsocketServer) -> None:
    server.set_faults([Script(instead=pongs_are(Wait(HOUR), Write(b"late")))])
    async with Raw(server.port) as client, Raw(server.port) as other:
        for each in (client, other):
            await each.open()
        await client.send(raw.frame(raw.PING) + raw.frame(raw.TEXT, ECHO))
        server.transcript.assert_received(lambda entry: entry.message is not None)
        await other.send(raw.frame(raw.TEXT, ECHO))
        assert await other.frame() == (raw.TEXT, ANSWER)
        assert client._received == b""
        server.advance(HOUR)
        assert await client.take(4) == b"late"
        assert await client.frame() == (raw.TEXT, ANSWER)


async def test_client_for_which_too_much_waits_is_closed_as_a_slow_one(server: DemoWebsocketServer) -> None:
    server.set_faults([Script(instead=pongs_are(Wait(HOUR)))])
    async with Raw(server.port) as client:
        await client.open()
        await client.send(raw.frame(raw.PING))
        await client.send_json({"type": "subscribe_request", "topic": "engine.x"})
        server.transcript.assert_received("subscribe_request")
        await eventually(lambda: server.publish("engine.x", "x" * 500_000) and server.connections[0].state == "closing")
        server.advance(HOUR)
        assert await client.closed() == (3008, "slow consumer")


@pytest.mark.parametrize("reset", [False, True])
async def test_drop_ends_the_connection(server: DemoWebsocketServer, reset: bool) -> None:
    server.set_faults([Script(instead=pongs_are(Write(b"x"), Wait(HOUR), Drop(reset=reset)))])
    async with Raw(server.port) as client:
        await client.open()
        await client.send(raw.frame(raw.PING))
        assert await client.take(1) == b"x"
        server.advance(HOUR)
        with pytest.raises(ConnectionResetError if reset else EOFError):
            await client.frame()
    await eventually(lambda: server.connections == [])


async def test_half_close_ends_one_direction(server: DemoWebsocketServer) -> None:
    server.set_faults([Script(instead=pongs_are(HalfClose(), Write(b"never")))])
    async with Raw(server.port) as client:
        await client.open()
        await client.send(raw.frame(raw.PING))
        with pytest.raises(EOFError):
            await client.frame()
        await client.send(raw.frame(raw.TEXT, ECHO))
        server.transcript.assert_received("echo_request")
        assert server.connections[0].state == "open"


async def test_reading_stops_and_goes_on(server: DemoWebsocketServer) -> None:
    server.set_faults([Script(instead=pongs_are(StopReading(), Wait(HOUR), ReadOn(), Write(b"again")))])
    async with Raw(server.port) as client:
        await client.open()
        await client.send(raw.frame(raw.PING) + raw.frame(raw.TEXT, ECHO))
        server.transcript.assert_received(lambda entry: entry.opcode == Opcode.PING)
        writing = asyncio.create_task(client.send(raw.frame(raw.TEXT, b"x" * 60_000) * 200))
        await asyncio.wait([writing], timeout=0.2)
        assert not writing.done()
        assert not [entry for entry in server.transcript.received if entry.opcode == Opcode.TEXT]
        server.advance(HOUR)
        await writing
        assert await client.take(5) == b"again"
        assert await client.frame() == (raw.TEXT, ANSWER)


async def test_frame_of_the_client_can_go_unheeded(server: DemoWebsocketServer) -> None:
    def heed(frame: Frame) -> Sequence[Action] | None:
        return [Write(b"no")] if frame.opcode == Opcode.CLOSE else None

    server.set_faults([Script(heed=heed)])
    async with Raw(server.port) as client:
        await client.open()
        await client.send(raw.frame(raw.CLOSE, (1000).to_bytes(2)))
        assert await client.take(2) == b"no"
        await client.send(raw.frame(raw.TEXT, ECHO))
        assert await client.frame() == (raw.TEXT, ANSWER)


async def test_frames_may_follow_a_close_frame(server: DemoWebsocketServer) -> None:
    def instead(frame: Frame) -> Sequence[Action]:
        more = [Frame(Opcode.TEXT, b"after"), close_frame(1006)] if frame.opcode == Opcode.CLOSE else []
        return [Write(each.encode()) for each in (frame, *more)]

    server.set_faults([Script(instead=instead)])
    async with Raw(server.port) as client:
        await client.open()
        server.close(CloseMessage(code=1000, reason=""))
        assert await client.frame() == (raw.CLOSE, (1000).to_bytes(2))
        assert await client.frame() == (raw.TEXT, b"after")
        assert await client.frame() == (raw.CLOSE, (1006).to_bytes(2))


async def test_close_frame_that_is_not_sent_ends_the_connection_after_a_while(
    server: DemoWebsocketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("realtime.testing.connection.LINGER", 0.2)
    server.set_faults([Script(instead=lambda frame: [] if frame.opcode == Opcode.CLOSE else as_usual(frame))])
    async with Raw(server.port) as client:
        await client.open()
        server.close()
        assert server.connections[0].state == "closing"
        assert await client.closed() == (1006, "")


async def test_what_happens_by_itself_happens_by_the_clock(server: DemoWebsocketServer) -> None:
    server.set_faults([Script(at_first=[Write(b"open")], ticks=[(HOUR, [Write(b"one")]), (HOUR, [Write(b"two")])])])
    async with Raw(server.port) as client:
        await client.open()
        assert await client.take(4) == b"open"
        server.advance(HOUR)
        assert await client.take(3) == b"one"
        server.advance(HOUR)
        assert await client.take(3) == b"two"


async def test_faults_strike_a_connection_that_is_open_already(server: DemoWebsocketServer) -> None:
    async with Raw(server.port) as client:
        await client.open()
        info = await server.await_for_connection()
        server.set_faults([Script(at_first=[Write(b"now")])], connection=info.id)
        assert await client.take(3) == b"now"
        server.set_faults([], connection=info.id)
        await client.send(raw.frame(raw.PING, b"x"))
        assert await client.frame() == (raw.PONG, b"x")


async def test_faults_of_a_session_are_its_own(server: DemoWebsocketServer) -> None:
    server.session("a").set_faults([Script(instead=lambda frame: [Write(b"?")])])
    async with Raw(server.port) as client, Client(server.url) as other:
        await client.open("/ws/?session=a")
        await client.send(raw.frame(raw.PING))
        assert await client.take(1) == b"?"
        await other.echo()


async def test_publications_of_the_hub_go_the_same_way(server: DemoWebsocketServer) -> None:
    server.set_faults([Script(instead=lambda frame: as_usual(Frame(frame.opcode, frame.payload, mask=b"mask")))])
    async with Raw(server.port) as client:
        await client.open()
        await client.send_json({"type": "subscribe_request", "topic": "heartbeat"})
        for kind in (b'{"type":"subscribe_response"', b'{"type":"heartbeat"'):
            head = await client.take(2)
            assert head[0] == 0x81
            assert head[1] & 0x80
            mask = await client.take(4)
            assert mask == b"mask"
            payload = await client.take(head[1] & 0x7F)
            assert bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload)).startswith(kind)


# Handshakes


async def test_handshake_is_refused(server: DemoWebsocketServer) -> None:
    server.set_faults([Script(Handshake(status=429, headers=(("Retry-After", "3"),), body=b"slowly"))])
    with pytest.raises(InvalidStatus) as caught:
        async with Client(server.url):
            pass
    response = caught.value.response
    assert (response.status_code, response.headers["Retry-After"], response.body) == (429, "3", b"slowly")
    await eventually(lambda: server.connections == [])
    with pytest.raises(TimeoutError, match="429 Too Many Requests"):
        await server.await_for_connection(timeout=0)


@pytest.mark.parametrize("status", [None, 503])
async def test_handshake_is_answered_late(server: DemoWebsocketServer, status: int | None) -> None:
    server.set_faults([Script(Handshake(status=status, delay=HOUR))])
    async with Raw(server.port) as client:
        await client.send(raw.handshake())
        await eventually(lambda: [info.state for info in server.connections] == ["connecting"])
        assert client._received == b""
        server.advance(HOUR)
        assert (await client.head()).startswith(f"HTTP/1.1 {status or 101} ")


async def test_handshake_is_never_answered_and_does_not_hold_up_the_stop(server: DemoWebsocketServer) -> None:
    server.set_faults([Script(Handshake(never=True))])
    async with Raw(server.port) as client:
        await client.send(raw.handshake())
        await eventually(lambda: [info.state for info in server.connections] == ["connecting"])
        await server.astop()
        with pytest.raises(EOFError):
            await client.head()
    await server.astart()


@pytest.mark.parametrize(("chosen", "lines"), [("wrong", 1), ("", 0)])
async def test_subprotocol_is_another(server: DemoWebsocketServer, chosen: str, lines: int) -> None:
    server.set_faults([Script(Handshake(subprotocol=chosen, headers=(("X-Extra", "1"),)))])
    async with Raw(server.port) as client:
        head = await client.open(headers=["Sec-WebSocket-Protocol: demows.v1"])
        assert head.count("Sec-WebSocket-Protocol: wrong") == lines
        assert "demows.v1" not in head
        assert "X-Extra: 1" in head


# The server beneath


async def serving(application: Any) -> tuple[Engine, int]:
    from realtime.conf import Settings

    engine = Engine(application, Settings(), Log())
    return engine, await engine.start("127.0.0.1", 0)


async def test_any_application_is_served() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept", "subprotocol": "b", "headers": [(b"x-own", b"1")]})
        keys = ("path", "query_string", "subprotocols", "scheme", "http_version")
        await send({"type": "websocket.send", "text": json.dumps({key: str(scope[key]) for key in keys})})
        received = await receive()
        await send({"type": "websocket.send", "bytes": received["bytes"]})
        await send({"type": "websocket.close", "code": 4000, "reason": "done"})
        assert (await receive())["type"] == "websocket.disconnect"

    engine, port = await serving(application)
    async with Client(f"ws://127.0.0.1:{port}/%E2%98%82?a=b", subprotocols=["a", "b"]) as client:
        assert client.ws.response is not None
        assert client.ws.response.headers["x-own"] == "1"
        scope = await client.receive()
        assert scope == {
            "path": "/☂",
            "query_string": "b'a=b'",
            "subprotocols": "['a', 'b']",
            "scheme": "ws",
            "http_version": "1.1",
        }
        await client.send(b"\xff")
        assert await client.ws.recv() == b"\xff"
        assert await client.closed() == (4000, "done")
    await engine.stop()


@pytest.mark.parametrize("accept", [True, False])
async def test_application_that_raises_ends_the_connection(accept: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        if accept:
            await send({"type": "websocket.accept"})
        raise RuntimeError("a bug")

    engine, port = await serving(application)
    async with Raw(port) as client:
        head = await client.open()
        assert head.startswith("HTTP/1.1 101 " if accept else "HTTP/1.1 500 ")
        if accept:
            assert await client.closed() == (1011, "")
    await engine.stop()
    assert "event=application_failed" in caplog.text


async def test_application_that_returns_ends_the_connection() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})

    engine, port = await serving(application)
    async with Raw(port) as client:
        await client.open()
        assert await client.closed() == (1000, "")
    await engine.stop()


async def test_request_in_pieces_and_frames_behind_it_are_read(server: DemoWebsocketServer) -> None:
    async with Raw(server.port) as client:
        request = raw.handshake() + raw.frame(raw.TEXT, ECHO)
        for start in range(0, len(request), 7):
            await client.send(request[start : start + 7])
        assert (await client.head()).startswith("HTTP/1.1 101 ")
        assert await client.frame() == (raw.TEXT, ANSWER)


@pytest.mark.parametrize("part", [0, 10, None])
async def test_client_that_leaves_before_it_is_answered_leaves_no_trace(
    server: DemoWebsocketServer, part: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(20):
        async with Raw(server.port) as client:
            await client.send(raw.handshake()[:part])
            client.abort()
    await eventually(lambda: not server.engine.sockets)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_sessions_that_nobody_uses_are_dropped_when_there_are_too_many(
    server: DemoWebsocketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("realtime.testing.engine.SESSIONS", 3)
    async with Client(f"{server.url}?session=kept") as client:
        for number in range(10):
            server.session(str(number)).pause_beats()
        assert list(server.engine.namespaces) == ["kept", "8", "9"]
        await client.echo()


def test_port_for_localhost_is_the_same_for_both_families() -> None:
    sockets = listen("localhost", 0)
    assert len({sock.getsockname()[1] for sock in sockets}) == 1
    for sock in sockets:
        sock.close()


@given(st.lists(st.binary(max_size=300), max_size=5), st.lists(st.integers(1, 50), min_size=1))
def test_frames_are_put_together_from_whatever_pieces(payloads: list[bytes], sizes: list[int]) -> None:
    frames = [Frame(Opcode.BINARY, payload, mask=b"mask" if len(payload) % 2 else None) for payload in payloads]
    data = b"".join(frame.encode() for frame in frames) + b"\x82\x05half"
    reader, found = FrameReader(), []
    for size in itertools.cycle(sizes):
        if not data:
            break
        some, data = data[:size], data[size:]
        whole, rest = reader.feed(some)
        assert rest == b""
        found += whole
    assert found == frames
    assert (reader.take(), reader.waiting) == (b"\x82\x05half", False)
