"""Stopping servers: every client gets a close frame, and the process ends whatever is in its way."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from . import raw
from .live import Client, Server, running
from .raw import Raw

FAREWELL = (1001, "server shutdown")
SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
LONGEST_STOP = 10.0


@pytest.fixture
def own(kind: str) -> Iterator[Server]:
    """A server that the test may stop."""
    with running(kind) as server:
        server.get("/mark/?text=up")  # Daphne says that it listens before it minds signals
        yield server


@asynccontextmanager
async def connected(server: Server, count: int) -> AsyncIterator[list[Client]]:
    """Connect clients that subscribe to the heartbeat."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client(server.url, max_queue=None)) for _ in range(count)]
        for client in clients:
            await client.subscribe("heartbeat")
        yield clients


async def assert_ends(server: Server, number: int = signal.SIGTERM, *, began: float | None = None) -> None:
    """
    Stop the server (``began`` says when that was done), and assert that it ends in time, as it should.

    uvicorn raises the signal again that stopped it, and then takes no offence at SIGINT's KeyboardInterrupt.
    """
    if began is None:
        server.signal(number)
        began = time.monotonic()
    code = await asyncio.to_thread(server.wait, 15)
    assert time.monotonic() - began < LONGEST_STOP, server.output
    assert code == (-number if server.kind == "uvicorn" and number == signal.SIGTERM else 0), server.output


def assert_calm(server: Server) -> None:
    assert "Traceback" not in server.output, server.output


@SIGNALS
async def test_every_client_gets_a_close_frame(own: Server, number: int) -> None:
    async with connected(own, 50) as clients:
        own.signal(number)
        began = time.monotonic()
        farewells = await asyncio.gather(*(client.closed() for client in clients))
    assert farewells == [FAREWELL] * 50
    await assert_ends(own, number, began=began)
    assert own.output.count("event=disconnected connection=") == 50
    assert_calm(own)


async def test_server_without_clients_ends_at_once(own: Server) -> None:
    began = time.monotonic()
    await assert_ends(own)
    assert time.monotonic() - began < 3
    assert_calm(own)


async def test_second_signal_does_no_harm(own: Server) -> None:
    async with connected(own, 5) as clients:
        own.signal(signal.SIGTERM)
        assert await clients[0].closed() == FAREWELL
        own.signal(signal.SIGTERM)
        await assert_ends(own, began=time.monotonic())
    assert_calm(own)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"GET /census/ HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half", id="headers half sent"),
        pytest.param(
            b"POST /publish/ HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\nhalf", id="body half sent"
        ),
        pytest.param(raw.handshake()[:-20], id="handshake half sent"),
        pytest.param(b"GET /hold/?seconds=2 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", id="thread in flight"),
        pytest.param(b"GET /census/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", id="connection kept alive"),
    ],
)
async def test_http_in_flight_holds_up_no_stop(own: Server, sent: bytes) -> None:
    async with connected(own, 3) as clients, Raw(own.port) as http:
        await http.send(sent)
        await own.mark()
        own.signal(signal.SIGTERM)
        began = time.monotonic()
        assert await asyncio.gather(*(client.closed() for client in clients)) == [FAREWELL] * 3
        await assert_ends(own, began=began)
    assert own.output.count("event=disconnected connection=") == 3
    if own.kind == "daphne" or b"POST" not in sent:  # uvicorn logs what it cancels
        assert_calm(own)


async def stalled(server: Server, client: Raw) -> None:
    """Make ``client`` one that does not read, and that the server holds several MiB for."""
    await client.open()
    await client.send_json({"type": "subscribe_request", "topic": "news"})
    await client.frame()
    await server.aget(f"/publish_text/?topic=news&size={1 << 19}&count=24")


async def test_client_that_does_not_read_holds_up_no_stop(own: Server) -> None:
    async with connected(own, 3) as clients, Raw(own.port, receive_buffer=4096) as slow:
        await stalled(own, slow)
        own.signal(signal.SIGTERM)
        began = time.monotonic()
        assert await asyncio.gather(*(client.closed() for client in clients)) == [FAREWELL] * 3
        await assert_ends(own, began=began)
    assert own.output.count("event=disconnected connection=") == 4
    assert_calm(own)


async def test_client_that_does_not_read_but_says_goodbye_holds_up_no_stop(own: Server) -> None:
    async with connected(own, 3) as clients, Raw(own.port, receive_buffer=4096) as slow:
        await stalled(own, slow)
        await slow.send(raw.frame(raw.CLOSE, (1000).to_bytes(2)))
        await clients[0].ask({"type": "unsubscribe_request", "topic": "heartbeat"})
        own.signal(signal.SIGTERM)
        began = time.monotonic()
        assert await asyncio.gather(*(client.closed() for client in clients)) == [FAREWELL] * 3
        await assert_ends(own, began=began)
    assert_calm(own)


async def test_client_that_answers_no_close_holds_up_no_stop(own: Server) -> None:
    async with connected(own, 3) as clients, Raw(own.port) as silent:
        await silent.open()
        own.signal(signal.SIGTERM)
        began = time.monotonic()
        assert await silent.closed() == FAREWELL
        assert await asyncio.gather(*(client.closed() for client in clients)) == [FAREWELL] * 3
        await assert_ends(own, began=began)
    assert_calm(own)


@pytest.mark.parametrize("topic", ["hanging", "hanging-thread", "stuck-thread"])
async def test_request_that_hangs_holds_up_no_stop(own: Server, topic: str) -> None:
    async with connected(own, 3) as clients, Client(own.url) as hanging:
        await hanging.send({"type": "subscribe_request", "topic": topic})
        await own.mark()
        own.signal(signal.SIGTERM)
        began = time.monotonic()
        farewells = await asyncio.gather(*(client.closed() for client in [*clients, hanging]))
        assert farewells == [FAREWELL] * 4
        await assert_ends(own, began=began)
    assert own.output.count("event=disconnected connection=") == 4


async def test_clients_that_come_back_at_once_hold_up_no_stop_and_are_let_in_no_more(own: Server) -> None:
    accepted = []

    async def come_back() -> None:
        while True:
            try:
                async with Client(own.url) as client:
                    accepted.append(await client.closed())
            except Exception:  # noqa: BLE001 - refused, or nobody listens any more
                await asyncio.sleep(0)

    async with connected(own, 3) as clients, Raw(own.port) as http:
        await http.send(b"GET /hold/?seconds=2 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        await own.mark()
        own.signal(signal.SIGTERM)
        began = time.monotonic()
        assert await asyncio.gather(*(client.closed() for client in clients)) == [FAREWELL] * 3
        returning = asyncio.create_task(come_back())
        await assert_ends(own, began=began)
        returning.cancel()
    assert accepted == []
    assert_calm(own)


@SIGNALS
async def test_page_that_does_not_end_holds_up_no_stop(own: Server, number: int) -> None:
    async with connected(own, 3) as clients, Raw(own.port) as http:
        await http.send(b"GET /slow/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        await own.mark()
        own.signal(number)
        began = time.monotonic()
        assert await asyncio.gather(*(client.closed() for client in clients)) == [FAREWELL] * 3
        await assert_ends(own, number, began=began)


# Databases


@pytest.mark.parametrize("file", ["empty.sqlite3", "no/such/directory/db.sqlite3"])
@pytest.mark.parametrize("name", ["application", "behind_auth"])
async def test_websockets_need_no_database(kind: str, tmp_path: Path, file: str, name: str) -> None:
    database = f"sqlite:///{tmp_path / file}"
    with running(kind, application=f"tests.site.asgi:{name}", DATABASE_URL=database) as server:
        async with connected(server, 2) as clients:
            for client in clients:
                assert (await client.receive())["type"] == "heartbeat"
            await server.aget("/close/?code=4000")
            assert [await client.closed() for client in clients] == [(4000, "")] * 2
        await server.assert_calm(0)


async def test_bare_demo_serves_websockets_on_a_database_never_migrated(kind: str, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'empty.sqlite3'}"
    with running(kind, application="demows_project.asgi:application", DATABASE_URL=database) as server:
        async with connected(server, 1) as [client]:
            assert (await client.receive())["type"] == "heartbeat"
            server.signal(signal.SIGTERM)
            began = time.monotonic()
            assert await client.closed() == FAREWELL
        await assert_ends(server, began=began)
        assert_calm(server)
