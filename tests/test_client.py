"""The Python client against a server that does what a test tells it, right or wrong."""

from __future__ import annotations

import asyncio
import copy
import gc
import inspect
import json
import pickle
import random
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI
from websockets.http11 import Response

from realtime import client as client_module
from realtime.client import (
    Client,
    ConnectionEnded,
    ConnectionLost,
    RequestFailed,
    RequestTimeout,
    State,
    SubscriberTooSlow,
    Subscription,
)
from realtime.exceptions import RealtimeError
from realtime.protocol import CLOSE_CODES, Gap, Heartbeat, Publication, Reconnect, client_reconnect

PATIENCE = 10.0
"""Seconds that anything here may take before a test fails."""
PAGE = Path(__file__).resolve().parent.parent / "docs" / "client.md"
STAMP = "2026-11-22T17:08:01.670383Z"
CODES = [*sorted(set(CLOSE_CODES) - {1006}), 3000, 3500, 4000, 4500, 4999]


class Peer:
    """Be a connection as the server has it."""

    def __init__(self, ws: ServerConnection) -> None:
        self.ws = ws
        assert ws.request is not None
        self.headers = ws.request.headers

    async def receive(self) -> Any:
        async with asyncio.timeout(PATIENCE):
            return json.loads(await self.ws.recv())

    async def request(self, kind: str) -> Any:
        """Return the next message, which is of type ``kind``."""
        message = await self.receive()
        assert message["type"] == kind, message
        return message

    async def send(self, message: Any) -> None:
        await self.ws.send(json.dumps(message) if isinstance(message, dict) else message)

    async def answer(self, request: Any, data: Any = None, **fields: Any) -> None:
        kind = request["type"].removesuffix("_request") + "_response"
        await self.send({"type": kind, "reqId": request["reqId"], "status": "OK", "data": data, **fields})

    async def refuse(self, request: Any, code: str, message: str = "no") -> None:
        await self.answer(request, status="ERROR", error={"code": code, "message": message})

    async def echo(self) -> None:
        """Answer the next message, which is an echo request."""
        request = await self.request("echo_request")
        await self.answer(request, {"echo": request["echo"]})

    async def subscribed(self, topic: str) -> None:
        """Answer the next message, which is a subscribe request for ``topic``."""
        request = await self.request("subscribe_request")
        assert request["topic"] == topic
        await self.answer(request, {"topic": topic})

    async def publish(self, topic: str, *data: Any) -> None:
        for one in data:
            await self.send(publication(topic, one))

    async def closed(self) -> int:
        """Return the close code that the client sends; 1006 if it sends none."""
        async with asyncio.timeout(PATIENCE):
            try:
                while True:
                    await self.ws.recv()
            except ConnectionClosed as error:
                return 1006 if error.rcvd is None else error.rcvd.code

    def drop(self) -> None:
        self.ws.transport.abort()


class Server:
    """Serve on a free port: connections wait for ``accept()``, and are refused while there are ``refusals``."""

    def __init__(self) -> None:
        self.refusals: list[int] = []
        self.attempts = 0
        self._peers: asyncio.Queue[Peer] = asyncio.Queue()
        self._serve = serve(
            self._handle, "127.0.0.1", 0, process_request=self._judge, ping_interval=None, close_timeout=1
        )

    async def __aenter__(self) -> Server:
        self._server = await self._serve
        self.url = f"ws://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    def _judge(self, connection: ServerConnection, request: Any) -> Any:
        self.attempts += 1
        if self.refusals:
            return connection.respond(HTTPStatus(self.refusals.pop(0)), "")
        return None

    async def _handle(self, ws: ServerConnection) -> None:
        self._peers.put_nowait(Peer(ws))
        await ws.wait_closed()

    async def accept(self) -> Peer:
        """Return the next connection."""
        async with asyncio.timeout(PATIENCE):
            return await self._peers.get()

    def client(self, **options: Any) -> Client:
        """Return a client that waits for little."""
        return Client(self.url, **{"proxy": None, "backoff": (0.001, 0.002), "timeout": PATIENCE, **options})


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    """Assert that a test leaves no task behind."""
    before = asyncio.all_tasks()
    yield
    assert asyncio.all_tasks() - before <= {asyncio.current_task()}


@pytest.fixture
async def server(no_task_is_left: None) -> AsyncIterator[Server]:
    async with Server() as server:
        yield server


def publication(topic: str, data: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "publication", "topic": topic, "data": data, "timestamp": STAMP, **fields}


@asynccontextmanager
async def pair(server: Server, **options: Any) -> AsyncIterator[tuple[Client, Peer]]:
    """Connect a client, and have both ends."""
    async with server.client(**options) as client:
        peer = await server.accept()
        await soon(client.connected())
        yield client, peer


@asynccontextmanager
async def subscription(client: Client, peer: Peer, topic: str, **options: Any) -> AsyncIterator[Subscription]:
    """Subscribe, the server agreeing."""
    agreeing = asyncio.create_task(peer.subscribed(topic))
    async with client.subscribe(topic, **options) as events:
        await agreeing
        yield events


async def soon(awaitable: Any) -> Any:
    async with asyncio.timeout(PATIENCE):
        return await awaitable


async def take(events: Subscription, count: int) -> list[Any]:
    """Return the data of the next so many publications."""
    return [(await soon(anext(events))).data for _ in range(count)]


@asynccontextmanager
async def asking(peer: Peer, client: Client, kind: str, **fields: Any) -> AsyncIterator[tuple[Any, asyncio.Task[Any]]]:
    """Ask, and have the request as the server got it, and the task that waits for the answer."""
    task = asyncio.create_task(client.request(kind, **fields))
    yield await peer.receive(), task
    assert task.done() or task.cancelling()
    await asyncio.gather(task, return_exceptions=True)


# What it knows


def test_client_imports_no_django() -> None:
    code = "import realtime.client, sys; print({m.split('.')[0] for m in sys.modules} & {'django', 'channels'})"
    env = {"PATH": "", "PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=env)
    assert (done.stdout.strip(), done.stderr) == ("set()", "")


def test_exceptions_are_listed_in_the_docstring() -> None:
    listed = re.findall(r"── (\w+)", client_module.__doc__ or "")
    public = [
        name
        for name, thing in vars(client_module).items()
        if isinstance(thing, type) and issubclass(thing, RealtimeError) and thing.__module__ == "realtime.client"
    ]
    assert listed == sorted(name for name in public if not name.startswith("_"))


def test_docs_list_every_option_with_its_default() -> None:
    listed = dict(
        re.findall(r"^\| `([a-z_]+)` \| `?(.+?)`? \| .* \|$", PAGE.read_text().split("## Options")[1], re.MULTILINE)
    )
    defaults = {
        name: repr(parameter.default)
        for name, parameter in inspect.signature(Client).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert listed == {**defaults, "on_state": "none"}


def test_docs_list_every_exception() -> None:
    listed = re.findall(r"^\| `([A-Z]\w+)` \|", PAGE.read_text(), re.MULTILINE)
    assert listed == re.findall(r"── (\w+)", client_module.__doc__ or "")


def test_docs_are_python() -> None:
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        compile(block, PAGE.name, "exec")


@pytest.mark.parametrize("error", [ConnectionEnded(1008, "no"), ConnectionLost(1006, ""), RequestFailed("X", "no")])
def test_exception_can_be_copied_and_pickled(error: Exception) -> None:
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (type(twin), vars(twin), str(twin)) == (type(error), vars(error), str(error))


# Requests


async def test_echo_returns_the_text(server: Server) -> None:
    async with pair(server) as (client, peer):
        answering = asyncio.create_task(peer.echo())
        assert await client.echo("Hello ☂") == "Hello ☂"
        await answering


async def test_request_has_a_type_an_id_and_its_fields(server: Server) -> None:
    async with pair(server) as (client, peer), asking(peer, client, "seats_request", hall=7) as (request, task):
        assert request == {"type": "seats_request", "reqId": request["reqId"], "hall": 7}
        await peer.answer(request, [1, 2])
        assert await task == [1, 2]


async def test_answer_without_data_is_none(server: Server) -> None:
    async with pair(server) as (client, peer), asking(peer, client, "seats_request") as (request, task):
        await peer.send({"type": "whatever_response", "reqId": request["reqId"], "extra": 1})
        assert await task is None


async def test_error_in_a_response_is_raised(server: Server) -> None:
    async with pair(server) as (client, peer), asking(peer, client, "seats_request") as (request, task):
        await peer.refuse(request, "SOLD_OUT", "too late")
        with pytest.raises(RequestFailed, match="SOLD_OUT: too late") as caught:
            await task
        assert (caught.value.code, caught.value.message) == ("SOLD_OUT", "too late")


async def test_flat_error_is_raised(server: Server) -> None:
    async with pair(server) as (client, peer), asking(peer, client, "seats_request") as (request, task):
        await peer.send({"type": "error", "reqId": request["reqId"], "code": "RATE_LIMITED", "message": "slower"})
        with pytest.raises(RequestFailed, match="RATE_LIMITED: slower"):
            await task


@pytest.mark.parametrize("error", [None, "broken", {}, {"code": 42, "message": ["x"]}])
async def test_malformed_error_is_raised_all_the_same(server: Server, error: Any) -> None:
    async with pair(server) as (client, peer), asking(peer, client, "seats_request") as (request, task):
        await peer.answer(request, status="ERROR", error=error)
        with pytest.raises(RequestFailed):
            await task


async def test_unknown_type_is_raised_though_the_error_has_no_id(server: Server) -> None:
    async with pair(server) as (client, peer):
        echoing = asyncio.create_task(client.echo("x"))
        echo = await peer.request("echo_request")
        async with (
            asking(peer, client, "seats_request") as (_, task),
            asking(peer, client, "more_request") as (_, more),
        ):
            await peer.send({"type": "error", "code": "UNKNOWN_MESSAGE_TYPE", "message": "unknown message type"})
            with pytest.raises(RequestFailed, match="UNKNOWN_MESSAGE_TYPE"):
                await task
            assert not more.done()
            more.cancel()
        await peer.answer(echo, {"echo": "x"})
        assert await echoing == "x"


async def test_other_error_without_an_id_is_logged_alone(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    async with pair(server) as (client, peer), asking(peer, client, "seats_request") as (request, task):
        await peer.send({"type": "error", "code": "INTERNAL_ERROR", "message": "a secret"})
        await peer.answer(request, 1)
        assert await task == 1
    assert "event=client_told_of_error code='INTERNAL_ERROR'" in caplog.text
    assert "secret" not in caplog.text


async def test_answers_out_of_order_find_their_requests(server: Server) -> None:
    async with pair(server) as (client, peer):
        tasks = [asyncio.create_task(client.request("number_request", number=number)) for number in range(20)]
        requests = [await peer.receive() for _ in tasks]
        random.shuffle(requests)
        for request in requests:
            await peer.answer(request, request["number"])
        assert await asyncio.gather(*tasks) == list(range(20))


async def test_answer_to_nobody_is_ignored(server: Server) -> None:
    async with pair(server) as (client, peer), asking(peer, client, "seats_request") as (request, task):
        for req_id in ("nonsense", "", None, 42, [request["reqId"]], {}):
            await peer.send({"type": "seats_response", "reqId": req_id, "status": "OK", "data": 1})
        await peer.answer(request, 2)
        await peer.answer(request, 3)
        assert await task == 2
        echoing = asyncio.create_task(client.echo("x"))
        await peer.echo()
        await echoing


async def test_request_times_out(server: Server) -> None:
    async with pair(server) as (client, peer):
        client.timeout = 0.1
        with pytest.raises(RequestTimeout, match=r"no answer to seats_request within 0.1 s; the connection is open$"):
            await client.request("seats_request")
        assert client._waiting == {}
        client.timeout = PATIENCE
        await peer.answer(await peer.receive(), "late")
        answering = asyncio.create_task(peer.echo())
        assert await client.echo("on time") == "on time"
        await answering


async def test_request_timeout_is_a_timeout_error() -> None:
    assert issubclass(RequestTimeout, TimeoutError)


async def test_cancelled_request_leaves_the_client_whole(server: Server) -> None:
    async with pair(server) as (client, peer):
        async with asking(peer, client, "seats_request") as (request, task):
            task.cancel()
            await peer.answer(request, 1)
        answering = asyncio.create_task(peer.echo())
        assert await client.echo("x") == "x"
        await answering


@pytest.mark.parametrize("first", ["answered", "cancelled"])
async def test_request_answered_and_cancelled_at_once_leaves_no_trace(
    server: Server, caplog: pytest.LogCaptureFixture, first: str
) -> None:
    async with pair(server) as (client, peer), asking(peer, client, "seats_request") as (request, task):
        acts = [lambda: client._settle({"type": "error", "reqId": request["reqId"]}), task.cancel]
        for act in acts if first == "answered" else reversed(acts):
            act()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        assert client._waiting == {}
        assert client.state == State.OPEN
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.parametrize("field", ["type", "reqId"])
async def test_field_that_the_client_sets_is_refused(server: Server, field: str) -> None:
    async with pair(server) as (client, _):
        with pytest.raises(TypeError, match=f"the client itself sets the field '{field}'"):
            await client.request("seats_request", **{field: "x"})


@pytest.mark.parametrize("value", [float("nan"), object()])
async def test_field_that_is_no_json_is_refused_before_anything_is_sent(server: Server, value: Any) -> None:
    async with pair(server) as (client, peer):
        with pytest.raises((TypeError, ValueError)):
            await client.request("seats_request", value=value)
        answering = asyncio.create_task(peer.echo())
        await client.echo("next")
        await answering


async def test_request_waiting_when_the_connection_breaks_fails(server: Server) -> None:
    async with pair(server) as (client, peer), asking(peer, client, "seats_request") as (_, task):
        await peer.ws.close(1012, "deploy")
        with pytest.raises(ConnectionLost) as caught:
            await task
        assert (caught.value.code, caught.value.reason, str(caught.value)) == (1012, "deploy", "1012 deploy")


async def test_request_waiting_when_the_connection_is_dropped_fails(server: Server) -> None:
    async with pair(server) as (client, peer), asking(peer, client, "seats_request") as (_, task):
        peer.drop()
        with pytest.raises(ConnectionLost, match="1006 the connection broke") as caught:
            await task
        assert caught.value.code == 1006


async def test_request_made_before_the_connection_waits_for_it(server: Server) -> None:
    server.refusals = [503, 403]
    async with server.client() as client:
        asked = asyncio.create_task(client.echo("x"))
        await (await server.accept()).echo()
        assert await soon(asked) == "x"
    assert server.attempts == 3


async def test_request_made_without_a_server_times_out_and_says_why(server: Server) -> None:
    server.refusals = [503] * 10_000
    async with server.client(timeout=0.2) as client:
        with pytest.raises(RequestTimeout, match=r"the connection is \w+ \(1006 cannot connect: .*HTTP 503\)"):
            await client.echo("x")


# What cannot be understood


GARBAGE = [
    "",
    "nonsense",
    "{",
    "null",
    "[]",
    '"text"',
    "42",
    "{}",
    b"\xff\xfe",
    b"\x00",
    '{"type":null}',
    '{"type":[]}',
    '{"type":{}}',
    '{"type":"fireworks","topic":"news"}',
    '{"type":"publication"}',
    '{"type":"publication","topic":"news"}',
    '{"type":"publication","topic":7,"data":1,"timestamp":"now"}',
    '{"type":"publication","topic":"other","data":1,"timestamp":"now"}',
    '{"type":"heartbeat"}',
    '{"type":"gap"}',
    '{"type":"gap","topic":"other"}',
    '{"type":"error"}',
    '{"type":"_response"}',
    '{"type":"publication","data":' + "[" * 5000 + "]" * 5000 + "}",
]


@pytest.mark.parametrize("frame", GARBAGE, ids=lambda frame: repr(frame[:40]))
async def test_frame_that_is_not_understood_is_ignored(server: Server, frame: str | bytes) -> None:
    async with pair(server) as (client, peer), subscription(client, peer, "news") as events:
        await peer.send(frame)
        await peer.publish("news", "next")
        assert await take(events, 1) == ["next"]


async def test_unknown_fields_are_ignored(server: Server) -> None:
    async with pair(server) as (client, peer), subscription(client, peer, "news") as events:
        await peer.send(publication("news", 1, seq=7, meta={"a": []}))
        assert await soon(anext(events)) == Publication(topic="news", data=1, timestamp=STAMP)


async def test_text_and_binary_frames_are_the_same(server: Server) -> None:
    async with pair(server) as (client, peer), subscription(client, peer, "news") as events:
        await peer.send(json.dumps(publication("news", "ü")).encode())
        assert await take(events, 1) == ["ü"]


# Subscriptions


async def test_publications_arrive_in_order(server: Server) -> None:
    async with pair(server) as (client, peer), subscription(client, peer, "news") as events:
        publishing = asyncio.create_task(peer.publish("news", *range(500)))
        assert await take(events, 500) == list(range(500))
        await publishing


async def test_burst_arrives_though_the_queue_is_shorter(server: Server) -> None:
    async with pair(server) as (client, peer), subscription(client, peer, "news", queue_limit=50) as events:
        taking = asyncio.create_task(take(events, 2000))
        await peer.publish("news", *range(2000))
        assert await taking == list(range(2000))


async def test_publication_in_the_packet_of_the_response_arrives(server: Server) -> None:
    async with pair(server) as (client, peer):
        entering = asyncio.create_task(client.subscribe("news").__aenter__())
        request = await peer.request("subscribe_request")
        answer = {"type": "subscribe_response", "reqId": request["reqId"], "status": "OK"}
        for message in (answer, publication("news", "first")):
            peer.ws.protocol.send_text(json.dumps(message).encode())
        peer.ws.send_data()
        events = await soon(entering)
        assert await take(events, 1) == ["first"]


async def test_heartbeats_arrive_at_their_topic(server: Server) -> None:
    async with pair(server) as (client, peer), subscription(client, peer, "heartbeat") as events:
        await peer.send({"type": "heartbeat", "timestamp": STAMP, "uptime_seconds": "42"})
        assert await soon(anext(events)) == Heartbeat(timestamp=STAMP, uptime_seconds="42")


async def test_gap_arrives_at_its_topic(server: Server) -> None:
    async with pair(server) as (client, peer), subscription(client, peer, "news") as events:
        await peer.send({"type": "gap", "topic": "news"})
        assert await soon(anext(events)) == Gap(topic="news")


async def test_topics_are_kept_apart(server: Server) -> None:
    async with (
        pair(server) as (client, peer),
        subscription(client, peer, "one") as one,
        subscription(client, peer, "two") as two,
    ):
        await peer.publish("two", 2)
        await peer.publish("one", 1)
        assert (await take(one, 1), await take(two, 1)) == ([1], [2])


async def test_leaving_unsubscribes(server: Server) -> None:
    async with pair(server) as (client, peer):
        async with subscription(client, peer, "news"):
            pass
        assert await peer.receive() == {"type": "unsubscribe_request", "topic": "news"}
        assert client._topics == client._waiting == {}


async def test_subscriptions_of_one_topic_share_one_on_the_wire(server: Server) -> None:
    async with pair(server) as (client, peer):
        async with subscription(client, peer, "news") as first:
            async with client.subscribe("news") as second:
                await peer.publish("news", 1)
                assert await take(first, 1) == await take(second, 1) == [1]
            await peer.publish("news", 2)
            assert await take(first, 1) == [2]
            answering = asyncio.create_task(peer.echo())
            await client.echo("nothing was sent before this")
            await answering
        await peer.request("unsubscribe_request")


async def test_subscriptions_entered_at_once_share_one_on_the_wire(server: Server) -> None:
    async with pair(server) as (client, peer):
        first, second = client.subscribe("news"), client.subscribe("news")
        entering = asyncio.gather(first.__aenter__(), second.__aenter__())
        await peer.subscribed("news")
        await soon(entering)
        await peer.publish("news", 1)
        assert await take(first, 1) == await take(second, 1) == [1]
        await first.__aexit__()
        await second.__aexit__()
        await peer.request("unsubscribe_request")


async def test_subscribing_anew_gets_nothing_before_its_own_response(server: Server) -> None:
    async with pair(server) as (client, peer):
        async with subscription(client, peer, "news"):
            pass
        entering = asyncio.create_task(client.subscribe("news").__aenter__())
        await peer.request("unsubscribe_request")
        request = await peer.request("subscribe_request")
        await peer.publish("news", "sent before the server knew")
        await peer.answer(request)
        await peer.publish("news", "snapshot")
        assert await take(await soon(entering), 1) == ["snapshot"]


async def test_refused_subscription_raises_with_the_code(server: Server) -> None:
    async with pair(server) as (client, peer):
        entering = asyncio.create_task(client.subscribe("members").__aenter__())
        await peer.refuse(await peer.request("subscribe_request"), "FORBIDDEN", "not allowed")
        with pytest.raises(RequestFailed, match="FORBIDDEN: not allowed") as caught:
            await soon(entering)
        assert caught.value.code == "FORBIDDEN"
        assert client._topics == client._waiting == {}


async def test_refused_topic_can_be_asked_for_again(server: Server) -> None:
    async with pair(server) as (client, peer):
        entering = asyncio.create_task(client.subscribe("news").__aenter__())
        await peer.refuse(await peer.request("subscribe_request"), "INTERNAL_ERROR")
        await asyncio.wait({entering})
        assert isinstance(entering.exception(), RequestFailed)
        async with subscription(client, peer, "news"):
            pass


async def test_already_subscribed_is_as_good(server: Server) -> None:
    async with pair(server) as (client, peer):
        entering = asyncio.create_task(client.subscribe("news").__aenter__())
        await peer.refuse(await peer.request("subscribe_request"), "ALREADY_SUBSCRIBED")
        await soon(entering)


async def test_subscription_times_out_and_is_taken_back(server: Server) -> None:
    async with pair(server) as (client, peer):
        client.timeout = 0.1
        with pytest.raises(RequestTimeout, match="no answer to subscribe_request within 0.1 s"):
            await client.subscribe("news").__aenter__()
        await peer.request("subscribe_request")
        await peer.request("unsubscribe_request")
        assert client._topics == client._waiting == {}


async def test_cancelled_entering_is_taken_back(server: Server) -> None:
    async with pair(server) as (client, peer):
        events = client.subscribe("news")
        entering = asyncio.create_task(events.__aenter__())
        await peer.request("subscribe_request")
        entering.cancel()
        await peer.request("unsubscribe_request")
        assert client._topics == client._waiting == {}
        assert [event async for event in events] == []


async def test_cancelled_iteration_loses_nothing(server: Server) -> None:
    async with pair(server) as (client, peer), subscription(client, peer, "news") as events:
        waiting = asyncio.create_task(anext(events))
        answering = asyncio.create_task(peer.echo())
        await client.echo("so that it waits")
        await answering
        waiting.cancel()
        await peer.publish("news", 1)
        assert await take(events, 1) == [1]


async def test_two_tasks_may_share_a_subscription(server: Server) -> None:
    async with pair(server) as (client, peer), subscription(client, peer, "news") as events:
        both = asyncio.gather(take(events, 5), take(events, 5))
        await peer.publish("news", *range(10))
        assert sorted(sum(await both, [])) == list(range(10))


async def test_leaving_ends_an_iteration_elsewhere(server: Server) -> None:
    async with pair(server) as (client, peer):
        async with subscription(client, peer, "news") as events:
            waiting = asyncio.create_task(anext(events, "end"))
            await peer.publish("news", 1, 2)
            assert (await soon(waiting)).data == 1
            rest = asyncio.create_task(take(events, 5))
        with pytest.raises(StopAsyncIteration):
            await anext(events)
        await asyncio.wait({rest})
        assert isinstance(rest.exception(), StopAsyncIteration | RuntimeError)


async def test_subscription_must_be_entered(server: Server) -> None:
    async with pair(server) as (client, _):
        with pytest.raises(RuntimeError, match="enter the subscription first: async with"):
            async for _ in client.subscribe("news"):
                pass


async def test_subscription_is_entered_once(server: Server) -> None:
    async with pair(server) as (client, peer), subscription(client, peer, "news") as events:
        with pytest.raises(RuntimeError, match="a subscription is entered once"):
            await events.__aenter__()


@pytest.mark.parametrize("topic", [7, None, "\ud800"])
async def test_topic_that_cannot_be_sent_is_refused_at_once(server: Server, topic: Any) -> None:
    with pytest.raises(ValueError, match="topic|UnicodeEncodeError"):
        server.client().subscribe(topic)


async def test_full_queue_ends_the_subscription_and_no_other(server: Server) -> None:
    async with pair(server, queue_limit=3) as (client, peer), subscription(client, peer, "news") as slow:
        async with client.subscribe("news", queue_limit=100) as roomy:
            await peer.publish("news", *range(5))
            assert await take(roomy, 5) == list(range(5))
            assert await take(slow, 3) == [0, 1, 2]
            for _ in range(2):
                with pytest.raises(SubscriberTooSlow, match="more than 3 events of topic 'news' were waiting"):
                    await anext(slow)
            answering = asyncio.create_task(peer.echo())
            await client.echo("nothing was unsubscribed")
            await answering
        await peer.request("unsubscribe_request")


async def test_last_subscription_that_is_too_slow_unsubscribes(server: Server) -> None:
    async with pair(server) as (client, peer), subscription(client, peer, "news", queue_limit=1) as events:
        await peer.publish("news", 1, 2, 3)
        await peer.request("unsubscribe_request")
        assert await take(events, 1) == [1]
        with pytest.raises(SubscriberTooSlow):
            await anext(events)


class Faithful(Server):
    """Answer as the real server does, drop connections at random, and note what a correct client never asks for."""

    def __init__(self, random: random.Random) -> None:
        super().__init__()
        self.random = random
        self.topics: set[str] = set()
        self.faults: list[Any] = []

    async def _handle(self, ws: ServerConnection) -> None:
        peer, topics = Peer(ws), set()
        self.topics = topics
        try:
            async for frame in ws:
                request = json.loads(frame)
                kind, topic = request["type"], request.get("topic")
                if kind == "subscribe_request":
                    self.faults += [request] if topic in topics else []
                    topics.add(topic)
                    await peer.answer(request, {"topic": topic})
                    await peer.publish(topic, topic)
                elif kind == "unsubscribe_request":
                    self.faults += [request] if topic not in topics else []
                    topics.discard(topic)
                else:
                    await peer.answer(request, {"echo": request["echo"]})
                for topic in topics:
                    await peer.publish(topic, topic)
                if self.random.random() < 0.05:
                    peer.drop()
        except ConnectionClosed:
            pass


@pytest.mark.parametrize("seed", range(8))
async def test_whoever_comes_and_goes_the_wire_follows(no_task_is_left: None, seed: int) -> None:
    chance = random.Random(seed)

    async def visit(client: Client) -> None:
        topic = chance.choice("abc")
        async with client.subscribe(topic) as events:
            assert await take(events, wanted := chance.randrange(3)) == [topic] * wanted

    async def visit_often(client: Client) -> None:
        for _ in range(20):
            visiting = asyncio.create_task(visit(client))
            if chance.random() < 0.3:
                for _ in range(chance.randrange(12)):
                    await asyncio.sleep(0)
                visiting.cancel()
            asking = asyncio.create_task(client.echo("so that there is something to publish after"))
            await soon(asyncio.wait({visiting, asking}))
            assert visiting.cancelled() or visiting.exception() is None
            assert isinstance(asking.exception(), ConnectionLost | None)

    async with Faithful(chance) as server, server.client() as client:
        await asyncio.gather(*(visit_often(client) for _ in range(5)))
        server.random = random.Random(0)
        server.random.random = lambda: 1.0  # type: ignore[method-assign]
        while True:
            try:
                await soon(client.echo("so that all was said"))
                break
            except ConnectionLost:  # dropped before
                pass
        assert (server.faults, server.topics, client._topics, client._waiting) == ([], set(), {}, {})
        assert server.attempts > 1


# Coming back


@pytest.mark.parametrize("code", CODES)
async def test_close_code_decides_what_comes_next(server: Server, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(client_module, "BUSY_DELAY", 0.01)
    async with pair(server) as (client, peer), subscription(client, peer, "news") as events:
        await peer.publish("news", "last words")
        if code == 1014:  # websockets refuses to send it
            peer.ws.transport.write(b"\x88\x09" + (1014).to_bytes(2) + b"because")
        else:
            await peer.ws.close(code, "because")
        assert await take(events, 1) == ["last words"]
        if client_reconnect(code) is Reconnect.STAY_AWAY:
            with pytest.raises(ConnectionEnded) as caught:
                await soon(anext(events))
            assert (caught.value.code, caught.value.reason) == (code, "because")
            assert (client.state, server.attempts) == (State.CLOSED, 1)
        else:
            again = await server.accept()
            await again.subscribed("news")
            await again.publish("news", "hello again")
            assert await take(events, 1) == ["hello again"]


async def test_close_without_a_code_is_1005_and_ends_it(server: Server) -> None:
    async with pair(server) as (client, peer), asking(peer, client, "seats_request") as (_, task):
        peer.ws.transport.write(b"\x88\x00")
        with pytest.raises(ConnectionEnded) as caught:
            await soon(task)
        assert caught.value.code == 1005


async def test_dropped_connection_comes_back(server: Server) -> None:
    async with pair(server) as (client, peer), subscription(client, peer, "news") as events:
        for number in range(5):
            peer.drop()
            peer = await server.accept()
            await peer.subscribed("news")
            await peer.publish("news", number)
            assert await take(events, 1) == [number]


async def test_every_topic_is_subscribed_to_again(server: Server) -> None:
    async with (
        pair(server) as (client, peer),
        subscription(client, peer, "one") as one,
        subscription(client, peer, "two"),
        client.subscribe("one") as also_one,
    ):
        await peer.ws.close(1012)
        again = await server.accept()
        await again.subscribed("one")
        await again.subscribed("two")
        await again.publish("one", 1)
        assert await take(one, 1) == await take(also_one, 1) == [1]


async def test_topic_left_while_there_is_no_connection_is_not_subscribed_to_again(server: Server) -> None:
    async with pair(server) as (client, peer):
        async with subscription(client, peer, "news"):
            server.refusals = [503]
            await peer.ws.close(1012)
            while server.refusals:
                await asyncio.sleep(0)
        asked = asyncio.create_task(client.echo("the first frame"))
        await (await server.accept()).echo()
        await asked


async def test_subscription_entered_while_there_is_no_connection_waits(server: Server) -> None:
    server.refusals = [503, 503]
    async with server.client() as client:
        entering = asyncio.create_task(client.subscribe("news").__aenter__())
        peer = await server.accept()
        await peer.subscribed("news")
        await soon(entering)


async def test_subscription_entered_beside_one_that_lost_its_connection_waits_with_it(server: Server) -> None:
    async with pair(server) as (client, peer), subscription(client, peer, "news"):
        await peer.ws.close(1012)
        again = await server.accept()
        request = await again.request("subscribe_request")
        entering = asyncio.create_task(client.subscribe("news").__aenter__())
        echoing = asyncio.create_task(client.echo("so that it waits"))
        await again.echo()
        await echoing
        assert not entering.done()
        await again.answer(request)
        await soon(entering)


async def test_subscription_not_yet_answered_when_the_connection_breaks_is_asked_for_again(server: Server) -> None:
    async with pair(server) as (client, peer):
        entering = asyncio.create_task(client.subscribe("news").__aenter__())
        await peer.request("subscribe_request")
        peer.drop()
        await (await server.accept()).subscribed("news")
        await soon(entering)


async def test_subscription_that_is_not_renewed_raises_with_the_code(server: Server) -> None:
    async with (
        pair(server) as (client, peer),
        subscription(client, peer, "news") as events,
        subscription(client, peer, "other") as other,
    ):
        await peer.publish("news", "before")
        await peer.ws.close(1012)
        again = await server.accept()
        await again.refuse(await again.request("subscribe_request"), "FORBIDDEN")
        await again.subscribed("other")
        assert await take(events, 1) == ["before"]
        with pytest.raises(RequestFailed, match="FORBIDDEN"):
            await soon(anext(events))
        await again.publish("other", 1)
        assert await take(other, 1) == [1]


async def test_states_are_told(server: Server) -> None:
    told: list[State] = []
    client = server.client(on_state=told.append)
    assert client.state == "closed"
    async with client:
        peer = await server.accept()
        await soon(client.connected())
        await peer.ws.close(1012)
        await server.accept()
        await soon(client.connected())
        assert client.state == State.OPEN
    assert told == ["connecting", "open", "waiting", "connecting", "open", "closed"]


async def test_on_state_that_raises_is_logged_and_changes_nothing(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(state: State) -> None:
        raise RuntimeError("on purpose")

    async with pair(server, on_state=fail) as (client, peer):
        asked = asyncio.create_task(client.echo("x"))
        await peer.echo()
        await asked
    assert "event=client_on_state_failed state=open" in caplog.text


async def test_delays_grow_with_full_jitter_up_to_the_limit(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[float, float]] = []
    monkeypatch.setattr(random, "uniform", lambda low, high: drawn.append((low, high)) or 0.0)
    server.refusals = [503] * 7
    async with server.client(backoff=(1.0, 30.0)) as client:
        await server.accept()
        await soon(client.connected())
    assert drawn == [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (0, 30), (0, 30)]


async def test_connections_that_do_not_last_do_not_shorten_the_delays(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[float] = []
    monkeypatch.setattr(random, "uniform", lambda low, high: drawn.append(high) or 0.0)
    async with server.client(backoff=(1.0, 30.0)):
        for _ in range(4):
            await (await server.accept()).ws.close(1011)
        await server.accept()
    assert drawn == [1, 2, 4, 8]


async def test_connection_that_lasted_begins_the_delays_anew(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []
    monkeypatch.setattr(random, "uniform", lambda low, high: drawn.append(high) or 0.0)
    monkeypatch.setattr(client_module, "STABLE", 0.0)
    async with server.client(backoff=(1.0, 30.0)):
        for _ in range(4):
            await (await server.accept()).ws.close(1011)
        await server.accept()
    assert drawn == [1, 1, 1, 1]


async def test_delay_stays_at_the_limit_however_often_it_fails(server: Server) -> None:
    client = server.client(backoff=(1.0, 30.0))
    assert all(0 <= client._delay(Reconnect.BACKOFF) <= 30 for _ in range(5000))


async def test_full_server_is_left_alone_for_at_least_10_s(server: Server) -> None:
    client = server.client(backoff=(0.1, 0.2))
    delays = [client._delay(Reconnect.BACKOFF_10S) for _ in range(100)]
    assert min(delays) >= 10
    assert max(delays) <= 20
    assert max(delays) - min(delays) > 5, "all who were refused would come back at one time"


async def test_full_server_is_left_alone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "BUSY_DELAY", 0.3)
    async with pair(server) as (_, peer):
        began = asyncio.get_running_loop().time()
        await peer.ws.close(1013)
        await server.accept()
        assert asyncio.get_running_loop().time() - began >= 0.3


@pytest.mark.parametrize(
    ("value", "delay"), [("7", 7), ("0", 0), ("99999999999", 3600), ("soon", 0), ("-1", 0), ("", 0), (None, 0)]
)
async def test_server_that_refuses_is_left_alone_for_as_long_as_it_asks(
    monkeypatch: pytest.MonkeyPatch, value: str | None, delay: float
) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: 0.0)
    headers = Headers() if value is None else Headers({"Retry-After": value})
    assert client_module._retry_after(InvalidStatus(Response(503, "", headers))) == delay


async def test_client_comes_back_after_retry_after(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_retry_after", lambda error: 0.3)
    began = asyncio.get_running_loop().time()
    server.refusals = [503]
    async with pair(server):
        assert asyncio.get_running_loop().time() - began >= 0.3


async def test_text_that_is_no_utf8_ends_the_connection_with_1007(server: Server) -> None:
    async with pair(server) as (_, peer):
        peer.ws.transport.write(b"\x81\x01\xff")
        await soon(peer.ws.wait_closed())
        assert peer.ws.close_code == 1007
        await server.accept()  # the next connection may be whole


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 500, 502, 503])
async def test_refused_handshake_is_tried_again(server: Server, status: int) -> None:
    server.refusals = [status]
    async with pair(server) as (client, peer):
        asked = asyncio.create_task(client.echo("x"))
        await peer.echo()
        assert await asked == "x"


async def test_server_that_is_not_there_is_tried_again() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        told: asyncio.Queue[State] = asyncio.Queue()
        url = f"ws://127.0.0.1:{sock.getsockname()[1]}/"
        async with Client(url, proxy=None, backoff=(0.001, 0.002), on_state=told.put_nowait):
            expected = [State.CONNECTING, State.WAITING] * 3
            assert [await soon(told.get()) for _ in expected] == expected


async def test_server_that_never_answers_the_handshake_is_given_up() -> None:
    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the client hangs up
        writer.close()

    async with await asyncio.start_server(stall, "127.0.0.1", 0) as stalling:
        url = f"ws://127.0.0.1:{stalling.sockets[0].getsockname()[1]}/"
        async with Client(url, proxy=None, reconnect=False, timeout=0.1) as client:
            with pytest.raises(ConnectionEnded, match="1006 cannot connect: TimeoutError"):
                await soon(client.connected())


# Never coming back


async def test_without_reconnect_a_close_ends_it(server: Server) -> None:
    async with pair(server, reconnect=False) as (client, peer), subscription(client, peer, "news") as events:
        await peer.ws.close(1012, "deploy")
        with pytest.raises(ConnectionEnded, match="1012 deploy"):
            await soon(anext(events))


async def test_without_reconnect_a_refused_handshake_ends_it(server: Server) -> None:
    server.refusals = [403]
    async with server.client(reconnect=False) as client:
        for use in (client.connected(), client.echo("x"), client.subscribe("news").__aenter__()):
            with pytest.raises(ConnectionEnded, match="1006 cannot connect: .*HTTP 403"):
                await soon(use)


async def test_terminal_code_ends_what_waits(server: Server) -> None:
    async with pair(server) as (client, peer), asking(peer, client, "seats_request") as (_, task):
        entering = asyncio.create_task(client.subscribe("news").__aenter__())
        await peer.request("subscribe_request")
        await peer.ws.close(1008, "session ended")
        for waiting in (task, entering):
            with pytest.raises(ConnectionEnded) as caught:
                await soon(waiting)
            assert (caught.value.code, caught.value.reason) == (1008, "session ended")


async def test_after_a_terminal_code_everything_raises(server: Server) -> None:
    async with pair(server) as (client, peer):
        await peer.ws.close(4500, "banned")
        for _ in range(2):
            with pytest.raises(ConnectionEnded, match="4500 banned"):
                await soon(client.echo("x"))
            with pytest.raises(ConnectionEnded, match="4500 banned"):
                await soon(client.subscribe("news").__aenter__())
            with pytest.raises(ConnectionEnded, match="4500 banned"):
                await soon(client.connected())
            await client.close()


async def test_frame_too_big_for_the_client_ends_it(server: Server) -> None:
    async with pair(server, max_size=100) as (client, peer), asking(peer, client, "seats_request") as (request, task):
        await peer.answer(request, "x" * 100)
        with pytest.raises(ConnectionEnded) as caught:
            await soon(task)
        assert caught.value.code == 1009


async def test_failure_of_the_client_itself_ends_it(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pair(server) as (client, peer), subscription(client, peer, "news") as events:
        monkeypatch.setattr(client_module, "from_json", lambda frame: 1 / 0)
        await peer.publish("news", 1)
        with pytest.raises(ConnectionEnded, match="1006 the client failed: ZeroDivisionError"):
            await soon(anext(events))
    assert "event=client_failed" in caplog.text


# A dead server


async def test_silent_server_is_asked_and_then_given_up(server: Server) -> None:
    async with pair(server, idle_timeout=0.1, echo_timeout=0.5) as (client, peer):
        entering = asyncio.create_task(client.subscribe("news").__aenter__())
        await peer.subscribed("news")
        await peer.request("echo_request")
        await peer.closed()
        again = await server.accept()
        await again.subscribed("news")
        await soon(entering)


async def test_server_that_answers_is_not_given_up(server: Server) -> None:
    async with pair(server, idle_timeout=0.02, echo_timeout=5) as (_, peer):
        for _ in range(10):
            request = await peer.request("echo_request")
            await peer.send({"type": "echo_response", "status": "OK", "data": {"echo": request["echo"]}})
    assert server.attempts == 1


async def test_any_frame_is_a_sign_of_life(server: Server) -> None:
    async with pair(server, idle_timeout=0.02, echo_timeout=5) as (_, peer):
        for _ in range(10):
            await peer.request("echo_request")
            await peer.send("nonsense")
    assert server.attempts == 1


async def test_silent_server_without_reconnect_ends_it(server: Server) -> None:
    async with (
        pair(server, idle_timeout=0.1, echo_timeout=0.1, reconnect=False) as (client, peer),
        asking(peer, client, "seats_request") as (_, task),
    ):
        with pytest.raises(ConnectionEnded, match="1006 the server is silent"):
            await soon(task)


async def test_server_that_closes_and_then_stalls_is_taken_at_its_word(server: Server) -> None:
    async with pair(server, idle_timeout=0.05, echo_timeout=0.05) as (client, peer):
        peer.ws.transport.pause_reading()
        peer.ws.transport.write(b"\x88\x04" + (4500).to_bytes(2) + b"no")
        with pytest.raises(ConnectionEnded, match="4500 no"):
            await soon(asyncio.create_task(client.subscribe("news").__aenter__()))
        peer.drop()


async def test_server_that_does_not_read_is_given_up(server: Server) -> None:
    async with pair(server, idle_timeout=0.05, echo_timeout=0.1) as (client, peer):
        peer.ws.transport.pause_reading()
        with pytest.raises(ConnectionLost, match="1006 the server is silent"):
            await soon(client.echo("x" * (1 << 24)))
        peer.drop()


# Tokens and the handshake


async def test_handshake_offers_the_subprotocol_and_nothing_else(server: Server) -> None:
    async with pair(server) as (client, peer):
        assert client._ws is not None
        assert client._ws.ping_interval is None
        assert peer.headers["Sec-WebSocket-Protocol"] == "demows.v1"
        assert "Authorization" not in peer.headers
        assert "Sec-WebSocket-Extensions" not in peer.headers


async def test_token_is_sent_as_bearer(server: Server) -> None:
    async with pair(server, token="good-one", additional_headers={"X-Tenant": "7"}) as (_, peer):
        assert peer.headers["Authorization"] == "Bearer good-one"
        assert peer.headers["X-Tenant"] == "7"


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_token_is_asked_for_before_every_connection(server: Server, asynchronous: bool) -> None:
    tokens = iter(["first", "second", None])

    async def later() -> str | None:
        await asyncio.sleep(0)
        return next(tokens)

    async with server.client(token=later if asynchronous else lambda: next(tokens)):
        sent = []
        for _ in range(3):
            peer = await server.accept()
            sent.append(peer.headers.get("Authorization"))
            await peer.ws.close(1012)
    assert sent == ["Bearer first", "Bearer second", None]


async def test_token_function_that_raises_is_called_again(server: Server) -> None:
    tokens = iter([RuntimeError("no tokens today"), "good"])

    def token() -> str:
        if isinstance(one := next(tokens), Exception):
            raise one
        return one

    async with pair(server, token=token) as (_, peer):
        assert peer.headers["Authorization"] == "Bearer good"


@pytest.mark.parametrize("token", ["secret\n", "sec\r\nret", "secrét"])
async def test_token_that_no_header_can_hold_is_refused_and_not_shown(
    server: Server, caplog: pytest.LogCaptureFixture, token: str
) -> None:
    with pytest.raises(ValueError, match="the token has characters that a header cannot hold") as caught:
        server.client(token=token)
    assert "sec" not in str(caught.value)
    async with server.client(token=lambda: token, reconnect=False) as client:
        with pytest.raises(ConnectionEnded, match="cannot connect: the token has characters") as ended:
            await soon(client.connected())
    assert "sec" not in str(ended.value) + caplog.text


@pytest.mark.parametrize("url", ["http://localhost/", "localhost:8080", ""])
def test_url_that_cannot_be_is_refused_at_once(url: str) -> None:
    with pytest.raises(InvalidURI):
        Client(url)


# The end


async def test_leaving_closes_with_1000(server: Server) -> None:
    async with pair(server) as (_, peer):
        pass
    assert await peer.closed() == 1000


async def test_close_ends_subscriptions_quietly_and_requests_loudly(server: Server) -> None:
    async with pair(server) as (client, peer), subscription(client, peer, "news") as events:
        async with asking(peer, client, "seats_request") as (_, task):
            entering = asyncio.create_task(client.subscribe("other").__aenter__())
            await peer.request("subscribe_request")
            await soon(client.close())
            assert [event async for event in events] == []
            for waiting in (task, entering):
                with pytest.raises(ConnectionEnded, match="1000 closed by this client"):
                    await waiting
        assert client.state == State.CLOSED


async def test_close_can_be_called_again_and_at_once(server: Server) -> None:
    async with pair(server) as (client, peer):
        await soon(asyncio.gather(client.close(), client.close()))
        await soon(client.close())
        assert await peer.closed() == 1000


async def test_second_close_waits_for_the_first_to_end_in_order(server: Server) -> None:
    async with pair(server) as (client, peer):
        ws = client._ws
        assert ws is not None
        peer.ws.transport.pause_reading()
        closing = asyncio.create_task(client.close())
        while client._ws is not None:
            await asyncio.sleep(0)
        again = asyncio.create_task(client.close())
        await asyncio.sleep(0)
        peer.ws.transport.resume_reading()
        await soon(asyncio.gather(closing, again))
        assert ws.protocol.close_rcvd is not None


async def test_close_while_connecting(server: Server) -> None:
    async with server.client() as client:
        assert client.state == State.CONNECTING
    assert client.state == State.CLOSED


async def test_close_while_waiting(server: Server) -> None:
    server.refusals = [503]
    told: asyncio.Queue[State] = asyncio.Queue()
    async with server.client(backoff=(1000.0, 1000.0), on_state=told.put_nowait) as client:
        while await soon(told.get()) != State.WAITING:
            pass
        waiting = asyncio.create_task(client.connected())
    with pytest.raises(ConnectionEnded, match="1000 closed by this client"):
        await soon(waiting)


async def test_close_while_the_token_is_asked_for(server: Server) -> None:
    asked, cancelled = asyncio.Event(), asyncio.Event()

    async def hang() -> str:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return ""

    async with server.client(token=hang):
        await asked.wait()
    assert cancelled.is_set()


async def test_close_waits_little_for_a_server_that_does_not_answer(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "CLOSE_TIMEOUT", 0.05)
    async with pair(server) as (client, peer):
        await soon(client.connected())
        peer.ws.transport.pause_reading()
        async with asyncio.timeout(PATIENCE / 2):
            await client.close()
    peer.drop()


async def test_cancelled_close_leaves_nothing(server: Server) -> None:
    async with pair(server) as (client, peer):
        await soon(client.connected())
        peer.ws.transport.pause_reading()
        ws, running = client._ws, client._task
        assert ws is not None
        assert running is not None
        closing = asyncio.create_task(client.close())
        while client._ws is not None:
            await asyncio.sleep(0)
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
        assert closing.cancelled()
        async with asyncio.timeout(client_module.CLOSE_TIMEOUT / 2):
            await asyncio.wait({running})
        assert ws.transport.is_closing()
        peer.drop()


async def test_cancelled_block_closes_the_client(server: Server) -> None:
    async def use() -> None:
        async with server.client() as client, client.subscribe("news") as events:
            await anext(events)

    using = asyncio.create_task(use())
    peer = await server.accept()
    await peer.subscribed("news")
    using.cancel()
    assert await peer.closed() == 1000
    await asyncio.gather(using, return_exceptions=True)
    assert using.cancelled()


async def test_client_must_be_entered(server: Server) -> None:
    client = server.client()
    for use in (client.echo("x"), client.connected(), client.subscribe("news").__aenter__()):
        with pytest.raises(RuntimeError, match="enter the client first: async with"):
            await use


async def test_client_is_entered_once(server: Server) -> None:
    closed = server.client()
    await closed.close()
    async with pair(server) as (client, _):
        for used in (client, closed):
            with pytest.raises(RuntimeError, match="a client is entered once"):
                await used.__aenter__()


async def test_client_closed_while_a_subscription_is_open_leaves_it_in_order(server: Server) -> None:
    async with pair(server) as (client, peer):
        async with subscription(client, peer, "news"):
            await client.close()
        assert client._topics == {}
