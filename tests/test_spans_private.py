"""What spans and metrics never tell: tokens, cookies, payloads, parameters, texts of any kind that people wrote."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from django.test import override_settings
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Link, SpanContext, Status, StatusCode, TraceFlags, TraceState
from pydantic import BaseModel

from realtime import Caller, CloseMessage, RequestRefused, Topic, aclose_connections, request_handler
from realtime.consumers import RealtimeConsumer
from realtime.hub import get_hub

from .memory import TIMEOUT, Client, Layer, clean_process, the_layer, use_layer  # noqa: F401
from .test_metrics import Meters
from .test_tracing import Asked, Recorder, no_handlers_left, settle  # noqa: F401

MARKER = "zQ7xK0secret"
"""What every text begins with that nobody must be told."""
SAFE = string.ascii_letters + string.digits

texts = st.text(st.characters(codec="utf-8"), max_size=20).map(lambda text: MARKER + text)
"""Anything that JSON can carry."""
words = st.text(SAFE, max_size=20).map(lambda text: MARKER + text)
"""What fits into a header, a topic's name and a subprotocol."""


class Secrets(BaseModel):
    """Hold what a client and a site know, and which way everything goes."""

    token: str
    cookie: str
    user: str
    name: str
    text: str
    req_id: str
    reason: str
    message: str
    token_in: str
    authenticate: str
    authorize: str
    on_subscribe: str
    handler: str
    connect: str
    close: str
    trust: bool
    asynchronous: bool


secrets = st.builds(
    Secrets,
    token=words,
    cookie=words,
    user=words,
    name=words,
    text=texts,
    req_id=texts,
    reason=texts,
    message=texts,
    token_in=st.sampled_from(["header", "subprotocol", "query", "nowhere"]),
    authenticate=st.sampled_from(["user", "user", "user", "nobody", "raise"]),
    authorize=st.sampled_from(["allow", "allow", "deny", "raise"]),
    on_subscribe=st.sampled_from(["nothing", "data", "raise"]),
    handler=st.sampled_from(["answer", "raise", "refuse", "publish", "nonsense"]),
    connect=st.sampled_from(["accept", "accept", "accept", "raise", "accept and raise"]),
    close=st.sampled_from(["all", "user", "session", "topic", "ids", "client"]),
    trust=st.booleans(),
    asynchronous=st.booleans(),
)


def fault(told: Secrets) -> Exception:
    """Return an exception that tells in every way but by its class's name."""
    kind = type("Fault", (Exception,), {"__module__": told.message, "__doc__": told.message})
    error: Exception = kind(told.message, told.token)
    error.add_note(told.message)
    error.__cause__ = ValueError(told.message)
    return error


class Site:
    """Be a site whose code raises, refuses or answers as it is told."""

    def __init__(self, told: Secrets) -> None:
        self.told = told
        self.orders = Topic("orders.{name}", authorize=self._may(), on_subscribe=self._of_kind(self.first))
        request_handler("ask_request", public=True)(self._handler())

    def _of_kind(self, function: Any) -> Any:
        if not self.told.asynchronous:
            return function

        async def asynchronous(*arguments: Any, **named: Any) -> Any:
            return function(*arguments, **named)

        return asynchronous

    def _may(self) -> Any:
        def may(user: Any, name: str) -> bool:
            return self.go(self.told.authorize) == "allow"

        return self._of_kind(may)

    def go(self, way: str) -> str:
        if way == "raise":
            raise fault(self.told)
        return way

    def authenticate(self, token: str) -> Any:
        known = SimpleNamespace(is_authenticated=True, pk=self.told.user, get_username=lambda: self.told.user)
        return known if self.go(self.told.authenticate) == "user" else None

    def first(self, user: Any, name: str) -> Any:
        return {"text": self.told.text} if self.go(self.told.on_subscribe) == "data" else None

    def _handler(self) -> Any:
        async def handler(request: Asked, caller: Caller) -> dict[str, str]:
            way = self.go(self.told.handler)
            if way == "refuse":
                raise RequestRefused("SOLD_OUT", self.told.message)
            if way == "publish":
                await self.orders.apublish({"text": self.told.text}, name=self.told.name)
            return {"answer": self.told.text} if way != "nonsense" else object()  # type: ignore[return-value]

        return handler

    def application(self) -> Any:
        told = self.told

        class Consumer(RealtimeConsumer):
            async def connect(self) -> None:
                if told.connect != "raise":
                    await super().connect()
                if told.connect != "accept":
                    raise fault(told)

        return Consumer.as_asgi()

    def client(self) -> Client:
        told = self.told
        headers = [
            (b"cookie", f"sessionid={told.cookie}; other={told.cookie}".encode()),
            (b"user-agent", told.token.encode()),
            (b"traceparent", told.token.encode()),
            (b"tracestate", f"vendor={told.token}".encode()),
            (b"baggage", f"secret={told.token}".encode()),
        ]
        offers = ["demows.v1"]
        query = f"?other={quote(told.text)}"
        if told.token_in == "header":
            headers.append((b"authorization", f"Bearer {told.token}".encode()))
        elif told.token_in == "subprotocol":
            offers.append(f"token.{told.token}")
        elif told.token_in == "query":
            query = f"?token={told.token}"
        return Client(self.application(), f"/ws/{query}", headers=headers, subprotocols=offers)

    def frames(self) -> list[str]:
        """Return all that the client asks for."""
        told = self.told
        traceparent = f"00-{'1' * 32}-{'2' * 16}-01"
        requests: list[Any] = [
            {"type": "echo_request", "echo": told.text, "reqId": told.req_id, "traceparent": told.text},
            {
                "type": "echo_request",
                "echo": told.text,
                "err": True,
                "traceparent": traceparent,
                "tracestate": told.text,
            },
            {"type": "subscribe_request", "topic": f"orders.{told.name}", "reqId": told.req_id},
            {"type": "subscribe_request", "topic": f"orders.{told.name}"},
            {"type": "subscribe_request", "topic": told.text},
            {"type": "ask_request", "name": told.text, "traceparent": traceparent, told.text: told.text},
            {"type": "ask_request", "name": [told.text]},
            {"type": "unsubscribe_request", "topic": f"orders.{told.name}"},
            {"type": "unsubscribe_request", "topic": told.text},
            {"type": told.text, "reqId": told.req_id, told.text: 1},
            {"type": "echo_request", "reqId": told.req_id, "echo": [told.text]},
            [told.text],
        ]
        return [*map(json.dumps, requests), told.text]


async def all_answers(client: Client, frames: list[str]) -> bool:
    """Send frames and read all answers. Return whether the connection is still there after that."""
    for frame in frames:
        await client.send_input({"type": "websocket.receive", "text": frame})
    await client.tell(type="echo_request", echo="the end")
    while True:
        message = await client.receive_output(TIMEOUT)
        if message["type"] != "websocket.send":
            return False
        if json.loads(message["text"]).get("data") == {"echo": "the end"}:
            return True


async def visit(site: Site) -> bool:
    """Connect, ask for everything, have it published and closed. Return whether the connection was served."""
    told = site.told
    client = site.client()
    if not (await client.connect(TIMEOUT))[0]:
        return False
    served = await all_answers(client, site.frames()[:4])
    if served:
        await site.orders.apublish({"text": told.text}, name=told.name)
        served = await all_answers(client, site.frames()[4:])
        await close(site)
    end = {"type": "websocket.disconnect", "code": 4001, "reason": told.reason}
    await client.send_input(end)
    await client.wait(TIMEOUT)
    return served


async def close(site: Site) -> None:
    told = site.told
    reason = told.reason.encode()[:100].decode(errors="ignore")
    target: dict[str, Any] = {
        "all": {},
        "user": {"user": told.user},
        "session": {"session": told.cookie},
        "topic": {"topic": f"orders.{told.name}"},
        "ids": {"ids": [told.text]},
    }
    if told.close != "client":
        await aclose_connections(CloseMessage(code=4000, reason=reason), **target[told.close])


def told_by(span: ReadableSpan) -> Iterator[str]:
    """Return all the texts that a span exports."""
    yield span.name
    yield repr(dict(span.attributes or {}))
    yield repr([(event.name, dict(event.attributes or {})) for event in span.events])
    yield repr([(dict(link.attributes or {}), link.context.trace_state.to_header()) for link in span.links])
    yield str(span.status.description)
    yield span.context.trace_state.to_header()
    yield "" if span.parent is None else span.parent.trace_state.to_header()
    yield span.to_json()


recorder = Recorder()
meters = Meters()


@given(told=secrets)
@hypothesis_settings(
    max_examples=150,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_no_text_of_anybody_s_is_told(told: Secrets) -> None:
    from realtime.handlers import handlers
    from realtime.protocol import remove_request
    from realtime.topics import _patterns, _topics

    declared, patterns = dict(_topics), {key: list(topics) for key, topics in _patterns.items()}
    site = Site(told)
    configured = {
        "CONNECTION_REGISTRY": False,
        "HEARTBEAT_INTERVAL": 3600.0,
        "DRAIN_SECONDS": 0.0,
        "TRACER_PROVIDER": recorder.provider,
        "METER_PROVIDER": meters.provider,
        "TRUST_CLIENT_TRACEPARENT": told.trust,
        "AUTHENTICATE": site.authenticate,
    }
    engine = "django.contrib.sessions.backends.signed_cookies"  # no database is needed to find that it is no good
    recorder.exporter.clear()
    use_layer(Layer())
    try:
        with override_settings(REALTIME=configured, SESSION_ENGINE=engine):
            served = await visit(site)
            assert any(MARKER in str(message) for message in the_layer().sent) or not served
            await get_hub().stop()
            spans = recorder.spans()
            collected = meters.collect()
    finally:
        del handlers["ask_request"]
        remove_request("ask_request")
        _topics.clear()
        _topics.update(declared)
        _patterns.clear()
        _patterns.update(patterns)
    names = {span.name for span in spans}
    assert "accept" in names
    if served:
        assert names >= {"accept", "echo", "subscribe", "unsubscribe", "ask", "request", "publish orders.{name}"}
    for span in spans:
        for text in told_by(span):
            assert MARKER not in text, text
    assert collected
    assert MARKER not in repr(collected)


# That it would be found


def planted(**options: Any) -> ReadableSpan:
    """Return a span in which something is told."""
    recorder = Recorder()
    span = recorder.tracer.start_span(options.pop("name", "span"), **options)
    span.end()
    [found] = recorder.exporter.get_finished_spans()
    return found


def state() -> SpanContext:
    return SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("vendor", MARKER)]))


@pytest.mark.parametrize(
    "options",
    [
        {"name": f"publish {MARKER}"},
        {"attributes": {"realtime.reason": f"a {MARKER} b"}},
        {"attributes": {MARKER: 1}},
        {"links": [Link(state())]},
        {"links": [Link(SpanContext(1, 2, is_remote=True), {"realtime.reason": MARKER})]},
    ],
    ids=["name", "attribute", "key", "trace state", "link"],
)
def test_text_that_is_told_is_found(options: Any) -> None:
    assert any(MARKER in text for text in told_by(planted(**options)))


def test_text_that_an_event_or_a_status_tells_is_found() -> None:
    for tell in (
        lambda span: span.record_exception(ValueError(MARKER)),
        lambda span: span.set_status(Status(StatusCode.ERROR, MARKER)),
    ):
        recorder = Recorder()
        span = recorder.tracer.start_span("span")
        tell(span)
        span.end()
        [found] = recorder.exporter.get_finished_spans()
        assert any(MARKER in text for text in told_by(found))
