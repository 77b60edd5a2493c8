"""Faults that delay, lose or spoil what the server sends."""

from __future__ import annotations

from random import Random
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator
from pydantic_core import from_json

from ..frames import Frame, Opcode, Wait, Write
from .base import FrameFault, Frames, Messages, edited
from .pipeline import Kind, Outgoing, Steps

LARGEST = 1 << 24
"""Bytes that a frame may be blown up to."""


class NoBeats(FrameFault):
    """
    Heartbeats are left out; all else is sent.

    Notices that beats are missing (after two or three intervals), takes the connection for dead and comes back.
    """

    kinds: ClassVar = frozenset({Kind.BEAT})
    fault: Literal["no-beats"] = "no-beats"

    def change(self, message: Outgoing, chance: Random) -> Steps:
        return ()


class NoPongs(FrameFault):
    """
    Pings of the client are not answered; all else is sent.

    Drops the connection when no pong came in time, and comes back.
    """

    kinds: ClassVar = frozenset({Kind.PONG})
    fault: Literal["no-pongs"] = "no-pongs"

    def change(self, message: Outgoing, chance: Random) -> Steps:
        return ()


class Delay(FrameFault):
    """
    A pause of `seconds`, and up to `jitter` more by chance, before a frame; what comes after waits behind it.

    Waits for each answer as long as its timeout says, and takes one that comes later for late, not for another's.
    """

    fault: Literal["delay"] = "delay"
    what: Frames = "answers"
    """What is struck."""
    seconds: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] = 0.5
    """The least that a frame waits."""
    jitter: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] = 0.0
    """The most that chance adds."""

    def change(self, message: Outgoing, chance: Random) -> Steps:
        return Wait(self.seconds + self.jitter * chance.random()), message


class Lose(FrameFault):
    """
    A frame is left out.

    Gives up on the request after its timeout, without giving up on the connection, and never mixes up the answers.
    """

    fault: Literal["lose"] = "lose"
    what: Frames = "answers"
    """What is struck."""

    def change(self, message: Outgoing, chance: Random) -> Steps:
        return ()


class Duplicate(FrameFault):
    """
    A frame is sent again, `copies` times, right behind itself.

    Ignores an answer to a request that it has an answer to.
    """

    fault: Literal["duplicate"] = "duplicate"
    what: Messages = "answers"
    """What is struck."""
    copies: Annotated[int, Field(ge=1, le=10)] = 1
    """How many are sent besides the first."""

    def change(self, message: Outgoing, chance: Random) -> Steps:
        return (message,) * (1 + self.copies)


class Truncate(FrameFault):
    """
    A message ends after `keep` bytes (half of them unless given), never within a character; the frame is legal.

    Drops the message, says so, and lives on, or closes with 1007 or 1008; its request times out.
    """

    fault: Literal["truncate"] = "truncate"
    what: Messages = "answers"
    """What is struck."""
    keep: Annotated[int, Field(ge=0, le=1 << 16)] | None = None
    """Bytes that are left; null for half."""

    def change(self, message: Outgoing, chance: Random) -> Steps:
        payload = message.frame.payload
        kept = payload[: len(payload) // 2 if self.keep is None else self.keep]
        return (message.but(payload=kept.decode(errors="ignore").encode()),)


class MissingReqId(FrameFault):
    """
    An answer comes without its `reqId`.

    Cannot know whose answer it is: leaves it, or takes it for that of the oldest request where it relies on the order.
    """

    kinds: ClassVar = frozenset({Kind.ANSWER})
    fault: Literal["missing-req-id"] = "missing-req-id"

    def change(self, message: Outgoing, chance: Random) -> Steps:
        return (edited(message, lambda content: content.pop("reqId", None)),)


class WrongReqId(FrameFault):
    """
    An answer comes with a `reqId` that the client did not send.

    Ignores an answer that it has no request for; its request times out.
    """

    kinds: ClassVar = frozenset({Kind.ANSWER})
    fault: Literal["wrong-req-id"] = "wrong-req-id"
    req_id: Annotated[str, Field(min_length=1, max_length=256)] = "wrong"
    """The `reqId` that is sent."""

    def change(self, message: Outgoing, chance: Random) -> Steps:
        return (edited(message, lambda content: content.update(reqId=self.req_id)),)


class UnknownType(FrameFault):
    """
    A message comes with a `type` that the protocol does not have, and is otherwise as it was.

    Ignores types that it does not know.
    """

    fault: Literal["unknown-type"] = "unknown-type"
    what: Messages = "answers"
    """What is struck."""
    type: Annotated[str, Field(max_length=256)] = "surprise"
    """The type that is sent."""

    def change(self, message: Outgoing, chance: Random) -> Steps:
        return (edited(message, lambda content: content.update(type=self.type)),)


class InvalidJson(FrameFault):
    """
    `text`, which is no JSON, comes instead of a message.

    Drops the message, says so, and lives on; its request times out. It does not end in an exception nobody sees.
    """

    fault: Literal["invalid-json"] = "invalid-json"
    what: Messages = "answers"
    """What is struck."""
    text: Annotated[str, Field(max_length=4096)] = '{"type":oops}'
    """The text that is sent."""

    @field_validator("text")
    @classmethod
    def _no_json(cls, text: str) -> str:
        try:
            from_json(text, allow_inf_nan=False)
        except (ValueError, TypeError):
            return text
        raise ValueError(f"{text!r} is valid JSON")

    def change(self, message: Outgoing, chance: Random) -> Steps:
        return (message.but(payload=self.text.encode()),)


class Binary(FrameFault):
    """
    A message comes in a binary frame instead of a text frame, with the same bytes.

    Reads it as JSON all the same, or closes with 1003.
    """

    fault: Literal["binary"] = "binary"
    what: Messages = "answers"
    """What is struck."""

    def change(self, message: Outgoing, chance: Random) -> Steps:
        return (message.but(opcode=Opcode.BINARY),)


class HugeFrame(FrameFault):
    """
    A message is blown up to `size` bytes with spaces at its end, in one frame; it is still valid JSON.

    Has a limit of its own, and closes with 1009 over it; under it, reads the message as if it were small.
    """

    fault: Literal["huge-frame"] = "huge-frame"
    what: Messages = "answers"
    """What is struck."""
    times: Annotated[int, Field(ge=1, le=16)] = 1  # never without bounds
    """How many it strikes on each connection."""
    size: Annotated[int, Field(ge=1, le=LARGEST)] = 1 << 21
    """Bytes of the payload; a message that is larger stays as it is."""

    def change(self, message: Outgoing, chance: Random) -> Steps:
        return (message.but(payload=message.frame.payload.ljust(self.size)),)


class HugeClaim(FrameFault):
    """
    Before a message comes the head of a text frame that claims `size` bytes; what follows is taken for its payload.

    Looks at the head alone, closes with 1009 at once, and reserves no memory for what is only claimed.
    """

    fault: Literal["huge-claim"] = "huge-claim"
    what: Messages = "answers"
    """What is struck."""
    size: Annotated[int, Field(ge=1 << 16, lt=1 << 63)] = 1 << 40
    """Bytes that the head claims. None of them are sent."""

    def change(self, message: Outgoing, chance: Random) -> Steps:
        return Write(b"\x81\x7f" + self.size.to_bytes(8)), message


class Fragment(FrameFault):
    """
    A message comes in `pieces` frames, the first with its opcode and the others as continuations, and with a ping
    between the first two unless `ping_between` is false. All of it is legal.

    Puts the message together, and answers the ping before the message has ended.
    """

    fault: Literal["fragment"] = "fragment"
    what: Messages = "answers"
    """What is struck."""
    pieces: Annotated[int, Field(ge=2, le=1000)] = 3
    """How many frames; some are empty where there are fewer bytes."""
    ping_between: bool = True
    """Whether a ping comes after the first."""
    pause: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 0.0
    """Seconds before each but the first."""

    def change(self, message: Outgoing, chance: Random) -> Steps:
        payload, last = message.frame.payload, self.pieces - 1
        cuts = [len(payload) * n // self.pieces for n in range(self.pieces + 1)]
        steps: list[Outgoing | Wait | Write] = []
        for n in range(self.pieces):
            if n and self.pause:
                steps.append(Wait(self.pause))
            opcode = message.frame.opcode if n == 0 else Opcode.CONTINUATION
            steps.append(message.but(opcode=opcode, payload=payload[cuts[n] : cuts[n + 1]], final=n == last))
            if n == 0 and self.ping_between:
                steps.append(Outgoing(Frame(Opcode.PING, b"between"), Kind.PING))
        return steps


class InvalidUtf8(FrameFault):
    """
    A text frame holds a byte 0xFF, right before its last byte, which UTF-8 does not have.

    Closes with 1007 (RFC 6455, section 8.1), and comes back with backoff.
    """

    fault: Literal["invalid-utf8"] = "invalid-utf8"
    what: Messages = "answers"
    """What is struck."""

    def change(self, message: Outgoing, chance: Random) -> Steps:
        payload = message.frame.payload
        return (message.but(opcode=Opcode.TEXT, payload=payload[:-1] + b"\xff" + payload[-1:]),)


class ReservedBits(FrameFault):
    """
    A frame comes with reserved bits set, though no extension was negotiated.

    Closes with 1002 (RFC 6455, section 5.2), and comes back with backoff.
    """

    fault: Literal["reserved-bits"] = "reserved-bits"
    what: Frames = "answers"
    """What is struck."""
    bits: Annotated[int, Field(ge=1, le=7)] = 4
    """RSV1 is 4, RSV2 is 2, RSV3 is 1, or a sum of them."""

    def change(self, message: Outgoing, chance: Random) -> Steps:
        return (message.but(reserved=self.bits),)


class Masked(FrameFault):
    """
    A frame comes masked, with four bytes by chance, which only clients may do.

    Closes with 1002 (RFC 6455, section 5.1), and comes back with backoff.
    """

    fault: Literal["masked"] = "masked"
    what: Frames = "answers"
    """What is struck."""

    def change(self, message: Outgoing, chance: Random) -> Steps:
        return (message.but(mask=chance.randbytes(4)),)
