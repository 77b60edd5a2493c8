"""
The demo's telemetry: OpenTelemetry set up from the environment, with the variables that its specification names.

- ``OTEL_EXPORTER_OTLP_ENDPOINT``: traces and metrics go there, by OTLP over HTTP (the extra ``otlp``).
- ``OTEL_METRICS_EXPORTER``: ``otlp``, ``prometheus``, ``none``, or several with commas between them. Prometheus (the
  extra ``prometheus``) is on where this is unset and ``DEBUG`` is on.
- ``OTEL_EXPORTER_PROMETHEUS_PORT``: each server process serves its metrics on a port of its own, from this one on.
- ``OTEL_TRACES_SAMPLER``, ``OTEL_SERVICE_NAME``, ``OTEL_RESOURCE_ATTRIBUTES``, ``OTEL_SDK_DISABLED`` and the others.

Nothing here keeps the demo from starting, nor for long from stopping.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from functools import cache
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from opentelemetry import metrics, trace

import realtime
from realtime.threads import Threads

logger = logging.getLogger("demows_project.telemetry")

STOP_TIMEOUT = 2.0
"""Seconds that sending what is left may take at the end, however the collector is."""
UNTRACED = r"^[a-z]+://[^/]+/(healthz|readyz|metrics)$"
"""URLs, as a pattern, that are asked for every few seconds."""
WITHOUT_QUERY = f"{__name__}.without_query"
WITHOUT_MESSAGES = f"{__name__}.without_messages"
EXCEPTION = "opentelemetry-instrumentor-django.exception_key"
"""Where the instrumentation keeps what a view raised, until the response."""

_providers: list[Any] = []
_done = False


def setup() -> None:
    """Set up what the environment asks for, once. What fails is logged, and left out."""
    global _done
    if _done:
        return
    _done = True
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() != "true":
        _attempt("traces", _set_up_traces)
        _attempt("metrics", _set_up_metrics)
        if _providers:
            atexit.register(stop)
    _attempt("http", _instrument_http)


def _attempt(part: str, function: Callable[[], None]) -> None:
    try:
        function()
    except Exception as error:  # noqa: BLE001 - exporters and their configuration are somebody else's
        logger.warning("event=telemetry_failed part=%s error=%r", part, error)


# HTTP


def without_query(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[..., HttpResponse]:
    """
    Keep query strings out of spans, as a middleware before the one that traces: there may be a token in one.

    Django's request has a copy of its own.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        if (scope := getattr(request, "scope", None)) is not None:
            vars(request)["scope"] = {**scope, "query_string": b""}
        return get_response(request)

    return middleware


def without_messages(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[..., HttpResponse]:
    """Keep the messages of exceptions out of spans, as a middleware behind the one that traces."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        if (error := request.META.get(EXCEPTION)) is not None:
            likeness = type(type(error).__name__, (Exception,), {"__module__": type(error).__module__})
            request.META[EXCEPTION] = likeness()
        return response

    return middleware


def _instrument_http() -> None:
    os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")  # the stable names, and seconds
    import opentelemetry.instrumentation.asgi  # noqa: F401 - else no request of an ASGI server is traced, silently
    from opentelemetry.instrumentation.django import DjangoInstrumentor

    names = ("OTEL_PYTHON_DJANGO_EXCLUDED_URLS", "OTEL_PYTHON_EXCLUDED_URLS")
    excluded = None if any(name in os.environ for name in names) else UNTRACED
    settings.MIDDLEWARE = [WITHOUT_QUERY, WITHOUT_MESSAGES, *settings.MIDDLEWARE]
    DjangoInstrumentor().instrument(excluded_urls=excluded, middleware_position=1)


# Traces and metrics


def _set_up_traces() -> None:
    if not _otlp("TRACES"):
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from .sampling import FollowLinks

    provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
    provider.sampler = FollowLinks(provider.sampler)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    _providers.append(provider)


def _set_up_metrics() -> None:
    readers: list[Any] = []
    _attempt("otlp metrics", lambda: readers.extend(_otlp_readers()))
    _attempt("prometheus", lambda: readers.extend(_prometheus_readers()))
    if not readers:
        return
    from opentelemetry.sdk.metrics import MeterProvider

    provider = MeterProvider(readers, resource=_resource(), shutdown_on_exit=False)
    metrics.set_meter_provider(provider)
    _providers.append(provider)


def _otlp_readers() -> list[Any]:
    if not _otlp("METRICS"):
        return []
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    return [PeriodicExportingMetricReader(OTLPMetricExporter())]


def _prometheus_readers() -> list[Any]:
    exporters = _exporters("METRICS")
    if not (settings.DEBUG if exporters is None else "prometheus" in exporters):
        return []
    try:
        from realtime.prometheus import metric_reader
    except ImportError:
        if exporters is None:  # nobody asked for it
            return []
        raise
    return [metric_reader()]


def _exporters(signal: str) -> set[str] | None:
    """Return the exporters that the environment names for a signal, or None where it names none."""
    value = os.environ.get(f"OTEL_{signal}_EXPORTER", "").strip()
    return {name.strip().lower() for name in value.split(",")} if value else None


def _otlp(signal: str) -> bool:
    """Return whether a signal goes to a collector: one is set, and no other exporter takes its place."""
    exporters = _exporters(signal)
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    return any(os.environ.get(name) for name in endpoints) and (exporters is None or "otlp" in exporters)


@cache
def _resource() -> Any:
    """Return what this process is. The environment may name the service, but no instance: each process is one."""
    from opentelemetry.sdk.resources import Resource

    given = Resource.create()
    named = "unknown_service" not in str(given.attributes.get("service.name", "unknown_service"))
    attributes = {
        "service.name": given.attributes["service.name"] if named else "demows",
        "service.version": given.attributes.get("service.version", realtime.__version__),
    }
    resource = Resource.create(attributes | _process())
    if hasattr(os, "register_at_fork"):
        # The SDK renews no more than the instance, and only its newer versions do that.
        os.register_at_fork(after_in_child=lambda: _become(resource, resource.merge(Resource(_process()))))
    return resource


def _process() -> dict[str, Any]:
    return {"service.instance.id": str(uuid.uuid4()), "process.pid": os.getpid()}


def _become(resource: Any, other: Any) -> None:
    resource._attributes = other.attributes  # all that was made with the resource has this very one


# Serving and stopping


def serve_metrics() -> None:
    """Serve the metrics of this server process on a port of its own, where ``OTEL_EXPORTER_PROMETHEUS_PORT`` asks."""
    if port := os.environ.get("OTEL_EXPORTER_PROMETHEUS_PORT"):
        _attempt("prometheus port", lambda: _serve_metrics(int(port)))


def _serve_metrics(port: int) -> None:
    from realtime import prometheus

    if not prometheus.reads():
        logger.warning("event=metrics_not_served port=%d reason='OTEL_METRICS_EXPORTER names no prometheus'", port)
        return
    prometheus.serve(port, os.environ.get("OTEL_EXPORTER_PROMETHEUS_HOST") or "127.0.0.1")


def stop() -> None:
    """Send what has not been sent yet, for two seconds at most: a collector that hangs must not hold up a stop."""
    providers = _providers.copy()
    _providers.clear()
    threads = [threading.Thread(target=_shut_down, args=[provider], daemon=True) for provider in providers]
    deadline = time.monotonic() + STOP_TIMEOUT
    try:
        for thread in threads:
            thread.start()
    except RuntimeError:  # too late for that: some versions of Python start no threads any more
        return
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def _shut_down(provider: Any) -> None:
    try:
        provider.shutdown()
    except Exception as error:  # noqa: BLE001
        logger.debug("event=telemetry_not_stopped error=%r", error)


def with_telemetry(application: Any) -> Any:
    """Return the ASGI application, with the telemetry sent at its lifespan's end: uvicorn dies of the signal then."""

    async def traced_application(scope: Any, receive: Any, send: Any) -> None:
        async def stop_and_send(message: Any) -> None:
            if message["type"] == "lifespan.shutdown.complete":
                await Threads(1).run_queued(stop)
            await send(message)

        await application(scope, receive, stop_and_send if scope["type"] == "lifespan" else send)

    return traced_application
