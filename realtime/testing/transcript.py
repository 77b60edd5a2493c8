"""The transcript: what went over the wire, both ways, to be looked at and to be asserted."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from itertools import islice
from typing import Any, Literal

from .frames import Frame, Opcode, apply_mask

ENTRIES = 20_000
"""Entries that a transcript keeps, if it is not told otherwise."""
SIZE = 32 << 20
"""Bytes that its entries may hold together."""
LARGEST = 1 << 25
"""Bytes that a frame may have for its rest to be waited for: one that claims more will never be whole."""
SHOWN = 10
"""Entries that a failed assertion shows."""
TIMEOUT = 5.0
"""Seconds that an assertion waits for what is expected."""

Direction = Literal["received", "sent"]
Expected = str | type[Any] | Callable[["Entry"], Any]
"""What is expected: a message type, a message class of ``realtime.protocol``, or a function of an entry."""


def decode_frames(data: bytes) -> tuple[list[Frame], bytes]:
    """Return the frames that ``data`` begins with, and the rest, in which there is none that is whole."""
    frames = []
    while len(data) >= 2:
        start, size = 2, data[1] & 0x7F
        if size > 125:
            width = 2 if size == 126 else 8
            size, start = int.from_bytes(data[start : start + width]), start + width
        mask = None
        if data[1] & 0x80:
            mask, start = data[start : start + 4], start + 4
        if len(data) < start + size:
            break
        payload = data[start : start + size]
        if mask is not None:
            payload = apply_mask(payload, mask)
        frames.append(Frame(data[0] & 0x0F, payload, bool(data[0] & 0x80), data[0] >> 4 & 7, mask))
        data = data[start + size :]
    return frames, data


class FrameReader:
    """Put together the frames that are written piece by piece."""

    def __init__(self) -> None:
        self._pieces = bytearray()
        self._needed = 0
        """Bytes that there must be for a whole frame: to look sooner would be to copy a long one again and again."""

    @property
    def waiting(self) -> bool:
        """Whether the last frame has begun and not ended."""
        return bool(self._pieces)

    def feed(self, data: bytes) -> tuple[list[Frame], bytes]:
        """Return the frames that end in ``data``, and bytes that will never be a frame, if there are any."""
        self._pieces += data
        if len(self._pieces) < self._needed:
            return [], b""
        frames, rest = decode_frames(bytes(self._pieces))
        self._pieces, self._needed = bytearray(rest), _size_of_first(rest)
        return frames, self.take() if self._needed > LARGEST else b""

    def take(self) -> bytes:
        """Return the bytes of a frame that has not ended, and begin anew."""
        rest, self._pieces, self._needed = bytes(self._pieces), bytearray(), 0
        return rest


def _size_of_first(data: bytes) -> int:
    """Return the length of the frame that ``data`` begins with, or as many bytes as it takes to know."""
    if len(data) < 2:
        return 2
    size, start = data[1] & 0x7F, 2
    if size > 125:
        start = 4 if size == 126 else 10
        if len(data) < start:
            return start
        size = int.from_bytes(data[2:start])
    return start + (4 if data[1] & 0x80 else 0) + size


@dataclass(frozen=True, slots=True)
class Entry:
    """
    Be one thing that happened on a connection.

    ``kind`` is ``handshake`` (a request or a response), ``frame``, ``bytes`` (what was sent and is no whole frame) or
    ``end`` (of the TCP connection, with who ended it in ``direction``: ``received`` if it was the client).
    """

    connection: str
    session: str
    direction: Direction
    kind: Literal["handshake", "frame", "bytes", "end"]
    seconds: float
    """Seconds since the TCP connection was opened."""
    at: float
    """When it was (seconds since the epoch)."""
    data: bytes = b""
    """The payload of a frame, without a mask; of all else the bytes."""
    frame: Frame | None = None
    note: str = ""

    @property
    def opcode(self) -> int | None:
        return None if self.frame is None else self.frame.opcode

    @property
    def text(self) -> str | None:
        """The payload as text, or None where it is none."""
        if self.kind == "frame" and self.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONTINUATION):
            return None
        try:
            return self.data.decode()
        except UnicodeDecodeError:
            return None

    @property
    def message(self) -> dict[str, Any] | None:
        """The message in a frame that holds one, or None."""
        if self.opcode not in (Opcode.TEXT, Opcode.BINARY):
            return None
        try:
            message = json.loads(self.data)
        except ValueError:
            return None
        return message if isinstance(message, dict) else None

    @property
    def code(self) -> int | None:
        """The code of a close frame: 1005 where it has none; None for all else."""
        if self.opcode != Opcode.CLOSE:
            return None
        return int.from_bytes(self.data[:2]) if len(self.data) >= 2 else 1005

    @property
    def reason(self) -> str | None:
        """The reason of a close frame, None for all else."""
        return None if self.opcode != Opcode.CLOSE else self.data[2:].decode(errors="replace")

    def to_dict(self) -> dict[str, Any]:
        """Return what there is to say as JSON; what is no text is in ``hex``."""
        fields: dict[str, Any] = {
            "connection": self.connection,
            "session": self.session,
            "direction": self.direction,
            "kind": self.kind,
            "seconds": round(self.seconds, 6),
            "at": datetime.fromtimestamp(self.at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "size": len(self.data),
        }
        if self.frame is not None:
            fields |= {"opcode": self.frame.opcode, "name": _name(self.frame.opcode), "final": self.frame.final}
            if self.frame.reserved:
                fields["reserved"] = self.frame.reserved
            if self.direction == "sent" and self.frame.mask is not None:
                fields["masked"] = True
        if self.code is not None:
            fields |= {"code": self.code, "reason": self.reason}
        elif self.text is not None:
            fields["text"] = self.text
        else:
            fields["hex"] = self.data.hex()
        if self.note:
            fields["note"] = self.note
        return fields

    def __str__(self) -> str:
        what = self.kind if self.frame is None else _name(self.frame.opcode)
        if self.code is not None:
            content = f"{self.code} {self.reason}"
        else:
            content = self.text if self.text is not None else self.data[:100].hex(" ")
        arrow = "<" if self.direction == "received" else ">"
        return f"{self.seconds:9.4f} #{self.connection} {arrow} {what} {content[:200]} {self.note}".rstrip()


def _name(opcode: int) -> str:
    return Opcode(opcode).name.lower() if opcode in set(Opcode) else f"opcode {opcode}"


class Log:
    """Keep the newest entries of all connections of a server, as far as there is room."""

    def __init__(self, entries: int = ENTRIES, size: int = SIZE) -> None:
        self.entries: deque[Entry] = deque()
        self.dropped = 0
        """How many entries there was no room for, which were the oldest."""
        self.added = 0
        """How many entries there have been."""
        self.cleared = 0
        """How often something was forgotten."""
        self.changed = threading.Condition()
        self._most, self._most_bytes = entries, size
        self._size = 0

    def add(self, entry: Entry, *, keep: bool = True) -> None:
        """Take note of an entry, which is kept unless it is of a session that was forgotten."""
        if not keep:
            return
        with self.changed:
            self.entries.append(entry)
            self.added += 1
            self._size += len(entry.data)
            while len(self.entries) > self._most or (self._size > self._most_bytes and len(self.entries) > 1):
                self._size -= len(self.entries.popleft().data)
                self.dropped += 1
            self.changed.notify_all()

    def clear(self, session: str | None = None) -> None:
        """Forget everything, or what belongs to one session."""
        with self.changed:
            left = [] if session is None else [entry for entry in self.entries if entry.session != session]
            self.entries = deque(left)
            self.cleared += 1
            self._size = sum(len(entry.data) for entry in left)
            if session is None:
                self.dropped = 0


class Transcript:
    """Be the transcript of a server, or of one session of it. It may be used from any thread."""

    def __init__(self, log: Log, session: str | None = None) -> None:
        self._log = log
        self._session = session

    @property
    def entries(self) -> list[Entry]:
        """Everything that is kept, the oldest first."""
        with self._log.changed:
            entries = list(self._log.entries)
        return entries if self._session is None else [entry for entry in entries if entry.session == self._session]

    @property
    def frames(self) -> list[Entry]:
        """The frames, both ways."""
        return [entry for entry in self.entries if entry.kind == "frame"]

    @property
    def received(self) -> list[Entry]:
        """The frames that clients sent."""
        return [entry for entry in self.frames if entry.direction == "received"]

    @property
    def sent(self) -> list[Entry]:
        """The frames that clients were sent."""
        return [entry for entry in self.frames if entry.direction == "sent"]

    @property
    def dropped(self) -> int:
        """How many entries of the whole server there was no room for any more, which were the oldest."""
        return self._log.dropped

    def clear(self) -> None:
        """Forget everything until now."""
        self._log.clear(self._session)

    def assert_received(
        self,
        expected: Expected,
        *,
        count: int = 1,
        connection: str | None = None,
        timeout: float = TIMEOUT,
        **fields: Any,
    ) -> Entry:
        """
        Return the ``count``th frame of a client that is as expected, and wait for it for ``timeout`` seconds.

        That is a message of the type ``expected`` (or of this class of ``realtime.protocol``) with these fields, or a
        frame for which ``expected(entry)`` is true. Raises ``AssertionError``, which shows what came instead.
        """
        __tracebackhide__ = True
        return self._assert("received", expected, count, connection, timeout, fields)

    def assert_sent(
        self,
        expected: Expected,
        *,
        count: int = 1,
        connection: str | None = None,
        timeout: float = TIMEOUT,
        **fields: Any,
    ) -> Entry:
        """Do the same for what clients were sent."""
        __tracebackhide__ = True
        return self._assert("sent", expected, count, connection, timeout, fields)

    def assert_close_received(
        self, code: int | None = None, *, connection: str | None = None, timeout: float = TIMEOUT
    ) -> Entry:
        """Return the close frame of a client, with this code if one is given, or raise ``AssertionError``."""

        def is_close(entry: Entry) -> bool:
            return entry.code is not None and code in (None, entry.code)

        is_close.__name__ = "a close frame" if code is None else f"a close frame with {code}"
        __tracebackhide__ = True
        return self._assert("received", is_close, 1, connection, timeout, {})

    def _assert(
        self,
        direction: Direction,
        expected: Expected,
        count: int,
        connection: str | None,
        timeout: float,
        fields: dict[str, Any],
    ) -> Entry:
        __tracebackhide__ = True  # pytest shows the test's own line
        matches = _matcher(expected, fields)
        end = time.monotonic() + timeout
        found: list[Entry] = []
        seen, cleared = 0, self._log.cleared
        while True:
            with self._log.changed:
                if cleared != self._log.cleared:  # what was seen is no more
                    found, seen, cleared = [], 0, self._log.cleared
                new = list(islice(self._log.entries, max(0, len(self._log.entries) - self._log.added + seen), None))
                seen = self._log.added
            frames = self._frames(new, direction, connection)
            found += [entry for entry in frames if matches(entry)]
            if len(found) >= count:
                return found[count - 1]
            with self._log.changed:
                if (left := end - time.monotonic()) <= 0:
                    break
                if seen == self._log.added and cleared == self._log.cleared:
                    self._log.changed.wait(left)
        frames = self._frames(self.entries, direction, connection)
        what = expected if isinstance(expected, str) else getattr(expected, "__name__", repr(expected))
        wanted = " ".join([str(what), *(f"{name}={value!r}" for name, value in fields.items())])
        times = "" if count == 1 else f"{count} times, but {len(found)} times, "
        raise AssertionError(f"not {direction} {times}within {timeout:g} s: {wanted}\n{self._tell(direction, frames)}")

    def _frames(self, entries: list[Entry], direction: Direction, connection: str | None) -> list[Entry]:
        return [
            entry
            for entry in entries
            if (entry.kind, entry.direction) == ("frame", direction)
            and self._session in (None, entry.session)
            and connection in (None, entry.connection)
        ]

    def _tell(self, direction: Direction, frames: list[Entry]) -> str:
        if not frames:
            others = [entry for entry in self.entries if entry.kind in ("handshake", "end")][-SHOWN:]
            lines = [f"nothing was {direction}, and this happened:", *map(str, others)]
            return "\n".join(lines if others else [f"nothing was {direction}: nobody has connected"])
        head = f"{len(frames)} frames were {direction}, the last of them:"
        return "\n".join([head, *map(str, frames[-SHOWN:])])

    def to_json(self, **options: Any) -> str:
        """Return everything as JSON; ``options`` are those of ``json.dumps``."""
        entries = [entry.to_dict() for entry in self.entries]
        return json.dumps({"dropped": self.dropped, "entries": entries}, **options)

    def to_html(self, title: str = "Transcript") -> str:
        """Return a page to be read, in which nothing is left of what clients may have meant for a browser."""
        rows = "\n".join(_rows(self.entries))
        dropped = f"<p>{self.dropped} older entries were dropped.</p>" if self.dropped else ""
        return PAGE.format(title=escape(title), dropped=dropped, rows=rows)


def _matcher(expected: Expected, fields: dict[str, Any]) -> Callable[[Entry], bool]:
    kind: str | None = None
    if isinstance(expected, str):
        kind = expected
    elif isinstance(expected, type) and hasattr(expected, "model_fields"):
        kind = str(getattr(expected.model_fields["type"].default, "value", expected.model_fields["type"].default))

    def matches(entry: Entry) -> bool:
        if kind is None and not (callable(expected) and expected(entry)):
            return False
        if kind is None and not fields:
            return True
        message = entry.message
        if message is None or (kind is not None and message.get("type") != kind):
            return False
        return all(name in message and message[name] == value for name, value in fields.items())

    return matches


def _rows(entries: Iterable[Entry]) -> Iterable[str]:
    for entry in entries:
        what = entry.kind if entry.frame is None else _name(entry.frame.opcode)
        flags = "" if entry.frame is None or entry.frame.final else " (not final)"
        content = f"{entry.code} {entry.reason}" if entry.code is not None else entry.text
        cells = [
            f"{entry.seconds:.4f}",
            datetime.fromtimestamp(entry.at, UTC).strftime("%H:%M:%S.%f"),
            entry.session,
            entry.connection,
            "client → server" if entry.direction == "received" else "server → client",
            what + flags,
            str(len(entry.data)),
            entry.data.hex(" ") if content is None else content,
            entry.note,
        ]
        yield f'<tr class="{entry.direction}">' + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 2em }}
table {{ border-collapse: collapse }}
td, th {{ padding: .2em .6em; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd }}
td:nth-child(8) {{ font-family: monospace; white-space: pre-wrap; overflow-wrap: anywhere; max-width: 60em }}
tr.sent {{ background: #f4f8ff }}
</style>
<h1>{title}</h1>
{dropped}
<table>
<thead><tr><th>Seconds<th>Time (UTC)<th>Session<th>Connection<th>Direction<th>What<th>Bytes<th>Content<th>Note</thead>
<tbody>
{rows}
</tbody>
</table>
</html>
"""
