"""The faults on the wire: the very bytes, and how the TCP connection ends, as a bare socket sees them."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from realtime.testing import DemoWebsocketServer, faults
from realtime.testing.faults import Fault
from realtime.testing.frames import Drop, Frame, HalfClose, Handshake, Opcode, ReadOn, StopReading, Wait
from realtime.testing.server import Session

from . import raw
from .fault_table import ANSWER, BEAT, CLOSE, ECHO, ECHO_2, PING, ROWS, Row, text
from .live import Client, eventually
from .raw import Raw

HOUR = 3600.0
ACCEPTED = (
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
)
PHRASES = {401: "Unauthorized", 403: "Forbidden", 429: "Too Many Requests", 503: "Service Unavailable"}
CLOSED = ("reorder-closed", "close-frame-legal")
"""Rows in which the server answers or heeds the client's close frame, and ends the connection."""
REFUSED = [row for row in ROWS if row.handshake is not None and row.handshake.status is not None]
OPENED = [row for row in ROWS if row.handshake is None or (row.handshake.status is None and not row.handshake.never)]
TIMESTAMP = re.compile(rb'"timestamp":"[^"]*"')
THEN = TIMESTAMP.search(BEAT)[0]  # type: ignore[index]


@pytest.fixture(scope="module")
def server() -> Iterator[DemoWebsocketServer]:
    """A server that sends a heartbeat to who subscribes, and no other."""
    with DemoWebsocketServer("127.0.0.1:0", heartbeat_interval=HOUR) as server:
        yield server


@pytest.fixture
async def bystander(server: DemoWebsocketServer) -> AsyncIterator[Client]:
    """A client of another session, whom no fault of a test strikes."""
    async with Client(server.session("bystander").url) as client:
        yield client


@pytest.fixture
def session(server: DemoWebsocketServer, request: pytest.FixtureRequest) -> Iterator[Session]:
    """A session of the test's own."""
    session = server.session(request.node.name)
    yield session
    session.reset()


def path(session: Session) -> str:
    return f"/ws/{session.url.rpartition('/')[2]}"


def frames(*sent: Frame) -> bytes:
    """Return frames as a client sends them."""
    return b"".join(raw.frame(frame.opcode, frame.payload) for frame in sent)


def response(handshake: Handshake) -> bytes:
    """Return how a handshake is refused."""
    assert handshake.status is not None
    lines = [
        f"HTTP/1.1 {handshake.status} {PHRASES[handshake.status]}",
        *(f"{name}: {value}" for name, value in handshake.headers),
        "Connection: close",
        f"Content-Length: {len(handshake.body)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + handshake.body


async def heeded(session: Session, bystander: Client, count: int) -> None:
    """Wait until the server has done all there is to do about so many frames of the session's client."""

    def is_any(entry: Any) -> bool:
        return entry.frame is not None

    if count:
        await asyncio.to_thread(session.transcript.assert_received, is_any, count=count)
    await bystander.echo()


async def play(row: Row, session: Session, bystander: Client, client: Raw) -> None:
    """
    Send what the client of ``row`` sends.

    Pongs do not wait for answers, so that each ping and each close frame waits until all before it was answered; where
    things happen by themselves meanwhile, all frames are there at once, behind the handshake.
    """
    request = raw.handshake(path(session))
    if row.by_itself:
        await client.send(request + frames(*row.sends))
        return
    await client.send(request)
    waiting: list[Frame] = []
    for number, frame in enumerate(row.sends):
        if number and frame.opcode in (Opcode.PING, Opcode.CLOSE):
            await client.send(frames(*waiting))
            await heeded(session, bystander, number)
            waiting = []
        waiting.append(frame)
    await client.send(frames(*waiting))


def pause(row: Row) -> float:
    """Return how long a row takes at least."""
    delay = row.handshake.delay if row.handshake is not None else 0.0
    waits = [action.seconds for action in row.does if isinstance(action, Wait)]
    last = waits[-1] if waits and isinstance(row.does[-1], Wait) else 0.0  # nothing shows when that is over
    shown = max((number for number, (_, later) in enumerate(row.by_itself) if later), default=-1)
    return delay + sum(waits) - last + sum(seconds for seconds, _ in row.by_itself[: shown + 1])


@pytest.mark.parametrize("row", OPENED, ids=lambda row: row.name)
async def test_row_is_what_goes_over_the_wire(
    row: Row, server: DemoWebsocketServer, session: Session, bystander: Client
) -> None:
    session.set_faults([row.fault])
    began = time.monotonic()
    async with Raw(server.port) as client:
        await play(row, session, bystander, client)
        subprotocol = row.handshake.subprotocol if row.handshake is not None else None
        assert await client.head() == ACCEPTED + (f"\r\nSec-WebSocket-Protocol: {subprotocol}" if subprotocol else "")
        assert TIMESTAMP.sub(THEN, await client.take(len(row.wire))) == row.wire
        actions = [*row.does, *(action for _, later in row.by_itself for action in later)]
        if StopReading() not in actions:
            assert time.monotonic() - began >= pause(row) - 0.02
        await assert_end(row, actions, session, bystander, client)
    await eventually(lambda: session.connections == [])


async def assert_end(row: Row, actions: list[Any], session: Session, bystander: Client, client: Raw) -> None:
    """Assert that nothing more comes, and that the connection ends as ``row`` says, or else when the client ends."""
    drops = [action for action in actions if isinstance(action, Drop)]
    if drops:
        assert await client.rest() == (b"", "RST" if drops[0].reset else "FIN")
    elif HalfClose() in actions:
        assert await client.rest() == (b"", "FIN")
        await client.send(frames(ECHO))
        await heeded(session, bystander, len(row.sends) + 1)
        assert [info.state for info in session.connections] == ["open"]
        client.finish()
    elif StopReading() in actions:
        await assert_not_read(row, actions, session, client)
    elif row.name in CLOSED:
        assert await client.rest() == (b"", "FIN")
    else:
        if not row.by_itself:
            await heeded(session, bystander, len(row.sends))
        assert [info.state for info in session.connections] == ["open"]
        client.finish()
        assert await client.rest() == (b"", "FIN")


async def assert_not_read(row: Row, actions: list[Any], session: Session, client: Raw) -> None:
    """Assert that the client's writes come to a halt, or that they are read once the row says so."""
    if ReadOn() in actions:
        await client.send(frames(ECHO))
        assert await client.take(len(text(ANSWER))) == text(ANSWER)
        read = session.transcript.assert_received("echo_request")
        assert read.seconds >= pause(row) - 0.02
        client.finish()
    else:
        writing = asyncio.create_task(client.send(frames(Frame(Opcode.TEXT, b"x" * 60_000)) * 200))
        await asyncio.wait([writing], timeout=0.2)
        assert not writing.done()
        assert len(session.transcript.received) == len(row.sends)
        session.interrupt()
        await asyncio.wait([writing])
        assert isinstance(writing.exception(), ConnectionResetError | BrokenPipeError)
    assert await client.rest() == (b"", "FIN")


# Handshakes


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.name)
async def test_handshake_is_refused_with_these_very_bytes(
    row: Row, server: DemoWebsocketServer, session: Session
) -> None:
    assert row.handshake is not None
    session.set_faults([row.fault])
    async with Raw(server.port) as client:
        await client.send(raw.handshake(path(session)))
        assert await client.rest() == (response(row.handshake), "FIN")


async def test_handshake_is_never_answered(server: DemoWebsocketServer, session: Session, bystander: Client) -> None:
    session.set_faults([faults.NeverAnswer()])
    async with Raw(server.port) as client:
        await client.send(raw.handshake(path(session)) + frames(ECHO, CLOSE))
        await eventually(lambda: [info.state for info in session.connections] == ["connecting"])
        await bystander.echo()
        session.advance(HOUR)
        client.finish()
        assert await client.rest() == (b"", "FIN")


async def test_refusals_end_after_so_many(server: DemoWebsocketServer, session: Session) -> None:
    session.set_faults([faults.Refuse(after=1, times=2)])
    heads = []
    for _ in range(4):
        async with Raw(server.port) as client:
            heads.append((await client.open(path(session)))[:12])
    assert heads == ["HTTP/1.1 101", "HTTP/1.1 503", "HTTP/1.1 503", "HTTP/1.1 101"]


# For one connection, for a session, for all

LOSE_PONGS = faults.NoPongs()


async def is_struck(client: Raw) -> bool:
    """Return whether a ping goes without its pong."""
    await client.send(frames(PING, ECHO))
    first = await client.take(5)
    if first == b"\x8a\x03hey":
        assert await client.take(len(text(ANSWER))) == text(ANSWER)
        return False
    assert first + await client.take(len(text(ANSWER)) - 5) == text(ANSWER)
    return True


async def test_fault_strikes_one_connection_alone(server: DemoWebsocketServer, session: Session) -> None:
    async with Raw(server.port) as struck, Raw(server.port) as other:
        await struck.open(path(session))
        info = await session.await_for_connection()
        await other.open(path(session))
        session.set_faults([LOSE_PONGS], connection=info.id)
        assert [await is_struck(client) for client in (struck, other)] == [True, False]
        session.set_faults([], connection=info.id)
        assert not await is_struck(struck)


async def test_fault_of_a_session_strikes_its_connections_now_and_later(
    server: DemoWebsocketServer, session: Session
) -> None:
    async with Raw(server.port) as before, Raw(server.port) as after, Raw(server.port) as other:
        await before.open(path(session))
        session.set_faults([LOSE_PONGS])
        await after.open(path(session))
        await other.open("/ws/?session=other")
        assert [await is_struck(client) for client in (before, after, other)] == [True, True, False]


async def test_fault_for_all_strikes_every_session(server: DemoWebsocketServer) -> None:
    async with Raw(server.port) as before, Raw(server.port) as after:
        await before.open("/ws/?session=before")
        server.set_faults([LOSE_PONGS])
        try:
            await after.open("/ws/?session=after")
            assert [await is_struck(client) for client in (before, after)] == [True, True]
        finally:
            server.set_faults([])
        assert not await is_struck(before)


async def test_fault_strikes_the_connections_of_a_session_that_it_names(
    server: DemoWebsocketServer, session: Session
) -> None:
    session.set_faults([faults.Drop(from_connection=2, connections=1, reset=True)])
    ends = []
    for _ in range(3):
        async with Raw(server.port) as client:
            await client.open(path(session))
            client.finish()
            ends.append((await client.rest())[1])
    assert ends == ["FIN", "RST", "FIN"]


async def test_connection_is_read_again_without_its_faults(server: DemoWebsocketServer, session: Session) -> None:
    session.set_faults([faults.StopReading()])
    async with Raw(server.port) as client:
        await client.open(path(session))
        await client.send(frames(ECHO))
        session.set_faults([])
        assert await client.take(len(text(ANSWER))) == text(ANSWER)


async def test_mute_server_does_not_mind_what_is_no_frame(
    server: DemoWebsocketServer, session: Session, bystander: Client
) -> None:
    session.set_faults([faults.Mute()])
    async with Raw(server.port) as client:
        await client.open(path(session))
        reading = asyncio.create_task(client.rest())
        await client.send(b"\xff" * 100)
        await eventually(lambda: [info.state for info in session.connections] == ["closing"])
        await bystander.echo()
        assert not reading.done()
        session.reset()
        assert await reading == (b"", "FIN")


# Together, and twice


async def test_what_was_written_before_a_drop_arrives_though_the_client_reads_late(
    server: DemoWebsocketServer, session: Session, bystander: Client
) -> None:
    size = 1 << 23  # more than the system buffers
    session.set_faults([faults.HugeFrame(size=size), faults.Drop(after=1)])
    async with Raw(server.port, receive_buffer=1 << 14) as client:
        await client.open(path(session))
        await client.send(frames(ECHO))
        await heeded(session, bystander, 1)
        assert await client.rest() == (b"\x81\x7f" + size.to_bytes(8) + ANSWER.ljust(size), "FIN")


CHANCE: tuple[Fault, ...] = (
    faults.Lose(seed=7, probability=0.2),
    faults.Duplicate(seed=7, probability=0.3),
    faults.Masked(seed=7, probability=0.3),
    faults.WrongReqId(seed=7, probability=0.3),
    faults.Reorder(seed=7, window=3),
)


async def bytes_under(chosen: tuple[Fault, ...], session: Session, bystander: Client, port: int) -> bytes:
    """Return what a client gets that echoes forty times."""
    session.set_faults(chosen)
    async with Raw(port) as client:
        await client.open(path(session))
        await client.send(frames(*(ECHO, ECHO_2) * 20))
        await heeded(session, bystander, 40)
        await client.send(frames(CLOSE))
        received, how = await client.rest()
    session.reset()
    assert how == "FIN"
    return received


async def test_same_seed_and_traffic_give_the_same_bytes(
    server: DemoWebsocketServer, session: Session, bystander: Client
) -> None:
    first, second = [await bytes_under(CHANCE, session, bystander, server.port) for _ in range(2)]
    assert first == second
    other = tuple(fault.model_copy(update={"seed": 8}) for fault in CHANCE)
    assert await bytes_under(other, session, bystander, server.port) != first


# What is seen of them


async def test_frame_that_comes_in_pieces_is_one_frame_in_the_transcript(session: Session) -> None:
    session.set_faults([faults.Bandwidth(bytes_per_second=1000)])
    async with Client(session.url) as client:
        await client.echo("HTTP/" * 100)  # a piece of it is no head of a response
    session.transcript.assert_sent("echo_response", data={"echo": "HTTP/" * 100})
    sent = [entry for entry in session.transcript.entries if entry.direction == "sent"]
    assert [entry.opcode for entry in sent if entry.kind != "end"] == [None, Opcode.TEXT, Opcode.CLOSE]


async def test_pieces_of_a_frame_that_is_cut_are_in_the_transcript_once(session: Session) -> None:
    session.set_faults([faults.Bandwidth(bytes_per_second=1000), faults.Drop(what="answers", mid_frame=True)])
    async with Client(session.url) as client:
        await client.send({"type": "echo_request", "echo": "x" * 300})
        assert await client.closed() == (1006, "")
    await eventually(lambda: session.connections == [])
    [*_, cut, end] = session.transcript.entries
    assert (cut.kind, cut.direction, end.kind) == ("bytes", "sent", "end")
    assert cut.data.endswith(b"x" * 100)


async def test_what_only_claims_to_be_long_is_not_waited_for(session: Session) -> None:
    session.set_faults([faults.HugeClaim()])
    async with Client(session.url) as client:
        await client.send({"type": "echo_request", "echo": "x"})
        await client.closed()
    session.transcript.assert_sent("echo_response")
    assert [len(entry.data) for entry in session.transcript.entries if entry.kind == "bytes"] == [10]


# One after the other


@pytest.mark.parametrize("fault", [faults.Burst(seconds=60), faults.Reorder(window=100, hold=60)])
async def test_what_is_held_back_is_sent_when_other_faults_take_the_place(
    fault: Fault, session: Session, bystander: Client
) -> None:
    async with Client(session.url) as client:
        session.set_faults([fault])
        for text in ("one", "two"):
            await client.send({"type": "echo_request", "echo": text})
        await heeded(session, bystander, 2)
        session.set_faults([faults.WrongReqId()])  # strikes what comes after it
        assert [(await client.receive())["data"]["echo"] for _ in range(2)] == ["one", "two"]
        answer = await client.ask({"type": "echo_request", "reqId": "a", "echo": "x"})
        assert answer["reqId"] == "wrong"


async def test_what_was_just_let_go_of_is_sent_though_other_faults_take_the_place(
    server: DemoWebsocketServer, session: Session, bystander: Client
) -> None:
    def replace_in_the_moment_of_a_burst() -> None:
        [connection] = server.engine.namespaces[session.name].connections.values()
        assert connection._ticking is not None
        connection._ticking.fire()
        session.set_faults([])

    async with Client(session.url) as client:
        session.set_faults([faults.Burst(seconds=60)])
        await client.send({"type": "echo_request", "echo": "x"})
        await heeded(session, bystander, 1)
        session._call(replace_in_the_moment_of_a_burst)
        assert (await client.receive())["data"] == {"echo": "x"}
        await client.echo()
