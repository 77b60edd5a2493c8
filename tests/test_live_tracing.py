"""Traces of two servers on one Redis, as a collector gets them: what is in them, and what never is."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from itertools import count
from typing import Any, TypeVar
from urllib.error import HTTPError

import pytest
import redis

from realtime.events import group_name
from realtime.protocol import SUBPROTOCOL

from .live import SERVERS, TIMEOUT, Client, Server, System, eventually, free_port, manage, running_system
from .otlp import HURRY, Sink, Span, receiving
from .test_live_sessions import PASSWORD, Browser
from .test_live_stop import assert_ends

T = TypeVar("T")

APPLICATION = "tests.site.asgi:traced"
LATER = {"OTEL_BSP_SCHEDULE_DELAY": "600000"}
"""The environment of a process that sends its spans when it ends."""
EACH = 3
"""Subscribers on each server."""
DJANGO = "opentelemetry.instrumentation.django"
SECRET = "s3cr3t" + secrets.token_hex(8)
KEY = f"dmk_{SECRET}"
SETUP = f"""
from django.contrib.auth.models import User
from realtime.models import PublishKey, digest
User.objects.create_superuser("ada", "", "{PASSWORD}")
PublishKey.objects.create(name="service", digest=digest("{KEY}"))
"""
numbers = count()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A migrated database with an operator and a key to publish with; return its URL."""
    url = f"sqlite:///{tmp_path_factory.mktemp('tracing') / 'site.sqlite3'}"
    for arguments in (["migrate", "--verbosity", "0"], ["shell", "--verbosity", "0", "-c", SETUP]):
        process = manage(*arguments, DATABASE_URL=url)
        assert process.wait(60) == 0, process.output
    return url


def traced(endpoint: str, **env: str) -> dict[str, str]:
    """Return the environment of a process that sends its spans to a collector."""
    hurry = {**HURRY, "OTEL_METRIC_EXPORT_INTERVAL": "1000"}
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **hurry, **env}


@contextmanager
def tracing_system(endpoint: str, **env: str) -> Iterator[System]:
    """Run Daphne and uvicorn on one Redis, and have both send their spans to ``endpoint``."""
    env = traced(endpoint, **env)
    with running_system(*((kind, {"application": APPLICATION, **env}) for kind in SERVERS), heartbeats=False) as system:
        yield system


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    with receiving() as sink:
        yield sink


@pytest.fixture(scope="module")
def shared(sink: Sink, database: str) -> Iterator[System]:
    with tracing_system(sink.endpoint, DATABASE_URL=database) as system:
        yield system


@pytest.fixture
async def system(shared: System) -> System:
    """The servers that most tests share, without anybody on them."""
    for server in shared.servers:
        await eventually(lambda server=server: server.get("/census/")["connections"] == 0)
    return shared


@pytest.fixture(scope="module")
def trusting(sink: Sink) -> Iterator[System]:
    """Servers that take a client's span for the parent of theirs."""
    with tracing_system(sink.endpoint, REALTIME_TRUST_CLIENT_TRACEPARENT="true") as system:
        yield system


# What arrived


class Caller:
    """Be a span of a client's own."""

    def __init__(self) -> None:
        self.trace_id = secrets.token_hex(16)
        self.span_id = secrets.token_hex(8)

    @property
    def ids(self) -> tuple[str, str]:
        return self.trace_id, self.span_id

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-01"

    def has_made(self, span: Span) -> bool:
        """Return whether a span is this one's child, or links to it."""
        return self.ids in (*span.links, (span.trace_id, span.parent))


def ids(span: Span) -> tuple[str, str]:
    return span.trace_id, span.span_id


def pid(span: Span) -> int:
    """Return the process that a span is of."""
    found: int = span.resource["process.pid"]
    return found


def pids(system: System) -> list[int]:
    return sorted(server.pid for server in system.servers)


def new_topic() -> str:
    """Return a topic that no other test publishes on."""
    return f"many-{next(numbers)}"


async def arrives(sink: Sink, predicate: Callable[[Sink], T]) -> T:
    return await asyncio.to_thread(sink.wait_for, predicate)


async def accepted(sink: Sink, caller: Caller) -> Span:
    """Return the span in which a client was let in."""

    def found(sink: Sink) -> list[Span]:
        return [span for span in sink.named("accept") if caller.has_made(span)]

    return (await arrives(sink, found))[0]


async def everything(sink: Sink, system: System) -> None:
    """Wait until all that the servers have recorded has arrived: they send it in order."""
    for server in system.servers:
        last = Caller()
        async with Client(server.url, additional_headers={"traceparent": last.traceparent}):
            pass
        await accepted(sink, last)


def in_trace(sink: Sink, trace_id: str) -> list[Span]:
    return [span for span in sink.spans if span.trace_id == trace_id]


async def whole_trace(sink: Sink, system: System, name: str, trace_id: str = "") -> list[Span]:
    """Return the spans of the one trace with a span of this name, each after its parent."""
    [span] = await arrives(sink, lambda sink: [span for span in sink.named(name) if trace_id in ("", span.trace_id)])
    await everything(sink, system)
    spans = sorted(in_trace(sink, span.trace_id), key=lambda span: span.start)
    assert len({span.span_id for span in spans}) == len(spans)
    return spans


def assert_connected(spans: list[Span], parent: str = "") -> Span:
    """Assert that each span's parent is among them, but for one, which has ``parent``. Return that one."""
    known = {span.span_id for span in spans}
    [root] = [span for span in spans if span.parent not in known]
    assert root.parent == parent
    return root


def named(spans: list[Span], name: str) -> list[Span]:
    return [span for span in spans if span.name == name]


@asynccontextmanager
async def subscribers(system: System, topic: str) -> AsyncIterator[list[Client]]:
    """Connect several clients to each server, subscribed to a topic."""
    async with AsyncExitStack() as stack:
        clients = []
        for server in system.servers:
            for _ in range(EACH):
                clients.append(await stack.enter_async_context(Client(server.url)))
                await clients[-1].subscribe(topic)
        yield clients


def assert_delivered(spans: list[Span], publish: Span, system: System, pattern: str, each: int = EACH) -> None:
    """Assert that a publication was delivered once in every process, whatever the number of subscribers."""
    assert (publish.name, publish.kind) == (f"publish {pattern}", "producer")
    assert publish.attributes["messaging.destination.template"] == pattern
    deliveries = named(spans, f"deliver {pattern}")
    assert sorted(map(pid, deliveries)) == pids(system)
    for delivery in deliveries:
        assert (delivery.kind, delivery.parent, delivery.links) == ("consumer", publish.span_id, [ids(publish)])
        assert delivery.attributes["realtime.connections"] == each
        assert delivery.attributes["messaging.destination.template"] == pattern
    assert {span.status for span in spans} == {"unset"}


# Publications


@pytest.mark.parametrize("number", [0, 1], ids=SERVERS)
@pytest.mark.parametrize("page", ["publish", "apublish"])
async def test_publication_of_a_page_is_one_trace_to_the_last_subscriber(
    system: System, sink: Sink, page: str, number: int
) -> None:
    topic, server = new_topic(), system.servers[number]
    async with subscribers(system, topic) as clients:
        await server.aget(f"/{page}/?topic={topic}")
        for client in clients:
            assert await client.publications(1) == [{"number": 0}]
    spans = await whole_trace(sink, system, f"publish {topic}")
    http = assert_connected(spans)
    [publish] = named(spans, f"publish {topic}")
    assert (http.name, http.kind, http.scope) == (f"GET {page}/", "server", DJANGO)
    assert publish.parent == http.span_id
    assert pid(http) == pid(publish) == server.pid
    assert_delivered(spans, publish, system, topic)
    assert len(spans) == 4


async def test_publications_of_one_page_are_siblings(system: System, sink: Sink) -> None:
    topic = new_topic()
    async with subscribers(system, topic) as clients:
        await system.servers[0].aget(f"/publish/?topic={topic}&count=3")
        for client in clients:
            assert len(await client.publications(3)) == 3
    published = await arrives(sink, lambda sink: sink.named(f"publish {topic}")[2:] and sink.named(f"publish {topic}"))
    await everything(sink, system)
    assert len({span.trace_id for span in published}) == len({span.parent for span in published}) == 1
    spans = in_trace(sink, published[0].trace_id)
    assert_connected(spans)
    parents = Counter(span.parent for span in named(spans, f"deliver {topic}"))
    assert parents == {span.span_id: len(SERVERS) for span in published}


async def test_publication_over_http_is_one_trace_with_the_callers(system: System, sink: Sink) -> None:
    topic, caller = new_topic(), Caller()
    async with subscribers(system, topic) as clients:
        await post(system.servers[1], topic, {"n": 1}, traceparent=caller.traceparent)
        for client in clients:
            assert await client.publications(1) == [{"n": 1}]
    spans = await whole_trace(sink, system, f"publish {topic}")
    http = assert_connected(spans, caller.span_id)
    assert (http.name, http.trace_id) == ("POST publish", caller.trace_id)
    [publish] = named(spans, f"publish {topic}")
    assert_delivered(spans, publish, system, topic)


async def post(server: Server, topic: str, data: Any, **headers: str) -> None:
    """Publish over HTTP, as services do that are not Python."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/publish",
        json.dumps({"topic": topic, "data": data}).encode(),
        {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", **headers},
    )

    def send() -> None:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            assert json.load(response) == {"published": 1}

    await asyncio.to_thread(send)


async def test_heartbeat_is_one_trace_from_the_broadcaster_to_every_process(system: System, sink: Sink) -> None:
    async with subscribers(system, "heartbeat") as clients:
        broadcaster = await asyncio.to_thread(lambda: system.broadcast(**traced(sink.endpoint)))
        now = time.time()
        for client in clients:
            await client.beat(now)

        def complete(sink: Sink) -> list[list[Span]]:
            traces = [in_trace(sink, span.trace_id) for span in sink.named("publish heartbeat")]
            return [spans for spans in traces if len(spans) == 1 + len(SERVERS)]

        spans = (await arrives(sink, complete))[0]
        broadcaster.stop()
    publish = assert_connected(spans)
    assert (publish.name, publish.kind, pid(publish)) == ("publish heartbeat", "producer", broadcaster.pid)
    beats = named(spans, "heartbeat")
    assert sorted(map(pid, beats)) == pids(system)
    for beat in beats:
        assert (beat.kind, beat.links) == ("consumer", [ids(publish)])
        assert beat.attributes["realtime.connections"] == EACH


# Closing


async def test_operators_close_is_one_trace_to_every_process(system: System, sink: Sink) -> None:
    browser = await asyncio.to_thread(Browser, system.servers[0])
    form = {"target": "all", "code": "1012", "reason": "deploy", "spread": "0"}
    begin = len(sink.spans)
    async with subscribers(system, "news") as clients, Client(system.servers[1].url) as one_more:
        await asyncio.to_thread(lambda: browser.post("/admin/realtime/connection/close/", **form))
        for client in (*clients, one_more):
            assert await client.closed() == (1012, "deploy")
    name = "close_connections"
    await arrives(sink, lambda sink: named(sink.spans[begin:], name))
    [span] = named(sink.spans[begin:], name)
    spans = await whole_trace(sink, system, name, span.trace_id)
    http = assert_connected(spans)
    assert (http.name, pid(http)) == ("POST admin/realtime/connection/close/", system.servers[0].pid)
    [asked] = named(spans, name)
    assert (asked.kind, asked.parent) == ("producer", http.span_id)
    assert {key: value for key, value in asked.attributes.items() if key.startswith("realtime.")} == {
        "realtime.close.code": 1012,
        "realtime.close.target": "all",
        "realtime.connections": 2 * EACH + 1,
        "realtime.servers": 2,
    }
    closes = named(spans, "close")
    assert {pid(span): span.attributes["realtime.connections"] for span in closes} == {
        system.servers[0].pid: EACH,
        system.servers[1].pid: EACH + 1,
    }
    assert {(span.kind, span.parent) for span in closes} == {("consumer", asked.span_id)}
    assert len(spans) == 2 + len(closes)


# Requests


REQUESTS = {
    "echo": ({"type": "echo_request", "echo": "x"}, "OK"),
    "subscribe": ({"type": "subscribe_request", "topic": "news"}, "OK"),
    "unsubscribe": ({"type": "unsubscribe_request", "topic": "news"}, "OK"),
    "request": ("no request", "BAD_REQUEST"),
    "process": ({"type": "process_request"}, "OK"),
    "complain": ({"type": "complain_request", "what": "x"}, "INTERNAL_ERROR"),
}
"""By the span's name, a frame and what comes of it."""


async def ask_everything(server: Server, caller: Caller) -> None:
    """Connect as ``caller``, and send each request once."""
    async with Client(server.url, additional_headers={"traceparent": caller.traceparent}) as client:
        for frame, _ in REQUESTS.values():
            await client.ask(frame)


@pytest.mark.parametrize("number", [0, 1], ids=SERVERS)
async def test_every_request_is_a_trace_that_links_to_its_connections(system: System, sink: Sink, number: int) -> None:
    caller = Caller()
    await ask_everything(system.servers[number], caller)
    await everything(sink, system)
    accept = await accepted(sink, caller)
    assert (accept.kind, accept.parent, accept.links) == ("server", "", [caller.ids])
    assert accept.attributes["client.address"] == "127.0.0.1"
    connection = accept.attributes["realtime.connection.id"]
    spans = [span for span in sink.spans if span.attributes.get("realtime.connection.id") == connection]
    assert [span.name for span in spans] == ["accept", *REQUESTS]
    for span in spans[1:]:
        assert (span.kind, span.parent, span.links) == ("server", "", [ids(accept)])
        assert span.attributes["realtime.outcome"] == REQUESTS[span.name][1]
        assert span.status == ("error" if span.name == "complain" else "unset")
    assert {pid(span) for span in spans} == {system.servers[number].pid}
    assert len({span.trace_id for span in spans}) == len(spans)


@pytest.mark.parametrize("name", ["echo", "subscribe", "process"])
async def test_clients_span_is_a_link_of_its_request(system: System, sink: Sink, name: str) -> None:
    opener, caller = Caller(), Caller()
    frame = REQUESTS[name][0] | {"traceparent": caller.traceparent}
    async with Client(system.servers[0].url, additional_headers={"traceparent": opener.traceparent}) as client:
        await client.ask(frame)
    accept = await accepted(sink, opener)
    [span] = await arrives(sink, lambda sink: [span for span in sink.named(name) if caller.has_made(span)])
    assert span.parent == ""
    assert span.links == [ids(accept), caller.ids]
    assert span.trace_id not in (accept.trace_id, caller.trace_id)


@pytest.mark.parametrize("number", [0, 1], ids=SERVERS)
async def test_clients_span_is_the_parent_where_clients_are_trusted(trusting: System, sink: Sink, number: int) -> None:
    opener, caller = Caller(), Caller()
    server = trusting.servers[number]
    async with Client(server.url, additional_headers={"traceparent": opener.traceparent}) as client:
        for name in ("echo", "subscribe", "process"):
            await client.ask(REQUESTS[name][0] | {"traceparent": caller.traceparent})
        await client.echo()
    accept = await accepted(sink, opener)
    assert ((accept.trace_id, accept.parent), accept.links) == (opener.ids, [])
    await everything(sink, trusting)
    spans = in_trace(sink, caller.trace_id)
    assert [span.name for span in spans] == ["echo", "subscribe", "process"]
    for span in spans:
        assert (span.parent, span.links) == (caller.span_id, [ids(accept)])
    [other] = [span for span in sink.named("echo") if ids(accept) in span.links and span not in spans]
    assert (other.parent, other.trace_id in (caller.trace_id, opener.trace_id)) == ("", False)


# From a client's click to the last subscriber


async def paint(client: Client, row: int, **fields: str) -> None:
    """Change a cell of the demo's board, which everybody who looks at it is sent."""
    frame = {"type": "board_set_request", "row": row, "column": 0, "colour": "red", **fields}
    answer = await client.ask(frame)
    assert answer["status"] == "OK", answer


@pytest.mark.parametrize("number", [0, 1], ids=SERVERS)
@pytest.mark.parametrize("trusted", [False, True], ids=["linked", "trusted"])
async def test_what_a_requests_handler_publishes_is_in_the_requests_trace(
    request: pytest.FixtureRequest, sink: Sink, number: int, *, trusted: bool
) -> None:
    system: System = request.getfixturevalue("trusting" if trusted else "shared")
    caller, server = Caller(), system.servers[number]
    async with subscribers(system, "board") as clients, Client(server.url) as painter:
        for client in clients:
            assert (await client.receive())["type"] == "publication"  # the board as it is
        await paint(painter, number, traceparent=caller.traceparent)
        for client in clients:
            [board] = await client.publications(1)
            assert board["rows"][number].startswith("r")
    [asked] = await arrives(sink, lambda sink: [span for span in sink.named("board_set") if caller.has_made(span)])
    spans = await whole_trace(sink, system, "board_set", asked.trace_id)
    root = assert_connected(spans, caller.span_id if trusted else "")
    assert root == asked
    assert (asked.trace_id == caller.trace_id) == trusted
    [publish] = named(spans, "publish board")
    assert (publish.parent, pid(publish)) == (asked.span_id, server.pid)
    assert_delivered(spans, publish, system, "board")
    assert len(spans) == 4


# Sampling


class Tap:
    """Listen to all that crosses Redis."""

    def __init__(self, system: System) -> None:
        self._pubsub = redis.Redis.from_url(system.redis.url, socket_timeout=TIMEOUT).pubsub()

    def __enter__(self) -> Tap:
        self._pubsub.psubscribe("*")
        self._pubsub.get_message(timeout=TIMEOUT)
        return self

    def __exit__(self, *_: object) -> None:
        self._pubsub.close()
        self._pubsub.connection_pool.disconnect()

    def publication(self, topic: str) -> bytes:
        """Return the next publication on a topic as it crosses."""
        channel = f"asgi__group__{group_name(topic)}".encode()
        while (message := self._pubsub.get_message(timeout=TIMEOUT)) is not None:
            if message["channel"] == channel and b"publication" in message["data"]:
                return bytes(message["data"])
        raise AssertionError(f"nothing was published on {topic}")


async def test_publication_that_is_traced_carries_its_span(system: System, sink: Sink) -> None:
    topic = new_topic()
    with Tap(system) as tap:
        await system.servers[0].aget(f"/publish/?topic={topic}")
        message = await asyncio.to_thread(tap.publication, topic)
    span = (await arrives(sink, lambda sink: sink.named(f"publish {topic}")))[0]
    assert f"00-{span.trace_id}-{span.span_id}-".encode() in message


async def test_nothing_is_recorded_and_everything_works_where_nothing_is_sampled() -> None:
    off = {"OTEL_TRACES_SAMPLER": "always_off"}
    with receiving() as sink, tracing_system(sink.endpoint, **off) as system:
        async with subscribers(system, "board") as clients, Client(system.servers[0].url) as painter:
            for client in clients:
                await client.receive()
            for page in ("publish", "apublish"):
                with Tap(system) as tap:
                    await system.servers[0].aget(f"/{page}/?topic=many-1")
                    assert b"traceparent" not in await asyncio.to_thread(tap.publication, "many-1")
            with Tap(system) as tap:
                await paint(painter, 0, traceparent=Caller().traceparent)
                assert b"traceparent" not in await asyncio.to_thread(tap.publication, "board")
            with Tap(system) as tap:
                system.manage("publish", "many-2", '{"n": 1}', **traced(sink.endpoint, **off))
                assert b"traceparent" not in await asyncio.to_thread(tap.publication, "many-2")
            for client in clients:
                await client.publications(1)
                await client.echo()
            outcome = await system.servers[1].aget("/close/?code=4000&topic=board")
            assert outcome == {"servers": 2, "connections": 2 * EACH, "unknown": 0}
        for server in system.servers:
            server.signal(15)
            await asyncio.to_thread(server.wait)
        assert sink.spans == []
        assert {point.resource["process.pid"] for point in sink.metrics["realtime.connections"]} == {*pids(system)}


async def test_connection_is_sampled_with_all_of_its_requests_or_with_none() -> None:
    ratio = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.3"}
    with receiving() as sink, tracing_system(sink.endpoint, **ratio) as system:
        for _ in range(30):
            for server in system.servers:
                async with Client(server.url) as client:
                    for _ in range(5):
                        await client.echo()
        for server in system.servers:
            server.signal(15)
            await asyncio.to_thread(server.wait)
    accepts = {span.attributes["realtime.connection.id"]: span for span in sink.named("accept")}
    echoes = Counter(span.attributes["realtime.connection.id"] for span in sink.named("echo"))
    assert echoes == dict.fromkeys(accepts, 5)
    assert 0 < len(accepts) < 60
    assert {pid(span) for span in accepts.values()} == {*pids(system)}
    for span in sink.named("echo"):
        assert span.links == [ids(accepts[span.attributes["realtime.connection.id"]])]


# What no collector is to get


async def tell_secrets(server: Server) -> list[str]:
    """Have a server handle secrets in every place that there is for them. Return those that it has made itself."""
    topic = f"numbers.{SECRET}"
    frames: list[Any] = [
        {"type": "echo_request", "echo": SECRET, "reqId": SECRET},
        {"type": "subscribe_request", "topic": topic, "reqId": SECRET},
        {"type": "subscribe_request", "topic": SECRET},
        {"type": "complain_request", "what": SECRET},
        {"type": SECRET, "traceparent": SECRET},
        SECRET,
        SECRET.encode(),
    ]
    browser = await asyncio.to_thread(Browser, server)
    credentials = [
        Client(f"{server.url}?token=good-{SECRET}"),
        Client(f"{server.url}ws/?token=good-{SECRET}", subprotocols=[SUBPROTOCOL]),
        Client(server.url, subprotocols=[SUBPROTOCOL, f"token.good-{SECRET}"]),
        Client(server.url, additional_headers={"Authorization": f"Bearer good-{SECRET}", "tracestate": f"a={SECRET}"}),
        browser.connect(),
    ]
    for credential in credentials:
        async with credential as client:
            for frame in frames:
                await client.ask(frame)
            await server.aget(f"/apublish/?topic={topic}&token={SECRET}")
            await post(server, topic, {"text": SECRET})
            assert await client.publications(2) == [{"number": 0}, {"text": SECRET}]
            await server.aget(f"/close/?code=4000&reason={SECRET}&topic={topic}")
            assert await client.closed() == (4000, SECRET)
    async with Client(f"{server.url}?token={SECRET}") as refused:
        assert await refused.closed() == (1008, "token refused")
    for path, status in {f"/?token={SECRET}": "404", f"/publish/?topic={SECRET}": "500"}.items():
        with pytest.raises(HTTPError, match=status):
            await server.aget(path)
    return [str(cookie.value) for cookie in browser.jar]


async def test_no_secret_leaves_the_process(system: System, sink: Sink) -> None:
    made = [secret for server in system.servers for secret in await tell_secrets(server)]
    await everything(sink, system)
    await arrives(sink, lambda sink: sink.metrics.get("realtime.closes"))
    points = len(sink.metrics["realtime.closes"])
    await arrives(sink, lambda sink: len(sink.metrics["realtime.closes"]) > points + 20)
    patterns = {span.name for span in sink.spans}
    assert patterns >= {"subscribe", "complain", "publish numbers.{name}", "deliver numbers.{name}", "close"}
    assert {pid(span) for span in sink.named("publish numbers.{name}")} == {*pids(system)}
    failed = [span for span in sink.named("GET publish/") if span.status == "error"]
    assert [event.attributes["exception.type"] for span in failed for event in span.events] == [
        "realtime.exceptions.UnknownTopic"
    ] * len(SERVERS)
    told = repr([sink.spans, sink.metrics])
    assert "numbers.{name}" in repr(sink.metrics)
    for secret in (SECRET, PASSWORD, *made):
        assert secret not in told, told[told.index(secret) - 1000 :][:1100]


# Collectors that are no good


@contextmanager
def no_collector(how: str) -> Iterator[str]:
    """Return the endpoint of a collector that takes everything and never answers, or of none."""
    if how == "refuses":
        yield f"http://127.0.0.1:{free_port()}"
        return
    with receiving(silent=True) as sink:
        yield sink.endpoint


@pytest.mark.parametrize("how", ["hangs", "refuses"])
async def test_collector_that_is_no_good_harms_no_client_and_no_stop(how: str) -> None:
    small = {"OTEL_BSP_MAX_QUEUE_SIZE": "64", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "32"}
    with no_collector(how) as endpoint, tracing_system(endpoint, **small) as system:
        async with subscribers(system, "news") as clients:
            longest = 0.0
            for _ in range(5):
                for server in system.servers:
                    await server.aget("/apublish/?count=50")
                for client in clients:
                    assert len(await client.publications(100)) == 100
                for client in clients * 10:
                    began = time.monotonic()
                    await client.echo()
                    longest = max(longest, time.monotonic() - began)
            assert longest < 1
            for server in system.servers:
                server.signal(15)
            began = time.monotonic()
            for client in clients:
                assert await client.closed() == (1001, "server shutdown")
        for server in system.servers:
            await assert_ends(server, began=began)
            assert "Traceback" not in server.output
            assert "event=telemetry_slow" not in server.output
            assert "event=spans_dropped" not in server.output


# The end


async def test_what_was_recorded_last_arrives_after_the_stop() -> None:
    callers = [Caller() for _ in SERVERS]
    with receiving() as sink, tracing_system(sink.endpoint, **LATER) as system:
        async with AsyncExitStack() as stack:
            clients = []
            for server, caller in zip(system.servers, callers, strict=True):
                headers = {"traceparent": caller.traceparent}
                clients.append(await stack.enter_async_context(Client(server.url, additional_headers=headers)))
            leaving = [await stack.enter_async_context(Client(server.url)) for server in system.servers]
            for client in leaving:
                await client.subscribe("news")
            await system.servers[0].aget("/close/?code=1012&topic=news")
            for client in leaving:
                assert await client.closed() == (1012, "")
            for client in clients:
                await client.echo()
            assert not sink.spans
            for server in system.servers:
                server.signal(15)
            began = time.monotonic()
            for client in clients:
                assert await client.closed() == (1001, "server shutdown")
        for server in system.servers:
            await assert_ends(server, began=began)
        for caller in callers:
            accept = await accepted(sink, caller)
            assert [ids(accept)] in [span.links for span in sink.named("echo")]
        for name in ("accept", "echo", "subscribe", "close"):
            assert {pid(span) for span in sink.named(name)} == {*pids(system)}, name
        [asked] = sink.named("close_connections")
        assert asked.attributes["realtime.connections"] == 2
