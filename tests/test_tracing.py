"""Spans: what is recorded of connections, requests and publications, what it costs where nothing is, and what fails."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from opentelemetry import trace as otel_trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import SpanKind, StatusCode
from pydantic import BaseModel

from realtime import (
    Caller,
    CloseMessage,
    RequestRefused,
    Topic,
    aclose_connections,
    apublish,
    publish,
    request_handler,
    telemetry,
)
from realtime.conf import get_settings
from realtime.consumers import RealtimeConsumer
from realtime.exceptions import LayerUnavailable
from realtime.handlers import handlers
from realtime.hub import get_hub
from realtime.logs import log_context
from realtime.protocol import remove_request
from realtime.publishing import abeat
from realtime.threads import get_threads

from .memory import TIMEOUT, Client, Layer, clean_process, connected, the_layer, until, use_layer  # noqa: F401

SPAN = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
TRACEPARENT = f"00-{SPAN[0]}-{SPAN[1]}-01"
ROOT = Path(__file__).resolve().parent.parent


# What this and other modules observe by


def settle(timeout: float = TIMEOUT) -> None:
    """Wait until the providers were called for all that has happened so far."""
    done = threading.Event()
    assert telemetry.worker.post(done.set)
    assert done.wait(timeout)


class Recorder:
    """Keep what a real tracer provider exports."""

    def __init__(self, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False, **options)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("site")

    def spans(self, name: str | None = None) -> list[ReadableSpan]:
        """Return all that has ended, or what of it has a name."""
        settle()
        return [span for span in self.exporter.get_finished_spans() if name in (None, span.name)]

    def one(self, name: str) -> ReadableSpan:
        """Return the only span of a name."""
        [span] = self.spans(name)
        return span

    def names(self) -> list[str]:
        return sorted(span.name for span in self.spans())


def configure(settings: Any, **keys: Any) -> None:
    """Set ``REALTIME`` for a test in one process."""
    settings.REALTIME = {"CONNECTION_REGISTRY": False, "HEARTBEAT_INTERVAL": 3600.0, **keys}


@pytest.fixture
def recorder(settings: Any) -> Recorder:
    """Record all that is traced."""
    recorder = Recorder()
    configure(settings, TRACER_PROVIDER=recorder.provider)
    return recorder


@pytest.fixture(autouse=True)
def no_handlers_left() -> Iterator[None]:
    before = set(handlers)
    yield
    for kind in set(handlers) - before:
        del handlers[kind]
        remove_request(kind)


class Asked(BaseModel):
    name: str = ""


def declare(function: Any, kind: str = "ask_request", **options: Any) -> None:
    """Answer requests of a site's own with what ``function`` returns, which may be a coroutine."""
    if asyncio.iscoroutinefunction(function):

        async def handler(request: Asked, caller: Caller) -> Any:
            return await function()
    else:

        def handler(request: Asked, caller: Caller) -> Any:
            return function()

    request_handler(kind, **{"public": True, **options})(handler)


def outermost(span: ReadableSpan) -> bool:
    return span.parent is None


def ids(span: Any) -> tuple[str, str]:
    """Return the ids of a span's trace and of the span, in hexadecimal."""
    context = span.context if hasattr(span, "context") else span
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def links(span: ReadableSpan) -> list[tuple[str, str]]:
    return [ids(link) for link in span.links]


def is_child(span: ReadableSpan, parent: ReadableSpan) -> bool:
    return span.parent is not None and ids(span.parent) == ids(parent) and span.context.trace_id == span.parent.trace_id


def current_span() -> tuple[str, str] | None:
    """Return the ids of the current span, or None where there is none."""
    context = otel_trace.get_current_span().get_span_context()
    return ids(context) if context.is_valid else None


def frame(**fields: Any) -> str:
    return json.dumps(fields)


# Accepting


def from_address(address: str, application: Any = None) -> Any:
    """Return an application that is told of clients at ``address``."""
    inner = application or RealtimeConsumer.as_asgi()

    async def from_there(scope: Any, receive: Any, send: Any) -> None:
        await inner({**scope, "client": [address, 4711]}, receive, send)

    return from_there


async def test_accept_span_says_who_connected(recorder: Recorder) -> None:
    application = from_address("192.0.2.7")
    async with connected(application, "/ws/?token=secret", subprotocols=["demows.v1"]) as client:
        await client.assert_nothing_waits()
        [connection] = get_hub().connections
        span = recorder.one("accept")
        assert (span.kind, span.parent, span.links) == (SpanKind.SERVER, None, ())
        assert dict(span.attributes) == {
            "client.address": "192.0.2.7",
            "url.path": "/ws/",
            "network.protocol.name": "websocket",
            "realtime.connection.id": connection,
            "realtime.subprotocol": "demows.v1",
        }
        assert span.instrumentation_scope.name == "realtime"
        assert span.status.status_code is StatusCode.UNSET


async def test_accept_span_names_no_subprotocol_but_ours(recorder: Recorder) -> None:
    class Obliging(RealtimeConsumer):
        async def connect(self) -> None:
            await self.accept(self.scope["subprotocols"][0])

    async with connected(Obliging.as_asgi(), subprotocols=["token.secret"]) as client:
        await client.assert_nothing_waits()
    assert "realtime.subprotocol" not in recorder.one("accept").attributes


async def test_accept_span_ends_when_the_connection_was_let_in(recorder: Recorder) -> None:
    async with connected() as client:
        await client.assert_nothing_waits()
        assert recorder.names() == ["accept", "echo"]
    assert recorder.names() == ["accept", "echo"]


async def test_accept_span_is_a_child_of_a_span_around_the_application(recorder: Recorder) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        with recorder.tracer.start_as_current_span("server"):
            await RealtimeConsumer.as_asgi()(scope, receive, send)

    async with connected(application) as client:
        await client.assert_nothing_waits()
    await client.wait()
    assert is_child(recorder.one("accept"), recorder.one("server"))
    assert outermost(recorder.one("echo"))


async def test_handshake_that_is_refused_says_why(recorder: Recorder) -> None:
    client = Client(RealtimeConsumer.as_asgi(), "/ws/", headers=[(b"origin", b"https://evil.example")])
    assert (await client.connect(TIMEOUT))[0] is False
    await client.wait()
    span = recorder.one("accept")
    assert span.attributes["realtime.refusal"] == "origin"
    assert "realtime.connection.id" not in span.attributes
    assert (span.status.status_code, "error.type" in span.attributes) == (StatusCode.UNSET, False)


# Requests


@pytest.mark.parametrize(
    ("request_", "name", "attributes"),
    [
        (frame(type="echo_request", echo="x"), "echo", {"realtime.request.type": "echo_request"}),
        (
            frame(type="subscribe_request", topic="orders.4711"),
            "subscribe",
            {"realtime.request.type": "subscribe_request", "messaging.destination.template": "orders.{order_id:int}"},
        ),
        (
            frame(type="unsubscribe_request", topic="orders.4712"),
            "unsubscribe",
            {"realtime.request.type": "unsubscribe_request", "messaging.destination.template": "orders.{order_id:int}"},
        ),
        (frame(type="ask_request"), "ask", {"realtime.request.type": "ask_request"}),
    ],
)
async def test_request_has_a_span_of_its_own_named_by_its_type(
    recorder: Recorder, request_: str, name: str, attributes: dict[str, str]
) -> None:
    Topic("orders.{order_id:int}", public=True)
    declare(lambda: None)
    async with connected() as client:
        await client.subscribe("orders.4712")
        settle()
        recorder.exporter.clear()
        await client.send_to(text_data=request_)
        assert (await client.next())["status"] == "OK"
        [connection] = get_hub().connections
        span = recorder.one(name)
    assert span.kind is SpanKind.SERVER
    assert dict(span.attributes) == {**attributes, "realtime.connection.id": connection, "realtime.outcome": "OK"}
    assert span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ("{", "BAD_REQUEST"),
        ("[]", "BAD_REQUEST"),
        ("", "BAD_REQUEST"),
        (frame(type="echo_request"), "BAD_REQUEST"),
        (frame(type=5), "BAD_REQUEST"),
        (frame(type="nothing_request"), "UNKNOWN_MESSAGE_TYPE"),
        (frame(), "UNKNOWN_MESSAGE_TYPE"),
    ],
)
async def test_frame_without_a_request_has_a_span_called_request(recorder: Recorder, sent: str, code: str) -> None:
    async with connected() as client:
        await client.send_input({"type": "websocket.receive", "text": sent})
        assert (await client.next())["code"] == code
        [connection] = get_hub().connections
        span = recorder.one("request")
    assert dict(span.attributes) == {"realtime.connection.id": connection, "realtime.outcome": code}
    assert links(span) == [ids(recorder.one("accept"))]
    assert span.status.status_code is StatusCode.UNSET


async def test_requests_are_traces_of_their_own_that_link_to_the_accept_span(recorder: Recorder) -> None:
    Topic("news", public=True)
    declare(lambda: None)
    async with connected() as client:
        await client.subscribe("news")
        await client.unsubscribe("news")
        await client.ask(type="ask_request")
        await client.ask(type="echo_request", echo="")
        await client.send_to(text_data="{")
        await client.next()
    accept = recorder.one("accept")
    requests = [recorder.one(name) for name in ("subscribe", "unsubscribe", "ask", "echo", "request")]
    assert all(outermost(span) and links(span) == [ids(accept)] for span in requests)
    assert len({span.context.trace_id for span in (accept, *requests)}) == 6


async def test_span_lasts_as_long_as_its_handler(recorder: Recorder) -> None:
    begun: list[int] = []
    go_on = asyncio.Event()

    async def slow() -> None:
        begun.append(time.time_ns())
        await go_on.wait()
        begun.append(time.time_ns())

    declare(slow)
    async with connected() as client:
        await client.tell(type="ask_request")
        await until(lambda: begun)
        go_on.set()
        await client.next()
        span = recorder.one("ask")
    assert span.start_time <= begun[0] <= begun[1] <= span.end_time


async def test_span_that_was_noted_lasts_no_longer_than_the_handling(recorder: Recorder) -> None:
    before = time.time_ns()
    async with connected() as client:
        await client.assert_nothing_waits()
        after = time.time_ns()
        span = recorder.one("echo")
    assert before <= span.start_time <= span.end_time <= after


# Publishing and delivering


async def test_publication_is_one_trace_from_whoever_publishes_to_delivery(recorder: Recorder) -> None:
    orders = Topic("orders.{order_id:int}", public=True)
    async with connected() as client:
        await client.subscribe("orders.4711")
        with recorder.tracer.start_as_current_span("site"):
            await orders.apublish({"total": 5}, order_id=4711)
        await client.next()
        site, sent, got = (recorder.one(name) for name in ("site", f"publish {orders.name}", f"deliver {orders.name}"))
    assert (sent.kind, got.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert is_child(sent, site)
    assert is_child(got, sent)
    assert links(got) == [ids(sent)]
    shared = {"messaging.system": "realtime", "messaging.destination.template": "orders.{order_id:int}"}
    assert dict(sent.attributes) == {
        **shared,
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.message.body.size": 11,
    }
    assert dict(got.attributes) == {
        **shared,
        "messaging.operation.name": "deliver",
        "messaging.operation.type": "process",
        "realtime.connections": 1,
    }


async def test_envelope_carries_the_publish_span(recorder: Recorder) -> None:
    Topic("news", public=True)
    async with connected() as client:
        await client.subscribe("news")
        await apublish("news", 1)
        await client.next()
        span = recorder.one("publish news")
        trace_id, span_id = ids(span)
    [message] = [message for message in the_layer().sent if message.get("kind") == "publication"]
    assert message["traceparent"] == f"00-{trace_id}-{span_id}-{span.context.trace_flags:02x}"


async def test_size_of_a_publication_is_in_bytes(recorder: Recorder) -> None:
    Topic("news", public=True)
    await apublish("news", "é€")
    assert recorder.one("publish news").attributes["messaging.message.body.size"] == 7


async def test_publication_that_nobody_asked_for_is_a_trace_of_its_own(recorder: Recorder) -> None:
    Topic("news", public=True)
    await apublish("news", 1)
    assert outermost(recorder.one("publish news"))


async def test_delivery_to_many_is_one_span(recorder: Recorder) -> None:
    Topic("news", public=True)
    async with connected() as first, connected() as second, connected() as third:
        for client in (first, second, third):
            await client.subscribe("news")
        await apublish("news", 1)
        for client in (first, second, third):
            await client.next()
    assert recorder.one("deliver news").attributes["realtime.connections"] == 3


async def test_synchronous_publish_is_a_child_of_its_thread_s_span(recorder: Recorder) -> None:
    Topic("news", public=True)

    def work() -> None:
        with recorder.tracer.start_as_current_span("job"):
            publish("news", 1)

    async with connected() as client:
        await client.subscribe("news")
        await asyncio.to_thread(work)
        await client.next()
    assert is_child(recorder.one("publish news"), recorder.one("job"))
    assert is_child(recorder.one("deliver news"), recorder.one("publish news"))


async def test_publication_of_an_unsampled_span_is_not_traced(settings: Any) -> None:
    recorder = Recorder(sampler=Switch(on=True))  # which would sample it
    configure(settings, TRACER_PROVIDER=recorder.provider)
    Topic("news", public=True)
    unsampled = otel_trace.NonRecordingSpan(
        otel_trace.SpanContext(int(SPAN[0], 16), int(SPAN[1], 16), is_remote=True, trace_flags=otel_trace.TraceFlags(0))
    )
    async with connected() as client:
        await client.subscribe("news")
        with otel_trace.use_span(unsampled):
            await apublish("news", 1)
        await client.next()
    assert not [name for name in recorder.names() if "news" in name]
    [message] = [message for message in the_layer().sent if message.get("kind") == "publication"]
    assert "traceparent" not in message


async def test_heartbeat_is_followed_like_a_publication(recorder: Recorder) -> None:
    async with connected() as client:
        await client.subscribe("heartbeat")
        assert (await client.next())["type"] == "heartbeat"
        await abeat(time.time())
        assert (await client.next())["type"] == "heartbeat"
        sent, got = recorder.one("publish heartbeat"), recorder.one("heartbeat")
    assert (sent.kind, got.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert is_child(got, sent)
    assert links(got) == [ids(sent)]
    assert got.attributes["realtime.connections"] == 1


async def test_closing_connections_is_followed_to_each_hub(recorder: Recorder) -> None:
    async with connected() as client:
        await client.assert_nothing_waits()
        with recorder.tracer.start_as_current_span("operator"):
            await aclose_connections(CloseMessage(code=4001, reason="later"))
        assert await client.closed() == (4001, "later")
        asked, done = recorder.one("close_connections"), recorder.one("close")
    assert (asked.kind, done.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert is_child(asked, recorder.one("operator"))
    assert is_child(done, asked)
    assert dict(asked.attributes) == {
        "realtime.close.code": 4001,
        "realtime.close.target": "all",
        "realtime.servers": 1,
        "realtime.connections": 1,
    }
    assert dict(done.attributes) == {"realtime.close.code": 4001, "realtime.connections": 1}


@pytest.mark.parametrize(
    ("target", "word"),
    [({"topic": "news"}, "topic"), ({"user": 5}, "user"), ({"session": "abc"}, "session"), ({"ids": ["x"]}, "ids")],
)
async def test_closing_connections_says_by_what_and_not_which(
    recorder: Recorder, target: dict[str, Any], word: str
) -> None:
    async with connected() as client:
        await client.assert_nothing_waits()
        await aclose_connections(**target)
        assert recorder.one("close_connections").attributes["realtime.close.target"] == word


# What a client says that it belongs to


async def ask_and_read(recorder: Recorder, **fields: Any) -> ReadableSpan:
    async with connected() as client:
        assert (await client.ask(type="echo_request", echo="", **fields))["status"] == "OK"
        return recorder.one("echo")


async def test_client_s_traceparent_in_a_request_is_a_link(recorder: Recorder) -> None:
    span = await ask_and_read(recorder, traceparent=TRACEPARENT)
    assert outermost(span)
    assert links(span) == [ids(recorder.one("accept")), SPAN]


async def test_client_s_traceparent_in_a_request_is_the_parent_where_clients_are_trusted(
    recorder: Recorder, settings: Any
) -> None:
    configure(settings, TRACER_PROVIDER=recorder.provider, TRUST_CLIENT_TRACEPARENT=True)
    span = await ask_and_read(recorder, traceparent=TRACEPARENT)
    assert ids(span.parent) == SPAN
    assert links(span) == [ids(recorder.one("accept"))]


@pytest.mark.parametrize("kind", ["subscribe", "unsubscribe", "ask", "request"])
async def test_client_s_traceparent_counts_in_every_request(recorder: Recorder, kind: str) -> None:
    Topic("news", public=True)
    declare(lambda: None)
    fields = {"topic": "news"} if kind.endswith("subscribe") else {}
    kind_sent = "nothing_request" if kind == "request" else f"{kind}_request"
    async with connected() as client:
        if kind == "unsubscribe":
            await client.subscribe("news")
        await client.ask(type=kind_sent, traceparent=TRACEPARENT, **fields)
    assert links(recorder.one(kind)) == [ids(recorder.one("accept")), SPAN]


async def test_client_s_traceparent_of_a_binary_frame_counts_as_well(recorder: Recorder) -> None:
    async with connected() as client:
        await client.send_to(bytes_data=frame(type="echo_request", echo="", traceparent=TRACEPARENT).encode())
        await client.next()
    assert SPAN in links(recorder.one("echo"))


@pytest.mark.parametrize("trusted", [False, True])
async def test_client_s_traceparent_at_the_handshake(recorder: Recorder, settings: Any, trusted: bool) -> None:
    configure(settings, TRACER_PROVIDER=recorder.provider, TRUST_CLIENT_TRACEPARENT=trusted)
    async with connected(headers=[(b"traceparent", TRACEPARENT.encode())]) as client:
        await client.assert_nothing_waits()
    span = recorder.one("accept")
    assert (None if span.parent is None else ids(span.parent)) == (SPAN if trusted else None)
    assert links(span) == ([] if trusted else [SPAN])


MALFORMED = {
    "empty": "",
    "too short": TRACEPARENT[:-1],
    "too long": TRACEPARENT + "0",
    "not hexadecimal": TRACEPARENT.replace("0af7", "0xyz"),
    "no trace": f"00-{'0' * 32}-{SPAN[1]}-01",
    "no span": f"00-{SPAN[0]}-{'0' * 16}-01",
    "of no version": f"ff-{SPAN[0]}-{SPAN[1]}-01",
    "two": f"{TRACEPARENT},{TRACEPARENT}",
    "control characters": "\x00\r\n" * 18,
    "not ASCII": "é" * 55,
    "full-width digits": f"00-{'０' * 31}１-{SPAN[1]}-01",
    "huge": "0" * 30_000,
}


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize(
    "value",
    [*MALFORMED.values(), None, 0, 1.5, True, [TRACEPARENT], {"traceparent": TRACEPARENT}],
    ids=[*MALFORMED, "null", "number", "float", "true", "list", "object"],
)
async def test_malformed_traceparent_in_a_request_does_no_harm(
    recorder: Recorder, settings: Any, value: Any, trusted: bool
) -> None:
    configure(settings, TRACER_PROVIDER=recorder.provider, TRUST_CLIENT_TRACEPARENT=trusted)
    span = await ask_and_read(recorder, traceparent=value)
    assert outermost(span)
    assert links(span) == [ids(recorder.one("accept"))]


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("value", [*MALFORMED.values(), "\xff\xfe"], ids=[*MALFORMED, "not UTF-8"])
async def test_malformed_traceparent_at_the_handshake_does_no_harm(
    recorder: Recorder, settings: Any, value: str, trusted: bool
) -> None:
    configure(settings, TRACER_PROVIDER=recorder.provider, TRUST_CLIENT_TRACEPARENT=trusted)
    async with connected(headers=[(b"traceparent", value.encode("utf-8"))]) as client:
        await client.assert_nothing_waits()
    span = recorder.one("accept")
    assert outermost(span)
    assert links(span) == []


@pytest.mark.parametrize("field", ["traceparent", "anything"])
async def test_lone_surrogate_in_a_traceparent_is_like_one_anywhere_else(recorder: Recorder, field: str) -> None:
    async with connected() as client:
        await client.send_to(text_data='{"type":"echo_request","echo":"","%s":"\\ud800"}' % field)  # noqa: UP031
        assert (await client.next())["code"] == "BAD_REQUEST"  # no text that JSON could carry, see RFC 8259 §8.2
        await client.assert_nothing_waits()
    assert recorder.one("request").attributes["realtime.outcome"] == "BAD_REQUEST"


# Errors


def raising(error: BaseException) -> Callable[..., Any]:
    def function(*_: Any, **__: Any) -> Any:
        raise error

    return function


class Boom(Exception):
    """Be a fault of the site's own."""


def assert_failed(span: ReadableSpan, kind: str) -> None:
    assert span.attributes["error.type"] == kind
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description is None
    assert span.events == ()


def assert_not_failed(span: ReadableSpan) -> None:
    assert "error.type" not in span.attributes
    assert span.status.status_code is StatusCode.UNSET
    assert span.status.description is None
    assert span.events == ()


async def boom() -> None:
    raise Boom("with a text")


@pytest.mark.parametrize("handler", [boom, raising(Boom("with a text"))], ids=["async", "sync"])
async def test_handler_that_raises_is_an_error(recorder: Recorder, handler: Any) -> None:
    declare(handler)
    async with connected() as client:
        assert (await client.ask(type="ask_request"))["error"]["code"] == "INTERNAL_ERROR"
    span = recorder.one("ask")
    assert span.attributes["realtime.outcome"] == "INTERNAL_ERROR"
    assert_failed(span, "Boom")


async def test_handler_that_takes_too_long_is_an_error(recorder: Recorder, settings: Any) -> None:
    configure(settings, TRACER_PROVIDER=recorder.provider, HANDLER_TIMEOUT=0.05)
    declare(asyncio.Event().wait)
    async with connected() as client:
        assert (await client.ask(type="ask_request"))["error"]["code"] == "INTERNAL_ERROR"
    assert_failed(recorder.one("ask"), "TimeoutError")


async def test_threads_that_are_all_busy_are_an_error(recorder: Recorder, settings: Any) -> None:
    configure(settings, TRACER_PROVIDER=recorder.provider, SYNC_THREADS=1)
    go_on = threading.Event()
    declare(lambda: go_on.wait(TIMEOUT))
    try:
        async with connected() as first, connected() as second:
            await first.tell(type="ask_request")
            await until(lambda: get_threads().busy)
            assert (await second.ask(type="ask_request"))["error"]["code"] == "INTERNAL_ERROR"
            span = recorder.one("ask")
            go_on.set()
            assert (await first.next())["status"] == "OK"
    finally:
        go_on.set()
    assert_failed(span, "ThreadsBusy")


@pytest.mark.parametrize("part", ["authorize", "on_subscribe"])
async def test_topic_whose_code_raises_is_an_error(recorder: Recorder, part: str) -> None:
    options = {"authorize": lambda *_: True} if part == "on_subscribe" else {}
    Topic("news", **options, **{part: raising(Boom("with a text"))})
    async with connected() as client:
        assert (await client.subscribe("news"))["error"]["code"] == "INTERNAL_ERROR"
    span = recorder.one("subscribe")
    assert span.attributes["messaging.destination.template"] == "news"
    assert_failed(span, "Boom")


async def test_user_that_cannot_be_read_is_an_error(recorder: Recorder, settings: Any) -> None:
    keys = {"TRACER_PROVIDER": recorder.provider, "AUTHENTICATE": raising(Boom("with a text"))}
    configure(settings, **keys)
    Topic("news")
    declare(lambda: None, public=False)
    async with connected(headers=[(b"authorization", b"Bearer abc")]) as client:
        assert (await client.subscribe("news"))["error"]["code"] == "INTERNAL_ERROR"
        assert (await client.ask(type="ask_request"))["error"]["code"] == "INTERNAL_ERROR"
    for name in ("subscribe", "ask"):
        assert_failed(recorder.one(name), "INTERNAL_ERROR")


async def test_layer_that_is_down_is_an_error_of_the_publish_span(recorder: Recorder) -> None:
    Topic("news", public=True)
    the_layer().failing = True
    with pytest.raises(LayerUnavailable):
        await apublish("news", 1)
    assert_failed(recorder.one("publish news"), "LayerUnavailable")


async def test_layer_that_is_down_is_an_error_of_the_request_that_published(recorder: Recorder) -> None:
    Topic("news", public=True)

    async def handler() -> None:
        await apublish("news", 1)

    declare(handler)
    async with connected() as client:
        await client.assert_nothing_waits()
        the_layer().only, the_layer().failing = "group_send realtime.topic", True
        assert (await client.ask(type="ask_request"))["error"]["code"] == "INTERNAL_ERROR"
        the_layer().failing = False
    assert_failed(recorder.one("ask"), "LayerUnavailable")
    assert_failed(recorder.one("publish news"), "LayerUnavailable")
    assert is_child(recorder.one("publish news"), recorder.one("ask"))


@pytest.mark.parametrize("accept", [False, True])
async def test_connect_that_raises_is_an_error(recorder: Recorder, accept: bool) -> None:
    class Broken(RealtimeConsumer):
        async def connect(self) -> None:
            if accept:
                await self.accept()
            raise Boom("with a text")

    client = Client(Broken.as_asgi(), "/ws/")
    assert (await client.connect(TIMEOUT))[0] is accept
    if accept:
        assert (await client.closed())[0] == 1011
        await client.disconnect()
    await client.wait()
    assert_failed(recorder.one("accept"), "Boom")


async def test_receive_json_that_raises_is_an_error_and_not_ok(recorder: Recorder) -> None:
    class Broken(RealtimeConsumer):
        async def receive_json(self, request: Any, **_: Any) -> None:
            raise Boom("with a text")

    declare(lambda: None)
    client = Client(Broken.as_asgi(), "/ws/")
    await client.connect(TIMEOUT)
    await client.tell(type="ask_request")
    assert (await client.closed())[0] == 1011
    await client.disconnect()
    assert_failed(recorder.one("ask"), "Boom")
    assert recorder.one("ask").attributes["realtime.outcome"] == "INTERNAL_ERROR"


async def refuse() -> None:
    raise RequestRefused("SOLD_OUT", "with a text")


CLIENT_FAULTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "BAD_REQUEST": ("request", {"type": "echo_request"}, "BAD_REQUEST"),
    "UNKNOWN_MESSAGE_TYPE": ("request", {"type": "nothing_request"}, "UNKNOWN_MESSAGE_TYPE"),
    "no such topic": ("subscribe", {"type": "subscribe_request", "topic": "nowhere"}, "TOPIC_NOT_FOUND"),
    "no such topic to leave": ("unsubscribe", {"type": "unsubscribe_request", "topic": "nowhere"}, "TOPIC_NOT_FOUND"),
    "topic FORBIDDEN": ("subscribe", {"type": "subscribe_request", "topic": "private"}, "FORBIDDEN"),
    "request FORBIDDEN": ("private", {"type": "private_request"}, "FORBIDDEN"),
    "ALREADY_SUBSCRIBED": ("subscribe", {"type": "subscribe_request", "topic": "news"}, "ALREADY_SUBSCRIBED"),
    "NOT_SUBSCRIBED": ("unsubscribe", {"type": "unsubscribe_request", "topic": "private"}, "NOT_SUBSCRIBED"),
    "ASKED_BY_CLIENT": ("echo", {"type": "echo_request", "echo": "", "err": True}, "ASKED_BY_CLIENT"),
    "RequestRefused": ("refused", {"type": "refused_request"}, "SOLD_OUT"),
}


@pytest.mark.parametrize(("name", "sent", "code"), CLIENT_FAULTS.values(), ids=CLIENT_FAULTS)
async def test_what_a_client_did_wrong_is_an_outcome_and_no_error(
    recorder: Recorder, name: str, sent: dict[str, Any], code: str
) -> None:
    Topic("news", public=True)
    Topic("private")
    declare(lambda: None, "private_request", public=False)
    declare(refuse, "refused_request")
    async with connected() as client:
        await client.subscribe("news")
        settle()
        recorder.exporter.clear()
        answer = await client.ask(**sent)
        assert answer.get("error", answer)["code"] == code
        span = recorder.one(name)
    assert span.attributes["realtime.outcome"] == code
    assert_not_failed(span)


async def test_outcome_is_not_that_of_the_request_before(recorder: Recorder) -> None:
    declare(boom)
    async with connected() as client:
        await client.ask(type="ask_request")
        await client.ask(type="echo_request", echo="", err=True)
        await client.assert_nothing_waits()
    refused, fine = recorder.spans("echo")
    assert refused.attributes["realtime.outcome"] == "ASKED_BY_CLIENT"
    assert fine.attributes["realtime.outcome"] == "OK"
    assert_not_failed(refused)
    assert_not_failed(fine)


# What is not traced costs nothing


class Switch(Sampler):
    """Sample all or nothing, whatever the parent says."""

    def __init__(self, *, on: bool) -> None:
        self.on = on

    def should_sample(self, *_: Any, **__: Any) -> SamplingResult:
        return SamplingResult(Decision.RECORD_AND_SAMPLE if self.on else Decision.DROP)

    def get_description(self) -> str:
        return "Switch"


class Unsampled(otel_trace.TracerProvider, otel_trace.Tracer):
    """Be a provider of which every call is counted, and which samples nothing."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def get_tracer(self, *_: Any, **__: Any) -> Any:
        self.calls.append("get_tracer")
        return self

    def start_span(self, *_: Any, **__: Any) -> Any:
        self.calls.append("start_span")
        return CountedSpan(self.calls)

    def start_as_current_span(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


class CountedSpan(otel_trace.NonRecordingSpan):
    def __init__(self, calls: list[str]) -> None:
        super().__init__(otel_trace.INVALID_SPAN_CONTEXT)
        self._calls = calls

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_"):
            self._calls.append(name)
        return super().__getattribute__(name)


PACKAGE = f"{os.sep}opentelemetry{os.sep}"


@contextmanager
def counting_calls() -> Iterator[Counter[str]]:
    """Count the calls of all that OpenTelemetry has, on this thread and on those that begin meanwhile."""
    calls: Counter[str] = Counter()

    def look(frame: Any, event: str, _: Any) -> None:
        if event == "call" and PACKAGE in frame.f_code.co_filename:
            calls[f"{frame.f_globals['__name__']}.{frame.f_code.co_qualname}"] += 1

    threading.setprofile(look)
    sys.setprofile(look)
    try:
        yield calls
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


@pytest.fixture
def fresh_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Call providers on a thread of the test's own."""
    monkeypatch.setattr(telemetry, "worker", telemetry._Worker())


def declare_everything() -> None:
    """Declare a topic and requests whose handlers publish, in each way that there is."""
    news = Topic("news.{name}", public=True)

    async def asynchronous() -> None:
        await news.apublish("async", name="1")

    def synchronous() -> None:
        news.publish("sync", name="1")

    declare(asynchronous, "async_request")
    declare(synchronous, "sync_request")
    declare(refuse, "refused_request")


async def go_through_everything(client: Client) -> None:
    """Ask for all that ``declare_everything`` declares, and for what is wrong."""
    await client.assert_nothing_waits()
    assert (await client.subscribe("news.1"))["status"] == "OK"
    for kind in ("async", "sync"):
        await client.tell(type=f"{kind}_request")
        messages = [await client.next(), await client.next()]
        assert {message["type"] for message in messages} == {f"{kind}_response", "publication"}
        assert all(message.get("status", "OK") == "OK" for message in messages)
        assert [message["data"] for message in messages if message["type"] == "publication"] == [kind]
    assert (await client.ask(type="refused_request"))["error"]["code"] == "SOLD_OUT"
    await client.send_to(text_data="{")
    assert (await client.next())["code"] == "BAD_REQUEST"
    assert (await client.ask(type="x", traceparent=TRACEPARENT))["code"] == "UNKNOWN_MESSAGE_TYPE"
    assert (await client.ask(type="echo_request", echo="", traceparent=TRACEPARENT))["status"] == "OK"
    assert (await client.unsubscribe("news.1"))["status"] == "OK"
    await client.assert_nothing_waits()


async def calls_of_requests(**options: Any) -> Counter[str]:
    """Return the calls of OpenTelemetry while requests are handled, on whatever thread."""
    declare_everything()
    with counting_calls() as calls:
        async with connected(**options) as client:
            await client.assert_nothing_waits()
            await until(lambda: get_hub().link.up)
            settle()
            calls.clear()
            await go_through_everything(client)
            settle()
            return Counter(calls)


@pytest.mark.usefixtures("fresh_worker")
async def test_requests_call_nothing_of_opentelemetry_where_there_is_no_provider(settings: Any) -> None:
    configure(settings)
    assert isinstance(otel_trace.get_tracer_provider(), otel_trace.ProxyTracerProvider)
    assert await calls_of_requests() == {}


@pytest.mark.usefixtures("fresh_worker")
async def test_requests_call_nothing_of_opentelemetry_where_the_accept_span_is_not_sampled(settings: Any) -> None:
    configure(settings, TRACER_PROVIDER=Recorder(sampler=ALWAYS_OFF).provider)
    assert await calls_of_requests() == {}


@pytest.mark.usefixtures("fresh_worker")
async def test_requests_call_nothing_of_a_provider_that_sampled_not_the_accept_span(settings: Any) -> None:
    provider = Unsampled()
    configure(settings, TRACER_PROVIDER=provider)
    declare_everything()
    async with connected() as client:
        await client.assert_nothing_waits()
        settle()
        assert provider.calls[:2] == ["get_tracer", "start_span"]
        provider.calls.clear()
        await go_through_everything(client)
        settle()
        assert provider.calls == []


@pytest.mark.usefixtures("fresh_worker")
async def test_calls_of_opentelemetry_are_counted_where_the_accept_span_is_sampled(recorder: Recorder) -> None:
    calls = await calls_of_requests()
    assert calls["opentelemetry.sdk.trace.Tracer.start_span"] >= 10
    assert calls["opentelemetry.context.attach"] >= 2


async def test_connection_that_was_let_in_unsampled_stays_untraced(settings: Any) -> None:
    switch = Switch(on=False)
    recorder = Recorder(sampler=switch)
    configure(settings, TRACER_PROVIDER=recorder.provider)
    declare_everything()
    async with connected() as client:
        await client.assert_nothing_waits()
        settle()
        switch.on = True
        await go_through_everything(client)
        assert recorder.names() == []
        assert not [message for message in the_layer().sent if "traceparent" in message]
        await apublish("news.2", 1)  # on behalf of nobody
        assert recorder.names() == ["publish news.{name}"]


async def test_connection_that_was_let_in_sampled_stays_traced(settings: Any) -> None:
    switch = Switch(on=True)
    recorder = Recorder(sampler=switch)
    configure(settings, TRACER_PROVIDER=recorder.provider)
    async with connected() as client, connected() as other:
        await client.assert_nothing_waits()
        await other.assert_nothing_waits()
        settle()
        switch.on = False
        await client.assert_nothing_waits()
        assert recorder.names() == ["accept", "accept", "echo", "echo"]
        switch.on = True
        await client.assert_nothing_waits()
        assert len(recorder.spans("echo")) == 3


# The site's code, and the current span


async def test_handlers_find_their_request_s_span_as_the_current_one(recorder: Recorder) -> None:
    seen: dict[str, Any] = {}

    async def asynchronous() -> None:
        seen["async"] = current_span()

    def synchronous() -> None:
        seen["sync"] = current_span()

    declare(asynchronous, "async_request")
    declare(synchronous, "sync_request")
    async with connected() as client:
        for kind in seen or ("async", "sync"):
            await client.ask(type=f"{kind}_request")
            assert seen[kind] == ids(recorder.one(kind))


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_topic_s_code_finds_the_subscribe_span_as_the_current_one(recorder: Recorder, asynchronous: bool) -> None:
    seen = []

    def look(*_: Any) -> bool:
        seen.append(current_span())
        return True

    async def alook(*_: Any) -> bool:
        return look()

    function = alook if asynchronous else look
    Topic("news", authorize=function, on_subscribe=function)
    async with connected() as client:
        assert (await client.subscribe("news"))["status"] == "OK"
        assert (await client.next())["data"] is True
        assert seen == [ids(recorder.one("subscribe"))] * 2


async def test_authorize_of_a_request_finds_its_span_as_the_current_one(recorder: Recorder) -> None:
    seen = []
    declare(lambda: None, public=False, authorize=lambda *_: not seen.append(current_span()))
    async with connected() as client:
        assert (await client.ask(type="ask_request"))["status"] == "OK"
    assert seen == [ids(recorder.one("ask"))]


async def test_connect_finds_the_accept_span_as_the_current_one(recorder: Recorder) -> None:
    seen = []

    class Looking(RealtimeConsumer):
        async def connect(self) -> None:
            seen.append(current_span())
            await super().connect()

    async with connected(Looking.as_asgi()) as client:
        await client.assert_nothing_waits()
    assert seen == [ids(recorder.one("accept"))]


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_request_and_what_its_handler_publishes_are_one_trace(recorder: Recorder, kind: str) -> None:
    declare_everything()
    async with connected() as client:
        await client.subscribe("news.1")
        await client.tell(type=f"{kind}_request")
        await client.next()
        await client.next()
        request, sent, got = (recorder.one(name) for name in (kind, "publish news.{name}", "deliver news.{name}"))
    assert outermost(request)
    assert is_child(sent, request)
    assert is_child(got, sent)


async def test_spans_of_the_site_s_own_code_are_children_of_the_request(recorder: Recorder) -> None:
    def work() -> None:
        with recorder.tracer.start_as_current_span("query"):
            pass

    declare(work)
    async with connected() as client:
        await client.ask(type="ask_request")
    assert is_child(recorder.one("query"), recorder.one("ask"))


async def test_two_connections_requests_at_once_keep_their_spans_apart(recorder: Recorder) -> None:
    seen: dict[str, Any] = {}
    both = asyncio.Barrier(2)

    async def handler(request: Asked, caller: Caller) -> None:
        await both.wait()
        seen[caller.connection.id] = current_span()
        await both.wait()

    request_handler("ask_request", public=True)(handler)
    async with connected() as first, connected() as second:
        for client in (first, second):
            await client.tell(type="ask_request")
        for client in (first, second):
            await client.next()
    spans = {span.attributes["realtime.connection.id"]: ids(span) for span in recorder.spans("ask")}
    assert seen == spans
    assert len(spans) == 2


@pytest.mark.parametrize("handler", ["async", "sync", "failing"])
async def test_no_span_is_left_over_in_the_task_after_a_request(recorder: Recorder, handler: str) -> None:
    seen = []

    class Looking(RealtimeConsumer):
        def echo(self, request: Any) -> None:
            seen.append((current_span(), telemetry._traced.get()))
            super().echo(request)

    declare_everything()
    declare(boom, "failing_request")
    async with connected(Looking.as_asgi()) as client:
        await client.ask(type=f"{handler}_request")
        await client.assert_nothing_waits()
    assert seen == [(None, False)]


async def test_nothing_is_left_over_on_the_thread_after_a_request(recorder: Recorder, settings: Any) -> None:
    configure(settings, TRACER_PROVIDER=recorder.provider, SYNC_THREADS=1)
    on: list[Any] = []

    def look() -> Any:
        on.append((threading.get_ident(), current_span(), log_context.get()))

    declare(look)
    async with connected() as client:
        await client.ask(type="ask_request")
        await get_threads().run(look)
        [connection] = get_hub().connections
    (thread, span, context), after = on
    assert span == ids(recorder.one("ask"))
    assert context is not None
    assert context.connection == connection
    assert after == (thread, None, None)


@pytest.mark.parametrize("traced", [False, True])
async def test_log_context_is_there_on_the_handlers_threads(settings: Any, traced: bool) -> None:
    recorder = Recorder(sampler=Switch(on=traced))
    configure(settings, TRACER_PROVIDER=recorder.provider)
    seen: list[Any] = []
    declare(lambda: seen.append(log_context.get()))
    async with connected() as client:
        await client.ask(type="ask_request")
        [connection] = get_hub().connections
    ids_ = ids(recorder.one("accept")) if traced else ("", "")
    assert seen == [(connection, *ids_)]


async def test_background_work_that_a_request_begins_belongs_to_no_request(recorder: Recorder) -> None:
    seen: list[Any] = []
    done = asyncio.Event()

    async def work() -> None:
        seen.append((current_span(), log_context.get()))
        done.set()

    async def handler() -> None:
        get_hub().link.spawn(work())
        await done.wait()

    declare(handler)
    async with connected() as client:
        assert (await client.ask(type="ask_request"))["status"] == "OK"
    assert seen == [(None, None)]


# Providers that cannot wait


class OwnSampler(Sampler):
    def should_sample(self, *_: Any, **__: Any) -> SamplingResult:
        return SamplingResult(Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        return "a site's own"


class OwnProcessor(SpanProcessor):
    pass


class OwnIds(IdGenerator):
    generate_span_id = RandomIdGenerator.generate_span_id
    generate_trace_id = RandomIdGenerator.generate_trace_id


async def starts_in(provider: Any) -> set[str]:
    """Return the names of the threads that the provider's processors hear of new spans on."""
    names = set()

    class Watching(SimpleSpanProcessor):
        __module__ = "opentelemetry.sdk.test"  # or else it would be the site's

        def on_start(self, *_: Any, **__: Any) -> None:
            names.add(threading.current_thread().name)

    provider.add_span_processor(Watching(InMemorySpanExporter()))
    tracing = telemetry.Tracing(provider)
    assert await tracing.start("a", SpanKind.INTERNAL, {}, None) is not None
    assert await asyncio.to_thread(tracing.start_in_thread, "b", SpanKind.INTERNAL, {}, None) is not None
    return names


async def test_provider_that_is_opentelemetrys_own_is_called_where_the_span_begins() -> None:
    for sampler in (ALWAYS_ON, ParentBased(TraceIdRatioBased(1.0))):
        assert "realtime-telemetry" not in await starts_in(TracerProvider(sampler=sampler))


async def test_provider_with_code_of_the_sites_own_is_called_on_our_thread() -> None:
    with_processor = TracerProvider()
    with_processor.add_span_processor(OwnProcessor())
    for provider in (
        TracerProvider(sampler=OwnSampler()),
        TracerProvider(sampler=ParentBased(OwnSampler())),
        TracerProvider(id_generator=OwnIds()),
        with_processor,
    ):
        assert await starts_in(provider) == {"realtime-telemetry"}


@pytest.mark.parametrize("missing", ["sampler", "id_generator", "_active_span_processor"])
async def test_provider_that_only_looks_like_opentelemetrys_is_called_on_our_thread(missing: str) -> None:
    class Likeness:
        def __init__(self) -> None:
            self._provider = TracerProvider()

        def __getattr__(self, name: str) -> Any:
            if name == missing:
                raise AttributeError(name)
            return getattr(self._provider, name)

    tracing = telemetry.Tracing(Likeness())
    assert not tracing._quick
    assert await tracing.start("a", SpanKind.INTERNAL, {}, None) is not None


async def test_sampler_of_opentelemetrys_that_asks_who_knows_whom_is_called_on_our_thread() -> None:
    class _CompositeSampler(OwnSampler):
        __module__ = "opentelemetry.sdk.trace._sampling_experimental"

    assert await starts_in(TracerProvider(sampler=_CompositeSampler())) == {"realtime-telemetry"}


async def test_processor_that_is_added_later_is_noticed() -> None:
    provider = TracerProvider()
    tracing = telemetry.Tracing(provider)
    assert await tracing.start("a", SpanKind.INTERNAL, {}, None) is not None
    heard: list[str] = []

    class Late(SpanProcessor):
        def on_start(self, *_: Any, **__: Any) -> None:
            heard.append(threading.current_thread().name)

    provider.add_span_processor(Late())
    assert await tracing.start("b", SpanKind.INTERNAL, {}, None) is not None
    assert heard == ["realtime-telemetry"]


async def test_provider_of_opentelemetrys_that_raises_is_logged_and_nothing_is_traced(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = TracerProvider()
    monkeypatch.setattr(provider, "get_tracer", lambda *_: 1 / 0)
    assert await telemetry.Tracing(provider).start("a", SpanKind.INTERNAL, {}, None) is None
    assert complaints(caplog) == {"event=telemetry_failed error=ZeroDivisionError": 1}


# Providers that fail


class Panic(BaseException):
    """Be what code in another language raises when it gives up."""


class Trouble:
    """Raise, or do not return, when a method of a name is called."""

    def __init__(self, method: str, how: str) -> None:
        self.method = method
        self.how = how
        self.met = threading.Event()
        self.over = threading.Event()

    def __call__(self, method: str) -> None:
        if method != self.method or self.over.is_set():
            return
        self.met.set()
        if self.how == "blocks":
            self.over.wait(60)
        else:
            raise {"raises": Boom("with a text"), "panics": Panic("with a text")}[self.how]


class TroubledSpan(otel_trace.Span):
    def __init__(self, span: Any, trouble: Trouble) -> None:
        self._span = span
        self._trouble = trouble

    def end(self, end_time: int | None = None) -> None:
        self._trouble("end")
        self._span.end(end_time)

    def get_span_context(self) -> Any:
        return self._span.get_span_context()

    def set_attributes(self, attributes: Any) -> None:
        self._trouble("set_attributes")
        self._span.set_attributes(attributes)

    def set_attribute(self, key: str, value: Any) -> None:
        self._trouble("set_attribute")
        self._span.set_attribute(key, value)

    def add_event(self, *arguments: Any, **named: Any) -> None:
        raise NotImplementedError

    def update_name(self, name: str) -> None:
        raise NotImplementedError

    def is_recording(self) -> bool:
        self._trouble("is_recording")
        return self._span.is_recording()

    def set_status(self, *arguments: Any, **named: Any) -> None:
        self._trouble("set_status")
        self._span.set_status(*arguments, **named)

    def record_exception(self, *arguments: Any, **named: Any) -> None:
        raise NotImplementedError


class Troubled:
    """Be a provider of both kinds, its tracer and its meter, in trouble."""

    def __init__(self, trouble: Trouble) -> None:
        self.recorder = Recorder()
        self._trouble = trouble

    def get_tracer(self, *_: Any, **__: Any) -> Any:
        self._trouble("get_tracer")
        return self

    def start_span(self, *arguments: Any, **named: Any) -> Any:
        self._trouble("start_span")
        return TroubledSpan(self.recorder.tracer.start_span(*arguments, **named), self._trouble)

    def get_meter(self, *_: Any, **__: Any) -> Any:
        self._trouble("get_meter")
        return self

    def create_observable_counter(self, *_: Any) -> None:
        self._trouble("create_observable_counter")

    def create_observable_up_down_counter(self, *_: Any) -> None:
        self._trouble("create_observable_up_down_counter")

    def create_observable_gauge(self, *_: Any) -> None:
        self._trouble("create_observable_gauge")


TRACER_METHODS = ["get_tracer", "start_span", "is_recording", "set_attribute", "set_attributes", "set_status", "end"]
METER_METHODS = [
    "get_meter",
    "create_observable_counter",
    "create_observable_up_down_counter",
    "create_observable_gauge",
]


@contextmanager
def troubled(settings: Any, method: str, how: str, **keys: Any) -> Iterator[tuple[Trouble, Recorder]]:
    """Configure a provider that is in trouble until the end."""
    trouble = Trouble(method, how)
    provider = Troubled(trouble)
    configure(settings, TRACER_PROVIDER=provider, METER_PROVIDER=provider, DRAIN_SECONDS=0.0, **keys)
    try:
        yield trouble, provider.recorder
    finally:
        trouble.over.set()


def complaints(caplog: pytest.LogCaptureFixture) -> Counter[str]:
    """Return how often each kind of complaint of telemetry was logged."""
    return Counter(record.msg.strip() for record in caplog.records if record.name.startswith("realtime.telemetry"))


async def everything_with_an_error() -> None:
    """Go through all that a connection may ask for, and have a handler fail; stop the hub."""
    declare_everything()
    declare(boom, "failing_request")
    async with connected() as client:
        for _ in range(3):
            await go_through_everything(client)
            assert (await client.ask(type="failing_request"))["error"]["code"] == "INTERNAL_ERROR"
        await aclose_connections()
        assert (await client.closed())[0] == 1001
        await client.disconnect()
    async with asyncio.timeout(5):
        await get_hub().stop()


@pytest.mark.parametrize("how", ["raises", "panics"])
@pytest.mark.parametrize("method", [*TRACER_METHODS, *METER_METHODS])
@pytest.mark.usefixtures("fresh_worker")
async def test_provider_that_raises_keeps_nobody_from_being_served(
    settings: Any, caplog: pytest.LogCaptureFixture, method: str, how: str
) -> None:
    with troubled(settings, method, how) as (trouble, recorder):
        await everything_with_an_error()
        settle()
        assert trouble.met.is_set()
        kind = {"raises": "Boom", "panics": "Panic"}[how]
        assert complaints(caplog) == {f"event=telemetry_failed error={kind}": 1}
        trouble.over.set()
        use_layer(Layer())  # and with it another hub
        async with connected() as client:
            await client.assert_nothing_waits()
        assert recorder.spans("echo")


@pytest.mark.parametrize("method", [*TRACER_METHODS, *METER_METHODS])
@pytest.mark.usefixtures("fresh_worker")
async def test_provider_that_blocks_is_waited_for_once(
    settings: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(telemetry, "START_TIMEOUT", 0.5)
    with troubled(settings, method, "blocks") as (trouble, _):
        began = time.monotonic()
        await everything_with_an_error()
        assert trouble.met.is_set()
        assert time.monotonic() - began < 2.5  # with 30 spans, some of which are waited for
        assert complaints(caplog) == {"event=telemetry_slow effect=not_traced seconds=%g": 1}


@pytest.mark.usefixtures("fresh_worker")
async def test_publisher_in_a_thread_waits_once_for_a_provider_that_blocks(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "START_TIMEOUT", 0.5)
    Topic("news", public=True)
    with troubled(settings, "start_span", "blocks"):
        async with connected() as client:
            telemetry.get_tracing(get_settings().TRACER_PROVIDER)._off_until = 0.0  # after the wait for the handshake
            await client.subscribe("news")
            began = time.monotonic()
            await asyncio.to_thread(lambda: [publish("news", number) for number in range(10)])
            assert 0.5 <= time.monotonic() - began < 2.5
            assert [(await client.next())["data"] for _ in range(10)] == list(range(10))


@pytest.mark.usefixtures("fresh_worker")
async def test_provider_that_has_come_back_is_called_again(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "START_TIMEOUT", 0.05)
    monkeypatch.setattr(telemetry, "OFF_FOR", 0.05)
    with troubled(settings, "start_span", "blocks") as (trouble, recorder):
        async with connected() as client:
            await client.assert_nothing_waits()
            trouble.over.set()
            assert recorder.names() == ["accept"]  # which nobody waited for any more, and which is ended all the same
            await client.assert_nothing_waits()
            assert recorder.names() == ["accept"]  # the connection was let in untraced
        await until(lambda: get_hub().tracing.on)
        async with connected() as client:
            await client.assert_nothing_waits()
        assert recorder.names() == ["accept", "accept", "echo"]


@pytest.mark.usefixtures("fresh_worker")
async def test_what_waits_for_a_provider_is_bounded_and_the_rest_is_counted(
    settings: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "WAITING_JOBS", 10)
    declare(lambda: None)
    with troubled(settings, "end", "blocks") as (trouble, recorder):
        async with connected() as client:
            await client.assert_nothing_waits()
            assert await asyncio.to_thread(trouble.met.wait, TIMEOUT)  # in the end of the span of the handshake
            before = telemetry.worker._jobs.qsize()
            for _ in range(50):
                await client.assert_nothing_waits()
            assert telemetry.worker._jobs.qsize() == 10
            assert telemetry.worker.dropped == 50 - (10 - before)
            assert (await client.ask(type="ask_request"))["status"] == "OK"
            assert complaints(caplog) == {"event=spans_dropped hint=%r": 1}
            trouble.over.set()
            await until(lambda: not telemetry.worker._jobs.qsize())
            await client.assert_nothing_waits()
            assert len(recorder.spans("echo")) == 1 + 10 - before + 1


# Forks, and the end of the process


SCRIPT = """
import os, sys, threading, warnings
warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)  # that is what is tested here
import django
from django.conf import settings
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

class Lines(SpanExporter):
    def export(self, spans):
        for span in spans:
            thread = threading.current_thread()
            parent = "root" if span.parent is None else format(span.parent.span_id, "016x")
            line = f"{os.getpid()} {span.name} {thread.name} {format(span.context.span_id, '016x')} {parent}\\n"
            os.write(1, line.encode())
        return SpanExportResult.SUCCESS

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(Lines()))
import tests.settings
tests.settings.REALTIME["TRACER_PROVIDER"] = provider
django.setup()
from realtime import Topic, publish, telemetry
Topic("shared", public=True)

def settle():
    done = threading.Event()
    telemetry.worker.post(done.set)
    assert done.wait(20)

"""


def run_script(code: str) -> list[list[str]]:
    """Return the words of each line that a script writes, which must end well."""
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def test_forked_child_publishes_traced_with_a_thread_of_its_own() -> None:
    lines = run_script("""
publish("shared", 1)
settle()
with provider.get_tracer("site").start_as_current_span("job"):
    child = os.fork()
    if not child:
        assert not [thread for thread in threading.enumerate() if thread.name == "realtime-telemetry"]
        publish("shared", 2)
        settle()
        assert telemetry.worker.dropped == 0
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    publish("shared", 3)
settle()
""")
    published = [words for words in lines if words[1:3] == ["publish", "shared"]]
    [job] = [words for words in lines if words[1] == "job"]
    assert len({words[0] for words in published}) == 2
    assert [words[0] == job[0] for words in published] == [True, False, True]
    assert {words[3] for words in published} == {"realtime-telemetry"}
    assert [words[5] for words in published] == ["root", job[3], job[3]]


def test_forked_child_s_telemetry_does_not_hang_where_the_parent_s_thread_was_blocked() -> None:
    lines = run_script("""
blocked = threading.Event()
telemetry.worker.post(blocked.wait)
child = os.fork()
if not child:
    publish("shared", 2)
    settle()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
""")
    assert [words[1:3] for words in lines] == [["publish", "shared"]]


def test_process_ends_though_the_provider_blocks_for_ever() -> None:
    assert run_script("telemetry.worker.post(threading.Event().wait)\npublish('shared', 1)\n") == []


def test_span_of_a_script_s_last_publication_is_exported() -> None:
    for _ in range(3):
        assert [words[1:3] for words in run_script("publish('shared', 1)\n")] == [["publish", "shared"]]


# Settings


PROVIDERS = {"TRACER_PROVIDER": "get_tracer", "METER_PROVIDER": "get_meter"}
no_provider: list[Any] = []


class Minimal:
    """Have what a provider of either kind has."""

    def get_tracer(self, *_: Any) -> Any: ...

    def get_meter(self, *_: Any) -> Any: ...


the_provider = Minimal()


def make_provider() -> Minimal:
    return Minimal()


@pytest.mark.parametrize("key", PROVIDERS)
@pytest.mark.parametrize("value", [the_provider, f"{__name__}.the_provider"], ids=["object", "path"])
def test_provider_may_be_named(settings: Any, key: str, value: Any) -> None:
    settings.REALTIME = {key: value}
    assert getattr(get_settings(), key) is the_provider


@pytest.mark.parametrize("key", PROVIDERS)
@pytest.mark.parametrize("value", [Minimal, f"{__name__}.Minimal", f"{__name__}.make_provider"])
def test_provider_may_be_made_by_what_a_path_names_or_a_class(settings: Any, key: str, value: Any) -> None:
    settings.REALTIME = {key: value}
    provider = getattr(get_settings(), key)
    assert isinstance(provider, Minimal)
    assert getattr(get_settings(), key) is provider


@pytest.mark.parametrize("key", PROVIDERS)
def test_function_that_makes_a_provider_is_called_once_also_for_the_checks(settings: Any, key: str) -> None:
    made: list[Any] = []

    def make() -> Any:
        made.append(Minimal())
        return made[-1]

    settings.REALTIME = {key: make}
    assert run_checks(tags=["realtime"]) == []
    assert getattr(get_settings(), key) is made[0]
    settings.REALTIME = {key: make, "SYNC_THREADS": 2}
    assert getattr(get_settings(), key) is made[0]
    assert len(made) == 1


@pytest.mark.parametrize("key", PROVIDERS)
def test_no_provider_is_fine(settings: Any, key: str) -> None:
    settings.REALTIME = {key: None}
    assert getattr(get_settings(), key) is None
    assert run_checks(tags=["realtime"]) == []


def make_nothing() -> int:
    return 5


def fail_to_make() -> None:
    raise ValueError("no collector")


WRONG = {
    "number": (5, "a provider has a method {method}()"),
    "object": (object(), "a provider has a method {method}()"),
    "list": ([], "a provider has a method {method}()"),
    "no module": ("nowhere.provider", "no module named 'nowhere'"),
    "no attribute": (f"{__name__}.nothing", 'does not define a "nothing"'),
    "no path": ("provider", "doesn't look like a module path"),
    "path to no provider": (f"{__name__}.no_provider", "a provider has a method {method}()"),
    "function that makes none": (make_nothing, "a provider has a method {method}()"),
    "function that raises": (fail_to_make, "no collector"),
}


@pytest.mark.parametrize("key", PROVIDERS)
@pytest.mark.parametrize(("value", "text"), WRONG.values(), ids=WRONG)
def test_wrong_provider_is_refused_with_its_key_and_itself(settings: Any, key: str, value: Any, text: str) -> None:
    settings.REALTIME = {key: value}
    with pytest.raises(ImproperlyConfigured) as caught:
        get_settings()
    assert f"REALTIME[{key!r}] is {value!r}: " in str(caught.value)
    assert text.format(method=PROVIDERS[key]) in str(caught.value)
    [message] = run_checks(tags=["realtime"])
    assert (message.id, message.msg) == ("realtime.E003", str(caught.value))
    assert message.hint


@pytest.mark.parametrize("value", [None, 2, "perhaps"])
def test_trust_in_clients_is_a_yes_or_a_no(settings: Any, value: Any) -> None:
    settings.REALTIME = {"TRUST_CLIENT_TRACEPARENT": value}
    assert [message.id for message in run_checks(tags=["realtime"])] == ["realtime.E003"]
