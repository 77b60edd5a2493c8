"""What docs/observe.md, the dashboard and the alerts say is what the code measures."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from itertools import combinations
from typing import Any

import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry

from realtime.metrics import COUNTER, GAUGE, INSTRUMENTS, UP_DOWN
from realtime.telemetry import SCOPE, Key, Name

from .test_docs import ROOT, rows
from .test_operate_docs import named

PAGE = "docs/observe.md"
OBSERVE = ROOT / "docs" / "observe"
OF_TARGETS = {"job", "instance", "service_instance_id"}
"""Labels that Prometheus adds, and that of the process."""
OF_PROMETHEUS = {"up"}
"""Metrics of Prometheus' own."""
OF_THE_GO_PACKAGE = [
    *("span: accept", "span: request handling", "span: echo", "span: subscribe", "span: unsubscribe"),
    *("span: heartbeat", "span: close all"),
    *("instrument: total connections", "instrument: active connections", "instrument: start time"),
    "instrument: started",
]
WORDS = {
    *("sum", "min", "max", "by", "rate", "increase", "changes", "time", "vector", "absent", "histogram_quantile"),
    *("or", "unless", "offset"),
}
"""Functions and keywords of PromQL that queries use."""


# What is measured


@cache
def exported() -> dict[str, tuple[str, set[str]]]:
    """Return for each instrument what it is called in Prometheus, and its labels, as the exporter has it."""
    registry = CollectorRegistry()
    provider = MeterProvider([PrometheusMetricReader(registry=registry)], shutdown_on_exit=False)
    meter = provider.get_meter(SCOPE)
    create = {
        COUNTER: meter.create_observable_counter,
        UP_DOWN: meter.create_observable_up_down_counter,
        GAUGE: meter.create_observable_gauge,
    }
    found = {}
    seen: set[str] = set()
    for instrument in INSTRUMENTS:
        observation = Observation(1, {key.value: "x" for key in instrument.attributes})
        create[instrument.kind](instrument.name, [lambda options, it=observation: [it]], instrument.unit)
        samples = {sample.name: set(sample.labels) for family in registry.collect() for sample in family.samples}
        [name] = [name for name in samples if name.startswith("realtime_") and name not in seen]
        seen.add(name)
        found[instrument.name] = name, {label for label in samples[name] if not label.startswith("otel_")}
    provider.shutdown()
    return found


def instruments() -> list[list[str]]:
    return rows(PAGE, "## Metrics")


def test_every_instrument_has_a_row_that_says_what_it_is() -> None:
    listed = [(named(row[0])[0], row[2], [*named(row[3]), ""][0], named(row[4])) for row in instruments()]
    assert listed == [(one.name, one.kind, one.unit, [str(key) for key in one.attributes]) for one in INSTRUMENTS]


def test_every_instrument_is_called_in_prometheus_as_its_row_says() -> None:
    listed = {named(row[0])[0]: named(row[1]) for row in instruments()}
    assert listed == {instrument: [name] for instrument, (name, _) in exported().items()}


def test_every_instrument_has_a_meaning_and_something_to_do() -> None:
    assert all(len(row) == 7 and len(row[5]) > 5 and len(row[6].rstrip(" |")) > 10 for row in instruments())


def test_every_span_has_a_row() -> None:
    listed = [named(row[0])[0] for row in rows(PAGE, "## Spans")]
    requests = ["echo", "subscribe", "unsubscribe", "…"]
    assert sorted(name.removesuffix(" …") for name in listed) == sorted([*requests, *(name.value for name in Name)])


def test_every_attribute_is_in_a_table_and_nothing_else() -> None:
    of_spans = {name for row in rows(PAGE, "## Spans") for name in named(row[4])}
    of_metrics = {name for row in instruments() for name in named(row[4])}
    assert of_spans | of_metrics == {key.value for key in Key}


def test_everything_of_the_go_package_has_a_counterpart() -> None:
    table = rows(PAGE, "## The Go package's")
    assert [row[0] for row in table] == OF_THE_GO_PACKAGE
    spans = {named(row[0])[0] for row in rows(PAGE, "## Spans")}
    names = {instrument.name for instrument in INSTRUMENTS}
    for row in table:
        assert set(named(row[1])) <= (spans if row[0].startswith("span") else names)
        assert named(row[1])


# The dashboard


@cache
def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((OBSERVE / "dashboard.json").read_text())
    return content


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """Return the title and the expression of every query on the dashboard."""
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    everything = dashboard()["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    for panel in everything:
        grid = panel["gridPos"]
        assert grid["x"] >= 0
        assert grid["x"] + grid["w"] <= 24
        assert min(grid["w"], grid["h"]) >= 1
    for one, other in combinations([panel["gridPos"] for panel in everything], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)


def test_panels_have_a_title_a_description_a_unit_and_queries() -> None:
    assert len({panel["title"] for panel in panels()}) == len(panels())
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert all(target["expr"].strip() and target["legendFormat"] for target in panel["targets"])


def test_panels_and_variables_ask_the_chosen_datasource() -> None:
    variables = {variable["name"]: variable for variable in dashboard()["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    asked = [*panels(), *(target for panel in panels() for target in panel["targets"])]
    asked += [variable for variable in variables.values() if variable["type"] == "query"]
    assert {(one["datasource"]["type"], one["datasource"]["uid"]) for one in asked} == {("prometheus", "${datasource}")}


def test_every_query_is_narrowed_down_by_job_and_process() -> None:
    narrowed = re.escape('{job=~"$job", service_instance_id=~"$instance"') + "[,}]"
    for title, query in queries():
        for metric in metrics_in(query):
            asked = len(re.findall(rf"\b{metric}\b", query))
            assert asked == len(re.findall(rf"\b{metric}{narrowed}", query)), title
    names = {variable["name"] for variable in dashboard()["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard()["panels"])))
    assert used == names | {"__rate_interval"}


def test_every_instrument_is_on_the_dashboard() -> None:
    shown = {name for _, query in queries() for name in metrics_in(query)}
    assert shown == {name for name, _ in exported().values()}


def test_rows_are_those_of_the_page() -> None:
    titles = [panel["title"] for panel in dashboard()["panels"] if panel["type"] == "row"]
    assert titles == ["Traffic", "Latency", "Clients", "Channel layer and heartbeats", "Process"]


# The alerts


@cache
def alerts() -> list[dict[str, str]]:
    """Return the fields of every rule: of YAML just what is used there, as promtool reads all of it elsewhere."""
    rules = []
    for text in (OBSERVE / "alerts.yml").read_text().split("      - alert: ")[1:]:
        fields = dict(re.findall(r"^ {8,10}(\w+): (?!>-)(\S.*)$", text, re.MULTILINE))
        if folded := re.search(r"^ {8}expr: >-\n((?: {10}.*\n)+)", text, re.MULTILINE):
            fields["expr"] = " ".join(folded[1].split())
        rules.append({"alert": text.partition("\n")[0], **fields})
    return rules


def test_alerts_have_a_severity_and_say_what_it_is_and_where_to_read_on() -> None:
    assert len({rule["alert"] for rule in alerts()}) == len(alerts()) > 10
    for rule in alerts():
        assert set(rule) - {"for"} == {"alert", "expr", "severity", "summary", "description", "runbook"}
        assert rule["severity"] in ("critical", "warning", "info")
        assert rule["runbook"] == f"{PAGE}#{rule['alert'].lower()}"


def test_page_has_a_section_for_every_alert_and_no_other() -> None:
    section = (ROOT / PAGE).read_text().split("\n## Alerts\n")[1].split("\n## ")[0]
    assert re.findall(r"^### (.*)$", section, re.MULTILINE) == [rule["alert"] for rule in alerts()]


# What queries ask for


def words_in(query: str) -> set[str]:
    """Return the names in a query: of metrics, labels, functions."""
    bare = re.sub(r'"[^"]*"|\[[^\]]*\]|\b[\d.]+[smhd]?\b', " ", query)
    return set(re.findall(r"[A-Za-z_]\w*", bare))


def metrics_in(query: str) -> set[str]:
    """Return the metrics that a query asks for: names that stand for no label."""
    labels = {label for _, of in exported().values() for label in of}
    return {word for word in words_in(query) if word.startswith("realtime_")} - labels


def all_queries() -> list[tuple[str, str]]:
    return [*queries(), *((rule["alert"], rule["expr"]) for rule in alerts())]


@pytest.mark.parametrize(("title", "query"), all_queries())
def test_query_asks_for_metrics_and_labels_that_there_are(title: str, query: str) -> None:
    labels_of = dict(exported().values())
    asked = metrics_in(query)
    assert asked <= labels_of.keys()
    known = set().union(*(labels_of[name] for name in asked)) | OF_TARGETS | OF_PROMETHEUS | asked
    assert words_in(query) - known <= WORDS


def test_variables_ask_for_metrics_that_there_are() -> None:
    asked = [variable["query"]["query"] for variable in dashboard()["templating"]["list"][1:]]
    assert all(re.match(r"label_values\(realtime_started[{,]", query) for query in asked)
    assert "realtime_started" in {name for name, _ in exported().values()}


# Links


def headings(page: str) -> set[str]:
    """Return the anchors of a page, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links() -> Iterator[tuple[str, str]]:
    """Return the file and the anchor of every link on the page, in the alerts, and to the page from the others."""
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / PAGE).read_text()):
        path, _, anchor = target.partition("#")
        yield (f"docs/{path}" if path else PAGE), anchor
    for rule in alerts():
        path, _, anchor = rule["runbook"].partition("#")
        yield path, anchor


def test_every_link_leads_somewhere() -> None:
    for path, anchor in links():
        assert (ROOT / path).is_file(), path
        assert not anchor or anchor in headings(path), f"{path}#{anchor}"


def test_readme_and_operate_lead_to_the_page() -> None:
    assert "](docs/observe.md)" in (ROOT / "README.md").read_text()
    assert "](observe.md)" in (ROOT / "docs/operate.md").read_text()


def test_nothing_is_loaded_from_elsewhere() -> None:
    for path in OBSERVE.iterdir():
        assert not re.findall(r"https?://|//\w+\.\w+", path.read_text()), path
    addresses = set(re.findall(r"https?://([^/\s`:]+)", (ROOT / PAGE).read_text()))
    assert addresses <= {"collector", "127.0.0.1"}


# The configuration of Prometheus


def test_page_shows_the_configuration_as_the_file_has_it() -> None:
    [shown] = re.findall(r"^```yaml\n(.*?)^```", (ROOT / PAGE).read_text(), re.MULTILINE | re.DOTALL)
    assert (OBSERVE / "prometheus.yml").read_text().partition("\n")[2] == shown
