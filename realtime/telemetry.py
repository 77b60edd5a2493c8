"""
OpenTelemetry: the names of spans, metrics and attributes, the spans themselves, and what metrics are made of.

A site's provider is its own code, and may block or raise. So it is called on a thread of ours and never on an event
loop, and whoever needs a span waits for it a moment at most. What is counted is counted in plain integers, which
``metrics`` reads when somebody collects them.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import Context as ContextOfVariables
from contextvars import ContextVar
from enum import StrEnum
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from opentelemetry import context as otel_context
from opentelemetry import trace as otel_trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, Status, StatusCode
from opentelemetry.trace import SpanKind as SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from .logs import complain, log_context
from .protocol import CLOSE_CODES, CloseCode

T = TypeVar("T")
logger = logging.getLogger("realtime.telemetry")

SCOPE = "realtime"
"""The instrumentation scope of all spans and metrics."""
START_TIMEOUT = 0.25
"""Seconds that whoever starts a span waits for the provider at most."""
OFF_FOR = 10.0
"""Seconds for which nothing is traced after a provider took longer than that."""
WAITING_JOBS = 2000
"""Calls of the provider that may wait; more are dropped, and counted."""
MOST_OUTCOMES = 50
"""Outcomes of one type of request that are told apart: a site's own error codes are not ours to bound."""


class Name(StrEnum):
    """Name the spans. Others are named after the type of a request, such as ``echo`` and ``subscribe``."""

    ACCEPT = "accept"
    """Letting a connection in, or refusing it."""
    REQUEST = "request"
    """A frame that holds no request."""
    PUBLISH = "publish"
    """Handing a publication to the channel layer; the topic's pattern follows."""
    DELIVER = "deliver"
    """Writing a publication to all subscribers of one process; the topic's pattern follows."""
    HEARTBEAT = "heartbeat"
    """Writing a heartbeat to all subscribers of one process."""
    CLOSE_CONNECTIONS = "close_connections"
    """Asking every process to close connections, and counting their answers."""
    CLOSE = "close"
    """Closing connections of one process."""


class Key(StrEnum):
    """Name the attributes: OpenTelemetry's semantic conventions where there are some, else under ``realtime``."""

    CLIENT_ADDRESS = "client.address"
    URL_PATH = "url.path"
    PROTOCOL = "network.protocol.name"
    ERROR = "error.type"
    SYSTEM = "messaging.system"
    OPERATION = "messaging.operation.name"
    OPERATION_TYPE = "messaging.operation.type"
    TOPIC = "messaging.destination.template"
    """A topic's pattern, such as ``orders.{order_id:int}``: no parameter of a topic is in any attribute."""
    SIZE = "messaging.message.body.size"
    CONNECTION = "realtime.connection.id"
    SUBPROTOCOL = "realtime.subprotocol"
    REFUSAL = "realtime.refusal"
    REQUEST = "realtime.request.type"
    OUTCOME = "realtime.outcome"
    """``OK``, or the error code that a request was answered with."""
    CODE = "realtime.close.code"
    SIDE = "realtime.close.side"
    TARGET = "realtime.close.target"
    CONNECTIONS = "realtime.connections"
    SERVERS = "realtime.servers"
    REASON = "realtime.reason"
    LE = "le"
    """The upper bound of a bucket, as in Prometheus."""


Attributes = Mapping[Key, str | int]
Origin = Context | SpanContext | str | None
"""Where a span comes from: a context, a span, or a ``traceparent`` as W3C's Trace Context has it."""

SAMPLERS = {"StaticSampler", "TraceIdRatioBased", "ParentBased", "ParentBasedTraceIdRatio"}
"""OpenTelemetry's samplers that decide by themselves, or ask others that can be seen."""
NO_PROVIDERS = (otel_trace.ProxyTracerProvider, otel_trace.NoOpTracerProvider)
ROOT = Context()
"""The context of a span that begins a trace."""


# Calling the provider


class _Worker:
    """Do one thing after the other on a daemon thread, as long as not too much waits."""

    def __init__(self) -> None:
        self.dropped = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._jobs: SimpleQueue[Callable[[], Any]] = SimpleQueue()

    def post(self, job: Callable[[], Any], what: str = "") -> bool:
        """Do ``job`` later, or drop it. Return whether it is to be done. Each ``span`` that is dropped counts."""
        try:
            if self._thread is None:
                self._begin()
            if self._jobs.qsize() < WAITING_JOBS:
                self._jobs.put(job)
                return True
        except RuntimeError as error:  # no thread can be started
            complain(logger, logging.ERROR, "event=telemetry_failed error=RuntimeError", "", error=error)
        if what == "span":
            self.dropped += 1
            complain(logger, logging.WARNING, "event=spans_dropped", "hint=%r", "the tracer provider is too slow")
        return False

    def _begin(self) -> None:
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="realtime-telemetry", daemon=True)
                thread.start()
                self._thread = thread
                atexit.register(self._finish)  # runs before what the provider has registered

    async def finish(self) -> None:
        """Let what waits reach the provider, if that takes no longer than ``START_TIMEOUT``."""
        done: Future[None] = Future()
        if self._thread is not None and self.post(partial(done.set_result, None)):
            await asyncio.wait([asyncio.wrap_future(done)], timeout=START_TIMEOUT)

    def _finish(self) -> None:
        """Do the same when the process ends, unless it is a child that the thread did not come along to."""
        if worker is not self:
            return
        done = threading.Event()
        if self.post(done.set):
            done.wait(START_TIMEOUT)

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                job()
            except BaseException as error:  # noqa: BLE001 - a provider is the site's own code, and the thread goes on
                kind = f"event=telemetry_failed error={type(error).__name__}"
                complain(logger, logging.ERROR, kind, "", error=error)
            del job


worker = _Worker()


def _begin_anew() -> None:
    """Begin anew in a forked child: the thread did not come along."""
    global worker
    worker = _Worker()


os.register_at_fork(after_in_child=_begin_anew)


# Spans

_traced: ContextVar[bool] = ContextVar("realtime_traced", default=False)
"""Whether one of our spans is the current one."""


class Trace:
    """Be a span that is recorded. It is ended once, and by that handed to the provider."""

    __slots__ = ("_span", "context")

    def __init__(self, span: Span) -> None:
        self._span = span
        self.context = span.get_span_context()

    @property
    def traceparent(self) -> str:
        """What stands for the span in an event and in a header."""
        context = self.context
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    @contextmanager
    def current(self) -> Iterator[None]:
        """Have the site's code, and what it calls, find this span as the current one for the length of a ``with``."""
        token = otel_context.attach(otel_trace.set_span_in_context(self._span))
        traced = _traced.set(True)
        try:
            yield
        finally:
            _traced.reset(traced)
            otel_context.detach(token)

    def set(self, key: Key, value: str) -> None:
        """Add an attribute."""
        worker.post(partial(self._span.set_attribute, key.value, value))

    def end(self, attributes: Attributes, error: str = "") -> None:
        """End the span now. ``error`` is the kind of what the server failed by, if it did."""
        worker.post(partial(_end, self._span, attributes, error, time.time_ns()), "span")


def current(trace: Trace | None) -> AbstractContextManager[None]:
    """Do what ``trace.current()`` does, where there is one."""
    return nullcontext() if trace is None else trace.current()


def kind_of(error: BaseException) -> str:
    """Return what is recorded of an exception: its message may hold anything, and it would keep its frames alive."""
    return type(error).__qualname__


def _end(span: Span, attributes: Attributes, error: str, ended: int) -> None:
    span.set_attributes(plain(attributes))
    if error:
        span.set_attribute(Key.ERROR.value, error)
        span.set_status(Status(StatusCode.ERROR))
    span.end(ended)


class Tracing:
    """Start spans with one provider: OpenTelemetry's global one where ``provider`` is None."""

    def __init__(self, provider: Any = None) -> None:
        self.provider = provider
        self._off_until = 0.0
        self._tracer: otel_trace.Tracer | None = None
        self._looked_at: object = None
        self._waits_for_nothing = False

    @property
    def on(self) -> bool:
        """Whether anything may be recorded: there is a provider, and it answers."""
        if self._off_until and time.monotonic() < self._off_until:
            return False
        if self.provider is not None:
            return True
        try:  # OTEL_PYTHON_TRACER_PROVIDER has the first call look for a package, which need not be there
            return not isinstance(otel_trace.get_tracer_provider(), NO_PROVIDERS)
        except Exception as error:  # noqa: BLE001
            self._off_until = time.monotonic() + OFF_FOR
            complain(logger, logging.ERROR, "event=telemetry_failed reason=provider", "", error=error)
            return False

    @property
    def on_here(self) -> bool:
        """Whether what is sent from here may be recorded: not on behalf of a connection or a request that is not."""
        connection = log_context.get()
        if (connection is not None and not connection.trace_id) or not self.on:
            return False
        context = otel_trace.get_current_span().get_span_context()
        return context.trace_flags.sampled or not context.is_valid

    async def start(
        self, name: str, kind: SpanKind, attributes: Attributes, parent: Origin, links: Sequence[Origin] = ()
    ) -> Trace | None:
        """Return a new span that began now, or None where it is not recorded, or the provider does not answer soon."""
        if self._quick:
            return self._start_here(name, kind, attributes, parent, links)
        starting = self._start(name, kind, attributes, parent, links)
        try:
            async with asyncio.timeout(START_TIMEOUT):
                return await asyncio.wrap_future(starting)
        except TimeoutError:
            self._give_up(starting)
            return None
        except asyncio.CancelledError:
            _end_when_done(starting)
            raise

    def start_in_thread(self, name: str, kind: SpanKind, attributes: Attributes, parent: Origin) -> Trace | None:
        """Do what ``start`` does, where there is no event loop."""
        if self._quick:
            return self._start_here(name, kind, attributes, parent, ())
        starting = self._start(name, kind, attributes, parent, ())
        try:
            return starting.result(START_TIMEOUT)
        except TimeoutError:
            self._give_up(starting)
            return None

    def note(
        self,
        name: str,
        kind: SpanKind,
        attributes: Attributes,
        parent: Origin,
        links: Sequence[Origin] = (),
        *,
        began: int,
        error: str = "",
    ) -> None:
        """Record a span that began at ``began`` (``time.time_ns``) and ends now, in which nothing else is recorded."""
        ended = time.time_ns()

        def record() -> None:
            if (trace := self._open(name, kind, attributes, parent, links, began)) is not None:
                _end(trace._span, {}, error, ended)

        worker.post(record, "span")

    @property
    def _quick(self) -> bool:
        """Whether the provider's code can be called here, and not on a thread: all of it is OpenTelemetry's own."""
        try:
            provider: Any = otel_trace.get_tracer_provider() if self.provider is None else self.provider
            processors = provider._active_span_processor._span_processors
            if processors is not self._looked_at:  # a tuple, and another one when one is added
                parts = [provider, provider.id_generator, *_samplers(provider.sampler), *processors]
                self._waits_for_nothing = all(type(part).__module__.startswith("opentelemetry.sdk.") for part in parts)
                self._looked_at = processors
        except Exception:  # noqa: BLE001 - another provider's insides may be anything
            return False
        return self._waits_for_nothing

    def _start_here(
        self, name: str, kind: SpanKind, attributes: Attributes, parent: Origin, links: Sequence[Origin]
    ) -> Trace | None:
        try:
            return self._open(name, kind, attributes, parent, links, time.time_ns())
        except Exception as error:  # noqa: BLE001
            complain(logger, logging.ERROR, f"event=telemetry_failed error={type(error).__name__}", "", error=error)
            return None

    def _start(
        self, name: str, kind: SpanKind, attributes: Attributes, parent: Origin, links: Sequence[Origin]
    ) -> Future[Trace | None]:
        future: Future[Trace | None] = Future()
        began = time.time_ns()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            trace = None
            try:
                trace = self._open(name, kind, attributes, parent, links, began)
            finally:
                future.set_result(trace)

        if not worker.post(work, "span"):
            future.set_result(None)
        return future

    def _give_up(self, starting: Future[Trace | None]) -> None:
        starting.cancel()
        self._off_until = time.monotonic() + OFF_FOR
        complain(logger, logging.WARNING, "event=telemetry_slow", "effect=not_traced seconds=%g", OFF_FOR)
        _end_when_done(starting)

    def _open(
        self,
        name: str,
        kind: SpanKind,
        attributes: Attributes,
        parent: Origin,
        links: Sequence[Origin],
        began: int,
    ) -> Trace | None:
        if self._tracer is None:
            from . import __version__

            provider = otel_trace.get_tracer_provider() if self.provider is None else self.provider
            self._tracer = provider.get_tracer(SCOPE, __version__)
        contexts = [_span_context(link) for link in links]
        span = self._tracer.start_span(
            str(name),
            context=_context(parent),
            kind=kind,
            attributes=plain(attributes),
            links=[Link(context) for context in contexts if context is not None],
            start_time=began,
        )
        if span.is_recording() and span.get_span_context().trace_flags.sampled:
            return Trace(span)
        span.end()
        return None


def _samplers(sampler: Any) -> list[Any]:
    """Return a sampler and those it asks in turn, or None for one of which it is not known whom it asks."""
    if type(sampler).__name__ not in SAMPLERS:
        return [None]
    asked = [part for part in vars(sampler).values() if hasattr(part, "should_sample")]
    return [sampler, *(part for other in asked for part in _samplers(other))]


def _end_when_done(starting: Future[Trace | None]) -> None:
    """End a span that nobody waits for any more."""

    def end(done: Future[Trace | None]) -> None:
        if not done.cancelled() and (trace := done.result()) is not None:
            trace.end({})

    starting.add_done_callback(end)


def plain(attributes: Attributes) -> dict[str, str | int]:
    """Return attributes as exporters want them, which need not know of enumerations."""
    return {key.value: str(value) if isinstance(value, str) else int(value) for key, value in attributes.items()}


_propagator = TraceContextTextMapPropagator()


def _context(origin: Origin) -> Context:
    if isinstance(origin, str):
        return _propagator.extract({"traceparent": origin}, ROOT)
    if isinstance(origin, SpanContext):
        return otel_trace.set_span_in_context(otel_trace.NonRecordingSpan(origin), ROOT)
    return ROOT if origin is None else origin


def _span_context(origin: Origin) -> SpanContext | None:
    if not isinstance(origin, SpanContext):
        origin = otel_trace.get_current_span(_context(origin)).get_span_context()
    return origin if origin.is_valid else None


def message_attributes(operation: Name, pattern: str) -> dict[Key, str | int]:
    """Return the attributes of a span in which something is published or delivered."""
    kind = "send" if operation is Name.PUBLISH else "process"
    return {Key.SYSTEM: SCOPE, Key.OPERATION: operation, Key.OPERATION_TYPE: kind, Key.TOPIC: pattern}


def carried(function: Callable[[], T]) -> Callable[[], T]:
    """Return ``function`` as it can be called on another thread, on behalf of the same connection and span as here."""
    connection = log_context.get()
    context = otel_context.get_current() if _traced.get() else None
    if connection is None and context is None:
        return function

    def with_context() -> T:
        here = log_context.set(connection)
        token = None if context is None else otel_context.attach(context)
        try:
            return function()
        finally:
            if token is not None:
                otel_context.detach(token)
            log_context.reset(here)

    return with_context


_latest = Tracing()


def get_tracing(provider: Any) -> Tracing:
    """Return what starts spans with ``provider``."""
    global _latest
    if _latest.provider is not provider:
        _latest = Tracing(provider)
    return _latest


# What metrics are made of


class Buckets:
    """Count durations by how long they were, in seconds, as a histogram of Prometheus does."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def absorb(self, other: Buckets) -> None:
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.total += other.total


DURATIONS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""The buckets of durations, in seconds."""


class Requests:
    """Count the requests of one type."""

    __slots__ = ("duration", "ok", "refused")

    def __init__(self) -> None:
        self.ok = 0
        self.refused: Counter[str] = Counter()
        """By the error code that they were answered with."""
        self.duration = Buckets(DURATIONS)
        """From the moment that a request was read until its answer was written."""

    def add(self, code: str, seconds: float) -> None:
        """Count a request that was answered with an error code, or an empty one for OK."""
        if code:
            self.refuse(code)
        else:
            self.ok += 1
        self.duration.add(seconds)

    def refuse(self, code: str, times: int = 1) -> None:
        self.refused[code if code in self.refused or len(self.refused) < MOST_OUTCOMES else "other"] += times

    def absorb(self, other: Requests) -> None:
        self.ok += other.ok
        for code, times in other.refused.items():
            self.refuse(code, times)
        self.duration.absorb(other.duration)


class Flow:
    """Count what goes through the topics of one pattern."""

    __slots__ = ("deliveries", "pattern", "publications", "subscriptions")

    def __init__(self, pattern: str = "") -> None:
        self.pattern = pattern
        self.subscriptions = 0
        self.publications = 0
        """Those that arrived while somebody subscribed."""
        self.deliveries = 0

    def absorb(self, other: Flow) -> None:
        self.publications += other.publications
        self.deliveries += other.deliveries


class Stats:
    """Count what happens in one hub. It only ever grows, but for what is said to be as it is now."""

    def __init__(self) -> None:
        self.accepted = 0
        self.counts: Counter[Any] = Counter()
        """The limits' counts."""
        self.closes: Counter[tuple[str, str]] = Counter()
        """Ends of connections by code, and by side: ``server`` or ``client``."""
        self.requests: defaultdict[type[Any], Requests] = defaultdict(Requests)
        """By the requests' classes; frames that hold none are under ``NoneType``."""
        self.flows: dict[str, Flow] = {}
        """By the topics' patterns."""
        self.lag = Buckets(DURATIONS)
        """From a publication's being published to its last local write, by the clocks of the two machines."""
        self.outbox = 0
        """Bytes that wait for clients to read them, now."""
        self.congested = 0
        """Connections whose server cannot write at once, now."""

    def flow(self, pattern: str) -> Flow:
        """Return the counts of the topics that ``pattern`` stands for."""
        flow = self.flows.get(pattern)
        return self.flows.setdefault(pattern, Flow(pattern)) if flow is None else flow

    def closed(self, code: int, side: str) -> None:
        # A client may send any code, and what is told apart must not be its choice.
        self.closes[str(code) if code in NAMED_CODES else f"{code // 1000}xxx", side] += 1

    def absorb(self, other: Stats) -> None:
        """Count what another one counted, which has come to its end."""
        self.accepted += other.accepted
        self.counts.update(other.counts)
        self.closes.update(other.closes)
        for kind, requests in other.requests.items():
            self.requests[kind].absorb(requests)
        for pattern, flow in other.flows.items():
            self.flow(pattern).absorb(flow)
        self.lag.absorb(other.lag)


NAMED_CODES = frozenset(CLOSE_CODES) | {int(CloseCode.NO_STATUS)}
"""Close codes that are told apart."""


class LoopLag:
    """Watch by how much the event loop is late."""

    INTERVAL = 0.1
    """Seconds between two looks."""
    WINDOW = 15.0
    """Seconds over which the greatest delay is known, and up to twice as long."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._windows = (0.0, 0.0)
        self._until = 0.0
        self._timer = self._next()

    @property
    def greatest(self) -> float:
        """The greatest delay of late, in seconds."""
        return max(*self._windows, time.monotonic() - self._due)

    def stop(self) -> None:
        self._timer.cancel()

    def _next(self) -> asyncio.TimerHandle:
        self._due = time.monotonic() + self.INTERVAL
        return self._loop.call_later(self.INTERVAL, self._look, context=ContextOfVariables())

    def _look(self) -> None:
        now = time.monotonic()
        before, current = self._windows
        if now >= self._until:
            before, current, self._until = current, 0.0, now + self.WINDOW
        self._windows = before, max(current, now - self._due)
        self._timer = self._next()
