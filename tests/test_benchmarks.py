"""The benchmarks run and yield figures. How fast anything is is not tested here."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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


@linux
def test_every_scenario_yields_positive_figures(tmp_path: Path) -> None:
    results = results_of("all --server uvicorn --connections 20 --seconds 0.5", tmp_path / "figures.json")
    peers = {result["scenario"]: [*result["ratios"]] for result in results}
    observed = ["plain", "unobserved", "traced"]
    assert peers == {"fanout": observed, "echo": observed, "connect": ["unregistered", "plain"]}
    for result in results:
        assert_compared(result, "per_second", "server_cpu_us", "load_cpu_us")


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
        *("per_second", "server_cpu_us", "load_cpu_us", "process_mib", "connection_kib"),
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
        ("publish --connections 5", "publish takes no --connections, but --rounds, --seconds"),
        ("topics --seconds 1", "topics takes no --seconds, but --processes, --server, --topics"),
        ("fanout --processes 2", "fanout takes no --processes, but --connections, --rounds, --seconds, --server"),
        ("scale --processes 17", "argument --processes: invalid choice: 17"),
        ("scale --connections 0", "0 is not a number above 0"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(options: str, error: str) -> None:
    process = subprocess.run([*COMMAND, *options.split()], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert process.returncode == 2
    assert error in process.stderr
