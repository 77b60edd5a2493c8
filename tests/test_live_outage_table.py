"""
Redis stopped, killed, emptied, frozen, cut off, out of reach and slow, under a stream of numbered publications.

Every subscriber must stay connected, get each number once and in order, and be told of each that is missing. The
figures go into docs/scale.md, see tests/outages.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, NamedTuple
from urllib.error import HTTPError

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from .live import SERVERS, TIMEOUT, Client, Redis, Server, System, eventually

SUBSCRIBERS = int(os.environ.get("OUTAGE_SUBSCRIBERS", "10"))
"""Subscribers on each server."""
LAYERS = os.environ.get("OUTAGE_LAYERS", "pubsub").split(",")
"""Channel layers to go through all this with; "core" is the core Redis layer as the checks advise to configure it."""
RESUME = 5.0
"""Seconds after Redis is back in which everything is as before."""
NOTICE = 5.0
"""Seconds in which a server says that the layer is in trouble."""
AWAY = 3.0
"""Seconds for which Redis is away; long enough that every process has noticed."""
HELD_UP = 8.0
"""Seconds for which it does not answer: longer than the socket's time limit of 5 s."""
DELAY = 0.3
"""Seconds by which a slow Redis answers later."""
INTERVAL = 0.5
"""Seconds between heartbeats."""
PUBLISHER = """
import sys, time
import django
django.setup()
from realtime import publish
from realtime.exceptions import LayerUnavailable
number = 0
while True:
    began = time.time()
    try:
        publish("numbers", number)
        outcome = "taken"
    except LayerUnavailable:
        outcome = "refused"
    ended = time.time()
    print("published", number, outcome, began, ended, flush=True)
    number += 1
    time.sleep(max(0, began + 0.05 - time.time()))
"""


class Proxy:
    """Stand between Redis and everybody else, as the network does: pass bytes on, hold them back, or slow them down."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.delay = 0.0
        self.open = asyncio.Event()
        self.open.set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        await self.open.wait()
        writers = [writer]
        try:
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self.target)
            writers.append(back_writer)
            await asyncio.gather(self._pass_on(reader, back_writer, 0.0), self._pass_on(back_reader, writer, 1.0))
        except OSError:
            pass
        finally:
            for each in writers:
                each.close()
            self._tasks.discard(task)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, share: float) -> None:
        """Pass on what is read, after ``share`` of the delay; chunks overtake none before them."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def write() -> None:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(due - loop.time())
                await self.open.wait()
                if not data:
                    writer.close()
                    return
                writer.write(data)

        writing = asyncio.create_task(write())
        try:
            while data := await reader.read(1 << 16):
                queue.put_nowait((loop.time() + self.delay * share, data))
            queue.put_nowait((0.0, b""))
            await writing
        finally:
            writing.cancel()


class Subscriber:
    """Take note of all that arrives."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.seen: list[tuple[int | None, float]] = []
        """The numbers, with when they came; None for a gap."""
        self.beats: list[tuple[str, float]] = []
        """When they were sent, and when they came."""
        self.lost = False
        self.ws: ClientConnection
        self._echoes: list[asyncio.Future[None]] = []

    async def open(self, stack: AsyncExitStack) -> None:
        """Connect and subscribe, until ``stack`` is closed."""
        self.ws = await stack.enter_async_context(connect(self.server.url, proxy=None, open_timeout=TIMEOUT))
        for topic in ("numbers", "heartbeat"):
            await self.ws.send(json.dumps({"type": "subscribe_request", "topic": topic}))
        task = asyncio.create_task(self._read())
        stack.callback(task.cancel)

    async def _read(self) -> None:
        try:
            async for frame in self.ws:
                message = json.loads(frame)
                match message["type"]:
                    case "publication":
                        self.seen.append((message["data"], time.time()))
                    case "gap":
                        self.seen.append((None, time.time()))
                    case "heartbeat":
                        self.beats.append((message["timestamp"], time.time()))
                    case "echo_response":
                        self._echoes.pop(0).set_result(None)
        except ConnectionClosed:
            pass
        self.lost = True

    async def echo(self) -> float:
        """Return how many seconds an echo takes, between all that arrives."""
        began = time.monotonic()
        answered = asyncio.get_running_loop().create_future()
        self._echoes.append(answered)
        await self.ws.send(json.dumps({"type": "echo_request", "echo": ""}))
        async with asyncio.timeout(TIMEOUT):
            await answered
        return time.monotonic() - began

    def numbers(self) -> list[int]:
        return [number for number, _ in self.seen if number is not None]


class Published(NamedTuple):
    number: int
    taken: bool
    began: float
    ended: float


class Stage:
    """Be two servers, a broadcaster and a publisher, on one Redis or behind a proxy of it."""

    def __init__(self, redis: Redis, proxy: Proxy) -> None:
        self.redis = redis
        self.proxy = proxy

    # The outages. Each ends when Redis can be used again.

    async def stopped(self) -> None:
        with suppress(Exception):  # it answers by ending
            await asyncio.to_thread(self.redis.ask, "SHUTDOWN", "NOSAVE")
        await asyncio.to_thread(self.redis.process.wait)
        await asyncio.sleep(AWAY)
        await asyncio.to_thread(self.redis.start)

    async def killed(self) -> None:
        await asyncio.to_thread(self.redis.kill)
        await asyncio.sleep(AWAY)
        await asyncio.to_thread(self.redis.start)

    async def emptied(self) -> None:
        await asyncio.to_thread(self.redis.kill)
        await asyncio.to_thread(self.redis.start)

    async def frozen(self) -> None:
        self.redis.freeze()
        await asyncio.sleep(HELD_UP)
        self.redis.thaw()

    async def cut_off(self) -> None:
        for kind in ("pubsub", "normal"):
            await asyncio.to_thread(self.redis.ask, "CLIENT KILL", "TYPE", kind)

    async def out_of_reach(self) -> None:
        self.proxy.open.clear()
        await asyncio.sleep(HELD_UP)
        self.proxy.open.set()

    async def slow(self) -> None:
        self.proxy.delay = DELAY
        await asyncio.sleep(HELD_UP)
        self.proxy.delay = 0.0


class Outage(NamedTuple):
    """``noticed``: it lasts long enough that every process has to say that the layer is down."""

    name: str
    happen: Callable[[Stage], Awaitable[None]]
    proxied: bool
    noticed: bool


OUTAGES = [
    Outage("stopped for 3 s (SHUTDOWN), then started empty", Stage.stopped, False, True),
    Outage("killed with -9 for 3 s, then started empty", Stage.killed, False, True),
    Outage("killed with -9 and started empty at once", Stage.emptied, False, False),
    Outage("frozen for 8 s (SIGSTOP)", Stage.frozen, False, True),
    Outage("every connection dropped (CLIENT KILL)", Stage.cut_off, False, False),
    Outage("out of reach for 8 s: nothing comes through", Stage.out_of_reach, True, True),
    Outage("slow for 8 s: every answer 0.3 s late", Stage.slow, True, False),
]


@asynccontextmanager
async def running(redis: Redis, layer: str, proxied: bool) -> AsyncIterator[tuple[System, Stage]]:
    """Run both servers and a broadcaster."""
    async with Proxy(redis.port) as proxy:
        system = System(redis)
        system.env["REALTIME_HEARTBEAT_INTERVAL"] = str(INTERVAL)
        system.env["TEST_CHANNEL_LAYER"] = "" if layer == "pubsub" else layer
        if proxied:
            system.env["REDIS_URL"] = f"redis://127.0.0.1:{proxy.port}/0"
        try:
            system.servers = [Server(kind, **system.env) for kind in SERVERS]
            await asyncio.to_thread(system.wait_until_up)
            await asyncio.to_thread(system.broadcast)
            with system.told():
                yield system, Stage(redis, proxy)
        finally:
            await asyncio.to_thread(system.stop)


def published(lines: list[str]) -> list[Published]:
    """Return what the publisher says that it did."""
    words = [line.split() for line in lines if line.startswith("published ")]
    return [Published(int(w[1]), w[2] == "taken", float(w[3]), float(w[4])) for w in words]


async def look(server: Server, subscriber: Subscriber, stack: AsyncExitStack) -> tuple[dict[str, float], Client]:
    """
    Do what a client does, at this moment of the outage, and return how many seconds each took.

    The new client is subscribed to a topic that nobody on its server subscribed to before.
    """
    began = time.monotonic()
    client = await stack.enter_async_context(Client(server.url))
    await client.echo()
    connected = time.monotonic()
    await client.subscribe("news")
    subscribed = time.monotonic()
    echo = await subscriber.echo()
    return {"connect": connected - began, "subscribe": subscribed - connected, "echo": echo}, client


async def layer_status(server: Server) -> str:
    return str((await server.aget("/readyz"))["parts"]["layer"]["status"])


async def says_so(server: Server) -> None:
    """Wait until the server says that the layer is in trouble."""
    while await layer_status(server) != "degraded":
        await asyncio.sleep(0.1)


async def fails_in_time(server: Server) -> float:
    """Assert that a page of the site that publishes is told in time that this failed, and return after how long."""
    began = time.monotonic()
    with pytest.raises(HTTPError):
        await server.aget("/apublish/?topic=many-1")
    return time.monotonic() - began


def assert_nothing_is_wrong(subscriber: Subscriber, tried: dict[int, Published], begin: float, end: float) -> None:
    """
    Assert that the subscriber saw each number once and in order, and was told of each gap.

    What is missing must have been published between ``begin`` and ``end``.
    """
    assert not subscriber.lost
    last: int | None = None
    gaps = 0
    for number, _ in subscriber.seen:
        if number is None:
            gaps += 1
            continue
        if last is not None:
            assert number > last, (last, number)
            assert gaps == (number != last + 1), f"{gaps} gaps were told of between {last} and {number}"
            for missing in range(last + 1, number):
                assert tried[missing].ended > begin, f"{missing} was published before the outage"
                assert tried[missing].began < end, f"{missing} was published when all was well again"
        last, gaps = number, 0
    assert gaps == 0


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("outage", OUTAGES, ids=lambda outage: outage.happen.__name__)
async def test_every_subscriber_stays_and_knows_what_it_missed(redis: Redis, layer: str, outage: Outage) -> None:
    async with running(redis, layer, outage.proxied) as (system, stage), AsyncExitStack() as stack:
        subscribers = [Subscriber(server) for server in system.servers for _ in range(SUBSCRIBERS)]
        for subscriber in subscribers:
            await subscriber.open(stack)
        publisher = system.script(PUBLISHER)
        await eventually(lambda: all(len(subscriber.seen) > 10 and subscriber.beats for subscriber in subscribers))

        begin = time.time()
        happening = asyncio.create_task(outage.happen(stage))
        publish_fails = None
        if outage.noticed:
            await eventually(lambda: any(not each.taken for each in published(publisher.lines)))
            publish_fails = await fails_in_time(system.servers[1])
            assert publish_fails < 2.5
            async with asyncio.timeout(NOTICE):
                await asyncio.gather(*(says_so(server) for server in system.servers))
        looks = await asyncio.gather(
            *(look(*pair, stack) for pair in zip(system.servers, subscribers[::SUBSCRIBERS], strict=True))
        )
        seconds = {key: max(figures[key] for figures, _ in looks) for key in ("connect", "subscribe", "echo")}
        if outage.noticed:
            assert not happening.done()
        await happening
        back = time.time()

        # Everything is as before once a number that was published after it has come to everybody.
        await eventually(lambda: published(publisher.lines)[-1].began > back + RESUME + 1, RESUME + TIMEOUT)
        publisher.signal(signal.SIGTERM)
        await asyncio.to_thread(publisher.wait)
        tried = {each.number: each for each in published(publisher.lines)}
        final = max(number for number, each in tried.items() if each.taken)
        await eventually(lambda: all(subscriber.numbers()[-1] >= final for subscriber in subscribers))

        for subscriber in subscribers:
            assert_nothing_is_wrong(subscriber, tried, begin, back + RESUME)
            sent = [sent for sent, _ in subscriber.beats]
            assert len(sent) == len(set(sent))
        for server, (_, client) in zip(system.servers, looks, strict=True):
            assert await layer_status(server) == "ok"
            await server.aget("/publish/?topic=news")
            await client.publications(1)
        refused = [each for each in tried.values() if not each.taken]
        assert all(each.ended - each.began < 2.5 for each in refused)
        assert [each for each in refused if each.began > back + RESUME] == []

        first_beats = [min(came for _, came in s.beats if came > back) - back for s in subscribers]
        assert max(first_beats) < RESUME
        resumed = [resumption(subscriber, back) for subscriber in subscribers]
        assert max(resumed) < RESUME
        got = [set(subscriber.numbers()) for subscriber in subscribers]
        lost = {number for numbers in got for number in range(min(numbers), final + 1) if number not in numbers}
        during = [each for each in tried.values() if each.ended > begin and each.began < back + RESUME]
        report(
            layer=layer,
            name=outage.name,
            connections_lost=sum(subscriber.lost for subscriber in subscribers),
            **seconds,
            publish_fails=max([*(each.ended - each.began for each in refused), publish_fails or 0.0]) or None,
            beats_back=max(first_beats),
            publications_back=max(resumed),
            lost=(len(lost), len(during)),
            gaps=max(sum(number is None for number, _ in subscriber.seen) for subscriber in subscribers),
        )


def resumption(subscriber: Subscriber, back: float) -> float:
    """Return how many seconds after ``back`` the last gap ended, or the first number came, whatever was later."""
    came = [came for (number, came) in subscriber.seen if number is not None]
    first = next(moment for moment in came if moment > back)
    gaps = [moment for number, moment in subscriber.seen if number is None]
    return max([first, *(moment for moment in gaps if moment > back)]) - back


def report(**figures: Any) -> None:
    """Write the figures down where tests.outages wants them."""
    if path := os.environ.get("OUTAGE_REPORT"):
        with open(path, "a") as file:
            file.write(json.dumps(figures) + "\n")
    print(figures)  # noqa: T201
