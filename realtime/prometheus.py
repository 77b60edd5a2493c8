"""
Metrics for Prometheus, of this process alone. The extra ``prometheus`` brings what this needs.

``metric_reader`` is for the site's ``MeterProvider``; ``metrics`` is a view, and ``serve`` a port of this process's
own. Every series has the label ``service_instance_id``: behind a port that several processes share, whichever answers
is another source, and not the same one going backwards.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
from collections.abc import Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler

from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, HttpResponse, HttpResponseNotFound
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from prometheus_client import CollectorRegistry, Metric, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer, choose_encoder

from .hub import get_hub
from .logs import complain, described
from .threads import Threads
from .views import for_probes

logger = logging.getLogger("realtime.prometheus")

INSTANCE = "service.instance.id"
"""The attribute of the resource that is a label of every series."""
FURTHER_PORTS = 100
"""How many ports after the first one are tried."""
TAKEN = (errno.EADDRINUSE, errno.EACCES)
"""What may be better at the next port."""


class Registry(CollectorRegistry):
    """Collect for one at a time: the exporter keeps what it was given in one queue, for whoever takes it first."""

    def __init__(self) -> None:
        super().__init__()
        self._turn = threading.Lock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._unlock)

    def _unlock(self) -> None:
        self._turn = threading.Lock()

    def collect(self) -> Iterable[Metric]:
        with self._turn:
            return list(super().collect())


_registry = Registry()
_lock = threading.Lock()
_reader: PrometheusMetricReader | None = None
_threads = Threads(1)
"""Not those for the site's code: when all of them hang is when somebody will want to see the metrics."""


def metric_reader() -> PrometheusMetricReader:
    """Return the reader of this process, for its ``MeterProvider``. There is one, however often this is called."""
    global _reader
    with _lock:
        if _reader is None:
            _reader = PrometheusMetricReader(
                registry=_registry,
                scope_info_enabled=False,
                resource_attribute_filter=lambda key: key == INSTANCE,
            )
        return _reader


def reads() -> bool:
    """Return whether this process has a reader: without one there is nothing to show."""
    return _reader is not None


@for_probes
async def metrics(request: HttpRequest) -> HttpResponse:
    """Answer with this process's metrics, as text for Prometheus or as OpenMetrics: 404 where none are read."""
    if isinstance(request, ASGIRequest):
        try:
            get_hub()  # Daphne's is started by whoever is first, and without one there are no figures
        except ImproperlyConfigured as error:
            complain(logger, logging.ERROR, "event=hub_not_started", "error=%r", error)
    if not reads():
        return HttpResponseNotFound("This process has no metrics for Prometheus.\n", content_type="text/plain")
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    try:
        text = await _threads.run_queued(encode, _registry)
    except Exception as error:  # noqa: BLE001 - instruments are anybody's
        logger.error("event=metrics_failed error=%s", described(error))
        return HttpResponse("The metrics could not be collected.\n", content_type="text/plain", status=500)
    return HttpResponse(text, content_type=content_type)


def serve(port: int, host: str = "127.0.0.1") -> int | None:
    """
    Serve the metrics on a port of this process's own, from a thread that ends with it, and return which one it is.

    It is the first free one of ``port`` and the 100 after it. Where there is none, that is logged, and None returned.
    """
    failure: OSError | None = None
    for number in range(port, min(port + FURTHER_PORTS, 65535) + 1):
        try:
            server = _server(host, number)
        except OSError as error:
            failure = error
            if error.errno in TAKEN:
                continue
            break
        threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
        logger.info("event=metrics_served address=%s port=%d", host, server.server_port)
        return server.server_port
    logger.warning("event=metrics_not_served address=%s port=%d error=%r", host, port, failure)
    return None


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Log no requests: they come every few seconds."""


class _Server(ThreadingWSGIServer):
    allow_reuse_port = False  # some versions of Python allow it, and two processes would share the port

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("event=metrics_request_failed", exc_info=True)


class _Server6(_Server):
    address_family = socket.AF_INET6


def _server(host: str, port: int) -> _Server:
    server = (_Server6 if ":" in host else _Server)((host, port), _Handler)
    server.set_app(make_wsgi_app(_registry))
    return server
