"""What clients and faults cannot do to the engine: take it down, fill it, disturb others, or keep it from stopping."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.sync.client import connect

from realtime.testing import DemoWebsocketServer, faults
from realtime.testing import connection as connections
from realtime.testing.connection import ServerConnection
from realtime.testing.frames import Frame, Opcode, Wait

from . import raw
from .fault_table import ECHO, PING, ROWS, SUBSCRIBE
from .live import Client, eventually
from .raw import Raw
from .test_engine import ANSWER, HOUR, Script
from .test_engine import ECHO as SHORT_ECHO

STOP = 3.0
"""Seconds that a stop may take whatever clients and faults do, of which half a second is theirs to answer."""


@pytest.fixture(scope="module")
def server() -> Iterator[DemoWebsocketServer]:
    """A server that all tests of this module share: it must survive each of them."""
    with DemoWebsocketServer("127.0.0.1:0", heartbeat_interval=HOUR) as server:
        yield server


def connection_of(server: DemoWebsocketServer, name: str = "") -> ServerConnection:
    [connection] = server.engine.namespaces[name].connections.values()
    return connection


# Whatever bytes


def _frame(first: int, payload: bytes, claim: int | None, masked: bool) -> bytes:
    size = len(payload) if claim is None else claim
    length = bytes([size]) if size < 126 else b"\x7f" + size.to_bytes(8)
    return bytes([first, length[0] | (0x80 if masked else 0)]) + length[1:] + (b"\0\0\0\0" if masked else b"") + payload


FRAMES = st.builds(
    _frame,
    st.integers(0, 255),
    st.one_of(st.binary(max_size=40), st.sampled_from([ECHO.payload, SUBSCRIBE.payload, b"\x03\xe8", b'{"type":"'])),
    st.one_of(st.none(), st.integers(0, 125), st.integers(126, (1 << 64) - 1)),
    st.sampled_from([True, True, True, False]),
)
HEADS = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda path, name, value: b"GET /%b HTTP/1.1\r\n%b: %b\r\n\r\n" % (path, name, value),
        st.binary(max_size=20),
        st.one_of(st.sampled_from([b"Upgrade", b"Content-Length", b"Host"]), st.binary(max_size=10)),
        st.binary(max_size=20),
    ),
    st.builds(
        lambda path, header: raw.handshake(path.decode("latin-1"), [header.decode("latin-1")]),
        st.binary(max_size=30).map(lambda part: b"/ws/?session=" + part),
        st.one_of(
            st.just(b"X: 1"), st.binary(max_size=20), st.builds(b"User-Agent: %b".__mod__, st.binary(max_size=9))
        ),
    ),
)
INPUT = st.one_of(
    st.builds(lambda head, rest: head + b"".join(rest), HEADS, st.lists(FRAMES, max_size=5)),
    st.builds(
        lambda rest: raw.handshake("/ws/?session=fuzz") + b"".join(rest),
        st.lists(st.one_of(FRAMES, st.binary(max_size=60)), max_size=10),
    ),
)


@pytest.fixture(scope="module")
def bystander(server: DemoWebsocketServer) -> Iterator[Any]:
    with connect(server.session("bystander").url, proxy=None) as client:
        yield client


def answered(client: Any) -> bool:
    client.send(SHORT_ECHO.decode())
    return bool(client.recv(timeout=10) == ANSWER.decode())


@pytest.mark.parametrize("faulty", [False, True], ids=["as usual", "with faults"])
def test_no_input_takes_down_the_engine_or_another_connection(
    faulty: bool, server: DemoWebsocketServer, bystander: Any, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = [faults.Duplicate(what="messages"), faults.Delay(seconds=0.001), faults.Burst(seconds=0.01)]
    server.session("fuzz").set_faults(chosen if faulty else [])

    @settings(max_examples=80)
    @given(INPUT)
    def send(data: bytes) -> None:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            try:
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
                while client.recv(1 << 16):
                    pass
            except (ConnectionResetError, BrokenPipeError):
                pass
            except OSError as error:
                if error.errno != errno.ENOTCONN:  # or else it is closed already
                    raise
        assert answered(bystander)

    with caplog.at_level(logging.WARNING):
        send()
    assert [record for record in caplog.records if record.name in ("asyncio", "realtime.testing")] == []
    assert server.transcript.to_html().encode()
    assert server.transcript.to_json().encode()
    assert all(info.user_agent.encode("utf-8") is not None for info in server.connections)


async def test_client_that_is_gone_before_it_is_let_in_leaves_nothing(
    server: DemoWebsocketServer, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(20):
        client = await Raw(server.port).__aenter__()
        client.abort()
    await eventually(lambda: len(server.engine.sockets) <= 1)
    assert [record for record in caplog.records if record.name == "asyncio"] == []


# Whatever waits


async def test_what_comes_before_the_handshake_is_answered_is_bounded(server: DemoWebsocketServer) -> None:
    session = server.session("early")
    session.set_faults([faults.SlowAccept(seconds=3000.0)])
    async with Raw(server.port) as client:
        await client.send(raw.handshake("/ws/?session=early") + raw.frame(raw.TEXT, SHORT_ECHO))
        writing = asyncio.create_task(client.send(raw.frame(raw.PING, b"x" * 125) * 100_000))
        await asyncio.wait([writing], timeout=0.3)
        assert not writing.done()
        assert len(connection_of(server, "early")._reader.buffer) < 1 << 19
        session.advance(3000.0)
        assert (await client.head()).startswith("HTTP/1.1 101 ")
        while await client.frame() != (raw.TEXT, ANSWER):  # pongs need not wait for it
            pass
        writing.cancel()
    session.reset()


@pytest.mark.parametrize(
    "chosen",
    [
        [],
        [faults.Duplicate(copies=10, what="messages"), faults.HugeFrame(size=1 << 20, times=16)],
        [faults.Delay(seconds=60, what="everything"), faults.Lose(what="everything")],
        [faults.Delay(seconds=60, what="everything")],
        [faults.Reorder(window=100, hold=60.0), faults.Duplicate(copies=10)],
        [faults.PingFlood(count=10_000, rate=1000.0), faults.Bandwidth(bytes_per_second=100)],
    ],
    ids=["no fault", "much", "waits alone", "waits", "held", "flood"],
)
@pytest.mark.parametrize("sends", [ECHO, PING], ids=["echoes", "pings"])
async def test_client_that_never_reads_is_bounded(chosen: list[Any], sends: Frame, server: DemoWebsocketServer) -> None:
    session = server.session("deaf")
    session.set_faults(chosen)
    most = [0, 0]

    def look() -> bool:
        found = server.engine.namespaces["deaf"].connections.values()
        for connection in found:
            size = connection._transport.get_write_buffer_size() + connection._queued
            most[:] = max(most[0], size), max(most[1], len(connection._actions))
        return not found

    async with Raw(server.port, receive_buffer=1 << 12) as client:
        await client.open("/ws/?session=deaf")

        async def flood() -> None:
            frames = raw.frame(sends.opcode, sends.payload) * 1000
            while True:
                await client.send(frames)

        flooding = asyncio.create_task(flood())
        end = time.monotonic() + 0.7
        while time.monotonic() < end and not look():
            await asyncio.sleep(0.02)
        flooding.cancel()
        await asyncio.wait([flooding])
    assert most[0] < 40 << 20
    assert most[1] < 100_000
    session.reset()


async def test_more_than_may_wait_ends_the_connection_whatever_the_application(
    monkeypatch: pytest.MonkeyPatch, server: DemoWebsocketServer, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "MOST_WAITING", 10_000)
    session = server.session("too much")
    session.interpose(lambda number: Script(instead=lambda frame: [Wait(HOUR)]))
    async with Raw(server.port) as client:
        await client.open("/ws/?session=too%20much")
        await client.send(raw.frame(raw.PING) * 200)
        assert await client.rest() == (b"", "FIN")
    assert "event=too_much_waits" in caplog.text


async def test_endless_message_of_empty_parts_takes_no_room(server: DemoWebsocketServer) -> None:
    async with Raw(server.port) as client:
        await client.open("/ws/?session=parts")
        await client.send(raw.frame(raw.TEXT, b'"', fin=False) + raw.frame(raw.CONTINUATION, fin=False) * 50)
        await client.send(raw.frame(raw.PING))
        assert await client.frame() == (raw.PONG, b"")
        assert connection_of(server, "parts")._parts == [b'"']


async def test_what_happens_by_itself_waits_for_what_happened_before(server: DemoWebsocketServer) -> None:
    script = Script(at_first=[Wait(10)], ticks=[(10, [Wait(10)]), (10, [])])
    session = server.session("ticks")
    session.interpose(lambda number: script)
    async with Raw(server.port) as client:
        await client.open("/ws/?session=ticks")
        left = []
        for _ in range(4):
            left.append(len(script.ticks))
            session.advance(10)
        assert left == [2, 1, 1, 0]
    session.reset()


# Whatever the state at the stop


async def traffic(server: DemoWebsocketServer, row: Any, clients: list[Raw]) -> None:
    server.session(row.name).set_faults([row.fault])
    client = await Raw(server.port, receive_buffer=1 << 12).__aenter__()
    clients.append(client)
    messages = (*row.sends, SUBSCRIBE, ECHO, Frame(Opcode.TEXT, b"x" * 60_000), PING)
    path = f"/ws/?session={row.name}"
    await client.send(raw.handshake(path) + b"".join(raw.frame(each.opcode, each.payload) for each in messages))


async def test_stop_ends_within_its_bound_whatever_fault_is_active() -> None:
    server = DemoWebsocketServer("127.0.0.1:0", heartbeat_interval=HOUR)
    threads = threading.active_count()
    await server.astart()
    clients: list[Raw] = []
    for row in ROWS:
        await traffic(server, row, clients)
    async with Client(server.session("last").url) as last:
        await last.echo()
        await stop_within(server, STOP)
        assert await last.closed() == (1001, "server shutdown")
    for client in clients:
        await client.ended()
        await client.__aexit__()
    assert threading.active_count() <= threads


async def stop_within(server: DemoWebsocketServer, seconds: float) -> None:
    began = time.monotonic()
    await server.astop()
    assert time.monotonic() - began < seconds


async def test_stop_ends_within_its_bound_while_clients_flood() -> None:
    server = DemoWebsocketServer("127.0.0.1:0", rate_limit=None)
    await server.astart()
    clients = [await Raw(server.port).__aenter__() for _ in range(10)]

    async def flood(client: Raw) -> None:
        frames = raw.frame(raw.TEXT, SHORT_ECHO) * 500
        while True:
            await client.send(frames)

    for client in clients:
        await client.open()
    flooding = [asyncio.create_task(flood(client)) for client in clients]
    await asyncio.sleep(0)
    await stop_within(server, STOP)
    for task in flooding:
        task.cancel()
    await asyncio.wait(flooding)
    for client in clients:
        await client.ended()
        await client.__aexit__()


async def test_close_frame_that_is_delayed_is_still_sent_at_the_stop() -> None:
    async with DemoWebsocketServer("127.0.0.1:0") as server:
        server.set_faults([faults.Delay(seconds=0.1, what="everything")])
        async with Client(server.url) as client:
            await client.echo()
            await server.astop()
            assert await client.closed() == (1001, "server shutdown")
