"""The benchmarks run and yield figures. How fast anything is is not tested here."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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
