"""The connection's side: a consumer that reads requests, answers them in order, and leaves delivery to the hub."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from contextvars import Context
from typing import Any

from channels.consumer import AsyncConsumer
from channels.generic.websocket import AsyncJsonWebsocketConsumer
from pydantic_core import to_json

from .connection import Connection
from .exceptions import RequestError, RequestRefused
from .handlers import Caller, handlers
from .handshake import Identity, identify, origin_allowed, peer_of, user_id_of
from .hub import hub_of
from .limits import DRAINING, Count, Refusal, address_of, cause_of
from .link import JOIN_TIMEOUT, Group
from .logs import LogContext, complain, log_context
from .protocol import (
    SUBPROTOCOL,
    TOPIC_HEARTBEAT,
    AnyRequest,
    CloseCode,
    EchoRequest,
    EchoResponse,
    ErrorCode,
    ErrorMessage,
    ErrorMessageData,
    Message,
    Response,
    SiteRequest,
    SiteResponse,
    Status,
    SubscribeRequest,
    SubscribeResponse,
    UnsubscribeRequest,
    UnsubscribeResponse,
    encode,
    encode_heartbeat,
    encode_publication,
    encode_response,
    parse,
    response_type,
)
from .servers import LINGER, binary_frame, deny, greet, prepare, text_frame, wire_for
from .spans import Outcome, Spans
from .telemetry import Key, kind_of
from .topics import Topic, find_topic, match_topic

logger = logging.getLogger("realtime.consumers")

FRAMES_A_TURN = 32
"""Frames that one connection may have handled before others get a turn on the event loop."""

CROWDED_INTERVAL = 0.02
"""Seconds between two looks at whether a client has read enough of its answers to get more."""
LONGEST_PAUSE = 1.0
"""Seconds between two looks at whether a client that has to wait is still there."""

SERVERS_OWN = (1002, CloseCode.INVALID_PAYLOAD, CloseCode.MESSAGE_TOO_BIG)
"""Codes that the server software closes with by itself; clients hardly ever send them."""

RESPONSES: dict[type[Message], Callable[..., Response]] = {
    EchoRequest: EchoResponse,
    SubscribeRequest: SubscribeResponse,
    UnsubscribeRequest: UnsubscribeResponse,
}
"""The response that each request is answered with."""


class RealtimeConsumer(AsyncJsonWebsocketConsumer):
    """
    Serve one WebSocket connection.

    It is what users of Channels know, with ``connect``, ``receive_json`` and ``disconnect`` to override,
    but for two things. ``receive_json`` is called with a request of ``realtime.protocol``, not with a
    dict. And the consumer has no channel of its own: ``channel_layer`` and ``channel_name`` are the
    hub's, and what is sent to topics' groups is delivered by the hub.

    Channels' own receive loop is not used, as it hops to a thread for every message, on a thread that
    all connections share, and calls neither ``disconnect`` nor anything else after an exception.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.groups:
            raise TypeError(
                f"{cls.__name__}.groups is {cls.groups!r}, but a realtime consumer joins no groups by itself: "
                "declare a realtime.Topic, to which its clients subscribe"
            )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope = scope
        self.base_send = send
        self.hub = hub_of(scope)
        self.channel_layer = self.hub.link.layer
        self.connection: Connection | None = None
        self._receive = receive
        self._began = time.monotonic()
        self._identity = Identity()
        self._address = address_of(scope, self.hub.settings.TRUSTED_HOPS)
        self._user = ""
        self._requests = self.hub.stats.requests
        self._outcome = Outcome()
        trust = self.hub.settings.TRUST_CLIENT_TRACEPARENT
        self._spans = Spans(self.hub.tracing, self._outcome, trust_client=trust)
        greet(scope, receive)
        try:
            prepare(scope, receive, self.hub.settings.MAX_MESSAGE_SIZE)
            await self._enter(receive)
        except asyncio.CancelledError:
            if not self.hub.aborted:  # else it was the hub, for a handler that holds up the server's stop
                raise
        except Exception as error:  # noqa: BLE001 - a subclass is the site's own code
            if self._client_left(error):
                logger.debug("event=client_gone connection=%s error=%r", self.id, error)
                return
            complain(logger, logging.ERROR, "event=connection_failed", "connection=%s", self.id, error=error)
            self._spans.end({}, kind_of(error))
            await self._fail()
        finally:
            self._spans.end({})

    @property
    def id(self) -> str:
        """The connection's id, or ``-`` before it was accepted."""
        return "-" if self.connection is None else self.connection.id

    @property
    def channel_name(self) -> str | None:
        """The hub's channel on the layer; None until the layer was reached."""
        return self.hub.link.channel

    async def _enter(self, receive: Any) -> None:
        """Let the connection in if the limits allow that, and serve it."""
        message = await receive()
        if message["type"] != "websocket.connect":  # gone before it began
            return
        refusal = DRAINING if self.hub.draining else self.hub.door.enter(self._address)
        if refusal is not None:
            await self._refuse(refusal)
            return
        try:
            await self._serve(message, receive)
        finally:
            self.hub.door.leave(self._address, self._user)

    async def _serve(self, message: Any, receive: Any) -> None:
        await self._spans.begin(self.scope, self._address)
        with self._spans.letting_in():
            admitted = await self._admit()
        if not admitted:
            return
        code: int = CloseCode.INTERRUPTED
        failed = False
        try:
            with self._spans.letting_in():
                await self._let_in(message)
            self._spans.end({})
            if self.connection is not None:
                code = await self._receive_frames(receive)
        except Exception as error:
            failed = not self._client_left(error)
            raise
        finally:
            if (connection := self.connection) is not None:
                ours = failed or connection.closed_with is not None or code in SERVERS_OWN
                code = connection.closed_with or code
                if code == CloseCode.MESSAGE_TOO_BIG:
                    self.hub.counts[Count.TOO_BIG] += 1
                self.hub.stats.closed(CloseCode.INTERNAL_ERROR if failed else code, "server" if ours else "client")
                self.hub.disconnected(connection)
                if connection.wire.buffered:  # else the server would wait for ever for a client that does not read
                    self.hub.loop.call_later(LINGER, connection.abort)
                logger.info("event=disconnected connection=%s code=%d seconds=%d", self.id, code, connection.uptime)
            await self.disconnect(code)

    def _client_left(self, error: Exception) -> bool:
        """Return whether ``error`` is what servers raise when the client has gone, and not the site's own."""
        return isinstance(error, OSError) and (self.connection is None or self.connection.wire.closed)

    async def _admit(self) -> bool:
        """Find out who connects. Return whether the page and the user may, or refuse them."""
        if not origin_allowed(self.scope):
            self._note_refusal(Count.REFUSED_ORIGIN, logging.WARNING)
            await self.close()
            return False
        self._identity = await identify(self.scope)
        if not self._identity.known:
            self.hub.counts[Count.UNIDENTIFIED] += 1
        key = user_id_of(self.scope["user"])
        if (refusal := self.hub.door.enter_as(key)) is not None:
            await self._refuse(refusal)
            return False
        self._user = key
        return True

    async def _let_in(self, message: Any) -> None:
        if self._identity.refused:  # a browser's page is told nothing of a handshake that is refused
            self._note_refusal(Count.REFUSED_TOKEN, logging.INFO)
            await self.accept(self._subprotocol())
            await self.close(CloseCode.POLICY_VIOLATION, "token refused")
        else:
            await self.websocket_connect(message)

    def _note_refusal(self, count: Count, level: int) -> None:
        cause = cause_of(count)
        self.hub.counts[count] += 1
        complain(logger, level, f"event=refused reason={cause}", "path=%.200r", self.scope["path"])
        self._spans.end({Key.REFUSAL: cause})

    async def _refuse(self, refusal: Refusal) -> None:
        """Refuse the handshake as ``refusal`` says, or accept and close with 1013 where the server cannot."""
        self._note_refusal(refusal.counted_as, logging.WARNING)
        if not await deny(self.scope, self.base_send, refusal.status, refusal.retry_after):
            await AsyncConsumer.send(self, {"type": "websocket.accept", "subprotocol": self._subprotocol()})
            code = CloseCode.TRY_AGAIN_LATER
            await AsyncConsumer.send(self, {"type": "websocket.close", "code": code, "reason": refusal.reason})

    async def _receive_frames(self, receive: Any) -> int:
        """Handle frames until the connection ends. Return the close code."""
        connection = self.connection
        assert connection is not None
        bucket = connection.bucket
        frames = 0
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                code = message.get("code")
                return CloseCode.NO_STATUS if code is None else int(code)
            if not connection.wire.closed:
                connection.silent_until = math.inf
                if bucket is not None and (wait := bucket.take()):
                    await self._limit(connection, message, wait)
                else:
                    await self.websocket_receive(message)
                while connection.crowded:  # no more answers until some were read
                    await asyncio.sleep(CROWDED_INTERVAL)
            # receive() does not give way while frames wait.
            frames += 1
            if frames % FRAMES_A_TURN == 0:
                await asyncio.sleep(0)

    async def _limit(self, connection: Connection, message: Any, wait: float) -> None:
        """Answer a request that is over the limit, and read the next one in ``wait`` seconds."""
        self.hub.counts[Count.RATE_LIMITED] += 1
        complain(logger, logging.WARNING, "event=rate_limited", "connection=%s", connection.id)
        frame = message.get("text")
        kind: type[Any] = type(None)
        try:
            request = parse(frame if frame is not None else message.get("bytes") or "")
            kind, req_id = type(request), request.req_id
        except RequestError as error:
            req_id = error.req_id
        self._requests[kind].refuse(ErrorCode.RATE_LIMITED.value)
        settings = self.hub.settings
        text = f"at most {settings.RATE_LIMIT:g} requests a second, and {settings.RATE_BURST} at once"
        await self.send_json(ErrorMessage(message=text, code=ErrorCode.RATE_LIMITED, req_id=req_id))
        if not connection.close_flooder():
            connection.pause_reading(wait)
            while (left := connection.paused_until - time.monotonic()) > 0 and not connection.wire.closed:
                await asyncio.sleep(min(left, LONGEST_PAUSE))

    async def _fail(self) -> None:
        """End a connection whose handling failed: with 1011, or before it was accepted with a refusal."""
        if self.connection is not None:
            self.connection.close(CloseCode.INTERNAL_ERROR, "internal error")
            try:  # until it is sent: an application that returns ends the connection
                async with asyncio.timeout(LINGER):
                    while (await self._receive())["type"] != "websocket.disconnect":
                        pass
            except TimeoutError:
                pass
            return
        try:
            await self.base_send({"type": "websocket.close"})
        except Exception as error:  # noqa: BLE001 - the client may have gone
            logger.debug("event=refusal_failed error=%r", error)

    # What a subclass may override or call

    async def connect(self) -> None:
        """Accept the connection, with our subprotocol if the client offers it."""
        await self.accept(self._subprotocol())

    def _subprotocol(self) -> str | None:
        return SUBPROTOCOL if SUBPROTOCOL in (self.scope.get("subprotocols") or ()) else None

    async def accept(self, subprotocol: str | None = None, headers: Any = None) -> None:
        """Accept the connection; from now on the hub knows it."""
        await super().accept(subprotocol, headers)
        # On behalf of nobody: what reads from the socket would keep this span for as long as the connection lasts.
        wire = Context().run(wire_for, self.scope, self._receive, self.base_send)
        peer = peer_of(self.scope, self._identity, self._address)
        self.connection = Connection(wire, peer, self.hub.settings, self.hub.counts)
        self.connection.task = asyncio.current_task()
        self._spans.accept(self.id, subprotocol)
        span = self._spans.accepted
        ids = () if span is None else (f"{span.trace_id:032x}", f"{span.span_id:016x}")
        log_context.set(LogContext(self.id, *ids))
        self.hub.connected(self.connection, since=self._began)
        logger.debug("event=connected connection=%s path=%r", self.id, self.scope.get("path"))

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None, **_: Any) -> None:
        """Parse a frame, text or binary, and handle the request in it; answer with an error if there is none."""
        frame = text_data if text_data is not None else bytes_data
        began = time.perf_counter()
        outcome = self._outcome
        if outcome.code or outcome.fault:
            outcome.begin()
        request = None
        try:
            request = parse(frame if frame is not None else "")
        except RequestError as error:
            outcome.code = error.code
            await self.send_json(ErrorMessage(message=error.message, code=ErrorCode(error.code), req_id=error.req_id))
            if self._spans.accepted is not None:
                self._spans.note_invalid(frame)
        else:
            if self._spans.accepted is None:
                await self.receive_json(request)
            else:
                await self._spans.handle(request, frame, self.receive_json)
        self._requests[type(request)].add(outcome.code, time.perf_counter() - began)

    async def receive_json(self, request: AnyRequest | SiteRequest, **_: Any) -> None:
        """Handle one request and answer it; one whose handler raises is answered ``INTERNAL_ERROR``."""
        try:
            if isinstance(request, EchoRequest):
                self.echo(request)
            elif isinstance(request, UnsubscribeRequest):
                self.unsubscribe(request)
            elif isinstance(request, SubscribeRequest):
                async with asyncio.timeout(self.hub.settings.HANDLER_TIMEOUT + JOIN_TIMEOUT):
                    await self.subscribe(request)
            else:
                async with asyncio.timeout(self.hub.settings.HANDLER_TIMEOUT):
                    await self.handle(request)
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():  # else the site's code awaited something that was cancelled
                raise
            self.hub.counts[Count.HANDLER_FAULTS] += 1
            self._outcome.fault = kind_of(error)
            topic = find_topic(request.topic) if isinstance(request, SubscribeRequest) else None
            what = f"request={request.type} topic={repr(topic.name) if topic is not None else '-'}"
            kind = f"event=handler_failed {what} error={type(error).__name__}"
            complain(logger, logging.ERROR, kind, "connection=%s", self.id, error=error)
            self._answer_error(request, ErrorCode.INTERNAL_ERROR, "the server failed to handle the request")

    async def send(self, text_data: str | None = None, bytes_data: bytes | None = None, close: Any = False) -> None:
        """Send a text or a binary frame, in order with everything else that this connection is sent."""
        if text_data is not None:
            self._write(text_frame(text_data.encode()))
        elif bytes_data is not None:
            self._write(binary_frame(bytes_data))
        else:
            raise ValueError("send() takes text_data or bytes_data, and got neither")
        if close:
            await self.close(close)

    async def send_json(self, message: Message, close: Any = False) -> None:
        """Send one message of the protocol."""
        self._write(text_frame(encode(message)))
        if close:
            await self.close(close)

    async def close(self, code: Any = None, reason: str | None = None) -> None:
        """Close the connection; before it was accepted, refuse it with 403."""
        if self.connection is None:
            await AsyncConsumer.send(self, {"type": "websocket.close"})
        else:
            self.connection.close(CloseCode.NORMAL if code is None or code is True else code, reason or "")

    # Requests

    def echo(self, request: EchoRequest) -> None:
        """Send the text back, or the error that the client asks for."""
        if request.err:
            self._answer_error(request, ErrorCode.ASKED_BY_CLIENT, "client asked for it")
        else:
            self._answer(request, b'{"echo":%b}' % to_json(request.echo))

    async def subscribe(self, request: SubscribeRequest) -> None:
        """Subscribe to a topic: the answer first, and all that is published from then on after it."""
        name = request.topic
        connection = self.connection
        assert connection is not None
        topic, parameters = match_topic(name) or (None, {})
        if topic is None:
            self._answer_error(request, ErrorCode.TOPIC_NOT_FOUND, "no such topic")
        elif name in connection.topics:
            self._answer_error(request, ErrorCode.ALREADY_SUBSCRIBED, "already subscribed to this topic")
        elif len(connection.topics) >= self.hub.settings.MAX_SUBSCRIPTIONS:
            limit = self.hub.settings.MAX_SUBSCRIPTIONS
            self.hub.counts[Count.TOO_MANY_SUBSCRIPTIONS] += 1
            self._answer_error(request, ErrorCode.TOO_MANY_SUBSCRIPTIONS, f"a connection may hold {limit} topics")
        elif not (topic.public or self._identity.known):
            self._answer_error(request, ErrorCode.INTERNAL_ERROR, "the server could not read who you are")
        elif not await self._allowed(topic, parameters):
            self._answer_error(request, ErrorCode.FORBIDDEN, "not allowed to subscribe to this topic")
        else:
            group = await self.hub.link.join(name)
            group.latest, group.report_gaps = topic.latest, topic.report_gaps
            group.flow = self.hub.stats.flow(topic.name)
            first = await self._first(topic, parameters, group)
            # No await from here on: nothing may be delivered before the answer, and nothing missed after it.
            self._answer(request, b'{"topic":%b}' % to_json(name))
            self.hub.add(connection, group)
            for frame in first:
                self._write(frame)

    async def _allowed(self, topic: Topic, parameters: dict[str, Any]) -> bool:
        async with asyncio.timeout(self.hub.settings.HANDLER_TIMEOUT):
            return await topic.allows(self.scope.get("user"), **parameters)

    async def _first(self, topic: Topic, parameters: dict[str, Any], group: Group) -> list[bytes]:
        """Return what a new subscriber is sent first: a beat, or a snapshot and what was published meanwhile."""
        assert self.connection is not None
        if group.topic == TOPIC_HEARTBEAT:
            return [text_frame(encode_heartbeat(self.hub.now(), self.connection.uptime))]
        if topic.on_subscribe is None:
            return []
        try:
            with self.hub.hold(self.connection, group) as held:
                snapshot = await topic.snapshot(self.scope.get("user"), **parameters)
        except BaseException:
            self.hub.link.release(group)
            raise
        if snapshot is None:
            return held
        return [text_frame(encode_publication(group.topic, snapshot, self.hub.now())), *held]

    def unsubscribe(self, request: UnsubscribeRequest) -> None:
        """Unsubscribe from a topic: nothing of it is delivered after the answer."""
        assert self.connection is not None
        if find_topic(request.topic) is None:
            self._answer_error(request, ErrorCode.TOPIC_NOT_FOUND, "no such topic")
        elif not self.hub.remove(self.connection, request.topic):
            self._answer_error(request, ErrorCode.NOT_SUBSCRIBED, "not subscribed to this topic")
        else:
            self._answer(request, b'{"topic":%b}' % to_json(request.topic))

    async def handle(self, request: SiteRequest) -> None:
        """Answer a request of the site's own."""
        assert self.connection is not None
        handler = handlers[request.type]
        user = self.scope.get("user")
        if not (handler.public or self._identity.known):
            self._answer_error(request, ErrorCode.INTERNAL_ERROR, "the server could not read who you are")
        elif not await handler.allows(user):
            self._answer_error(request, ErrorCode.FORBIDDEN, "not allowed to ask for this")
        else:
            try:
                answer = await handler.handle(request, Caller(user, self.connection, self.scope))
            except RequestRefused as refusal:
                self._answer_error(request, refusal.code, refusal.message)
            else:
                self._answer(request, answer)

    def _answer(self, request: AnyRequest | SiteRequest, payload: bytes) -> None:
        """Answer OK with ``payload``, which is JSON already: a response's model would cost ten times as much."""
        self._write(text_frame(encode_response(request.type, request.req_id, payload)))

    def _answer_error(self, request: AnyRequest | SiteRequest, code: str, message: str) -> None:
        self._outcome.code = code
        error = ErrorMessageData(message=message, code=code)
        if isinstance(request, SiteRequest):
            kind = response_type(request.type)
            response: Response = SiteResponse(type=kind, req_id=request.req_id, status=Status.ERROR, error=error)
        else:
            response = RESPONSES[type(request)](req_id=request.req_id, status=Status.ERROR, error=error)
        self._write(text_frame(encode(response)))

    def _write(self, frame: bytes) -> None:
        assert self.connection is not None
        self.connection.write(frame)
