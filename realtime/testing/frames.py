"""
WebSocket frames as bytes, legal or not, and what a server may do on a connection.

This is the language between the engine, which does the actions, and the faults, which change them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum


class Opcode(IntEnum):
    """Name the opcodes of RFC 6455, section 5.2."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


@dataclass(frozen=True, slots=True)
class Frame:
    """Be one frame. ``reserved`` holds the bits RSV1 to RSV3 as 4, 2 and 1; ``mask`` is four bytes, or None."""

    opcode: int
    payload: bytes = b""
    final: bool = True
    reserved: int = 0
    mask: bytes | None = None

    def encode(self) -> bytes:
        """Return the frame's bytes, whether or not a peer may send such a frame."""
        first = self.final << 7 | self.reserved << 4 | self.opcode
        length = len(self.payload)
        masked = 0x80 if self.mask is not None else 0
        if length < 126:
            head = struct.pack("!BB", first, masked | length)
        elif length < 1 << 16:
            head = struct.pack("!BBH", first, masked | 126, length)
        else:
            head = struct.pack("!BBQ", first, masked | 127, length)
        if self.mask is None:
            return head + self.payload
        return head + self.mask + apply_mask(self.payload, self.mask)


def apply_mask(payload: bytes, mask: bytes) -> bytes:
    """Return ``payload`` masked, or unmasked, which is the same (RFC 6455, section 5.3)."""
    size = len(payload)
    repeated = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload) ^ int.from_bytes(repeated)).to_bytes(size)


def close_frame(code: int | None, reason: str = "") -> Frame:
    """Return a close frame; without a code its payload is empty. ``code`` may be one that must not be sent."""
    return Frame(Opcode.CLOSE, b"" if code is None else struct.pack("!H", code) + reason.encode())


@dataclass(frozen=True, slots=True)
class Write:
    """Write these bytes as they are."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing further on this connection for so many seconds; what is to be sent meanwhile waits behind."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Drop:
    """End the TCP connection without a close frame: with FIN, or with RST."""

    reset: bool = False


@dataclass(frozen=True, slots=True)
class HalfClose:
    """Shut down the sending side, and read on."""


@dataclass(frozen=True, slots=True)
class StopReading:
    """Take nothing more from the socket, so that the client's writes come to a halt."""


@dataclass(frozen=True, slots=True)
class ReadOn:
    """Take from the socket again."""


Action = Write | Wait | Drop | HalfClose | StopReading | ReadOn


@dataclass(frozen=True, slots=True)
class Handshake:
    """
    Be what a server does with a handshake.

    With a ``status`` it refuses; else it accepts, with ``subprotocol`` where one is given. It does so after ``delay``
    seconds, or ``never``.
    """

    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    delay: float = 0.0
    never: bool = False
    subprotocol: str | None = None
