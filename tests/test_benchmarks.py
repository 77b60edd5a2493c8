"""The benchmarks run and yield figures. How fast anything is is not tested here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = ["all", "--server", "uvicorn", "--connections", "20", "--seconds", "0.5"]


@pytest.mark.skipif(sys.platform != "linux", reason="the CPU time of another process is read as Linux has it")
def test_every_scenario_yields_positive_figures(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", *OPTIONS, "--json", str(file)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            _, errors = process.communicate(timeout=180)
        finally:
            process.terminate()  # unlike a kill, it stops the servers as well
    assert process.returncode == 0, errors
    results = json.loads(file.read_text())["results"]
    peers = {result["scenario"]: [*result["ratios"]] for result in results}
    assert peers == {"fanout": ["plain"], "echo": ["plain"], "connect": ["unregistered", "plain"]}
    for result in results:
        assert [*result["figures"]] == ["realtime", *result["ratios"]]
        for figures in (*result["figures"].values(), *result["ratios"].values()):
            assert figures.keys() == {"per_second", "server_cpu_us", "load_cpu_us"}
            assert all(figure > 0 for figure in figures.values()), result
