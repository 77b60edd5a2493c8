"""
The servers: a ``Wire`` for each connection, and what each server needs to be mended in.

``wire_for`` picks the wire. A middleware that replaces ``send`` has a reason to see what is sent, so
behind one every frame goes through ``send``; Channels' session middleware is the exception, as it looks
at the handshake alone.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from channels.sessions import InstanceSessionWrapper

from . import daphne, uvicorn
from .asgi import AsgiWire, Send, WrappedWire
from .base import LINGER, ServerWire, Wire, binary_frame, text_frame
from .daphne import DENIAL, stop_hooks

__all__ = [
    "LINGER",
    "WIRE",
    "AsgiWire",
    "Wire",
    "binary_frame",
    "deny",
    "greet",
    "prepare",
    "software",
    "stop_hooks",
    "text_frame",
    "wire_for",
]


WIRE = "realtime.wire"
"""The extension in a connection's scope by which a server brings the wire; its ``send`` is a method of it."""

_software = ""


def software() -> str:
    """Return the server's name and version, such as ``uvicorn 0.54.0``, or nothing while that is not known."""
    return _software


def greet(scope: Any, receive: Any) -> None:
    """
    Take note of the server at a connection's beginning, and keep the query string out of its log.

    There may be a token in it.
    """
    global _software
    uvicorn.hide_query(receive)
    if not _software:
        kind = type(getattr(receive, "__self__", receive))
        package = "daphne" if daphne.protocol_of(scope) is not None else kind.__module__.partition(".")[0]
        try:
            _software = f"{package} {version(package)}"
        except PackageNotFoundError:
            pass


def prepare(scope: Any, receive: Any, max_size: int) -> None:
    """
    Have the server read nothing until the connection is accepted, and then no message of over ``max_size`` bytes.

    Servers other than Daphne and uvicorn keep to limits of their own.
    """
    daphne.prepare(scope, max_size)
    uvicorn.prepare(receive, max_size)


def wire_for(scope: Any, receive: Any, send: Send) -> Wire:
    """Return the wire for a connection. Call it once a connection, after it was accepted."""
    own_send = _without_session_wrapper(send)
    wire: ServerWire
    if (own := (scope.get("extensions") or {}).get(WIRE)) is not None:
        wire, is_own = own, getattr(own_send, "__self__", None) is own
    elif (protocol := daphne.protocol_of(scope)) is not None:
        wire, is_own = daphne.DaphneWire(protocol), daphne.is_own_send(own_send, protocol)
    elif (protocol := uvicorn.protocol_of(receive)) is not None:
        wire, is_own = uvicorn.UvicornWire(protocol), uvicorn.is_own_send(own_send, protocol)
    else:
        return AsgiWire(send)
    wire.resume_reading()
    return wire if is_own else WrappedWire(wire, send)


async def deny(scope: Any, send: Send, status: int, retry_after: int) -> bool:
    """Refuse a handshake with an HTTP status, and return whether the server can."""
    if DENIAL not in scope.get("extensions", {}):
        return False
    headers = [(b"retry-after", b"%d" % retry_after), (b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": f"{DENIAL}.start", "status": status, "headers": headers})
    await send({"type": f"{DENIAL}.body", "body": b""})
    return True


def _without_session_wrapper(send: Any) -> Any:
    while isinstance(wrapper := getattr(send, "__self__", None), InstanceSessionWrapper):
        send = wrapper.real_send
    return send
