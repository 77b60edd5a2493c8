"""The spans of one connection: that in which it is let in, and one for each request, which links to it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry.trace import SpanContext

from .protocol import (
    REQUEST_SUFFIX,
    SUBPROTOCOL,
    AnyRequest,
    EchoRequest,
    ErrorCode,
    SiteRequest,
    Status,
    SubscribeRequest,
    UnsubscribeRequest,
    traceparent_in,
)
from .telemetry import Attributes, Key, Name, Origin, SpanKind, Trace, Tracing, current, kind_of
from .topics import find_topic

Frame = str | bytes | None


class Outcome:
    """Be what came of the request that is being handled."""

    __slots__ = ("code", "fault")

    def __init__(self) -> None:
        self.code = ""
        """The error code that it was answered with, if it was."""
        self.fault = ""
        """The kind of exception that its handling failed by, if it did."""

    def begin(self) -> None:
        """Forget the last request."""
        self.code = self.fault = ""

    @property
    def word(self) -> str:
        """What came of it in one word: OK, or an error code."""
        return self.code or (ErrorCode.INTERNAL_ERROR if self.fault else Status.OK)

    @property
    def error(self) -> str:
        """What the server failed by, if it did: where nothing was raised, the code says so."""
        return self.fault or (self.code if self.code == ErrorCode.INTERNAL_ERROR else "")


class Spans:
    """Record the spans of one connection. Whether there are any is decided once, when it is let in."""

    __slots__ = ("_accepting", "_outcome", "_tracing", "_trust_client", "accepted", "connection")

    def __init__(self, tracing: Tracing, outcome: Outcome, *, trust_client: bool) -> None:
        self.connection = ""
        """The connection's id, once it was accepted."""
        self.accepted: SpanContext | None = None
        """The span in which the connection was accepted, which its requests link to; None where nothing is traced."""
        self._tracing = tracing
        self._outcome = outcome
        self._trust_client = trust_client
        self._accepting: Trace | None = None

    # Letting the connection in

    async def begin(self, scope: Any, address: str) -> None:
        """Begin the span in which the connection is let in."""
        if not self._tracing.on:
            return
        attributes: Attributes = {
            Key.CLIENT_ADDRESS: address,
            Key.URL_PATH: str(scope["path"])[:255],
            Key.PROTOCOL: "websocket",
        }
        headers = [value.decode("latin-1") for name, value in scope["headers"] if name == b"traceparent"]
        origin = self._origin(headers[0] if headers else None, otel_context.get_current())
        self._accepting = await self._tracing.start(Name.ACCEPT, SpanKind.SERVER, attributes, *origin)

    def letting_in(self) -> AbstractContextManager[None]:
        """Have the site's code find that span as the current one, for the length of a ``with`` block."""
        return current(self._accepting)

    def accept(self, connection: str, subprotocol: str | None) -> None:
        """Take note that the connection was accepted."""
        self.connection = connection
        if self._accepting is not None:
            self.accepted = self._accepting.context
            self._accepting.set(Key.CONNECTION, connection)
            if subprotocol == SUBPROTOCOL:  # any other may be whatever the client offered
                self._accepting.set(Key.SUBPROTOCOL, subprotocol)

    def end(self, attributes: Attributes, error: str = "") -> None:
        """End the span in which the connection is let in, unless that was done."""
        trace, self._accepting = self._accepting, None
        if trace is not None:
            trace.end(attributes, error)

    # Requests, of a connection that is traced

    async def handle(
        self, request: AnyRequest | SiteRequest, frame: Frame, work: Callable[[Any], Awaitable[None]]
    ) -> None:
        """Handle a request with ``work``, in a span of its own."""
        name = request.type.removesuffix(REQUEST_SUFFIX)
        attributes: dict[Key, str | int] = {Key.REQUEST: request.type}
        if isinstance(request, SubscribeRequest | UnsubscribeRequest) and (topic := find_topic(request.topic)):
            attributes[Key.TOPIC] = topic.name
        # In these there is no code of the site's to find a current span, so that none has to be waited for.
        afterwards = isinstance(request, EchoRequest | UnsubscribeRequest)
        began = time.time_ns()
        trace = None
        if self._tracing.on and not afterwards:
            trace = await self._tracing.start(name, SpanKind.SERVER, *self._request(attributes, frame))
        try:
            with current(trace):
                await work(request)
        except BaseException as error:
            self._outcome.fault = kind_of(error)
            raise
        finally:
            if afterwards:
                self._note(name, attributes, frame, began)
            elif trace is not None:
                trace.end({Key.OUTCOME: self._outcome.word}, self._outcome.error)

    def note_invalid(self, frame: Frame) -> None:
        """Record that a frame held no request."""
        self._note(Name.REQUEST, {}, frame, time.time_ns())

    def _note(self, name: str, attributes: Attributes, frame: Frame, began: int) -> None:
        if self._tracing.on:
            attributes = {**attributes, Key.OUTCOME: self._outcome.word}
            what = self._request(attributes, frame)
            self._tracing.note(name, SpanKind.SERVER, *what, began=began, error=self._outcome.error)

    def _request(self, attributes: Attributes, frame: Frame) -> tuple[Attributes, Origin, Sequence[Origin]]:
        parent, links = self._origin(None if frame is None else traceparent_in(frame))
        return {**attributes, Key.CONNECTION: self.connection}, parent, [self.accepted, *links]

    def _origin(self, traceparent: str | None, parent: Origin = None) -> tuple[Origin, Sequence[Origin]]:
        """Return a span's parent and its links, where the client says that it belongs to ``traceparent``."""
        if traceparent is None:
            return parent, []
        return (traceparent, []) if self._trust_client else (parent, [traceparent])
