"""
The servers: a ``Wire`` for each connection, and what each server needs to be mended in.

``wire_for`` picks the wire. A middleware that replaces ``send`` has a reason to see what is sent, so
behind one everything goes through ``send``; Channels' session middleware is the exception, as it looks
at the handshake alone.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from channels.sessions import InstanceSessionWrapper

from . import daphne, uvicorn
from .asgi import AsgiWire, Send
from .base import Wire, binary_frame, text_frame
from .daphne import stop_hooks

__all__ = ["AsgiWire", "Wire", "binary_frame", "greet", "software", "stop_hooks", "text_frame", "wire_for"]


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


def wire_for(scope: Any, receive: Any, send: Send) -> Wire:
    """Return the wire for a connection. Call it once a connection, after it was accepted."""
    own_send = _without_session_wrapper(send)
    protocol = daphne.protocol_of(scope)
    if protocol is not None and daphne.is_own_send(own_send, protocol):
        return daphne.DaphneWire(protocol)
    protocol = uvicorn.protocol_of(receive)
    if protocol is not None and uvicorn.is_own_send(own_send, protocol):
        return uvicorn.UvicornWire(protocol)
    return AsgiWire(send)


def _without_session_wrapper(send: Any) -> Any:
    while isinstance(wrapper := getattr(send, "__self__", None), InstanceSessionWrapper):
        send = wrapper.real_send
    return send
