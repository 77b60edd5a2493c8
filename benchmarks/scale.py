"""The scenarios ``scale`` and ``subscriptions``: what server processes, connections and topics cost on one Redis."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from statistics import mean
from typing import Any

from redis import Redis

from .connection import Connection, connect, ignore
from .dialects import ask, subscribe
from .processes import HOST, Server
from .scenarios import SETTLE, WARM_UP
from .sites import SITES, Place
from .workers import Spread

PROCESSES = (1, 2, 3, 4)
CONNECTIONS = 500
SECONDS = 5.0
TOPICS = (1_000, 10_000)
TOPICS_EACH = 100
"""Topics that one connection subscribes to; it may to 128."""
COLUMNS = {
    "server": (" server", ""),
    "processes": ("processes", "d"),
    "topics": ("topics", "d"),
    "connections": ("connections", "d"),
    "per_second": ("deliveries/s", ",.0f"),
    "server_cpu_us": ("server µs", ".2f"),
    "load_cpu_us": ("load µs", ".2f"),
    "p50_ms": (" p50 ms", ".1f"),
    "p99_ms": (" p99 ms", ".1f"),
    "process_mib": ("MiB/process", ".1f"),
    "connection_kib": ("KiB/connection", ".1f"),
    "redis_cpu_us": ("Redis µs", ".1f"),
    "redis_commands": ("commands", ".2f"),
    "redis_received": ("bytes in", ".0f"),
    "redis_sent": ("bytes out", ".0f"),
    "topic_kib": ("KiB/topic", ".2f"),
    "redis_bytes": ("Redis bytes/topic", ".0f"),
    "seconds": ("seconds", ".1f"),
}
"""The heading and the format of what stands in the tables."""


class Rig:
    """Be some server processes, in which all is loaded that the first client makes them load, and their Redis."""

    def __init__(self, servers: list[Server], redis: Server, client: Redis) -> None:
        self.servers = servers
        self._redis = redis
        self._client = client

    def memory(self) -> float:
        """Return how many KiB a server process takes, in the mean."""
        return mean(server.memory() for server in self.servers) / 1024

    def redis(self) -> dict[str, float]:
        """Return what Redis has done by now, and the memory that it takes."""
        info: Any = self._client.info("all")
        return {
            "redis_cpu_us": self._redis.cpu_seconds() * 1e6,
            "redis_commands": info["total_commands_processed"],
            "redis_received": info["total_net_input_bytes"],
            "redis_sent": info["total_net_output_bytes"],
            "redis_bytes": info["used_memory"],
        }


@asynccontextmanager
async def rig(server: str, processes: int, place: Place) -> AsyncIterator[Rig]:
    """Run so many processes of the server called ``server``."""
    assert place.redis is not None
    async with AsyncExitStack() as stack:
        client = stack.enter_context(Redis(HOST, place.redis.port))
        servers = [await stack.enter_async_context(place.serving(server)) for _ in range(processes)]
        for each in servers:
            await (await subscriber(each)).leave()
        yield Rig(servers, place.redis, client)


async def subscriber(server: Server) -> Connection:
    """Return a connection that subscribes to one topic."""
    connection = await connect(server, "/ws/", ignore)
    await ask(connection, subscribe("prices"))
    return connection


async def scale(server: str, processes: int, connections: int, seconds: float, place: Place) -> dict[str, Any]:
    """Publish to so many connections of each of so many processes. The figures of Redis are for one broadcast."""
    async with rig(server, processes, place) as here, place.serving(server) as publisher:
        empty = here.memory()
        with closing(Spread(here.servers, publisher, SITES["realtime"])) as load:
            await load.connect(processes * connections)
            await asyncio.sleep(SETTLE)
            full = here.memory()
            await load.run(min(WARM_UP, seconds))
            begin = here.redis()
            await asyncio.sleep(seconds)
            quiet = here.redis()
            sample = await load.run(seconds)
            end = here.redis()
    broadcasts = sample.units / (processes * connections)
    del end["redis_bytes"]
    figures = {
        **sample.figures(),
        "process_mib": full / 1024,
        "connection_kib": (full - empty) / connections,
        **{name: (end[name] - 2 * quiet[name] + begin[name]) / broadcasts for name in end},
    }
    return {
        "scenario": "scale",
        "server": server,
        "processes": processes,
        "connections": connections,
        "figures": figures,
    }


async def subscriptions(server: str, processes: int, count: int, place: Place) -> dict[str, Any]:
    """Subscribe to so many topics in each of so many processes. Redis' bytes are for one topic of one process."""
    async with rig(server, processes, place) as here:
        with closing(Spread(here.servers, here.servers[0], SITES["realtime"])) as load:
            await load.connect(processes * math.ceil(count / TOPICS_EACH))
            *connections, _ = load.connections  # the last one is the publisher's
            await asyncio.sleep(SETTLE)
            memory, redis, began = here.memory(), here.redis(), time.perf_counter()
            firsts = (number // processes * TOPICS_EACH for number in range(len(connections)))
            shares = (range(first, min(first + TOPICS_EACH, count)) for first in firsts)
            await asyncio.gather(*map(join, connections, shares))
            seconds = time.perf_counter() - began
            await asyncio.sleep(SETTLE)
            figures = {
                "topic_kib": (here.memory() - memory) / count,
                "redis_bytes": (here.redis()["redis_bytes"] - redis["redis_bytes"]) / count / processes,
                "seconds": seconds,
            }
    return {"scenario": "subscriptions", "server": server, "processes": processes, "topics": count, "figures": figures}


async def join(connection: Connection, numbers: Iterable[int]) -> None:
    """Subscribe to the items with these numbers, one after the other."""
    for number in numbers:
        await ask(connection, subscribe(f"items.{number}"))


def table(result: dict[str, Any], *, heading: bool) -> Iterator[str]:
    """Yield a result's line, and the heading above it."""
    values = {**result, **result["figures"]}
    columns = [(title, f"{values[name]:{form}}") for name, (title, form) in COLUMNS.items() if name in values]
    if heading:
        yield "  ".join(title for title, _ in columns)
    yield "  ".join(f"{value:>{len(title)}}" for title, value in columns)
