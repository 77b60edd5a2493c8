"""A real Prometheus, as docs/observe.md sets it up, reads two servers with clients: dashboard and alerts work."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import subprocess
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from .live import ROOT, TIMEOUT, Client, Process, Server, System, free_port, manage, running_system
from .otlp import HURRY, Sink, receiving
from .shop.walkthrough import blocks_of
from .test_docs import rows
from .test_observe_docs import OBSERVE, PAGE, alerts, exported, queries
from .test_operate_docs import named

PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
MOST = 12
"""Connections that one server takes."""
LIMITS = {"REALTIME_MAX_CONNECTIONS": str(MOST), "REALTIME_RATE_LIMIT": "20", "REALTIME_RATE_BURST": "40"}
SUBSTITUTES = {"$__rate_interval": "1m", "$job": ".*", "$instance": ".*"}
QUIET = {"RealtimeNoServer", "RealtimeNotScraped", "RealtimeLayerDown", "RealtimeHeartbeatsMissing", "RealtimeRestarts"}
"""Alerts that have no reason to fire here."""

pytestmark = pytest.mark.skipif(PROMETHEUS is None or PROMTOOL is None, reason="no Prometheus is installed")


# What is observed


def block(first_line: str) -> str:
    """Return the file that the page shows, by its first line."""
    [text] = [block.text for block in blocks_of(ROOT / PAGE) if block.text.startswith(f"# {first_line}")]
    return text


def write_site(directory: Path) -> None:
    """Write a site that does what the page tells sites to do, and is the test site besides."""
    files = {
        "__init__": "",
        "telemetry": block("mysite/telemetry.py"),
        "settings": f"""
from tests.site.settings import *
from tests.site.settings import INSTALLED_APPS, REALTIME as OF_THE_TESTS
{block("mysite/settings.py")}
REALTIME |= OF_THE_TESTS
INSTALLED_APPS = [app for app in INSTALLED_APPS if app != "demows_project"]  # it sets up telemetry of its own
ROOT_URLCONF = "mysite.urls"
""",
        "urls": f"{block('mysite/urls.py')}\nfrom tests.site.urls import urlpatterns as more\nurlpatterns += more\n",
        "asgi": "from tests.site.asgi import application\n",
    }
    site = directory / "mysite"
    site.mkdir()
    for name, text in files.items():
        (site / f"{name}.py").write_text(text)


class Prometheus(Process):
    """Run a Prometheus with the configuration from the docs, which scrapes these targets every second."""

    def __init__(self, directory: Path, targets: list[str]) -> None:
        self.port = free_port()
        changes = {
            "scrape_interval: 15s": "scrape_interval: 1s",
            "evaluation_interval: 15s": "evaluation_interval: 1s",
            "- alerts.yml": f"- {OBSERVE / 'alerts.yml'}",
        }
        text = (OBSERVE / "prometheus.yml").read_text()
        for old, new in changes.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        configuration = directory / "prometheus.yml"
        configuration.write_text(f"{text.partition('      - targets:')[0]}      - targets: {json.dumps(targets)}\n")
        super().__init__(
            PROMETHEUS or "",
            f"--config.file={configuration}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        )

    def ask(self, path: str, **parameters: str) -> Any:
        """Return the data that the HTTP API answers with."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            answer = json.load(response)
        assert answer["status"] == "success", answer
        return answer["data"]

    def values(self, query: str) -> list[float]:
        """Return the values of an expression now, without those that are none."""
        result = self.ask("query", query=query)["result"]
        return [value for one in result if math.isfinite(value := float(one["value"][1]))]


class Load:
    """Be clients of servers, on a thread, until it is stopped."""

    def __init__(self, servers: list[Server]) -> None:
        self._servers = servers
        self._end = threading.Event()
        self._error: BaseException | None = None
        self.rounds = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what went wrong, if anything did."""
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        self._end.set()
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()
        self.check()

    def _run(self) -> None:
        try:
            asyncio.run(self._load())
        except BaseException as error:  # noqa: BLE001 - it is raised on the test's thread
            self._error = error

    async def _load(self) -> None:
        async with asyncio.TaskGroup() as group:
            for server in self._servers:
                group.create_task(self._keep(server))

    async def _keep(self, server: Server) -> None:
        async with Client(server.url) as subscriber:
            for topic in ("heartbeat", "news", "latest"):
                await subscriber.send({"type": "subscribe_request", "topic": topic})
            reading = asyncio.create_task(self._read(subscriber))
            while not self._end.is_set():
                await self._round(server)
                self.rounds += 1
                await asyncio.sleep(0.3)
            reading.cancel()

    async def _read(self, client: Client) -> None:
        async for _ in client.ws:
            pass

    async def _round(self, server: Server) -> None:
        await server.aget("/apublish/?count=5")
        async with Client(server.url) as client:
            await client.echo()
            for topic in ("forbidden", "raising", "news"):
                await client.ask({"type": "subscribe_request", "topic": topic})
            for message in ({"type": "unsubscribe_request", "topic": "news"}, {"type": "process_request"}, "no JSON"):
                await client.send(message)
            while (await client.receive())["type"] != "error":
                pass
        await self._refused(server)
        await self._limited(server)
        await self._closed(server)

    async def _refused(self, server: Server) -> None:
        with pytest.raises(InvalidStatus):
            async with Client(f"{server.url}nowhere"):
                pass
        with pytest.raises(InvalidStatus):
            async with Client(server.url, origin="https://example.com"):
                pass
        async with AsyncExitStack() as stack:
            with pytest.raises(InvalidStatus):
                await self._fill(server, stack)

    async def _fill(self, server: Server, stack: AsyncExitStack) -> None:
        for _ in range(MOST + 1):
            await stack.enter_async_context(Client(server.url))

    async def _limited(self, server: Server) -> None:
        async with Client(server.url) as client:
            for _ in range(100):
                await client.send({"type": "echo_request", "echo": ""})
            while (await client.receive())["type"] != "error":
                pass
            client.ws.transport.abort()  # the server reads the others, and a close, as slowly as it may

    async def _closed(self, server: Server) -> None:
        async with Client(server.url) as client:
            await client.subscribe("many-1")
            await server.aget("/close/?code=1012&topic=many-1")
            with pytest.raises(ConnectionClosed):
                await client.receive()


class Observed:
    """Be two servers on one Redis with a load, a Prometheus that scrapes them, and a sink for their spans."""

    def __init__(self, system: System, prometheus: Prometheus, sink: Sink, load: Load) -> None:
        self.system = system
        self.prometheus = prometheus
        self.sink = sink
        self.load = load

    def eventually(self, missing: Callable[[], Any]) -> None:
        """Wait until nothing is missing."""
        deadline = time.monotonic() + TIMEOUT
        while left := missing():
            self.load.check()
            assert time.monotonic() < deadline, f"missing after {TIMEOUT:g} s: {left}"
            time.sleep(0.2)


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    directory = tmp_path_factory.mktemp("observe")
    write_site(directory)
    database = {"DATABASE_URL": f"sqlite:///{directory / 'site.sqlite3'}"}
    assert manage("migrate", **database).wait(60) == 0
    metrics_port = free_port()
    with receiving() as sink:
        common = {**database, **LIMITS, **HURRY, "REALTIME_CONNECTION_REGISTRY": "true"}
        common["OTEL_EXPORTER_OTLP_ENDPOINT"] = sink.endpoint
        own = {
            "application": "mysite.asgi:application",
            "PYTHONPATH": f"{directory}:{ROOT}",
            "DJANGO_SETTINGS_MODULE": "mysite.settings",
        }
        demo = {
            "application": "demows_project.asgi:application",
            "DJANGO_SETTINGS_MODULE": "tests.site.settings",
            "OTEL_METRICS_EXPORTER": "prometheus",
            "OTEL_EXPORTER_PROMETHEUS_PORT": str(metrics_port),
        }
        servers = (("daphne", {**common, **own}), ("uvicorn", {**common, **demo}))
        with running_system(*servers, heartbeats=False) as system:
            system.broadcast(**HURRY, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint)
            daphne, uvicorn = system.servers
            port = uvicorn.wait_for_line(r"event=metrics_served address=127\.0\.0\.1 port=(\d+)")[1]
            prometheus = Prometheus(directory, [f"127.0.0.1:{daphne.port}", f"127.0.0.1:{port}"])
            try:
                prometheus.wait_for_line("Server is ready to receive web requests")
                load = Load(system.servers)
                try:
                    yield Observed(system, prometheus, sink, load)
                finally:
                    load.stop()
            finally:
                prometheus.stop()


def test_prometheus_has_every_metric_of_both_processes(observed: Observed) -> None:
    names = {name for name, _ in exported().values()}

    def missing() -> set[str]:
        counted = observed.prometheus.ask("query", query='count by (__name__, instance) ({__name__=~"realtime_.+"})')
        found: defaultdict[str, set[str]] = defaultdict(set)
        for one in counted["result"]:
            found[one["metric"]["__name__"]].add(one["metric"]["instance"])
        assert found.keys() <= names
        return {name for name in names if len(found[name]) < 2}

    observed.eventually(missing)
    assert observed.prometheus.values("count(count by (service_instance_id) (realtime_started == 1))") == [2.0]


def test_labels_are_those_that_the_page_lists(observed: Observed) -> None:
    for name, labels in exported().values():
        for one in observed.prometheus.ask("series", **{"match[]": name}):
            assert set(one) - {"__name__", "job", "instance"} == labels | {"service_instance_id"}, name


def test_every_query_of_the_dashboard_has_an_answer(observed: Observed) -> None:
    def missing() -> list[str]:
        return [f"{title}: {query}" for title, query in asked if not observed.prometheus.values(query)]

    asked = []
    for title, query in queries():
        for variable, value in SUBSTITUTES.items():
            query = query.replace(variable, value)
        asked.append((title, query))
    observed.eventually(missing)


def test_what_clients_did_is_counted(observed: Observed) -> None:
    expected = [
        'realtime_requests_total{realtime_outcome="INTERNAL_ERROR", realtime_request_type="subscribe_request"}',
        'realtime_requests_total{realtime_outcome="RATE_LIMITED"}',
        'realtime_requests_total{realtime_outcome="BAD_REQUEST", realtime_request_type="invalid"}',
        'realtime_closes_total{realtime_close_code="1012", realtime_close_side="server"}',
        'realtime_closes_total{realtime_close_code="1000", realtime_close_side="client"}',
        'realtime_handshakes_refused_total{realtime_reason="full"}',
        'realtime_handshakes_refused_total{realtime_reason="origin"}',
        'realtime_handshakes_refused_total{realtime_reason="path"}',
        'realtime_deliveries_total{messaging_destination_template="news"}',
        'realtime_deliveries_total{messaging_destination_template="heartbeat"}',
        "realtime_rate_limited_total",
    ]

    def missing() -> list[str]:
        return [query for query in expected if len(observed.prometheus.values(f"{query} > 0")) < 2]

    observed.eventually(missing)
    assert not observed.prometheus.values("realtime_gaps_total > 0")


def test_every_alert_is_evaluated_and_those_without_a_reason_are_silent(observed: Observed) -> None:
    for rule in alerts():
        observed.prometheus.ask("query", query=rule["expr"])

    def unwell() -> list[str]:
        [group] = observed.prometheus.ask("rules")["groups"]
        assert [rule["name"] for rule in group["rules"]] == [rule["alert"] for rule in alerts()]
        assert not [rule for rule in group["rules"] if rule["health"] == "err"]
        return [rule["name"] for rule in group["rules"] if rule["health"] != "ok"]

    observed.eventually(unwell)
    active = observed.prometheus.ask("alerts")["alerts"]
    assert not QUIET & {alert["labels"]["alertname"] for alert in active if alert["state"] == "firing"}


def test_alert_whose_reason_is_there_is_active(observed: Observed) -> None:
    def missing() -> set[str]:
        active = observed.prometheus.ask("alerts")["alerts"]
        assert not [alert for alert in active if "<error" in "".join(alert["annotations"].values())]
        return {"RealtimeFull", "RealtimeRequestErrors"} - {alert["labels"]["alertname"] for alert in active}

    observed.eventually(missing)


def test_collecting_fails_nowhere(observed: Observed) -> None:
    for server in observed.system.servers:
        assert not [line for line in server.lines if "Callback failed" in line or "event=telemetry_" in line]


def test_spans_are_as_the_page_says(observed: Observed) -> None:
    table = {named(row[0])[0]: (row[1], set(named(row[4]))) for row in rows(PAGE, "## Spans")}
    known = {*table, "process"}  # a request of the site's own

    def missing() -> set[str]:
        return known - {"…"} - {row_of(span.name) for span in observed.sink.spans}

    observed.eventually(missing)
    seen: defaultdict[str, set[str]] = defaultdict(set)
    for span in list(observed.sink.spans):
        if span.scope == "realtime":
            name = row_of(span.name)
            assert name in known
            kind, attributes = table["…" if name == "process" else name]
            assert span.kind == kind, name
            assert span.attributes.keys() <= attributes, name
            seen[name] |= span.attributes.keys()
    for name in known - {"…"}:
        never = table["…" if name == "process" else name][1] - seen[name]
        assert never <= {"error.type", "realtime.subprotocol"}, name


def row_of(span: str) -> str:
    """Return which row of the page a span belongs to."""
    operation, _, pattern = span.partition(" ")
    return f"{operation} …" if pattern else operation


# What the tool says that comes with it


def promtool(*arguments: str) -> str:
    """Return what promtool says of files that it finds nothing wrong with."""
    done = subprocess.run([PROMTOOL or "", *arguments], text=True, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_configuration_and_rules_are_valid() -> None:
    assert f"{len(alerts())} rules found" in promtool("check", "rules", str(OBSERVE / "alerts.yml"))
    promtool("check", "config", str(OBSERVE / "prometheus.yml"))


def series(name: str, values: str, **labels: str) -> dict[str, str]:
    """Return values that come every 15 s, as promtool writes them, of the first process unless ``labels`` say else."""
    labels = {"job": "realtime", "instance": "a:9464", "service_instance_id": "1", **labels}
    text = ", ".join(f'{label}="{value}"' for label, value in labels.items())
    return {"series": f"{name}{{{text}}}", "values": values}


def closes(values: str, code: str, side: str = "server") -> dict[str, str]:
    return series("realtime_closes_total", values, realtime_close_code=code, realtime_close_side=side)


def requests(values: str, outcome: str) -> dict[str, str]:
    return series("realtime_requests_total", values, realtime_outcome=outcome)


def lags(*slow: str) -> list[dict[str, str]]:
    """Return the counts of a hundred publications each time, of which so many took up to 1, 5 and 10 seconds."""
    bounds = zip(("1.0", "5.0", "10.0", "+Inf"), (*slow, "0+100x40"), strict=True)
    return [series("realtime_delivery_lag_bucket_total", values, le=bound) for bound, values in bounds]


def starts(count: int) -> list[dict[str, str]]:
    """Return the processes that were behind one address, one after the other."""
    each = 40 // count
    return [
        series(
            "realtime_start_time_seconds",
            " ".join([f"_x{each * number - 1}"] * (number > 0) + [f"{number + 1}x{each - 1}", "stale"]),
            service_instance_id=str(number),
        )
        for number in range(count)
    ]


Series = list[dict[str, str]]
CASES: dict[str, tuple[list[Series], list[Series]]] = {
    "RealtimeNoServer": ([[], [series("realtime_started", "0x40")]], [[series("realtime_started", "1x40")]]),
    "RealtimeNotScraped": (
        [[series("up", "0x40")]],
        [[series("up", "1x40")], [series("up", "0x40", job="another")]],
    ),
    "RealtimeRestarts": ([starts(5)], [starts(1), starts(4)]),
    "RealtimeLayerDown": ([[series("realtime_layer_up", "0x40")]], [[series("realtime_layer_up", "1x39 0")]]),
    "RealtimeHeartbeatsMissing": (
        [[series("realtime_heartbeat_missing", "1x40")]],
        [[series("realtime_heartbeat_missing", "0x40")]],
    ),
    "RealtimePublicationsLost": (
        [[series("realtime_gaps_total", "0x30 1x10")]],
        [[series("realtime_gaps_total", "7x40")], [series("realtime_gaps_total", "7x30 0x10")]],
    ),
    "RealtimeQueue": ([[series("realtime_layer_queue", "2000x40")]], [[series("realtime_layer_queue", "900x40")]]),
    "RealtimeSlowConsumers": (
        [[closes("0+1x40", "3008")]],
        [[closes("0x38 1 2", "3008")], [closes("0+1x40", "3008", "client")], [closes("0+1x40", "1001")]],
    ),
    "RealtimeClosedByFault": (
        [[closes("_x35 1x5", "1011")], [closes("1x35 2x5", "1011")]],
        [[closes("1x40", "1011")], [closes("0+1x40", "1011", "client")], [closes("0+1x40", "1001")]],
    ),
    "RealtimeFull": (
        [[series("realtime_handshakes_refused_total", "0+1x40", realtime_reason="full")]],
        [[series("realtime_handshakes_refused_total", "0+1x40", realtime_reason="path")]],
    ),
    "RealtimeUsersUnreadable": (
        [[series("realtime_handshakes_unidentified_total", "0+1x40")]],
        [[series("realtime_handshakes_unidentified_total", "9x40")]],
    ),
    "RealtimeEventLoopLag": (
        [[series("realtime_event_loop_lag_seconds", "0.6x40")]],
        [[series("realtime_event_loop_lag_seconds", "0.4x40")]],
    ),
    "RealtimeThreadsExhausted": (
        [[series("realtime_threads_busy", "8x40"), series("realtime_threads_limit", "8x40")]],
        [[series("realtime_threads_busy", "7x40"), series("realtime_threads_limit", "8x40")]],
    ),
    "RealtimeRegistryLag": (
        [[series("realtime_registry_lag_seconds", "10+15x40")]],
        [[series("realtime_registry_lag_seconds", "4x40")]],
    ),
    "RealtimeRequestErrors": (
        [[requests("0+2x40", "INTERNAL_ERROR"), requests("0+98x40", "OK")]],
        [
            [requests("0+2x40", "INTERNAL_ERROR"), requests("0+998x40", "OK")],
            [requests("0+2x40", "FORBIDDEN"), requests("0+98x40", "OK")],
        ],
    ),
    "RealtimeDeliveryLag": (
        [lags("0+90x40", "0+100x40", "0+100x40")],
        [lags("0+100x40", "0+100x40", "0+100x40")],
    ),
    "RealtimeSpansDropped": (
        [[series("realtime_spans_dropped_total", "0+1x40")]],
        [[series("realtime_spans_dropped_total", "5x40")]],
    ),
}
"""For each alert, when it fires and when it does not, ten minutes after the beginning."""


def test_every_alert_has_cases() -> None:
    assert list(CASES) == [rule["alert"] for rule in alerts()]


@pytest.mark.parametrize("alert", CASES)
def test_alert_fires_on_its_cause_and_on_nothing_else(alert: str, tmp_path: Path) -> None:
    bad, good = CASES[alert]
    firing = f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})'
    tests = [
        {
            "interval": "15s",
            "input_series": case,
            "promql_expr_test": [{"expr": firing, "eval_time": "10m", "exp_samples": expected}],
        }
        for cases, expected in ((bad, [{"labels": "{}", "value": 1}]), (good, []))
        for case in cases
    ]
    path = tmp_path / "test.json"  # which is YAML as well
    content = {"rule_files": [str(OBSERVE / "alerts.yml")], "evaluation_interval": "15s", "tests": tests}
    path.write_text(json.dumps(content))
    promtool("test", "rules", str(path))
