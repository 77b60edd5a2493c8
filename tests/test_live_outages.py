"""Redis killed, frozen, restarted, cut off: clients stay, are answered, and everything resumes by itself."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from urllib.error import HTTPError

import pytest

from .live import SERVERS, Client, Process, Redis, Server, System, eventually, running_system
from .test_live_redis import wait

RESUME = 8.0
"""Seconds after which everything is as before the outage, at the latest."""
AT_ONCE = 0.5


@contextmanager
def killed(system: System) -> Iterator[None]:
    """Kill Redis, and start it again on the same port: it has forgotten everything."""
    system.redis.kill()
    try:
        yield
    finally:
        system.redis.start()


@contextmanager
def frozen(system: System) -> Iterator[None]:
    """Freeze Redis, with every connection to it open, and thaw it again."""
    system.redis.freeze()
    try:
        yield
    finally:
        system.redis.thaw()


Outage = Callable[[System], "contextmanager[None]"]


@pytest.fixture(params=[killed, frozen])
def outage(request: pytest.FixtureRequest) -> Outage:
    """A way for Redis to be out."""
    return request.param


@pytest.fixture(scope="module")
def shared() -> Iterator[System]:
    """Both servers on one Redis, and one broadcaster: they live through all the outages here."""
    with running_system(*((kind, {}) for kind in SERVERS)) as system:
        yield system


@pytest.fixture
async def system(shared: System) -> AsyncIterator[System]:
    """The shared system, with all that the last outage did to it over."""
    for server in shared.servers:
        async with Client(server.url) as client:
            await client.subscribe("heartbeat")
            await client.beat(await client.beat())
            await eventually(lambda server=server: is_up(server))
    with shared.told():
        yield shared


def is_up(server: Server) -> bool:
    """Return whether the server's hub believes that the layer is up."""
    changes = [line for line in server.lines if "event=layer_" in line]
    return "event=layer_up" in changes[-1]


@asynccontextmanager
async def clients(*servers: Server, topic: str | None = None) -> AsyncIterator[list[Client]]:
    """Connect one client to each server, and subscribe it to a topic."""
    async with AsyncExitStack() as stack:
        connected = [await stack.enter_async_context(Client(server.url)) for server in servers]
        for client in connected:
            if topic is not None:
                await client.subscribe(topic)
        yield connected


async def timed_subscribe(client: Client, topic: str) -> float:
    """Subscribe, and return how many seconds the answer took."""
    began = time.monotonic()
    await client.subscribe(topic)
    return time.monotonic() - began


async def beats_resume(*subscribers: Client) -> None:
    """Wait for a beat that was sent from now on, for each client."""
    now = time.time()
    async with asyncio.timeout(RESUME):
        await asyncio.gather(*(client.beat(now) for client in subscribers))


async def publications_resume(system: System, topic: str, *subscribers: Client) -> None:
    """Wait until each server is in the group again, and assert that a publication reaches each client."""
    count = len({client.ws.remote_address for client in subscribers})
    await eventually(lambda: all(map(is_up, system.servers)), RESUME)
    await eventually(lambda: system.redis.members(topic) == count, RESUME)
    await system.servers[1].aget(f"/publish/?topic={topic}")
    for client in subscribers:
        assert await client.publications(1) == [{"number": 0}]
        await client.echo()


async def test_clients_stay_and_everything_resumes(system: System, outage: Outage) -> None:
    async with (
        clients(*system.servers, topic="heartbeat") as beating,
        clients(*system.servers, topic="news") as reading,
    ):
        await beats_resume(*beating)
        with outage(system):
            for client in reading:
                await client.echo()
        await beats_resume(*beating)
        await publications_resume(system, "news", *reading)


async def test_subscribe_is_answered_during_the_outage(system: System, outage: Outage) -> None:
    async with clients(*system.servers) as connected:
        with outage(system):
            for client in connected:
                assert await timed_subscribe(client, "many-1") < 1.5
                assert await timed_subscribe(client, "many-2") < AT_ONCE
                await client.echo()
        await publications_resume(system, "many-1", *connected)
        await publications_resume(system, "many-2", *connected)


async def test_subscribes_of_many_at_the_same_moment_are_answered_during_the_outage(
    system: System, outage: Outage
) -> None:
    async with clients(*system.servers * 10) as connected:
        with outage(system):
            topics = [f"many-{number}" for number in range(20)]
            seconds = await asyncio.gather(*map(timed_subscribe, connected, topics))
            assert max(seconds) < 4
        for client, topic in zip(connected, topics, strict=True):
            await publications_resume(system, topic, client)


async def test_new_connections_are_accepted_during_the_outage(system: System, outage: Outage) -> None:
    async with AsyncExitStack() as stack:
        with outage(system):
            began = time.monotonic()
            connected = await stack.enter_async_context(clients(*system.servers))
            for client in connected:
                await client.echo()
            assert time.monotonic() - began < 4
            for client in connected:
                await client.subscribe("heartbeat")
        await beats_resume(*connected)


async def test_group_left_during_the_outage_is_left_after_it(system: System, outage: Outage) -> None:
    async with clients(*system.servers, topic="many-3") as connected:
        with outage(system):
            for client in connected:
                answer = await client.ask({"type": "unsubscribe_request", "topic": "many-3"})
                assert answer["status"] == "OK"
        await eventually(lambda: all(map(is_up, system.servers)), RESUME)
        await eventually(lambda: system.redis.members("many-3") == 0, RESUME)


async def test_group_left_while_the_outage_is_known_is_left_after_it(system: System, outage: Outage) -> None:
    async with clients(*system.servers, topic="many-4") as connected:
        with outage(system):
            for client in connected:
                await client.subscribe("many-5")  # finds out
                answer = await client.ask({"type": "unsubscribe_request", "topic": "many-4"})
                assert answer["status"] == "OK"
        await publications_resume(system, "many-5", *connected)
        await eventually(lambda: system.redis.members("many-4") == 0, RESUME)


async def test_group_joined_again_after_it_was_left_during_the_outage_works(system: System, outage: Outage) -> None:
    async with clients(*system.servers, topic="many-6") as connected:
        with outage(system):
            for client in connected:
                await client.ask({"type": "unsubscribe_request", "topic": "many-6"})
                await client.subscribe("many-6")
        await publications_resume(system, "many-6", *connected)


@pytest.mark.parametrize("page", ["/publish/", "/apublish/"])
async def test_publishing_fails_within_its_bound_during_the_outage(system: System, outage: Outage, page: str) -> None:
    server = system.servers[0]
    async with clients(server) as [client]:
        with outage(system):
            lines = len(server.lines)
            began = time.monotonic()
            with pytest.raises(HTTPError) as raised:
                await server.aget(page)
            assert time.monotonic() - began < 4.5
            assert raised.value.code == 500
            await asyncio.to_thread(server.wait_for_line, "LayerUnavailable", start=lines)
            await client.echo()
        await client.subscribe("news")
        await publications_resume(system, "news", client)


async def test_publishing_of_many_fails_within_its_bound_during_the_outage(system: System, outage: Outage) -> None:
    async def refused() -> float:
        began = time.monotonic()
        with pytest.raises(HTTPError):
            await system.servers[0].aget("/apublish/?count=50")
        return time.monotonic() - began

    with outage(system):
        assert max(await asyncio.gather(*(refused() for _ in range(4)))) < 4.5


async def test_outage_is_logged_once_by_each_server(system: System, outage: Outage) -> None:
    lines = [len(server.lines) for server in system.servers]
    async with clients(*system.servers, topic="heartbeat") as connected:
        with outage(system):
            for client in connected:
                await client.send({"type": "subscribe_request", "topic": "many-8"})
            await asyncio.gather(
                *(
                    asyncio.to_thread(server.wait_for_line, "event=layer_down", start=start)
                    for server, start in zip(system.servers, lines, strict=True)
                )
            )
            failing = system.manage("publish_nothing")  # takes a while, as an unknown command does
            assert await wait(failing) == 1
        await eventually(lambda: all(map(is_up, system.servers)), RESUME)
    for server, start in zip(system.servers, lines, strict=True):
        changes = [line.split("event=")[1].split()[0] for line in server.lines[start:] if "event=layer_" in line]
        assert changes == ["layer_down", "layer_up"]


async def test_broadcaster_logs_the_outage_once_and_resumes(system: System, outage: Outage) -> None:
    [broadcaster] = system.broadcasters
    lines = len(broadcaster.lines)
    with outage(system):
        await asyncio.to_thread(broadcaster.wait_for_line, "event=heartbeat_failed", start=lines)
        async with clients(*system.servers * 10) as connected:
            for client in connected:
                await client.echo()
    resumed = await asyncio.to_thread(broadcaster.wait_for_line, r"event=heartbeats_resumed tries=(\d+)", start=lines)
    assert int(resumed[1]) >= 1
    assert sum("event=heartbeat_failed" in line for line in broadcaster.lines[lines:]) == 1


async def test_close_connections_fails_within_its_bound_during_the_outage(system: System, outage: Outage) -> None:
    async with clients(*system.servers) as connected:
        with outage(system):
            began = time.monotonic()
            command = system.manage("close_connections")
            assert await wait(command) == 1
            assert time.monotonic() - began < 20  # Python has to start, too
            assert "CommandError: the channel layer failed" in command.output
            assert "Traceback" not in command.output
        for client in connected:
            await client.echo()


async def test_close_connections_works_after_the_outage(system: System) -> None:
    async with clients(*system.servers, topic="many-9") as connected:
        with killed(system):
            pass
        await publications_resume(system, "many-9", *connected)
        command = system.manage("close_connections", "--code", "4001", "--reason", "after")
        assert [await client.closed() for client in connected] == [(4001, "after")] * 2
        assert await wait(command) == 0
        assert "on 2 servers" in command.output


async def test_connections_that_redis_cuts_off_are_made_again(system: System) -> None:
    async with (
        clients(*system.servers, topic="heartbeat") as beating,
        clients(*system.servers, topic="news") as reading,
    ):
        for kind in ("pubsub", "normal"):
            await asyncio.to_thread(system.redis.ask, "CLIENT KILL", "TYPE", kind)
            await beats_resume(*beating)
            await publications_resume(system, "news", *reading)


async def test_servers_started_during_the_outage_come_to_life_after_it(outage: Outage) -> None:
    with running_system(heartbeats=False) as system:
        with outage(system):
            system.servers = [Server(kind, **system.env) for kind in SERVERS]
            system.wait_until_up()
            async with AsyncExitStack() as stack:
                beating = await stack.enter_async_context(clients(*system.servers))
                reading = await stack.enter_async_context(clients(*system.servers))
                for one, other in zip(beating, reading, strict=True):
                    assert await timed_subscribe(one, "heartbeat") < 1.5
                    await one.beat()
                    assert await timed_subscribe(other, "news") < 1.5
                    await other.echo()
                kept = stack.pop_all()
        async with kept:
            await asyncio.to_thread(system.broadcast)
            await beats_resume(*beating)
            await publications_resume(system, "news", *reading)


async def test_broadcaster_started_during_the_outage_beats_after_it(system: System) -> None:
    with killed(system):
        broadcaster = system.manage("run_heartbeats", "--count", "3")
        await asyncio.to_thread(broadcaster.wait_for_line, "event=heartbeat_failed")
    assert await wait(broadcaster) == 0
    assert "Stopped after 3 beats." in broadcaster.output


async def test_server_stops_in_time_during_the_outage(kind: str, outage: Outage) -> None:
    with running_system((kind, {}), heartbeats=False) as system:
        [server] = system.servers
        async with clients(server, server, topic="news") as connected:
            with outage(system):
                began = time.monotonic()
                server.signal(signal.SIGTERM)
                codes = {await client.closed() for client in connected}
                assert codes == {(1001, "server shutdown")} if kind == "daphne" else {(1012, "")}
                assert await wait(server) == (0 if kind == "daphne" else -signal.SIGTERM)
                assert time.monotonic() - began < 20  # Python has to start, too


async def test_broadcaster_stops_in_time_during_the_outage(outage: Outage, redis: Redis) -> None:
    system = System(redis)
    broadcaster = await asyncio.to_thread(system.broadcast)
    try:
        with outage(system):
            await asyncio.to_thread(broadcaster.wait_for_line, "event=heartbeat_failed")
            began = time.monotonic()
            broadcaster.signal(signal.SIGTERM)
            assert await wait(broadcaster) == 0
            assert time.monotonic() - began < 5
    finally:
        broadcaster.stop()


async def test_script_that_publishes_fails_in_time_during_the_outage(outage: Outage, redis: Redis) -> None:
    system = System(redis)
    code = "import django; django.setup(); from realtime import publish; publish('news', 1)"
    with outage(system):
        began = time.monotonic()
        script: Process = system.script(code)
        assert await wait(script) == 1
        assert time.monotonic() - began < 8
    assert script.lines[-1].startswith("realtime.exceptions.LayerUnavailable: ")


async def test_subscribe_is_answered_ok_where_handlers_have_less_time_than_the_layer() -> None:
    with running_system(("uvicorn", {"REALTIME_HANDLER_TIMEOUT": "0.5"}), heartbeats=False) as system:
        async with clients(*system.servers, topic="news") as [client]:
            with frozen(system):
                await client.subscribe("many-1")
            await eventually(lambda: system.redis.members("many-1") == 1, RESUME)


class Proxy:
    """Pass bytes on to a port, until told to swallow them: a network that drops packets without a word."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self._target = target
        self._connections: list[asyncio.Task[None]] = []
        self._silenced: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def silence(self) -> None:
        """Swallow all that is sent on the connections there are; new ones work."""
        self._silenced.update(self._connections)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.append(asyncio.create_task(self._pass_on(reader, writer)))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        this = asyncio.current_task()
        target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self._target)

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                if this not in self._silenced:
                    target.write(data)
            target.close()

        try:
            await asyncio.gather(copy(reader, target_writer), copy(target_reader, writer))
        finally:
            writer.close()
            target_writer.close()


async def test_connections_that_fall_silent_are_made_again(redis: Redis) -> None:
    system = System(redis)
    async with Proxy(redis.port) as proxy:
        try:
            server = Server("uvicorn", **{**system.env, "REDIS_URL": f"redis://127.0.0.1:{proxy.port}/0"})
            system.servers.append(server)
            await asyncio.to_thread(server.wait_until_up)
            await asyncio.to_thread(system.broadcast)
            async with clients(server, topic="heartbeat") as [beating], clients(server) as [reading]:
                await beats_resume(beating)
                proxy.silence()
                assert await timed_subscribe(reading, "many-1") < 1.5
                silenced = time.time()
                async with asyncio.timeout(3 * RESUME):
                    while await beating.beat() < silenced:
                        pass
                await eventually(lambda: is_up(server), RESUME)
                await server.aget("/publish/?topic=many-1")
                assert await reading.publications(1) == [{"number": 0}]
        finally:
            await asyncio.to_thread(system.stop)
