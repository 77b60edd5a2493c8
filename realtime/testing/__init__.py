"""
Tools for tests: of sites, and of WebSocket clients in whatever language. Nothing else in realtime imports them.

The test server and its control API are imported when they are first used, as they need ``demows[testing]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic_core import from_json

from .. import publishing
from ..protocol import CloseMessage

if TYPE_CHECKING:
    from .control import ControlServer as ControlServer
    from .namespace import ConnectionInfo as ConnectionInfo
    from .server import DemoWebsocketServer as DemoWebsocketServer
    from .server import Session as Session
    from .transcript import Transcript as Transcript

__all__ = [
    "Captured",
    "Captures",
    "CloseMessage",
    "ConnectionInfo",
    "ControlServer",
    "DemoWebsocketServer",
    "Session",
    "Transcript",
    "capture_publications",
]

_MODULES = {
    "ConnectionInfo": "namespace",
    "ControlServer": "control",
    "DemoWebsocketServer": "server",
    "Session": "server",
    "Transcript": "transcript",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'realtime.testing' has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


class Captured(NamedTuple):
    """Be something that was published: the topic's name, and the data as subscribers would get it."""

    topic: str
    data: Any


class Captures(list[Captured]):
    """List what was published, in order."""

    def append_payload(self, topic: str, payload: str) -> None:
        """Take note of a publication."""
        self.append(Captured(topic, from_json(payload)))

    def on(self, topic: str) -> list[Any]:
        """Return the data of what was published on ``topic``."""
        return [captured.data for captured in self if captured.topic == topic]


@contextmanager
def capture_publications() -> Iterator[Captures]:
    """
    Collect what is published for the length of a ``with`` block, in every thread, instead of sending it.

    Data is validated as ever. What waits for a commit is collected when that comes; in a ``TestCase``, whose
    transaction is never committed, use Django's ``captureOnCommitCallbacks(execute=True)`` inside the block.
    """
    captures = Captures()
    publishing.captures.append(captures)
    try:
        yield captures
    finally:
        publishing.captures.remove(captures)
