"""
The wire protocol ``demows.v1``: its messages, codes and close codes, as pydantic models.

This module knows neither Django nor any I/O. ``parse`` turns a frame into a request, ``encode`` a
message into the text of a frame. The names are those of the Go package that the protocol comes from.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple, Union

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator
from pydantic_core import from_json, to_json

from .exceptions import RequestError

SUBPROTOCOL = "demows.v1"
TOPIC_HEARTBEAT = "heartbeat"
MAX_REQ_ID = 256
"""The most characters a ``reqId`` may have."""
MAX_REASON = 123
"""The most UTF-8 bytes that a close reason may have (RFC 6455 §5.5: 125 less the code)."""


class MessageType(StrEnum):
    """Name every message of the protocol."""

    ERROR = "error"
    ECHO_REQUEST = "echo_request"
    ECHO_RESPONSE = "echo_response"
    SUBSCRIBE_REQUEST = "subscribe_request"
    SUBSCRIBE_RESPONSE = "subscribe_response"
    UNSUBSCRIBE_REQUEST = "unsubscribe_request"
    UNSUBSCRIBE_RESPONSE = "unsubscribe_response"
    HEARTBEAT = "heartbeat"
    PUBLICATION = "publication"
    GAP = "gap"


class Status(StrEnum):
    """Say whether a request was fulfilled."""

    OK = "OK"
    ERROR = "ERROR"


class ErrorCode(StrEnum):
    """Name every error a client can be told of."""

    ALREADY_SUBSCRIBED = "ALREADY_SUBSCRIBED"
    NOT_SUBSCRIBED = "NOT_SUBSCRIBED"
    TOPIC_NOT_FOUND = "TOPIC_NOT_FOUND"
    ASKED_BY_CLIENT = "ASKED_BY_CLIENT"
    UNKNOWN_MESSAGE_TYPE = "UNKNOWN_MESSAGE_TYPE"
    BAD_REQUEST = "BAD_REQUEST"
    FORBIDDEN = "FORBIDDEN"
    TOO_MANY_SUBSCRIPTIONS = "TOO_MANY_SUBSCRIPTIONS"
    RATE_LIMITED = "RATE_LIMITED"
    INTERNAL_ERROR = "INTERNAL_ERROR"


class CloseCode(IntEnum):
    """Name the close codes that the server gives a meaning of its own (RFC 6455 §7.4.1 and the IANA registry)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    NO_STATUS = 1005
    """Never sent: what is reported when a close frame held no code."""
    INTERRUPTED = 1006
    """Never sent: the TCP connection is dropped without a close frame."""
    INVALID_PAYLOAD = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    SLOW_CONSUMER = 3008


class Reconnect(StrEnum):
    """Say what a client does after a close."""

    STAY_AWAY = "stays away"
    BACKOFF = "comes back, with backoff"
    BACKOFF_10S = "comes back after at least 10 s"


class CloseMeaning(NamedTuple):
    """What the server means by a close code, and what a client does then."""

    meaning: str
    client: Reconnect


CLOSE_CODES: dict[int, CloseMeaning] = {
    1000: CloseMeaning("done", Reconnect.STAY_AWAY),
    1001: CloseMeaning("server shutdown, or closed by an operator", Reconnect.BACKOFF),
    1002: CloseMeaning("protocol error", Reconnect.STAY_AWAY),
    1003: CloseMeaning("unsupported data", Reconnect.STAY_AWAY),
    1006: CloseMeaning("interrupted: the TCP connection is dropped without a close frame", Reconnect.BACKOFF),
    1007: CloseMeaning("invalid UTF-8 in a text frame", Reconnect.STAY_AWAY),
    1008: CloseMeaning("policy: flooding, session ended, token refused", Reconnect.STAY_AWAY),
    1009: CloseMeaning("frame too big", Reconnect.STAY_AWAY),
    1010: CloseMeaning("an extension that the client needs was not negotiated", Reconnect.STAY_AWAY),
    1011: CloseMeaning("internal error", Reconnect.BACKOFF),
    1012: CloseMeaning("service restart", Reconnect.BACKOFF),
    1013: CloseMeaning("try again later: the server is full", Reconnect.BACKOFF_10S),
    1014: CloseMeaning("bad gateway", Reconnect.STAY_AWAY),
    3008: CloseMeaning("slow consumer", Reconnect.BACKOFF),
}
"""The codes with a meaning of their own. ``client_reconnect`` covers the ranges of the others."""


def client_reconnect(code: int) -> Reconnect:
    """Return what a client does after a close with ``code``."""
    if code in CLOSE_CODES:
        return CLOSE_CODES[code].client
    if 3000 <= code <= 3499 or 4000 <= code <= 4499:
        return Reconnect.BACKOFF
    return Reconnect.STAY_AWAY


LEGAL_CLOSE_CODES = "1000-1003, 1006 (drop without a close frame), 1007-1014, 3000-4999"


class Model(BaseModel):
    """Set what all models of the protocol share: strict types, unknown fields ignored, fixed once made."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="ignore", validate_by_name=True, validate_by_alias=True, serialize_by_alias=True
    )


def _absent_if_empty(value: str | None) -> str | None:
    return value or None


REQUEST_SUFFIX = "_request"
"""What the type of every request ends in; that of its answer ends in ``_response`` instead."""

ReqId = Annotated[
    Annotated[str, Field(max_length=MAX_REQ_ID)] | None, AfterValidator(_absent_if_empty), Field(alias="reqId")
]


class Message(Model):
    """Be the base of every message, either way."""

    type: MessageType


class Request(Message):
    """Be the base of a request; ``req_id`` is the client's own, sent back with the answer."""

    req_id: ReqId = None


class EchoRequest(Request):
    """Ask for ``echo`` to be sent back, or for an error when ``err`` is true."""

    type: Literal[MessageType.ECHO_REQUEST] = MessageType.ECHO_REQUEST
    echo: str
    err: bool | None = False


class SubscribeRequest(Request):
    """Ask for the publications of ``topic``."""

    type: Literal[MessageType.SUBSCRIBE_REQUEST] = MessageType.SUBSCRIBE_REQUEST
    topic: str


class UnsubscribeRequest(Request):
    """Ask for no more publications of ``topic``."""

    type: Literal[MessageType.UNSUBSCRIBE_REQUEST] = MessageType.UNSUBSCRIBE_REQUEST
    topic: str


class ErrorMessageData(Model):
    """Say what went wrong: a text for people, a code for programs (one of ``ErrorCode``, or a site's own)."""

    message: str
    code: ErrorCode | str | None = None
    req_id: ReqId = None


class ErrorMessage(Message):
    """Tell of an error where no other response is applicable."""

    type: Literal[MessageType.ERROR] = MessageType.ERROR
    message: str
    code: ErrorCode | None = None
    req_id: ReqId = None


class Response(Message):
    """Be the base of a response: ``error`` is there when ``status`` is ERROR, ``data`` when it is OK."""

    req_id: ReqId = None
    status: Status = Status.OK
    error: ErrorMessageData | None = None


class SiteResponse(Response):
    """Answer a request that a site has added."""

    type: str  # type: ignore[assignment]


class EchoResponseData(Model):
    """Hold the text sent back."""

    echo: str


class EchoResponse(Response):
    """Answer an echo request."""

    type: Literal[MessageType.ECHO_RESPONSE] = MessageType.ECHO_RESPONSE
    data: EchoResponseData | None = None


class SubscribeResponseData(Model):
    """Name the topic subscribed to."""

    topic: str


class SubscribeResponse(Response):
    """Answer a subscribe request."""

    type: Literal[MessageType.SUBSCRIBE_RESPONSE] = MessageType.SUBSCRIBE_RESPONSE
    data: SubscribeResponseData | None = None


class UnsubscribeResponseData(Model):
    """Name the topic unsubscribed from."""

    topic: str


class UnsubscribeResponse(Response):
    """Answer an unsubscribe request."""

    type: Literal[MessageType.UNSUBSCRIBE_RESPONSE] = MessageType.UNSUBSCRIBE_RESPONSE
    data: UnsubscribeResponseData | None = None


class Heartbeat(Message):
    """Be a beat: ``timestamp`` is RFC 3339 in UTC, ``uptime_seconds`` the connection's age in whole seconds."""

    type: Literal[MessageType.HEARTBEAT] = MessageType.HEARTBEAT
    timestamp: str
    uptime_seconds: str


class Publication(Message):
    """Be something published on a topic; ``data`` is whatever JSON the site published."""

    type: Literal[MessageType.PUBLICATION] = MessageType.PUBLICATION
    topic: str
    data: Any
    timestamp: str


class Gap(Message):
    """Tell that something published on ``topic`` was lost on the way."""

    type: Literal[MessageType.GAP] = MessageType.GAP
    topic: str


class CloseMessage(Model):
    """
    Say how connections are to be closed.

    Raises ``pydantic.ValidationError`` (a ``ValueError``) for a code that must not be sent, or for a
    reason of more than 123 bytes of UTF-8. Code 1006 drops the TCP connection without a close frame;
    its reason is for the log alone.
    """

    code: int = CloseCode.GOING_AWAY
    reason: str = "closed by operator"

    @field_validator("code")
    @classmethod
    def _legal_code(cls, code: int) -> int:
        if 1000 <= code <= 1003 or 1006 <= code <= 1014 or 3000 <= code <= 4999:
            return code
        raise ValueError(f"{code} is not a close code that may be sent; legal are {LEGAL_CLOSE_CODES}")

    @field_validator("reason")
    @classmethod
    def _short_reason(cls, reason: str) -> str:
        if (size := len(reason.encode())) > MAX_REASON:
            raise ValueError(f"the reason has {size} bytes of UTF-8, at most {MAX_REASON} fit into a close frame")
        return reason


AnyRequest = EchoRequest | SubscribeRequest | UnsubscribeRequest
"""The protocol's own requests; a site's are subclasses of ``SiteRequest``."""


class SiteRequest(BaseModel):
    """Be the base of a request that a site has added: its own model, with what every request has."""

    type: str
    req_id: ReqId = None


_requests: dict[str, type[BaseModel]] = {
    MessageType.ECHO_REQUEST: EchoRequest,
    MessageType.SUBSCRIBE_REQUEST: SubscribeRequest,
    MessageType.UNSUBSCRIBE_REQUEST: UnsubscribeRequest,
}


def _adapter() -> TypeAdapter[AnyRequest | SiteRequest]:
    kinds: Any = Union[tuple(_requests.values())]  # noqa: UP007
    return TypeAdapter(Annotated[kinds, Field(discriminator="type")])


_adapter_now = _adapter()


def add_request(kind: str, model: type[BaseModel]) -> type[SiteRequest]:
    """
    Let ``parse`` understand requests of the type ``kind`` with the fields of ``model``; return what it returns for one.

    That is a subclass of ``model``, as strict as the protocol unless ``model`` says otherwise. Raises ``ValueError``
    for a type that does not end in ``_request`` or is taken, and for a field that every request has.
    """
    global _adapter_now
    if not kind.endswith(REQUEST_SUFFIX) or kind in _requests:
        raise ValueError(f"request type {kind!r} must end in {REQUEST_SUFFIX!r}, and not be taken")
    if taken := {"type", "req_id", "reqId"}.intersection(model.model_fields):
        raise ValueError(f"request type {kind!r}: every request has the field {taken.pop()!r} already")
    request: type[SiteRequest] = type(
        f"{model.__name__}_{kind}",
        (model, SiteRequest),
        {
            "__module__": __name__,
            "__annotations__": {"type": Literal[kind], "req_id": ReqId},
            "type": kind,
            "req_id": None,
            "model_config": ConfigDict(**{"strict": True, **model.model_config}),
        },
    )
    _requests[kind] = request
    _adapter_now = _adapter()
    return request


def remove_request(kind: str) -> None:
    """Undo ``add_request``."""
    global _adapter_now
    del _requests[kind]
    _adapter_now = _adapter()


def parse(frame: str | bytes) -> AnyRequest | SiteRequest:
    """
    Return the request that ``frame`` holds.

    Raises ``RequestError``, with code ``BAD_REQUEST`` or ``UNKNOWN_MESSAGE_TYPE``, when it holds none.
    """
    try:
        request = _adapter_now.validate_json(frame, by_alias=True, by_name=False)
    except ValidationError as error:
        raise _explain(frame, error) from None
    if _may_hold_no_number(frame):
        _load(frame)
    return request


def traceparent_in(frame: str | bytes) -> str | None:
    """Return what a frame says that its request is a part of, as W3C's Trace Context writes it, or None."""
    name = "traceparent"
    if (name if isinstance(frame, str) else name.encode()) not in frame:  # type: ignore[operator]
        return None
    try:
        content = from_json(frame)
    except (ValueError, TypeError):
        return None
    value = content.get(name) if isinstance(content, dict) else None
    return value if isinstance(value, str) else None


def _may_hold_no_number(frame: str | bytes) -> bool:
    """Return whether NaN or Infinity stand in ``frame``: validate_json() takes them for numbers, JSON does not."""
    if isinstance(frame, str):
        return "NaN" in frame or "Infinity" in frame
    return b"NaN" in frame or b"Infinity" in frame


def _load(frame: str | bytes) -> Any:
    try:
        return from_json(frame, allow_inf_nan=False)
    except (ValueError, TypeError):  # TypeError: lone surrogates in a str
        raise RequestError(ErrorCode.BAD_REQUEST, "the frame is not valid JSON") from None


def _explain(frame: str | bytes, error: ValidationError) -> RequestError:
    """Return what is wrong with a frame, or raise it. Only bad input pays for being read twice."""
    content = _load(frame)
    if not isinstance(content, dict):
        return RequestError(ErrorCode.BAD_REQUEST, "the frame must hold one JSON object")
    if "type" not in content:
        return RequestError(ErrorCode.UNKNOWN_MESSAGE_TYPE, "field 'type' is missing")
    req_id = content.get("reqId")
    if not isinstance(req_id, str) or not 0 < len(req_id) <= MAX_REQ_ID:
        req_id = None
    kind = content["type"]
    if not isinstance(kind, str):
        return RequestError(ErrorCode.BAD_REQUEST, "field 'type' must be a string", req_id)
    if kind not in _requests:
        return RequestError(ErrorCode.UNKNOWN_MESSAGE_TYPE, f"unknown message type {kind[:64]!r}")
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"][1:])
    return RequestError(ErrorCode.BAD_REQUEST, f"field {field!r}: {first['msg'].lower()}", req_id)


def encode(message: Message) -> bytes:
    """Return ``message`` as JSON in UTF-8. Fields that are None are left out."""
    # The serializer is called directly: model_dump_json() costs twice as much in keyword handling alone.
    return message.__pydantic_serializer__.to_json(message, exclude_none=True, by_alias=True)


def timestamp(seconds: float) -> str:
    """Return ``seconds`` since the epoch as RFC 3339 in UTC, with microseconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def encode_publication(topic: str, payload: str, sent_at: float) -> bytes:
    """Return the text of a publication whose ``payload`` is JSON already, sent at ``sent_at`` (epoch seconds)."""
    head = b'{"type":"publication","topic":%b,"data":' % to_json(topic)
    return b'%b%b,"timestamp":"%b"}' % (head, payload.encode(), timestamp(sent_at).encode())


def encode_response(kind: str, req_id: str | None, payload: bytes) -> bytes:
    """Return the text of the answer OK to a request of type ``kind``, with ``payload``, which is JSON already."""
    head = _head_of_response(kind)
    if req_id is None:
        return b'%b"status":"OK","data":%b}' % (head, payload)
    return b'%b"reqId":%b,"status":"OK","data":%b}' % (head, to_json(req_id), payload)


@lru_cache(maxsize=256)
def _head_of_response(kind: str) -> bytes:
    return b'{"type":%b,' % to_json(response_type(kind))


def response_type(kind: str) -> str:
    """Return the type of the answer to a request of type ``kind``."""
    return kind.removesuffix(REQUEST_SUFFIX) + "_response"


def encode_heartbeat(sent_at: float, uptime: int) -> bytes:
    """Return the text of a heartbeat sent at ``sent_at`` (epoch seconds) to a connection ``uptime`` seconds old."""
    return b'{"type":"heartbeat","timestamp":"%b","uptime_seconds":"%d"}' % (timestamp(sent_at).encode(), uptime)
