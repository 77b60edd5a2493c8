"""
The interface described for machines: an AsyncAPI 3.0 document of the messages, the topics and a site's own requests.

As AsyncAPI has it, the document speaks for the server, which receives requests and sends everything else. The WebSocket
is its one channel. Each request is an operation with a reply, and each topic is one that sends its publications.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any
from urllib.parse import urlsplit

from django.apps import apps
from django.conf import settings as django_settings
from django.contrib.auth.decorators import login_not_required
from django.http import Http404, HttpRequest, JsonResponse
from django.urls import get_script_prefix
from django.views.decorators.cache import cache_control
from django.views.decorators.http import require_safe
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import from_json, to_json

from . import __version__, protocol
from .conf import get_settings
from .consumers import RESPONSES
from .handlers import Handler, handlers
from .handshake import TOKEN_OFFER
from .patterns import CONVERTERS
from .protocol import ErrorCode, Status
from .topics import MAX_NAME, Topic, all_topics

Json = dict[str, Any]

PATH = "ws/"
"""Where ``with_realtime`` serves WebSockets unless a site says otherwise, below the site's prefix."""
DESCRIPTION = f"""\
One JSON object a frame, by the protocol `{protocol.SUBPROTOCOL}`. This document speaks for the server: it receives
requests, each of which it answers once and in order, and sends everything else. Clients ignore message types and
fields that they do not know."""
SEGMENTS = {
    "str": "[^.]+",
    "slug": "[-a-zA-Z0-9_]+",
    "int": "(0|-?[1-9][0-9]*)",
    "uuid": "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
}
"""What a topic's parameter of each kind matches, as a regular expression of ECMA-262."""
ERRORS = {
    ErrorCode.ALREADY_SUBSCRIBED: "the connection subscribes to this topic already",
    ErrorCode.NOT_SUBSCRIBED: "it does not",
    ErrorCode.TOPIC_NOT_FOUND: "no such topic, whatever string it is",
    ErrorCode.FORBIDDEN: "the topic exists, and this user may not subscribe; or this user may not ask",
    ErrorCode.TOO_MANY_SUBSCRIPTIONS: "more topics than one connection may hold (128 by default)",
    ErrorCode.RATE_LIMITED: "more requests than the limit allows; carries the `reqId` wherever one could be read",
    ErrorCode.ASKED_BY_CLIENT: "an echo with `err` true",
    ErrorCode.UNKNOWN_MESSAGE_TYPE: "`type` is missing or unknown; carries no `reqId`",
    ErrorCode.BAD_REQUEST: "not JSON, not an object, `type` not a string, a mandatory field missing, a field of the "
    "wrong type, a `reqId` over 256 characters; carries the `reqId` wherever one could be read",
    ErrorCode.INTERNAL_ERROR: "the handler failed or took too long; the connection lives on",
}
"""When each error is sent, in the words of the protocol's page."""
_BEAT = protocol.TOPIC_HEARTBEAT
_ERROR = protocol.ErrorMessageData(message="client asked for it", code=ErrorCode.ASKED_BY_CLIENT)
EXAMPLES: tuple[protocol.Message, ...] = (
    protocol.EchoRequest(req_id="1", echo="Hello", err=False),
    protocol.EchoResponse(req_id="1", data=protocol.EchoResponseData(echo="Hello")),
    protocol.EchoResponse(req_id="1", status=Status.ERROR, error=_ERROR),
    protocol.SubscribeRequest(req_id="2", topic=_BEAT),
    protocol.SubscribeResponse(req_id="2", data=protocol.SubscribeResponseData(topic=_BEAT)),
    protocol.UnsubscribeRequest(req_id="3", topic=_BEAT),
    protocol.UnsubscribeResponse(req_id="3", data=protocol.UnsubscribeResponseData(topic=_BEAT)),
    protocol.Heartbeat(timestamp="2026-11-22T17:08:01.670383Z", uptime_seconds="42"),
    protocol.Gap(topic="orders.42"),
    protocol.ErrorMessage(message="field 'echo': field required", code=ErrorCode.BAD_REQUEST, req_id="4"),
)


class WireSchema(GenerateJsonSchema):
    """
    Describe what stands on the wire, in the JSON Schema of draft 7 that AsyncAPI takes.

    All fields are there in what is sent, but for those of the protocol's own messages that would be None.
    """

    _of_protocol = False

    def model_schema(self, schema: Any) -> Json:
        model = schema["cls"]
        outer, self._of_protocol = self._of_protocol, issubclass(model, protocol.Model)
        result = super().model_schema(schema)
        self._of_protocol = outer
        if "description" in result:
            result["description"] = result["description"].replace("``", "`")
        if issubclass(model, protocol.Request | protocol.SiteRequest):
            kind = result["properties"]["type"].pop("default")  # for which pydantic takes it to be optional
            result["required"] = ["type", *result.get("required", ())]
            if "examples" in result:
                result["examples"] = [{"type": kind, **example} for example in result["examples"]]
        if issubclass(model, protocol.Response):
            result["if"] = {"properties": {"status": {"const": Status.OK}}}
            result |= {"then": {"required": ["data"]}, "else": {"required": ["error"]}}
        return result

    def field_is_required(self, field: Any, total: bool) -> bool:
        if self.mode == "validation" or field["type"] == "typed-dict-field":
            return super().field_is_required(field, total)
        inner = field["schema"]
        while inner["type"] in ("default", "function-after"):
            inner = inner["schema"]
        return not (self._of_protocol and inner["type"] == "nullable") and not field.get("serialization_exclude_if")

    def nullable_schema(self, schema: Any) -> Json:
        if self._of_protocol and self.mode == "serialization":
            return self.generate_inner(schema["schema"])
        return super().nullable_schema(schema)

    def default_schema(self, schema: Any) -> Json:
        return self.generate_inner(schema["schema"]) if self.mode == "serialization" else super().default_schema(schema)

    def tuple_schema(self, schema: Any) -> Json:
        return _draft_7(super().tuple_schema(schema))

    def named_tuple_schema(self, schema: Any) -> Json:
        return _draft_7(super().named_tuple_schema(schema))

    def tagged_union_schema(self, schema: Any) -> Json:
        return _draft_7(super().tagged_union_schema(schema))

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> Json:
        return {}  # anything, rather than no document at all

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _draft_7(schema: Json) -> Json:
    """Return ``schema`` without what only later drafts and OpenAPI know."""
    if "prefixItems" in schema:
        rest = {"additionalItems": schema.pop("items")} if "items" in schema else {}
        schema |= {"items": schema.pop("prefixItems"), **rest}
    schema.pop("discriminator", None)
    return schema


def document(*, url: str | None = None, title: str = "Realtime", version: str = __version__) -> Json:
    """
    Return the AsyncAPI document of this site, for the WebSocket at ``url``, such as ``wss://example.org/ws/``.

    ``title`` and ``version`` are those of the site's interface. Raises ``ValueError`` for a URL of another kind.
    """
    parts = urlsplit(f"/{PATH}" if url is None else url)
    if url is not None and (parts.scheme not in ("ws", "wss") or not parts.hostname):
        raise ValueError(f"{url!r} is not the URL of a WebSocket, such as wss://example.org/ws/")
    server = {"host": parts.netloc.rpartition("@")[2], "protocol": parts.scheme}
    made = {
        "asyncapi": "3.0.0",
        "info": {"title": title, "version": version, "description": DESCRIPTION},
        "defaultContentType": "application/json",
        **({} if url is None else {"servers": {"site": server}}),
        **_Builder().build(parts.path or "/"),
    }
    plain: Json = from_json(to_json(made))
    return plain


class _Builder:
    """Build the parts of the document that hang together: the channel, the operations and the components."""

    def __init__(self) -> None:
        self.messages: dict[str, Json] = {}
        self.operations: dict[str, Json] = {}
        self.security = _security_schemes()
        received: list[Any] = [*RESPONSES, *(handler.request for handler in handlers.values())]
        pushed = [protocol.ErrorMessage, protocol.Heartbeat, protocol.Publication, protocol.Gap]
        sent: list[Any] = [*RESPONSES.values(), *pushed]
        inputs: list[Any] = [(model, "validation", TypeAdapter(model)) for model in received]
        inputs += [(model, "serialization", TypeAdapter(model)) for model in (*sent, protocol.SiteResponse)]
        inputs += [(handler, "serialization", handler.answer) for handler in handlers.values()]
        inputs += [(topic, "serialization", topic._data) for topic in all_topics() if topic._data is not None]
        schemas, definitions = TypeAdapter.json_schemas(
            inputs, by_alias=True, ref_template="#/components/schemas/{model}", schema_generator=WireSchema
        )
        self.schemas: dict[Any, Json] = {key: schema for (key, _), schema in schemas.items()}
        self.definitions = definitions["$defs"]
        self.error = self.message("error", self.schemas[protocol.ErrorMessage], correlationId=_REQ_ID)

    def build(self, address: str) -> Json:
        """Return the parts, for a WebSocket at the path ``address``."""
        for request, response in RESPONSES.items():
            self.request(request.model_fields["type"].default, request, self.schemas[response])
        for handler in handlers.values():
            kind = {"const": protocol.response_type(handler.kind)}
            answer = _narrow(self.schemas[protocol.SiteResponse], type=kind, data=self.schemas[handler])
            self.request(handler.kind, handler.request, answer, **self.guard(handler, "Answered for"))
        for topic in all_topics():
            self.topic(topic)
        gap = self.message("gap", self.schemas[protocol.Gap])
        self.operation("gap", "send", gap, summary="Says that something published on a topic was lost on the way.")
        self.operation("error", "send", self.error, summary="Says what is wrong with a frame that is no request.")
        return {
            "channels": {"websocket": {"address": address, **_connection(list(self.messages))}},
            "operations": self.operations,
            "components": {
                "schemas": self.definitions,
                "messages": self.messages,
                "securitySchemes": self.security,
                "correlationIds": {"reqId": {"location": "$message.payload#/reqId"}},
            },
        }

    def request(self, kind: str, model: Any, answer: Json, **more: Any) -> None:
        """Add a request, and its answer of the schema ``answer``."""
        asked = self.message(kind, self.schemas[model], correlationId=_REQ_ID)
        answered = self.message(protocol.response_type(kind), answer, correlationId=_REQ_ID)
        reply = {"channel": _CHANNEL, "messages": [answered, self.error]}
        self.operation(kind, "receive", asked, reply=reply, **more)

    def topic(self, topic: Topic) -> None:
        """Add a topic, and what is published on it."""
        if topic.name == protocol.TOPIC_HEARTBEAT:
            message = self.message("heartbeat", self.schemas[protocol.Heartbeat])
        else:
            publication, data = self.schemas[protocol.Publication], self.schemas.get(topic, {})
            message = self.message(f"publication.{topic.name}", _narrow(publication, topic=_names(topic), data=data))
        kinds = topic.pattern.parameters.items()
        parameters = {name: {"type": kind, "description": CONVERTERS[kind].expects} for name, kind in kinds}
        about = {"title": topic.name, "x-topic": {"name": topic.name, "parameters": parameters}}
        self.operation(f"topic.{topic.name}", "send", message, **about, **self.guard(topic, "For"))

    def message(self, name: str, payload: Json, **more: Any) -> Json:
        """Add a message, and return a reference to it."""
        key = _free_key(name, self.messages)
        examples = [{"payload": from_json(protocol.encode(example))} for example in EXAMPLES if example.type == name]
        self.messages[key] = {"name": name, "payload": payload, **more, **({"examples": examples} if examples else {})}
        return {"$ref": f"{_CHANNEL['$ref']}/messages/{key}"}

    def operation(self, name: str, action: str, message: Json, **more: Any) -> None:
        """Add an operation."""
        key = _free_key(name, self.operations)
        self.operations[key] = {"action": action, "channel": _CHANNEL, "messages": [message], **more}

    def guard(self, guarded: Topic | Handler, words: str) -> Json:
        """Return who may subscribe or ask, as parts of an operation."""
        if guarded.public:
            return {"description": f"{words} everybody.", "x-access": {"kind": "public"}}
        if guarded.authorize is None:
            access, who = {"kind": "signed-in"}, "whoever is signed in"
        elif isinstance(guarded.authorize, str):
            access = {"kind": "permission", "permission": guarded.authorize}
            who = f"whoever has the permission `{guarded.authorize}`"
        else:
            access, who = {"kind": "authorize"}, "whom the site's own rule lets in"
        security = [{"$ref": f"#/components/securitySchemes/{name}"} for name in self.security]
        return {"description": f"{words} {who}.", "x-access": access, **({"security": security} if security else {})}


_CHANNEL = {"$ref": "#/channels/websocket"}
_REQ_ID = {"$ref": "#/components/correlationIds/reqId"}


def _narrow(schema: Json, **properties: Json) -> Json:
    return {"allOf": [schema], "properties": properties}


def _free_key(name: str, taken: Json) -> str:
    """Return a key for ``name`` of the characters that AsyncAPI allows, which is none of those ``taken``."""
    key = re.sub(r"[^a-zA-Z0-9._-]", "_", re.sub(r"\{(\w+)[^}]*\}", r"\1", name))
    keys = (key, *(f"{key}-{number}" for number in range(2, len(taken) + 2)))
    return next(key for key in keys if key not in taken)


def _names(topic: Topic) -> Json:
    """Return the schema of the names that belong to ``topic``."""
    if not topic.pattern.parameters:
        return {"const": topic.name}
    segments = [
        SEGMENTS[text[1:-1]] if text.startswith("{") else re.sub(r"[\\^$*+?()|/\[\]]", r"\\\g<0>", text)
        for text in topic.pattern.shape
    ]
    return {"pattern": "^" + r"\.".join(segments) + "$", "maxLength": MAX_NAME}


def _connection(messages: list[str]) -> Json:
    """Return what there is to say of the channel, but for its address."""
    offer = {"type": "string", "examples": [protocol.SUBPROTOCOL]}
    closes = {str(code): {"meaning": why, "client": client} for code, (why, client) in protocol.CLOSE_CODES.items()}
    for client, group in groupby(range(3000, 5000), protocol.client_reconnect):
        first, *_, last = group
        closes[f"{first}-{last}"] = {"meaning": "an operator's choice", "client": client}
    return {
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
        "bindings": {
            "ws": {"method": "GET", "headers": {"type": "object", "properties": {"Sec-WebSocket-Protocol": offer}}}
        },
        "x-subprotocol": protocol.SUBPROTOCOL,
        "x-close-codes": closes,
        "x-error-codes": ERRORS,
    }


def _security_schemes() -> Json:
    """Return the ways in which a client may say who it is."""
    schemes: Json = {}
    if apps.is_installed("django.contrib.auth") and apps.is_installed("django.contrib.sessions"):
        schemes["session"] = {"type": "httpApiKey", "in": "cookie", "name": django_settings.SESSION_COOKIE_NAME}
    if get_settings().AUTHENTICATE is not None:
        name, offer = "Sec-WebSocket-Protocol", f"Offered as `{TOKEN_OFFER}<token>`, beside `{protocol.SUBPROTOCOL}`."
        schemes["bearer"] = {"type": "http", "scheme": "bearer"}
        schemes["subprotocol"] = {"type": "httpApiKey", "in": "header", "name": name, "description": offer}
        schemes["query"] = {"type": "httpApiKey", "in": "query", "name": "token"}
    return schemes


@login_not_required
@require_safe
@cache_control(no_store=True)
def show(request: HttpRequest) -> JsonResponse:
    """
    Serve the document with ``DEBUG``, and otherwise to staff; for everybody else it is not there.

    What topics are called, and what is published on them, may be confidential. A site whose interface is public, or
    whose WebSockets are elsewhere than at ``/ws/``, serves the document with a view of its own, such as
    ``lambda request: JsonResponse(document(url="wss://example.org/live/"))``.
    """
    user = getattr(request, "user", None)
    if not (django_settings.DEBUG or (user is not None and user.is_active and getattr(user, "is_staff", False))):
        raise Http404
    scheme = "wss" if request.is_secure() else "ws"
    url = f"{scheme}://{request.get_host()}{get_script_prefix()}{PATH}"
    return JsonResponse(document(url=url), json_dumps_params={"indent": 2})
