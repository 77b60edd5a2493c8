"""
Reading no faster than the application keeps up.

One read from a socket may bring ten thousand tiny frames. A server turns them into as many messages on a queue, which
takes forty times the memory, and holds up the event loop while it does. So what was read is given to the server's
parser piece by piece, and the next piece, and in the end the next read, when few messages are left on the queue.
"""

from __future__ import annotations

import asyncio
import os
import socket as _socket
from abc import ABC, abstractmethod
from typing import Any

MAX_UNREAD = 64
"""Messages on the queue above which nothing more is parsed, nor read from the socket."""
MAX_UNREAD_BYTES = 1 << 16
"""What those messages may come to, in bytes, before the same is done."""
PIECE = 4096
"""Bytes that the parser is given at once: at most 683 frames."""
PIECES_A_TURN = 2
"""Pieces that are parsed before others get a turn on the event loop."""
CLOSING_LIMIT = 1 << 14
"""Bytes that are parsed, in search of the client's close frame, after this side has sent its own."""
WIRE = "realtime_wire"
"""The attribute of a server's protocol object that holds its wire."""
UNSENT = 1 << 17
"""Bytes that the kernel takes for one client beyond what is on its way: by itself it takes megabytes."""


def keep_little_in_kernel(socket: Any) -> None:
    """Have the kernel take no more than ``UNSENT``, so that a client that does not read is noticed soon."""
    option = getattr(_socket, "TCP_NOTSENT_LOWAT", None)
    if socket is None or option is None:
        return
    try:
        with _socket.socket(fileno=os.dup(socket.fileno())) as same:  # uvloop's own socket objects set no options
            same.setsockopt(_socket.IPPROTO_TCP, option, UNSENT)
    except OSError:  # not TCP, or gone
        pass


class Reader(ABC):
    """
    Be the half of a server's wire that reads.

    A server's wire says how with ``_parse``, ``_stop_reading`` and ``_start_reading``, which may be called again and
    again, and gives the queue that the server puts messages on.
    """

    held = False
    """Whether reading is paused by whoever uses the wire."""
    rest: memoryview | bytes = b""
    """What was read and not parsed yet."""
    closing: int | None = None
    """How many bytes may still be parsed, once this side has closed the connection."""
    parsed = 0
    """Bytes that were parsed since no message waited."""
    _parsing = False
    _next_turn: asyncio.Handle | None = None

    def __init__(self, queue: asyncio.Queue[Any]) -> None:
        self._queue: Any = queue

    def pause_reading(self) -> None:
        self.held = True
        self._stop_reading()

    def resume_reading(self) -> None:
        self.held = False
        self.parse_on()

    def expect_close(self) -> None:
        """Read on after this side has closed, whoever paused that, for the client's own close frame is to be seen."""
        self.closing = CLOSING_LIMIT
        self.resume_reading()

    @property
    def at_ease(self) -> bool:
        """Whether what is read can be given to the parser as it is."""
        return not (self.rest or self.held) and self.closing is None

    def take(self, data: bytes) -> None:
        """Parse what the server has read, as far as that is possible now."""
        self.rest = memoryview(bytes(self.rest) + data if self.rest else data)
        if self.held:
            self._stop_reading()
        else:
            self.parse_on()

    def parse_on(self) -> None:
        """Parse more of what was read; if nothing is left of it, and few messages wait, read on."""
        if self._parsing:  # what was parsed has led here
            return
        for _ in range(PIECES_A_TURN):
            if not self.rest or self.held or self.crowded():
                break
            piece, self.rest = bytes(self.rest[:PIECE]), self.rest[PIECE:]
            self.parsed += len(piece)
            if self.closing is not None:
                self.closing -= len(piece)
                if self.closing < 0:  # it does not stop: the server will soon give it up
                    self.rest = b""
                    self._stop_reading()
                    return
            self._parsing = True
            try:
                self._parse(piece)
            finally:
                self._parsing = False
        if self.held:
            return
        crowded = self.crowded()
        if crowded or self.rest:
            # The queue calls this method of its own for each message that is taken from it; it is meant to be
            # overridden, and costs nothing while it is not.
            self._queue._get = self._take_message
            self._stop_reading()
            if not crowded and self._next_turn is None:
                self._next_turn = asyncio.get_running_loop().call_soon(self._after_a_turn)
        else:
            vars(self._queue).pop("_get", None)
            self._start_reading()

    def crowded(self) -> bool:
        """Return whether enough messages wait, by their number or by their size."""
        unread = self._queue.qsize()
        if not unread:
            self.parsed = 0
        return bool(unread >= MAX_UNREAD or self.parsed >= MAX_UNREAD_BYTES)

    def _take_message(self) -> Any:
        message = type(self._queue)._get(self._queue)
        if self._queue.qsize() < MAX_UNREAD // 2 and not self.held:
            self.parse_on()
        return message

    def _after_a_turn(self) -> None:
        self._next_turn = None
        if not self.held:
            self.parse_on()

    @abstractmethod
    def _parse(self, data: bytes) -> None: ...

    @abstractmethod
    def _stop_reading(self) -> None: ...

    @abstractmethod
    def _start_reading(self) -> None: ...
