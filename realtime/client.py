"""
A client of the protocol, for services and for tests. It knows no Django, and needs ``pip install demows[client]``.

    async with Client("ws://localhost:8080/", token="...") as client:
        text = await client.echo("Hello")
        async with client.subscribe("orders.42") as events:
            async for event in events:
                ...

What it raises on purpose, beside ``RuntimeError`` where it is used wrongly:

    RealtimeError
    ├── ConnectionEnded      the connection has ended, and the client stays away
    ├── ConnectionLost       the connection broke before the answer came
    ├── RequestFailed        the server answered with an error
    ├── RequestTimeout       no answer came in time (also a TimeoutError)
    └── SubscriberTooSlow    a subscription's queue ran over
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import json
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from enum import StrEnum
from functools import partial
from typing import Any, NamedTuple, Self

from pydantic import ValidationError
from pydantic_core import from_json
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import broadcast
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from .exceptions import RealtimeError
from .protocol import (
    SUBPROTOCOL,
    TOPIC_HEARTBEAT,
    CloseCode,
    EchoRequest,
    EchoResponseData,
    ErrorCode,
    Gap,
    Heartbeat,
    MessageType,
    Publication,
    Reconnect,
    Status,
    SubscribeRequest,
    UnsubscribeRequest,
    client_reconnect,
    encode,
)

logger = logging.getLogger("realtime.client")

BUSY_DELAY = 10.0
"""The least seconds that a client stays away when the server is full (1013)."""
STABLE = 10.0
"""Seconds after which a connection is good: when it ends, the delays begin anew."""
LONGEST_RETRY_AFTER = 3600.0
"""The most seconds that a server is left alone because it asked for it in the refusal of a handshake."""
CLOSE_TIMEOUT = 2.0
"""Seconds that the server has to answer a close frame."""
FRAMES_A_TURN = 16
"""Frames that are handled before those who wait for them get a turn on the event loop."""

Event = Publication | Heartbeat | Gap
"""What a subscription yields."""
Token = str | Callable[[], str | None | Awaitable[str | None]] | None
_EVENTS: dict[str, type[Event]] = {
    MessageType.PUBLICATION: Publication,
    MessageType.HEARTBEAT: Heartbeat,
    MessageType.GAP: Gap,
}
_OURS = {MessageType.ECHO_REQUEST, MessageType.SUBSCRIBE_REQUEST}
"""Requests that every server knows."""
_SERVERS_FAULT = {1002, 1007}
"""Codes that websockets closes with because of what the server sent, and that say nothing of this client then."""
_NO_REQUEST = {ErrorCode.UNKNOWN_MESSAGE_TYPE, ErrorCode.BAD_REQUEST}
"""What the server says of a frame that is no request to it; it may carry no ``reqId``."""


class State(StrEnum):
    """Say how a client is connected: ``WAITING`` to connect again, or ``CLOSED``, before it is entered and for good."""

    CONNECTING = "connecting"
    OPEN = "open"
    WAITING = "waiting"
    CLOSED = "closed"


class _Closed(RealtimeError):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        """That of the close frame; 1006 if there was none."""
        self.reason = reason
        """That of the close frame; what is known if there was none."""

    def __str__(self) -> str:
        return f"{self.code} {self.reason}".rstrip()


class ConnectionLost(_Closed):
    """Say that the connection broke before the answer came; whether the request was carried out is not known."""


class ConnectionEnded(_Closed):
    """Say that the connection has ended and the client stays away; make a new one to try again."""


class RequestFailed(RealtimeError):
    """Say that the server answered with an error; ``code`` is an ``ErrorCode`` or the site's own, or empty."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class RequestTimeout(RealtimeError, TimeoutError):
    """Say that no answer came in time; whether the request was carried out is not known."""


class SubscriberTooSlow(RealtimeError):
    """Say that more events came than the subscription's queue holds, so that it was given up."""


class _Waiting(NamedTuple):
    type: str
    settle: Callable[[Any], None]
    """Takes the answer's data, or a ``RealtimeError``."""


class _Topic:
    """Be the one subscription on the wire that all local subscriptions of a topic share."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.members: set[Subscription] = set()
        self.req_id: str | None = None
        """The last subscribe request; None if none was sent."""
        self.joined = False
        """Whether it was answered, on the present connection."""


class Subscription(AsyncIterator[Event]):
    """
    Subscribe to a topic for the length of an ``async with`` block, and iterate over what comes meanwhile.

    Entering waits until the server has agreed. It raises ``RequestFailed`` if the server refuses, ``RequestTimeout``
    if no answer came in time, and ``ConnectionEnded``. The subscription outlives connections. It ends, after what
    had come until then, with ``ConnectionEnded``, with ``SubscriberTooSlow``, with ``RequestFailed`` when the server
    refuses to renew it, and quietly when it is left or the client closed.
    """

    def __init__(self, client: Client, topic: str, limit: int) -> None:
        self.topic = topic
        self.limit = limit
        self._client = client
        self._shared: _Topic | None = None
        self._events: deque[Event] = deque()
        self._changed = asyncio.Event()
        self._over = False
        self._error: RealtimeError | None = None

    async def __aenter__(self) -> Self:
        if self._shared is not None:
            raise RuntimeError("a subscription is entered once; call subscribe() for another")
        self._shared = self._client._enter(self)
        try:
            async with self._client._patience("subscribe_request"):
                while not (self._shared.joined or self._over):
                    await self._wait()
        except BaseException:
            self._client._leave(self)
            self._finish()
            raise
        if not self._shared.joined:
            raise self._error or ConnectionEnded(CloseCode.NORMAL, "closed by this client")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._client._leave(self)
        self._finish()
        self._events.clear()

    async def __anext__(self) -> Event:
        if self._shared is None:
            raise RuntimeError("enter the subscription first: async with client.subscribe(...) as events")
        while not self._events:
            if self._error is not None:
                raise self._error
            if self._over:
                raise StopAsyncIteration
            await self._wait()
        return self._events.popleft()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _put(self, event: Event) -> None:
        if len(self._events) >= self.limit:
            self._client._leave(self)
            self._finish(SubscriberTooSlow(f"more than {self.limit} events of topic {self.topic!r} were waiting"))
            return
        self._events.append(event)
        self._changed.set()

    def _finish(self, error: RealtimeError | None = None) -> None:
        self._over, self._error = True, error
        self._changed.set()


class Client:
    """
    Keep a connection to ``url`` for the length of an ``async with`` block, and come back when it breaks.

    Entering does not wait for the connection, as a service may start before its server; ``connected()`` does.
    After a close the client does what the protocol says of its code, and with ``reconnect=False`` it never comes back.

    ``token`` is sent as ``Authorization: Bearer``; a function, which may be async, is called before every connection.
    ``timeout`` is how many seconds a request, entering a subscription and an attempt to connect may take. After
    ``idle_timeout`` seconds without a frame the server is sent an echo request, and after ``echo_timeout`` more the
    connection is given up. ``backoff`` is the limit of the first delay before connecting again and that of all
    delays, in seconds; the delay is anything up to a limit that doubles each time. ``queue_limit`` is how many
    events may wait in a subscription. ``on_state`` is called with every new ``State``. Further options are those of
    ``websockets.asyncio.client.connect``.
    """

    def __init__(
        self,
        url: str,
        *,
        token: Token = None,
        reconnect: bool = True,
        timeout: float = 10.0,
        idle_timeout: float = 25.0,
        echo_timeout: float = 10.0,
        backoff: tuple[float, float] = (1.0, 30.0),
        queue_limit: int = 1000,
        on_state: Callable[[State], object] = lambda state: None,
        **options: Any,
    ) -> None:
        self.url = url
        self.state = State.CLOSED
        self.timeout = timeout
        self._token = _checked(token) if isinstance(token, str) else token
        self._reconnect = reconnect
        self._idle_timeout, self._echo_timeout = idle_timeout, echo_timeout
        self._backoff, self._queue_limit, self._on_state = backoff, queue_limit, on_state
        self._headers = Headers(options.pop("additional_headers", None) or {})
        # Our own echo requests do what pings would; compression would cost the server a frame made for us alone.
        defaults = {"compression": None, "ping_interval": None, "close_timeout": CLOSE_TIMEOUT, "open_timeout": None}
        self._options = {"subprotocols": [Subprotocol(SUBPROTOCOL)], **defaults, **options}
        parse_uri(url)  # these two raise what is wrong; neither connects
        connect(url, **self._options)
        self._ids = itertools.count(1)
        self._waiting: dict[str, _Waiting] = {}
        self._topics: dict[str, _Topic] = {}
        self._ready = asyncio.Event()
        self._ws: ClientConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._end: ConnectionEnded | None = None
        self._last = "the first attempt"
        self._failures = 0
        self._retry_after = 0.0
        self._since = 0.0

    async def __aenter__(self) -> Self:
        if self._task is not None or self._end is not None:
            raise RuntimeError("a client is entered once; make another")
        self._set_state(State.CONNECTING)
        self._task = asyncio.create_task(self._run(), name="realtime-client")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection with 1000, all subscriptions quietly, and all requests with ``ConnectionEnded``."""
        first = self._end is None
        self._finish(ConnectionEnded(CloseCode.NORMAL, "closed by this client"), quietly=True)
        if self._task is not None:
            if first:
                self._task.cancel()
            try:
                await asyncio.wait({self._task})
            except asyncio.CancelledError:
                self._task.cancel()  # it was saying goodbye
                raise

    async def connected(self) -> None:
        """Wait, for however long, until there is a connection. Raises ``ConnectionEnded`` if there will be none."""
        self._check()
        while self._ws is None:
            await self._ready.wait()
            self._check()

    async def request(self, type_: str, /, **fields: Any) -> Any:
        """
        Send a request of any type, and return the ``data`` of its answer.

        It waits for a connection. Raises ``RequestFailed`` if the server answers with an error, ``RequestTimeout``,
        ``ConnectionLost`` and ``ConnectionEnded``; ``TypeError`` and ``ValueError`` for fields that are no JSON.
        """
        if reserved := {"type", "reqId"} & fields.keys():
            raise TypeError(f"the client itself sets the field {min(reserved)!r} of a request")
        req_id = self._next_id()
        return await self._ask(type_, req_id, json.dumps({"type": type_, "reqId": req_id, **fields}, allow_nan=False))

    async def echo(self, text: str) -> str:
        """Return ``text``, sent back by the server. Raises what ``request()`` raises."""
        request = EchoRequest(req_id=self._next_id(), echo=text)
        answer = await self._ask(request.type, str(request.req_id), encode(request).decode())
        return EchoResponseData.model_validate(answer).echo

    def subscribe(self, topic: str, *, queue_limit: int | None = None) -> Subscription:
        """Return a subscription of ``topic`` to enter. All of one topic share one subscription on the wire."""
        encode(SubscribeRequest(topic=topic))  # raises ValueError for what cannot be sent
        return Subscription(self, topic, self._queue_limit if queue_limit is None else queue_limit)

    # Requests

    def _next_id(self) -> str:
        return str(next(self._ids))

    def _check(self) -> None:
        if self._end is not None:
            raise ConnectionEnded(self._end.code, self._end.reason)
        if self._task is None:
            raise RuntimeError("enter the client first: async with Client(...) as client")

    @contextlib.asynccontextmanager
    async def _patience(self, type_: str) -> AsyncIterator[None]:
        """Limit how long an answer is waited for."""
        try:
            async with asyncio.timeout(self.timeout):
                yield
        except TimeoutError:
            last = "" if self.state is State.OPEN else f" ({self._last})"
            text = f"no answer to {type_} within {self.timeout:g} s; the connection is {self.state}{last}"
            raise RequestTimeout(text) from None

    async def _ask(self, type_: str, req_id: str, text: str) -> Any:
        async with self._patience(type_):
            await self.connected()
            answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            self._waiting[req_id] = _Waiting(type_, partial(_set, answer))
            try:
                self._send(text)
                data = await answer
            finally:
                self._waiting.pop(req_id, None)
        if isinstance(data, RealtimeError):
            raise data
        return data

    def _send(self, text: str) -> None:
        """Send a frame now, so that frames go out in the order of the calls, and nothing can be cancelled halfway."""
        if self._ws is not None:
            broadcast([self._ws], text)

    # Subscriptions

    def _enter(self, subscription: Subscription) -> _Topic:
        self._check()
        topic = self._topics.setdefault(subscription.topic, _Topic(subscription.topic))
        topic.members.add(subscription)
        if topic.req_id is None:
            self._join(topic)
        return topic

    def _join(self, topic: _Topic) -> None:
        if self._ws is not None:
            topic.req_id = self._next_id()
            self._waiting[topic.req_id] = _Waiting("subscribe_request", partial(self._joined, topic))
            self._send(encode(SubscribeRequest(req_id=topic.req_id, topic=topic.name)).decode())

    def _joined(self, topic: _Topic, answer: Any) -> None:
        """Take the answer to a subscribe request: here and now, as what is published may be in the next frame."""
        if isinstance(answer, RequestFailed) and answer.code != ErrorCode.ALREADY_SUBSCRIBED:
            del self._topics[topic.name]
            for subscription in topic.members:
                subscription._finish(RequestFailed(answer.code, answer.message))
        elif not isinstance(answer, ConnectionLost | ConnectionEnded):
            topic.joined = True
            for subscription in topic.members:
                subscription._changed.set()

    def _leave(self, subscription: Subscription) -> None:
        topic = self._topics.get(subscription.topic)
        if topic is None or subscription not in topic.members:
            return
        topic.members.remove(subscription)
        if topic.members:
            return
        del self._topics[topic.name]
        if topic.req_id is not None:  # it need not be answered yet
            self._waiting.pop(topic.req_id, None)
            self._send(encode(UnsubscribeRequest(topic=topic.name)).decode())

    # The connection

    async def _run(self) -> None:
        """Connect again and again, until the client is to stay away."""
        try:
            while True:
                lost = await self._connect()
                rule = client_reconnect(lost.code)
                if rule is Reconnect.STAY_AWAY or not self._reconnect:
                    break
                self._lost(lost)
                delay = self._delay(rule)
                logger.info("event=client_lost code=%d reason=%r retry_in=%.1f", lost.code, lost.reason, delay)
                self._set_state(State.WAITING)
                await asyncio.sleep(delay)
        except Exception as error:
            logger.exception("event=client_failed")
            lost = ConnectionLost(CloseCode.INTERRUPTED, f"the client failed: {error!r}")
        logger.info("event=client_ended code=%d reason=%r", lost.code, lost.reason)
        self._finish(ConnectionEnded(lost.code, lost.reason))

    def _delay(self, rule: Reconnect) -> float:
        """Return how long to wait, with full jitter: those who were closed at one time come back at many."""
        first, most = self._backoff
        delay = random.uniform(0, min(most, first * 2 ** min(self._failures, 32)))
        self._failures += 1
        if rule is Reconnect.BACKOFF:
            return self._retry_after + delay
        return BUSY_DELAY + max(delay, random.uniform(0, BUSY_DELAY))

    async def _connect(self) -> ConnectionLost:
        """Connect, read until the connection is lost, and return how that was."""
        self._set_state(State.CONNECTING)
        self._retry_after = 0.0
        try:
            async with asyncio.timeout(self.timeout):
                headers = await self._make_headers()
                ws = await connect(self.url, additional_headers=headers, **self._options)
        except Exception as error:  # noqa: BLE001 - of the token's function, the resolver, TLS, the handshake
            text = str(error) or type(error).__name__
            self._retry_after = _retry_after(error)
            return ConnectionLost(CloseCode.INTERRUPTED, f"cannot connect: {text}")
        try:
            self._opened(ws)
            return await self._read(ws)
        finally:
            self._ws = None
            self._ready.clear()
            if asyncio.get_running_loop().time() - self._since >= STABLE:
                self._failures = 0
            try:
                await ws.close()
            finally:
                ws.transport.abort()  # does nothing to a connection that is closed

    async def _make_headers(self) -> Headers:
        headers = self._headers.copy()
        token = self._token() if callable(self._token) else self._token
        if inspect.isawaitable(token):
            token = await token
        if token:
            headers["Authorization"] = f"Bearer {_checked(token)}"
        return headers

    def _opened(self, ws: ClientConnection) -> None:
        self._ws = ws
        self._since = asyncio.get_running_loop().time()
        for topic in self._topics.values():
            self._join(topic)
        self._ready.set()
        self._set_state(State.OPEN)

    async def _read(self, ws: ClientConnection) -> ConnectionLost:
        """Take frames until the connection is lost, and return how it was."""
        try:
            while True:
                for _ in range(FRAMES_A_TURN):
                    self._receive(await self._next_frame(ws))
                await asyncio.sleep(0)  # recv() does not give way while frames wait
        except TimeoutError:
            ws.transport.abort()
            frame, text = ws.protocol.close_rcvd, "the server is silent"
        except ConnectionClosed as error:
            frame, text = error.rcvd or error.sent, f"the connection broke: {error.__cause__ or error}"
            if error.sent is not None and not error.rcvd_then_sent and error.sent.code in _SERVERS_FAULT:
                frame, text = None, f"the server broke the protocol: {error.sent.reason}"
        return (
            ConnectionLost(CloseCode.INTERRUPTED, text) if frame is None else ConnectionLost(frame.code, frame.reason)
        )

    async def _next_frame(self, ws: ClientConnection) -> str | bytes:
        """Return the next frame. Raises ``TimeoutError`` if the server is dead."""
        try:
            async with asyncio.timeout(self._idle_timeout):
                return await ws.recv()
        except TimeoutError:
            self._send(encode(EchoRequest(echo="are you there?")).decode())
            async with asyncio.timeout(self._echo_timeout):
                return await ws.recv()

    def _receive(self, frame: str | bytes) -> None:
        """Take one frame; what is not understood is ignored, as it may be of a later version of the protocol."""
        try:
            message = from_json(frame)
        except ValueError:
            message = None
        kind = message.get("type") if isinstance(message, dict) else None
        if not isinstance(kind, str):
            logger.debug("event=client_ignored size=%d", len(frame))
        elif kind in _EVENTS:
            self._deliver(_EVENTS[kind], message)
        elif kind == MessageType.ERROR or kind.endswith("_response"):
            self._settle(message)

    def _deliver(self, model: type[Event], message: dict[str, Any]) -> None:
        try:
            event = model.model_validate(message)
        except ValidationError:
            logger.debug("event=client_ignored type=%s", message["type"])
            return
        topic = self._topics.get(TOPIC_HEARTBEAT if isinstance(event, Heartbeat) else event.topic)
        if topic is not None and topic.joined:
            for subscription in tuple(topic.members):
                subscription._put(event)

    def _settle(self, message: dict[str, Any]) -> None:
        """Give an answer to whoever waits for it."""
        failure, req_id = _failure(message), message.get("reqId")
        if failure is not None and req_id is None and failure.code in _NO_REQUEST:
            # Answers come in the order of the requests, so this one is for the oldest that the server may not know.
            req_id = next((key for key, waiting in self._waiting.items() if waiting.type not in _OURS), None)
        waiting = self._waiting.pop(req_id, None) if isinstance(req_id, str) else None
        if waiting is not None:
            waiting.settle(message.get("data") if failure is None else failure)
        elif failure is not None:
            logger.warning("event=client_told_of_error code=%r", failure.code)

    def _lost(self, lost: ConnectionLost | ConnectionEnded) -> None:
        self._last = str(lost)
        waiting, self._waiting = self._waiting, {}
        for request in waiting.values():
            request.settle(type(lost)(lost.code, lost.reason))
        for topic in self._topics.values():
            topic.joined = False

    def _finish(self, end: ConnectionEnded, *, quietly: bool = False) -> None:
        """Be closed for good."""
        if self._end is not None:
            return
        self._end = end
        self._lost(end)
        topics, self._topics = self._topics, {}
        for topic in topics.values():
            for subscription in topic.members:
                subscription._finish(None if quietly else ConnectionEnded(end.code, end.reason))
        self._ready.set()
        self._set_state(State.CLOSED)

    def _set_state(self, state: State) -> None:
        if state is self.state:
            return
        self.state = state
        try:
            self._on_state(state)
        except Exception:
            logger.exception("event=client_on_state_failed state=%s", state)


def _retry_after(error: Exception) -> float:
    """Return how many seconds a server that refused the handshake asks to be left alone: 0 where it does not say."""
    if not isinstance(error, InvalidStatus):
        return 0.0
    values = error.response.headers.get_all("Retry-After")
    if len(values) != 1 or not (values[0].isascii() and values[0].isdigit()):  # a date is for caches, not for us
        return 0.0
    return min(float(values[0][:9]), LONGEST_RETRY_AFTER)


def _set(answer: asyncio.Future[Any], data: Any) -> None:
    if not answer.done():
        answer.set_result(data)


def _checked(token: str) -> str:
    """Return ``token`` if a header can hold it; the error that websockets would raise shows it."""
    if not (token.isascii() and token.isprintable()):
        raise ValueError("the token has characters that a header cannot hold, such as a newline or an umlaut")
    return token


def _failure(message: dict[str, Any]) -> RequestFailed | None:
    """Return the error that an answer carries, in a response or flat."""
    if message["type"] == MessageType.ERROR:
        error: Any = message
    elif message.get("status") == Status.ERROR:
        error = message.get("error")
    else:
        return None
    if not isinstance(error, dict):
        error = {}
    return RequestFailed(str(error.get("code") or ""), str(error.get("message") or ""))
