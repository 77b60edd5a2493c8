"""The wires over real connections: what the server holds, and holding back what it reads."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from . import raw
from .live import Client, Server, eventually, running
from .raw import Raw


@pytest.fixture(
    scope="module",
    params=[("daphne",), ("uvicorn",), ("uvicorn", "--loop", "asyncio")],
    ids=["daphne", "uvicorn-uvloop", "uvicorn-asyncio"],
)
def own(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server for the tests of this module."""
    with running(*request.param) as server:
        yield server


@pytest.fixture
async def client(own: Server) -> AsyncIterator[Raw]:
    """A client that reads when told to, and is the one subscriber of a topic."""
    async with Raw(own.port, receive_buffer=4096) as client:
        await client.open()
        await client.send_json({"type": "subscribe_request", "topic": "many-9"})
        await client.frame()
        yield client
        client.abort()
    await eventually(lambda: own.get("/census/")["connections"] == 0)


async def act(server: Server, action: str) -> dict[str, Any]:
    """Call a method of the client's wire."""
    outcome: dict[str, Any] = await server.aget(f"/wire/?topic=many-9&action={action}")
    return outcome


async def test_wire_is_the_servers_own(own: Server, client: Raw) -> None:
    assert (await act(own, "look"))["kind"] == {"daphne": "DaphneWire", "uvicorn": "UvicornWire"}[own.kind]


async def test_buffered_is_nothing_when_the_client_reads(own: Server, client: Raw) -> None:
    assert (await act(own, "look"))["buffered"] == 0


async def test_buffered_is_what_the_client_has_not_read(own: Server, client: Raw) -> None:
    await own.aget(f"/publish_text/?topic=many-9&size={1 << 19}&count=24")
    assert (await act(own, "look"))["buffered"] > 4 << 20
    for _ in range(24):
        await client.frame()
    assert (await act(own, "look"))["buffered"] == 0


async def test_on_writable_is_called_when_a_full_buffer_has_drained(own: Server, client: Raw) -> None:
    await act(own, "watch")
    await own.aget(f"/publish_text/?topic=many-9&size={1 << 19}&count=24")
    before = (await act(own, "look"))["written"]  # the first ones may have fitted into the socket
    for _ in range(24):
        await client.frame()
    await eventually(lambda: own.get("/wire/?topic=many-9&action=look")["written"] > before)


async def test_on_writable_set_while_the_buffer_is_full_is_called(own: Server, client: Raw) -> None:
    await own.aget(f"/publish_text/?topic=many-9&size={1 << 19}&count=24")
    before = (await act(own, "watch"))["written"]
    for _ in range(24):
        await client.frame()
    await eventually(lambda: own.get("/wire/?topic=many-9&action=look")["written"] > before)


async def test_on_writable_is_called_no_more_once_it_is_none(own: Server, client: Raw) -> None:
    before = (await act(own, "watch"))["written"]
    await act(own, "unwatch")
    await own.aget(f"/publish_text/?topic=many-9&size={1 << 19}&count=24")
    for _ in range(24):
        await client.frame()
    await client.send_json({"type": "echo_request", "echo": "x"})
    await client.frame()
    assert (await act(own, "look"))["written"] == before


async def test_on_writable_can_be_set_again(own: Server, client: Raw) -> None:
    before = (await act(own, "watch"))["written"]
    for again in ("unwatch", "watch", "watch"):
        await act(own, again)
    await own.aget(f"/publish_text/?topic=many-9&size={1 << 19}&count=24")
    for _ in range(24):
        await client.frame()
    await eventually(lambda: own.get("/wire/?topic=many-9&action=look")["written"] > before)


async def test_paused_connection_is_not_read_until_it_is_resumed(own: Server, client: Raw) -> None:
    await act(own, "pause_reading")
    await client.send_json({"type": "echo_request", "echo": "patience"})
    await own.aget("/apublish/?topic=many-9")
    assert json.loads((await client.frame())[1])["type"] == "publication"
    await own.aget("/apublish/?topic=many-9")
    assert json.loads((await client.frame())[1])["type"] == "publication"
    await act(own, "resume_reading")
    assert json.loads((await client.frame())[1])["data"] == {"echo": "patience"}


async def test_pause_and_resume_twice_are_the_same_as_once(own: Server, client: Raw) -> None:
    for action in ("resume_reading", "pause_reading", "pause_reading", "resume_reading", "resume_reading"):
        await act(own, action)
    await client.send_json({"type": "echo_request", "echo": "x"})
    assert json.loads((await client.frame())[1])["data"] == {"echo": "x"}


async def test_connection_paused_while_requests_wait_stays_paused(own: Server, client: Raw) -> None:
    requests = [b'{"type":"subscribe_request","topic":"hanging"}', b'{"type":"echo_request","echo":"waits"}']
    await client.send(b"".join(raw.frame(raw.TEXT, request) for request in requests))
    await own.mark()
    await act(own, "pause_reading")
    assert json.loads((await client.frame())[1])["status"] == "ERROR"
    assert json.loads((await client.frame())[1])["data"] == {"echo": "waits"}
    await client.send_json({"type": "echo_request", "echo": "patience"})
    await own.mark()
    await own.aget("/apublish/?topic=many-9")
    assert json.loads((await client.frame())[1])["type"] == "publication"
    await act(own, "resume_reading")
    assert json.loads((await client.frame())[1])["data"] == {"echo": "patience"}


async def test_paused_connection_can_be_closed(own: Server, client: Raw) -> None:
    await act(own, "pause_reading")
    await own.aget("/close/?code=4000&topic=many-9")
    assert await client.closed() == (4000, "")
    await eventually(lambda: own.get("/census/")["connections"] == 0)


async def test_abort_drops_the_connection_whatever_it_holds(own: Server, client: Raw) -> None:
    await own.aget(f"/publish_text/?topic=many-9&size={1 << 19}&count=24")
    await act(own, "abort")
    assert await client.closed() == (1006, "")


ENVELOPE = len('{"type":"echo_response","status":"OK","data":{"echo":""}}')


async def echoed(server: Server, size: int) -> bytes:
    """Return the bytes of the frame that a server answers with, whose payload has ``size`` bytes."""
    async with Raw(server.port) as client:
        await client.open()
        await client.send_json({"type": "echo_request", "echo": "x" * (size - ENVELOPE)})
        head = 2 if size < 126 else 4 if size < 65536 else 10
        answer = await client.take(head + size)
        await client.send(raw.frame(raw.CLOSE, b"\x03\xe8"))
        assert await client.closed() == (1000, "")
        return answer


@pytest.mark.parametrize("kind", ["daphne", "uvicorn"])
async def test_frame_is_byte_for_byte_what_the_server_itself_sends(kind: str) -> None:
    with running(kind) as ours, running(kind, application="tests.site.asgi:wrapped") as its:
        for size in (ENVELOPE, 125, 126, 127, 65535, 65536, 65537):
            assert await echoed(ours, size) == await echoed(its, size)
        async with Client(its.url) as client:
            await client.subscribe("many-9")
            assert (await its.aget("/wire/?topic=many-9&action=look"))["kind"] == "WrappedWire"


async def test_another_websocket_implementation_works_through_plain_asgi() -> None:
    with running("uvicorn", "--ws", "websockets") as server:
        async with Client(server.url) as client:
            await client.subscribe("many-9")
            assert (await server.aget("/wire/?topic=many-9&action=look"))["kind"] == "AsgiWire"
            await server.aget("/apublish/?topic=many-9&count=100")
            assert [(await client.receive())["data"]["number"] for _ in range(100)] == list(range(100))
            await client.echo()
            await server.aget("/close/?code=4000&reason=bye")
            assert await client.closed() == (4000, "bye")
