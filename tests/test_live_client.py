"""The Python client against real servers."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from realtime.client import Client, ConnectionEnded, ConnectionLost, RequestFailed, State, Subscription
from realtime.protocol import Heartbeat

from . import live
from .live import TIMEOUT, Server, eventually, running

BACKOFF = (0.05, 0.2)


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    """Assert that a test leaves no task behind."""
    before = asyncio.all_tasks()
    yield
    assert asyncio.all_tasks() - before <= {asyncio.current_task()}


@asynccontextmanager
async def connected(server: Server, **options: Any) -> AsyncIterator[Client]:
    """Connect a client of the test's own."""
    async with Client(server.url, **{"proxy": None, "backoff": BACKOFF, "timeout": TIMEOUT, **options}) as client:
        await soon(client.connected())
        yield client


@pytest.fixture
async def client(no_task_is_left: None, server: Server) -> AsyncIterator[Client]:
    async with connected(server) as client:
        yield client


async def soon(awaitable: Any) -> Any:
    async with asyncio.timeout(TIMEOUT):
        return await awaitable


async def numbers(events: Subscription, count: int) -> list[int]:
    """Return the numbers of the next so many publications."""
    return [(await soon(anext(events))).data["number"] for _ in range(count)]


async def insist(client: Client) -> str:
    """Return an echo, whatever becomes of the connection meanwhile."""
    while True:
        try:
            return await client.echo("are you there?")
        except ConnectionLost:
            pass


async def exhaust(events: Subscription) -> None:
    async for _ in events:
        pass


async def close(server: Server, code: int, reason: str = "", topic: str = "") -> None:
    """Close the connections that subscribe to a topic, as an operator would."""
    query = f"code={code}&reason={reason}" + (f"&topic={topic}" if topic else "")
    assert (await server.aget(f"/close/?{query}"))["connections"] == 1


async def published_anew(server: Server, events: Subscription) -> None:
    """Assert that the topic's publications arrive: on a new connection, once the server knows of it again."""
    waiting = asyncio.create_task(anext(events))
    while not waiting.done():  # what is published before that is lost
        await server.aget("/publish/?topic=news")
        await asyncio.wait({waiting}, timeout=0.1)
    assert waiting.result().topic == "news"


async def test_echo(client: Client) -> None:
    text = 'quote " backslash \\ nul \0 newline \n ☂ 𝄞 \u2028 </script>'
    assert await client.echo(text) == text


async def test_many_requests_at_once(client: Client) -> None:
    texts = [str(number) for number in range(500)]
    assert await asyncio.gather(*map(client.echo, texts)) == texts


async def test_error_that_the_client_asks_for(client: Client) -> None:
    with pytest.raises(RequestFailed) as caught:
        await client.request("echo_request", echo="x", err=True)
    assert (caught.value.code, caught.value.message) == ("ASKED_BY_CLIENT", "client asked for it")


async def test_malformed_request_is_refused(client: Client) -> None:
    with pytest.raises(RequestFailed, match="BAD_REQUEST: field 'echo'"):
        await client.request("echo_request", echo=42)


async def test_unknown_request_is_refused_and_others_are_answered(client: Client) -> None:
    before = asyncio.create_task(client.echo("before"))
    unknown = asyncio.create_task(client.request("fireworks_request"))
    assert await client.echo("after") == "after"
    assert await before == "before"
    with pytest.raises(RequestFailed, match="UNKNOWN_MESSAGE_TYPE"):
        await unknown


async def test_publications_arrive(server: Server, client: Client) -> None:
    async with client.subscribe("news") as events:
        publishing = asyncio.create_task(server.aget("/publish/?topic=news&count=500"))
        assert await numbers(events, 500) == list(range(500))
        await publishing


async def test_subscriptions_share_one_on_the_wire(server: Server, client: Client) -> None:
    async with client.subscribe("news") as one:
        async with client.subscribe("news") as two:
            await server.aget("/publish/?topic=news&count=3")
            assert await numbers(one, 3) == await numbers(two, 3) == [0, 1, 2]
        await server.aget("/publish/?topic=news&count=3")
        assert await numbers(one, 3) == [0, 1, 2]


async def test_heartbeats_arrive(client: Client) -> None:
    async with client.subscribe("heartbeat") as events:
        beats = [await soon(anext(events)) for _ in range(3)]
    assert all(isinstance(beat, Heartbeat) for beat in beats)


async def test_leaving_unsubscribes(server: Server, client: Client) -> None:
    for _ in range(20):
        async with client.subscribe("news"):
            pass
    await client.echo("so that all was handled")
    assert (await server.aget("/leftovers/"))["groups"] == 0


@pytest.mark.parametrize(
    ("topic", "code"), [("forbidden", "FORBIDDEN"), ("members", "FORBIDDEN"), ("nothing", "TOPIC_NOT_FOUND")]
)
async def test_refused_subscription_raises_with_the_code(client: Client, topic: str, code: str) -> None:
    with pytest.raises(RequestFailed) as caught:
        async with client.subscribe(topic):
            pass
    assert caught.value.code == code


async def test_topic_whose_authorization_fails_raises_and_leaves_the_connection(client: Client) -> None:
    with pytest.raises(RequestFailed, match="INTERNAL_ERROR"):
        async with client.subscribe("raising"):
            pass
    assert await client.echo("x") == "x"


# Tokens


@pytest.mark.parametrize("token", ["good-client", lambda: "good-client"], ids=["text", "function"])
async def test_token_opens_a_members_topic(server: Server, token: Any) -> None:
    async with connected(server, token=token) as client, client.subscribe("members") as events:
        await server.aget("/publish/?topic=members")
        assert await numbers(events, 1) == [0]


async def test_refused_token_ends_it(server: Server) -> None:
    async with connected(server, token="bad") as client:
        with pytest.raises(ConnectionEnded) as caught:
            await soon(client.echo("x"))
        assert (caught.value.code, caught.value.reason) == (1008, "token refused")


# Closes


async def test_service_restart_brings_it_back(server: Server, client: Client) -> None:
    async with client.subscribe("news") as events:
        await close(server, 1012, "deploy", topic="news")
        await published_anew(server, events)


async def test_interrupt_brings_it_back(server: Server, client: Client) -> None:
    async with client.subscribe("news") as events:
        await close(server, 1006, topic="news")
        await published_anew(server, events)


async def test_terminal_close_ends_every_subscription(server: Server, client: Client) -> None:
    async with client.subscribe("news") as news, client.subscribe("heartbeat") as beats:
        await close(server, 4500, "banned", topic="news")
        for events in (news, beats):
            with pytest.raises(ConnectionEnded) as caught:
                await soon(exhaust(events))
            assert (caught.value.code, caught.value.reason) == (4500, "banned")
    assert client.state == State.CLOSED


async def test_close_fails_a_request_that_waits(kind: str) -> None:
    with running(kind, REALTIME_HANDLER_TIMEOUT="10") as server:
        async with connected(server) as client, client.subscribe("news"):
            hanging = asyncio.create_task(client.subscribe("hanging").__aenter__())
            asking = asyncio.create_task(client.echo("behind that which hangs"))
            await close(server, 1012, "deploy", topic="news")
            with pytest.raises(ConnectionLost, match="1012 deploy"):
                await soon(asking)
            hanging.cancel()


async def test_leaving_is_a_normal_close(server: Server) -> None:
    start = await server.mark()
    async with connected(server):
        pass
    await asyncio.to_thread(server.wait_for_line, "event=disconnected .* code=1000 ", start=start)


async def test_client_leaves_nothing_on_the_server(server: Server) -> None:
    async with connected(server) as client, client.subscribe("news"):
        pass

    def nothing() -> bool:
        left = server.get("/leftovers/")
        return left["connections"] == left["groups"] == 0

    await eventually(nothing)


# Restarts


async def test_client_survives_a_restart_on_the_same_port(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(kind) as first:
        async with connected(first) as client, client.subscribe("news") as events:
            await asyncio.to_thread(first.stop)
            waiting = asyncio.create_task(client.echo("asked while there is no server"))
            monkeypatch.setattr(live, "free_port", lambda: first.port)
            with running(kind) as second:
                assert await soon(waiting) == "asked while there is no server"
                await published_anew(second, events)
                await client.close()


async def test_client_may_start_before_its_server(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = live.free_port()
    monkeypatch.setattr(live, "free_port", lambda: port)
    async with Client(f"ws://127.0.0.1:{port}/", proxy=None, backoff=BACKOFF, timeout=TIMEOUT) as client:
        connecting = asyncio.create_task(client.connected())
        with running(kind) as server:
            await soon(connecting)
            async with client.subscribe("news") as events:
                await server.aget("/publish/?topic=news")
                assert await numbers(events, 1) == [0]
            await client.close()


async def test_frozen_server_is_noticed(kind: str) -> None:
    with running(kind) as server:
        async with connected(server, idle_timeout=0.2, echo_timeout=0.5) as client:
            server.signal(signal.SIGSTOP)
            with pytest.raises(ConnectionLost, match="1006 the server is silent"):
                await soon(client.echo("x"))
            server.signal(signal.SIGCONT)
            assert await soon(insist(client)) == "are you there?"
