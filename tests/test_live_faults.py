"""Every fault on the wire: a client on a bare socket gets the very bytes that the table of faults has."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from functools import partial

import pytest

from realtime.testing import DemoWebsocketServer
from realtime.testing.frames import Action, Drop, HalfClose, StopReading, Wait

from . import raw
from .fault_table import ROWS, Row
from .live import eventually
from .raw import Raw

A_MOMENT = 0.001
"""Seconds beyond those that a fault takes, as sums of fractions are not exact."""
TIMESTAMP = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


@pytest.fixture
async def server() -> AsyncIterator[DemoWebsocketServer]:
    """A server whose clock the test puts forward."""
    async with DemoWebsocketServer("127.0.0.1:0", heartbeat_interval=3600) as server:
        yield server


def without_times(wire: bytes) -> bytes:
    """Return the same with all timestamps alike."""
    return TIMESTAMP.sub(b"2026-11-22T17:08:01.670383Z", wire)


def actions(row: Row) -> list[Action]:
    return [*row.does, *(action for _, later in row.by_itself for action in later)]


def seconds(row: Row) -> float:
    """Return how long the row takes."""
    waits = sum(action.seconds for action in actions(row) if isinstance(action, Wait))
    return waits + sum(after for after, _ in row.by_itself) + A_MOMENT


def handled(server: DemoWebsocketServer, count: int) -> bool:
    """Return whether so many frames of the client were handled, or the connection is no more."""
    sockets = list(server.engine.sockets)
    if not sockets or len(server.transcript.received) < count:
        return not sockets
    return not sockets[0]._messages and sockets[0]._receiving is not None and not sockets[0]._receiving.done()


async def send_in_turn(server: DemoWebsocketServer, client: Raw, row: Row) -> None:
    """Send each frame when the one before has been handled: a pong would overtake the answer to a message."""
    for count, frame in enumerate(row.sends, 1):
        if count > 1 and not server.engine.sockets:  # it was dropped, and the client is to see how
            return
        await client.send(raw.frame(frame.opcode, frame.payload))
        await eventually(partial(handled, server, count), interval=0.001)


@pytest.mark.parametrize("row", [row for row in ROWS if not row.handshake], ids=lambda row: row.name)
async def test_fault_is_seen_on_the_wire(server: DemoWebsocketServer, row: Row) -> None:
    server.set_faults([row.fault])
    async with Raw(server.port) as client:
        await client.open()
        await send_in_turn(server, client, row)
        ends = [action for action in actions(row) if isinstance(action, Drop | HalfClose | StopReading)]
        server.advance(seconds(row))
        assert without_times(await client._take(len(row.wire))) == row.wire
        if not [end for end in ends if not isinstance(end, StopReading)]:
            server.reset()  # all that was to come has come then
        if Drop(reset=True) in ends:
            with pytest.raises(ConnectionResetError):
                await client._take(1)
        else:
            await client.ended()
        assert client._received == b""


@pytest.mark.parametrize("row", [row for row in ROWS if row.handshake], ids=lambda row: row.name)
async def test_fault_of_the_handshake_is_seen_on_the_wire(server: DemoWebsocketServer, row: Row) -> None:
    assert row.handshake is not None
    expected = row.handshake
    server.set_faults([row.fault])
    async with Raw(server.port) as client:
        await client.send(raw.handshake(headers=["Sec-WebSocket-Protocol: demows.v1"]))
        if expected.delay or expected.never:
            await eventually(lambda: [info.state for info in server.connections] == ["connecting"])
            assert client._received == b""
            server.advance(expected.delay or 3600)
        if expected.never:
            server.reset()
            with pytest.raises(EOFError):
                await client.head()
            return
        head = await client.head()
        assert head.startswith(f"HTTP/1.1 {expected.status or 101} ")
        assert {f"{name}: {value}" for name, value in expected.headers} <= set(head.split("\r\n"))
        if expected.status is not None:
            assert await client._take(len(expected.body)) == expected.body
            await client.ended()
            return
        assert f"Sec-WebSocket-Protocol: {expected.subprotocol or 'demows.v1'}" in head.split("\r\n")
        await client.send(raw.frame(raw.PING, b"x"))
        assert await client.frame() == (raw.PONG, b"x")
