"""Who may use the control API: programs and pages of this machine, and no page of any other."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .models import Error, ErrorCode, clean_text

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
LOOPBACK_ORIGIN = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
MAX_BODY = 1 << 20
"""Bytes that a body may have."""


class Guard:
    """
    Refuse requests that a page of another site may have caused, and bodies that are too large.

    Such a page has an ``Origin`` of its own, or has had its name lead to this machine, which ``Host`` shows. With
    ``addresses``, a host may also be any IP address, as no name has led to that.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str] = (), *, addresses: bool = False) -> None:
        self._app = app
        self._hosts = LOOPBACK | {host.lower() for host in hosts}
        self._addresses = addresses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = self._refused(Headers(scope=scope))
        if refused is None:
            try:
                body = await read_body(receive)
            except ClientDisconnect:  # whoever asked has not said all of it
                return
            if body is not None:
                await self._app(scope, replaying(body, receive), send)
                return
            refused = error_response(413, ErrorCode.TOO_LARGE, f"the body is larger than {MAX_BODY} bytes")
        await refused(scope, receive, send)

    def _refused(self, headers: Headers) -> JSONResponse | None:
        host = headers.get("host", "")
        if not self._is_known(host):
            return refusal(
                f"the request is for the host {host!r:.100}, and only those for localhost, 127.0.0.1 or [::1] are "
                "answered; others are named with --allow-host"
            )
        for origin in headers.getlist("origin"):
            if not LOOPBACK_ORIGIN.fullmatch(origin):
                return refusal(f"pages of {origin!r:.100} are refused, and only those of this machine are served")
        return None

    def _is_known(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self._hosts or (self._addresses and is_address(name))


async def read_body(receive: Receive) -> bytes | None:
    """Return the whole body of a request, or None if it is too large. Raises ``ClientDisconnect``."""
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
        if size > MAX_BODY:
            return None
    return b"".join(parts)


def replaying(body: bytes, receive: Receive) -> Receive:
    """Return what receives a body that was read already, and then what comes after it."""
    bodies = [body]

    async def receive_again() -> Message:
        if bodies:
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}
        return await receive()

    return receive_again


def is_address(name: str) -> bool:
    """Return whether ``name`` is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches what listens on ``host``."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def refusal(message: str) -> JSONResponse:
    return error_response(403, ErrorCode.FORBIDDEN, message)


def error_response(status: int, code: ErrorCode, message: str, headers: Any = None) -> JSONResponse:
    """Return an answer that says what was wrong."""
    content = Error(code=code, message=clean_text(message)).model_dump(mode="json")
    return JSONResponse(content, status_code=status, headers=headers)
