"""The test server, as tests of clients use it."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from websockets.exceptions import ConnectionClosed, InvalidStatus

from realtime import Topic
from realtime import client as realtime_client
from realtime.conf import get_settings
from realtime.exceptions import UnknownTopic
from realtime.protocol import CloseMessage, SubscribeRequest
from realtime.testing import DemoWebsocketServer, faults
from realtime.testing.engine import Engine
from realtime.testing.namespace import ConnectionInfo
from realtime.testing.server import parse_address
from realtime.testing.transcript import Log

from .live import Client, eventually
from .raw import CLOSE, PING, PONG, Raw, frame, handshake

STARTS = int(os.environ.get("DEMOWS_STARTS", "20"))
"""How often the server is started to see whether it leaves anything behind."""
topic = Topic("demo-server.{name}", public=True)


@pytest.fixture
def server() -> Iterator[DemoWebsocketServer]:
    """A server without heartbeats of its own: the test asks for them."""
    with DemoWebsocketServer("127.0.0.1:0", heartbeat_interval=3600) as server:
        yield server


@pytest.fixture
async def client(server: DemoWebsocketServer) -> AsyncIterator[Client]:
    async with Client(server.url, max_queue=None) as client:
        yield client


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def wait(server: Any, **options: Any) -> Any:
    return asyncio.to_thread(server.wait_for_connection, **options)


# Start and stop


def test_second_start_raises(server: DemoWebsocketServer) -> None:
    with pytest.raises(RuntimeError, match="started already"):
        server.start()


def test_stop_before_start_raises() -> None:
    with pytest.raises(RuntimeError, match="not started"):
        DemoWebsocketServer("127.0.0.1:0").stop()


def test_second_stop_raises() -> None:
    server = DemoWebsocketServer("127.0.0.1:0")
    server.start()
    server.stop()
    with pytest.raises(RuntimeError, match="not started"):
        server.stop()


def test_close_client_connections_before_start_does_nothing() -> None:
    DemoWebsocketServer("127.0.0.1:0").close_client_connections(CloseMessage())


@pytest.mark.parametrize(
    "use", [lambda s: s.connections, lambda s: s.beat(), lambda s: s.wait_for_connection(), lambda s: s.interrupt()]
)
def test_anything_else_before_start_raises(use: Any) -> None:
    with pytest.raises(RuntimeError, match="not started"):
        use(DemoWebsocketServer("127.0.0.1:0"))


async def test_stop_closes_with_1001(server: DemoWebsocketServer, client: Client) -> None:
    stopping = asyncio.create_task(server.astop())
    assert await client.closed() == (1001, "server shutdown")
    await stopping


async def test_stop_does_not_wait_long_for_a_client_that_does_not_answer(server: DemoWebsocketServer) -> None:
    async with Raw(server.port) as raw:
        await raw.open()
        await server.astop()
        assert await raw.closed() == (1001, "server shutdown")
        await raw.ended()


async def test_server_starts_again_on_the_same_port(server: DemoWebsocketServer) -> None:
    url = server.url
    await server.astop()
    await server.astart()
    assert server.url == url
    async with Client(url) as client:
        await client.echo()


async def test_client_comes_back_after_a_restart(server: DemoWebsocketServer) -> None:
    async with (
        realtime_client.Client(server.url, backoff=(0.01, 0.05)) as client,
        client.subscribe("heartbeat") as beats,
    ):
        await anext(beats)
        await server.astop()
        await server.astart()
        await anext(beats)
        server.transcript.assert_received("subscribe_request", topic="heartbeat", count=2)


def test_port_that_is_taken_raises_and_leaves_nothing(server: DemoWebsocketServer) -> None:
    other = DemoWebsocketServer(f"127.0.0.1:{server.port}")
    with pytest.raises(OSError, match="in use"):
        other.start()
    assert not other.running


async def test_port_that_is_taken_raises_in_asynchronous_code_too(server: DemoWebsocketServer) -> None:
    with pytest.raises(OSError, match="in use"):
        await DemoWebsocketServer(f"127.0.0.1:{server.port}").astart()


def test_starting_and_stopping_leaves_nothing_behind() -> None:
    def once() -> None:
        server = DemoWebsocketServer("localhost:0")
        with server, socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\n")  # never ends
        with socket.socket() as again, pytest.raises(ConnectionRefusedError):
            again.connect(("127.0.0.1", server.port))

    once()
    threads, files = threading.active_count(), descriptors()
    for _ in range(STARTS):
        once()
    assert threading.active_count() == threads
    assert descriptors() <= files


async def test_engine_stops_while_sessions_that_were_reset_are_ending() -> None:
    engine = Engine(None, get_settings(), Log())
    for name in map(str, range(20)):
        engine.namespace(name)
        engine.reset(name)
    await engine.stop()
    assert not engine.namespaces


async def test_localhost_is_ipv4_and_ipv6() -> None:
    async with DemoWebsocketServer("localhost:0") as server:
        hosts = ["127.0.0.1", "[::1]"] if socket.has_ipv6 else ["127.0.0.1"]
        for host in hosts:
            async with Client(f"ws://{host}:{server.port}/") as client:
                await client.echo()
        assert server.url == f"ws://localhost:{server.port}/"


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        ("localhost:8080", ("localhost", 8080)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::1]:80", ("::1", 80)),
        (":8080", ("", 8080)),
    ],
)
def test_address_is_a_host_and_a_port(address: str, parsed: tuple[str, int]) -> None:
    assert parse_address(address) == parsed


@pytest.mark.parametrize("address", ["localhost", "localhost:http", "localhost:99999", "ws://localhost:1", "a:1/b", ""])
def test_other_address_raises(address: str) -> None:
    with pytest.raises(ValueError, match="host and port"):
        DemoWebsocketServer(address)


def test_unknown_setting_raises() -> None:
    with pytest.raises(ValueError, match="HARTBEAT"):
        DemoWebsocketServer(hartbeat=1)


@pytest.mark.parametrize("setting", [{"require_origin": True}, {"sync_threads": 1}, {"authenticate": None}])
def test_setting_that_would_do_nothing_raises(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"a test server has no {next(iter(setting)).upper()} of its own"):
        DemoWebsocketServer(**setting)


def engine_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "demows-engine"]


@pytest.fixture
def slow_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that takes a while until it listens."""
    start = Engine.start

    async def start_slowly(self: Engine, host: str, port: int) -> int:
        await asyncio.sleep(0.3)
        return await start(self, host, port)

    monkeypatch.setattr(Engine, "start", start_slowly)


async def nothing_is_left(server: DemoWebsocketServer) -> None:
    """Assert that the server's thread ends, and that it can be started again."""
    await eventually(lambda: not engine_threads())
    assert not server.running


@pytest.mark.usefixtures("slow_start")
async def test_start_that_is_cancelled_leaves_no_engine_behind() -> None:
    server = DemoWebsocketServer("127.0.0.1:0")
    starting = asyncio.create_task(server.astart())
    await eventually(engine_threads)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await nothing_is_left(server)
    async with server, Client(server.url) as client:
        await client.echo()


@pytest.mark.usefixtures("slow_start")
async def test_start_that_takes_too_long_leaves_no_engine_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("realtime.testing.server.START_TIMEOUT", 0.05)
    server = DemoWebsocketServer("127.0.0.1:0")
    for start in (server.astart, lambda: asyncio.to_thread(server.start)):
        with pytest.raises(TimeoutError):
            await start()
        await nothing_is_left(server)


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
async def test_stop_that_is_cancelled_stops_nevertheless(server: DemoWebsocketServer) -> None:
    async with Raw(server.port) as raw:  # which does not answer the close frame
        await raw.open()
        stopping = asyncio.create_task(server.astop())
        assert await raw.closed() == (1001, "server shutdown")
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        await raw.ended()
    await nothing_is_left(server)


async def test_handshake_that_comes_while_it_stops_begins_no_session(server: DemoWebsocketServer) -> None:
    async with Raw(server.port) as staying, Raw(server.port) as late:
        await staying.open()
        await late.send(b"GET ")
        await eventually(lambda: len(server.engine.sockets) == 2)
        engine = server.engine
        stopping = asyncio.create_task(server.astop())
        assert await staying.closed() == (1001, "server shutdown")
        await late.send(handshake("/ws/?session=late").removeprefix(b"GET "))
        assert (await late.head()).startswith("HTTP/1.1 503 ")
        await stopping
        assert list(engine.namespaces) == [""]


async def test_context_manager_of_a_server_that_was_stopped_within() -> None:
    async with DemoWebsocketServer("127.0.0.1:0") as server:
        await server.astop()


# The application


@pytest.mark.parametrize("path", ["", "ws/", "ws/?session=a"])
async def test_path_is_served(server: DemoWebsocketServer, path: str) -> None:
    async with Client(server.url + path) as client:
        await client.echo()


async def test_other_path_is_refused_with_403(server: DemoWebsocketServer) -> None:
    with pytest.raises(InvalidStatus) as caught:
        async with Client(server.url + "nope/"):
            pass
    assert caught.value.response.status_code == 403


async def test_plain_http_is_answered_426(server: DemoWebsocketServer) -> None:
    async with Raw(server.port) as raw:
        await raw.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await raw.head()
        assert head.startswith("HTTP/1.1 426 ")
        assert "Upgrade: websocket" in head
        await raw.ended()


async def test_nonsense_is_answered_400(server: DemoWebsocketServer) -> None:
    async with Raw(server.port) as raw:
        await raw.send(b"nonsense\r\n\r\n")
        assert (await raw.head()).startswith("HTTP/1.1 400 ")
        await raw.ended()


async def test_server_that_is_full_refuses_with_503() -> None:
    async with DemoWebsocketServer("127.0.0.1:0", max_connections=1) as server, Client(server.url):
        with pytest.raises(InvalidStatus) as caught:
            async with Client(server.url):
                pass
        assert caught.value.response.status_code == 503
        assert caught.value.response.headers["Retry-After"] == "10"


async def test_ping_is_answered_and_none_is_sent(server: DemoWebsocketServer) -> None:
    async with Raw(server.port) as raw:
        await raw.open()
        await raw.send(frame(PING, b"hello"))
        assert await raw.frame() == (PONG, b"hello")


async def test_close_code_is_answered_with_the_same(server: DemoWebsocketServer) -> None:
    async with Raw(server.port) as raw:
        await raw.open()
        await raw.send(frame(CLOSE, (4321).to_bytes(2) + b"bye"))
        assert await raw.closed() == (4321, "bye")
        await raw.ended()
    assert server.transcript.assert_close_received(4321).reason == "bye"


async def test_providers_of_telemetry_are_used() -> None:
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracer_provider = TracerProvider()
    tracer_provider.add_span_processor(SimpleSpanProcessor(spans))
    server = DemoWebsocketServer("127.0.0.1:0", tracer_provider, MeterProvider([reader]))
    async with server, Client(server.url) as client:
        await client.echo()
        await eventually(lambda: "connections" in str(reader.get_metrics_data()))
    assert spans.get_finished_spans()


def test_default_address_is_that_of_the_go_server() -> None:
    assert DemoWebsocketServer().url == "ws://localhost:8080/"


# Connections


async def test_connection_is_described(server: DemoWebsocketServer) -> None:
    async with Client(f"{server.url}ws/?session=a", subprotocols=["demows.v1"], user_agent_header="mine") as client:
        await client.subscribe("heartbeat")
        [connection] = server.connections
        assert connection == ConnectionInfo(
            id=connection.id,
            number=1,
            session="a",
            address="{}:{}".format(*client.ws.local_address),
            path="/ws/",
            query="session=a",
            subprotocol="demows.v1",
            user_agent="mine",
            topics=("heartbeat",),
            opened=connection.opened,
            state="open",
        )
    await eventually(lambda: server.connections == [])


async def test_wait_for_connection_returns_one_that_came_before(server: DemoWebsocketServer, client: Client) -> None:
    assert (await wait(server)).number == 1
    with pytest.raises(TimeoutError, match="0 of 1 new connections came within 0.01 s; 1 are open"):
        await server.await_for_connection(timeout=0.01)


async def test_wait_for_connection_waits_for_one_that_comes(server: DemoWebsocketServer) -> None:
    waiting = asyncio.create_task(wait(server, count=2))
    async with Client(server.url), Client(server.url):
        assert (await waiting).number == 2


@pytest.mark.parametrize("end", [lambda s: s.close_client_connections(), lambda s: s.interrupt(), lambda s: s.close()])
async def test_connections_that_were_closed_are_not_waited_for(
    server: DemoWebsocketServer, client: Client, end: Any
) -> None:
    end(server)
    with pytest.raises(TimeoutError):
        await server.await_for_connection(timeout=0.01)
    async with Client(server.url):
        assert (await server.await_for_connection()).number == 2


async def test_close_client_connections_sends_code_and_reason(server: DemoWebsocketServer, client: Client) -> None:
    async with Client(f"{server.url}ws/?session=other") as other:
        server.close_client_connections(CloseMessage(code=4001, reason="ünterbrochen"))
        assert await client.closed() == await other.closed() == (4001, "ünterbrochen")


async def test_one_connection_is_closed_and_others_are_not(server: DemoWebsocketServer, client: Client) -> None:
    first = await server.await_for_connection()
    async with Client(server.url) as other:
        assert server.close(CloseMessage(code=1012), connection=first.id) == 1
        assert (await client.closed())[0] == 1012
        await other.echo()


async def test_close_after_a_delay_waits_for_the_clock(server: DemoWebsocketServer, client: Client) -> None:
    server.close(CloseMessage(code=1012), delay=3600)
    await client.echo()
    server.advance(3600)
    assert (await client.closed())[0] == 1012


async def test_connections_of_before_a_delayed_close_do_not_count_once_it_has_come(
    server: DemoWebsocketServer, client: Client
) -> None:
    server.close(CloseMessage(code=1012), delay=3600)
    assert (await server.await_for_connection()).number == 1
    async with Client(server.url) as second:
        await second.echo()
        server.advance(3600)
        assert (await client.closed())[0] == 1012
        for chosen in (server, server.session("")):
            with pytest.raises(TimeoutError):
                await chosen.await_for_connection(timeout=0.01)
        await second.echo()
        async with Client(server.url):
            assert (await server.await_for_connection()).number == 3


async def test_close_in_the_middle_of_a_message_comes_after_a_part_of_it(server: DemoWebsocketServer) -> None:
    async with Raw(server.port) as raw:
        await raw.open()
        server.close(CloseMessage(code=1012, reason="x"), mid_message=True)
        assert await raw.take(2) == bytes([0x01, 38])
        await raw.take(38)
        assert await raw.frame() == (CLOSE, (1012).to_bytes(2) + b"x")


async def test_connection_that_is_not_there_cannot_be_closed(server: DemoWebsocketServer) -> None:
    for act in (server.close, server.interrupt):
        with pytest.raises(LookupError, match="'17'"):
            act(connection="17")
    with pytest.raises(LookupError, match="'17'"):
        server.set_faults([], connection="17")


async def test_interrupt_ends_without_a_close_frame(server: DemoWebsocketServer, client: Client) -> None:
    assert server.interrupt() == 1
    assert await client.closed() == (1006, "")


async def test_interrupt_with_reset_resets(server: DemoWebsocketServer) -> None:
    async with Raw(server.port) as raw:
        await raw.open()
        server.interrupt(reset=True)
        with pytest.raises(ConnectionResetError):
            await raw.frame()


async def test_message_1006_interrupts(server: DemoWebsocketServer, client: Client) -> None:
    server.close(CloseMessage(code=1006))
    assert await client.closed() == (1006, "")


# Publications, heartbeats and the clock


async def test_publication_is_sent_to_subscribers(server: DemoWebsocketServer, client: Client) -> None:
    assert server.publish("demo-server.x", {"a": 1}) == 0
    await client.subscribe("demo-server.x")
    assert server.publish("demo-server.x", {"a": 1}) == 1
    assert await client.publications(1) == [{"a": 1}]


def test_publication_on_an_unknown_topic_raises(server: DemoWebsocketServer) -> None:
    with pytest.raises(UnknownTopic, match="nope"):
        server.publish("nope", 1)


async def test_beat_sends_a_heartbeat_each_time(server: DemoWebsocketServer, client: Client) -> None:
    await client.subscribe("heartbeat")
    await client.beat()
    assert [server.beat() for _ in range(3)] == [1, 1, 1]
    for _ in range(3):
        await client.beat()
    await client.echo()


async def test_heartbeats_come_by_themselves_and_can_be_paused() -> None:
    async with DemoWebsocketServer("127.0.0.1:0", heartbeat_interval=0.05) as server, Client(server.url) as client:
        await client.subscribe("heartbeat")
        await client.beat(after=await client.beat())
        server.pause_beats()
        await client.send({"type": "echo_request", "echo": "x"})
        while (await client.receive())["type"] == "heartbeat":
            pass
        server.advance(60)
        await client.echo()
        server.beat()
        await client.beat()
        await client.echo()
        server.resume_beats()
        await client.beat(after=await client.beat())


async def test_advance_sends_the_heartbeats_of_that_time() -> None:
    async with DemoWebsocketServer("127.0.0.1:0", heartbeat_interval=100) as server, Client(server.url) as client:
        await client.subscribe("heartbeat")
        first = await client.beat()
        server.advance(1000)
        beats = [await client.receive() for _ in range(10)]
        assert [int(beat["uptime_seconds"]) // 100 for beat in beats] == list(range(10))
        await client.echo()
        async with Client(server.url) as younger:
            await younger.subscribe("heartbeat")
            assert await younger.beat() - first == pytest.approx(1000, abs=10)
        server.beat()
        assert int((await client.receive())["uptime_seconds"]) in range(1000, 1010)


async def test_advance_closes_who_is_too_old(server: DemoWebsocketServer, client: Client) -> None:
    server.advance(86_400)
    assert await client.closed() == (1001, "maximum age")


async def test_advance_closes_who_is_silent_too_long() -> None:
    async with DemoWebsocketServer("127.0.0.1:0", first_message_timeout=60) as server, Client(server.url) as client:
        server.advance(59)
        assert server.connections[0].state == "open"
        server.advance(2)
        assert await client.closed() == (1008, "no message")


@pytest.mark.parametrize("seconds", [-1, float("inf"), float("nan")])
def test_clock_cannot_be_put_forward_by_that(server: DemoWebsocketServer, seconds: float) -> None:
    server.session("a").pause_beats()
    with pytest.raises(ValueError, match="put forward"):
        server.advance(seconds)


async def test_clock_of_no_session_is_put_forward_when_one_cannot_be() -> None:
    async with DemoWebsocketServer("127.0.0.1:0", heartbeat_interval=0.001) as server:
        server.session("first").pause_beats()
        async with Client(server.session("second").url, max_queue=None) as client:
            await client.subscribe("heartbeat")
            with pytest.raises(ValueError, match="0 to 100 s"):
                server.advance(101)
        assert [server.session(name).ahead for name in ("first", "second")] == [0.0, 0.0]


async def test_clock_is_not_put_forward_by_what_too_much_happens_in(
    server: DemoWebsocketServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("realtime.testing.stepped.MOST_EVENTS", 10)
    server.set_faults([faults.PingFlood(count=1000, rate=1.0)])
    with pytest.raises(ValueError, match="over 20 things happened"):
        server.advance(100)
    server.advance(10)
    assert server.session("").ahead == pytest.approx(30, abs=2)
    await client.echo()


# Sessions


async def test_sessions_do_not_disturb_each_other(server: DemoWebsocketServer) -> None:
    one, two = server.session("one"), server.session("two & more")
    assert two.url == f"{server.url}ws/?session=two%20%26%20more"
    async with Client(one.url) as first, Client(two.url) as second:
        for client in (first, second):
            await client.subscribe("heartbeat")
            await client.beat()
            await client.subscribe("demo-server.x")
        assert (one.publish("demo-server.x", 1), one.beat()) == (1, 1)
        assert await first.publications(1) == [1]
        await first.beat()
        one.advance(4000)
        await first.beat()
        assert [info.session for info in one.connections] == ["one"]
        one.close(CloseMessage(code=4000))
        assert (await first.closed())[0] == 4000
        await second.echo()
        assert len(server.connections) >= 1
        assert (await two.await_for_connection()).session == "two & more"
        assert not [entry for entry in two.transcript.entries if entry.session != "two & more"]


async def test_fifty_sessions_at_once(server: DemoWebsocketServer) -> None:
    async def use(number: int) -> None:
        session = server.session(f"number {number}")
        async with Client(session.url) as client:
            info = await session.await_for_connection()
            await client.subscribe("demo-server.x")
            for value in range(10):
                assert session.publish("demo-server.x", [number, value]) == 1
            assert await client.publications(10) == [[number, value] for value in range(10)]
            await client.echo(str(number))
            session.interrupt(info.id)
            assert (await client.closed())[0] == 1006
        assert session.connections == []
        async with Client(session.url) as client:
            assert (await session.await_for_connection()).number == 2
            session.transcript.assert_received("echo_request", echo=str(number))

    await asyncio.gather(*map(use, range(50)))


async def test_reset_of_a_session_begins_anew(server: DemoWebsocketServer) -> None:
    session = server.session("a")
    async with Client(session.url) as client, Client(server.url) as other:
        session.pause_beats()
        session.reset()
        assert (await client.closed())[0] == 1006
        await other.echo()
        assert session.connections == []
        assert session.transcript.entries == []
    async with Client(session.url):
        assert (await session.await_for_connection()).number == 1


async def test_reset_of_the_server_resets_every_session(server: DemoWebsocketServer, client: Client) -> None:
    server.advance(60)
    server.reset()
    assert (await client.closed())[0] == 1006
    async with Client(server.url) as client:
        assert (await server.await_for_connection()).number == 1


def test_controls_work_from_many_threads(server: DemoWebsocketServer) -> None:
    def use(number: int) -> None:
        session = server.session(str(number % 3))
        session.beat()
        session.pause_beats()
        session.advance(1)
        assert session.connections == []
        session.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(64)))


def test_transcript_of_a_message_class(server: DemoWebsocketServer) -> None:
    with pytest.raises(AssertionError, match="nobody has connected"):
        server.transcript.assert_received(SubscribeRequest, timeout=0)


async def test_application_can_be_served_by_another_server(server: DemoWebsocketServer) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    await server.application({"type": "http", "path": "/", "headers": []}, receive, send)
    assert sent[0]["status"] == 426


async def test_client_that_has_gone_is_forgotten(server: DemoWebsocketServer) -> None:
    async with Raw(server.port) as raw:
        await raw.open()
        await server.await_for_connection()
        raw.abort()
    await eventually(lambda: server.connections == [])
    assert not await asyncio.to_thread(lambda: server.engine.sockets)


async def test_message_in_the_transcript_is_found_by_its_fields(server: DemoWebsocketServer, client: Client) -> None:
    await client.subscribe("heartbeat")
    entry = server.transcript.assert_received(SubscribeRequest, topic="heartbeat")
    assert entry.message == {"type": "subscribe_request", "topic": "heartbeat"}
    with pytest.raises(AssertionError, match="subscribe_request topic='other'") as caught:
        server.transcript.assert_received("subscribe_request", topic="other", timeout=0)
    assert '"topic": "heartbeat"' in str(caught.value)
    assert json.loads(server.transcript.to_json())["dropped"] == 0


async def test_closed_connection_is_not_open_for_long(server: DemoWebsocketServer, client: Client) -> None:
    await client.ws.close(4000)
    with pytest.raises(ConnectionClosed):
        await client.ws.recv()
    server.transcript.assert_close_received(4000)
