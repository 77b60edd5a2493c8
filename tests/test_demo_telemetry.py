"""The demo's telemetry, with real servers and a real receiver; and the metrics that Prometheus reads."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
from django.test import AsyncRequestFactory
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace import Link, SpanContext, TraceFlags
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from demows_project.sampling import FollowLinks
from realtime import prometheus

from .live import ROOT, TIMEOUT, Client, Server, free_port, running
from .otlp import HURRY, Sink, receiving
from .test_live_commands import Site

APPLICATION = "demows_project.asgi:application"
LATER = {"OTEL_BSP_SCHEDULE_DELAY": "600000", "OTEL_METRIC_EXPORT_INTERVAL": "600000"}
"""The environment of a process that sends what it has when it ends."""
PROMPT = 6.0
"""Seconds in which a server without clients has ended, though the collector is gone."""
SERVED = r"event=metrics_served address=127\.0\.0\.1 port=(\d+)"


@pytest.fixture
def sink() -> Iterator[Sink]:
    with receiving() as sink:
        yield sink


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """The demo's environment, with a database of its own and without ``DEBUG``."""
    return {"application": APPLICATION, "DATABASE_URL": f"sqlite:///{tmp_path / 'demo.sqlite3'}", "DEBUG": ""}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    try:
        yield site
    finally:
        site.stop()


def get(port: int, path: str, **headers: str) -> tuple[int, str]:
    """Return the status and the text of a page."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return response.status, response.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def instances(families: list[Metric]) -> set[str]:
    """Return the instances that series have, where each has one."""
    samples = [sample for family in families for sample in family.samples]
    assert samples
    return {sample.labels["service_instance_id"] for sample in samples}


def script(code: str, **env: str) -> list[str]:
    """Return what Python prints that has the demo set up, in a process of its own; log lines are in it as well."""
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "demows_project.settings", "SECRET_KEY": "s", "DEBUG": "", **env}
    code = f"import django; django.setup()\n{code}"
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [*done.stdout.splitlines(), *done.stderr.splitlines()]


# Spans and metrics of HTTP


def test_http_request_makes_a_span(kind: str, env: dict[str, str], sink: Sink) -> None:
    with running(kind, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint, **HURRY, **env) as server:
        assert get(server.port, "/nowhere")[0] == 404
        span = sink.wait_for_span("GET")
        sink.wait_for_metric("http.server.request.duration")
    assert (span.kind, span.parent, span.scope) == ("server", "", "opentelemetry.instrumentation.django")
    assert span.attributes["url.path"] == "/nowhere"
    assert span.attributes["http.response.status_code"] == 404
    assert span.resource["service.name"] == "demows"
    assert span.resource["service.version"]
    assert span.resource["process.pid"] == server.pid
    [instance] = {point.resource["service.instance.id"] for points in sink.metrics.values() for point in points}
    assert instance == span.resource["service.instance.id"]
    assert "Traceback" not in server.output


def test_span_has_the_route_and_the_callers_trace(kind: str, env: dict[str, str], sink: Sink) -> None:
    with running(kind, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint, **HURRY, **env) as server:
        get(server.port, "/admin/login/", traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
        span = sink.wait_for_span("GET admin/login/")
    assert (span.trace_id, span.parent) == ("a" * 32, "b" * 16)
    assert span.attributes["http.route"] == "admin/login/"


def test_query_string_is_in_no_span(kind: str, env: dict[str, str], sink: Sink) -> None:
    env |= {"OTEL_SEMCONV_STABILITY_OPT_IN": "http/dup"}  # the old names and the new
    with running(kind, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint, **HURRY, **env) as server:
        assert get(server.port, "/readyz?strict=1&token=sesame")[0] in (200, 503)
        assert get(server.port, "/admin/login/?next=/admin/&token=sesame")[0] == 200
        span = sink.wait_for_span("GET admin/login/")
        points = sink.wait_for_metric("http.server.request.duration")
    assert span.attributes["url.path"] == "/admin/login/"
    assert span.attributes["http.url"].endswith("/admin/login/")
    assert "sesame" not in repr([sink.spans, points])


def test_query_string_reaches_the_view(env: dict[str, str], sink: Sink) -> None:
    with running("uvicorn", OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint, **env) as server:
        assert 'value="/admin/realtime/"' in get(server.port, "/admin/login/?next=/admin/realtime/")[1]


def test_probes_make_no_spans(kind: str, env: dict[str, str], sink: Sink) -> None:
    env |= {"OTEL_METRICS_EXPORTER": "prometheus"}
    with running(kind, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint, **HURRY, **env) as server:
        for path in ("/healthz", "/readyz", "/metrics", "/healthz?a=b", "/last"):
            get(server.port, path)
        sink.wait_for(lambda sink: any(span.attributes["url.path"] == "/last" for span in sink.spans))
    assert [span.attributes["url.path"] for span in sink.named("GET")] == ["/last"]
    assert not sink.named("GET healthz")


def test_excluded_urls_are_the_environments(env: dict[str, str], sink: Sink) -> None:
    env |= {"OTEL_PYTHON_DJANGO_EXCLUDED_URLS": "nowhere"}
    with running("uvicorn", OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint, **HURRY, **env) as server:
        get(server.port, "/nowhere")
        get(server.port, "/healthz")
        sink.wait_for_span("GET healthz")
    assert not sink.named("GET")


async def test_websockets_are_not_wrapped(kind: str, env: dict[str, str], sink: Sink) -> None:
    with running(kind, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint, **HURRY, **env) as server:
        async with Client(server.url) as client:
            await client.echo()
        await asyncio.to_thread(get, server.port, "/admin/login/")
        sink.wait_for_span("GET admin/login/")
    of_django = [span for span in sink.spans if span.scope == "opentelemetry.instrumentation.django"]
    assert [span.name for span in of_django] == ["GET admin/login/"]
    assert "Traceback" not in server.output


def test_compressed_data_arrives(env: dict[str, str], sink: Sink) -> None:
    env |= {"OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"}
    with running("uvicorn", OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint, **HURRY, **env) as server:
        get(server.port, "/admin/login/")
        sink.wait_for_span("GET admin/login/")


# The end


def test_last_spans_are_sent_at_the_stop(kind: str, env: dict[str, str], sink: Sink) -> None:
    with running(kind, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint, **LATER, **env) as server:
        get(server.port, "/admin/login/")
        assert not sink.requests
        server.signal(signal.SIGTERM)
        server.wait()
    sink.wait_for_span("GET admin/login/")
    sink.wait_for_metric("http.server.request.duration")


def assert_stops_promptly(server: Server) -> None:
    began = time.monotonic()
    server.signal(signal.SIGTERM)
    code = server.wait()
    assert time.monotonic() - began < PROMPT
    assert code in (0, -signal.SIGTERM)
    assert "Traceback" not in server.output
    assert "Fatal Python error" not in server.output


@pytest.mark.parametrize("when", [HURRY, LATER], ids=["while sending", "before sending"])
def test_silent_collector_holds_up_no_stop(kind: str, env: dict[str, str], when: dict[str, str]) -> None:
    with receiving(silent=True) as sink:
        with running(kind, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint, **when, **env) as server:
            assert get(server.port, "/admin/login/")[0] == 200
            if when is HURRY:
                sink.wait_for_span("GET admin/login/")
            assert get(server.port, "/healthz")[0] == 200
            assert_stops_promptly(server)
        assert sink.named("GET admin/login/")


def test_dead_collector_costs_nothing(kind: str, env: dict[str, str]) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    with running(kind, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, **HURRY, **env) as server:
        assert get(server.port, "/admin/login/")[0] == 200
        server.wait_for_line("(exporting|export) spans batch")
        assert get(server.port, "/healthz")[0] == 200
        assert_stops_promptly(server)


# Processes


def ports_of(process: Any, count: int) -> list[int]:
    """Return the ports that so many processes say they serve metrics on."""
    ports: list[int] = []
    begin = 0
    for _ in range(count):
        ports.append(int(process.wait_for_line(SERVED, start=begin)[1]))
        begin = next(n for n, line in enumerate(process.lines) if n >= begin and re.search(SERVED, line)) + 1
    return ports


def test_workers_are_an_instance_and_a_port_each(site: Site, sink: Sink) -> None:
    first = free_port()
    process = site.serve(
        "--workers",
        "2",
        OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint,
        OTEL_METRICS_EXPORTER="otlp,prometheus",
        OTEL_EXPORTER_PROMETHEUS_PORT=str(first),
        **HURRY,
    )
    ports = ports_of(process, 2)
    assert len({*ports}) == 2
    assert all(first <= port <= first + 100 for port in ports)
    for _ in range(20):
        get(site.port, "/admin/login/")
    pages = [list(parse(get(port, "/metrics")[1])) for port in ports]
    [one], [other] = map(instances, pages)
    assert one != other
    shown = list(parse(get(site.port, "/metrics")[1]))
    assert instances(shown) <= {one, other}
    span = sink.wait_for_span("GET admin/login/")
    assert span.resource["service.instance.id"] in (one, other)
    process.signal(signal.SIGTERM)
    process.wait()
    lines = [line for line in process.lines if "event=metrics_served" in line]
    assert len(lines) == 2, "neither serve itself nor run_heartbeats serves metrics"


def test_workers_with_a_silent_collector_stop(site: Site) -> None:
    with receiving(silent=True) as sink:
        process = site.serve("--workers", "2", OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint, **HURRY)
        get(site.port, "/admin/login/")
        sink.wait_for_span("GET admin/login/")
        began = time.monotonic()
        process.signal(signal.SIGTERM)
        process.wait()
        assert time.monotonic() - began < 10


def test_processes_on_one_socket_have_a_port_each(env: dict[str, str]) -> None:
    first = free_port()
    env |= {"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": str(first)}
    with running("daphne", **env) as one, running("daphne", **env) as other:
        ports = ports_of(one, 1) + ports_of(other, 1)
        assert len({*ports}) == 2
        for server in (one, other):
            get(server.port, "/")
        [mine], [its] = (instances(list(parse(get(port, "/")[1]))) for port in ports)
    assert mine != its


def test_commands_serve_no_metrics(site: Site) -> None:
    env = {"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": str(free_port())}
    process = site.manage("check", **env)
    assert process.wait() == 0
    assert "event=metrics_served" not in process.output


def test_fork_is_an_instance_of_its_own(sink: Sink) -> None:
    code = """
import os
from opentelemetry import trace
from opentelemetry.trace import get_tracer
if (child := os.fork()) == 0:
    with get_tracer("fork").start_as_current_span("child"):
        pass
    trace.get_tracer_provider().force_flush()
    os._exit(0)
os.waitpid(child, 0)
with get_tracer("fork").start_as_current_span("parent"):
    pass
"""
    script(code, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint, **LATER)
    child, parent = sink.wait_for_span("child"), sink.wait_for_span("parent")
    assert child.resource["service.instance.id"] != parent.resource["service.instance.id"]
    assert child.resource["process.pid"] != parent.resource["process.pid"]


# What the environment says


def test_environment_names_the_service_but_not_the_instance(sink: Sink) -> None:
    code = "from opentelemetry.trace import get_tracer\nget_tracer('t').start_span('named').end()"
    names = {"OTEL_SERVICE_NAME": "board", "OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=x,deployment=test"}
    script(code, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint, **names)
    resource = sink.wait_for_span("named").resource
    assert (resource["service.name"], resource["deployment"]) == ("board", "test")
    assert resource["service.instance.id"] != "x"


PROVIDERS = """
from opentelemetry import metrics, trace
from realtime import prometheus
print(type(trace.get_tracer_provider()).__name__, type(metrics.get_meter_provider()).__name__, prometheus.reads())
"""
NONE = "ProxyTracerProvider _ProxyMeterProvider False"


@pytest.mark.parametrize(
    ("env", "providers"),
    [
        ({}, NONE),
        ({"DEBUG": "1"}, "ProxyTracerProvider MeterProvider True"),
        ({"DEBUG": "1", "OTEL_METRICS_EXPORTER": "none"}, NONE),
        ({"OTEL_METRICS_EXPORTER": "none, prometheus"}, "ProxyTracerProvider MeterProvider True"),
        ({"OTEL_METRICS_EXPORTER": "otlp"}, NONE),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "set"}, "TracerProvider MeterProvider False"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "set", "OTEL_METRICS_EXPORTER": "none"}, "TracerProvider _Proxy False"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "set", "OTEL_TRACES_EXPORTER": "none"}, "ProxyTracer MeterProvider False"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "set", "OTEL_SDK_DISABLED": "true", "DEBUG": "1"}, NONE),
    ],
)
def test_providers_are_what_the_environment_asks_for(env: dict[str, str], providers: str, sink: Sink) -> None:
    if "OTEL_EXPORTER_OTLP_ENDPOINT" in env:
        env = env | {"OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint}
    said = script(PROVIDERS, **env)[0].split()
    for name, wanted in zip(said, providers.split(), strict=True):
        assert name.startswith(wanted)


def test_setup_is_done_once() -> None:
    code = """
from demows_project import telemetry
from django.conf import settings
telemetry.setup()
print([name.rpartition(".")[2] for name in settings.MIDDLEWARE[:4]], len(settings.MIDDLEWARE), telemetry._providers)
"""
    [line, *logged] = script(code, DEBUG="1")
    assert line.startswith("['without_query', '_DjangoMiddleware', 'without_messages', 'SecurityMiddleware'] 12 [<")
    assert line.count("MeterProvider") == 1
    assert logged == []


@pytest.mark.parametrize(
    "env",
    [
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_METRIC_EXPORT_INTERVAL": "-1"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "-1"},
    ],
)
def test_what_cannot_be_set_up_is_logged(env: dict[str, str]) -> None:
    said = script("print('up')", **env)
    assert said[0] == "up"
    assert any("event=telemetry_failed part=" in line for line in said)


# What is not installed


def without(directory: Path, *modules: str) -> str:
    """Return a ``PYTHONPATH`` with which these modules are not found."""
    (directory / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({modules!r}))\n")
    return f"{directory}{os.pathsep}{ROOT}"


@pytest.mark.parametrize(
    "modules",
    [
        ["opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.instrumentation", "prometheus_client"],
        ["opentelemetry.exporter"],
        ["opentelemetry.instrumentation.asgi"],
        ["opentelemetry.instrumentation.django"],
        ["prometheus_client"],
    ],
)
def test_demo_starts_without_what_is_not_installed(env: dict[str, str], tmp_path: Path, modules: list[str]) -> None:
    env |= {"PYTHONPATH": without(tmp_path, *modules), "DEBUG": "1", "OTEL_EXPORTER_PROMETHEUS_PORT": str(free_port())}
    with running("daphne", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", **env) as server:
        assert get(server.port, "/healthz")[0] == 200
        assert get(server.port, "/")[0] == 200
        if "prometheus_client" in modules:
            assert get(server.port, "/metrics")[0] == 404
        assert "Traceback" not in server.output


def test_missing_exporter_is_logged_where_it_was_asked_for(tmp_path: Path) -> None:
    path = without(tmp_path, "prometheus_client")
    assert not any("telemetry_failed" in line for line in script("", PYTHONPATH=path, DEBUG="1"))
    said = script("", PYTHONPATH=path, OTEL_METRICS_EXPORTER="prometheus")
    assert any("event=telemetry_failed part=prometheus" in line for line in said)


# The page for Prometheus


@pytest.fixture
def meters(monkeypatch: pytest.MonkeyPatch) -> Iterator[MeterProvider]:
    """A provider of the test's own, whose metrics Prometheus reads."""
    monkeypatch.setattr(prometheus, "_registry", prometheus.Registry())
    monkeypatch.setattr(prometheus, "_reader", None)
    resource = Resource({"service.instance.id": "i-1", "service.name": "test"})
    provider = MeterProvider([prometheus.metric_reader()], resource=resource, shutdown_on_exit=False)
    yield provider
    provider.shutdown()


async def test_page_has_every_series_with_its_instance(meters: MeterProvider) -> None:
    meter = meters.get_meter("tests", "1.0")
    meter.create_counter("things.done", unit="1").add(2, {"kind": "a"})
    meter.create_histogram("thing.duration", unit="s").record(0.5)
    meter.create_observable_gauge("things.open", callbacks=[])
    response = await prometheus.metrics(AsyncRequestFactory().get("/metrics"))
    assert response.status_code == 200
    assert response["Content-Type"].startswith("text/plain")
    assert response["Cache-Control"] == "no-store"
    families = list(parse(response.content.decode()))
    assert instances(families) == {"i-1"}
    samples = {sample.name: sample for family in families for sample in family.samples}
    assert samples["things_done_total"].labels == {"kind": "a", "service_instance_id": "i-1"}
    assert samples["thing_duration_seconds_sum"].value == 0.5


async def test_page_is_openmetrics_on_request(meters: MeterProvider) -> None:
    meters.get_meter("tests").create_counter("things").add(1)
    headers = {"Accept": "application/openmetrics-text; version=1.0.0"}
    response = await prometheus.metrics(AsyncRequestFactory().get("/metrics", headers=headers))
    assert response["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert instances(list(parse_openmetrics(response.content.decode()))) == {"i-1"}


async def test_page_is_made_outside_of_the_loops_threads(meters: MeterProvider) -> None:
    names: list[str] = []

    def observe(_: object) -> list[Any]:
        names.append(threading.current_thread().name)
        return []

    meters.get_meter("tests").create_observable_gauge("things", callbacks=[observe])
    await prometheus.metrics(AsyncRequestFactory().get("/metrics"))
    [name] = names
    assert name.startswith("realtime-")


async def test_page_is_missing_where_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "_reader", None)
    assert (await prometheus.metrics(AsyncRequestFactory().get("/metrics"))).status_code == 404


async def test_page_is_only_read(meters: MeterProvider) -> None:
    assert (await prometheus.metrics(AsyncRequestFactory().post("/metrics"))).status_code == 405


async def test_page_says_when_collecting_fails(
    meters: MeterProvider, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("no\nway")

    monkeypatch.setattr(prometheus.Registry, "collect", fail)
    assert (await prometheus.metrics(AsyncRequestFactory().get("/metrics"))).status_code == 500
    assert "event=metrics_failed error=RuntimeError: no\\nway" in caplog.text


def test_several_readers_at_once_get_everything_each(meters: MeterProvider) -> None:
    meters.get_meter("tests").create_counter("things").add(1)
    pages: list[list[str]] = []

    def read() -> None:
        for _ in range(50):
            pages.append([family.name for family in prometheus._registry.collect()])

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {*map(tuple, pages)} == {("target", "things")}


def test_reader_is_one_for_the_process(meters: MeterProvider) -> None:
    assert prometheus.metric_reader() is prometheus.metric_reader()


# The port for Prometheus


def test_serve_takes_the_first_free_port(meters: MeterProvider, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    meters.get_meter("tests").create_counter("things").add(1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        first = taken.getsockname()[1]
        port = prometheus.serve(first)
    assert port is not None
    assert first < port <= first + 100
    assert f"event=metrics_served address=127.0.0.1 port={port}" in caplog.text
    assert instances(list(parse(get(port, "/metrics")[1]))) == {"i-1"}


def test_serve_without_a_free_port_is_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(prometheus, "FURTHER_PORTS", 0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert prometheus.serve(taken.getsockname()[1]) is None
    assert "event=metrics_not_served address=127.0.0.1" in caplog.text


def test_serve_on_an_address_that_is_not_ours_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert prometheus.serve(free_port(), "192.0.2.1") is None
    assert caplog.text.count("event=metrics_not_served address=192.0.2.1") == 1


def test_port_that_is_no_number_is_logged(env: dict[str, str]) -> None:
    env |= {"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": "many"}
    with running("uvicorn", **env) as server:
        assert "event=telemetry_failed part=prometheus port" in server.output


def test_port_without_metrics_is_not_opened(env: dict[str, str]) -> None:
    with running("uvicorn", OTEL_EXPORTER_PROMETHEUS_PORT=str(free_port()), **env) as server:
        server.wait_for_line("event=metrics_not_served .* reason=")
        assert get(server.port, "/metrics")[0] == 404


# Sampling


def context(*, is_remote: bool = False, sampled: bool = True) -> SpanContext:
    return SpanContext(1, 1, is_remote, TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT))


@pytest.mark.parametrize(
    ("linked", "sampled"),
    [
        ([], False),
        ([context()], True),
        ([context(is_remote=True), context()], True),
        ([context(is_remote=True)], False),
        ([context(sampled=False)], False),
        ([SpanContext(0, 0, False, TraceFlags(TraceFlags.SAMPLED))], False),
    ],
    ids=["none", "local", "both", "remote", "not sampled", "invalid"],
)
def test_root_span_is_sampled_with_what_it_links_to(linked: list[SpanContext], sampled: bool) -> None:
    provider = TracerProvider(FollowLinks(ALWAYS_OFF), shutdown_on_exit=False)
    span = provider.get_tracer("tests").start_span("request", links=[Link(one) for one in linked])
    assert span.get_span_context().trace_flags.sampled == sampled


def test_span_with_a_parent_is_sampled_as_ever() -> None:
    provider = TracerProvider(FollowLinks(ALWAYS_OFF), shutdown_on_exit=False)
    tracer = provider.get_tracer("tests")
    with tracer.start_as_current_span("parent"):
        span = tracer.start_span("child", links=[Link(context())])
    assert not span.get_span_context().trace_flags.sampled


def test_sampler_says_what_it_is() -> None:
    assert FollowLinks(ALWAYS_ON).get_description() == "FollowLinks{AlwaysOnSampler}"


def test_sampler_is_the_environments(sink: Sink) -> None:
    code = "from opentelemetry import trace; print(trace.get_tracer_provider().sampler.get_description())"
    env = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}
    said = script(code, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint, **env)
    assert said[0] == "FollowLinks{TraceIdRatioBased{0.25}}"
