"""Metrics over real connections: each figure on a server's own page moves when what it counts happens, and by that."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from channels.layers import BaseChannelLayer
from channels_redis.pubsub import RedisPubSubChannelLayer
from prometheus_client.parser import text_string_to_metric_families as parse
from websockets.exceptions import InvalidStatus

from realtime.events import PublicationEvent, group_name
from realtime.metrics import COUNTER, INSTRUMENTS
from realtime.redis import redis_layer
from realtime.telemetry import Key

from . import raw
from .live import (
    SERVERS,
    TIMEOUT,
    Client,
    Redis,
    Server,
    System,
    eventually,
    free_port,
    manage,
    running,
    running_system,
)
from .raw import Raw

Test = TypeVar("Test", bound=Callable[..., Any])

PROMETHEUS = {"OTEL_METRICS_EXPORTER": "prometheus"}
PER_ADDRESS, AT_ALL = 5, 8
"""Connections of one address, and of all."""
BURST = 100
LIMITS = {
    "MAX_CONNECTIONS": str(AT_ALL),
    "MAX_CONNECTIONS_PER_ADDRESS": str(PER_ADDRESS),
    "MAX_CONNECTIONS_PER_USER": "1",
    "TRUSTED_HOPS": "1",
    "MAX_MESSAGE_SIZE": "2000",
    "RATE_LIMIT": "50",
    "RATE_BURST": str(BURST),
    "OUTBOX_LIMIT": str(1 << 18),
    "WRITE_TIMEOUT": "60",
    "HANDLER_TIMEOUT": "0.5",
    "CONNECTION_REGISTRY": "true",
}
HURRY = {"REGISTRY_INTERVAL": "0.1", "REGISTRY_RENEWAL": "0.3"}
UNITS = {"s": "_seconds", "By": "_bytes"}
SERIES = {
    instrument.name: instrument.name.replace(".", "_")
    + UNITS.get(instrument.unit, "")
    + ("_total" if instrument.kind == COUNTER else "")
    for instrument in INSTRUMENTS
}
"""Each instrument's name on the page."""
LABELS = {
    "topic": Key.TOPIC,
    "request": Key.REQUEST,
    "outcome": Key.OUTCOME,
    "reason": Key.REASON,
    "code": Key.CODE,
    "side": Key.SIDE,
    "le": Key.LE,
}
"""Short names for attributes."""

shown: set[str] = set()
"""The instruments that tests here say they show."""


def shows(*names: str) -> Callable[[Test], Test]:
    """Say which instruments a test sees move, or set. ``Page`` sees to it that the test looks at them."""
    assert {*names} <= SERIES.keys()
    shown.update(names)

    def decorate(test: Test) -> Test:
        test.shows = {*names}  # type: ignore[attr-defined]
        return test

    return decorate


class Figures:
    """Be the figures of one page."""

    def __init__(self, text: str) -> None:
        self.samples = [sample for family in parse(text) for sample in family.samples]

    def find(self, name: str, **labels: str) -> float | None:
        """Return the sum of an instrument's series that have these labels, or None where there is none."""
        wanted = {(LABELS[key].replace(".", "_"), value) for key, value in labels.items()}
        values = [
            sample.value
            for sample in self.samples
            if sample.name == SERIES[name] and wanted <= {*sample.labels.items()}
        ]
        return sum(values) if values else None


class Page:
    """Look at a server's own page of metrics, and take note of which instruments were looked at."""

    def __init__(self, port: int) -> None:
        self.seen: set[str] = set()
        self._port = port

    def at(self, port: int) -> Page:
        """Return the same page at another port, which takes the same notes."""
        other = Page(port)
        other.seen = self.seen
        return other

    def read(self) -> Figures:
        url = f"http://127.0.0.1:{self._port}/metrics"
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            return Figures(response.read().decode())

    async def now(self) -> Figures:
        return await asyncio.to_thread(self.read)

    async def is_(self, name: str, condition: Callable[[float], bool] | float | None, **labels: str) -> None:
        """Wait until a figure is so, or is there no more."""

        def so() -> bool:
            nonlocal value
            value = self.read().find(name, **labels)
            if callable(condition):
                return value is not None and condition(value)
            return value == condition

        value: float | None = None
        self.seen.add(name)
        try:
            await eventually(so)
        except AssertionError:
            pytest.fail(f"{name} {labels} is {value}")

    async def grows(self, before: Figures, name: str, by: Callable[[float], bool] | float = 1, **labels: str) -> None:
        """Wait until a figure has grown by so much."""
        begin = before.find(name, **labels) or 0
        await self.is_(name, (lambda value: by(value - begin)) if callable(by) else begin + by, **labels)


@pytest.fixture(scope="module", params=SERVERS)
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of server that all tests run on, before the next kind has its turn."""
    return str(request.param)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a migrated database."""
    path = tmp_path_factory.mktemp("metrics") / "site.sqlite3"
    process = manage("migrate", "--verbosity", "0", DATABASE_URL=f"sqlite:///{path}")
    assert process.wait(60) == 0, process.output
    return path


@pytest.fixture(scope="module")
def system(kind: str, database: Path) -> Iterator[System]:
    """A server with low limits on a Redis of its own, and nobody who beats."""
    limits = {f"REALTIME_{name}": value for name, value in LIMITS.items()}
    port = {"OTEL_EXPORTER_PROMETHEUS_PORT": str(free_port())}
    env = {"DATABASE_URL": f"sqlite:///{database}", **PROMETHEUS, **port, **limits, **HURRY}
    with running_system((kind, env), heartbeats=False) as system:
        system.servers[0].get("/readyz")  # Daphne's hub begins with the first who asks
        yield system


@pytest.fixture
def server(system: System) -> Server:
    return system.servers[0]


@pytest.fixture
async def page(request: pytest.FixtureRequest, server: Server) -> AsyncIterator[Page]:
    """The page of the server, on which nobody is."""
    page = Page(server.port)
    await page.is_("realtime.connections.active", 0)
    page.seen.clear()
    yield page
    assert request.function.shows <= page.seen


def client_from(server: Server, number: int = 1, path: str = "", **headers: str) -> Client:
    """Return a client with an address of its own."""
    return Client(f"{server.url}{path}", additional_headers={"X-Forwarded-For": f"192.0.2.{number}", **headers})


async def ask(client: Client, kind: str, **fields: Any) -> str:
    """Send a request, and return what came of it."""
    answer = await client.ask({"type": f"{kind}_request", **fields})
    return str(answer.get("code") or answer.get("error", {}).get("code") or answer["status"])


class Publisher:
    """Publish by hand, in whatever order, what one publisher numbers."""

    def __init__(self, system: System, topic: str) -> None:
        self._layer: BaseChannelLayer = RedisPubSubChannelLayer(**redis_layer(system.redis.url)["CONFIG"])
        self._topic = topic

    async def send(self, *numbers: int, ago: float = 0.0) -> None:
        for number in numbers:
            sent_at = time.time() - ago
            event = PublicationEvent(
                topic=self._topic, payload=str(number), sent_at=sent_at, publisher="hand.1", sequence=number
            )
            await self._layer.group_send(group_name(self._topic), event.to_message())

    async def close(self) -> None:
        await self._layer.flush()


@asynccontextmanager
async def publisher(system: System, topic: str) -> AsyncIterator[Publisher]:
    publisher = Publisher(system, topic)
    try:
        yield publisher
    finally:
        await publisher.close()


# The process


@shows(
    "realtime.start_time", "realtime.started", "realtime.layer.up", "realtime.threads.limit", "realtime.spans.dropped"
)
async def test_process_tells_how_it_is(server: Server, page: Page) -> None:
    started = os.stat(f"/proc/{server.pid}").st_ctime
    await page.is_("realtime.start_time", lambda value: started - 2 < value < started + TIMEOUT)
    await page.is_("realtime.started", 1)
    await page.is_("realtime.layer.up", 1)
    await page.is_("realtime.threads.limit", 8)
    await page.is_("realtime.spans.dropped", 0)


@shows("realtime.event_loop.lag")
async def test_event_loop_that_was_held_up_shows(server: Server, page: Page) -> None:
    await page.is_("realtime.event_loop.lag", lambda value: 0 <= value < 0.9)
    await server.aget("/block/?seconds=1.1")
    await page.is_("realtime.event_loop.lag", lambda value: 0.9 < value < TIMEOUT)


@shows("realtime.registry.lag")
async def test_registry_lags_while_the_database_is_locked(page: Page, database: Path) -> None:
    await page.is_("realtime.registry.lag", lambda value: 0 <= value < 1)
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        await page.is_("realtime.registry.lag", lambda value: value > 1.5)
        connection.execute("ROLLBACK")
    await page.is_("realtime.registry.lag", lambda value: 0 <= value < 1)


# Connections and subscriptions


@shows("realtime.connections", "realtime.connections.active")
async def test_connections_are_counted_as_they_come_and_go(server: Server, page: Page) -> None:
    before = await page.now()
    async with Client(server.url), Client(server.url):
        await page.is_("realtime.connections.active", 2)
        await page.grows(before, "realtime.connections", 2)
    await page.is_("realtime.connections.active", 0)
    await page.grows(before, "realtime.connections", 2)


@shows("realtime.subscriptions")
async def test_subscriptions_are_counted_by_pattern(server: Server, page: Page) -> None:
    async with Client(server.url) as one, Client(server.url) as other:
        for topic in ("news", "numbers.a", "numbers.b"):
            await one.subscribe(topic)
        await other.subscribe("numbers.a")
        await page.is_("realtime.subscriptions", 1, topic="news")
        await page.is_("realtime.subscriptions", 3, topic="numbers.{name}")
        await page.is_("realtime.subscriptions", None, topic="numbers.a")
        assert await ask(one, "unsubscribe", topic="numbers.a") == "OK"
        await page.is_("realtime.subscriptions", 2, topic="numbers.{name}")
    await page.is_("realtime.subscriptions", 0)


# Requests


SENT: list[tuple[str, Any, str]] = [
    ("echo_request", {"type": "echo_request", "echo": "x"}, "OK"),
    ("echo_request", {"type": "echo_request", "echo": "y"}, "OK"),
    ("echo_request", {"type": "echo_request", "echo": "x", "err": True}, "ASKED_BY_CLIENT"),
    ("subscribe_request", {"type": "subscribe_request", "topic": "news"}, "OK"),
    ("subscribe_request", {"type": "subscribe_request", "topic": "news"}, "ALREADY_SUBSCRIBED"),
    ("subscribe_request", {"type": "subscribe_request", "topic": "nowhere"}, "TOPIC_NOT_FOUND"),
    ("subscribe_request", {"type": "subscribe_request", "topic": "members"}, "FORBIDDEN"),
    ("subscribe_request", {"type": "subscribe_request", "topic": "raising"}, "INTERNAL_ERROR"),
    ("unsubscribe_request", {"type": "unsubscribe_request", "topic": "latest"}, "NOT_SUBSCRIBED"),
    ("process_request", {"type": "process_request"}, "OK"),
    ("complain_request", {"type": "complain_request", "what": "x"}, "INTERNAL_ERROR"),
    ("invalid", "no JSON", "BAD_REQUEST"),
    ("invalid", {"type": "nonsense_request"}, "UNKNOWN_MESSAGE_TYPE"),
]
"""The type that a frame is counted under, the frame, and what comes of it."""


@shows("realtime.requests", "realtime.request.duration.bucket", "realtime.request.duration.count")
async def test_requests_are_counted_by_type_and_outcome(server: Server, page: Page) -> None:
    before = await page.now()
    async with Client(server.url) as client:
        for _, frame, outcome in SENT:
            answer = await client.ask(frame)
            assert outcome in (answer.get("code"), answer.get("error", {}).get("code"), answer.get("status"))
    for (kind, outcome), number in Counter((kind, outcome) for kind, _, outcome in SENT).items():
        await page.grows(before, "realtime.requests", number, request=kind, outcome=outcome)
    for kind, number in Counter(kind for kind, _, _ in SENT).items():
        await page.grows(before, "realtime.request.duration.count", number, request=kind)
        await page.grows(before, "realtime.request.duration.bucket", number, request=kind, le="+Inf")
    await page.grows(before, "realtime.requests", len(SENT))


@shows("realtime.request.duration.bucket", "realtime.request.duration.count", "realtime.request.duration.sum")
async def test_request_that_takes_long_is_in_the_buckets_of_long_ones(server: Server, page: Page) -> None:
    before = await page.now()
    async with Client(server.url) as client:
        assert await ask(client, "subscribe", topic="hanging") == "INTERNAL_ERROR"  # after half a second
    await page.grows(before, "realtime.request.duration.count", request="subscribe_request")
    await page.grows(before, "realtime.request.duration.sum", lambda by: 0.4 < by < TIMEOUT)
    await page.grows(before, "realtime.request.duration.bucket", request="subscribe_request", le="+Inf")
    await page.grows(before, "realtime.request.duration.bucket", 0, request="subscribe_request", le="0.1")


@shows("realtime.rate_limited", "realtime.requests")
async def test_requests_over_the_rate_are_counted(server: Server, page: Page) -> None:
    before = await page.now()
    frame = raw.frame(raw.TEXT, b'{"type":"echo_request","echo":"x"}')
    async with Raw(server.port) as client:
        await client.open()
        await client.send(frame * (BURST + 5))
        answers = [json.loads((await client.frame())[1]) for _ in range(BURST + 5)]
    limited = sum(answer.get("code") == "RATE_LIMITED" for answer in answers)
    assert limited
    await page.grows(before, "realtime.rate_limited", limited)
    await page.grows(before, "realtime.requests", limited, request="echo_request", outcome="RATE_LIMITED")
    await page.grows(before, "realtime.requests", BURST + 5 - limited, request="echo_request", outcome="OK")


# Publications


LAG = ("realtime.delivery.lag.bucket", "realtime.delivery.lag.count", "realtime.delivery.lag.sum")


@shows("realtime.publications", "realtime.deliveries", *LAG)
async def test_publications_are_counted_once_and_deliveries_for_each_subscriber(server: Server, page: Page) -> None:
    before = await page.now()
    async with Client(server.url) as one, Client(server.url) as other:
        for client in (one, other):
            await client.subscribe("many-1")
        await one.subscribe("numbers.a")
        await server.aget("/publish/?topic=many-1&count=3")
        await server.aget("/publish/?topic=numbers.a&count=2")
        await server.aget("/publish/?topic=many-2&count=10")  # for nobody
        assert len(await one.publications(5)) == 5
        assert len(await other.publications(3)) == 3
    await page.grows(before, "realtime.publications", 3, topic="many-1")
    await page.grows(before, "realtime.deliveries", 6, topic="many-1")
    await page.grows(before, "realtime.publications", 2, topic="numbers.{name}")
    await page.grows(before, "realtime.deliveries", 2, topic="numbers.{name}")
    await page.grows(before, "realtime.publications", 5)
    await page.grows(before, "realtime.delivery.lag.count", 5)
    await page.grows(before, "realtime.delivery.lag.bucket", 5, le="+Inf")
    await page.grows(before, "realtime.delivery.lag.sum", lambda by: 0 < by < 5 * TIMEOUT)


@shows(*LAG)
async def test_publication_that_was_long_on_its_way_is_in_the_buckets_of_long_ones(
    system: System, server: Server, page: Page
) -> None:
    before = await page.now()
    async with Client(server.url) as client, publisher(system, "many-1") as by_hand:
        await client.subscribe("many-1")
        await by_hand.send(1, ago=100)
        await client.publications(1)
    await page.grows(before, "realtime.delivery.lag.count")
    await page.grows(before, "realtime.delivery.lag.sum", lambda by: 100 <= by < 100 + TIMEOUT)
    await page.grows(before, "realtime.delivery.lag.bucket", le="+Inf")
    await page.grows(before, "realtime.delivery.lag.bucket", 0, le="10.0")


@shows("realtime.gaps", "realtime.publications.lost", "realtime.publications.dropped")
async def test_what_is_missing_and_what_comes_again_is_counted(system: System, server: Server, page: Page) -> None:
    before = await page.now()
    async with Client(server.url) as client, publisher(system, "numbers") as by_hand:
        await client.subscribe("numbers")
        await by_hand.send(1, 2, 5, 9, 5, 9, 10)
        received = [await client.receive() for _ in range(7)]
        assert [message.get("data", message["type"]) for message in received] == [1, 2, "gap", 5, "gap", 9, 10]
    await page.grows(before, "realtime.gaps", 2)
    await page.grows(before, "realtime.publications.lost", 2 + 3)
    await page.grows(before, "realtime.publications.dropped", 2, reason="repeated")
    await page.grows(before, "realtime.publications.dropped", 0, reason="conflated")
    await page.grows(before, "realtime.publications", 5, topic="numbers")


@shows("realtime.layer.queue", "realtime.event_loop.lag")
async def test_what_waits_for_the_hub_is_seen_while_the_event_loop_is_held_up(server: Server, page: Page) -> None:
    await page.is_("realtime.layer.queue", 0)
    port = int(server.wait_for_line(r"event=metrics_served address=127\.0\.0\.1 port=(\d+)")[1])
    held = asyncio.create_task(server.aget("/block/?seconds=1.5&messages=7"))
    await page.at(port).is_("realtime.layer.queue", 7)
    await page.at(port).is_("realtime.event_loop.lag", lambda value: value > 0.3)
    assert not held.done()
    await held
    await page.is_("realtime.layer.queue", 0)


@shows("realtime.layer.queue")
@pytest.mark.parametrize("layer", ["pubsub", "core", "in memory"])
async def test_queue_is_known_on_every_layer(
    request: pytest.FixtureRequest, kind: str, redis: Redis, layer: str
) -> None:
    env = {} if layer == "in memory" else {"REDIS_URL": redis.url, "TEST_CHANNEL_LAYER": layer.replace("pubsub", "")}
    async with own(request, kind, **env) as (server, page), Client(server.url) as client:
        await client.subscribe("news")
        await page.is_("realtime.layer.queue", 0)


# Clients that do not read


@asynccontextmanager
async def congested(server: Server, topic: str) -> AsyncIterator[Raw]:
    """Connect a client that does not read, and have more published than the network takes."""
    async with Raw(server.port, receive_buffer=4096) as client:
        await client.open()
        await client.send_json({"type": "subscribe_request", "topic": topic})
        await client.frame()
        yield client


async def fill(server: Server, topic: str, until: Callable[[Figures], bool], page: Page) -> None:
    """Publish on a topic until a figure is so."""
    async with asyncio.timeout(TIMEOUT):
        while not until(await page.now()):
            await server.aget(f"/publish_text/?topic={topic}&size=20000&count=5")


@shows("realtime.outbox.size", "realtime.connections.congested", "realtime.slow_consumers", "realtime.closes")
async def test_client_that_does_not_read_is_seen_until_it_is_closed(server: Server, page: Page) -> None:
    before = await page.now()
    await page.is_("realtime.outbox.size", 0)
    async with congested(server, "many-3"):
        while (await server.aget("/wire/?topic=many-3&action=look"))["buffered"] < 100_000:
            await server.aget("/publish_text/?topic=many-3&size=20000")
        await page.is_("realtime.outbox.size", lambda value: 100_000 < value <= 1 << 18)
        await page.is_("realtime.connections.congested", 1)
        await page.grows(before, "realtime.slow_consumers", 0)
        slow = (before.find("realtime.slow_consumers") or 0) + 1
        await fill(server, "many-3", lambda now: now.find("realtime.slow_consumers") == slow, page)
        await page.grows(before, "realtime.slow_consumers", 1)
        await page.grows(before, "realtime.closes", 1, code="3008", side="server")
        await page.is_("realtime.outbox.size", 0)
        await page.is_("realtime.connections.congested", 0)


@shows("realtime.publications.dropped")
async def test_what_a_newer_publication_takes_the_place_of_is_counted(server: Server, page: Page) -> None:
    before = await page.now()
    async with congested(server, "latest"):
        begin = before.find("realtime.publications.dropped", reason="conflated") or 0
        await fill(
            server,
            "latest",
            lambda now: (now.find("realtime.publications.dropped", reason="conflated") or 0) > begin,
            page,
        )
        await page.grows(before, "realtime.publications.dropped", lambda by: by > 0, reason="conflated")
        await page.grows(before, "realtime.publications.dropped", 0, reason="repeated")
        await page.grows(before, "realtime.slow_consumers", 0)


# How connections end


@shows("realtime.closes")
async def test_ends_are_counted_by_code_and_by_who_closed(server: Server, page: Page) -> None:
    before = await page.now()

    async def leave(client: Client, code: int) -> None:
        await client.ws.close(code)

    async def send_too_much(client: Client) -> None:
        await client.send("x" * 2001)
        assert (await client.closed())[0] == 1009

    async def be_closed(client: Client, code: int) -> None:
        await client.subscribe("many-4")
        await server.aget(f"/close/?code={code}&topic=many-4")
        assert await client.closed() == (code, "")

    ends: list[tuple[str, str, Callable[[Client], Awaitable[None]]]] = [
        ("1000", "client", partial(leave, code=1000)),
        ("1001", "client", partial(leave, code=1001)),
        ("4xxx", "client", partial(leave, code=4321)),
        ("3xxx", "client", partial(leave, code=3999)),
        ("1001", "server", partial(be_closed, code=1001)),
        ("1012", "server", partial(be_closed, code=1012)),
        ("4xxx", "server", partial(be_closed, code=4000)),
        ("1006", "server", partial(be_closed, code=1006)),
        ("1009", "server", send_too_much),
    ]
    for _, _, end in ends:
        async with Client(server.url, compression=None) as client:
            await end(client)
    for code, side, _ in ends:
        await page.grows(before, "realtime.closes", 1, code=code, side=side)
    async with Raw(server.port) as client:
        await client.open()
        await page.is_("realtime.connections.active", 1)
        client.abort()
    await page.grows(before, "realtime.closes", 1, code="1006", side="client")
    before = await page.now()
    async with Raw(server.port) as client:
        await client.open()
        await client.send(raw.frame(raw.CLOSE))
        await client.closed()
    await page.grows(before, "realtime.closes", 1, code="1005", side="client")
    await page.grows(before, "realtime.closes", 1)


# Who is not let in


async def refused(server: Server, status: int, path: str = "", **headers: str) -> None:
    with pytest.raises(InvalidStatus) as caught:
        async with client_from(server, 1, path, **headers):
            pass
    assert caught.value.response.status_code == status


@shows("realtime.handshakes.refused", "realtime.closes")
async def test_refusals_are_counted_by_why(server: Server, page: Page) -> None:
    before = await page.now()
    await refused(server, 403, Origin="https://elsewhere.example")
    await refused(server, 403, "elsewhere/")
    async with client_from(server, Authorization="Bearer bad") as stranger:
        assert await stranger.closed() == (1008, "token refused")
    async with client_from(server, Authorization="Bearer good-ada"):
        await refused(server, 429, Authorization="Bearer good-ada")
    await page.is_("realtime.connections.active", 0)
    async with AsyncExitStack() as stack:
        for _ in range(PER_ADDRESS):
            await stack.enter_async_context(client_from(server))
        await refused(server, 429)
        for number in range(AT_ALL - PER_ADDRESS):
            await stack.enter_async_context(client_from(server, 2 + number))
        for _ in range(2):
            await refused(server, 503)
    for reason, number in {"origin": 1, "path": 1, "token": 1, "user": 1, "address": 1, "full": 2}.items():
        await page.grows(before, "realtime.handshakes.refused", number, reason=reason)
    await page.grows(before, "realtime.handshakes.refused", 7)
    await page.grows(before, "realtime.closes", 1, code="1008", side="server")


@shows("realtime.handshakes.unidentified")
async def test_users_that_cannot_be_read_are_counted(server: Server, page: Page) -> None:
    before = await page.now()
    async with client_from(server, Authorization="Bearer broken") as client:
        await client.echo()
    async with client_from(server, Authorization="Bearer good-ada") as client:
        await client.echo()
    await page.grows(before, "realtime.handshakes.unidentified", 1)


# Threads and the stop


@asynccontextmanager
async def own(request: pytest.FixtureRequest, kind: str, **env: str) -> AsyncIterator[tuple[Server, Page]]:
    """Run a server that the test may spoil."""
    with running(kind, **PROMETHEUS, **env) as server:
        await server.aget("/readyz")
        page = Page(server.port)
        yield server, page
    assert request.function.shows <= page.seen


@shows("realtime.threads.busy", "realtime.threads.limit", "realtime.requests")
async def test_threads_that_hang_are_seen(request: pytest.FixtureRequest, kind: str) -> None:
    async with own(request, kind, REALTIME_SYNC_THREADS="2", REALTIME_HANDLER_TIMEOUT="0.3") as (server, page):
        await page.is_("realtime.threads.limit", 2)
        await page.is_("realtime.threads.busy", 0)
        before = await page.now()
        for busy in (1, 2, 2):
            async with Client(server.url) as client:
                assert await ask(client, "subscribe", topic="stuck-thread") == "INTERNAL_ERROR"
                await page.is_("realtime.threads.busy", busy)
        await page.grows(before, "realtime.requests", 3, request="subscribe_request", outcome="INTERNAL_ERROR")


@shows("realtime.started", "realtime.handshakes.refused")
async def test_server_that_is_to_stop_takes_no_connections(request: pytest.FixtureRequest, kind: str) -> None:
    async with (
        own(request, kind, REALTIME_DRAIN_TIMEOUT="15") as (server, page),
        Raw(server.port) as stays,
        Raw(server.port) as late,
    ):
        await page.is_("realtime.started", 1)
        await stays.open()
        server.signal(signal.SIGTERM)
        assert await stays.closed() == (1001, "server shutdown")
        await page.is_("realtime.started", 0)
        assert "503" in await late.open()
        await page.is_("realtime.handshakes.refused", 1, reason="draining")


# Heartbeats, and outages


@shows("realtime.heartbeat.missing", "realtime.heartbeat.age", "realtime.publications")
async def test_heartbeats_are_missed_until_somebody_beats(system: System, server: Server, page: Page) -> None:
    await page.is_("realtime.heartbeat.missing", 0)  # nobody wants them
    async with Client(server.url, max_queue=None) as client:
        await client.subscribe("heartbeat")
        await page.is_("realtime.heartbeat.missing", 1)
        await page.is_("realtime.heartbeat.age", None)
        before = await page.now()
        broadcaster = await asyncio.to_thread(system.broadcast)
        await page.is_("realtime.heartbeat.age", lambda value: 0 <= value < 0.6)
        await page.is_("realtime.heartbeat.missing", 0)
        await page.grows(before, "realtime.publications", lambda by: by > 2, topic="heartbeat")
        await asyncio.to_thread(broadcaster.stop)
        await page.is_("realtime.heartbeat.age", lambda value: value > 0.7)
        await page.is_("realtime.heartbeat.missing", 1)


@shows("realtime.layer.up", "realtime.layer.reconnects")
async def test_outage_of_the_layer_is_seen(system: System, server: Server, page: Page) -> None:
    before = await page.now()
    await page.is_("realtime.layer.up", 1)
    system.redis.kill()
    try:
        async with Client(server.url) as client:
            await client.subscribe("many-5")  # which finds it out at once
        await page.is_("realtime.layer.up", 0)
        await page.grows(before, "realtime.layer.reconnects", 0)
    finally:
        system.redis.start()
    await page.is_("realtime.layer.up", 1)
    await page.grows(before, "realtime.layer.reconnects", 1)


# All of them


def test_every_instrument_is_shown_by_a_test() -> None:
    assert shown == SERIES.keys()
