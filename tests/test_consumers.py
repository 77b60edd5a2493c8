"""The consumer: the whole wire protocol, and its guarantees, in memory."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
import threading
import time
import uuid
import weakref
from collections import Counter
from typing import Any

import pytest
from channels.auth import AuthMiddlewareStack
from channels.exceptions import AcceptConnection, DenyConnection
from django.conf import settings as django_settings
from django.contrib.auth.models import Permission, User
from django.test import AsyncClient
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from realtime import CloseMessage, Topic, aclose_connections, apublish
from realtime.consumers import RealtimeConsumer
from realtime.events import ALL_GROUP
from realtime.hub import get_hub
from realtime.limits import Count
from realtime.protocol import AnyRequest, EchoRequest, EchoResponse, EchoResponseData, Heartbeat, Publication

from .memory import (
    TIMEOUT,
    Client,
    clean_process,  # noqa: F401
    connected,
    frames,
    joined_groups,
    members,
    started_hub,
    the_layer,
    until,
)

ERROR = "INTERNAL_ERROR"


def error(kind: str, code: str, req_id: str | None = None) -> dict[str, Any]:
    """Return what an error answer holds, but for its text."""
    ids = {} if req_id is None else {"reqId": req_id}
    if kind == "error":
        return {"type": kind, "code": code, **ids}
    return {"type": kind, "status": "ERROR", "error": {"code": code}, **ids}


def without_text(answer: dict[str, Any]) -> dict[str, Any]:
    """Return ``answer`` without the error's text, which it must have."""
    answer = json.loads(json.dumps(answer))
    text = answer.get("error", answer)
    assert text.pop("message")
    return answer


def as_user(user: Any) -> Any:
    """Return the consumer behind a middleware that has found ``user``."""
    inner = RealtimeConsumer.as_asgi()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await inner({**scope, "user": user}, receive, send)

    return application


# The handshake


async def test_connection_is_accepted() -> None:
    async with connected() as client:
        assert client.response_headers == []


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [([], None), (["demows.v1"], "demows.v1"), (["other", "demows.v1"], "demows.v1"), (["other"], None)],
)
async def test_subprotocol_is_ours_or_none(offered: list[str], chosen: str | None) -> None:
    client = Client(RealtimeConsumer.as_asgi(), "/ws/", subprotocols=offered)
    assert await client.connect() == (True, chosen)
    await client.disconnect()


async def test_connection_that_is_gone_before_it_began_is_no_matter() -> None:
    client = Client(RealtimeConsumer.as_asgi(), "/ws/")
    await client.send_input({"type": "websocket.disconnect", "code": 1006})
    await client.wait()
    assert get_hub().connections == {}


DENIED = [
    {
        "type": "websocket.http.response.start",
        "status": 503,
        "headers": [(b"retry-after", b"1"), (b"content-length", b"0"), (b"connection", b"close")],
    },
    {"type": "websocket.http.response.body", "body": b""},
]


async def refused_with(client: Client) -> list[dict[str, Any]]:
    """Ask for a connection, and return the two messages that refuse it."""
    await client.send_input({"type": "websocket.connect"})
    messages = [await client.receive_output(), await client.receive_output()]
    await client.wait()
    return messages


def able_to_deny() -> Client:
    """Return a client of a server that can refuse a handshake with any status."""
    client = Client(RealtimeConsumer.as_asgi(), "/ws/")
    client.scope["extensions"] = {"websocket.http.response": {}}
    return client


def status_and_wait(messages: list[dict[str, Any]]) -> tuple[int, int]:
    """Return the status that a handshake was refused with, and what its Retry-After says."""
    return messages[0]["status"], int(dict(messages[0]["headers"])[b"retry-after"])


async def test_connection_while_the_server_stops_is_refused_with_a_status() -> None:
    hub = await started_hub()
    hub.draining = True
    assert await refused_with(able_to_deny()) == DENIED
    assert hub.connections == {}
    assert hub.counts == {Count.REFUSED_DRAINING: 1}


async def test_connection_while_the_server_stops_is_accepted_and_closed_where_it_can_have_no_status() -> None:
    (await started_hub()).draining = True
    assert await refused_with(Client(RealtimeConsumer.as_asgi(), "/ws/", subprotocols=["demows.v1"])) == [
        {"type": "websocket.accept", "subprotocol": "demows.v1"},
        {"type": "websocket.close", "code": 1013, "reason": "server shutdown"},
    ]
    assert get_hub().connections == {}


async def test_connection_to_a_full_server_is_refused_until_another_has_left(settings: Any) -> None:
    settings.REALTIME = {"MAX_CONNECTIONS": 1, "CONNECTION_REGISTRY": False}
    async with connected():
        assert status_and_wait(await refused_with(able_to_deny())) == (503, 10)
        assert get_hub().counts == {Count.REFUSED_FULL: 1}
    async with connected() as client:
        await client.assert_nothing_waits()


async def test_connection_over_the_limit_of_its_address_is_refused_and_another_address_is_not(settings: Any) -> None:
    settings.REALTIME = {"MAX_CONNECTIONS_PER_ADDRESS": 1, "TRUSTED_HOPS": 1, "CONNECTION_REGISTRY": False}
    first, other = ([(b"x-forwarded-for", address)] for address in (b"192.0.2.1", b"192.0.2.2"))
    async with connected(headers=first):
        late = able_to_deny()
        late.scope["headers"] = first
        assert status_and_wait(await refused_with(late)) == (429, 10)
        assert get_hub().counts == {Count.REFUSED_ADDRESS: 1}
        async with connected(headers=other):
            pass
    async with connected(headers=first) as client:
        await client.assert_nothing_waits()


async def test_connection_over_the_limit_of_its_user_is_refused_and_counts_for_nothing(settings: Any) -> None:
    settings.REALTIME = {"MAX_CONNECTIONS_PER_USER": 1, "MAX_CONNECTIONS": 2, "CONNECTION_REGISTRY": False}
    user = User(pk=7, username="ada")
    application = as_user(user)
    async with connected(application):
        late = Client(application, "/ws/")
        late.scope["extensions"] = {"websocket.http.response": {}}
        assert status_and_wait(await refused_with(late)) == (429, 10)
        assert get_hub().counts == {Count.REFUSED_USER: 1}
        async with connected():  # of nobody
            pass
    async with connected(application) as client:
        await client.assert_nothing_waits()


async def test_connection_that_is_refused_is_logged_once_a_kind(
    settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.REALTIME = {"MAX_CONNECTIONS": 1, "CONNECTION_REGISTRY": False}
    async with connected():
        for _ in range(3):
            await refused_with(able_to_deny())
    assert caplog.text.count("event=refused reason=full path='/ws/'") == 1
    assert get_hub().counts == {Count.REFUSED_FULL: 3}


# The protocol

SUBSCRIBED = {"type": "subscribe_response", "status": "OK", "data": {"topic": "news"}}

ANSWERS = {
    "echo": (
        {"type": "echo_request", "reqId": "1", "echo": "Hello", "err": False},
        {"type": "echo_response", "reqId": "1", "status": "OK", "data": {"echo": "Hello"}},
    ),
    "echo of an error": (
        {"type": "echo_request", "reqId": "1", "echo": "Hello", "err": True},
        {
            "type": "echo_response",
            "reqId": "1",
            "status": "ERROR",
            "error": {"message": "client asked for it", "code": "ASKED_BY_CLIENT"},
        },
    ),
    "echo without reqId": (
        {"type": "echo_request", "echo": "é🎉\0"},
        {"type": "echo_response", "status": "OK", "data": {"echo": "é🎉\0"}},
    ),
    "echo with nulls": (
        {"type": "echo_request", "reqId": None, "echo": "", "err": None},
        {"type": "echo_response", "status": "OK", "data": {"echo": ""}},
    ),
    "subscribe": (
        {"type": "subscribe_request", "reqId": "2", "topic": "news"},
        {"type": "subscribe_response", "reqId": "2", "status": "OK", "data": {"topic": "news"}},
    ),
}


@pytest.mark.parametrize(("request_", "answer"), ANSWERS.values(), ids=list(ANSWERS))
async def test_request_is_answered_as_in_the_table(request_: dict[str, Any], answer: dict[str, Any]) -> None:
    Topic("news", public=True)
    async with connected() as client:
        assert await client.ask(**request_) == answer


async def test_request_in_a_binary_frame_is_answered_in_a_text_frame() -> None:
    async with connected() as client:
        await client.send_to(bytes_data=b'{"type":"echo_request","echo":"\xc3\xa9"}')
        assert (await client.next())["data"] == {"echo": "é"}


async def test_subscribe_and_unsubscribe() -> None:
    Topic("news", public=True)
    async with connected() as client:
        assert await client.subscribe("news") == SUBSCRIBED
        assert await client.unsubscribe("news") == SUBSCRIBED | {"type": "unsubscribe_response"}
        assert await client.subscribe("news") == SUBSCRIBED


async def test_heartbeat_follows_the_subscribe_response_at_once() -> None:
    async with connected() as client:
        await client.subscribe("heartbeat")
        message = await client.next()
        assert Heartbeat.model_validate_json(json.dumps(message)).uptime_seconds == "0"
        assert message.keys() == {"type", "timestamp", "uptime_seconds"}
        await client.assert_nothing_waits()


async def test_heartbeats_go_on(settings: Any) -> None:
    settings.REALTIME = {"HEARTBEAT_INTERVAL": 0.05}
    async with connected() as client:
        await client.subscribe("heartbeat")
        assert [(await client.next())["type"] for _ in range(4)] == ["heartbeat"] * 4


async def test_heartbeat_tells_the_connections_own_age() -> None:
    async with connected() as client:
        [connection] = get_hub().connections.values()
        connection.opened -= 42.9
        await client.subscribe("heartbeat")
        assert (await client.next())["uptime_seconds"] in ("42", "43")


async def test_publication_reaches_its_subscriber() -> None:
    topic = Topic("news", public=True)
    async with connected() as client:
        await client.subscribe("news")
        await topic.apublish({"a": None})
        message = await client.next()
        assert Publication.model_validate_json(json.dumps(message)).data == {"a": None}
        assert message.keys() == {"type", "topic", "data", "timestamp"}


REFUSED = {
    "subscribed already": ("subscribe_request", "mine", "subscribe_response", "ALREADY_SUBSCRIBED"),
    "not subscribed": ("unsubscribe_request", "news", "unsubscribe_response", "NOT_SUBSCRIBED"),
    "subscribe to the unknown": ("subscribe_request", "nowhere", "subscribe_response", "TOPIC_NOT_FOUND"),
    "unsubscribe from the unknown": ("unsubscribe_request", "nowhere", "unsubscribe_response", "TOPIC_NOT_FOUND"),
    "forbidden": ("subscribe_request", "secret", "subscribe_response", "FORBIDDEN"),
}


@pytest.mark.parametrize(("kind", "topic", "answer", "code"), REFUSED.values(), ids=list(REFUSED))
async def test_request_is_refused_as_in_the_table(kind: str, topic: str, answer: str, code: str) -> None:
    for name, public in [("mine", True), ("news", True), ("secret", False)]:
        Topic(name, public=public)
    async with connected() as client:
        await client.subscribe("mine")
        got = await client.ask(type=kind, topic=topic, reqId="7")
        assert without_text(got) == error(answer, code, "7")


@pytest.mark.parametrize("kind", ["subscribe", "unsubscribe"])
@pytest.mark.parametrize("topic", ["", "\0", "realtime.all", "../..", "x" * 100_000, "é🎉", "heartbeat ", "{}"])
async def test_odd_topic_is_not_found(kind: str, topic: str) -> None:
    async with connected() as client:
        got = await client.ask(type=f"{kind}_request", topic=topic)
        assert without_text(got) == error(f"{kind}_response", "TOPIC_NOT_FOUND")


ERRORS = {
    "not JSON": ("hello", "BAD_REQUEST", None),
    "not an object": ("[]", "BAD_REQUEST", None),
    "type of another type": ('{"type":1,"reqId":"1"}', "BAD_REQUEST", "1"),
    "no type": ('{"reqId":"1"}', "UNKNOWN_MESSAGE_TYPE", None),
    "unknown type": ('{"type":"dance","reqId":"1"}', "UNKNOWN_MESSAGE_TYPE", None),
    "missing field": ('{"type":"echo_request","reqId":"1"}', "BAD_REQUEST", "1"),
    "field of another type": ('{"type":"echo_request","reqId":"1","echo":42}', "BAD_REQUEST", "1"),
    "reqId that is too long": (
        json.dumps({"type": "echo_request", "echo": "", "reqId": "1" * 257}),
        "BAD_REQUEST",
        None,
    ),
}


@pytest.mark.parametrize(("frame", "code", "req_id"), ERRORS.values(), ids=list(ERRORS))
async def test_frame_that_is_no_request_is_answered_with_an_error(frame: str, code: str, req_id: str | None) -> None:
    async with connected() as client:
        await client.send_to(text_data=frame)
        assert without_text(await client.next()) == error("error", code, req_id)
        await client.assert_nothing_waits()


@pytest.mark.parametrize("content", [{"text": ""}, {"bytes": b""}, {"text": "", "bytes": None}, {"bytes": b"\xff\xfe"}])
async def test_frame_that_is_empty_or_garbage_is_answered(content: dict[str, Any]) -> None:
    async with connected() as client:
        await client.send_input({"type": "websocket.receive", **content})
        assert without_text(await client.next()) == error("error", "BAD_REQUEST")


async def test_more_topics_than_a_connection_may_hold_are_refused(settings: Any) -> None:
    settings.REALTIME = {"MAX_SUBSCRIPTIONS": 2}
    for name in "abc":
        Topic(name, public=True)
    async with connected() as client:
        await client.subscribe("a")
        await client.subscribe("b")
        assert without_text(await client.subscribe("c")) == error("subscribe_response", "TOO_MANY_SUBSCRIPTIONS")
        assert (await client.subscribe("a"))["error"]["code"] == "ALREADY_SUBSCRIBED"
        await client.unsubscribe("a")
        assert (await client.subscribe("c"))["status"] == "OK"


# Guarantees


async def test_pipelined_requests_are_answered_in_order() -> None:
    for number in range(10):
        Topic(f"topic {number}", public=True)
    async with connected() as client:
        kinds = []
        for number in range(200):
            kind = ["echo", "subscribe", "unsubscribe", "nonsense"][number % 4]
            kinds.append(kind)
            await client.tell(type=f"{kind}_request", reqId=str(number), echo="", topic=f"topic {number // 4 % 10}")
        answers = [await client.next() for _ in range(200)]
        for number, (kind, answer) in enumerate(zip(kinds, answers, strict=True)):
            expected = ("error", None) if kind == "nonsense" else (f"{kind}_response", str(number))
            assert (answer["type"], answer.get("reqId")) == expected
        await client.assert_nothing_waits()


async def test_nothing_arrives_before_the_subscribe_response_nor_after_the_unsubscribe_response() -> None:
    Topic("news", public=True)

    async def hammer() -> None:
        while True:
            await apublish("news", "")
            await asyncio.sleep(0)

    async with connected() as client:
        await client.assert_nothing_waits()
        hammering = asyncio.create_task(hammer())
        for _ in range(50):
            assert (await client.subscribe("news"))["type"] == "subscribe_response"
            for _ in range(3):
                assert (await client.next())["type"] == "publication"
            await client.tell(type="unsubscribe_request", topic="news")
            while (message := await client.next())["type"] == "publication":
                pass
            assert message["type"] == "unsubscribe_response"
            await client.assert_nothing_waits()
        hammering.cancel()
        await asyncio.wait([hammering])


async def test_what_is_published_right_after_the_subscribe_response_arrives() -> None:
    Topic("news", public=True)
    async with connected() as client:
        for number in range(50):
            await client.subscribe("news")
            await apublish("news", number)
            assert (await client.next())["data"] == number
            await client.unsubscribe("news")


async def test_subscribe_is_answered_after_the_group_is_joined() -> None:
    Topic("news", public=True)
    layer = the_layer()
    async with connected() as client:
        await client.assert_nothing_waits()
        layer.hanging, layer.only = True, "group_add"
        await client.tell(type="subscribe_request", topic="news")
        await until(lambda: layer.calls[-1] == "group_add")
        assert client.output_queue.empty()
        layer.hanging = False
        assert (await client.next()) == SUBSCRIBED
        assert members("news") == 1


async def test_subscribe_while_the_layer_is_down_is_ok() -> None:
    Topic("news", public=True)
    the_layer().failing = True
    async with connected() as client:
        assert await client.subscribe("news") == SUBSCRIBED


async def test_publications_of_one_publisher_arrive_in_order() -> None:
    Topic("news", public=True)
    async with connected() as client:
        await client.subscribe("news")
        for number in range(500):
            await apublish("news", number)
        assert [(await client.next())["data"] for _ in range(500)] == list(range(500))


async def test_client_that_pipelines_does_not_hold_the_loop() -> None:
    async with connected() as flooding, connected() as client:
        for _ in range(2000):
            await flooding.tell(type="echo_request", echo="")
        await client.ask(type="echo_request", echo="")
        assert flooding.input_queue.qsize() > 0


@given(st.lists(frames, min_size=1, max_size=20))
@hypothesis_settings(deadline=None, max_examples=100)
async def test_frames_of_any_kind_are_each_answered_once(sent: list[str | bytes]) -> None:
    async with connected() as client:
        for frame in sent:
            content = {"text": frame} if isinstance(frame, str) else {"bytes": frame}
            await client.send_input({"type": "websocket.receive", **content})
        await client.tell(type="echo_request", reqId="the end", echo="")
        answers = []
        while (message := await client.next()).get("reqId") != "the end" or message["type"] != "echo_response":
            if message["type"] != "heartbeat":
                answers.append(message["type"])
        assert len(answers) == len(sent)
        assert set(answers) <= {"error", "echo_response", "subscribe_response", "unsubscribe_response"}


# Limits

LIMITED = {"RATE_LIMIT": 100.0, "RATE_BURST": 3, "CONNECTION_REGISTRY": False}


async def test_requests_over_the_burst_are_answered_rate_limited_in_their_order(settings: Any) -> None:
    settings.REALTIME = LIMITED
    async with connected() as client:
        for number in range(4):
            await client.tell(type="echo_request", reqId=str(number), echo="")
        answers = [await client.next() for _ in range(4)]
        assert [answer["reqId"] for answer in answers] == ["0", "1", "2", "3"]
        assert [answer["type"] for answer in answers] == ["echo_response"] * 3 + ["error"]
        assert without_text(answers[3]) == error("error", "RATE_LIMITED", "3")
        assert answers[3]["message"] == "at most 100 requests a second, and 3 at once"
        assert get_hub().counts == {Count.RATE_LIMITED: 1}


async def test_request_after_the_wait_is_answered_again(settings: Any) -> None:
    settings.REALTIME = LIMITED
    async with connected() as client:
        for _ in range(4):
            await client.tell(type="echo_request", echo="")
        while (await client.next())["type"] != "error":
            pass
        await client.assert_nothing_waits()  # which is asked for after the wait, as nothing is read before


async def test_frames_that_are_no_requests_count_as_some(settings: Any) -> None:
    settings.REALTIME = LIMITED
    async with connected() as client:
        for _ in range(4):
            await client.send_input({"type": "websocket.receive", "text": "{"})
        assert [(await client.next())["code"] for _ in range(4)] == ["BAD_REQUEST"] * 3 + ["RATE_LIMITED"]


@pytest.mark.parametrize(
    ("content", "req_id"),
    [
        ({"text": '{"type": "echo_request", "reqId": "7", "echo": ""}'}, "7"),
        ({"bytes": b'{"type": "echo_request", "reqId": "7", "echo": ""}'}, "7"),
        ({"text": '{"type": "echo_request", "reqId": "7"}'}, "7"),
        ({"text": '{"type": "echo_request", "echo": ""}'}, None),
        ({"text": "{"}, None),
        ({"text": ""}, None),
        ({"bytes": b"\xff"}, None),
    ],
)
async def test_frame_over_the_limit_is_answered_with_the_req_id_that_can_be_read(
    settings: Any, content: dict[str, Any], req_id: str | None
) -> None:
    settings.REALTIME = LIMITED | {"RATE_BURST": 1}
    async with connected() as client:
        await client.ask(type="echo_request", echo="")
        # A slow machine takes longer than the rate for one: until one is over the limit.
        for _ in range(1000):
            await client.send_input({"type": "websocket.receive", **content})
            await client.send_input({"type": "websocket.receive", **content})
            answers = [await client.next(), await client.next()]
            if limited := [answer for answer in answers if answer.get("code") == "RATE_LIMITED"]:
                break
        assert without_text(limited[0]) == error("error", "RATE_LIMITED", req_id)


async def test_requests_are_read_from_a_client_over_the_limit_no_faster_than_it_may_ask(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.REALTIME = LIMITED | {"RATE_LIMIT": 10.0}
    read: list[bool] = []
    async with connected() as client:
        [connection] = get_hub().connections.values()
        monkeypatch.setattr(connection.wire, "pause_reading", lambda: read.append(False))
        monkeypatch.setattr(connection.wire, "resume_reading", lambda: read.append(True))
        for _ in range(5):
            await client.tell(type="echo_request", echo="")
        while (await client.next())["type"] != "error":
            pass
        assert read == [False]
        assert client.input_queue.qsize() == 1
        assert (await client.next())["type"] == "echo_response"
        assert read == [False, True]


async def test_reading_is_not_resumed_before_there_is_a_token(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.REALTIME = LIMITED | {"RATE_LIMIT": 10.0}
    resumed: list[float] = []
    async with connected() as client:
        [connection] = get_hub().connections.values()
        monkeypatch.setattr(connection.wire, "resume_reading", lambda: resumed.append(time.monotonic()))
        for _ in range(4):
            await client.tell(type="echo_request", echo="")
        while (await client.next())["type"] != "error":
            pass
        began = time.monotonic()
        for _ in range(10):
            connection.controlled(0)
        await until(lambda: resumed)
        assert resumed[0] - began > 0.9


async def test_requests_are_not_limited_where_there_is_no_rate(settings: Any) -> None:
    settings.REALTIME = LIMITED | {"RATE_LIMIT": None}
    async with connected() as client:
        for _ in range(50):
            assert (await client.ask(type="echo_request", echo=""))["type"] == "echo_response"


async def test_client_that_floods_is_closed(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    settings.REALTIME = LIMITED | {"FLOOD_TIMEOUT": 0.05}
    async with connected() as client:
        for _ in range(1000):
            await client.tell(type="echo_request", echo="")
        while (message := await client.receive_output())["type"] == "websocket.send":
            pass
        assert (message["code"], message["reason"]) == (1008, "flooding")
        counts = get_hub().counts
        assert counts[Count.FLOODERS] == 1
        assert counts[Count.RATE_LIMITED] > 1
    assert caplog.text.count("event=rate_limited") == 1
    assert caplog.text.count("event=flooding") == 1


async def test_one_client_over_the_limit_holds_up_no_other(settings: Any) -> None:
    settings.REALTIME = LIMITED | {"RATE_LIMIT": 0.01}
    async with connected() as flooding, connected() as client:
        for _ in range(5):
            await flooding.tell(type="echo_request", echo="")
        while (await flooding.next())["type"] != "error":
            pass
        await client.assert_nothing_waits()
        flooding.future.cancel()  # it waits for minutes
        await flooding.wait()


async def test_client_that_has_said_something_is_not_closed_for_its_silence(settings: Any) -> None:
    settings.REALTIME = {"FIRST_MESSAGE_TIMEOUT": 60.0, "CONNECTION_REGISTRY": False}
    async with connected() as client:
        [connection] = get_hub().connections.values()
        assert math.isfinite(connection.silent_until)
        await client.send_input({"type": "websocket.receive", "text": ""})
        await client.next()
        assert connection.silent_until == math.inf


async def test_message_that_was_too_big_for_the_server_is_counted() -> None:
    async with connected() as client:
        await client.disconnect(1009)
    assert get_hub().counts == {Count.TOO_BIG: 1}


async def test_subscriptions_too_many_are_counted(settings: Any) -> None:
    settings.REALTIME = {"MAX_SUBSCRIPTIONS": 1, "CONNECTION_REGISTRY": False}
    Topic("news", public=True)
    async with connected() as client:
        await client.subscribe("heartbeat")
        await client.next()
        assert (await client.subscribe("news"))["error"]["code"] == "TOO_MANY_SUBSCRIPTIONS"
    assert get_hub().counts == {Count.TOO_MANY_SUBSCRIPTIONS: 1}


async def test_connection_that_ends_makes_room_however_it_ends(settings: Any) -> None:
    settings.REALTIME = {"MAX_CONNECTIONS": 1, "CONNECTION_REGISTRY": False}

    class Raising(RealtimeConsumer):
        async def connect(self) -> None:
            raise ZeroDivisionError

    for _ in range(3):
        client = Client(Raising.as_asgi(), "/ws/")
        await client.connect()
        await client.wait()
        client = Client(RealtimeConsumer.as_asgi(), "/ws/", headers=[(b"origin", b"http://evil.example")])
        await client.connect()
        await client.wait()
        client = Client(RealtimeConsumer.as_asgi(), "/ws/")
        await client.send_input({"type": "websocket.disconnect", "code": 1006})  # before it connects
        await client.wait()
        async with connected() as client:
            client.future.cancel()
    assert get_hub().door._total == 0


async def test_handler_that_hangs_is_cancelled_when_all_are_dropped() -> None:
    began = asyncio.Event()

    class Hanging(RealtimeConsumer):
        async def receive_json(self, request: AnyRequest, **_: Any) -> None:
            began.set()
            await asyncio.Event().wait()

    async with connected(Hanging.as_asgi()) as client:
        await client.tell(type="echo_request", echo="")
        await began.wait()
        get_hub().abort_all()
        await client.wait()  # raises nothing
        assert get_hub().connections == {}


# Handlers that fail


class Failing(RealtimeConsumer):
    """Raise in every handler of a request."""

    def echo(self, request: Any) -> None:
        raise ZeroDivisionError("sesame")

    async def subscribe(self, request: Any) -> None:
        raise ZeroDivisionError("sesame")

    def unsubscribe(self, request: Any) -> None:
        raise ZeroDivisionError("sesame")


@pytest.mark.parametrize("kind", ["echo", "subscribe", "unsubscribe"])
async def test_handler_that_raises_is_answered_and_logged(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async with connected(Failing.as_asgi()) as client:
        for _ in range(2):  # the connection lives on
            answer = await client.ask(type=f"{kind}_request", reqId="1", echo="", topic="heartbeat")
            assert without_text(answer) == error(f"{kind}_response", ERROR, "1")
            assert "sesame" not in json.dumps(answer)
        [connection] = get_hub().connections
        [failure] = [record for record in caplog.records if "handler_failed" in record.message]  # said once
        assert failure.message.startswith(f"event=handler_failed request={kind}_request ")
        assert failure.message.endswith(f" error=ZeroDivisionError connection={connection}")
        assert failure.exc_info
        assert get_hub().counts == {Count.HANDLER_FAULTS: 2}


async def test_authorize_that_raises_is_answered_with_internal_error() -> None:
    Topic("news", authorize=lambda user: 1 / 0)
    async with connected() as client:
        assert without_text(await client.subscribe("news")) == error("subscribe_response", ERROR)
        await client.assert_nothing_waits()


async def test_authorize_that_awaits_what_was_cancelled_is_answered_with_internal_error() -> None:
    async def authorize(user: Any) -> bool:
        lost = asyncio.get_running_loop().create_future()
        lost.cancel()
        return bool(await lost)

    Topic("news", authorize=authorize)
    async with connected() as client:
        assert without_text(await client.subscribe("news")) == error("subscribe_response", ERROR)
        await client.assert_nothing_waits()


async def test_authorize_that_takes_too_long_is_answered_with_internal_error(settings: Any) -> None:
    settings.REALTIME = {"HANDLER_TIMEOUT": 0.05}

    async def authorize(user: Any) -> bool:
        await asyncio.Event().wait()
        return True

    Topic("news", authorize=authorize)
    async with connected() as client:
        assert without_text(await client.subscribe("news")) == error("subscribe_response", ERROR)
        await client.assert_nothing_waits()
    assert not joined_groups()


async def test_sync_authorize_that_takes_too_long_is_answered_with_internal_error(settings: Any) -> None:
    settings.REALTIME = {"HANDLER_TIMEOUT": 0.05, "SYNC_THREADS": 1}
    release = threading.Event()
    Topic("news", authorize=lambda user: release.wait())
    async with connected() as client:
        assert without_text(await client.subscribe("news")) == error("subscribe_response", ERROR)
        # The thread is left behind, and there is no other.
        assert without_text(await client.subscribe("news")) == error("subscribe_response", ERROR)
        release.set()


async def test_authorize_that_takes_long_holds_up_nobody_else() -> None:
    release = threading.Event()
    Topic("news", authorize=lambda user: release.wait())
    async with connected() as waiting, connected() as client:
        await waiting.tell(type="subscribe_request", topic="news")
        await client.assert_nothing_waits()
        release.set()
        assert await waiting.next() == SUBSCRIBED


async def test_subclass_whose_subscribe_takes_too_long_is_answered_with_internal_error(settings: Any) -> None:
    class Slow(RealtimeConsumer):
        async def subscribe(self, request: Any) -> None:
            await asyncio.Event().wait()

    settings.REALTIME = {"HANDLER_TIMEOUT": 0.05}
    async with connected(Slow.as_asgi()) as client:
        await client.tell(type="subscribe_request", reqId="1", topic="heartbeat")
        answer = await client.receive_output(3)  # also with the second that a subscriber may wait for the layer
        assert without_text(json.loads(answer["text"])) == error("subscribe_response", ERROR, "1")


async def test_layer_that_hangs_for_longer_than_a_handler_may_take_is_not_the_handlers_fault(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.REALTIME = {"HANDLER_TIMEOUT": 0.05}
    monkeypatch.setattr("realtime.link.JOIN_TIMEOUT", 0.1)
    Topic("news", public=True)
    await started_hub()
    layer = the_layer()
    layer.hanging, layer.only = True, "group_add realtime.topic"
    async with connected() as client:
        assert await client.subscribe("news") == SUBSCRIBED
        layer.hanging = False
        await until(lambda: members("news") == 1)


async def test_authorize_is_asked_about_the_scopes_user() -> None:
    asked = []
    Topic("news", authorize=lambda user: asked.append(user))
    user = User(username="somebody")
    application = RealtimeConsumer.as_asgi()

    async def with_user(scope: Any, receive: Any, send: Any) -> None:
        await application({**scope, "user": user}, receive, send)

    async with connected(with_user) as client:
        await client.subscribe("news")
    assert asked == [user]


# What a subclass may do


def test_subclass_that_sets_groups_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Chat.groups is \['chat'\].*declare a realtime.Topic"):

        class Chat(RealtimeConsumer):
            groups = ["chat"]


class Noting(RealtimeConsumer):
    """Take note of what happens to it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.notes: list[Any] = kwargs["notes"]

    async def disconnect(self, code: int) -> None:
        self.notes.append(code)


async def test_disconnect_is_called_with_the_clients_code() -> None:
    notes: list[Any] = []
    async with connected(Noting.as_asgi(notes=notes)) as client:
        await client.disconnect(4001)
    assert notes == [4001]


async def test_disconnect_is_called_with_1005_when_the_client_gave_no_code() -> None:
    notes: list[Any] = []
    async with connected(Noting.as_asgi(notes=notes)) as client:
        await client.disconnect(None)
    assert notes == [1005]


async def test_disconnect_is_called_after_an_exception_in_receive_json(caplog: pytest.LogCaptureFixture) -> None:
    class Raising(Noting):
        async def receive_json(self, request: AnyRequest, **_: Any) -> None:
            raise ZeroDivisionError

    notes: list[Any] = []
    async with connected(Raising.as_asgi(notes=notes)) as client:
        await client.tell(type="echo_request", echo="")
        assert await client.closed() == (1011, "internal error")
        await client.wait()
    assert notes == [1006]
    assert get_hub().connections == {}
    assert "event=connection_failed" in caplog.text


async def test_disconnect_is_called_after_an_exception_in_connect_once_accepted() -> None:
    class Raising(Noting):
        async def connect(self) -> None:
            await super().connect()
            raise ZeroDivisionError

    notes: list[Any] = []
    async with connected(Raising.as_asgi(notes=notes)) as client:
        assert await client.closed() == (1011, "internal error")
        await client.wait()
    assert notes == [1006]
    assert get_hub().connections == {}


async def test_disconnect_is_called_after_an_exception_in_connect_before_it_accepted() -> None:
    class Raising(Noting):
        async def connect(self) -> None:
            raise ZeroDivisionError

    notes: list[Any] = []
    client = Client(Raising.as_asgi(notes=notes), "/ws/")
    assert await client.connect() == (False, 1000)
    await client.wait()
    assert notes == [1006]


async def test_disconnect_is_called_when_the_consumer_is_cancelled() -> None:
    notes: list[Any] = []
    async with connected(Noting.as_asgi(notes=notes)) as client:
        client.future.cancel()
        await asyncio.wait([client.future])
    assert notes == [1006]
    assert get_hub().connections == {}


async def test_exception_in_disconnect_is_logged_and_leaves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Raising(RealtimeConsumer):
        async def disconnect(self, code: int) -> None:
            raise ZeroDivisionError

    async with connected(Raising.as_asgi()) as client:
        await client.disconnect()
    assert get_hub().connections == {}
    [failure] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert failure.message.startswith("event=connection_failed connection=")
    assert "ZeroDivisionError" in caplog.text


async def test_exception_of_a_client_that_has_gone_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    class Raising(RealtimeConsumer):
        async def receive_json(self, request: AnyRequest, **_: Any) -> None:
            assert self.connection is not None
            self.connection.abort()
            raise ConnectionResetError

    async with connected(Raising.as_asgi()) as client:
        await client.tell(type="echo_request", echo="")
        await client.wait()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_connect_may_refuse() -> None:
    class Refusing(RealtimeConsumer):
        async def connect(self) -> None:
            await self.close()

    client = Client(Refusing.as_asgi(), "/ws/")
    assert await client.connect() == (False, 1000)
    await client.wait()
    assert get_hub().connections == {}


async def test_refusal_of_a_client_that_has_gone_is_no_matter() -> None:
    class Raising(RealtimeConsumer):
        async def connect(self) -> None:
            raise ZeroDivisionError

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        raise RuntimeError("the server says that it is closed")

    await Raising.as_asgi()({"type": "websocket"}, receive, send)
    assert get_hub().connections == {}


@pytest.mark.parametrize(("exception", "accepted"), [(AcceptConnection, True), (DenyConnection, False)])
async def test_connect_may_raise_what_channels_knows(exception: type[Exception], accepted: bool) -> None:
    class Raising(RealtimeConsumer):
        async def connect(self) -> None:
            raise exception

    client = Client(Raising.as_asgi(), "/ws/")
    assert (await client.connect())[0] is accepted
    await client.send_input({"type": "websocket.disconnect"}) if accepted else None
    await client.wait()
    assert get_hub().connections == {}


async def test_receive_json_is_called_with_the_request() -> None:
    got = []

    class Keeping(RealtimeConsumer):
        async def receive_json(self, request: AnyRequest, **_: Any) -> None:
            got.append(request)
            await super().receive_json(request)

    async with connected(Keeping.as_asgi()) as client:
        await client.ask(type="echo_request", reqId="1", echo="a")
    assert got == [EchoRequest(req_id="1", echo="a")]


class Sending(RealtimeConsumer):
    """Send in every way there is."""

    async def receive_json(self, request: Any, **_: Any) -> None:
        match request.echo:
            case "text":
                await self.send("é")
            case "binary":
                await self.send(bytes_data=b"\xff")
            case "nothing":
                await self.send()
            case "json":
                await self.send_json(EchoResponse(data=EchoResponseData(echo="a")))
            case "text and close":
                await self.send("bye", close=True)
            case "json and close":
                await self.send_json(EchoResponse(), close=4000)
            case "close":
                await self.close()
            case "close with reason":
                await self.close(4000, "bye")


@pytest.mark.parametrize(
    ("how", "outputs"),
    [
        ("text", [{"type": "websocket.send", "text": "é"}]),
        ("binary", [{"type": "websocket.send", "bytes": b"\xff"}]),
        ("json", [{"type": "websocket.send", "text": '{"type":"echo_response","status":"OK","data":{"echo":"a"}}'}]),
        (
            "text and close",
            [{"type": "websocket.send", "text": "bye"}, {"type": "websocket.close", "code": 1000, "reason": ""}],
        ),
        (
            "json and close",
            [
                {"type": "websocket.send", "text": '{"type":"echo_response","status":"OK"}'},
                {"type": "websocket.close", "code": 4000, "reason": ""},
            ],
        ),
        ("close", [{"type": "websocket.close", "code": 1000, "reason": ""}]),
        ("close with reason", [{"type": "websocket.close", "code": 4000, "reason": "bye"}]),
        ("nothing", [{"type": "websocket.close", "code": 1011, "reason": "internal error"}]),
    ],
)
async def test_consumer_may_send_and_close(how: str, outputs: list[dict[str, Any]]) -> None:
    async with connected(Sending.as_asgi()) as client:
        await client.tell(type="echo_request", echo=how)
        got = [await client.receive_output(TIMEOUT) for _ in outputs]
        if "text" in got[0] and got[0]["text"].startswith("{"):
            assert json.loads(got[0].pop("text")) == json.loads(outputs[0].pop("text"))
        assert got == outputs


async def test_consumer_has_the_hubs_channel() -> None:
    seen = []

    class Looking(RealtimeConsumer):
        async def receive_json(self, request: AnyRequest, **_: Any) -> None:
            seen.append((self.channel_layer, self.channel_name, self.id))
            await super().receive_json(request)

    hub = await started_hub()
    async with connected(Looking.as_asgi()) as client:
        await client.ask(type="echo_request", echo="")
        [(layer, channel, connection)] = seen
        assert (layer, channel) == (the_layer(), hub.link.channel)
        assert list(hub.connections) == [connection]
        assert str(uuid.UUID(connection)) == connection


async def test_frames_after_the_server_has_closed_are_not_handled() -> None:
    async with connected() as client:
        [connection] = get_hub().connections.values()
        connection.close(4000, "bye")
        await client.tell(type="echo_request", echo="late")
        assert await client.closed() == (4000, "bye")
        await client.disconnect()
        assert client.output_queue.empty()


async def test_id_of_the_connection_is_in_its_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "realtime.consumers")
    async with connected() as client:
        [connection] = get_hub().connections
        await client.disconnect()
    lines = [record.message for record in caplog.records if record.name == "realtime.consumers"]
    assert Counter(line.split()[0] for line in lines) == {"event=connected": 1, "event=disconnected": 1}
    assert all(f"connection={connection}" in line for line in lines)


# Closing and leaving


async def test_operator_closes_with_code_and_reason() -> None:
    async with connected() as client:
        await client.assert_nothing_waits()
        assert (await aclose_connections(CloseMessage(code=1012, reason="deploy"))).connections == 1
        assert await client.closed() == (1012, "deploy")


async def test_operators_interrupt_is_1001_on_an_unknown_server() -> None:
    async with connected() as client:
        await client.assert_nothing_waits()
        await aclose_connections(CloseMessage(code=1006))
        assert await client.closed() == (1001, "")


async def test_stop_of_the_hub_closes_with_1001() -> None:
    async with connected() as client:
        await client.assert_nothing_waits()
        stopping = asyncio.create_task(get_hub().stop())
        assert await client.closed() == (1001, "server shutdown")
        await client.disconnect()
        await stopping


async def test_connection_that_is_accepted_while_the_hub_stops_is_closed() -> None:
    going_on = asyncio.Event()

    class Slow(RealtimeConsumer):
        async def connect(self) -> None:
            await going_on.wait()
            await super().connect()

    hub = await started_hub()
    async with connected() as first:
        late = Client(Slow.as_asgi(), "/ws/")
        await late.send_input({"type": "websocket.connect"})
        await asyncio.sleep(0)
        stopping = asyncio.create_task(hub.stop())
        await until(lambda: hub.draining)
        going_on.set()
        message = await late.receive_output(TIMEOUT)
        if message["type"] == "websocket.accept":
            message = await late.receive_output(TIMEOUT / 10)
        assert message["type"] == "websocket.close"
        await first.disconnect()
        await late.disconnect()
        await stopping


async def test_thousand_connections_leave_nothing_behind() -> None:
    Topic("news", public=True)
    hub = await started_hub()
    tasks = asyncio.all_tasks()
    consumers: weakref.WeakSet[Any] = weakref.WeakSet()

    class Counted(RealtimeConsumer):
        def __init__(self) -> None:
            super().__init__()
            consumers.add(self)

    async def come_and_go(number: int) -> None:
        async with connected(Counted.as_asgi()) as client:
            await client.subscribe("news")
            await client.subscribe("heartbeat")
            if number % 3:
                await client.unsubscribe("news")
            if number % 5 == 0:
                client.future.cancel()
                await asyncio.wait([client.future])

    for _ in range(10):
        await asyncio.gather(*(come_and_go(number) for number in range(100)))
    await until(lambda: asyncio.all_tasks() <= tasks)
    gc.collect()
    assert len(consumers) == 0
    assert (hub.connections, hub.link.groups) == ({}, {})
    assert set(the_layer().groups) == {ALL_GROUP, hub.link._all.shard.probe.name}


# Behind the session middleware


async def session_of(user: User) -> list[tuple[bytes, bytes]]:
    """Return the handshake's headers of a browser in which ``user`` is signed in."""
    browser = AsyncClient()
    await browser.aforce_login(user)
    cookie = browser.cookies[django_settings.SESSION_COOKIE_NAME].value
    return [(b"cookie", f"{django_settings.SESSION_COOKIE_NAME}={cookie}".encode())]


@pytest.mark.django_db(transaction=True)
async def test_signed_in_user_may_subscribe_to_a_topic_that_says_nothing() -> None:
    Topic("news")
    headers = await session_of(await User.objects.acreate(username="reader"))
    async with connected(AuthMiddlewareStack(RealtimeConsumer.as_asgi()), headers=headers) as client:
        assert await client.subscribe("news") == SUBSCRIBED
        await apublish("news", 1)
        assert (await client.next())["data"] == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("headers", [[], [(b"cookie", b"sessionid=unknown")]])
async def test_anonymous_user_behind_the_middleware_is_forbidden(headers: Any) -> None:
    Topic("news")
    async with connected(AuthMiddlewareStack(RealtimeConsumer.as_asgi()), headers=headers) as client:
        assert (await client.subscribe("news"))["error"]["code"] == "FORBIDDEN"
        assert (await client.subscribe("heartbeat"))["status"] == "OK"


@pytest.mark.django_db(transaction=True)
async def test_permission_is_asked_behind_the_middleware() -> None:
    Topic("news", authorize="auth.view_user")
    reader, other = await User.objects.acreate(username="reader"), await User.objects.acreate(username="other")
    await reader.user_permissions.aadd(await Permission.objects.aget(codename="view_user"))
    application = AuthMiddlewareStack(RealtimeConsumer.as_asgi())
    async with connected(application, headers=await session_of(reader)) as client:
        assert await client.subscribe("news") == SUBSCRIBED
    async with connected(application, headers=await session_of(other)) as client:
        assert (await client.subscribe("news"))["error"]["code"] == "FORBIDDEN"


@pytest.mark.django_db(transaction=True)
async def test_close_code_passes_the_middleware() -> None:
    async with connected(AuthMiddlewareStack(RealtimeConsumer.as_asgi())) as client:
        await client.assert_nothing_waits()
        await aclose_connections(CloseMessage(code=4001, reason="bye"))
        assert await client.closed() == (4001, "bye")


# Snapshots


async def test_snapshot_follows_the_response() -> None:
    Topic("orders.{number:int}", public=True, on_subscribe=lambda user, number: {"number": number})
    async with connected() as client:
        assert (await client.subscribe("orders.7"))["status"] == "OK"
        publication = await client.next()
        assert (publication["type"], publication["topic"]) == ("publication", "orders.7")
        assert publication["data"] == {"number": 7}


async def test_snapshot_may_be_none() -> None:
    Topic("orders", public=True, on_subscribe=lambda user: None)
    async with connected() as client:
        await client.subscribe("orders")
        await client.assert_nothing_waits()


async def test_what_is_published_while_a_snapshot_is_fetched_follows_it() -> None:
    fetching, fetched = asyncio.Event(), asyncio.Event()

    async def fetch(user: Any) -> str:
        fetching.set()
        await fetched.wait()
        return "snapshot"

    topic = Topic("orders", public=True, on_subscribe=fetch)
    async with connected() as client:
        await client.tell(type="subscribe_request", topic="orders")
        await fetching.wait()
        for number in range(3):
            await topic.apublish(number)
        await until(lambda: get_hub().link.groups["orders"].last)
        await asyncio.sleep(0)
        fetched.set()
        assert (await client.next())["type"] == "subscribe_response"
        assert [(await client.next())["data"] for _ in range(4)] == ["snapshot", 0, 1, 2]
        await topic.apublish(3)
        assert (await client.next())["data"] == 3


@pytest.mark.parametrize("effect", [RuntimeError("no database"), None])
async def test_snapshot_that_fails_or_hangs_is_an_internal_error(settings: Any, effect: Exception | None) -> None:
    settings.REALTIME = {"HANDLER_TIMEOUT": 0.05, "CONNECTION_REGISTRY": False}

    async def fail(user: Any) -> None:
        if effect is not None:
            raise effect
        await asyncio.Event().wait()

    Topic("orders", public=True, on_subscribe=fail)
    async with connected() as client:
        assert (await client.subscribe("orders"))["error"]["code"] == "INTERNAL_ERROR"
        await until(lambda: "orders" not in get_hub().link.groups)
        assert (await client.unsubscribe("orders"))["error"]["code"] == "NOT_SUBSCRIBED"


async def test_snapshot_that_does_not_fit_the_model_is_an_internal_error() -> None:
    Topic("orders", int, public=True, on_subscribe=lambda user: "many")
    async with connected() as client:
        assert (await client.subscribe("orders"))["error"]["code"] == "INTERNAL_ERROR"


async def test_too_much_for_a_connection_that_fetches_a_snapshot_closes_it(settings: Any) -> None:
    settings.REALTIME = {"OUTBOX_LIMIT": 1 << 17, "CONNECTION_REGISTRY": False}
    fetching = asyncio.Event()

    async def fetch(user: Any) -> None:
        fetching.set()
        await asyncio.Event().wait()

    topic = Topic("orders", public=True, on_subscribe=fetch)
    async with connected() as client:
        await client.tell(type="subscribe_request", topic="orders")
        await fetching.wait()
        for _ in range(3):
            await topic.apublish("x" * 50_000)
        assert await client.closed() == (3008, "slow consumer")
        assert get_hub().counts == {Count.SLOW_CONSUMERS: 1}


async def test_connection_that_fetches_a_snapshot_is_kept_only_the_newest_of_a_latest_topic(settings: Any) -> None:
    settings.REALTIME = {"OUTBOX_LIMIT": 1 << 17, "CONNECTION_REGISTRY": False}
    fetching, go_on = asyncio.Event(), asyncio.Event()

    async def fetch(user: Any) -> None:
        fetching.set()
        await go_on.wait()

    topic = Topic("prices", public=True, on_subscribe=fetch, latest=True)
    async with connected() as client:
        await client.tell(type="subscribe_request", topic="prices")
        await fetching.wait()
        for number in range(5):
            await topic.apublish(str(number) * 50_000)
        await until(lambda: the_layer().sent[-1]["payload"][1] == "4")
        [hub_group] = [group for group in get_hub().link.groups.values() if group.topic == "prices"]
        await until(lambda: [h.frames[-1:] for h in hub_group.held.values() if b"44" in h.frames[-1]])
        go_on.set()
        assert (await client.next())["status"] == "OK"
        assert (await client.next())["data"] == "4" * 50_000
        await client.assert_nothing_waits()


async def test_topic_with_parameters_is_authorized_with_them() -> None:
    Topic("orders.{number:int}", authorize=lambda user, number: number == 7)
    async with connected() as client:
        assert (await client.subscribe("orders.7"))["status"] == "OK"
        assert (await client.subscribe("orders.8"))["error"]["code"] == "FORBIDDEN"
        assert (await client.subscribe("orders.07"))["error"]["code"] == "TOPIC_NOT_FOUND"
        assert (await client.unsubscribe("orders.07"))["error"]["code"] == "TOPIC_NOT_FOUND"
        assert (await client.unsubscribe("orders.7"))["status"] == "OK"
