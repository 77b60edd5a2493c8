"""The protocol: DESIGN section 1, row by row."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic_core import to_json

from realtime.exceptions import RequestError
from realtime.protocol import (
    CLOSE_CODES,
    CloseCode,
    CloseMessage,
    EchoRequest,
    EchoResponse,
    EchoResponseData,
    ErrorCode,
    ErrorMessage,
    ErrorMessageData,
    Gap,
    Heartbeat,
    MessageType,
    Publication,
    Reconnect,
    Status,
    SubscribeRequest,
    SubscribeResponse,
    SubscribeResponseData,
    UnsubscribeRequest,
    UnsubscribeResponse,
    UnsubscribeResponseData,
    client_reconnect,
    encode,
    encode_heartbeat,
    encode_publication,
    encode_response,
    parse,
    timestamp,
)

from .memory import frames, json_values

ECHO = '{"type":"echo_request","reqId":"1","echo":"Hello","err":false}'

PARSED = {
    "echo": (ECHO, EchoRequest(req_id="1", echo="Hello", err=False)),
    "echo of err": ('{"type":"echo_request","echo":"a","err":true}', EchoRequest(echo="a", err=True)),
    "echo without optional fields": ('{"type":"echo_request","echo":"a"}', EchoRequest(echo="a")),
    "echo of nothing": ('{"type":"echo_request","echo":""}', EchoRequest(echo="")),
    "null reqId": ('{"type":"echo_request","echo":"a","reqId":null}', EchoRequest(echo="a")),
    "null err": ('{"type":"echo_request","echo":"a","err":null}', EchoRequest(echo="a", err=None)),
    "empty reqId": ('{"type":"echo_request","echo":"a","reqId":""}', EchoRequest(echo="a")),
    "reqId of 256 characters": (
        json.dumps({"type": "echo_request", "echo": "a", "reqId": "€" * 256}),
        EchoRequest(echo="a", req_id="€" * 256),
    ),
    "subscribe": (
        '{"type":"subscribe_request","reqId":"2","topic":"heartbeat"}',
        SubscribeRequest(req_id="2", topic="heartbeat"),
    ),
    "unsubscribe": (
        '{"type":"unsubscribe_request","reqId":"3","topic":"heartbeat"}',
        UnsubscribeRequest(req_id="3", topic="heartbeat"),
    ),
    "odd topic": ('{"type":"subscribe_request","topic":"\\u0000\\n"}', SubscribeRequest(topic="\0\n")),
    "empty topic": ('{"type":"subscribe_request","topic":""}', SubscribeRequest(topic="")),
    "unknown fields": ('{"type":"echo_request","echo":"a","more":{"a":[1]},"data":null}', EchoRequest(echo="a")),
    "a field called req_id": ('{"type":"echo_request","echo":"a","req_id":"x"}', EchoRequest(echo="a")),
    "a field called req_id of another type": ('{"type":"echo_request","echo":"a","req_id":5}', EchoRequest(echo="a")),
    "NaN in a text": ('{"type":"echo_request","echo":"NaN Infinity"}', EchoRequest(echo="NaN Infinity")),
    "number beyond all floats in a field that is ignored": (
        '{"type":"echo_request","echo":"NaN","more":1e999}',
        EchoRequest(echo="NaN"),
    ),
    "the same field twice": ('{"type":"echo_request","echo":1,"echo":"a"}', EchoRequest(echo="a")),
    "whitespace": (' {\n"type" : "echo_request", "echo" : "a" }\r\n', EchoRequest(echo="a")),
    "binary": (ECHO.encode(), EchoRequest(req_id="1", echo="Hello", err=False)),
    "binary beyond ASCII": ('{"type":"echo_request","echo":"é🎉"}'.encode(), EchoRequest(echo="é🎉")),
}

BAD, UNKNOWN = ErrorCode.BAD_REQUEST, ErrorCode.UNKNOWN_MESSAGE_TYPE
REFUSED = {
    "empty": ("", BAD, None),
    "not JSON": ("hello", BAD, None),
    "half JSON": (ECHO[:-1], BAD, None),
    "more than JSON": (ECHO + "{}", BAD, None),
    "binary that is not UTF-8": (b'{"type":"echo_request","echo":"\xff"}', BAD, None),
    "binary that is empty": (b"", BAD, None),
    "a lone surrogate": ('{"type":"echo_request","echo":"\\ud800"}', BAD, None),
    "nesting without end": ("[" * 100_000, BAD, None),
    "an array": ("[]", BAD, None),
    "an array of requests": (f"[{ECHO}]", BAD, None),
    "a text": ('"echo_request"', BAD, None),
    "a number": ("42", BAD, None),
    "null": ("null", BAD, None),
    "no type": ('{"reqId":"1"}', UNKNOWN, None),
    "an empty object": ("{}", UNKNOWN, None),
    "unknown type": ('{"type":"dance_request","reqId":"1"}', UNKNOWN, None),
    "empty type": ('{"type":"","reqId":"1"}', UNKNOWN, None),
    "type in capitals": ('{"type":"ECHO_REQUEST","reqId":"1","echo":"a"}', UNKNOWN, None),
    "a response": ('{"type":"echo_response","reqId":"1","status":"OK"}', UNKNOWN, None),
    "a push": ('{"type":"heartbeat"}', UNKNOWN, None),
    "number as type": ('{"type":42,"reqId":"1"}', BAD, "1"),
    "null as type": ('{"type":null,"reqId":"1"}', BAD, "1"),
    "list as type": ('{"type":["echo_request"],"reqId":"1","echo":"a"}', BAD, "1"),
    "no echo": ('{"type":"echo_request","reqId":"1"}', BAD, "1"),
    "null as echo": ('{"type":"echo_request","reqId":"1","echo":null}', BAD, "1"),
    "number as echo": ('{"type":"echo_request","reqId":"1","echo":42}', BAD, "1"),
    "number beyond all floats as echo": ('{"type":"echo_request","reqId":"1","echo":1e999}', BAD, "1"),
    "NaN as echo": ('{"type":"echo_request","reqId":"1","echo":NaN}', BAD, None),
    "NaN in a field that is ignored": ('{"type":"echo_request","reqId":"1","echo":"a","more":[NaN]}', BAD, None),
    "Infinity in a binary frame": (b'{"type":"echo_request","echo":"a","more":-Infinity}', BAD, None),
    "text as err": ('{"type":"echo_request","reqId":"1","echo":"a","err":"true"}', BAD, "1"),
    "number as err": ('{"type":"echo_request","reqId":"1","echo":"a","err":1}', BAD, "1"),
    "no topic": ('{"type":"subscribe_request","reqId":"2"}', BAD, "2"),
    "null as topic": ('{"type":"subscribe_request","reqId":"2","topic":null}', BAD, "2"),
    "list as topic": ('{"type":"unsubscribe_request","reqId":"2","topic":["heartbeat"]}', BAD, "2"),
    "no topic to leave": ('{"type":"unsubscribe_request","reqId":"3"}', BAD, "3"),
    "number as reqId": ('{"type":"echo_request","reqId":7,"echo":"a"}', BAD, None),
    "list as reqId": ('{"type":"echo_request","reqId":["1"],"echo":"a"}', BAD, None),
    "reqId of 257 characters": (json.dumps({"type": "echo_request", "echo": "a", "reqId": "x" * 257}), BAD, None),
    "empty reqId": ('{"type":"echo_request","reqId":""}', BAD, None),
}


def table(rows: dict[str, Any], names: str) -> Any:
    return pytest.mark.parametrize(names, rows.values(), ids=list(rows))


@table(PARSED, ("frame", "request_"))
def test_parse_of_a_request(frame: str | bytes, request_: Any) -> None:
    assert parse(frame) == request_


@table(REFUSED, ("frame", "code", "req_id"))
def test_parse_of_what_is_no_request(frame: str | bytes, code: str, req_id: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        parse(frame)
    assert (caught.value.code, caught.value.req_id) == (code, req_id)


def test_parse_of_text_that_utf8_cannot_hold() -> None:
    with pytest.raises(RequestError):
        parse('{"type":"echo_request","echo":"\ud800"}')


def test_parse_names_the_wrong_field() -> None:
    with pytest.raises(RequestError, match=r"^field 'topic': input should be a valid string$"):
        parse('{"type":"subscribe_request","topic":1}')


def test_parse_names_the_missing_field() -> None:
    with pytest.raises(RequestError, match=r"^field 'echo': field required$"):
        parse('{"type":"echo_request"}')


def test_parse_names_the_field_as_the_client_knows_it() -> None:
    with pytest.raises(RequestError, match="field 'reqId'"):
        parse('{"type":"echo_request","echo":"a","reqId":1}')


def test_parse_error_does_not_repeat_a_long_type() -> None:
    with pytest.raises(RequestError) as caught:
        parse(json.dumps({"type": "x" * 100_000}))
    assert len(caught.value.message) < 200


@given(frames)
def test_parse_gives_a_request_or_request_error(frame: str | bytes) -> None:
    try:
        request = parse(frame)
    except RequestError as error:
        answer = ErrorMessage(message=error.message, code=ErrorCode(error.code), req_id=error.req_id)
        assert json.loads(encode(answer))["code"] in (BAD, UNKNOWN)
    else:
        assert isinstance(request, EchoRequest | SubscribeRequest | UnsubscribeRequest)


req_ids = st.none() | st.text(min_size=1, max_size=256)


@given(
    st.builds(EchoRequest, req_id=req_ids, echo=st.text(), err=st.booleans())
    | st.builds(SubscribeRequest, req_id=req_ids, topic=st.text())
    | st.builds(UnsubscribeRequest, req_id=req_ids, topic=st.text())
)
def test_encoded_request_parses_to_itself(request: Any) -> None:
    assert parse(encode(request)) == request


ENCODED = {
    "echo response": (
        EchoResponse(req_id="1", data=EchoResponseData(echo="Hello")),
        {"type": "echo_response", "reqId": "1", "status": "OK", "data": {"echo": "Hello"}},
    ),
    "echo response without reqId": (
        EchoResponse(data=EchoResponseData(echo="")),
        {"type": "echo_response", "status": "OK", "data": {"echo": ""}},
    ),
    "echo error": (
        EchoResponse(
            req_id="1",
            status=Status.ERROR,
            error=ErrorMessageData(message="client asked for it", code=ErrorCode.ASKED_BY_CLIENT),
        ),
        {
            "type": "echo_response",
            "reqId": "1",
            "status": "ERROR",
            "error": {"message": "client asked for it", "code": "ASKED_BY_CLIENT"},
        },
    ),
    "subscribe response": (
        SubscribeResponse(req_id="2", data=SubscribeResponseData(topic="heartbeat")),
        {"type": "subscribe_response", "reqId": "2", "status": "OK", "data": {"topic": "heartbeat"}},
    ),
    "unsubscribe response": (
        UnsubscribeResponse(req_id="3", data=UnsubscribeResponseData(topic="heartbeat")),
        {"type": "unsubscribe_response", "reqId": "3", "status": "OK", "data": {"topic": "heartbeat"}},
    ),
    "heartbeat": (
        Heartbeat(timestamp="2026-11-22T17:08:01.670383Z", uptime_seconds="42"),
        {"type": "heartbeat", "timestamp": "2026-11-22T17:08:01.670383Z", "uptime_seconds": "42"},
    ),
    "publication": (
        Publication(topic="orders.42", data={"a": None}, timestamp="t"),
        {"type": "publication", "topic": "orders.42", "data": {"a": None}, "timestamp": "t"},
    ),
    "gap": (Gap(topic="orders.42"), {"type": "gap", "topic": "orders.42"}),
    "error": (
        ErrorMessage(message="m", code=ErrorCode.BAD_REQUEST, req_id="9"),
        {"type": "error", "message": "m", "code": "BAD_REQUEST", "reqId": "9"},
    ),
    "error without reqId": (
        ErrorMessage(message="m", code=ErrorCode.UNKNOWN_MESSAGE_TYPE),
        {"type": "error", "message": "m", "code": "UNKNOWN_MESSAGE_TYPE"},
    ),
    "request": (EchoRequest(echo="a"), {"type": "echo_request", "echo": "a", "err": False}),
}


@table(ENCODED, ("message", "content"))
def test_encode_of_each_message(message: Any, content: dict[str, Any]) -> None:
    assert json.loads(encode(message)) == content


@table(ENCODED, ("message", "content"))
def test_encoded_message_reads_back(message: Any, content: dict[str, Any]) -> None:
    assert type(message).model_validate_json(encode(message)) == message


def test_encode_is_compact_and_begins_with_the_type() -> None:
    assert encode(EchoRequest(req_id="1", echo="é")).startswith(b'{"type":"echo_request",')


def test_every_message_type_has_a_model() -> None:
    models = {type(message).model_fields["type"].default for message, _ in ENCODED.values()}
    assert models | {"subscribe_request", "unsubscribe_request"} == set(MessageType)


def test_error_codes_are_those_of_the_contract() -> None:
    codes = (
        "ALREADY_SUBSCRIBED NOT_SUBSCRIBED TOPIC_NOT_FOUND ASKED_BY_CLIENT UNKNOWN_MESSAGE_TYPE BAD_REQUEST "
        "FORBIDDEN TOO_MANY_SUBSCRIPTIONS RATE_LIMITED INTERNAL_ERROR"
    )
    assert " ".join(ErrorCode) == codes


def test_message_is_fixed_once_made() -> None:
    with pytest.raises(ValidationError):
        EchoRequest(echo="a").echo = "b"  # type: ignore[misc]


# The two messages that are built by hand

finite_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=8,
)
moments = st.floats(0, 4e9)


@given(st.text(), finite_json, moments)
def test_encode_publication_gives_what_the_model_gives(topic: str, data: Any, sent_at: float) -> None:
    model = Publication(topic=topic, data=data, timestamp=timestamp(sent_at))
    assert encode_publication(topic, to_json(data).decode(), sent_at) == model.model_dump_json().encode()


@given(moments, st.integers(0, 2**40))
def test_encode_heartbeat_gives_what_the_model_gives(sent_at: float, uptime: int) -> None:
    model = Heartbeat(timestamp=timestamp(sent_at), uptime_seconds=str(uptime))
    assert encode_heartbeat(sent_at, uptime) == encode(model)


texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.none() | texts, texts)
def test_encode_response_gives_what_the_models_give(req_id: str | None, text: str) -> None:
    req_id = req_id or None
    echo, topic = b'{"echo":%b}' % to_json(text), b'{"topic":%b}' % to_json(text)
    answer = EchoResponse(req_id=req_id, data=EchoResponseData(echo=text))
    assert encode_response(MessageType.ECHO_REQUEST, req_id, echo) == encode(answer)
    subscribed = SubscribeResponse(req_id=req_id, data=SubscribeResponseData(topic=text))
    assert encode_response(MessageType.SUBSCRIBE_REQUEST, req_id, topic) == encode(subscribed)
    unsubscribed = UnsubscribeResponse(req_id=req_id, data=UnsubscribeResponseData(topic=text))
    assert encode_response(MessageType.UNSUBSCRIBE_REQUEST, req_id, topic) == encode(unsubscribed)


@given(json_values)
def test_publication_data_survives(data: Any) -> None:
    text = json.dumps(data)
    assert json.dumps(json.loads(encode_publication("t", text, 0))["data"]) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1795367281.670383, "2026-11-22T17:08:01.670383Z"),
        (0.0, "1970-01-01T00:00:00.000000Z"),
        (951782400.5, "2000-02-29T00:00:00.500000Z"),
    ],
)
def test_timestamp_is_rfc_3339_in_utc(seconds: float, text: str) -> None:
    assert timestamp(seconds) == text


# Closing

LEGAL_CODES = {*range(1000, 1004), *range(1006, 1015), *range(3000, 5000)}


def test_close_message_takes_every_legal_code() -> None:
    assert [CloseMessage(code=code).code for code in sorted(LEGAL_CODES)] == sorted(LEGAL_CODES)


@pytest.mark.parametrize("code", [*range(-1, 2), 42, 999, 1004, 1005, *range(1015, 3000, 97), 2999, 5000, 65535, 10**9])
def test_close_message_with_an_illegal_code_lists_the_legal_ones(code: int) -> None:
    with pytest.raises(ValueError, match=rf"{code} is not a close code .* 1000-1003, 1006 .*, 1007-1014, 3000-4999"):
        CloseMessage(code=code)


@pytest.mark.parametrize("code", [True, "1000", 1000.0, None])
def test_close_message_with_a_code_of_another_type_is_refused(code: Any) -> None:
    with pytest.raises(ValidationError):
        CloseMessage(code=code)


@pytest.mark.parametrize("reason", ["", "bye", "x" * 123, "é" * 61, "é" * 61 + "x", "€" * 41, "🎉" * 30 + "xyz"])
def test_close_message_takes_a_reason_of_up_to_123_bytes(reason: str) -> None:
    assert CloseMessage(reason=reason).reason == reason


@pytest.mark.parametrize(
    ("reason", "size"), [("x" * 124, 124), ("é" * 62, 124), ("€" * 41 + "x", 124), ("🎉" * 31, 124)]
)
def test_close_message_with_a_reason_over_123_bytes_is_refused(reason: str, size: int) -> None:
    with pytest.raises(ValueError, match=f"{size} bytes of UTF-8, at most 123"):
        CloseMessage(reason=reason)


def test_close_message_with_a_reason_that_utf8_cannot_hold_is_refused() -> None:
    with pytest.raises(ValidationError):
        CloseMessage(reason="\ud800")


def test_close_message_by_default_is_an_operators() -> None:
    assert CloseMessage() == CloseMessage(code=1001, reason="closed by operator")


def test_close_message_takes_a_close_code() -> None:
    assert CloseMessage(code=CloseCode.SERVICE_RESTART).code == 1012


STAYS_AWAY = [1000, 1002, 1003, 1007, 1008, 1009, 1010, 1014, 3500, 3999, 4500, 4999]
COMES_BACK = [1001, 1006, 1011, 1012, 3000, 3008, 3499, 4000, 4499]


@pytest.mark.parametrize(
    ("code", "client"),
    [
        *((code, Reconnect.STAY_AWAY) for code in STAYS_AWAY),
        *((code, Reconnect.BACKOFF) for code in COMES_BACK),
        (1013, Reconnect.BACKOFF_10S),
    ],
)
def test_client_reconnect_follows_the_table(code: int, client: Reconnect) -> None:
    assert client_reconnect(code) is client


def test_close_codes_name_every_standard_code_that_may_be_sent() -> None:
    assert {code for code in LEGAL_CODES if code < 3000} | {3008} == set(CLOSE_CODES)
