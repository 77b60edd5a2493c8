"""The wire of a connection: what the server gives us to write to, close and hold back one client."""

from __future__ import annotations

from typing import Protocol


class Listener(Protocol):
    """Be told what happens on a wire, by calls that neither wait nor raise."""

    def congested(self) -> None:
        """Take note that the server holds more than it can write at once, and had better get no more."""

    def writable(self) -> None:
        """Take note that most of that has been written."""

    def controlled(self, written: int) -> None:
        """
        Take note that the client sent a frame that is no message: a ping, a pong, or a part of a message.

        ``written`` is how many bytes the server wrote by itself because of it.
        """


class Wire(Protocol):
    """
    Reach one client. Nothing here waits for the client, and nothing raises because it has gone.

    A frame is a whole unmasked WebSocket frame, as ``text_frame`` or ``binary_frame`` builds it, so that
    one broadcast can write the same bytes to everybody.
    """

    listener: Listener | None

    @property
    def closed(self) -> bool:
        """Whether this side has closed or dropped the connection."""

    @property
    def gone(self) -> bool:
        """Whether the TCP connection has ended; on plain ASGI, whether nothing waits to be sent."""

    @property
    def buffered(self) -> int:
        """How many bytes the server holds that the client's machine has not taken yet."""

    def write(self, frame: bytes) -> None:
        """Write ``frame``, unless the connection is closed or closing."""

    def close(self, code: int, reason: str) -> None:
        """Send a close frame; the connection ends when the client answers it, or after a few seconds."""

    def abort(self) -> None:
        """Drop the TCP connection without a close frame: the client sees 1006."""

    def pause_reading(self) -> None:
        """Take nothing more from the client's socket."""

    def resume_reading(self) -> None:
        """Read on."""


class ServerWire(Wire, Protocol):
    """Reach one client of a server whose insides we know."""

    def expect_close(self) -> None:
        """Read on, whoever paused that: this side closes, and the client's own close frame is to be seen."""


HIGH_WATER = 1 << 16
"""Bytes that a server holds for one client above which it is congested, unless the server says otherwise."""
LINGER = 5.0
"""Seconds that a client has, after this side has closed, to read what was sent and to say goodbye."""
TEXT, BINARY = b"\x81", b"\x82"
"""The first byte of a frame that is a whole text or binary message (RFC 6455 §5.2)."""


def text_frame(payload: bytes) -> bytes:
    """Return the unmasked, unfragmented WebSocket text frame that holds ``payload``, which is UTF-8."""
    return _frame(TEXT, payload)


def binary_frame(payload: bytes) -> bytes:
    """Return the unmasked, unfragmented WebSocket binary frame that holds ``payload``."""
    return _frame(BINARY, payload)


def _frame(first: bytes, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        return b"%b%c%b" % (first, size, payload)
    if size < 65536:
        return b"%b\x7e%b%b" % (first, size.to_bytes(2), payload)
    return b"%b\x7f%b%b" % (first, size.to_bytes(8), payload)


def is_text(frame: bytes) -> bool:
    """Return whether a frame that was built here holds text."""
    return frame[:1] == TEXT


def payload_of(frame: bytes) -> bytes:
    """Return the payload of a frame that was built here."""
    return frame[{126: 4, 127: 10}.get(frame[1], 2) :]
