"""Memberships and messages that expire, which they do after a day where it counts, and after seconds here."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from .live import SERVERS, Client, Server, System, running_system

EXPIRY = 2
"""Seconds after which a membership ends that was not renewed, and a message that nobody took."""
PERIODS = 4
"""How many times over they are to expire."""
INTERVAL = 0.5
"""Seconds between heartbeats."""
RESUME = 5.0
"""Seconds after which a process that was held up hears again."""


@pytest.fixture(scope="module")
def shared() -> Iterator[System]:
    """Both servers on the in-memory layer, each by itself, and both on the core layer with one broadcaster."""
    layer = {"TEST_LAYER_CONFIG": json.dumps({"expiry": EXPIRY, "group_expiry": EXPIRY})}
    env = {**layer, "REALTIME_HEARTBEAT_INTERVAL": str(INTERVAL)}
    layers = ({"REDIS_URL": ""}, {"TEST_CHANNEL_LAYER": "core"})
    with running_system(*((kind, env | layer) for layer in layers for kind in SERVERS), heartbeats=False) as system:
        system.broadcast("--interval", str(INTERVAL), **env, TEST_CHANNEL_LAYER="core")
        yield system


@pytest.fixture
def system(shared: System) -> Iterator[System]:
    with shared.told():
        yield shared


async def publish(server: Server, topic: str, number: int) -> None:
    await server.aget(f"/publish_number/?topic={topic}&number={number}&size=0")


def published(number: int) -> dict[str, Any]:
    return {"number": number, "text": ""}


async def until_echo(client: Client) -> list[Any]:
    """Return what comes before the echo of a request that is sent now."""
    await client.send({"type": "echo_request", "echo": ""})
    got = [await client.receive()]
    while got[-1]["type"] != "echo_response":
        got.append(await client.receive())
    return got[:-1]


def assert_gaps_are_told(last: int, messages: list[Any]) -> None:
    """Assert that these are publications of the numbers after ``last``, in order, and a gap where some are missing."""
    gaps = 0
    for message in messages:
        if message["type"] == "gap":
            gaps += 1
            continue
        number = message["data"]["number"]
        assert number > last
        assert gaps == (number > last + 1), messages
        last, gaps = number, 0


async def test_nobody_goes_deaf_while_memberships_expire_again_and_again(system: System) -> None:
    async def listen(server: Server, busy_topic: str, idle_topic: str) -> int:
        """Return how many beats came in that time, after each of which something was published."""
        async with Client(server.url) as beating, Client(server.url) as busy, Client(server.url) as idle:
            await beating.subscribe("heartbeat")
            await busy.subscribe(busy_topic)
            await idle.subscribe(idle_topic)
            begin = beat = await beating.beat(await beating.beat())
            count = 0
            while beat < begin + PERIODS * EXPIRY:
                beat = await beating.beat()
                await publish(server, busy_topic, count)
                assert await busy.publications(1) == [published(count)]
                count += 1
            await publish(server, idle_topic, count)
            assert await idle.publications(1) == [published(count)]
            await busy.echo()
            return count

    topics = [(f"numbers.{number}", f"many-{number}") for number in range(len(system.servers))]
    counts = await asyncio.gather(*map(listen, system.servers, *zip(*topics, strict=True)))
    assert min(counts) >= PERIODS * EXPIRY / INTERVAL - 2, counts


async def test_process_that_was_held_up_for_longer_hears_again(system: System) -> None:
    async def hold_up(server: Server, publisher: Server, topic: str) -> None:
        async with Client(server.url) as client:
            await client.subscribe(topic)
            await publish(publisher, topic, 0)
            assert await client.publications(1) == [published(0)]
            last = 0
            server.signal(signal.SIGSTOP)
            try:
                await asyncio.sleep(2 * EXPIRY)  # it is the time itself that does it
                if publisher is not server:
                    last += 1
                    await publish(publisher, topic, last)
            finally:
                server.signal(signal.SIGCONT)
            got: list[Any] = []
            async with asyncio.timeout(RESUME):
                while not any(message["type"] == "publication" for message in got):
                    last += 1
                    await publish(publisher, topic, last)
                    got += await until_echo(client)
            last += 1
            await publish(publisher, topic, last)
            while got[-1].get("data") != published(last):
                got.append(await client.receive())
            assert_gaps_are_told(0, got)

    pairs = [(server, server) for server in system.servers[:2]] + [(system.servers[2], system.servers[3])]
    await asyncio.gather(*(hold_up(*pair, f"numbers.held-up-{number}") for number, pair in enumerate(pairs)))
