"""The benchmarks run, yield figures, and write them into the docs. How fast anything is is not tested here."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.options import arguments
from benchmarks.processes import COMMANDS, free_port, running, server_missing
from benchmarks.profile import shares
from benchmarks.report import BEGIN, END, PAGE, README, README_BEGIN, README_END, summarise, write
from benchmarks.samples import Sample
from benchmarks.sites import SITES, missing
from benchmarks.steps import steps

ROOT = Path(__file__).resolve().parent.parent
MODULE = [sys.executable, "-m", "benchmarks"]

linux = pytest.mark.skipif(sys.platform != "linux", reason="the CPU time of another process is read as Linux has it")


def results_of(options: str, file: Path) -> list[dict[str, Any]]:
    """Run the benchmarks, and return what they write to ``file``."""
    command = [*MODULE, *options.split(), "--json", str(file)]
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
    peers = "--peer plain --peer unregistered --peer anonymous"
    results = results_of(f"all --server uvicorn --connections 60 --seconds 0.2 {peers}", tmp_path / "figures.json")
    assert {result["scenario"]: [*result["ratios"]] for result in results} == {
        "fanout": ["plain"],
        "rooms": ["plain"],
        "heartbeats": ["plain"],
        "echo": ["plain"],
        "connect": ["plain", "unregistered"],
        "idle": ["plain", "anonymous"],
        "publish": ["plain"],
        "workers": ["plain"],
    }
    for result in results:
        match result["scenario"]:
            case "idle":
                assert_compared(result, "connection_kib")
            case "heartbeats" | "connect":
                assert_compared(result, *COSTS)
            case "publish":
                assert_compared(result, "per_second", "publisher_cpu_us", "redis_cpu_us")
            case "workers":
                assert_compared(result, *COSTS, "redis_cpu_us", *LATENCIES)
            case _:
                assert_compared(result, *COSTS, *LATENCIES)


@linux
@pytest.mark.parametrize(("scenario", "more"), [("flat", ()), ("topics", ("subscribe_cpu_us",))])
def test_what_realtime_costs_alone_is_measured(scenario: str, more: tuple[str, ...], tmp_path: Path) -> None:
    [result] = results_of(f"{scenario} --connections 20 --seconds 0.2", tmp_path / "figures.json")
    assert (result["server"], result["connections"], result["layer"]) == ("uvicorn", 20, "memory")
    assert_compared(result, *COSTS, *more, *LATENCIES)


@linux
def test_result_says_what_measures_it_anew(tmp_path: Path) -> None:
    options = "--server daphne --layer memory --connections 5 --seconds 0.1 --rounds 2 --peer bare --peer traced"
    [result] = results_of(f"echo {options}", tmp_path / "figures.json")
    assert result["command"] == f"python -m benchmarks echo {options}"
    assert_compared(result, *COSTS, *LATENCIES)


@linux
def test_peers_and_servers_that_are_absent_are_left_out_with_a_reason(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    options = "--server granian --server uvicorn --connections 5 --seconds 0.2"
    peers = ("ws", "socketio", "nchan", "nats")
    results = results_of(f"fanout {options} {' '.join(f'--peer {peer}' for peer in peers)}", file)
    reasons = json.loads(file.read_text())["left_out"]
    absent = {name for name in ("granian", *peers) if any(f"{name} is left out: " in reason for reason in reasons)}
    assert [result["server"] for result in results] == [name for name in ("granian", "uvicorn") if name not in absent]
    for result in results:
        assert [*result["ratios"]] == [peer for peer in peers if peer not in absent]
        assert_compared(result, *COSTS, *LATENCIES)


def measured(monkeypatch: pytest.MonkeyPatch, options: str) -> list[tuple[str, str, int, str]]:
    """Return what these options lead to: scenario, server, connections, and the sites in one string."""
    monkeypatch.setattr(sys, "argv", ["benchmarks", *options.split()])
    return [(step.scenario, step.server, step.connections, " ".join(step.sites)) for step in steps(arguments())]


def test_peer_limits_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(monkeypatch, "all --server uvicorn --peer unobserved --peer unregistered") == [
        ("fanout", "uvicorn", 2000, "realtime unobserved"),
        ("echo", "uvicorn", 50, "realtime unobserved"),
        ("connect", "uvicorn", 600, "realtime unregistered"),
    ]


def test_realtime_is_measured_alone_where_no_peer_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(monkeypatch, "echo --server uvicorn --peer none") == [("echo", "uvicorn", 50, "realtime")]


def test_growth_is_measured_at_several_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda kind: (20_000, 20_000))
    sizes = [(server, connections) for _, server, connections, _ in measured(monkeypatch, "flat")]
    assert sizes == [("uvicorn", 100), ("uvicorn", 1000), ("uvicorn", 5000), ("uvicorn", 19_700)]


def test_site_that_cannot_be_measured_here_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SITES, "chanx", SITES["chanx"]._replace(absent=lambda: "chanx cannot be imported"))
    assert missing("plain") is None
    assert missing("chanx") == "chanx is left out: chanx cannot be imported"


def test_server_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "granian", ["no_such_package"])
    assert server_missing("uvicorn") is None
    assert server_missing("granian") == "granian is left out: it cannot be imported; pip install no_such_package"


LISTENS_AND_ENDS = """
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
listener.accept()
sys.exit("out of order")
"""


async def test_server_that_ends_by_itself_is_reported_with_its_log(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-c", LISTENS_AND_ENDS, str(port)]

    async def serve_until_the_end() -> None:
        async with running(command, port, {}, tmp_path / "log") as pid:
            while True:
                os.kill(pid, 0)
                await asyncio.sleep(0.01)

    with pytest.raises(RuntimeError, match="has ended with 1:\nout of order"):
        await serve_until_the_end()


def test_percentiles_are_of_the_times_of_all_rounds() -> None:
    rounds = Sample(50, 1.0, {}, [0.001] * 50), Sample(50, 1.0, {}, [0.002] * 48 + [0.5, 0.9])
    figures = rounds[0].plus(rounds[1]).figures()
    assert figures == {"per_second": 50, "p50_ms": 2, "p99_ms": 900}


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
def test_subscriptions_yields_what_a_topic_takes(tmp_path: Path) -> None:
    [result] = results_of("subscriptions --processes 1 --topics 150", tmp_path / "figures.json")
    assert (result["server"], result["processes"], result["topics"]) == ("uvicorn", 1, 150)
    assert result["figures"].keys() == {"topic_kib", "redis_bytes", "seconds"}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("publish --layer memory", "publish measures what Redis is asked to do: leave out --layer memory"),
        ("publish --connections 5", "publish takes no --connections, but --peer, --rounds, --seconds"),
        ("workers --layer memory", "workers measures what Redis is asked to do: leave out --layer memory"),
        ("subscriptions --seconds 1", "subscriptions takes no --seconds, but --processes, --server, --topics"),
        ("flat --peer plain", "flat has no peers"),
        ("fanout --processes 2", "fanout takes no --processes, but --connections, --peer, --rounds, --seconds"),
        ("fanout --peer anonymous", "the peers of fanout are bare, ws, plain, chanx, unobserved, traced, socketio"),
        ("scale --peer plain", "scale takes no --peer"),
        ("scale --processes 17", "argument --processes: invalid choice: 17"),
        ("scale --connections 0", "0 is not a number above 0"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(options: str, error: str) -> None:
    process = subprocess.run([*MODULE, *options.split()], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert process.returncode == 2
    assert error in process.stderr


def compared(scenario: str, server: str, connections: int, figures: Any, **ratios: dict[str, float]) -> dict[str, Any]:
    """Return a result as a run writes it."""
    return {
        **{"scenario": scenario, "server": server, "layer": "memory", "connections": connections},
        **{"figures": figures, "ratios": ratios},
        "command": f"python -m benchmarks {scenario} --server {server} --connections {connections}",
    }


RUN = {
    "machine": {
        "processor": "Abacus <II>",
        "cores": 2,
        "memory_gib": 1.5,
        "date": "2026-01-02",
        "versions": {"realtime": "0.1.0", "Python": "3.11.7"},
    },
    "left_out": ["chanx is left out: it is not there"],
    "results": [
        *(
            compared(
                "fanout",
                server,
                2000,
                {
                    "realtime": {"per_second": 100_000.0, "server_cpu_us": 4.25, "p50_ms": 9.5},
                    "plain": {"per_second": 5000.4, "server_cpu_us": 200.0, "p50_ms": 412.0},
                    "traced": {"per_second": 90_000.0, "server_cpu_us": 5.0, "p50_ms": 10.0},
                },
                plain={"per_second": 20.04, "server_cpu_us": 0.0213},
                traced={"per_second": 1.11},
            )
            for server in ("daphne", "uvicorn")
        ),
        compared("idle", "uvicorn", 1000, {"realtime": {"connection_kib": 25.0}}),
        compared("flat", "uvicorn", 100, {"realtime": {"server_cpu_us": 6.0}}),
        compared("flat", "uvicorn", 5000, {"realtime": {"server_cpu_us": 4.0}}),
        {"scenario": "subscriptions", "server": "uvicorn", "topics": 5, "figures": {"topic_kib": 1.0}},
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


def test_report_has_the_sites_side_by_side_and_the_goals_beside_them(page: Path) -> None:
    rows = [line for line in page.read_text().splitlines() if line.startswith("|")]
    cost = "server µs/delivery"
    daphne, uvicorn = (
        [
            f"| {server} | deliveries/s | 100,000 | 5,000 (20) | 90,000 (1.11) | {goals[0]} |",
            f"| {server} | server µs/delivery | 4.25 | 200.0 (0.0213) | 5.00 | {goals[1]} |",
            f"| {server} | p50 ms | 9.50 | 412.0 | 10.0 |  |",
        ]
        for server, goals in [
            ("Daphne", ["deliveries/s, times plain's ≥ 8: 20, **met**", ""]),
            (
                "uvicorn",
                ["deliveries/s, times plain's ≥ 30: 20, **not met**", f"{cost} ≤ 4.5: 4.25, **met**"],
            ),
        ]
    )
    assert rows == [
        "| server | figure | realtime | plain | traced | goal |",
        "| --- | --- | ---: | ---: | ---: | --- |",
        *daphne,
        *uvicorn,
        "| server | figure | realtime | goal |",
        "| --- | --- | ---: | --- |",
        "| uvicorn | KiB/connection | 25.0 |  |",
        "| server | figure | realtime | goal |",
        "| --- | --- | ---: | --- |",
        "| uvicorn, 100 connections | server µs/delivery | 6.00 |  |",
        "| uvicorn, 5,000 connections | server µs/delivery | 4.00 "
        "| server µs/delivery, the dearest through the cheapest ≤ 1.5: 1.5, **met** |",
    ]


def test_report_says_what_measures_each_row_anew(page: Path) -> None:
    commands = [line.strip() for line in page.read_text().splitlines() if line.startswith("    python -m benchmarks")]
    assert commands == [result["command"] for result in RUN["results"] if "command" in result]


def test_report_says_what_was_measured_on_and_keeps_the_rest_of_the_page(page: Path) -> None:
    text = page.read_text()
    assert "2026-01-02: Abacus <II>, 2 cores, 1.5 GiB of memory.\n" in text
    assert "chanx is left out: it is not there.\n" in text
    assert "realtime 0.1.0, Python 3.11.7." in text
    assert text.startswith("Before\n")
    assert text.endswith("\nAfter\n")
    assert "old" not in text


def test_report_draws_a_chart_of_each_scenario(page: Path) -> None:
    charts = {file.stem: ElementTree.parse(file).getroot() for file in (page.parent / "page").glob("*.svg")}
    assert charts.keys() == {"fanout", "idle", "flat"}
    texts = [element.text for element in charts["fanout"].iter("{http://www.w3.org/2000/svg}text")]
    assert texts[:6] == ["fanout, 2,000 connections", "deliveries/s", "more is better", "Daphne", "realtime", "100,000"]
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


def test_readme_says_which_server_is_how_fast(tmp_path: Path) -> None:
    readme, figures = tmp_path / "README.md", tmp_path / "figures.json"
    speeds = {("fanout", "daphne"): 2e4, ("fanout", "uvicorn"): 1e5, ("echo", "daphne"): 5e3, ("echo", "uvicorn"): 2e4}
    results = [
        compared(scenario, server, 50, {"realtime": {"per_second": speed}}, plain={"per_second": speed / 4000})
        for (scenario, server), speed in speeds.items()
    ]
    figures.write_text(json.dumps({"results": results}))
    readme.write_text(f"Before\n{README_BEGIN}\nold\n{README_END}\nAfter\n")
    summarise(figures, readme)
    text = readme.read_text()
    assert "uvicorn 5 times Daphne; 25 and 5 times" in text
    assert "echoes a second, 50 connections, one process: uvicorn 4 times Daphne; 5 and 1.2 times" in text
    assert text.startswith("Before\n")
    assert text.endswith("\nAfter\n")
    assert "old" not in text
    figures.write_text(json.dumps({"results": results[:3]}))
    with pytest.raises(ValueError, match="echo"):
        summarise(figures, readme)


def test_page_in_the_docs_is_what_the_report_makes_of_its_figures(tmp_path: Path) -> None:
    page, directory, readme = tmp_path / PAGE.name, tmp_path / PAGE.stem, tmp_path / README.name
    figures = PAGE.with_suffix("") / "figures.json"
    shutil.copy(PAGE, page)
    shutil.copy(README, readme)
    write(figures, page)
    summarise(figures, readme)
    assert page.read_text() == PAGE.read_text()
    assert readme.read_text() == README.read_text()
    assert {file.name: file.read_text() for file in directory.iterdir()} == {
        file.name: file.read_text() for file in PAGE.with_suffix("").iterdir()
    }


def test_peers_are_measured_in_batches_where_descriptors_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "echo", "--server", "uvicorn", "--connections", "100"])
    [step] = steps(arguments())
    own, *peers = step.sites
    assert all(len(batch) <= 4 for batch in step.batches)
    monkeypatch.setattr("benchmarks.steps.affordable", lambda connections: min(connections, 399))
    batches = [*step.batches]
    assert all(batch[0] == own and len(batch) <= 3 for batch in batches)
    assert [peer for batch in batches for peer in batch[1:]] == peers


STACKS = """\
thread (1): MainThread;run (uvicorn/server.py:1);act (realtime/hub.py:1);write (loop.c:1);write (libc.so.6) 60
thread (1): MainThread;run (uvicorn/server.py:1);receive (realtime/consumers.py:1);malloc (libc.so.6) 25
thread (1): MainThread;run (uvicorn/server.py:1);uv__io_poll (linux.c:1) 10
thread (1): MainThread;0x1 (?) 5
thread (1): MainThread;run (uvicorn/server.py:1);uv__io_poll (linux.c:1);epoll_pwait (libc.so.6) 400
thread (2): realtime-1;work (realtime/threads.py:1) 900
"""


def test_profile_says_what_the_main_thread_is_busy_with() -> None:
    expected = {"kernel: writing": 0.6, "realtime": 0.25, "uvloop": 0.1, "other": 0.05}
    assert shares(STACKS) == pytest.approx(expected)


def test_report_says_where_the_time_goes(page: Path) -> None:
    file = page.with_suffix("") / "figures.json"
    run = json.loads(file.read_text())
    run["results"][0]["profile"] = {"kernel: writing": 0.954, "realtime": 0.04, "other": 0.006}
    file.write_text(json.dumps(run))
    write(file, page)
    assert "main thread goes: kernel: writing 95%, realtime 4%." in page.read_text()
