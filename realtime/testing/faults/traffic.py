"""Faults of when frames come: out of order, in bursts, slowly, too many."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..frames import Action, Drop, Frame, Opcode, Wait, Write
from .base import FrameFault, Frames, Messages, Seconds, StreamFault, Tally, kinds_of
from .pipeline import Kind, Outgoing, Part, Steps

HELD = 1 << 20
"""Bytes that are held back before they are sent after all."""
OVERHEAD = 64
"""Bytes that a frame counts for besides its payload, so that empty ones count too."""


class Held:
    """Keep frames back, as many as may be kept."""

    def __init__(self) -> None:
        self.messages: list[Outgoing] = []
        self._bytes = 0

    def keep(self, message: Outgoing) -> None:
        """Keep one more."""
        self.messages.append(message)
        self._bytes += len(message.frame.payload) + OVERHEAD

    @property
    def full(self) -> bool:
        """Whether it keeps more bytes than it may."""
        return self._bytes > HELD

    def release(self) -> list[Outgoing]:
        """Return what was kept, in order."""
        messages, self.messages, self._bytes = self.messages, [], 0
        return messages


class Reorder(FrameFault):
    """
    Frames are held back until there are `window` of them, and sent in an order by chance that is not theirs; where
    fewer come, in theirs after `hold` seconds, or twice that.

    Goes by `reqId`, not by the order.
    """

    fault: Literal["reorder"] = "reorder"
    what: Messages = "answers"
    """What is struck."""
    window: Annotated[int, Field(ge=2, le=100)] = 2
    """How many change places."""
    hold: Annotated[float, Field(ge=0.01, le=60, allow_inf_nan=False)] = 1.0
    """Seconds after which they are sent although there are fewer."""

    @model_validator(mode="after")
    def _enough_to_reorder(self) -> Reorder:
        if self.times is not None and self.times < self.window:
            raise ValueError(f"times is {self.times}, and must be at least window, {self.window}: it counts frames")
        return self

    def part(self, number: int) -> Part:
        return _Reordering(self, self.dice(number))


class _Reordering(Part):
    def __init__(self, fault: Reorder, chance: Random) -> None:
        self._fault, self._chance, self._tally = fault, chance, Tally(fault, chance)
        self._held = Held()
        self._waited_for: Outgoing | None = None

    def outgoing(self, message: Outgoing) -> Steps:
        if message.kind == Kind.CLOSE:  # nothing may come after it
            return (*self._held.release(), message)
        if not self._fault.strikes(message.kind) or not self._tally.strikes():
            return (message,)
        self._held.keep(message)
        if len(self._held.messages) < self._fault.window and not self._held.full:
            return ()
        return self._shuffled(self._held.release())

    def tick(self) -> tuple[float, Steps]:
        # The first of those held was there at the last look already: it has waited long enough.
        first = self._held.messages[0] if self._held.messages else None
        if first is not None and first is self._waited_for:
            self._waited_for = None
            return 0.0, self._held.release()
        self._waited_for = first
        return self._fault.hold, ()

    def release(self) -> Steps:
        return self._held.release()

    def _shuffled(self, messages: list[Outgoing]) -> Steps:
        shift = self._chance.randrange(1, len(messages)) if len(messages) > 1 else 0
        return messages[shift:] + messages[:shift]


class Burst(StreamFault):
    """
    Frames are held back, and sent all at once every `seconds`, in order.

    Reads on while it works on what came, and has a bound on what it keeps.
    """

    fault: Literal["burst"] = "burst"
    what: Frames = "messages"
    """What is struck."""
    seconds: Annotated[float, Field(ge=0.01, le=60, allow_inf_nan=False)] = 1.0
    """Seconds from burst to burst, but for a connection that has more than a mebibyte waiting."""

    def part(self, number: int) -> Part:
        return _Bursting(self)


class _Bursting(Part):
    def __init__(self, fault: Burst) -> None:
        self._fault = fault
        self._held = Held()
        self._due = False

    def outgoing(self, message: Outgoing) -> Steps:
        if message.kind == Kind.CLOSE:
            return (*self._held.release(), message)
        if message.kind not in kinds_of(self._fault):
            return (message,)
        self._held.keep(message)
        return self._held.release() if self._held.full else ()

    def tick(self) -> tuple[float, Steps]:
        self._due = not self._due
        return (self._fault.seconds, ()) if self._due else (0.0, self._held.release())

    def release(self) -> Steps:
        return self._held.release()


class Bandwidth(StreamFault):
    """
    All bytes come at `bytes_per_second`, in pieces of a tenth of a second, whatever other faults make of them.

    Waits for the rest of a frame, and takes a frame that is still coming for a sign of life.
    """

    fault: Literal["bandwidth"] = "bandwidth"
    bytes_per_second: Annotated[int, Field(ge=100, le=1 << 30)] = 1 << 12
    """The rate."""

    def part(self, number: int) -> Part:
        return _Narrow(self.bytes_per_second)


class _Narrow(Part):
    def __init__(self, rate: int) -> None:
        self._rate = rate

    def written(self, write: Write) -> Sequence[Action]:
        data = write.data
        size = max(self._rate // 10, -(-len(data) // 1000))  # at most a thousand pieces
        pieces = [data[start : start + size] for start in range(0, len(data), size)]
        return [action for piece in pieces for action in (Write(piece), Wait(len(piece) / self._rate))]


class PingFlood(StreamFault):
    """
    `count` pings come by themselves, `rate` a second, from the handshake on.

    Answers them all, or at least the latest (RFC 6455, section 5.5.3), and does what it is there for meanwhile.
    """

    fault: Literal["ping-flood"] = "ping-flood"
    count: Annotated[int, Field(ge=1, le=10_000)] = 1000
    """How many."""
    rate: Annotated[float, Field(ge=0.1, le=1000, allow_inf_nan=False)] = 100.0
    """How many a second."""

    def part(self, number: int) -> Part:
        return _Flood(self)


class _Flood(Part):
    def __init__(self, fault: PingFlood) -> None:
        self._fault = fault
        self._left = fault.count

    def tick(self) -> tuple[float, Steps] | None:
        if not self._left:
            return None
        self._left -= 1
        return 1 / self._fault.rate, (_ping(self._fault.count - self._left),)


class DemandPongs(StreamFault):
    """
    A ping with a payload of its own every `interval` seconds; once one has gone without a pong with the same payload
    for `timeout` seconds, the TCP connection is dropped. A pong answers the pings before it too; one that nothing
    asked for counts for nothing.

    Answers each ping at once with its payload.
    """

    fault: Literal["demand-pongs"] = "demand-pongs"
    interval: Seconds = 20.0
    """Seconds from ping to ping."""
    timeout: Seconds = 60.0
    """Seconds that the client has; looked at with each ping."""
    reset: bool = False
    """RST instead of FIN."""

    def part(self, number: int) -> Part:
        return _Demand(self)


class _Demand(Part):
    def __init__(self, fault: DemandPongs) -> None:
        self._fault = fault
        self._active = True
        self._sent = self._answered = 0

    def incoming(self, frame: Frame) -> None:
        if frame.opcode == Opcode.PONG and frame.payload.isdigit() and len(frame.payload) < 20:
            number = int(frame.payload)
            if self._answered < number <= self._sent:
                self._answered = number

    def tick(self) -> tuple[float, Steps] | None:
        if not self._active:
            return None
        waited = round((self._sent - self._answered - 1) * self._fault.interval, 6)
        if waited >= self._fault.timeout:
            self._active = False
            return 0.0, (Drop(reset=self._fault.reset),)
        self._sent += 1
        return self._fault.interval, (_ping(self._sent),)


def _ping(number: int) -> Outgoing:
    return Outgoing(Frame(Opcode.PING, b"%d" % number), Kind.PING)
