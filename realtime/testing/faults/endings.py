"""Faults that end a connection, or one direction of it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from ...protocol import MAX_REASON
from .. import frames as actions
from ..frames import Frame, Opcode, close_frame
from .base import MOST, ConnectionFault, FrameFault, Frames, Seconds, Tally, kinds_of
from .pipeline import Kind, Outgoing, Part, Steps

PATIENCE = 0.1
"""Seconds between two looks at whether something is over."""


class EndingFault(ConnectionFault):
    """Be the base of faults that strike a connection once."""

    silences: ClassVar[bool] = True
    """Whether the server sends nothing afterwards."""
    deafens: ClassVar[bool] = False
    """Whether the server heeds nothing afterwards."""

    what: Frames = "messages"
    """What is counted."""
    after: Annotated[int, Field(ge=0, le=MOST)] = 0
    """How many are sent first; with 0 it strikes right after the handshake. Chance is asked again after each more."""

    def part(self, number: int) -> Part:
        return Ending(self, number)

    def end(self) -> Steps:
        """Return what is done."""
        raise NotImplementedError


class Ending(Part):
    """Wait until it is time, and end."""

    def __init__(self, fault: EndingFault, number: int) -> None:
        self._fault, self._chance = fault, fault.dice(number)
        self._seen = 0
        self.ended = False

    def opened(self) -> Steps:
        return self._end() if self._strikes() else ()

    def outgoing(self, message: Outgoing) -> Steps:
        if self.ended:
            return () if self._fault.silences else (message,)
        if message.kind not in kinds_of(self._fault):
            return (message,)
        self._seen += 1
        return (message, *self._end()) if self._strikes() else (message,)

    def incoming(self, frame: Frame) -> Steps | None:
        return () if self.ended and self._fault.deafens else None

    def _strikes(self) -> bool:
        return self._seen >= self._fault.after and self._chance.random() < self._fault.probability

    def _end(self) -> Steps:
        self.ended = True
        return self._fault.end()


class Mute(EndingFault):
    """
    The TCP connection stays open, and the server sends nothing any more, no beat, pong or close frame, and heeds
    nothing that comes.

    Notices by missing beats or pongs, does not wait for the close handshake, and comes back.
    """

    deafens: ClassVar[bool] = True
    fault: Literal["mute"] = "mute"

    def end(self) -> Steps:
        return ()


class StopReading(EndingFault):
    """
    The server takes nothing more from the socket, for `seconds` if given, so that the client's writes come to a halt
    once the buffers between them are full; it sends on.

    Puts a bound on what it keeps for sending and on the time a write may take; then drops the connection, comes back.
    """

    silences: ClassVar[bool] = False
    fault: Literal["stop-reading"] = "stop-reading"
    seconds: Seconds | None = None
    """After how long it reads on, to a tenth of a second; null for never."""

    def part(self, number: int) -> Part:
        return _Pause(self, number, self.seconds)

    def end(self) -> Steps:
        return (actions.StopReading(),)


class _Pause(Ending):
    def __init__(self, fault: StopReading, number: int, seconds: float | None) -> None:
        super().__init__(fault, number)
        self._left = seconds

    def tick(self) -> tuple[float, Steps] | None:
        if self._left is None:
            return None
        if not self.ended:
            return PATIENCE, ()
        if self._left > PATIENCE:
            self._left = round(self._left - PATIENCE, 6)
            return PATIENCE, ()
        left, self._left = self._left, None
        return left, (actions.ReadOn(),)


class CloseFrame(EndingFault):
    """
    A close frame with `code` and `reason`, whether legal or not (1005, 1006, 1015, 999 and 65535 are not); without a
    code, one whose payload is the single byte 0x03. The server sends nothing after it.

    Answers a legal code with the same code, and does what the table of close codes says; takes an illegal one for a
    protocol error, closes with 1002, and comes back.
    """

    fault: Literal["close-frame"] = "close-frame"
    code: Annotated[int, Field(ge=0, le=65_535)] | None = 1005
    """The code; null for a payload of one byte."""
    reason: str = ""
    """The reason, at most 123 bytes of UTF-8. Without a code there is none."""

    @field_validator("reason")
    @classmethod
    def _short_reason(cls, reason: str) -> str:
        if (size := len(reason.encode())) > MAX_REASON:
            raise ValueError(f"the reason has {size} bytes of UTF-8, at most {MAX_REASON} fit into a close frame")
        return reason

    def end(self) -> Steps:
        frame = Frame(Opcode.CLOSE, b"\x03") if self.code is None else close_frame(self.code, self.reason)
        return (Outgoing(frame, Kind.CLOSE),)


class HalfClose(EndingFault):
    """
    The server shuts down its sending side (FIN) without a close frame, and reads on.

    Takes the end of the stream for 1006, closes its side at once, and comes back.
    """

    fault: Literal["half-close"] = "half-close"

    def end(self) -> Steps:
        return (actions.HalfClose(),)


class Drop(EndingFault):
    """
    The TCP connection ends without a close frame, with FIN or with RST (`reset`); with `mid_frame` in the middle of
    the frame after those that were sent.

    Takes it for 1006, fails what was under way, throws half a frame away, and comes back with backoff and jitter.
    """

    fault: Literal["drop"] = "drop"
    reset: bool = False
    """RST instead of FIN."""
    mid_frame: bool = False
    """Whether the first half of one more frame is sent."""

    def part(self, number: int) -> Part:
        return _Cut(self, number, self.end()) if self.mid_frame else Ending(self, number)

    def end(self) -> Steps:
        return (actions.Drop(reset=self.reset),)


class _Cut(Ending):
    def __init__(self, fault: Drop, number: int, end: Steps) -> None:
        super().__init__(fault, number)
        self._last = end

    def opened(self) -> Steps:
        return ()

    def outgoing(self, message: Outgoing) -> Steps:
        if self.ended or message.kind not in kinds_of(self._fault):
            return () if self.ended else (message,)
        if not self._strikes():
            self._seen += 1
            return (message,)
        self.ended = True
        data = message.frame.encode()
        return actions.Write(data[: len(data) // 2]), *self._last


class NoCloseHandshake(FrameFault):
    """
    The client's close frame is neither answered nor heeded, and the TCP connection stays open.

    Waits a while for the answer, then drops the connection, and does not hang when it is told to stop.
    """

    kinds: ClassVar = frozenset({Kind.CLOSE})
    fault: Literal["no-close-handshake"] = "no-close-handshake"

    def part(self, number: int) -> Part:
        return _Unheeded(Tally(self, self.dice(number)))


class _Unheeded(Part):
    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def incoming(self, frame: Frame) -> Steps | None:
        return () if frame.opcode == Opcode.CLOSE and self._tally.strikes() else None
