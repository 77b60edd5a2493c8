"""
What a connection goes through on its way out: one part for each fault, in the order in which they were given.

No part looks at a clock or does any I/O: frames go in, actions come out, and the same frames give the same actions.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import islice
from typing import Protocol

from pydantic_core import from_json

from ...protocol import MessageType
from ..frames import Action, Drop, Frame, HalfClose, Handshake, Opcode, Write

MOST_STEPS = 4096
MOST_BYTES = 1 << 25
"""What one frame of the server may become when several faults multiply it; the rest is left out."""


class Kind(StrEnum):
    """Say what a frame that the server sends is to the client."""

    ANSWER = "answer"
    BEAT = "beat"
    PUBLICATION = "publication"
    OTHER = "other"
    PING = "ping"
    PONG = "pong"
    CLOSE = "close"


@dataclass(frozen=True, slots=True)
class Outgoing:
    """Be a frame on its way out. It keeps its ``kind`` when a fault has made something else of it."""

    frame: Frame
    kind: Kind

    def but(self, **changes: object) -> Outgoing:
        """Return the same with another payload, opcode, …"""
        return replace(self, frame=replace(self.frame, **changes))  # type: ignore[arg-type]


Step = Outgoing | Action
Steps = Sequence[Step]


class Interposer(Protocol):
    """
    Stand between the server and one connection.

    ``tick`` is asked once ``opened`` has been done, and again whenever what it said has been done; not in between.
    """

    def handshake(self) -> Handshake | None:
        """Return what to do with the handshake; None for what is usual."""

    def opened(self) -> Sequence[Action]:
        """Return what to do right after the 101."""

    def outgoing(self, frame: Frame) -> Sequence[Action]:
        """Return what to do instead of sending ``frame``, of whatever kind it is."""

    def incoming(self, frame: Frame) -> Sequence[Action] | None:
        """Return what to do instead of handling the client's ``frame``; None to handle it as usual."""

    def tick(self) -> tuple[float, Sequence[Action]] | None:
        """Return in how many seconds something is to happen by itself, and what; None for nothing ever."""


class Part:
    """Be what one fault does to one connection; this one does nothing."""

    def handshake(self) -> Handshake | None:
        return None

    def opened(self) -> Steps:
        return ()

    def outgoing(self, message: Outgoing) -> Steps:
        return (message,)

    def written(self, write: Write) -> Sequence[Action]:
        """Return what to do instead of writing bytes, which every part has had its say about."""
        return (write,)

    def incoming(self, frame: Frame) -> Steps | None:
        return None

    def tick(self) -> tuple[float, Steps] | None:
        return None

    def release(self) -> Steps:
        """Return what is held back, and hold it no longer."""
        return ()


class Pipeline:
    """Be the interposer of several parts. What one of them sends goes through those after it."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._sends = True
        self._dropped = False
        self._now = 0.0
        self._agenda: list[tuple[float, int, Steps]] = []
        self._to_ask = list(range(len(parts)))

    def handshake(self) -> Handshake | None:
        handshakes = [handshake for part in self._parts if (handshake := part.handshake())]
        if not handshakes:
            return None
        refusals = [handshake for handshake in handshakes if handshake.status is not None]
        return replace(
            refusals[0] if refusals else handshakes[0],
            delay=sum(handshake.delay for handshake in handshakes),
            never=any(handshake.never for handshake in handshakes),
            subprotocol=next((each.subprotocol for each in handshakes if each.subprotocol is not None), None),
        )

    def opened(self) -> Sequence[Action]:
        return [
            action for n, part in enumerate(self._parts) for action in self._actions(self._through(part.opened(), n))
        ]

    def outgoing(self, frame: Frame) -> Sequence[Action]:
        return self._actions(self._through([Outgoing(frame, kind_of(frame))], -1))

    def incoming(self, frame: Frame) -> Sequence[Action] | None:
        for n, part in enumerate(self._parts):
            if (steps := part.incoming(frame)) is not None:
                return self._actions(self._through(steps, n))
        return None

    def tick(self) -> tuple[float, Sequence[Action]] | None:
        for n in self._to_ask:
            if (next_one := self._parts[n].tick()) is not None:
                heapq.heappush(self._agenda, (self._now + next_one[0], n, next_one[1]))
        self._to_ask = []
        if self._dropped or not self._agenda:
            return None
        due, n, steps = heapq.heappop(self._agenda)
        seconds, self._now = round(due - self._now, 6), due
        self._to_ask = [n]
        return seconds, self._actions(self._through(steps, n))

    def release(self) -> Sequence[Action]:
        """Return what to do to send all that is held back, because something else takes this one's place."""
        actions: list[Action] = []
        for n, part in enumerate(self._parts):
            actions += self._actions(self._through(part.release(), n))
        return actions

    def _through(self, steps: Steps, number: int) -> Steps:
        for part in self._parts[number + 1 :]:
            results = (
                result for step in steps for result in (part.outgoing(step) if isinstance(step, Outgoing) else (step,))
            )
            steps = list(islice(results, MOST_STEPS))
        return steps

    def _actions(self, steps: Steps) -> list[Action]:
        """Return the actions for ``steps``, without what can no longer be done once sending has ended."""
        actions: list[Action] = []
        room = MOST_BYTES
        for step in steps:
            if self._dropped:
                break
            action = Write(step.frame.encode()) if isinstance(step, Outgoing) else step
            if isinstance(action, Write):
                room -= len(action.data)
                if self._sends and room >= 0:
                    actions += self._written(action)
                continue
            if isinstance(action, HalfClose):
                if not self._sends:
                    continue
                self._sends = False
            self._dropped = isinstance(action, Drop)
            actions.append(action)
        return actions

    def _written(self, write: Write) -> Iterable[Action]:
        actions: list[Action] = [write]
        for part in self._parts:
            actions = [
                result
                for action in actions
                for result in (part.written(action) if isinstance(action, Write) else (action,))
            ]
        return actions


def kind_of(frame: Frame) -> Kind:
    """Return what ``frame`` is, as the server made it."""
    if frame.opcode not in (Opcode.TEXT, Opcode.BINARY):
        return _CONTROL.get(frame.opcode, Kind.OTHER)
    try:
        content = from_json(frame.payload)
    except ValueError:
        return Kind.OTHER
    kind = content.get("type") if isinstance(content, dict) else None
    if not isinstance(kind, str):
        return Kind.OTHER
    if kind.endswith("_response") or kind == MessageType.ERROR:
        return Kind.ANSWER
    return _PUSHED.get(kind, Kind.OTHER)


_CONTROL: dict[int, Kind] = {Opcode.PING: Kind.PING, Opcode.PONG: Kind.PONG, Opcode.CLOSE: Kind.CLOSE}
_PUSHED: dict[str, Kind] = {
    MessageType.HEARTBEAT: Kind.BEAT,
    MessageType.PUBLICATION: Kind.PUBLICATION,
    MessageType.GAP: Kind.PUBLICATION,
}
