"""A short soak: no good client notices the bad ones, and nothing is left of them. Speed is not tested."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .live import ROOT, SERVERS

OPTIONS = ["--seconds", "12", "--good", "60", "--bad", "4"]
LIMITS = {"REALTIME_WRITE_TIMEOUT": "3", "REALTIME_FLOOD_TIMEOUT": "3"}
"""Short ones, so that every client meets its own within seconds."""
TIMEOUT = 150
"""Seconds after which a soak hangs."""


def soaked(server: str, file: Path) -> tuple[int, str, dict[str, Any]]:
    """Return the exit code of a soak, what it printed, and what it wrote."""
    command = [sys.executable, "-m", "benchmarks.soak", "--server", server, *OPTIONS, "--json", str(file)]
    environment = {**os.environ, **LIMITS}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=TIMEOUT)
        finally:
            process.terminate()  # unlike a kill, it stops the server as well
    assert file.exists(), output
    [result] = json.loads(file.read_text())["results"]
    return process.returncode, output, result


@pytest.mark.skipif(sys.platform != "linux", reason="the soak looks into /proc")
@pytest.mark.parametrize("server", SERVERS)
def test_good_clients_do_not_notice_bad_ones_of_which_nothing_is_left(server: str, tmp_path: Path) -> None:
    code, output, result = soaked(server, tmp_path / "soak.json")
    assert result["problems"] == []
    assert code == 0, output
    assert result["server"] == server
    assert result["published"] == 240
    for phase in ("quiet", "loud"):
        assert all(figure > 0 for figure in result[phase].values()), result[phase]
    assert result["ratios"].keys() == {"p50_ms", "p99_ms", "memory_mb", "server_cpu", "load_cpu"}
    assert all(figures["rounds"] >= 4 for figures in result["clients"].values()), result["clients"]
    assert result["clients"]["slow"]["seen"].keys() == {"closed with 3008", "dropped unread"}
    assert {"RATE_LIMITED", "closed with 1008"} <= result["clients"]["flooder"]["seen"].keys()
    assert {"slow_consumers", "rate_limited", "flooders", "too_big"} <= result["counts"].keys()
    before, after = result["leftovers"]["before"], result["leftovers"]["after"]
    assert before.keys() == after.keys()
    assert after["connections"] == after["door"] == after["memberships"] - before["memberships"] == 0
