"""
A sink for OpenTelemetry data: an OTLP receiver over HTTP, of which tests ask what arrived.

    with receiving() as sink:
        with running(kind, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint, **HURRY) as server:
            ...
        span = sink.wait_for_span("GET ")
"""

from __future__ import annotations

import gzip
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

T = TypeVar("T")

TIMEOUT = 20.0
"""Seconds that anything may take to arrive."""
HURRY = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_METRIC_EXPORT_INTERVAL": "100"}
"""The environment of a process that is to send what it has soon."""
KINDS = ("unspecified", "internal", "server", "client", "producer", "consumer")
STATUSES = ("unset", "ok", "error")


@dataclass(frozen=True)
class Event:
    """Be one event of a span, such as an exception."""

    name: str
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Span:
    """Be one span as it arrived. Ids are in hexadecimal."""

    name: str
    kind: str
    """One of ``KINDS``."""
    trace_id: str
    span_id: str
    parent: str
    """The id of the parent span, or "" for a root."""
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    """(trace id, span id) of each span that it links to."""
    status: str
    """One of ``STATUSES``."""
    events: list[Event]
    start: int
    """Nanoseconds since the epoch, like ``end``."""
    end: int
    scope: str
    """The name of the tracer."""
    resource: dict[str, Any]


@dataclass(frozen=True)
class Point:
    """Be one point of a metric as it arrived. The value of a histogram is how many values it has counted."""

    attributes: dict[str, Any]
    value: float
    sum: float
    """The sum of a histogram's values; of other metrics, the value."""
    resource: dict[str, Any]


class Sink:
    """
    Take what is sent to ``endpoint``, and keep it.

    ``silent`` takes requests and never answers them, as a collector does that hangs.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self.silent = silent
        self.spans: list[Span] = []
        self.metrics: dict[str, list[Point]] = {}
        """By the metric's name all points that arrived, the newest last."""
        self.requests = 0
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._server = _Server(self)
        threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()

    @property
    def endpoint(self) -> str:
        """The value for ``OTEL_EXPORTER_OTLP_ENDPOINT``."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Stop listening, so that whoever sends next is refused."""
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def wait_for(self, predicate: Callable[[Sink], T], timeout: float = TIMEOUT) -> T:
        """Return the first true value that ``predicate`` gives for this sink; it is asked whenever data arrives."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not (value := predicate(self)):
                left = deadline - time.monotonic()
                if left <= 0:
                    names = sorted({span.name for span in self.spans})
                    raise AssertionError(
                        f"not so within {timeout:g} s; spans: {names}, metrics: {sorted(self.metrics)}"
                    )
                self._changed.wait(left)
            return value

    def named(self, name: str, **attributes: Any) -> list[Span]:
        """Return the spans of a name that have these attributes; ``_`` stands for ``.`` in theirs."""
        wanted = {key.replace("_", "."): value for key, value in attributes.items()}
        return [span for span in self.spans if span.name == name and wanted.items() <= span.attributes.items()]

    def wait_for_span(self, name: str, timeout: float = TIMEOUT, **attributes: Any) -> Span:
        """Return the first span of a name that has these attributes, once there is one."""
        return self.wait_for(lambda sink: sink.named(name, **attributes), timeout)[0]

    def wait_for_metric(self, name: str, timeout: float = TIMEOUT) -> list[Point]:
        """Return the points of a metric that have arrived, once there is one."""
        return list(self.wait_for(lambda sink: sink.metrics.get(name, []), timeout))

    def _take(self, path: str, body: bytes) -> None:
        with self._changed:
            self.requests += 1
            if path == "/v1/traces":
                self.spans += _spans(ExportTraceServiceRequest.FromString(body))
            elif path == "/v1/metrics":
                for name, point in _points(ExportMetricsServiceRequest.FromString(body)):
                    self.metrics.setdefault(name, []).append(point)
            self._changed.notify_all()


@contextmanager
def receiving(*, silent: bool = False) -> Iterator[Sink]:
    """Run a sink for the length of a ``with`` block."""
    sink = Sink(silent=silent)
    try:
        yield sink
    finally:
        sink.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a sender may go away at any time."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        encoding = self.headers.get("Content-Encoding", "")
        if encoding == "gzip":
            body = gzip.decompress(body)
        elif encoding == "deflate":
            body = zlib.decompress(body)
        self.server.sink._take(self.path, body)
        if self.server.sink.silent:
            self.server.sink._stopped.wait()
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")  # a response message with no fields
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _spans(request: ExportTraceServiceRequest) -> Iterator[Span]:
    for part in request.resource_spans:
        resource = _attributes(part.resource.attributes)
        for scope in part.scope_spans:
            for span in scope.spans:
                yield Span(
                    name=span.name,
                    kind=KINDS[span.kind],
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    attributes=_attributes(span.attributes),
                    links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                    status=STATUSES[span.status.code],
                    events=[Event(event.name, _attributes(event.attributes)) for event in span.events],
                    start=span.start_time_unix_nano,
                    end=span.end_time_unix_nano,
                    scope=scope.scope.name,
                    resource=resource,
                )


def _points(request: ExportMetricsServiceRequest) -> Iterator[tuple[str, Point]]:
    for part in request.resource_metrics:
        resource = _attributes(part.resource.attributes)
        for scope in part.scope_metrics:
            for metric in scope.metrics:
                kind = metric.WhichOneof("data")
                for point in getattr(metric, kind).data_points if kind else ():
                    value, total = _value(point, kind)
                    yield metric.name, Point(_attributes(point.attributes), value, total, resource)


def _value(point: Any, kind: str) -> tuple[float, float]:
    if kind in ("gauge", "sum"):
        value = getattr(point, point.WhichOneof("value"))
        return value, value
    return point.count, point.sum


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _any(pair.value) for pair in pairs}


def _any(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_any(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    return getattr(value, kind) if kind else None
