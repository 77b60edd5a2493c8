"""Tools for the tests of sites. Nothing else in realtime imports them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from pydantic_core import from_json

from .. import publishing


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
