"""
Publishing over HTTP, for services that are not Python.

A request carries a key as its bearer token, and one publication or a batch as JSON. Either everything in it is
published, in order, or, with a 4xx, nothing.
"""

from __future__ import annotations

import logging
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import ImproperlyConfigured, RequestDataTooBig
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from .exceptions import LayerUnavailable
from .logs import complain
from .models import PublishKey
from .publishing import publish_payload
from .topics import match_topic

logger = logging.getLogger("realtime.endpoint")

LARGEST_BATCH = 1000
"""Publications in one request at most."""


class Item(BaseModel):
    """Be one publication of a request."""

    model_config = ConfigDict(extra="forbid", strict=True)
    topic: str
    data: Any


class Batch(BaseModel):
    """Be a request of several publications."""

    model_config = ConfigDict(extra="forbid", strict=True)
    publications: list[Item] = Field(max_length=LARGEST_BATCH)


_BODY: TypeAdapter[Item | Batch] = TypeAdapter(Item | Batch)


class Refused(Exception):
    """Say with which status a request is refused, and why."""

    def __init__(self, status: int, code: str, message: str, index: int | None = None) -> None:
        super().__init__(status, code)
        self.status = status
        self.error = {"code": code, "message": message, **({} if index is None else {"index": index})}


@csrf_exempt
@login_not_required
@require_POST
def publish(request: HttpRequest) -> HttpResponse:
    """
    Publish what the body holds: ``{"topic": …, "data": …}``, or ``{"publications": [{"topic": …, "data": …}, …]}``.

    200 says how many were published. 400 is for a body or data that do not fit, 401 for a key that is missing or not
    accepted, 403 for a topic that it may not publish on, 404 for one that is not declared, 413 for too large a body
    and 503 when the channel layer or the database is down; each with a code, a message, and the index in a batch.
    """
    try:
        key = _key(request)
        items = _items(request)
        payloads = [_payload(key, item, index) for index, item in enumerate(items)]
        for number, (topic, payload, pattern) in enumerate(payloads):
            _send(topic, payload, pattern, number)
    except Refused as refusal:
        response = JsonResponse({"error": refusal.error}, status=refusal.status)
        if refusal.status == 401:
            response["WWW-Authenticate"] = "Bearer"
        vars(response)["_has_been_logged"] = True  # Django would log the client's mistakes, and mail each 503
        return response
    logger.debug("event=published_over_http key=%.100r publications=%d", key.name, len(payloads))
    return JsonResponse({"published": len(payloads)})


def _key(request: HttpRequest) -> PublishKey:
    scheme, _, text = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not text.strip():
        raise Refused(401, "KEY_MISSING", "send the key as 'Authorization: Bearer <key>'")
    try:
        key = PublishKey.find(text.strip())
    except (DatabaseError, ImproperlyConfigured) as error:
        complain(logger, logging.ERROR, "event=publish_key_unreadable", "error=%r", error)
        raise Refused(503, "DATABASE_UNAVAILABLE", "the key cannot be read at the moment") from None
    if key is None:
        raise Refused(401, "KEY_UNKNOWN", "the key is unknown, or was revoked")
    return key


def _items(request: HttpRequest) -> list[Item]:
    try:
        body = _BODY.validate_json(request.body)
    except RequestDataTooBig:
        raise Refused(413, "BODY_TOO_LARGE", "the body is larger than DATA_UPLOAD_MAX_MEMORY_SIZE allows") from None
    except ValidationError as error:
        raise Refused(400, "BAD_REQUEST", _explain_body(request.body, error)) from None
    return body.publications if isinstance(body, Batch) else [body]


def _explain_body(body: bytes, error: ValidationError) -> str:
    details = error.errors(include_url=False, include_input=False)
    if details[0]["type"] == "json_invalid":
        return f"the body is not valid JSON: {details[0]['ctx']['error']}"
    # The union complains of both its members; the batch's complaints are what matters where it is one.
    kind = "Batch" if b'"publications"' in body else "Item"
    mine = [detail for detail in details if detail["loc"][:1] == (kind,)] or details
    return "; ".join(f"{'.'.join(map(str, d['loc'][1:])) or 'body'}: {d['msg'].lower()}" for d in mine[:5])


def _payload(key: PublishKey, item: Item, index: int) -> tuple[str, str, str]:
    """Return the topic's name, the data as JSON, and the topic's pattern, once all is known to be good."""
    if not key.allows(item.topic):
        raise Refused(403, "TOPIC_FORBIDDEN", f"this key may not publish on {item.topic[:255]!r}", index)
    found = match_topic(item.topic)
    if found is None:
        raise Refused(404, "TOPIC_NOT_FOUND", f"no topic {item.topic[:255]!r} is declared", index)
    try:
        return item.topic, found[0].encode(item.data), found[0].name
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, d['loc'])) or 'data'}: {d['msg'].lower()}" for d in error.errors()[:5])
        raise Refused(400, "BAD_DATA", "; ".join(problems), index) from None
    except ValueError as error:
        raise Refused(400, "BAD_DATA", str(error), index) from None


def _send(topic: str, payload: str, pattern: str, index: int) -> None:
    try:
        publish_payload(topic, payload, pattern)
    except LayerUnavailable as error:
        raise Refused(503, "LAYER_UNAVAILABLE", f"{error}; {index} were published before", index) from None
