"""
Turn a Django site into a WebSocket topic server.

What is exported here is stable; it is imported when first used, as an app's package is imported before
its models can be.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .changes import publish_changes as publish_changes
    from .exceptions import RequestRefused as RequestRefused
    from .handlers import Caller as Caller
    from .handlers import request_handler as request_handler
    from .protocol import CloseMessage as CloseMessage
    from .publishing import aclose_connections as aclose_connections
    from .publishing import close_connections as close_connections
    from .topics import Topic as Topic
    from .topics import apublish as apublish
    from .topics import publish as publish

__version__ = "0.1.0"
__all__ = [
    "Caller",
    "CloseMessage",
    "RequestRefused",
    "Topic",
    "aclose_connections",
    "apublish",
    "close_connections",
    "publish",
    "publish_changes",
    "request_handler",
]

_MODULES = {
    "Caller": "handlers",
    "CloseMessage": "protocol",
    "RequestRefused": "exceptions",
    "Topic": "topics",
    "aclose_connections": "publishing",
    "apublish": "topics",
    "close_connections": "publishing",
    "publish": "topics",
    "publish_changes": "changes",
    "request_handler": "handlers",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'realtime' has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
