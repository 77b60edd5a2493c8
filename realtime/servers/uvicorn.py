"""
The wire on uvicorn, and what its lifespan needs.

uvicorn's own ``send`` waits while the client does not read, so a hub that awaits each client would be
stopped by one. This writes to the transport of uvicorn's protocol object instead, which is what ``send``
does in the end. uvicorn is never imported: where it does not run, nothing here is used.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

from ..logs import complain
from .base import HIGH_WATER, LINGER, Listener, is_text, payload_of
from .reader import PIECE, WIRE, Reader, keep_little_in_kernel

logger = logging.getLogger("realtime.servers")

PROTOCOL = ("uvicorn.protocols.websockets.websockets_sansio_impl", "WebSocketsSansIOProtocol")
USED_ATTRIBUTES = (
    *("close_sent", "close_timeout", "close_timer", "conn", "connection_lost", "data_received", "disconnected"),
    *(
        "handle_cont",
        "handle_ping",
        "handle_pong",
        "handshake_complete",
        "loop",
        "pause_writing",
        "queue",
        "read_paused",
    ),
    *("resume_writing", "send", "transport", "writable"),
)
NOT_UTF8 = "Invalid UTF-8 sequence received from client."
"""What uvicorn logs, with a traceback, for each text message that is not UTF-8."""
LAST_WORDS = 1.0
"""Seconds that the close frame has to leave for a client that answers no ping."""
GRACEFUL_SHUTDOWN = 5
"""Seconds that uvicorn waits for its tasks at shutdown, where the command line does not say."""


def protocol_of(receive: Any) -> Any:
    """Return the uvicorn protocol object that ``receive`` is a method of, or None where there is none we know."""
    protocol = getattr(receive, "__self__", None)
    kind = type(protocol)
    if (kind.__module__, kind.__qualname__) != PROTOCOL:
        return None
    if missing := [name for name in USED_ATTRIBUTES if not hasattr(protocol, name)]:
        logger.warning("event=unknown_uvicorn missing=%s effect=plain_asgi_send", ",".join(missing))
        return None
    return protocol


def is_own_send(send: Any, protocol: Any) -> bool:
    """Return whether ``send`` is uvicorn's own, unchanged by a middleware."""
    return inspect.ismethod(send) and send.__self__ is protocol


def hide_query(receive: Any) -> None:
    """Keep a connection's query string, in which a token may be, out of uvicorn's log; the application still has it."""
    protocol: Any = getattr(receive, "__self__", None)
    if type(protocol).__module__.startswith("uvicorn.protocols.websockets."):
        protocol.scope = {**protocol.scope, "query_string": b""}


def prepare(receive: Any, max_size: int) -> None:
    """Read nothing until the connection is accepted, and then no message of over ``max_size`` bytes, or less."""
    protocol = protocol_of(receive)
    if protocol is not None and not protocol.transport.is_closing():
        protocol.conn.max_message_size = min(max_size, protocol.conn.max_message_size or max_size)
        protocol.transport.pause_reading()


class UvicornWire(Reader):
    """Write to the transport of uvicorn's ``WebSocketsSansIOProtocol``."""

    def __init__(self, protocol: Any) -> None:
        super().__init__(protocol.queue)
        self.listener: Listener | None = None
        self._protocol = protocol
        self._transport = protocol.transport
        self._plain = not protocol.conn.extensions
        protocol.request = protocol.response = None  # of no use any more, and a tenth of what an idle connection takes
        _repair(type(protocol))
        self._transport.set_write_buffer_limits(high=HIGH_WATER)  # with TLS it would be half a megabyte
        keep_little_in_kernel(self._transport.get_extra_info("socket"))
        setattr(protocol, WIRE, self)

    @property
    def closed(self) -> bool:
        return bool(self._protocol.close_sent or self._protocol.disconnected or self._transport.is_closing())

    @property
    def gone(self) -> bool:
        return bool(self._protocol.disconnected)

    @property
    def buffered(self) -> int:
        # asyncio's TLS transport cannot be asked any more once it is closed.
        return 0 if self._protocol.disconnected else int(self._transport.get_write_buffer_size())

    def write(self, frame: bytes) -> None:
        protocol = self._protocol
        if protocol.close_sent or self._transport.is_closing() or not protocol.handshake_complete:
            return
        if self._plain:
            self._transport.write(frame)
        else:  # permessage-deflate was negotiated: each connection compresses on its own
            send = protocol.conn.send_text if is_text(frame) else protocol.conn.send_binary
            send(payload_of(frame))
            self._transport.write(b"".join(protocol.conn.data_to_send()))

    def close(self, code: int, reason: str) -> None:
        protocol = self._protocol
        if self.closed:
            return
        # `send` waits only for the client to read; closing must not, so the way is declared free for one step.
        was_writable = protocol.writable.is_set()
        protocol.writable.set()
        sending = protocol.send({"type": "websocket.close", "code": code, "reason": reason})
        try:
            sending.send(None)
        except StopIteration:
            pass
        except Exception as error:  # noqa: BLE001 - a code that may not be sent, or a client that has gone
            logger.debug("event=close_failed error=%r", error)
            self.abort()
        else:  # pragma: no cover - a future uvicorn that waits for something else
            sending.close()
            self.abort()
        if not was_writable:
            protocol.writable.clear()
        # uvicorn closes the transport when the client does not answer in time, which waits until the client
        # has read everything. Such a client may never read again.
        if protocol.close_timer is not None:
            protocol.close_timer.cancel()
            protocol.close_timer = protocol.loop.call_later(LINGER, self._transport.abort)
        self.expect_close()

    def abort(self) -> None:
        self._transport.abort()

    def _parse(self, data: bytes) -> None:
        if self._transport.is_closing():
            self.rest = b""
        else:
            type(self._protocol).data_received.__wrapped__(self._protocol, data)

    def _stop_reading(self) -> None:
        if not self._transport.is_closing():
            self._protocol.read_paused = False  # or else uvicorn's receive() would read on
            self._transport.pause_reading()

    def _start_reading(self) -> None:
        if not self._protocol.queue.empty() and not self._protocol.close_sent:
            self._protocol.read_paused = True  # uvicorn's receive() reads on when nothing waits any more
        elif not self._transport.is_closing():
            self._protocol.read_paused = False
            self._transport.resume_reading()


def install(receive: Any) -> None:
    """
    Mend how uvicorn stops and how it gives up a client, where ``receive`` is the lifespan's of a uvicorn.

    By default its shutdown waits for ever for a half-sent HTTP request, and fails for all when one client
    has said goodbye and does not read; a client that answers no ping is kept while it does not read.
    """
    config: Any = getattr(getattr(receive, "__self__", None), "config", None)
    if type(config).__module__ != "uvicorn.config":
        return
    if getattr(config, "timeout_graceful_shutdown", 0) is None:
        config.timeout_graceful_shutdown = GRACEFUL_SHUTDOWN
    protocol_class: Any = getattr(config, "ws_protocol_class", None)
    if (getattr(protocol_class, "__module__", ""), getattr(protocol_class, "__qualname__", "")) == PROTOCOL:
        _repair(protocol_class)


def _quiet(record: logging.LogRecord) -> bool:
    """Return whether uvicorn may log this: not a traceback for each client that sends what is not UTF-8."""
    if record.msg != NOT_UTF8:
        return True
    complain(logger, logging.WARNING, "event=invalid_utf8", "close=1007")
    return False


def _repair(protocol_class: Any) -> None:
    """Mend the class in place, unless that was done: where it knows of a wire, tell the wire what happens."""
    shutdown, keepalive_timeout = protocol_class.shutdown, protocol_class.keepalive_timeout
    connection_lost = protocol_class.connection_lost
    if hasattr(shutdown, "__wrapped__"):
        return

    @functools.wraps(shutdown)
    def shut_down_once(self: Any) -> None:
        if self.handshake_complete and self.conn.state.name != "OPEN":
            self.stop_keepalive()
            self.transport.close()
        else:
            shutdown(self)

    @functools.wraps(keepalive_timeout)
    def give_up(self: Any) -> None:
        wire = self.__dict__.get(WIRE)
        if wire is None or self.close_sent:
            keepalive_timeout(self)
        elif self.read_paused or not wire.at_ease:  # the answer may have come, and was not read yet
            self.pong_timer = self.loop.call_later(self.ping_timeout, self.keepalive_timeout)
        else:
            keepalive_timeout(self)
            self.loop.call_later(LAST_WORDS, self.transport.abort)

    @functools.wraps(connection_lost)
    def end(self: Any, error: Exception | None) -> None:
        if self.__dict__.get(WIRE) is not None and self.conn.close_rcvd is None:
            self.handshake_complete = False  # uvicorn says 1006 then, and sets this again
        connection_lost(self, error)

    logging.getLogger("uvicorn.error").addFilter(_quiet)
    data_received = protocol_class.data_received

    @functools.wraps(data_received)
    def take_in_pieces(self: Any, data: bytes) -> None:
        wire = self.__dict__.get(WIRE)
        if wire is None or (len(data) <= PIECE and wire.at_ease):
            data_received(self, data)
        else:
            wire.take(data)

    protocol_class.connection_lost = end
    protocol_class.shutdown = shut_down_once
    protocol_class.keepalive_timeout = give_up
    protocol_class.data_received = take_in_pieces
    for name, tell in (
        ("pause_writing", lambda listener, _: listener.congested()),
        ("resume_writing", lambda listener, _: listener.writable()),
        ("handle_ping", lambda listener, written: listener.controlled(written)),
        ("handle_pong", lambda listener, written: listener.controlled(written)),
        ("handle_cont", lambda listener, written: listener.controlled(written)),
    ):
        setattr(protocol_class, name, _telling(getattr(protocol_class, name), tell))


def _telling(method: Any, tell: Callable[[Listener, int], None]) -> Any:
    """Return ``method``, which then tells the wire's listener, and how many bytes it has added to the buffer."""

    @functools.wraps(method)
    def told(self: Any, *args: Any) -> None:
        wire = self.__dict__.get(WIRE)
        if wire is None or wire.listener is None:
            method(self, *args)
            return
        before = wire.buffered
        method(self, *args)
        if wire.listener is not None:
            tell(wire.listener, wire.buffered - before)

    return told
