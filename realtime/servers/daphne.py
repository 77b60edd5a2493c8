"""
The wire on Daphne, and the repairs that Daphne needs.

``install`` mends, in place and once a process, what Daphne does differently from its interface (measured
with daphne 4.2 and autobahn 26):

- a close reason is dropped (django/daphne#374), and the codes 1001 to 1014 raise;
- invalid UTF-8 and too big a frame end in a TCP reset instead of 1007 and 1009;
- an empty text is not sent, and one over the limit for incoming messages raises;
- a client that says goodbye but does not read stays for ever, and so does one that sends but does not read;
- what a client sends queues up without end when its application is slow;
- a handshake can only be refused with 403;
- a stop drops clients without a close frame, and raises while a handshake is under way.

Each repair looks first whether what it replaces is what it expects; where it is not, Daphne is left as
it is, and a warning says so.

Daphne is never imported from here, as importing it installs Twisted's reactor: where it runs it is
imported already.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import sys
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from ..protocol import CloseCode
from .base import LINGER, Listener, binary_frame, is_text, payload_of, text_frame
from .reader import PIECE, WIRE, Reader, keep_little_in_kernel

logger = logging.getLogger("realtime.servers")

SCOPE_KEY = "realtime"
DENIAL = "websocket.http.response"
"""The extension of ASGI by which a handshake is refused with a response of the application's own."""
CONTINUATION = 0
"""The opcode of a frame that continues a message (RFC 6455 §5.2)."""
STOP_TIMEOUT = 3.0
"""Seconds that applications have to end once they were cancelled at the server's stop."""

stop_hooks: list[Callable[[], Awaitable[None]]] = []
"""Awaited, all at once, when Daphne is told to stop, before it cancels its applications."""

EXPECTED = {
    "Server.create_application": "(self, protocol, scope)",
    "Server.listen_success": "(self, port)",
    "Server.kill_all_applications": "(self)",
    "WebSocketProtocol.onConnect": "(self, request)",
    "WebSocketProtocol.serverClose": "(self, code=None)",
    "WebSocketProtocol.handle_reply": "(self, message)",
    "WebSocketProtocol.onClose": "(self, wasClean, code, reason)",
    "WebSocketProtocol.onMessage": "(self, payload, isBinary)",
}
"""The methods that are replaced, with the signatures they must have."""
_MARK = "_realtime_repair"
_PORTS = "_realtime_ports"


def install() -> bool:
    """
    Repair Daphne in this process, if it is imported. Return whether it is repaired now.

    Doing so twice changes nothing.
    """
    server, ws_protocol = sys.modules.get("daphne.server"), sys.modules.get("daphne.ws_protocol")
    if server is None or ws_protocol is None:
        return False
    classes = {"Server": server.Server, "WebSocketProtocol": ws_protocol.WebSocketProtocol}
    if getattr(classes["Server"], _MARK, False):
        return True
    if differences := _differences(classes):
        logger.warning("event=unknown_daphne differences=%s effect=not_repaired", "; ".join(differences))
        return False
    _repair_server(classes["Server"])
    _repair_protocol(classes["WebSocketProtocol"])
    setattr(classes["Server"], _MARK, True)
    return True


def _differences(classes: dict[str, Any]) -> list[str]:
    """Return how Daphne and autobahn differ from what the repairs expect."""
    found = []
    for path, expected in EXPECTED.items():
        owner, name = path.split(".")
        method = vars(classes[owner]).get(name)
        signature = str(inspect.signature(method)) if inspect.isfunction(method) else "missing"
        if signature != expected:
            found.append(f"{path} is {signature}")
    protocol = classes["WebSocketProtocol"]
    frame = getattr(protocol, "sendCloseFrame", None)
    for name in (
        *("_closeConnection", "_sendAutoPing", "dataReceived", "failHandshake", "onAutoPingTimeout"),
        *("onMessageFrameBegin", "onPing", "onPong"),
    ):
        if not hasattr(protocol, name):
            found.append(f"autobahn's {name} is missing")
    if frame is None or not {"code", "reasonUtf8", "isReply"} <= set(inspect.signature(frame).parameters):
        found.append("autobahn's sendCloseFrame is another")
    return found


def _repair_server(server_class: Any) -> None:
    create_application = server_class.create_application

    @functools.wraps(create_application)
    def create_with_protocol(self: Any, protocol: Any, scope: dict[str, Any]) -> Any:
        if scope["type"] == "websocket":
            scope.setdefault("extensions", {}).update({SCOPE_KEY: protocol, DENIAL: {}})
            # Daphne unquotes the offers, so that what was never offered could be accepted.
            offers = [value.decode("latin-1") for name, value in scope["headers"] if name == b"sec-websocket-protocol"]
            scope["subprotocols"] = [token.strip() for offer in offers for token in offer.split(",")]
        return create_application(self, protocol, scope)

    listen_success = server_class.listen_success

    @functools.wraps(listen_success)
    def remember_port(self: Any, port: Any) -> None:
        listen_success(self, port)
        self.__dict__.setdefault(_PORTS, []).append(port)

    def kill_all_applications(self: Any) -> Any:
        """Let the clients go first, then cancel what still runs; half-open requests have no application yet."""
        from twisted.internet.defer import Deferred

        return Deferred.fromFuture(asyncio.ensure_future(_stop(self), loop=asyncio.get_event_loop()))

    server_class.create_application = create_with_protocol
    server_class.listen_success = remember_port
    server_class.kill_all_applications = kill_all_applications


async def _stop(server: Any) -> None:
    for port in getattr(server, _PORTS, ()):
        port.stopListening()  # clients that come back at once come to another server
    results = await asyncio.gather(*(hook() for hook in list(stop_hooks)), return_exceptions=True)
    for error in results:
        if isinstance(error, BaseException):
            logger.error("event=stop_hook_failed", exc_info=error)
    # All that is left, not applications alone: what the loop leaves behind would crash the interpreter's exit.
    running = asyncio.all_tasks() - {asyncio.current_task()}
    for task in running:
        task.cancel()
    if running:
        await asyncio.wait(running, timeout=STOP_TIMEOUT)


def _repair_protocol(protocol_class: Any) -> None:
    on_connect = protocol_class.onConnect
    handle_reply = protocol_class.handle_reply
    on_close = protocol_class.onClose

    @functools.wraps(on_connect)
    def connect_with_close_frames(self: Any, request: Any) -> Any:
        self.failByDrop = False  # answer 1007 and 1009 with close frames instead of a TCP reset
        # After 1 s, autobahn's own, a busy browser had not answered, and its page saw 1006 instead of the code.
        self.closeHandshakeTimeout = LINGER
        return on_connect(self, request)

    @functools.wraps(handle_reply)
    def reply_in_full(self: Any, message: dict[str, Any]) -> None:
        kind = message.get("type") if self.state == self.STATE_OPEN else None
        if message.get("type") == f"{DENIAL}.start":
            self.__dict__[DENIAL] = {**message, "body": b""}
        elif message.get("type") == f"{DENIAL}.body":
            self.__dict__[DENIAL]["body"] += message.get("body", b"")
            if not message.get("more_body"):
                deny(self, self.__dict__.pop(DENIAL))
        elif kind == "websocket.close":
            close(self, message.get("code") or CloseCode.NORMAL, message.get("reason") or "")
        elif kind == "websocket.send":
            text = message.get("text")
            write(self, binary_frame(message["bytes"]) if text is None else text_frame(text.encode()))
        else:
            handle_reply(self, message)

    def close_with_any_code(self: Any, code: int | None = None) -> None:
        # Daphne itself gives no code when a connection is a day old (--websocket_timeout): clients are to come back.
        close(self, code or CloseCode.GOING_AWAY, "")

    @functools.wraps(on_close)
    def closed_with_code(self: Any, wasClean: bool, code: int | None, reason: str | None) -> None:
        if self.failedByMe and self.localCloseCode:
            code = self.localCloseCode  # whatever the client makes of it
        on_close(self, wasClean, CloseCode.NO_STATUS if code is None else code, reason)

    on_message = protocol_class.onMessage

    @functools.wraps(on_message)
    def message_is_no_pong(self: Any, payload: bytes, isBinary: bool) -> None:
        # Daphne pings only who has sent nothing for a while: one that sends, and never reads, would stay for ever.
        last_ping = self.last_ping
        on_message(self, payload, isBinary)
        if WIRE in self.__dict__:
            self.last_ping = last_ping

    send_ping, ping_timeout = protocol_class._sendAutoPing, protocol_class.onAutoPingTimeout

    @functools.wraps(send_ping)
    def ping_once(self: Any) -> None:
        # A second ping would take the place of the first, whose timer would go on.
        if self.autoPingTimeoutCall is None:
            send_ping(self)

    @functools.wraps(ping_timeout)
    def give_up_if_read(self: Any) -> None:
        wire = self.__dict__.get(WIRE)
        if wire is None or (wire.at_ease and not wire.crowded()):
            ping_timeout(self)
        else:  # the answer may have come, and was not read yet
            timer = self.factory._batched_timer
            self.autoPingTimeoutCall = timer.call_later(self.autoPingTimeout, self.onAutoPingTimeout)

    protocol_class._sendAutoPing = ping_once
    protocol_class.onAutoPingTimeout = give_up_if_read

    data_received = protocol_class.dataReceived

    @functools.wraps(data_received)
    def take_in_pieces(self: Any, data: bytes) -> None:
        wire = self.__dict__.get(WIRE)
        if wire is None:
            data_received(self, data)
        elif len(data) <= PIECE and wire.at_ease:
            wire.parsed += len(data)
            data_received(self, data)
            if wire.crowded():
                wire.parse_on()
        else:
            wire.take(data)

    on_frame_begin, on_ping, on_pong = (
        protocol_class.onMessageFrameBegin,
        protocol_class.onPing,
        protocol_class.onPong,
    )

    @functools.wraps(on_frame_begin)
    def tell_of_part(self: Any, length: int) -> None:
        on_frame_begin(self, length)
        if self.current_frame.opcode == CONTINUATION:
            _tell(self, 0)

    @functools.wraps(on_ping)
    def tell_of_ping(self: Any, payload: bytes) -> None:
        on_ping(self, payload)
        _tell(self, len(payload) + 2)

    @functools.wraps(on_pong)
    def tell_of_pong(self: Any, payload: bytes) -> None:
        on_pong(self, payload)
        _tell(self, 0)

    protocol_class.onMessage = message_is_no_pong
    protocol_class.dataReceived = take_in_pieces
    protocol_class.onMessageFrameBegin = tell_of_part
    protocol_class.onPing = tell_of_ping
    protocol_class.onPong = tell_of_pong

    close_connection = protocol_class._closeConnection

    @functools.wraps(close_connection)
    def close_in_the_end(self: Any, abort: bool = False) -> None:
        # autobahn resets a connection whose client has just said goodbye as it should.
        abort = abort and not self.wasClean
        close_connection(self, abort)
        if not abort and buffered(self.transport):
            asyncio.get_running_loop().call_later(LINGER, self.transport.abortConnection)

    protocol_class._closeConnection = close_in_the_end
    protocol_class.onConnect = connect_with_close_frames
    protocol_class.handle_reply = reply_in_full
    protocol_class.serverClose = close_with_any_code
    protocol_class.onClose = closed_with_code


def _tell(protocol: Any, written: int) -> None:
    wire = protocol.__dict__.get(WIRE)
    if wire is not None and wire.listener is not None:
        wire.listener.controlled(written)


def prepare(scope: Any, max_size: int) -> None:
    """Read nothing until the connection is accepted, and then no message of over ``max_size`` bytes, or less."""
    protocol = protocol_of(scope)
    if protocol is not None:
        # By itself autobahn takes any message for the pong that it waits for.
        protocol.autoPingRestartOnAnyTraffic = False
        for limit in ("maxMessagePayloadSize", "maxFramePayloadSize"):
            setattr(protocol, limit, min(max_size, getattr(protocol, limit) or max_size))
        protocol.transport.pauseProducing()


def deny(protocol: Any, message: dict[str, Any]) -> None:
    """Refuse a handshake with a response of the application's, where Daphne and autobahn know a status alone."""
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in message.get("headers", ())]

    def fail_with_headers(reason: str, code: int = 400, responseHeaders: Any = None) -> None:
        status = message["status"]
        phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else ""
        protocol.wasNotCleanReason = phrase
        protocol.sendHttpErrorResponse(status, phrase, headers)
        protocol.sendData(message["body"])
        protocol.dropConnection(abort=False)

    if protocol.state == protocol.STATE_CONNECTING:
        protocol.failHandshake = fail_with_headers
        protocol.serverReject()


def close(protocol: Any, code: int, reason: str) -> None:
    """Send a close frame with any code and a reason; autobahn's own ``sendClose`` refuses most codes."""
    protocol.sendCloseFrame(code=int(code), reasonUtf8=reason.encode(), isReply=False)
    if (wire := protocol.__dict__.get(WIRE)) is not None:
        wire.expect_close()


def write(protocol: Any, frame: bytes) -> None:
    """Write a frame; autobahn's own ``sendMessage`` applies the limit for what clients send to what they are sent."""
    if protocol.state != protocol.STATE_OPEN:
        return
    if protocol._perMessageCompress is None and not protocol.send_queue:
        protocol.transport.write(frame)
    else:
        protocol.sendMessage(payload_of(frame), not is_text(frame))


def buffered(transport: Any) -> int:
    """Return how many bytes a Twisted transport holds."""
    transport = getattr(transport, "transport", transport)  # behind TLS, Twisted wraps the one with the buffer
    if transport.disconnected:
        return 0
    return int(len(transport.dataBuffer) - transport.offset + transport._tempDataLen)


def protocol_of(scope: Any) -> Any:
    """Return Daphne's protocol object of a connection, or None where Daphne (or its repair) is not there."""
    return scope.get("extensions", {}).get(SCOPE_KEY)


def is_own_send(send: Any, protocol: Any) -> bool:
    """Return whether ``send`` is Daphne's own, unchanged by a middleware."""
    return isinstance(send, functools.partial) and send.args == (protocol,) and send.func.__name__ == "handle_reply"


class DaphneWire(Reader):
    """
    Write to the Twisted transport below Daphne's protocol object.

    It takes the place of the HTTP channel that the connection began as, which has nothing left to produce, as the
    transport's producer: that is told when the buffer is full and when it has drained.
    """

    def __init__(self, protocol: Any) -> None:
        super().__init__(protocol.application_queue)
        self.listener: Listener | None = None
        self._protocol = protocol
        self._transport = protocol.transport
        self._transport.unregisterProducer()
        self._transport.registerProducer(self, True)
        keep_little_in_kernel(getattr(self._transport, "socket", None))
        setattr(protocol, WIRE, self)

    @property
    def closed(self) -> bool:
        return bool(self._protocol.state != self._protocol.STATE_OPEN)

    @property
    def gone(self) -> bool:
        return bool(getattr(self._transport, "transport", self._transport).disconnected)

    @property
    def buffered(self) -> int:
        return buffered(self._transport)

    def write(self, frame: bytes) -> None:
        write(self._protocol, frame)

    def close(self, code: int, reason: str) -> None:
        if not self.closed:
            close(self._protocol, code, reason)

    def abort(self) -> None:
        self._transport.abortConnection()

    def _parse(self, data: bytes) -> None:
        if self._protocol.state == self._protocol.STATE_CLOSED:
            self.rest = b""
        else:
            type(self._protocol).dataReceived.__wrapped__(self._protocol, data)

    def _stop_reading(self) -> None:
        self._transport.pauseProducing()

    def _start_reading(self) -> None:
        self._transport.resumeProducing()

    # As the transport's producer

    def pauseProducing(self) -> None:
        if self.listener is not None:
            self.listener.congested()

    def resumeProducing(self) -> None:
        if self.listener is not None:
            self.listener.writable()

    def stopProducing(self) -> None:
        pass
