"""The benchmarks run, yield figures, and write them into the docs. How fast anything is is not tested here."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.report import BEGIN, END, PAGE, write
from benchmarks.samples import Sample
from benchmarks.sites import SITES, missing

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "benchmarks"]

linux = pytest.mark.skipif(sys.platform != "linux", reason="the CPU time of another process is read as Linux has it")


def results_of(options: str, file: Path) -> list[dict[str, Any]]:
    """Run the benchmarks, and return what they write to ``file``."""
    command = [*COMMAND, *options.split(), "--json", str(file)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            _, errors = process.communicate(timeout=180)
        finally:
            process.terminate()  # unlike a kill, it stops the servers as well
    assert process.returncode == 0, errors
    results: list[dict[str, Any]] = json.loads(file.read_text())["results"]
    return results


def assert_compared(result: dict[str, Any], *figures: str) -> None:
    """Assert that each site has these figures, and realtime their ratio to those of each peer."""
    assert [*result["figures"]] == ["realtime", *result["ratios"]]
    for row in (*result["figures"].values(), *result["ratios"].values()):
        assert row.keys() == set(figures)
        assert all(figure > 0 for figure in row.values()), result


COSTS = ("per_second", "server_cpu_us", "load_cpu_us")
LATENCIES = ("p50_ms", "p99_ms")


@linux
def test_every_scenario_yields_positive_figures(tmp_path: Path) -> None:
    peers = "--peer bare --peer plain --peer anonymous"
    results = results_of(f"all --server uvicorn --connections 60 --seconds 0.2 {peers}", tmp_path / "figures.json")
    assert {result["scenario"]: [*result["ratios"]] for result in results} == {
        "fanout": ["bare", "plain"],
        "rooms": ["bare", "plain"],
        "heartbeats": ["plain"],
        "echo": ["bare", "plain"],
        "connect": ["bare", "plain"],
        "idle": ["bare", "plain", "anonymous"],
    }
    for result in results:
        match result["scenario"]:
            case "idle":
                assert_compared(result, "connection_kib")
            case "heartbeats" | "connect":
                assert_compared(result, *COSTS)
            case _:
                assert_compared(result, *COSTS, *LATENCIES)


@linux
def test_peer_limits_what_is_measured(tmp_path: Path) -> None:
    options = "all --server uvicorn --connections 5 --seconds 0.1 --peer unobserved --peer unregistered"
    [fanout, echo, connect] = results_of(options, tmp_path / "figures.json")
    assert (fanout["scenario"], [*fanout["figures"]]) == ("fanout", ["realtime", "unobserved"])
    assert (echo["scenario"], [*echo["figures"]]) == ("echo", ["realtime", "unobserved"])
    assert (connect["scenario"], [*connect["figures"]]) == ("connect", ["realtime", "unregistered"])


@linux
def test_realtime_is_measured_alone_where_no_peer_is_chosen(tmp_path: Path) -> None:
    [result] = results_of("echo --server uvicorn --connections 5 --seconds 0.1 --peer none", tmp_path / "figures.json")
    assert [*result["figures"]] == ["realtime"]
    assert result["ratios"] == {}


def test_site_that_cannot_be_measured_here_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SITES, "chanx", SITES["chanx"]._replace(absent=lambda: "chanx cannot be imported"))
    assert missing("plain") is None
    assert missing("chanx") == "chanx is left out: chanx cannot be imported"


def test_percentiles_are_of_the_times_of_all_rounds() -> None:
    rounds = Sample(50, 1.0, {}, [0.001] * 50), Sample(50, 1.0, {}, [0.002] * 48 + [0.5, 0.9])
    figures = rounds[0].plus(rounds[1]).figures()
    assert figures == {"per_second": 50, "p50_ms": 2, "p99_ms": 900}


@linux
def test_publish_compares_synchronous_publishers_on_redis(tmp_path: Path) -> None:
    [result] = results_of("publish --seconds 0.5 --rounds 2", tmp_path / "figures.json")
    assert [*result["ratios"]] == ["plain"]
    assert_compared(result, "per_second", "publisher_cpu_us", "redis_cpu_us")


@linux
def test_scale_yields_the_figures_of_servers_and_redis(tmp_path: Path) -> None:
    [result] = results_of("scale --processes 2 --connections 10 --seconds 0.5", tmp_path / "figures.json")
    assert (result["server"], result["processes"], result["connections"]) == ("uvicorn", 2, 10)
    figures = result["figures"]
    assert figures.keys() == {
        *(*COSTS, *LATENCIES, "process_mib", "connection_kib"),
        *("redis_cpu_us", "redis_commands", "redis_received", "redis_sent"),
    }
    assert figures["per_second"] > 0
    assert round(figures["redis_commands"]) == 1
    assert figures["redis_sent"] > figures["redis_received"], "each process is sent what was published"


@linux
def test_topics_yields_what_a_topic_costs(tmp_path: Path) -> None:
    [result] = results_of("topics --processes 2 --topics 150", tmp_path / "figures.json")
    assert (result["server"], result["processes"], result["topics"]) == ("uvicorn", 2, 150)
    assert result["figures"].keys() == {"topic_kib", "redis_bytes", "seconds"}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("publish --layer memory", "publish measures what Redis is asked to do: leave out --layer memory"),
        ("publish --connections 5", "publish takes no --connections, but --peer, --rounds, --seconds"),
        ("topics --seconds 1", "topics takes no --seconds, but --processes, --server, --topics"),
        ("fanout --processes 2", "fanout takes no --processes, but --connections, --peer, --rounds, --seconds"),
        ("fanout --peer anonymous", "the peers of fanout are bare, ws, plain, chanx, unobserved, traced"),
        ("scale --peer plain", "scale takes no --peer"),
        ("scale --processes 17", "argument --processes: invalid choice: 17"),
        ("scale --connections 0", "0 is not a number above 0"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(options: str, error: str) -> None:
    process = subprocess.run([*COMMAND, *options.split()], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert process.returncode == 2
    assert error in process.stderr


RUN = {
    "layer": "memory",
    "machine": {
        "processor": "Abacus <II>",
        "cores": 2,
        "memory_gib": 1.5,
        "date": "2026-01-02",
        "versions": {"realtime": "0.1.0", "Python": "3.11.7"},
    },
    "results": [
        {
            "scenario": "fanout",
            "server": server,
            "connections": 2000,
            "figures": {
                "realtime": {"per_second": 200_000.0, "server_cpu_us": 4.25, "p50_ms": 9.5},
                "plain": {"per_second": 5000.4, "server_cpu_us": 200.0, "p50_ms": 412.0},
                "traced": {"per_second": 180_000.0, "server_cpu_us": 5.0, "p50_ms": 10.0},
            },
            "ratios": {"plain": {"per_second": 40.04, "server_cpu_us": 0.0213}, "traced": {"per_second": 1.11}},
        }
        for server in ("daphne", "uvicorn")
    ]
    + [
        {
            "scenario": "idle",
            "server": "uvicorn",
            "connections": 1000,
            "figures": {"realtime": {"connection_kib": 25.0}},
            "ratios": {},
        },
        {"scenario": "topics", "server": "uvicorn", "topics": 5, "figures": {"topic_kib": 1.0}},
    ],
}


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """Write the figures of ``RUN`` onto a page, and return it."""
    page, figures = tmp_path / "page.md", tmp_path / "figures.json"
    page.write_text(f"Before\n\n{BEGIN}\nold\n{END}\n\nAfter\n")
    figures.write_text(json.dumps(RUN))
    write(figures, page)
    return page


def test_report_has_a_row_for_each_server_and_site(page: Path) -> None:
    rows = [line for line in page.read_text().splitlines() if line.startswith("|")]
    assert rows == [
        "| server | site | deliveries/s | server µs/delivery | p50 ms | realtime / peer, deliveries/s "
        "| realtime / peer, server µs/delivery |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        "| Daphne | realtime | 200,000 | 4.25 | 9.50 |  |  |",
        "| Daphne | plain | 5,000 | 200.0 | 412.0 | 40 | 0.0213 |",
        "| Daphne | traced | 180,000 | 5.00 | 10.0 | 1.11 |  |",
        "| uvicorn | realtime | 200,000 | 4.25 | 9.50 |  |  |",
        "| uvicorn | plain | 5,000 | 200.0 | 412.0 | 40 | 0.0213 |",
        "| uvicorn | traced | 180,000 | 5.00 | 10.0 | 1.11 |  |",
        "| server | site | KiB/connection | realtime / peer, KiB/connection |",
        "| --- | --- | ---: | ---: |",
        "| uvicorn | realtime | 25.0 |  |",
    ]


def test_report_says_what_was_measured_on_and_keeps_the_rest_of_the_page(page: Path) -> None:
    text = page.read_text()
    assert "2026-01-02: Abacus <II>, 2 cores, 1.5 GiB of memory; channel layer: memory.\n" in text
    assert "realtime 0.1.0, Python 3.11.7." in text
    assert text.startswith("Before\n")
    assert text.endswith("\nAfter\n")
    assert "old" not in text


def test_report_draws_a_chart_of_each_scenario(page: Path) -> None:
    charts = {file.stem: ElementTree.parse(file).getroot() for file in (page.parent / "page").glob("*.svg")}
    assert charts.keys() == {"fanout", "idle"}
    texts = [element.text for element in charts["fanout"].iter("{http://www.w3.org/2000/svg}text")]
    assert texts[:6] == ["fanout, 2,000 connections", "deliveries/s", "more is better", "Daphne", "realtime", "200,000"]
    assert {"uvicorn", "plain", "traced", "server µs/delivery", "less is better", "4.25"}.issubset(texts)
    assert all(f"![{chart.get('aria-label')}](page/{name}.svg)" in page.read_text() for name, chart in charts.items())


def test_report_of_its_own_copy_of_the_figures_changes_nothing(page: Path) -> None:
    written = {file: file.read_bytes() for file in page.parent.rglob("*") if file.is_file()}
    write(page.parent / "page" / "figures.json", page)
    assert {file: file.read_bytes() for file in page.parent.rglob("*") if file.is_file()} == written


def test_report_refuses_a_page_without_markers(page: Path) -> None:
    page.write_text("Nothing to replace\n")
    command = [sys.executable, "-m", "benchmarks.report", str(page.parent / "figures.json"), "--page", str(page)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert process.returncode == 1
    assert f"page.md has to hold two lines that the tables go between: {BEGIN} and {END}" in process.stderr


def test_page_in_the_docs_is_what_the_report_makes_of_its_figures(tmp_path: Path) -> None:
    if not (PAGE.with_suffix("") / "figures.json").exists():
        pytest.skip("no figures were published since the report is made by a program: make benchmarks-doc")
    page, directory = tmp_path / PAGE.name, tmp_path / PAGE.stem
    shutil.copy(PAGE, page)
    write(PAGE.with_suffix("") / "figures.json", page)
    assert page.read_text() == PAGE.read_text()
    assert {file.name: file.read_text() for file in directory.iterdir()} == {
        file.name: file.read_text() for file in PAGE.with_suffix("").iterdir()
    }
