"""
What was lost on the way: publishers number what they publish on a topic, and hubs look whether a number is missing.

A publisher is one event loop of one process, for each shard: only what is sent from there keeps its order.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict

NUMBERED_TOPICS = 10_000
"""Topics that a publisher keeps numbers for: those that it published on last."""
HEARD_PUBLISHERS = 200
"""Publishers of one topic that a hub keeps numbers for: those that it heard last."""


class Sequences:
    """Number the publications of one event loop, topic by topic."""

    def __init__(self) -> None:
        self._id = secrets.token_hex(6)
        self._begun = 0
        self._topics: OrderedDict[str, tuple[str, int]] = OrderedDict()

    def number(self, topic: str) -> tuple[str, int]:
        """
        Return the publisher's id and the next number, from 1 on.

        For a topic whose number was given up meanwhile that is another id, which hubs take for a new publisher's:
        none can tell then whether something is missing, but none believes so wrongly.
        """
        publisher, last = self._topics.pop(topic, ("", 0))
        if not publisher:
            self._begun += 1
            publisher = f"{self._id}.{self._begun}"
            if len(self._topics) >= NUMBERED_TOPICS:
                self._topics.popitem(last=False)
        self._topics[topic] = publisher, last + 1
        return publisher, last + 1


class Heard:
    """Know the last number that was heard of each publisher of one topic."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: OrderedDict[str, tuple[str, int]] | None = None
        """By what a publisher's ids begin with, its newest id and number: one that begins anew takes its own place."""

    def missing(self, publisher: str, number: int) -> int:
        """
        Take note of a publication, and return how many of the same publisher should have come before it.

        That is below 0 when this one comes too late: it, or one after it, was heard already. Of a publisher that was
        not heard before nothing is missing: it may have begun long before this hub listened.
        """
        if self._last is None:
            self._last = OrderedDict()
        key = publisher.partition(".")[0]
        known, last = self._last.pop(key, ("", 0))
        if known != publisher:
            last = number - 1
        self._last[key] = publisher, max(last, number)
        if len(self._last) > HEARD_PUBLISHERS:
            self._last.popitem(last=False)
        return number - last - 1

    def clear(self) -> None:
        """Forget everything: what is published from now on was not meant to be heard."""
        self._last = None
