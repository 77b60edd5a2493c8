"""Two hosts, one of which loses its way to Redis: packets vanish, nobody is told, and clients notice nothing of it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from urllib.error import HTTPError

import pytest

from .live import SERVERS, Client, Redis, Server, System, eventually
from .test_live_outages import AT_ONCE, timed_subscribe

RESUME = 5.0
"""Seconds after which publications arrive again once packets do."""
NOTICE = 5.0
"""Seconds in which a server says that the layer is in trouble."""


def ip(*arguments: str) -> None:
    """Run ``ip``. Raises ``CalledProcessError`` with what it says."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20)


class Network:
    """Be another host, and the two wires to it: one that Redis is reached by, and one for clients."""

    def __init__(self) -> None:
        tag = secrets.token_hex(3)
        self.name = f"rt{tag}"
        self.wires = {"redis": f"rt{tag}r", "clients": f"rt{tag}c"}
        numbers = random.sample(range(1 << 14), 2)
        self._subnets = {
            wire: f"10.{random.randint(64, 250)}.{number >> 6}.{(number & 63) << 2}"
            for wire, number in zip(self.wires, numbers, strict=True)
        }

    def address(self, wire: str, host: int) -> str:
        """Return the address of this host (1) or of the other (2) on a wire."""
        start, _, last = self._subnets[wire].rpartition(".")
        return f"{start}.{int(last) + host}"

    def make(self) -> None:
        ip("netns", "add", self.name)
        ip("-n", self.name, "link", "set", "lo", "up")
        for wire, device in self.wires.items():
            ip("link", "add", device, "type", "veth", "peer", "name", wire, "netns", self.name)
            ip("address", "add", f"{self.address(wire, 1)}/30", "dev", device)
            ip("-n", self.name, "address", "add", f"{self.address(wire, 2)}/30", "dev", wire)
            ip("link", "set", device, "up")
            ip("-n", self.name, "link", "set", wire, "up")
            # While the wire is cut nothing meant for it may leave by another.
            ip("route", "add", "blackhole", f"{self._subnets[wire]}/30", "metric", "1000")

    def cut(self, wire: str) -> None:
        ip("link", "set", self.wires[wire], "down")

    def mend(self, wire: str) -> None:
        ip("link", "set", self.wires[wire], "up")

    def destroy(self) -> None:
        for wire, device in self.wires.items():
            for command in (
                ["link", "delete", device],
                ["route", "delete", "blackhole", f"{self._subnets[wire]}/30", "metric", "1000"],
            ):
                with suppress(subprocess.CalledProcessError):
                    ip(*command)
        with suppress(subprocess.CalledProcessError):
            ip("netns", "delete", self.name)


class FarServer(Server):
    """Run a server on the other host."""

    def __init__(self, network: Network, kind: str, **env: str) -> None:
        self.host = network.address("clients", 2)
        self.prefix = ("ip", "netns", "exec", network.name)
        super().__init__(kind, ALLOWED_HOSTS=self.host, **env)


@pytest.fixture
def network() -> Iterator[Network]:
    """Another host."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("only root, who has the ip command, can make network namespaces")
    network = Network()
    try:
        try:
            network.make()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
        yield network
    finally:
        network.destroy()


@pytest.fixture
def system(network: Network, kind: str, tmp_path: Path) -> Iterator[System]:
    """A server on this host beside Redis, and one of the other kind on the other host."""
    [near] = set(SERVERS) - {kind}
    redis = Redis("--bind", "127.0.0.1", network.address("redis", 1), "--protected-mode", "no")
    system = System(redis)
    system.env["DATABASE_URL"] = f"sqlite:///{tmp_path / 'site.sqlite3'}"
    try:
        far = {**system.env, "REDIS_URL": f"redis://{network.address('redis', 1)}:{redis.port}/0"}
        system.servers = [Server(near, **system.env), FarServer(network, kind, **far)]
        system.wait_until_up()
        with system.told():
            yield system
    finally:
        system.stop()


class Listener:
    """Subscribe to the numbers, and take note of all that comes, for the length of a ``with`` block."""

    def __init__(self, server: Server) -> None:
        self._client = Client(server.url)
        self.seen: list[tuple[int | None, float]] = []
        """The numbers, with when they came; None for a gap."""

    async def __aenter__(self) -> Listener:
        await self._client.__aenter__()
        await self._client.subscribe("numbers")
        self._task = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await self._client.__aexit__()

    async def _listen(self) -> None:
        async for frame in self._client.ws:
            message = json.loads(frame)
            number = None if message["type"] == "gap" else message["data"]["number"]
            self.seen.append((number, time.time()))

    @property
    def connected(self) -> bool:
        return not self._task.done()

    @property
    def last(self) -> int:
        return next((number for number, _ in reversed(self.seen) if number is not None), -1)


async def layer_status(server: Server) -> str:
    return str((await server.aget("/readyz"))["parts"]["layer"]["status"])


async def layer_becomes(status: str, server: Server, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while await layer_status(server) != status:
            await asyncio.sleep(0.1)


def drop_connections(redis: Redis, address: str) -> None:
    """Make Redis give up its connections with an address, as it does in time with those of a host that is gone."""
    for client in redis.ask("CLIENT LIST"):
        if client["addr"].startswith(f"{address}:"):
            redis.ask("CLIENT KILL", "ADDR", client["addr"])


@pytest.mark.parametrize("dropped", [False, True], ids=["connections-last", "connections-are-dropped"])
async def test_clients_of_a_host_that_loses_its_way_to_redis_stay(
    network: Network, system: System, dropped: bool
) -> None:
    near, far = system.servers
    sent: list[float] = []

    async def publish() -> None:
        while True:
            sent.append(time.time())
            await near.aget(f"/publish_number/?topic=numbers&number={len(sent) - 1}&size=0")
            await asyncio.sleep(0.05)

    async with AsyncExitStack() as stack:
        undisturbed = await stack.enter_async_context(Listener(near))
        disturbed = [await stack.enter_async_context(Listener(far)) for _ in range(2)]
        asking = await stack.enter_async_context(Client(far.url))
        publishing = asyncio.create_task(publish())
        stack.callback(publishing.cancel)
        await eventually(lambda: all(listener.last >= 5 for listener in (undisturbed, *disturbed)))

        await asyncio.to_thread(network.cut, "redis")
        cut = time.time()
        await asking.echo()
        assert await timed_subscribe(asking, "many-1") < 1.5
        assert await timed_subscribe(asking, "many-2") < AT_ONCE
        await layer_becomes("degraded", far, NOTICE)
        assert await layer_status(near) == "ok"
        with pytest.raises(HTTPError):
            await far.aget("/publish/?topic=many-3")
        newcomer = await stack.enter_async_context(Client(far.url))
        assert await timed_subscribe(newcomer, "many-1") < AT_ONCE
        for client in (asking, newcomer):
            await client.echo()
        if dropped:
            await asyncio.to_thread(drop_connections, system.redis, network.address("redis", 2))
        await asyncio.to_thread(network.mend, "redis")
        back = time.time()

        def resumed(listener: Listener) -> bool:
            return listener.last >= 0 and sent[listener.last] > back

        await eventually(lambda: all(map(resumed, disturbed)), RESUME)
        await layer_becomes("ok", far, RESUME)
        for server in (near, far):
            await server.aget("/publish/?topic=many-1")
            for client in (asking, newcomer):
                assert await client.publications(1) == [{"number": 0}]
                await client.echo()
        more = len(sent) + 20
        await eventually(lambda: undisturbed.last > more)
        assert not publishing.done()
        publishing.cancel()
        final = undisturbed.last
        await eventually(lambda: all(listener.last >= final for listener in disturbed))

        assert all(listener.connected for listener in (undisturbed, *disturbed))
        assert [number for number, _ in undisturbed.seen] == list(range(len(undisturbed.seen)))
        assert sum("event=layer_" in line for line in near.lines) == 1  # it came up
        for listener in disturbed:
            gaps = [place for place, (number, _) in enumerate(listener.seen) if number is None]
            numbers = [number for number, _ in listener.seen if number is not None]
            if not dropped:
                assert (gaps, numbers) == ([], list(range(len(numbers))))
                continue
            [gap] = gaps
            before, after = numbers[:gap], numbers[gap:]
            assert before == list(range(gap))
            assert after == list(range(after[0], after[-1] + 1))
            lost = range(gap, after[0])
            assert lost
            assert cut - 1 < sent[lost[0]] < sent[lost[-1]] < back + RESUME
