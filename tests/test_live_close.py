"""Closes as the client sees them: code and reason on the wire, on each server and behind middlewares."""

from __future__ import annotations

import asyncio
import json
import urllib.error
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlencode

import pytest

from . import raw
from .live import SERVERS, Client, Server, eventually, running
from .raw import Raw

CODES = [1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 3008, 3500, 3999, 4000, 4500, 4999]
REASON = "à bientôt ☂ 𝄞 "
LONGEST = "☂" * 41  # 123 bytes
APPLICATIONS = ["application", "behind_auth", "wrapped"]


@pytest.fixture(scope="module", params=[(kind, name) for kind in SERVERS for name in APPLICATIONS[1:]], ids="-".join)
def site(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server whose application is behind a middleware."""
    kind, name = request.param
    with running(kind, application=f"tests.site.asgi:{name}") as server:
        yield server


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    """A connection of the test's own."""
    async with Client(server.url) as client:
        yield client


async def close(server: Server, code: Any, **query: str) -> dict[str, Any]:
    """Close connections by the server's page, and return what came of it."""
    outcome: dict[str, Any] = await server.aget(f"/close/?{urlencode({'code': code, **query})}")
    return outcome


async def leftovers(server: Server) -> dict[str, Any]:
    left: dict[str, Any] = await server.aget("/leftovers/")
    return left


def sockets(server: Server) -> int:
    """Return how many WebSockets the server itself still holds."""
    objects = server.get("/leftovers/")["objects"]
    return int(objects["WebSocketProtocol"] + objects["WebSocketsSansIOProtocol"])


# The matrix


@pytest.mark.parametrize("code", CODES)
async def test_code_and_reason_arrive(server: Server, client: Client, code: int) -> None:
    await close(server, code, reason=REASON)
    assert await client.closed() == (code, REASON)


@pytest.mark.parametrize("code", [1000, 1001, 1008, 3000, 4999])
async def test_longest_reason_arrives(server: Server, client: Client, code: int) -> None:
    await close(server, code, reason=LONGEST)
    assert await client.closed() == (code, LONGEST)


@pytest.mark.parametrize("code", [1000, 1001, 1013, 4000])
async def test_empty_reason_arrives(server: Server, client: Client, code: int) -> None:
    await close(server, code)
    assert await client.closed() == (code, "")


async def test_default_is_1001_closed_by_operator(server: Server, client: Client) -> None:
    await client.subscribe("news")
    await server.aget("/close_twice/?topic=news")
    assert await client.closed() == (1001, "closed by operator")


async def test_close_frame_holds_the_code_the_reason_and_nothing_else(server: Server) -> None:
    async with Raw(server.port) as client:
        await client.open()
        await close(server, 4000, reason=REASON)
        assert await client.frame() == (raw.CLOSE, (4000).to_bytes(2) + REASON.encode())


async def test_1006_drops_the_connection_without_a_close_frame(server: Server) -> None:
    async with Raw(server.port) as client:
        await client.open()
        await close(server, 1006, reason="only for the log")
        assert await client.closed() == (1006, "")


async def test_interrupted_client_of_a_library_sees_1006(server: Server, client: Client) -> None:
    await close(server, 1006)
    assert await client.closed() == (1006, "")


@pytest.mark.parametrize("code", [0, -1, 999, 1004, 1005, 1015, 1016, 1100, 2000, 2999, 5000, 65536, 10**30])
async def test_illegal_code_is_refused_before_anything_is_sent(server: Server, client: Client, code: int) -> None:
    with pytest.raises(urllib.error.HTTPError, match="500"):
        await close(server, code)
    await client.echo()


async def test_reason_too_long_is_refused_before_anything_is_sent(server: Server, client: Client) -> None:
    with pytest.raises(urllib.error.HTTPError, match="500"):
        await close(server, 1000, reason=LONGEST + "x")
    await client.echo()


# What comes of it


async def test_outcome_counts_servers_and_connections(server: Server) -> None:
    async with Client(server.url) as one, Client(server.url) as two:
        assert await close(server, 1000) == {"servers": 1, "connections": 2, "unknown": 0}
        assert await one.closed() == await two.closed() == (1000, "")


async def test_outcome_counts_nobody_when_nobody_is_there(server: Server) -> None:
    await eventually(lambda: server.get("/census/")["connections"] == 0)
    assert await close(server, 1000) == {"servers": 1, "connections": 0, "unknown": 0}


async def test_close_by_topic_closes_only_its_subscribers(server: Server, client: Client) -> None:
    async with Client(server.url) as subscriber, Client(server.url) as other, Client(server.url) as former:
        await subscriber.subscribe("news")
        await other.subscribe("many-1")
        await former.subscribe("news")
        await former.ask({"type": "unsubscribe_request", "topic": "news"})
        assert (await close(server, 4001, topic="news"))["connections"] == 1
        assert await subscriber.closed() == (4001, "")
        for living in (client, other, former):
            await living.echo()


@pytest.mark.parametrize("topic", ["nope", "", "many-1"])
async def test_close_by_a_topic_that_nobody_subscribes_to_closes_nobody(
    server: Server, client: Client, topic: str
) -> None:
    assert await close(server, 4001, topic=topic) == {"servers": 1, "connections": 0, "unknown": 0}
    await client.echo()


async def test_connection_is_closed_once(server: Server) -> None:
    async with Raw(server.port) as client:
        await client.open()
        await client.send_json({"type": "subscribe_request", "topic": "news"})
        await client.frame()
        outcomes = (await server.aget("/close_twice/?topic=news"))["outcomes"]
        assert [outcome["connections"] for outcome in outcomes] == [1, 0]
        assert (await client.frame())[0] == raw.CLOSE
        await client.send(raw.frame(raw.CLOSE, (1001).to_bytes(2)))
        await client.ended()


async def test_what_was_published_before_a_close_arrives_before_it(server: Server) -> None:
    async with Client(server.url, max_queue=None) as client:
        await client.subscribe("news")
        await server.aget("/apublish/?count=300")
        await close(server, 4000, reason="after all that")
        numbers = [(await client.receive())["data"]["number"] for _ in range(300)]
        assert numbers == list(range(300))
        assert await client.closed() == (4000, "after all that")


async def test_nothing_follows_a_close_frame(server: Server) -> None:
    async with Raw(server.port) as client:
        await client.open()
        await client.send_json({"type": "subscribe_request", "topic": "news"})
        await client.frame()
        await close(server, 4000)
        await server.aget("/apublish/?count=10")
        await client.send_json({"type": "echo_request", "echo": "too late"})
        assert (await client.frame())[0] == raw.CLOSE
        await client.send(raw.frame(raw.CLOSE, (4000).to_bytes(2)))
        with pytest.raises((EOFError, ConnectionResetError)):
            await client.frame()


async def test_close_reaches_a_client_whose_request_hangs(server: Server, client: Client) -> None:
    await client.send({"type": "subscribe_request", "topic": "hanging"})
    await close(server, 4000, reason="enough")
    assert await client.closed() == (4000, "enough")


async def test_subscription_that_is_granted_after_a_close_leaves_nothing_behind(server: Server) -> None:
    async with Client(server.url) as client:
        await client.send({"type": "subscribe_request", "topic": "hanging"})
        await client.send({"type": "subscribe_request", "topic": "news"})
        await close(server, 4000)
        await client.closed()
    await eventually(lambda: server.get("/census/")["connections"] == 0)
    assert (await leftovers(server))["groups"] == 0


@pytest.mark.parametrize("code", [1000, 1006])
async def test_two_hundred_connections_are_closed_alike(server: Server, code: int) -> None:
    async with asyncio.TaskGroup() as group:
        clients = [Client(server.url) for _ in range(200)]
        for client in clients:
            group.create_task(client.__aenter__())
    assert (await close(server, code))["connections"] == 200
    assert {await client.closed() for client in clients} == {(code, "")}


# Clients that do not read


async def stalled(server: Server, client: Raw, topic: str = "news", *, after: bytes = b"") -> None:
    """Make ``client`` one that does not read, and that the server holds several MiB for."""
    await client.open()
    await client.send_json({"type": "subscribe_request", "topic": topic})
    await client.frame()
    await server.aget(f"/publish_text/?topic={topic}&size={1 << 19}&count=24")
    await client.send(after)


async def test_client_that_does_not_read_delays_no_publication(server: Server) -> None:
    async with Raw(server.port, receive_buffer=4096) as slow, Client(server.url) as client:
        await stalled(server, slow, "many-1")
        await client.subscribe("many-1")
        async with asyncio.timeout(2):
            await server.aget("/apublish/?topic=many-1&count=100")
            numbers: list[int] = []
            while len(numbers) < 100:  # what was published before may still be on its way
                data = (await client.receive())["data"]
                numbers += [data["number"]] if "number" in data else []
            assert numbers == list(range(100))


@pytest.mark.parametrize("code", [4000, 1006])
async def test_client_that_does_not_read_delays_no_close(server: Server, code: int) -> None:
    async with Raw(server.port, receive_buffer=4096) as slow, Client(server.url) as client:
        await stalled(server, slow)
        async with asyncio.timeout(2):
            assert (await close(server, code))["connections"] == 2
            assert await client.closed() == (code, "")


async def test_client_that_does_not_read_is_gone_at_once_when_interrupted(server: Server) -> None:
    async with Raw(server.port, receive_buffer=4096) as slow:
        await stalled(server, slow, "many-1")
        await close(server, 1006, topic="many-1")
        async with asyncio.timeout(5):
            await eventually(lambda: server.get("/census/")["connections"] == 0)


async def test_client_that_never_answers_a_close_is_freed_whether_it_reads_or_not(server: Server) -> None:
    await eventually(lambda: sockets(server) == 0)
    start = await server.mark()
    async with Raw(server.port, receive_buffer=4096) as slow, Raw(server.port) as silent:
        await stalled(server, slow)
        await silent.open()
        await close(server, 4000)
        assert await silent.closed() == (4000, "")
        await eventually(lambda: server.get("/census/")["connections"] == 0)
        await eventually(lambda: sockets(server) == 0)
    await server.assert_calm(start)


async def test_client_that_answers_a_close_late_is_not_reset_meanwhile(server: Server) -> None:
    async with Raw(server.port) as client:
        await client.open()
        await close(server, 4500, reason="late")
        assert await client.closed() == (4500, "late")
        with pytest.raises(TimeoutError):  # nothing more comes: neither a frame nor the end
            await asyncio.wait_for(client.frame(), 1.5)
        await client.send(raw.frame(raw.CLOSE, (4500).to_bytes(2)))
        await client.ended()


async def test_client_that_does_not_read_but_says_goodbye_is_freed(server: Server) -> None:
    await eventually(lambda: sockets(server) == 0)
    async with Raw(server.port, receive_buffer=4096) as slow:
        await stalled(server, slow, after=raw.frame(raw.CLOSE, (1000).to_bytes(2)))
        await eventually(lambda: server.get("/census/")["connections"] == 0)
        await eventually(lambda: sockets(server) == 0)


async def test_client_that_does_not_read_and_answers_no_ping_is_freed(kind: str) -> None:
    options = {
        "daphne": ["--ping-interval", "1", "--ping-timeout", "1"],
        "uvicorn": ["--ws-ping-interval", "0.5", "--ws-ping-timeout", "0.5"],
    }[kind]
    with running(kind, *options) as server:
        async with Raw(server.port, receive_buffer=4096) as slow:
            await stalled(server, slow)
            await eventually(lambda: server.get("/census/")["connections"] == 0)
            await eventually(lambda: sockets(server) == 0)


# Compression


async def test_uvicorn_compresses_for_a_client_that_offers_it(server: Server) -> None:
    async with Client(server.url) as client:
        names = [extension.name for extension in client.ws.protocol.extensions]
        assert names == (["permessage-deflate"] if server.kind == "uvicorn" else [])


@pytest.mark.parametrize("compression", ["deflate", None])
async def test_everything_works_with_and_without_compression(server: Server, compression: str | None) -> None:
    async with Client(server.url, compression=compression) as client:
        for number in range(20):
            await client.echo("again and again " * number)
        await client.subscribe("news")
        await server.aget("/apublish/?count=3")
        assert [(await client.receive())["data"]["number"] for _ in range(3)] == [0, 1, 2]
        await client.send(json.dumps({"type": "echo_request", "echo": "x"}).encode())
        assert (await client.receive())["data"] == {"echo": "x"}
        await close(server, 4000, reason=REASON)
        assert await client.closed() == (4000, REASON)


# Behind middlewares


async def test_protocol_works_behind_a_middleware(site: Server) -> None:
    async with Client(site.url) as client:
        await client.echo()
        await client.subscribe("heartbeat")
        assert (await client.receive())["type"] == "heartbeat"
        await client.ask({"type": "unsubscribe_request", "topic": "heartbeat"})


async def test_wire_behind_a_middleware_is_the_servers_own_only_where_nobody_looks(site: Server) -> None:
    async with Client(site.url) as client:
        await client.subscribe("many-1")
        kind = (await site.aget("/wire/?topic=many-1&action=look"))["kind"]
        name = site.command[-1].partition(":")[2]
        assert kind == ("WrappedWire" if name == "wrapped" else f"{site.kind.capitalize()}Wire")


async def test_burst_arrives_whole_and_in_order_behind_a_middleware(site: Server) -> None:
    async with Client(site.url) as client:
        await client.subscribe("news")
        await site.aget("/apublish/?count=1000")
        assert [(await client.receive())["data"]["number"] for _ in range(1000)] == list(range(1000))


async def test_publication_bigger_than_any_limit_on_what_clients_send_arrives_behind_a_middleware(
    site: Server,
) -> None:
    async with Client(site.url, max_size=None) as client:
        await client.subscribe("news")
        await site.aget(f"/publish_text/?size={2 << 20}")
        assert (await client.receive())["data"] == {"text": "x" * (2 << 20)}
        await client.echo()


@pytest.mark.parametrize("code", [1000, 1001, 1008, 1011, 3000, 4999])
async def test_code_and_reason_arrive_behind_a_middleware(site: Server, code: int) -> None:
    async with Client(site.url) as client:
        await client.echo()
        await close(site, code, reason=REASON)
        assert await client.closed() == (code, REASON)


async def test_interrupt_behind_a_middleware_ends_the_connection(site: Server) -> None:
    async with Client(site.url) as client:
        await client.echo()
        await close(site, 1006)
        assert await client.closed() == (1006, "")


async def test_client_that_does_not_read_delays_nobody_behind_a_middleware(site: Server) -> None:
    async with Raw(site.port, receive_buffer=4096) as slow, Client(site.url) as client:
        await stalled(site, slow)
        async with asyncio.timeout(2):
            await client.echo()
            assert (await close(site, 4000))["connections"] == 2
            assert await client.closed() == (4000, "")
    await eventually(lambda: site.get("/census/")["connections"] == 0)


async def test_client_that_vanishes_behind_a_middleware_leaves_no_traceback(site: Server) -> None:
    start = await site.mark()
    async with Raw(site.port) as client:
        await client.open()
        await client.send_json({"type": "subscribe_request", "topic": "news"})
        await client.frame()
        client.abort()
        await site.aget("/apublish/?count=100")
    await eventually(lambda: site.get("/census/")["connections"] == 0)
    await eventually(lambda: sockets(site) == 0)
    await site.assert_calm(start)
