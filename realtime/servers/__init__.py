"""
The servers: a ``Wire`` for each connection, and what each server needs to be mended in.

``wire_for`` picks the wire. A middleware that replaces ``send`` has a reason to see what is sent, so
behind one everything goes through ``send``; Channels' session middleware is the exception, as it looks
at the handshake alone.
"""

from __future__ import annotations

from typing import Any

from channels.sessions import InstanceSessionWrapper

from . import daphne, uvicorn
from .asgi import AsgiWire, Send
from .base import Wire, binary_frame, text_frame
from .daphne import stop_hooks

__all__ = ["AsgiWire", "Wire", "binary_frame", "stop_hooks", "text_frame", "wire_for"]


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
