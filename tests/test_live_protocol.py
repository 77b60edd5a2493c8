"""The wire protocol over a real socket, on each server."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidStatus

from . import raw
from .live import EVERY_SERVER, Client, Server, eventually, running
from .raw import Raw

ODD = "ödd ☂ " + "x" * 200
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


@pytest.fixture(scope="module", params=EVERY_SERVER)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that all tests share, be it one to deploy or the engine that clients are tested with."""
    with running(request.param) as server:
        yield server


@pytest.fixture(params=EVERY_SERVER)
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of server, for tests that start their own."""
    return str(request.param)


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    """A connection of the test's own."""
    async with Client(server.url, max_queue=None) as client:
        yield client


def error(kind: str, code: str, message: str, **fields: str) -> dict[str, Any]:
    """Return the response of ``kind`` that carries an error."""
    return {"type": kind, **fields, "status": "ERROR", "error": {"message": message, "code": code}}


def flat_error(code: str, answer: dict[str, Any], **fields: str) -> dict[str, Any]:
    """Return the error message with this code, and with whatever text for people ``answer`` has."""
    assert answer["message"]
    return {"type": "error", "message": answer["message"], "code": code, **fields}


async def logged(server: Server, pattern: str, start: int) -> None:
    """Wait until the server has written a line with ``pattern`` in it, from line number ``start`` on."""
    await asyncio.to_thread(server.wait_for_line, pattern, start=start)


# Requests and their answers


async def test_echo_request_is_answered_with_the_text(client: Client) -> None:
    answer = await client.ask({"type": "echo_request", "reqId": "1", "echo": "Hello", "err": False})
    assert answer == {"type": "echo_response", "reqId": "1", "status": "OK", "data": {"echo": "Hello"}}


async def test_echo_request_is_answered_with_the_error_the_client_asks_for(client: Client) -> None:
    answer = await client.ask({"type": "echo_request", "reqId": "1", "echo": "Hello", "err": True})
    assert answer == error("echo_response", "ASKED_BY_CLIENT", "client asked for it", reqId="1")


async def test_echo_request_keeps_every_character(client: Client) -> None:
    text = 'quote " backslash \\ nul \0 newline \n ☂ 𝄞 \u2028 </script>'
    answer = await client.ask({"type": "echo_request", "echo": text})
    assert answer == {"type": "echo_response", "status": "OK", "data": {"echo": text}}


async def test_empty_echo_is_sent_back_empty(client: Client) -> None:
    answer = await client.ask({"type": "echo_request", "echo": ""})
    assert answer == {"type": "echo_response", "status": "OK", "data": {"echo": ""}}


async def test_subscribe_and_unsubscribe_are_answered_with_the_topic(client: Client) -> None:
    answer = await client.ask({"type": "subscribe_request", "reqId": "2", "topic": "news"})
    assert answer == {"type": "subscribe_response", "reqId": "2", "status": "OK", "data": {"topic": "news"}}
    answer = await client.ask({"type": "unsubscribe_request", "reqId": "3", "topic": "news"})
    assert answer == {"type": "unsubscribe_response", "reqId": "3", "status": "OK", "data": {"topic": "news"}}


async def test_binary_frame_is_answered_as_a_text_frame_is(client: Client) -> None:
    answer = await client.ask(json.dumps({"type": "echo_request", "reqId": "b", "echo": "ü"}).encode())
    assert answer == {"type": "echo_response", "reqId": "b", "status": "OK", "data": {"echo": "ü"}}


async def test_answer_to_a_binary_frame_is_a_text_frame(client: Client) -> None:
    await client.send(b'{"type":"echo_request","echo":"x"}')
    assert isinstance(await client.ws.recv(), str)


async def test_message_in_several_frames_is_answered_once(client: Client) -> None:
    await client.ws.send(['{"type":"echo_', 'request","ec', 'ho":"in parts ☂"}'])
    answer = await client.receive()
    assert answer == {"type": "echo_response", "status": "OK", "data": {"echo": "in parts ☂"}}
    await client.echo()


async def test_ping_between_two_frames_of_a_message_is_answered_at_once(server: Server) -> None:
    async with Raw(server.port) as client:
        await client.open()
        await client.send(raw.frame(raw.TEXT, b'{"type":"echo_request",', fin=False))
        await client.send(raw.frame(raw.PING, b"are you there?"))
        assert await client.frame() == (raw.PONG, b"are you there?")
        await client.send(raw.frame(raw.CONTINUATION, b'"echo":"x"}'))
        opcode, payload = await client.frame()
        assert (opcode, json.loads(payload)["data"]) == (raw.TEXT, {"echo": "x"})


@pytest.mark.parametrize("req_id", ["", None], ids=["empty", "null"])
async def test_req_id_that_counts_as_absent_is_left_out(client: Client, req_id: str | None) -> None:
    answer = await client.ask({"type": "echo_request", "reqId": req_id, "echo": "x"})
    assert answer == {"type": "echo_response", "status": "OK", "data": {"echo": "x"}}


async def test_req_id_may_have_256_characters(client: Client) -> None:
    answer = await client.ask({"type": "echo_request", "reqId": "☂" * 256, "echo": "x"})
    assert answer == {"type": "echo_response", "reqId": "☂" * 256, "status": "OK", "data": {"echo": "x"}}


async def test_null_in_an_optional_field_counts_as_absent(client: Client) -> None:
    answer = await client.ask({"type": "echo_request", "echo": "x", "err": None})
    assert answer == {"type": "echo_response", "status": "OK", "data": {"echo": "x"}}


async def test_unknown_fields_are_ignored(client: Client) -> None:
    answer = await client.ask({"type": "echo_request", "echo": "x", "extra": {"deep": [1]}, "status": "ERROR"})
    assert answer == {"type": "echo_response", "status": "OK", "data": {"echo": "x"}}


# Errors


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param("", id="empty text"),
        pytest.param(b"", id="empty binary"),
        pytest.param("not JSON", id="not JSON"),
        pytest.param('{"type":"echo_request","echo":"x"', id="half an object"),
        pytest.param('{"type":"echo_request","echo":"x"}{}', id="two objects"),
        pytest.param('{"type":"echo_request","echo":"x","n":NaN}', id="NaN"),
        pytest.param('\ufeff{"type":"echo_request","echo":"x"}', id="byte order mark"),
        pytest.param("[" * 60_000, id="deeply nested"),
        pytest.param(b"\xff\xfe", id="binary that is not UTF-8"),
        pytest.param(b'{"type":"echo_request","echo":"\xff"}', id="binary with invalid UTF-8 within"),
        pytest.param(r'{"type":"echo_request","echo":"\ud800"}', id="lone surrogate"),
        pytest.param("[]", id="list"),
        pytest.param('"text"', id="string"),
        pytest.param("null", id="null"),
        pytest.param("42", id="number"),
        pytest.param("9" * 10_000, id="huge number"),
        pytest.param('{"type":42}', id="type not a string"),
        pytest.param('{"type":null}', id="type null"),
        pytest.param('{"type":"echo_request"}', id="echo missing"),
        pytest.param('{"type":"echo_request","echo":null}', id="echo null"),
        pytest.param('{"type":"echo_request","echo":42}', id="echo a number"),
        pytest.param('{"type":"echo_request","echo":"x","err":1}', id="err a number"),
        pytest.param('{"type":"echo_request","echo":"x","err":"true"}', id="err a string"),
        pytest.param('{"type":"subscribe_request"}', id="topic missing"),
        pytest.param('{"type":"subscribe_request","topic":["news"]}', id="topic a list"),
        pytest.param('{"type":"unsubscribe_request","topic":{}}', id="topic an object"),
        pytest.param('{"type":"echo_request","reqId":42,"echo":"x"}', id="reqId a number"),
        pytest.param('{"type":"echo_request","reqId":"' + "x" * 257 + '","echo":"x"}', id="reqId too long"),
    ],
)
async def test_bad_request_is_answered_with_an_error(client: Client, frame: str | bytes) -> None:
    answer = await client.ask(frame)
    assert answer == flat_error("BAD_REQUEST", answer)
    await client.echo()


@pytest.mark.parametrize("fields", [{"type": 42}, {"type": "echo_request"}, {"type": "subscribe_request", "topic": 1}])
async def test_bad_request_carries_the_req_id_that_could_be_read(client: Client, fields: dict[str, Any]) -> None:
    answer = await client.ask({**fields, "reqId": "7"})
    assert answer == flat_error("BAD_REQUEST", answer, reqId="7")


@pytest.mark.parametrize("fields", [{}, {"type": ""}, {"type": "Echo_Request"}, {"type": "heartbeat"}])
async def test_unknown_message_type_carries_no_req_id(client: Client, fields: dict[str, Any]) -> None:
    answer = await client.ask({**fields, "reqId": "7"})
    assert answer == flat_error("UNKNOWN_MESSAGE_TYPE", answer)


async def test_subscribe_twice_is_already_subscribed(client: Client) -> None:
    await client.subscribe("news")
    answer = await client.ask({"type": "subscribe_request", "reqId": "2", "topic": "news"})
    assert answer == error("subscribe_response", "ALREADY_SUBSCRIBED", "already subscribed to this topic", reqId="2")


async def test_unsubscribe_without_subscription_is_not_subscribed(client: Client) -> None:
    answer = await client.ask({"type": "unsubscribe_request", "reqId": "2", "topic": "news"})
    assert answer == error("unsubscribe_response", "NOT_SUBSCRIBED", "not subscribed to this topic", reqId="2")


@pytest.mark.parametrize("topic", ["nope", "", " news", "NEWS", "\0", "realtime.all", "../news", "☂" * 10_000, "{}"])
@pytest.mark.parametrize("verb", ["subscribe", "unsubscribe"])
async def test_unknown_topic_is_not_found(client: Client, verb: str, topic: str) -> None:
    answer = await client.ask({"type": f"{verb}_request", "reqId": "2", "topic": topic})
    assert answer == error(f"{verb}_response", "TOPIC_NOT_FOUND", "no such topic", reqId="2")


@pytest.mark.parametrize("topic", ["members", "forbidden"])
async def test_anonymous_may_not_subscribe_to_a_guarded_topic(client: Client, topic: str) -> None:
    answer = await client.ask({"type": "subscribe_request", "reqId": "2", "topic": topic})
    assert answer == error("subscribe_response", "FORBIDDEN", "not allowed to subscribe to this topic", reqId="2")


@pytest.mark.parametrize("topic", ["raising", "hanging", "hanging-thread"])
async def test_authorize_that_fails_is_an_internal_error_and_the_connection_lives_on(
    server: Server, client: Client, topic: str
) -> None:
    start = await server.mark()
    answer = await client.ask({"type": "subscribe_request", "reqId": "2", "topic": topic})
    assert answer == error("subscribe_response", "INTERNAL_ERROR", "the server failed to handle the request", reqId="2")
    await client.echo()
    kind = f"event=handler_failed request=subscribe_request topic='{topic}' error=[A-Za-z]+Error"
    await logged(server, kind + " connection=[0-9a-f-]{36}$", start)


async def test_hanging_handler_holds_up_nobody_else(server: Server, client: Client) -> None:
    await client.send({"type": "subscribe_request", "topic": "hanging"})
    async with Client(server.url) as other:
        await other.echo()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.ws.recv(), 0)
    assert (await client.receive())["status"] == "ERROR"


async def test_subscription_number_129_is_too_many(client: Client) -> None:
    for number in range(128):
        await client.subscribe(f"many-{number}")
    answer = await client.ask({"type": "subscribe_request", "reqId": "2", "topic": "many-128"})
    assert answer == error(
        "subscribe_response", "TOO_MANY_SUBSCRIPTIONS", "a connection may hold 128 topics", reqId="2"
    )
    await client.ask({"type": "unsubscribe_request", "topic": "many-0"})
    await client.subscribe("many-128")


# Heartbeats


async def test_first_heartbeat_follows_the_subscribe_response_at_once(kind: str) -> None:
    with running(kind, REALTIME_HEARTBEAT_INTERVAL="3600") as server:
        async with Client(server.url) as client:
            await client.subscribe("heartbeat")
            await client.send({"type": "echo_request", "echo": "x"})
            beat = await client.receive()
            assert beat == {"type": "heartbeat", "timestamp": beat["timestamp"], "uptime_seconds": "0"}
            assert TIMESTAMP.fullmatch(beat["timestamp"])
            assert (await client.receive())["type"] == "echo_response"


async def test_uptime_of_a_heartbeat_is_the_connections_own(server: Server, client: Client) -> None:
    await client.subscribe("heartbeat")
    while (await client.receive())["uptime_seconds"] != "1":
        pass
    async with Client(server.url) as younger:
        await younger.subscribe("heartbeat")
        assert (await younger.receive())["uptime_seconds"] == "0"


async def test_heartbeat_comes_once_a_slot_of_the_wall_clock(client: Client) -> None:
    await client.subscribe("heartbeat")
    await client.receive()
    seconds = [float((await client.receive())["timestamp"][17:-1]) for _ in range(6)]
    late = [(second + 0.02) % 0.2 - 0.02 for second in seconds]  # a timer may be early by a little
    assert sorted(late)[3] < 0.05, f"most of these seconds should be near a multiple of 0.2: {seconds}"
    assert all((later - sooner) % 60 > 0.1 for sooner, later in pairwise(seconds))


async def test_heartbeat_reaches_all_subscribers_alike(server: Server, client: Client) -> None:
    async with Client(server.url) as other:
        for each in (client, other):
            await each.subscribe("heartbeat")
            await each.receive()
        ours = {(await client.receive())["timestamp"] for _ in range(3)}
        theirs = {(await other.receive())["timestamp"] for _ in range(3)}
        assert len(ours & theirs) >= 2


# Publications


async def test_publication_carries_topic_data_and_timestamp(server: Server, client: Client) -> None:
    await client.subscribe("news")
    await server.aget("/apublish/")
    publication = await client.receive()
    assert TIMESTAMP.fullmatch(publication["timestamp"])
    assert publication == {
        "type": "publication",
        "topic": "news",
        "data": {"number": 0},
        "timestamp": publication["timestamp"],
    }


async def test_topic_of_odd_characters_delivers(server: Server, client: Client) -> None:
    await client.subscribe(ODD)
    await server.aget(f"/apublish/?topic=%C3%B6dd%20%E2%98%82%20{'x' * 200}")
    assert (await client.receive())["topic"] == ODD


async def test_publication_reaches_no_subscriber_of_another_topic(server: Server, client: Client) -> None:
    await client.subscribe("many-1")
    await server.aget("/apublish/?topic=many-2")
    await client.echo()


async def test_what_is_published_right_after_the_subscribe_response_arrives(server: Server) -> None:
    for number in range(20):
        async with Client(server.url) as client:
            await client.subscribe(f"many-{number}")
            await server.aget(f"/apublish/?topic=many-{number}")
            assert (await client.receive())["data"] == {"number": 0}


@pytest.mark.parametrize("page", ["publish", "apublish"])
async def test_burst_reaches_every_subscriber_whole_and_in_order(server: Server, page: str) -> None:
    async with Client(server.url) as one, Client(server.url) as two, Client(server.url, compression=None) as three:
        clients = [one, two, three]
        for client in clients:
            await client.subscribe("news")

        async def numbers(client: Client) -> list[int]:
            return [(await client.receive())["data"]["number"] for _ in range(5000)]

        received, _ = await asyncio.gather(
            asyncio.gather(*map(numbers, clients)), server.aget(f"/{page}/?topic=news&count=5000")
        )
        assert received == [list(range(5000))] * 3
        for client in clients:
            await client.echo()


@pytest.mark.parametrize("compression", ["deflate", None])
async def test_publication_bigger_than_what_clients_may_send_arrives(server: Server, compression: str | None) -> None:
    size = 1_000_000
    async with Client(server.url, max_size=None, compression=compression) as client:
        await client.subscribe("news")
        await server.aget(f"/publish_text/?size={size}")
        assert (await client.receive())["data"] == {"text": "x" * size}
        await client.echo()


@asynccontextmanager
async def hammering(server: Server, topic: str) -> AsyncIterator[None]:
    """Publish on ``topic`` all the time."""

    async def hammer() -> None:
        while True:
            await server.aget(f"/apublish/?topic={topic}&count=20")

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(hammer()) for _ in range(2)]
        yield
        for task in tasks:
            task.cancel()


async def test_nothing_of_a_topic_arrives_outside_its_subscription(server: Server, client: Client) -> None:
    async with Client(server.url, max_queue=None) as other, hammering(server, "many-5"):
        await other.subscribe("many-5")
        for number in range(20):
            await client.subscribe("many-5")
            for _ in range(number % 3):
                assert (await client.receive())["type"] == "publication"
            answer = await client.ask({"type": "unsubscribe_request", "topic": "many-5"})
            while answer["type"] == "publication":
                answer = await client.receive()
            assert answer["type"] == "unsubscribe_response"
            await client.echo()
        assert (await other.receive())["type"] == "publication"


async def test_pipelined_subscribes_and_unsubscribes_keep_to_their_order(server: Server, client: Client) -> None:
    async with hammering(server, "many-6"):
        for _ in range(200):
            await client.send({"type": "subscribe_request", "topic": "many-6"})
            await client.send({"type": "unsubscribe_request", "topic": "many-6"})
        await client.send({"type": "subscribe_request", "topic": "many-6"})
        answers = []
        while len(answers) < 401:
            message = await client.receive()
            if message["type"] == "publication":
                assert answers[-1] == ("subscribe_response", "OK")
            else:
                answers.append((message["type"], message["status"]))
        assert answers == [("subscribe_response", "OK"), ("unsubscribe_response", "OK")] * 200 + [answers[0]]
        assert (await client.receive())["type"] == "publication"


# Order, and input of every kind


async def test_pipelined_requests_are_answered_in_order(client: Client) -> None:
    kinds = ["echo_request", "subscribe_request", "nonsense", "unsubscribe_request"]
    expected = ["echo_response", "subscribe_response", "error", "unsubscribe_response"]
    for number in range(200):
        await client.send({"type": kinds[number % 4], "reqId": str(number), "echo": str(number), "topic": "news"})
    answers = [await client.receive() for _ in range(200)]
    assert [answer["type"] for answer in answers] == expected * 50
    assert [answer["reqId"] for answer in answers if "reqId" in answer] == [
        str(number) for number in range(200) if number % 4 != 2
    ]


async def test_client_that_pipelines_does_not_hold_up_another(server: Server, client: Client) -> None:
    async def flood(flooding: Raw) -> None:
        await flooding.send(raw.frame(raw.TEXT) * 50_000)

    async with Raw(server.port) as flooding:
        await flooding.open()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(flood(flooding))
            reading = group.create_task(flooding.ended())
            for _ in range(20):
                async with asyncio.timeout(5):
                    await client.echo()
            await task
            flooding.abort()
            reading.cancel()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
TYPES = ["echo_request", "subscribe_request", "unsubscribe_request", "heartbeat", "publication", "error"]
ALMOST_REQUESTS = st.fixed_dictionaries(
    {"type": st.sampled_from(TYPES) | JSON},
    optional={
        "reqId": st.text() | JSON,
        "echo": st.text() | JSON,
        "err": st.booleans() | JSON,
        "topic": st.sampled_from(["news", "members", "many-1", ODD]) | st.text() | JSON,
    },
)
ONE_ANSWER = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


async def assert_one_answer(client: Client, frame: str | bytes) -> None:
    answer = await client.ask(frame)
    assert answer["type"] in ("error", "echo_response", "subscribe_response", "unsubscribe_response")
    await client.echo()


@given(frame=st.text())
@ONE_ANSWER
async def test_any_text_gets_one_answer(client: Client, frame: str) -> None:
    await assert_one_answer(client, frame)


@given(frame=st.binary())
@ONE_ANSWER
async def test_any_bytes_get_one_answer(client: Client, frame: bytes) -> None:
    await assert_one_answer(client, frame)


@given(content=JSON | ALMOST_REQUESTS)
@ONE_ANSWER
async def test_any_json_gets_one_answer(client: Client, content: Any) -> None:
    await assert_one_answer(client, json.dumps(content))


# Frames that end a connection


SMALL = {
    "daphne": ["--websocket-max-message-size", "1000", "--websocket-max-frame-size", "1000"],
    "uvicorn": ["--ws-max-size", "1000"],
    "engine": ["--max-size", "1000"],
}


async def test_frame_over_the_size_limit_is_closed_with_1009_and_nobody_else_is(kind: str) -> None:
    with running(kind, *SMALL[kind]) as server:
        async with Client(server.url) as other, Client(server.url, compression=None) as client:
            await client.send({"type": "echo_request", "echo": "x" * 900})
            assert (await client.receive())["data"] == {"echo": "x" * 900}
            await client.send("x" * 1001)
            code, _ = await client.closed()
            assert code == 1009
            await other.echo()
            await server.assert_calm(0)


async def test_message_over_the_size_limit_in_small_frames_is_closed_with_1009(kind: str) -> None:
    with running(kind, *SMALL[kind]) as server:
        async with Raw(server.port) as client:
            await client.open()
            await client.send(raw.frame(raw.TEXT, b"x" * 600, fin=False))
            await client.send(raw.frame(raw.CONTINUATION, b"x" * 600))
            code, _ = await client.closed()
            assert code == 1009
            await server.assert_calm(0)


@pytest.mark.parametrize("compression", ["deflate", None])
async def test_frame_over_the_default_limit_is_closed_with_1009(server: Server, compression: str | None) -> None:
    limit = 1 << 16
    async with Client(server.url) as other, Client(server.url, compression=compression) as client:
        await client.send("x" * limit)
        assert (await client.receive())["code"] == "BAD_REQUEST"
        with suppress(ConnectionClosed):  # uvicorn does not wait for the rest
            await client.send(b"x" * (limit + 1))
        code, _ = await client.closed()
        assert code == 1009
        await other.echo()


async def test_frame_that_only_says_it_is_huge_is_closed_with_1009(server: Server) -> None:
    async with Raw(server.port) as client:
        await client.open()
        await client.send(b"\x81\xff" + (1 << 40).to_bytes(8) + b"mask" + b"x" * 100)
        code, _ = await client.closed()
        assert code == 1009


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"\xff", id="never valid"),
        pytest.param(b'{"type":"echo_request","echo":"\xc3', id="cut short"),
        pytest.param(b"\xed\xa0\x80", id="surrogate"),
        pytest.param(b"\xc0\x80", id="overlong"),
    ],
)
async def test_invalid_utf8_in_a_text_frame_is_closed_with_1007_and_nobody_else_is(
    server: Server, client: Client, payload: bytes
) -> None:
    async with Raw(server.port) as bad:
        await bad.open()
        await bad.send(raw.frame(raw.TEXT, payload))
        code, _ = await bad.closed()
        assert code == 1007
        await client.echo()


async def test_character_split_over_two_frames_is_valid_utf8(server: Server) -> None:
    async with Raw(server.port) as client:
        await client.open()
        text = '{"type":"echo_request","echo":"☂"}'.encode()
        await client.send(raw.frame(raw.TEXT, text[:-3], fin=False) + raw.frame(raw.CONTINUATION, text[-3:]))
        opcode, payload = await client.frame()
        assert (opcode, json.loads(payload)["data"]) == (raw.TEXT, {"echo": "☂"})


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"\x81\x05hello", id="unmasked"),
        pytest.param(raw.frame(raw.CONTINUATION, b"x"), id="continuation of nothing"),
        pytest.param(raw.frame(raw.TEXT, b"x", fin=False) + raw.frame(raw.TEXT, b"y"), id="message within a message"),
        pytest.param(raw.frame(3, b"x"), id="reserved opcode"),
        pytest.param(raw.frame(11, b"x"), id="reserved control opcode"),
        pytest.param(raw.frame(raw.PING, b"x", fin=False), id="ping in parts"),
        pytest.param(raw.frame(raw.PING, b"x" * 126), id="ping too long"),
        pytest.param(b"\xc1\x80mask", id="reserved bit"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="HTTP"),
    ],
)
async def test_violation_of_websocket_itself_is_closed_with_1002_and_leaves_no_trace(
    server: Server, client: Client, sent: bytes
) -> None:
    start = await server.mark()
    async with Raw(server.port) as bad:
        await bad.open()
        await bad.send(sent)
        code, _ = await bad.closed()
        assert code == 1002
        await bad.ended()
    await client.echo()
    await server.assert_calm(start)


@pytest.mark.parametrize("payload", [b"x", (1005).to_bytes(2), (999).to_bytes(2), (1000).to_bytes(2) + b"\xff"])
async def test_malformed_close_frame_ends_the_connection_and_leaves_no_trace(server: Server, payload: bytes) -> None:
    start = await server.mark()
    async with Raw(server.port) as bad:
        await bad.open()
        await bad.send(raw.frame(raw.CLOSE, payload))
        await bad.ended()
    await gone(server)
    await server.assert_calm(start)


# The handshake


@pytest.mark.parametrize("path", ["/", "/ws/", "/?x=1", "/ws/?a=b"])
async def test_path_is_served(server: Server, path: str) -> None:
    async with Client(server.url + path[1:]) as client:
        await client.echo()


@pytest.mark.parametrize(
    "path", ["/ws", "/ws/x", "/nope/", "/census/", "//", "/WS/", "/%E2%98%82/", "/%0a", "/%ff", "/../ws/"]
)
async def test_other_paths_are_refused_with_403_and_without_a_traceback(server: Server, path: str) -> None:
    start = await server.mark()
    async with Raw(server.port) as client:
        assert (await client.open(path)).startswith("HTTP/1.1 403 ")
        await client.ended()
    await server.assert_calm(start)


async def test_refusal_is_what_clients_expect(server: Server) -> None:
    with pytest.raises(InvalidStatus) as caught:
        async with Client(server.url + "nope/"):
            pass
    assert caught.value.response.status_code == 403


@pytest.mark.parametrize(
    ("offers", "chosen"),
    [
        (None, None),
        (["demows.v1"], "demows.v1"),
        (["other", "demows.v1"], "demows.v1"),
        (["demows.v2", "other"], None),
    ],
)
async def test_subprotocol_is_chosen_if_it_was_offered(
    server: Server, offers: list[str] | None, chosen: str | None
) -> None:
    async with Client(server.url, subprotocols=offers) as client:
        assert client.ws.subprotocol == chosen
        await client.echo()


@pytest.mark.parametrize(
    "offer",
    ["demows%2Ev1", "demows%2ev1, other", "%ff", "x, ,y", "DEMOWS.V1", "demows.v1;x=1"],
)
async def test_odd_subprotocol_offer_is_not_taken_for_ours(server: Server, offer: str) -> None:
    start = await server.mark()
    async with Raw(server.port) as client:
        head = await client.open(headers=[f"Sec-WebSocket-Protocol: {offer}"])
        assert head.startswith(("HTTP/1.1 101 ", "HTTP/1.1 400 "))
        assert "demows.v1" not in head
    await server.assert_calm(start)


async def test_subprotocol_offered_in_a_header_of_its_own_is_found(server: Server) -> None:
    async with Raw(server.port) as client:
        head = await client.open(headers=["Sec-WebSocket-Protocol: demows.v1", "Sec-WebSocket-Protocol: other"])
        assert head.startswith("HTTP/1.1 101 ")
        assert "sec-websocket-protocol: demows.v1" in head.lower()


@pytest.mark.parametrize(
    "header",
    [
        "Cookie: sessionid=nonsense; \xff",
        "X-Forwarded-For: nonsense",
        "Daphne-Root-Path: /ws",
        "Sec-WebSocket-Extensions: nonsense; a=1",
    ],
)
async def test_odd_header_does_not_hinder_a_connection(server: Server, header: str) -> None:
    start = await server.mark()
    async with Raw(server.port) as client:
        assert (await client.open(headers=[header])).startswith("HTTP/1.1 101 ")
        await client.send_json({"type": "echo_request", "echo": "x"})
        assert (await client.frame())[0] == raw.TEXT
    await server.assert_calm(start)


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://["])
async def test_connection_from_another_page_is_refused(server: Server, origin: str) -> None:
    start = await server.mark()
    async with Raw(server.port) as client:
        head = await client.open(headers=[f"Origin: {origin}"])
        # autobahn refuses by itself what it cannot parse
        assert head.startswith(("HTTP/1.1 403 ", "HTTP/1.1 400 "))
    await server.assert_calm(start)


async def test_connection_from_the_sites_own_page_is_accepted(server: Server) -> None:
    async with Client(server.url, origin=f"http://127.0.0.1:{server.port}") as client:
        await client.echo()


async def test_http_pages_are_served_beside(server: Server, client: Client) -> None:
    await client.echo()
    assert (await server.aget("/census/"))["connections"] >= 1


# Clients that leave without a word


async def gone(server: Server) -> None:
    """Wait until the server has forgotten every WebSocket."""

    def nobody() -> bool:
        left = server.get("/leftovers/")
        sockets = left["objects"]["WebSocketProtocol"] + left["objects"]["WebSocketsSansIOProtocol"]
        return left["connections"] == 0 and sockets == 0

    await eventually(nobody)


async def test_client_that_vanishes_leaves_no_traceback(server: Server) -> None:
    start = await server.mark()
    async with Raw(server.port) as client:
        await client.open()
        await client.send_json({"type": "subscribe_request", "topic": "heartbeat"})
        await client.frame()
        client.abort()
    await gone(server)
    await server.assert_calm(start)


async def test_client_that_vanishes_amid_a_burst_leaves_no_traceback(server: Server) -> None:
    start = await server.mark()
    async with Raw(server.port) as client:
        await client.open()
        await client.send_json({"type": "subscribe_request", "topic": "news"})
        await client.frame()
        publishing = asyncio.create_task(server.aget("/apublish/?count=2000"))
        await client.frame()
        client.abort()
        await publishing
    await gone(server)
    await server.assert_calm(start)


async def test_client_that_vanishes_while_its_request_is_handled_leaves_no_subscription(server: Server) -> None:
    async with Raw(server.port) as client:
        await client.open()
        await client.send_json({"type": "subscribe_request", "topic": "hanging"})
        await client.send_json({"type": "subscribe_request", "topic": "news"})
        client.abort()
    await gone(server)
    assert (await server.aget("/leftovers/"))["groups"] == 0


@pytest.mark.parametrize("path", ["/", "/nope/"])
@pytest.mark.parametrize("part", [10, 60, None], ids=["request line", "headers", "whole"])
async def test_client_that_leaves_during_the_handshake_leaves_no_traceback(
    server: Server, path: str, part: int | None
) -> None:
    start = await server.mark()
    for _ in range(10):
        async with Raw(server.port) as client:
            await client.send(raw.handshake(path)[:part])
            client.abort()
    await gone(server)
    await server.assert_calm(start)


async def test_client_that_says_goodbye_is_answered_with_its_code(server: Server) -> None:
    start = await server.mark()
    async with Raw(server.port) as client:
        await client.open()
        await client.send(raw.frame(raw.CLOSE, (4321).to_bytes(2) + b"bye"))
        code, _ = await client.closed()
        assert code in (1000, 4321)
        await client.ended()
    await logged(server, "event=disconnected connection=[0-9a-f-]{36} code=4321 ", start)


async def test_empty_close_frame_is_reported_as_1005(server: Server) -> None:
    start = await server.mark()
    async with Raw(server.port) as client:
        await client.open()
        await client.send(raw.frame(raw.CLOSE))
        await client.ended()
    await logged(server, "event=disconnected connection=[0-9a-f-]{36} code=1005 ", start)
