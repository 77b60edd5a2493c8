"""What is answered when something is wrong: always a body of the same shape, and never a traceback."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import Response

from .guard import error_response
from .models import Error, ErrorCode

CODES = {
    403: ErrorCode.FORBIDDEN,
    404: ErrorCode.NOT_FOUND,
    405: ErrorCode.METHOD_NOT_ALLOWED,
    409: ErrorCode.CONFLICT,
    413: ErrorCode.TOO_LARGE,
    422: ErrorCode.INVALID,
}
DESCRIPTIONS = {
    403: "The request is for another host, or from a page of another machine.",
    404: "There is no such connection, topic or profile.",
    409: "The server is not in a state to do it; or nothing came in time.",
    413: "The body is too large.",
    422: "The body, or what the path or the query say, is not what is expected.",
}
COMMON = (403, 409, 413, 422)
"""What may be answered to any request."""
ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
MOST_TOLD = 5
"""How many things that are wrong are told of."""


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what the OpenAPI document says of the answers with these statuses."""
    return {status: {"model": Error, "description": DESCRIPTIONS[status]} for status in statuses}


def answers_of_a_page() -> dict[int | str, dict[str, Any]]:
    """Return the same for what is a page unless something is wrong: FastAPI takes all of its answers for pages."""
    return {status: {"content": ERROR, "description": DESCRIPTIONS[status]} for status in COMMON}


@contextmanager
def told() -> Iterator[None]:
    """Answer with what the controls say against something; their errors are sentences."""
    try:
        yield
    except ValidationError as error:
        raise HTTPException(422, sentence(error.errors(include_url=False))) from None
    except LookupError as error:
        raise HTTPException(404, str(error)) from None
    except ValueError as error:
        raise HTTPException(422, str(error)) from None
    except (RuntimeError, TimeoutError) as error:
        raise HTTPException(409, str(error)) from None
    except CancelledError:  # the engine's, of a request that was under way
        raise HTTPException(409, "the server was stopped") from None


def sentence(details: Sequence[Any]) -> str:
    """Return in a sentence what pydantic has against something."""
    parts = []
    for detail in details[:MOST_TOLD]:
        if detail["type"] == "json_invalid":
            return f"the body is not JSON: {detail['ctx']['error']}"
        where = ".".join(str(part) for part in detail["loc"])
        given = "" if detail["type"] == "missing" else f", but it is {detail['input']!r:.100}"
        message = detail["msg"].removeprefix("Value error, ")
        parts.append(f"{where or 'the body'}: {message[:1].lower()}{message[1:]}{given}"[:500])
    more = f"; and {len(details) - MOST_TOLD} more" if len(details) > MOST_TOLD else ""
    return "; ".join(parts) + more


def add_handlers(app: FastAPI, methods: Mapping[str, set[str]]) -> None:
    """Have ``app``, which has these methods by their paths, answer with ``Error`` whatever goes wrong."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return error_response(422, ErrorCode.INVALID, sentence(error.errors()))

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> Response:
        status, message = error.status_code, str(error.detail)
        headers: dict[str, str] = dict(error.headers or {})
        if status == 400:  # FastAPI says no more about JSON that nests too deeply
            status, message = 422, "the body cannot be parsed"
        elif status == 404 and message == "Not Found":
            message = f"there is nothing at {request.url.path!r}; /openapi.json says what there is"
        elif status == 405:
            headers["Allow"] = allowed(request, methods)
            message = f"{request.method} is not for {request.url.path!r}; legal are {headers['Allow']}"
        code = ErrorCode.TIMEOUT if status == 409 and " came within " in message else CODES.get(status)
        return error_response(status, code or ErrorCode.INVALID, message, headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return error_response(500, ErrorCode.INTERNAL, "the control API failed, which is a mistake in it")


def allowed(request: Request, methods: Mapping[str, set[str]]) -> str:
    """Return the methods that there are at the path of ``request``."""
    found = [each for path, each in methods.items() if re.fullmatch(_pattern(path), request.url.path)]
    return ", ".join(sorted(set[str]().union(*found))) or "GET"


def _pattern(path: str) -> str:
    return re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path))
