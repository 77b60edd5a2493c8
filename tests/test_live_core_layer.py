"""The core Redis layer, which queues in Redis: as the checks advise to configure it, and as most sites have it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from .live import SERVERS, Client, System, eventually, running_system
from .test_live_redis import slot, wait

LAYERS = ("core", "core-defaults")
RESUME = 12.0
"""Seconds after which everything is as before an outage, at the latest."""


@pytest.fixture(scope="module")
def shared() -> Iterator[System]:
    """Both servers with both configurations, all on one Redis."""
    servers = [(kind, {"TEST_CHANNEL_LAYER": layer}) for kind in SERVERS for layer in LAYERS]
    with running_system(*servers, heartbeats=False) as system:
        system.env["TEST_CHANNEL_LAYER"] = "core"
        yield system


@pytest.fixture
def system(shared: System) -> Iterator[System]:
    with shared.told():
        yield shared


@asynccontextmanager
async def clients(system: System, topic: str) -> AsyncIterator[list[Client]]:
    """Connect a subscriber of ``topic`` to each server."""
    async with AsyncExitStack() as stack:
        connected = [await stack.enter_async_context(Client(server.url)) for server in system.servers]
        for client in connected:
            await client.subscribe(topic)
        yield connected


async def test_beat_is_the_same_on_every_server(system: System) -> None:
    async with clients(system, "heartbeat") as connected:
        begin = max([await client.beat() for client in connected])
        beats = system.manage("run_heartbeats", "--count", "3")
        assert await wait(beats) == 0
        seen = [[await client.beat(begin) for _ in range(3)] for client in connected]
        assert seen == [seen[0]] * 4
        assert len(set(map(slot, seen[0]))) == 3


@pytest.mark.parametrize("page", ["/publish/", "/apublish/"])
async def test_publications_reach_every_server_in_order(system: System, page: str) -> None:
    async with clients(system, "news") as connected:
        for server in system.servers:
            assert await server.aget(f"{page}?count=50") == {"published": 50}
            for client in connected:
                assert await client.publications(50) == [{"number": number} for number in range(50)]
        for client in connected:
            await client.echo()


async def test_burst_arrives_whole_and_in_order_where_the_capacity_allows_it(system: System) -> None:
    first = system.servers[0]
    async with Client(first.url) as client, Client(system.servers[2].url) as other:
        await client.subscribe("many-1")
        await other.subscribe("many-1")
        assert await first.aget("/apublish/?topic=many-1&count=2000") == {"published": 2000}
        expected = [{"number": number} for number in range(2000)]
        assert await client.publications(2000) == expected
        assert await other.publications(2000) == expected


async def test_publication_right_after_the_subscribe_response_arrives(system: System) -> None:
    publisher = system.servers[0]
    async with AsyncExitStack() as stack:
        connected = [await stack.enter_async_context(Client(server.url)) for server in system.servers]
        for number in range(20, 60):
            client = connected[number % 4]
            await client.subscribe(f"many-{number}")
            await publisher.aget(f"/apublish/?topic=many-{number}")
            assert await client.publications(1) == [{"number": 0}]


async def test_nothing_arrives_after_the_unsubscribe_response(system: System) -> None:
    async with clients(system, "news") as connected:
        for client in connected:
            answer = await client.ask({"type": "unsubscribe_request", "topic": "news"})
            assert answer["status"] == "OK"
        await system.servers[1].aget("/publish/?count=3")
        for client in connected:
            await client.echo()


async def test_close_connections_closes_clients_of_every_server(system: System) -> None:
    async with clients(system, "news") as connected:
        command = system.manage("close_connections", "--code", "4009", "--reason", "bye", "--topic", "news")
        assert [await client.closed() for client in connected] == [(4009, "bye")] * 4
        assert await wait(command) == 0
        assert "Closed 4 connections on 4 servers." in command.output


@pytest.mark.parametrize("page", ["/close/", "/close-sync/"])
@pytest.mark.parametrize("number", [1, 2])
async def test_close_from_a_page_closes_clients_of_every_server(system: System, page: str, number: int) -> None:
    async with clients(system, "news") as connected:
        outcome = await system.servers[number].aget(f"{page}?code=4010")
        assert outcome == {"servers": 4, "connections": 4, "unknown": 0}
        assert {(await client.closed())[0] for client in connected} == {4010}
    async with clients(system, "news") as connected:
        await system.servers[number].aget("/publish/")
        for client in connected:
            assert await client.publications(1) == [{"number": 0}]


async def test_connections_survive_that_nothing_is_published_for_a_while(system: System) -> None:
    # The layer asks Redis anew every 5 s, which is also how long redis-py waits by default.
    async with clients(system, "heartbeat") as connected:
        begin = max([await client.beat() for client in connected])
        slot = time.time() + 7  # the first multiple of itself, and so the first slot, is this moment
        beats = system.manage("run_heartbeats", "--interval", str(slot), "--count", "1")
        assert min([await client.beat(begin) for client in connected]) >= slot
        assert await wait(beats) == 0


@pytest.mark.parametrize("outage", ["killed", "frozen", "cut off"])
async def test_publications_and_closes_resume_after_an_outage(system: System, outage: str) -> None:
    async with clients(system, "news") as connected:
        if outage == "killed":
            system.redis.kill()
        elif outage == "frozen":
            system.redis.freeze()
        else:
            await asyncio.to_thread(system.redis.ask, "CLIENT KILL", "TYPE", "normal")
        for client in connected:
            await client.echo()
            began = time.monotonic()
            await client.subscribe("many-2")
            assert time.monotonic() - began < 4
        if outage == "killed":
            system.redis.start()
        elif outage == "frozen":
            system.redis.thaw()

        async def arrives(client: Client) -> None:
            while (await client.receive())["topic"] != "many-2":
                pass

        async def publish() -> None:
            script = "import django; django.setup(); from realtime import publish; import time\n"
            await wait(system.script(script + "while True: publish('many-2', 1); time.sleep(0.2)"))

        def members() -> list[int]:
            return [system.redis.ask("ZCARD", key) for key in system.redis.ask("KEYS", "asgi:group:realtime.topic*")]

        await eventually(lambda: members() == [4, 4], RESUME)
        async with asyncio.timeout(RESUME):
            publishing = asyncio.create_task(publish())
            await asyncio.gather(*map(arrives, connected))
            system.commands[-1].signal(15)
            await publishing
        outcome = await system.servers[0].aget("/close/?code=4011")
        assert (outcome["servers"], outcome["connections"]) == (4, 4)
        assert {(await client.closed())[0] for client in connected} == {4011}
