"""What faults have in common: which connections and frames they strike, and how often."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from random import Random
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json, to_json

from ..frames import Handshake
from .pipeline import Kind, Outgoing, Part, Steps

MOST = 1_000_000
Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=MOST)]

Messages = Literal["answers", "beats", "publications", "messages"]
"""Which messages a fault strikes: ``messages`` are all of them. Pings, pongs and close frames are none."""
Frames = Literal[Messages, "everything"]

_ALL = frozenset(Kind)
_KINDS: dict[str, frozenset[Kind]] = {
    "answers": frozenset({Kind.ANSWER}),
    "beats": frozenset({Kind.BEAT}),
    "publications": frozenset({Kind.PUBLICATION}),
    "messages": _ALL - {Kind.PING, Kind.PONG, Kind.CLOSE},
    "everything": _ALL,
}


class Fault(BaseModel):
    """Be the base of all faults."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", use_attribute_docstrings=True)

    fault: str
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] = 0
    """Where chance starts from. The same seed strikes the same connection, by its number, in the same way."""
    probability: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 1.0
    """How likely it is each time."""

    @classmethod
    def name(cls) -> str:
        """Return what stands in ``fault``."""
        name: str = cls.model_fields["fault"].default
        return name

    @classmethod
    def on_the_wire(cls) -> str:
        """Return what goes over the wire: the first paragraph of the docstring."""
        return _paragraphs(cls)[0]

    @classmethod
    def good_client(cls) -> str:
        """Return what a good client does about it: the second paragraph of the docstring."""
        return _paragraphs(cls)[1]

    def dice(self, number: int) -> Random:
        """Return the chance that connection ``number`` has."""
        return Random(f"{self.seed}:{self.name()}:{number}")

    def concerns(self, number: int) -> bool:
        """Return whether anything of connection ``number``, counted from 1, may be struck."""
        raise NotImplementedError

    def part(self, number: int) -> Part:
        """Return what it does to connection ``number``."""
        raise NotImplementedError


def _paragraphs(kind: type[Fault]) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in inspect.cleandoc(kind.__doc__ or "").split("\n\n")]


class HandshakeFault(Fault):
    """Be the base of faults that strike handshakes."""

    after: Annotated[int, Field(ge=0, le=MOST)] = 0
    """How many connections go unharmed first."""
    times: Count | None = None
    """How many connections it may strike after those; null for all."""

    def concerns(self, number: int) -> bool:
        if number <= self.after or (self.times is not None and number > self.after + self.times):
            return False
        return self.dice(number).random() < self.probability

    def part(self, number: int) -> Part:
        return _AtHandshake(self.answer())

    def answer(self) -> Handshake:
        """Return what is done with the handshake."""
        raise NotImplementedError


class _AtHandshake(Part):
    def __init__(self, handshake: Handshake) -> None:
        self._handshake = handshake

    def handshake(self) -> Handshake:
        return self._handshake


class ConnectionFault(Fault):
    """Be the base of faults that strike open connections."""

    from_connection: Count = 1
    """The first connection of its session that it strikes."""
    connections: Count | None = None
    """How many connections it strikes from there on; null for all."""

    def concerns(self, number: int) -> bool:
        end = None if self.connections is None else self.from_connection + self.connections
        return number >= self.from_connection and (end is None or number < end)


class StreamFault(ConnectionFault):
    """Be the base of faults that strike all of a connection; chance is asked once for each."""

    def concerns(self, number: int) -> bool:
        return super().concerns(number) and self.dice(number).random() < self.probability


class FrameFault(ConnectionFault):
    """Be the base of faults that make something else of single frames."""

    kinds: ClassVar[frozenset[Kind] | None] = None
    """What it strikes, where that is not for its user to choose with a field ``what``."""

    after: Annotated[int, Field(ge=0, le=MOST)] = 0
    """How many of the frames that it could strike go unharmed first, on each connection."""
    times: Count | None = None
    """How many it strikes on each connection; null for all."""

    def strikes(self, kind: Kind) -> bool:
        """Return whether frames of this kind are struck."""
        return kind in (self.kinds if self.kinds is not None else kinds_of(self))

    def part(self, number: int) -> Part:
        return _OnFrames(self, number)

    def change(self, message: Outgoing, chance: Random) -> Steps:
        """Return what is done instead of sending ``message``."""
        raise NotImplementedError


def kinds_of(fault: Any) -> frozenset[Kind]:
    """Return what the field ``what`` of a fault stands for."""
    return _KINDS[fault.what]


class Tally:
    """Count what could be struck, and say whether this one is."""

    def __init__(self, fault: FrameFault, chance: Random) -> None:
        self._fault, self._chance = fault, chance
        self._seen = self._struck = 0

    def strikes(self) -> bool:
        """Count one more."""
        fault = self._fault
        self._seen += 1
        if self._seen <= fault.after or (fault.times is not None and self._struck >= fault.times):
            return False
        if fault.probability < 1 and self._chance.random() >= fault.probability:
            return False
        self._struck += 1
        return True


class _OnFrames(Part):
    def __init__(self, fault: FrameFault, number: int) -> None:
        self._fault, self._chance = fault, fault.dice(number)
        self._tally = Tally(fault, self._chance)

    def outgoing(self, message: Outgoing) -> Steps:
        if not self._fault.strikes(message.kind) or not self._tally.strikes():
            return (message,)
        return self._fault.change(message, self._chance)


def edited(message: Outgoing, change: Callable[[dict[str, Any]], None]) -> Outgoing:
    """Return ``message`` with its JSON object changed; as it is where it holds none."""
    try:
        content = from_json(message.frame.payload)
        if not isinstance(content, dict):
            return message
        change(content)
        return message.but(payload=to_json(content, inf_nan_mode="constants"))
    except ValueError:  # not JSON, or JSON with a number that Python does not write
        return message
