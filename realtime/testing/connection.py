"""
One TCP connection to the engine: the handshake, frames, and the application behind them.

What is received is parsed by websockets; what is sent is bytes of our own, since a server that misbehaves must be able
to send what no library would. All that goes out passes one queue of actions, in order.
"""

from __future__ import annotations

import asyncio
import codecs
import logging
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable
from urllib.parse import unquote

from websockets.exceptions import PayloadTooBig, ProtocolError
from websockets.frames import Close
from websockets.frames import Frame as ParsedFrame
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.streams import StreamReader

from ..conf import Settings
from ..hub import HUB
from ..servers import LINGER, WIRE, binary_frame, text_frame
from ..servers.base import HIGH_WATER, Listener
from .frames import (
    Action,
    Drop,
    Frame,
    HalfClose,
    Handshake,
    Opcode,
    ReadOn,
    StopReading,
    Wait,
    Write,
    close_frame,
)
from .stepped import Timer
from .transcript import Direction, Entry, FrameReader, decode_frames

if TYPE_CHECKING:
    from .engine import Engine
    from .namespace import Namespace

logger = logging.getLogger("realtime.testing")

DENIAL = "websocket.http.response"
"""The extension of ASGI by which a handshake is refused with a response of the application's own."""
MAX_UNREAD = 64
"""Messages that wait for the application above which nothing more is parsed."""
MAX_UNREAD_BYTES = 1 << 16
"""What those messages may come to, in bytes, before the same is done."""
FRAMES_A_TURN = 64
"""Frames that are parsed before others get a turn on the event loop."""
MAX_EARLY_BYTES = 1 << 16
"""Bytes behind a handshake that is not answered yet, above which nothing more is read."""
MOST_WAITING = 1 << 26
"""Bytes that may wait to be sent whoever let them: the hub closes slow clients of its own long before."""
OVERHEAD = 64
"""Bytes that an action counts for besides its data, so that empty ones count too."""
MAX_REASON = 123
"""Bytes of a reason that fit into a close frame."""

State = Literal["connecting", "open", "closing", "closed"]


class Interposer(Protocol):
    """
    Stand between the server and one connection, and say what is done instead of what would be done.

    Nothing here does anything by itself: it is told, and returns actions.
    """

    def handshake(self) -> Handshake | None:
        """Return how the handshake is answered, or None: as usual."""

    def opened(self) -> Sequence[Action]:
        """Return what is done right after the handshake was answered with 101, or as soon as this stands between."""

    def outgoing(self, frame: Frame) -> Sequence[Action]:
        """Return what is done in place of sending ``frame``, whatever kind of frame it is."""

    def incoming(self, frame: Frame) -> Sequence[Action] | None:
        """Return what is done in place of handling a client's frame, or None: it is handled as usual."""

    def tick(self) -> tuple[float, Sequence[Action]] | None:
        """Return in how many seconds something is to happen by itself, and what; asked again after each."""


@runtime_checkable
class Keeper(Protocol):
    """Be an interposer that holds back what it was to send."""

    def release(self) -> Sequence[Action]:
        """Return what is done to send all of that when something else stands between from now on."""


class Finish:
    """End the TCP connection once all that was to be sent before has been sent."""


@dataclass(frozen=True, slots=True)
class Arm:
    """Ask an interposer what happens next by itself, once all that it said before has been done."""

    interposer: Interposer


Step = Action | Finish | Arm


class ServerConnection(asyncio.Protocol):
    """Be one TCP connection; to the hub it is the wire."""

    def __init__(self, engine: Engine, peer: Sequence[Any] = ("", 0)) -> None:
        self.id = ""
        self.number = 0
        """Which of its session's connections it is, counted from 1; 0 while it is none."""
        self.namespace: Namespace | None = None
        self.state: State = "connecting"
        self.listener: Listener | None = None
        self.closed = False
        self.gone = False
        self.interposer: Interposer | None = None
        self.opened = time.time()
        """When the WebSocket was opened, or until then the TCP connection (seconds since the epoch)."""
        host, port = peer[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.path = self.query = self.user_agent = ""
        self._client = host, port
        self.subprotocol: str | None = None
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._began = time.monotonic()
        self._transport: Any = None
        self._reader = StreamReader()
        self._head: Generator[None, None, Request] | None = Request.parse(self._reader.read_line)
        self._request: Request | None = None
        self._frames = self._parse_frames()
        self._parsing = False
        self._next_turn: asyncio.Handle | None = None
        self._messages: deque[tuple[dict[str, Any], int]] = deque()
        self._unread = 0
        self._receiving: asyncio.Future[None] | None = None
        self._parts: list[bytes] | None = None
        self._parts_size = 0
        self._is_text = False
        self._decoder: Any = None
        self._held = self._deaf = self._failed = False
        self._actions: deque[Step] = deque()
        self._waiting: Timer | None = None
        self._queued = 0
        self._half_closed = False
        self._full = self._flushing = False
        self._written = FrameReader()
        self._drained: asyncio.Future[None] | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._ticking: Timer | None = None
        self._due: Sequence[Action] = ()
        """What is to happen by itself at once, as soon as the event loop comes to it."""
        self._slow: Timer | None = None
        self._task: asyncio.Task[None] | None = None
        self._answer: dict[str, Any] | None = None
        self._disconnect: dict[str, Any] | None = None
        self._ended_by_client = False
        self._early = 0

    # What the event loop tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transport.set_write_buffer_limits(high=HIGH_WATER)
        self._engine.connected(self)

    @property
    def _settings(self) -> Settings:
        """The settings of the session, in which a profile may have changed some."""
        return self._engine.settings if self.namespace is None else self.namespace.hub.settings

    def data_received(self, data: bytes) -> None:
        if self._failed or self._disconnect is not None:
            return
        self._reader.feed_data(data)
        if self._head is not None:
            self._read_head()
        self.read_on()
        if self.state == "connecting":
            self._early += len(data)
            if self._early > MAX_EARLY_BYTES:
                self._transport.pause_reading()

    def eof_received(self) -> None:
        self._ended_by_client = True
        self._disconnected(1006)

    def connection_lost(self, error: Exception | None) -> None:
        self.gone = self.closed = True
        self.state = "closed"
        self._ended_by_client |= error is not None
        self._disconnected(1006)
        for handle in (self._linger, self._next_turn):
            if handle is not None:
                handle.cancel()
        for timer in (self._ticking, self._waiting, self._slow):
            if timer is not None:
                timer.cancel()
        self._actions.clear()
        self._queued = 0
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._log_rest()
        how = "reset" if isinstance(error, ConnectionResetError) else "" if error is None else type(error).__name__
        self._log("received" if self._ended_by_client else "sent", "end", note=how)
        self._engine.disconnected(self)

    def pause_writing(self) -> None:
        self._full = True
        if self.listener is not None:
            self.listener.congested()

    def resume_writing(self) -> None:
        self._full = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self._flushing:
            self._flushing = False
            self._act()
        if self.listener is not None:
            self.listener.writable()

    # The handshake

    def _read_head(self) -> None:
        assert self._head is not None
        try:
            next(self._head)
        except StopIteration as done:
            self._head = None
            self._request = done.value
            self._requested(done.value)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a request
            self._head = None
            self._respond(HTTPStatus.BAD_REQUEST, body=f"{error}\n".encode())

    def _requested(self, request: Request) -> None:
        lines = [
            f"{getattr(request, 'method', 'GET')} {request.path}",
            *(f"{name}: {value}" for name, value in request.headers.raw_items()),
        ]
        self.path, _, self.query = request.path.partition("?")
        self.path = unquote(self.path)
        self.user_agent = request.headers.get_all("User-Agent")[0] if "User-Agent" in request.headers else ""
        response = ServerProtocol().accept(request)
        late = self._engine.stopping
        if response.status_code == HTTPStatus.SWITCHING_PROTOCOLS and not late:
            self._engine.enter(self)
        self._log("received", "handshake", "\n".join(lines).encode("utf-8", "surrogateescape"))
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            headers = [(name, value) for name, value in response.headers.raw_items() if name != "Content-Length"]
            self._respond(response.status_code, headers, bytes(response.body or b""))
            return
        if late:
            self._respond(HTTPStatus.SERVICE_UNAVAILABLE, [("Retry-After", "1")])
            return
        self._answer = {"accept": response.headers["Sec-WebSocket-Accept"], "fault": None}
        fault = self.interposer.handshake() if self.interposer is not None else None
        if fault is None:
            self._begin()
        elif not fault.never:
            self._answer["fault"] = fault
            if fault.delay:
                self._slow = self._call_later(fault.delay, partial(self._answer_otherwise, fault))
            else:
                self._answer_otherwise(fault)

    def _answer_otherwise(self, fault: Handshake) -> None:
        if fault.status is None:
            self._begin()
        else:
            self._respond(fault.status, fault.headers, fault.body)

    def _begin(self) -> None:
        """Let the application decide on the connection."""
        if not self.gone:
            self._task = self._loop.create_task(self._run(self._scope()))

    def _scope(self) -> dict[str, Any]:
        assert self._request is not None
        assert self.namespace is not None
        path, _, query = self._request.path.partition("?")
        headers = [
            (name.lower().encode("ascii", "replace"), value.encode("latin-1", "surrogateescape"))
            for name, value in self._request.headers.raw_items()
        ]
        offers = [value.decode("latin-1") for name, value in headers if name == b"sec-websocket-protocol"]
        return {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "ws",
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": headers,
            "client": self._client,
            "server": tuple(self._transport.get_extra_info("sockname")[:2]),
            "subprotocols": [token.strip() for offer in offers for token in offer.split(",")],
            "extensions": {DENIAL: {}, HUB: self.namespace.hub, WIRE: self},
        }

    async def _run(self, scope: dict[str, Any]) -> None:
        self._put({"type": "websocket.connect"}, 0)
        try:
            await self._engine.application(scope, self.receive, self.send)
        except Exception:
            logger.exception("event=application_failed connection=%s", self.id)
            if self.state == "connecting":
                self._respond(HTTPStatus.INTERNAL_SERVER_ERROR)
            else:
                self.close(1011, "")
        else:
            if self.state == "connecting":
                self._respond(HTTPStatus.INTERNAL_SERVER_ERROR)
            elif not self.closed:
                self.close(1000, "")

    def _respond(self, status: int, headers: Sequence[tuple[str, str]] = (), body: bytes = b"") -> None:
        """Answer with an HTTP response that is no handshake, and end the connection."""
        if self.state != "connecting":
            return
        self.state, self.closed = "closing", True
        names = {name.lower() for name, _ in headers}
        lines = [f"{name}: {value}" for name, value in headers]
        lines += [f"{name}: {value}" for name, value in (("Connection", "close"),) if name.lower() not in names]
        if "content-length" not in names:
            lines.append(f"Content-Length: {len(body)}")
        self._send_head(status, lines, body)
        self._disconnected(1006)
        self._finish()

    def _send_head(self, status: int, lines: Sequence[str], body: bytes = b"") -> None:
        phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else ""
        head = "\r\n".join([f"HTTP/1.1 {status} {phrase}", *lines, "", ""]).encode("latin-1", "replace") + body
        self._log("sent", "handshake", head)
        self.perform([Write(head)])

    def _accept(self, message: Any) -> None:
        assert self._answer is not None
        fault: Handshake | None = self._answer["fault"]
        self.subprotocol = message.get("subprotocol")
        lines = ["Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {self._answer['accept']}"]
        if fault is not None and fault.subprotocol is not None:
            self.subprotocol = fault.subprotocol
        if self.subprotocol:
            lines.append(f"Sec-WebSocket-Protocol: {self.subprotocol}")
        lines += [
            f"{name.decode('latin-1')}: {value.decode('latin-1')}" for name, value in message.get("headers") or ()
        ]
        if fault is not None:
            lines += [f"{name}: {value}" for name, value in fault.headers]
        self.state, self.opened = "open", time.time()
        self._send_head(HTTPStatus.SWITCHING_PROTOCOLS, lines)
        if self.interposer is not None:
            self.perform([*self.interposer.opened(), Arm(self.interposer)])
        self._engine.opened(self)
        self._loop.call_soon(self.read_on)

    # ASGI

    async def receive(self) -> dict[str, Any]:
        """Return the next event for the application."""
        while not self._messages:
            if self._disconnect is not None:
                return self._disconnect
            self._receiving = self._loop.create_future()
            await self._receiving
        message, size = self._messages.popleft()
        self._unread -= size
        if len(self._messages) < MAX_UNREAD // 2 and self.state != "connecting":
            self.read_on()
        return message

    async def send(self, message: Any) -> None:
        """Do what the application asks for."""
        kind = message["type"]
        if kind == "websocket.accept":
            if self.state == "connecting" and not self.gone:
                self._accept(message)
        elif kind == "websocket.send":
            text = message.get("text")
            self.write(binary_frame(message["bytes"]) if text is None else text_frame(text.encode()))
            if self._full and not self.gone:
                self._drained = self._loop.create_future()
                await self._drained
        elif kind == "websocket.close":
            if self.state == "connecting":
                self._respond(HTTPStatus.FORBIDDEN)
            else:
                self.close(message.get("code") or 1000, message.get("reason") or "")
        elif kind == f"{DENIAL}.start":
            self._denial = {**message, "body": b""}
        elif kind == f"{DENIAL}.body":
            self._denial["body"] += message.get("body", b"")
            if not message.get("more_body"):
                headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self._denial["headers"]]
                self._respond(self._denial["status"], headers, self._denial["body"])
        else:
            raise ValueError(f"{kind!r} is nothing that a WebSocket application sends")

    def _put(self, message: dict[str, Any], size: int) -> None:
        self._messages.append((message, size))
        self._unread += size
        self._wake()

    def _wake(self) -> None:
        if self._receiving is not None and not self._receiving.done():
            self._receiving.set_result(None)

    def _disconnected(self, code: int) -> None:
        """Tell the application of the end, once."""
        if self._disconnect is None:
            self._disconnect = {"type": "websocket.disconnect", "code": code, "reason": ""}
            self._wake()

    # The wire

    @property
    def buffered(self) -> int:
        if self.gone:
            return 0
        # That something waits here is no fault of the client's, which would be closed for it, until it is too much.
        waiting = self._queued if self._queued > self._settings.OUTBOX_LIMIT else 0
        return waiting + int(self._transport.get_write_buffer_size())

    def write(self, frame: bytes) -> None:
        if self.closed:
            return
        if self.interposer is not None:
            for each in decode_frames(frame)[0]:
                self.perform(self.interposer.outgoing(each))
        else:
            self.perform([Write(frame)])

    def close(self, code: int, reason: str) -> None:
        if self.closed or self.state == "connecting":
            return
        self.closed, self.state = True, "closing"
        try:
            frame = close_frame(code, reason.encode()[:MAX_REASON].decode(errors="ignore"))
        except struct.error:
            self.abort()
            return
        self.send_frame(frame)
        self._give_time()
        self.expect_close()

    def abort(self) -> None:
        self.drop()

    def drop(self, *, reset: bool = False) -> None:
        """End the TCP connection at once: with FIN, or with RST."""
        self.closed = True
        if self.gone or self._transport is None:
            return
        self._log_rest()
        sock = self._transport.get_extra_info("socket")
        with suppress(OSError):  # it has gone already
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                sock.shutdown(socket.SHUT_WR)
                discard(sock.fileno())  # or else the system would send a reset
        self._transport.abort()

    def pause_reading(self) -> None:
        self._held = True
        self._look_whether_to_read()

    def resume_reading(self) -> None:
        self._held = False
        self.read_on()

    def expect_close(self) -> None:
        self.resume_reading()

    # What is sent

    def send_frame(self, frame: Frame) -> None:
        """Send a frame, or do what stands in its place."""
        self.perform([Write(frame.encode())] if self.interposer is None else self.interposer.outgoing(frame))

    def perform(self, steps: Sequence[Step]) -> None:
        """Do these steps after those that wait."""
        for step in steps:
            self._queued += weight(step)
            self._actions.append(step)
        self._act()
        if not self.gone and self._queued + int(self._transport.get_write_buffer_size()) > MOST_WAITING:
            logger.warning("event=too_much_waits connection=%s", self.id)
            self.abort()

    def _act(self) -> None:
        while self._actions and self._waiting is None and not self._flushing and not self.gone:
            step = self._actions.popleft()
            self._queued -= weight(step)
            match step:
                case Write(data):
                    self._write(data)
                case Wait(seconds):
                    self._waiting = self._call_later(seconds, self._waited)
                case Drop(reset):
                    self._drop_when_written(step, reset=reset)
                case HalfClose():
                    self._end_of_writing()
                case StopReading():
                    self._deaf = True
                    self._look_whether_to_read()
                case ReadOn():
                    self._deaf = False
                    self._loop.call_soon(self.read_on)
                case Arm(interposer):
                    self._arm(interposer)
                case Finish():
                    self._transport.close()

    def _drop_when_written(self, step: Drop, *, reset: bool) -> None:
        """Drop the connection once the system has taken what was written before, or after a while."""
        if not self._transport.get_write_buffer_size():
            self.drop(reset=reset)
            return
        self._flushing = True
        self._actions.appendleft(step)
        self._queued += weight(step)
        self._transport.set_write_buffer_limits(high=0)  # to be told when nothing is left
        self._give_time()

    def _waited(self) -> None:
        self._waiting = None
        self._act()

    def _write(self, data: bytes) -> None:
        if self._half_closed or self._transport.is_closing():
            return
        self._transport.write(data)
        if self.state == "connecting" or (data[:5] == b"HTTP/" and not self._written.waiting):
            return
        frames, rest = self._written.feed(data)
        for frame in frames:
            self._log("sent", "frame", frame.payload, frame)
        if rest:
            self._log("sent", "bytes", rest)

    def _log_rest(self) -> None:
        """Log what was written of a frame that will not be written to its end."""
        if rest := self._written.take():
            self._log("sent", "bytes", rest)

    def _end_of_writing(self) -> None:
        if not self._half_closed and not self._transport.is_closing():
            self._log_rest()
            self._half_closed = True
            self._transport.write_eof()

    def _finish(self) -> None:
        """End the connection when all is sent, or after a while if the client does not read it."""
        self._give_time()
        self.perform([Finish()])

    def _give_time(self) -> None:
        if self._linger is None and not self.gone:
            self._linger = self._loop.call_later(LINGER, self.abort)

    # What happens by itself

    def _call_later(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Call ``call`` in so many seconds of the session's clock, which can be put forward."""
        assert self.namespace is not None
        return self.namespace.hub.call_later(seconds, call)

    def interpose(self, interposer: Interposer | None) -> None:
        """Put ``interposer`` in between from now on, in place of another; what waits is done nevertheless."""
        replaced, self.interposer = self.interposer, interposer
        due, self._due = self._due, ()
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None
        if self.state != "open":
            return
        self.perform([*due, *(replaced.release() if isinstance(replaced, Keeper) else ())])
        self.perform([ReadOn()] if interposer is None else [ReadOn(), *interposer.opened(), Arm(interposer)])

    def _arm(self, interposer: Interposer) -> None:
        if interposer is self.interposer and (tick := interposer.tick()) is not None:
            seconds, actions = tick
            self._due = () if seconds > 0 else actions
            self._ticking = self._call_later(seconds, partial(self._tick, [*actions, Arm(interposer)]))

    def _tick(self, steps: Sequence[Step]) -> None:
        self._due = ()
        self.perform(steps)

    # What is received

    def _crowded(self) -> bool:
        return len(self._messages) >= MAX_UNREAD or self._unread >= MAX_UNREAD_BYTES

    def _look_whether_to_read(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._deaf or self._held or self._crowded() or self._next_turn is not None:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _turn(self) -> None:
        self._next_turn = None
        self.read_on()

    def read_on(self) -> None:
        """Parse what was read, as far as the application keeps up, and read on."""
        if self._parsing or self.gone or self.state == "connecting":
            return
        self._parsing = True
        try:
            for _ in range(FRAMES_A_TURN):
                if self._deaf or self._held or self._failed or self._disconnect is not None or self._crowded():
                    break
                if self._transport.is_closing():
                    break
                frame = self._next_frame()
                if frame is None:
                    break
                self._handle(frame)
            else:
                if self._next_turn is None:
                    self._next_turn = self._loop.call_soon(self._turn)
        finally:
            self._parsing = False
        self._look_whether_to_read()

    def _parse_frames(self) -> Generator[Frame | None, None, None]:
        limit = self._settings.MAX_MESSAGE_SIZE
        while True:
            most = max(limit - self._parts_size, 125)
            parsed = yield from ParsedFrame.parse(self._reader.read_exact, mask=True, max_size=most)
            yield Frame(int(parsed.opcode), bytes(parsed.data), parsed.fin)

    def _next_frame(self) -> Frame | None:
        """Return the next frame that was received, or None while none is whole or what came is none."""
        try:
            return next(self._frames)
        except PayloadTooBig:
            self._fail(1009, "message too big")
        except ProtocolError as error:
            self._fail(1002, str(error))
        return None

    def _handle(self, frame: Frame) -> None:
        self._log("received", "frame", frame.payload, frame)
        if self.interposer is not None and (actions := self.interposer.incoming(frame)) is not None:
            self.perform(actions)
        elif frame.opcode == Opcode.PING:
            before = self.buffered
            if not self.closed:
                self.send_frame(Frame(Opcode.PONG, frame.payload))
            self._control(max(0, self.buffered - before))
        elif frame.opcode == Opcode.PONG:
            self._control(0)
        elif frame.opcode == Opcode.CLOSE:
            self._close_received(frame)
        else:
            self._add_part(frame)

    def _control(self, written: int) -> None:
        if self.listener is not None:
            self.listener.controlled(written)

    def _add_part(self, frame: Frame) -> None:
        if (self._parts is None) == (frame.opcode == Opcode.CONTINUATION):
            self._fail(1002, "expected a continuation" if self._parts is not None else "nothing to continue")
            return
        if self._parts is None:
            self._parts, self._parts_size = [], 0
            self._is_text = frame.opcode == Opcode.TEXT
            self._decoder = codecs.getincrementaldecoder("utf-8")()
        else:
            self._control(0)
        self._parts_size += len(frame.payload)
        if self._parts_size > self._settings.MAX_MESSAGE_SIZE:
            self._fail(1009, "message too big")
            return
        if frame.payload:
            self._parts.append(frame.payload)
        if self._is_text:
            try:
                self._decoder.decode(frame.payload, frame.final)
            except UnicodeDecodeError:
                self._fail(1007, "invalid UTF-8")
                return
        if frame.final:
            whole, self._parts = b"".join(self._parts), None
            size, self._parts_size = self._parts_size, 0
            content = {"text": whole.decode()} if self._is_text else {"bytes": whole}
            self._put({"type": "websocket.receive", **content}, size)

    def _close_received(self, frame: Frame) -> None:
        try:
            code = int(Close.parse(frame.payload).code)
        except ProtocolError as error:
            self._fail(1002, str(error))
            return
        except UnicodeDecodeError:
            self._fail(1007, "invalid UTF-8")
            return
        if not self.closed:
            self.closed, self.state = True, "closing"
            self.send_frame(Frame(Opcode.CLOSE, frame.payload))
        self._disconnected(code)
        self._finish()

    def _fail(self, code: int, reason: str) -> None:
        """Close because of what the client sent, of which nothing more is read (RFC 6455 §7.1.7)."""
        self._failed = True
        frame = close_frame(code, reason[:MAX_REASON])
        actions: Sequence[Action] = [Write(frame.encode())]
        if self.closed:
            actions = []
        elif self.interposer is not None:
            actions = self.interposer.outgoing(frame)
        mute = not self.closed and not actions
        self.closed, self.state = True, "closing"
        self._disconnected(code)
        if not mute:
            # To close at once would be a reset, which may overtake the close frame.
            self.perform([*actions, HalfClose()])
            self._give_time()

    # The application's task, and the transcript

    async def end(self) -> None:
        """Drop the connection, and wait until the application has ended."""
        self.drop()
        if self._task is not None and not self._task.done():
            self._disconnected(1006)
            await asyncio.wait([self._task], timeout=0.5)
            self._task.cancel()
            await asyncio.wait([self._task], timeout=0.5)

    def _log(
        self,
        direction: Direction,
        kind: Literal["handshake", "frame", "bytes", "end"],
        data: bytes = b"",
        frame: Frame | None = None,
        note: str = "",
    ) -> None:
        session = "" if self.namespace is None else self.namespace.name
        seconds = time.monotonic() - self._began
        entry = Entry(self.id, session, direction, kind, seconds, time.time(), data, frame, note)
        self._engine.log.add(entry, keep=self.namespace is None or not self.namespace.forgotten)


def weight(step: Step) -> int:
    """Return for how many bytes a step counts while it waits."""
    return OVERHEAD + (len(step.data) if isinstance(step, Write) else 0)


def discard(descriptor: int) -> None:
    """Read what a socket has received, as far as that is not ever more. Raises ``OSError``."""
    for _ in range(16):
        if not os.read(descriptor, 1 << 20):
            return
