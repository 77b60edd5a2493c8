"""Several processes on one Redis: Daphne and uvicorn side by side, broadcasters, commands and scripts."""

from __future__ import annotations

import asyncio
import json
import math
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack

import msgpack
import pytest

from .live import SERVERS, Client, Process, Server, System, eventually, running_system

INTERVAL = 0.2


@pytest.fixture(scope="module")
def shared() -> Iterator[System]:
    """Both servers on one Redis, and one broadcaster."""
    with running_system(*((kind, {}) for kind in SERVERS)) as system:
        yield system


@pytest.fixture
def system(shared: System) -> Iterator[System]:
    with shared.told():
        yield shared


@pytest.fixture(params=SERVERS)
def publisher(request: pytest.FixtureRequest, system: System) -> Server:
    """The server that publishes."""
    return system.servers[SERVERS.index(request.param)]


def slot(sent: float) -> int:
    """Return the number of the wall-clock slot of a beat."""
    return math.floor(sent / INTERVAL)


async def wait(process: Process) -> int:
    """Return a process' exit code without holding up the event loop."""
    return await asyncio.to_thread(process.wait)


# Heartbeats


async def test_beat_is_the_same_on_two_servers(system: System) -> None:
    first, second = system.servers
    async with Client(first.url) as one, Client(second.url) as two:
        await one.subscribe("heartbeat")
        await two.subscribe("heartbeat")
        begin = max(await one.beat(), await two.beat())  # each had one at once, of its own
        assert [await one.beat(begin) for _ in range(5)] == [await two.beat(begin) for _ in range(5)]


async def test_beats_sit_on_slots(system: System) -> None:
    async with Client(system.servers[0].url) as client:
        await client.subscribe("heartbeat")
        begin = await client.beat()
        beats = [await client.beat(begin) for _ in range(9)]
    slots = [slot(beat) for beat in beats]
    assert slots == sorted(set(slots))
    late = sorted(beat % INTERVAL for beat in beats)
    assert late[4] < INTERVAL / 3


async def test_beats_come_once_from_two_broadcasters(system: System) -> None:
    async with Client(system.servers[0].url) as client:
        await client.subscribe("heartbeat")
        begin = await client.beat()
        second = await asyncio.to_thread(system.broadcast, "--count", "10")
        assert await wait(second) == 0
        assert "Stopped after 10 beats." in second.output
        slots = [slot(await client.beat(begin)) for _ in range(15)]
    assert slots == sorted(set(slots))


async def test_beats_go_on_when_a_broadcaster_is_killed(system: System) -> None:
    second = await asyncio.to_thread(system.broadcast)
    system.broadcasters[0].signal(signal.SIGKILL)
    await wait(system.broadcasters[0])
    async with Client(system.servers[1].url) as client:
        await client.subscribe("heartbeat")
        begin = await client.beat()
        slots = [slot(await client.beat(begin)) for _ in range(5)]
    assert slots == list(range(slots[0], slots[0] + 5))
    system.broadcasters[:] = [second]


async def test_uptime_is_each_connections_own(system: System) -> None:
    first, second = system.servers
    async with Client(first.url) as old, Client(second.url) as young_server:
        await old.subscribe("heartbeat")
        message = await old.receive()
        while int(message["uptime_seconds"]) < 1:
            message = await old.receive()
        async with Client(first.url) as young:
            await young.subscribe("heartbeat")
            assert (await young.receive())["uptime_seconds"] == "0"
            assert (await young.receive())["uptime_seconds"] == "0"
            assert int((await old.receive())["uptime_seconds"]) >= 1
        await young_server.echo()


# Closing


async def test_close_connections_closes_clients_of_both_servers(system: System) -> None:
    first, second = system.servers
    async with Client(first.url) as a, Client(first.url) as b, Client(second.url) as c:
        for client in (a, b, c):
            await client.echo()
        command = system.manage("close_connections", "--code", "4321", "--reason", "für alle ☂")
        assert [await client.closed() for client in (a, b, c)] == [(4321, "für alle ☂")] * 3
        assert await wait(command) == 0
        assert "Closed 3 connections on 2 servers." in command.output
    async with Client(first.url) as a, Client(second.url) as c:
        await a.echo()
        await c.echo()


async def test_close_connections_with_a_topic_closes_only_its_subscribers(system: System) -> None:
    first, second = system.servers
    async with Client(first.url) as a, Client(first.url) as b, Client(second.url) as c, Client(second.url) as d:
        await a.subscribe("news")
        await b.subscribe("many-1")
        await c.subscribe("news")
        command = system.manage("close_connections", "--code", "3100", "--reason", "news end", "--topic", "news")
        assert await a.closed() == (3100, "news end")
        assert await c.closed() == (3100, "news end")
        assert await wait(command) == 0
        assert "Closed 2 connections on 2 servers." in command.output
        await b.echo()
        await d.echo()


async def test_close_connections_interrupts_with_1006(system: System) -> None:
    first, second = system.servers
    async with Client(first.url) as a, Client(second.url) as b:
        await a.echo()
        await b.echo()
        command = system.manage("close_connections", "--code", "1006")
        assert await a.closed() == (1006, "")
        assert await b.closed() == (1006, "")
        assert await wait(command) == 0


async def test_close_from_a_page_closes_clients_of_both_servers(system: System, publisher: Server) -> None:
    first, second = system.servers
    async with Client(first.url) as a, Client(second.url) as b:
        await a.echo()
        await b.echo()
        outcome = await publisher.aget("/close/?code=1012&reason=from+a+page")
        assert outcome == {"servers": 2, "connections": 2, "unknown": 0}
        assert await a.closed() == (1012, "from a page")
        assert await b.closed() == (1012, "from a page")


async def test_close_connections_reports_a_frozen_server_as_unknown(system: System, publisher: Server) -> None:
    second = publisher
    [first] = [server for server in system.servers if server is not second]
    async with Client(first.url) as a, Client(second.url) as b:
        await a.echo()
        await b.echo()
        second.signal(signal.SIGSTOP)
        try:
            command = system.manage("close_connections", "--code", "4000", "--reason", "to both")
            assert await a.closed() == (4000, "to both")
            assert await wait(command) == 1
            assert "Closed 1 connections on 1 servers." in command.output
            assert "1 more servers did not answer in time" in command.output
        finally:
            second.signal(signal.SIGCONT)
        assert await b.closed() == (4000, "to both")
    async with Client(second.url) as b:
        await b.echo()


# Publishing


@pytest.mark.parametrize("page", ["/publish/", "/apublish/"])
async def test_publications_reach_both_servers_in_order(system: System, publisher: Server, page: str) -> None:
    first, second = system.servers
    async with Client(first.url) as a, Client(second.url) as b:
        await a.subscribe("news")
        await b.subscribe("news")
        assert await publisher.aget(f"{page}?topic=news&count=300") == {"published": 300}
        expected = [{"number": number} for number in range(300)]
        assert await a.publications(300) == expected
        assert await b.publications(300) == expected
        await a.echo()
        await b.echo()


@pytest.mark.parametrize("page", ["/publish/", "/apublish/"])
async def test_burst_of_5000_arrives_whole_and_in_order(system: System, publisher: Server, page: str) -> None:
    first, second = system.servers
    async with Client(first.url) as a, Client(second.url) as b:
        await a.subscribe("news")
        await b.subscribe("news")
        page = f"{page}?topic=news&count=5000"
        answer, *got = await asyncio.gather(publisher.aget(page), a.publications(5000), b.publications(5000))
        assert answer == {"published": 5000}
        assert got == [[{"number": number} for number in range(5000)]] * 2
        await a.echo()
        await b.echo()


async def test_publications_of_many_pages_at_once_all_arrive(system: System) -> None:
    first, second = system.servers
    async with Client(first.url) as client:
        await client.subscribe("news")
        pages = [server.aget(f"{page}?count=50") for server in (first, second) for page in ("/publish/", "/apublish/")]
        await asyncio.gather(*pages)
        numbers = sorted(data["number"] for data in await client.publications(200))
        assert numbers == sorted([*range(50)] * 4)
        await client.echo()


async def test_publication_from_a_plain_script_reaches_both_servers(system: System) -> None:
    first, second = system.servers
    code = "import django; django.setup(); from realtime import publish; publish('news', {'from': 'script'})"
    async with Client(first.url) as a, Client(second.url) as b:
        await a.subscribe("news")
        await b.subscribe("news")
        script = system.script(code)
        assert (await wait(script), script.output) == (0, "")
        assert await a.publications(1) == [{"from": "script"}]
        assert await b.publications(1) == [{"from": "script"}]


async def test_publication_from_the_shell_reaches_both_servers(system: System) -> None:
    first, second = system.servers
    code = "from realtime import publish\nfor number in range(3): publish('news', number)"
    async with Client(first.url) as a, Client(second.url) as b:
        await a.subscribe("news")
        await b.subscribe("news")
        shell = system.manage("shell", "-c", code)
        assert await wait(shell) == 0
        assert await a.publications(3) == [0, 1, 2]
        assert await b.publications(3) == [0, 1, 2]


async def test_publication_from_async_code_of_a_script_arrives(system: System) -> None:
    code = (
        "import asyncio, django; django.setup(); from realtime import apublish\n"
        "async def main(): await asyncio.gather(*(apublish('news', n) for n in range(5)))\n"
        "asyncio.run(main())\nasyncio.run(main())\n"
    )
    async with Client(system.servers[0].url) as client:
        await client.subscribe("news")
        script = system.script(code)
        assert (await wait(script), script.output) == (0, "")
        assert await client.publications(10) == [0, 1, 2, 3, 4] * 2


async def test_broadcast_costs_one_publish_however_many_connections(system: System) -> None:
    def publishes() -> int:
        return int(system.redis.ask("INFO", "commandstats")["cmdstat_publish"]["calls"])

    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client(system.servers[n % 2].url)) for n in range(40)]
        for client in clients:
            await client.subscribe("news")
        before = await asyncio.to_thread(publishes)
        await system.servers[0].aget("/apublish/?topic=news&count=200")
        for client in clients:
            assert len(await client.publications(200)) == 200
        spent = await asyncio.to_thread(publishes) - before
    assert 200 <= spent < 300  # beats and pings besides


# Memberships


async def test_group_is_joined_with_the_first_subscriber_and_left_with_the_last(system: System) -> None:
    first, second = system.servers
    redis = system.redis
    async with Client(first.url) as a, Client(first.url) as b, Client(second.url) as c:
        assert await asyncio.to_thread(redis.members, "many-7") == 0
        await a.subscribe("many-7")
        assert await asyncio.to_thread(redis.members, "many-7") == 1
        await b.subscribe("many-7")
        assert await asyncio.to_thread(redis.members, "many-7") == 1
        await c.subscribe("many-7")
        assert await asyncio.to_thread(redis.members, "many-7") == 2
        await a.ask({"type": "unsubscribe_request", "topic": "many-7"})
        await b.echo()
        assert await asyncio.to_thread(redis.members, "many-7") == 2
        await b.ask({"type": "unsubscribe_request", "topic": "many-7"})
        await eventually(lambda: redis.members("many-7") == 1)
    await eventually(lambda: redis.members("many-7") == 0)


async def test_groups_are_left_when_clients_vanish(system: System, publisher: Server) -> None:
    async with Client(publisher.url) as client:
        for number in range(10):
            await client.subscribe(f"many-{number}")
        assert await asyncio.to_thread(system.redis.members, "many-9") == 1
        client.ws.transport.abort()
    await eventually(lambda: [system.redis.members(f"many-{number}") for number in range(10)] == [0] * 10 or None)
    channels = await asyncio.to_thread(system.redis.ask, "PUBSUB CHANNELS", "*realtime.topic*")
    assert channels == []


async def test_stopped_server_leaves_no_membership(kind: str) -> None:
    with running_system((kind, {}), heartbeats=False) as system:
        [server] = system.servers
        async with Client(server.url) as client:
            await client.subscribe("news")
            server.signal(signal.SIGTERM)
            await client.closed()
        await wait(server)
        assert await asyncio.to_thread(system.redis.ask, "PUBSUB CHANNELS") == []


# The protocol's core


async def test_errors_are_told_as_the_protocol_says(publisher: Server) -> None:
    async with Client(publisher.url) as client:
        await client.subscribe("news")
        expected = {"ALREADY_SUBSCRIBED": "news", "TOPIC_NOT_FOUND": "nothing", "FORBIDDEN": "forbidden"}
        for code, topic in expected.items():
            answer = await client.ask({"type": "subscribe_request", "reqId": code, "topic": topic})
            assert (answer["type"], answer["reqId"], answer["status"]) == ("subscribe_response", code, "ERROR")
            assert answer["error"]["code"] == code
        answer = await client.ask({"type": "unsubscribe_request", "topic": "many-1"})
        assert answer["error"]["code"] == "NOT_SUBSCRIBED"
        answer = await client.ask({"type": "echo_request", "echo": "x", "err": True})
        assert answer["error"] == {"message": "client asked for it", "code": "ASKED_BY_CLIENT"}
        assert (await client.ask("no json"))["code"] == "BAD_REQUEST"


async def test_pipelined_requests_are_answered_in_order(publisher: Server) -> None:
    async with Client(publisher.url) as client:
        for number in range(100):
            await client.send({"type": "subscribe_request", "reqId": f"s{number}", "topic": f"many-{number}"})
            await client.send({"type": "echo_request", "reqId": f"e{number}", "echo": ""})
        answers = [await client.receive() for _ in range(200)]
    assert [answer["reqId"] for answer in answers] == [f"{kind}{n}" for n in range(100) for kind in "se"]
    assert {answer["status"] for answer in answers} == {"OK"}


async def test_publication_right_after_the_subscribe_response_arrives(system: System) -> None:
    first, second = system.servers
    async with Client(first.url) as a, Client(second.url) as b:
        for number in range(128):
            subscriber, publisher = ((a, second), (b, first))[number % 2]
            topic = f"many-{number}"
            await subscriber.subscribe(topic)
            await publisher.aget(f"/apublish/?topic={topic}")
            message = await subscriber.receive()
            assert (message["type"], message["topic"]) == ("publication", topic)


async def test_publication_after_a_subscribe_response_arrives_though_the_last_one_just_left(
    system: System, publisher: Server
) -> None:
    [other] = [server for server in system.servers if server is not publisher]
    async with Client(other.url) as client:
        for _ in range(30):
            await client.send({"type": "subscribe_request", "topic": "many-129"})
            await client.send({"type": "unsubscribe_request", "topic": "many-129"})
            await client.send({"type": "subscribe_request", "topic": "many-129"})
            assert [(await client.receive())["status"] for _ in range(3)] == ["OK"] * 3
            await publisher.aget("/apublish/?topic=many-129")
            assert await client.publications(1) == [{"number": 0}]
            answer = await client.ask({"type": "unsubscribe_request", "topic": "many-129"})
            assert answer["type"] == "unsubscribe_response"


async def test_publication_reaches_all_who_subscribed_at_the_same_moment(system: System) -> None:
    first, second = system.servers
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client(system.servers[n % 2].url)) for n in range(20)]
        for number in range(100, 105):
            topic = f"many-{number}"
            await asyncio.gather(*(client.subscribe(topic) for client in clients))
            await second.aget(f"/publish/?topic={topic}")
            assert [await client.publications(1) for client in clients] == [[{"number": 0}]] * 20


async def test_nothing_arrives_before_the_subscribe_or_after_the_unsubscribe_response(
    system: System, publisher: Server
) -> None:
    [other] = [server for server in system.servers if server is not publisher]
    async with Client(other.url) as client, asyncio.TaskGroup() as group:
        hammering = group.create_task(publisher.aget("/apublish/?topic=news&count=3000"))
        while not hammering.done():
            await client.subscribe("news")
            await client.send({"type": "unsubscribe_request", "reqId": "off", "topic": "news"})
            while (message := await client.receive())["type"] == "publication":
                pass
            assert message["reqId"] == "off"
            await client.echo()


async def test_foreign_events_on_the_groups_do_no_harm(system: System) -> None:
    async with Client(system.servers[1].url) as client:
        await client.subscribe("news")
        channel = (await asyncio.to_thread(system.redis.ask, "PUBSUB CHANNELS", "*realtime.topic*"))[0].decode()
        for poison in (
            b"",
            b"\xc1",
            msgpack.packb(7),
            msgpack.packb({}),
            msgpack.packb({1: 2}),
            msgpack.packb({"type": "realtime.event", "kind": "of the future"}),
            msgpack.packb({"type": "realtime.event", "kind": "publication", "topic": 7}),
            json.dumps({"type": "realtime.event"}).encode(),
        ):
            assert await asyncio.to_thread(system.redis.ask, "PUBLISH", channel, poison) >= 1
        await system.servers[0].aget("/publish/?topic=news&count=2")
        assert await client.publications(2) == [{"number": 0}, {"number": 1}]
