"""
Soak one server or both, and end with 1 when a good client noticed, or anything was left: ``python -m benchmarks.soak``.

The load comes from this process; each server is one of its own, on 127.0.0.1.
"""

import argparse
import asyncio
import json
import os
import platform
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop

from ..__main__ import MAX_FILES
from ..options import positive
from .garbage import all_garbage
from .mob import KINDS
from .run import Plan, soak

LABELS = {
    "p50_ms": ("latency p50, ms", ".1f"),
    "p99_ms": ("latency p99, ms", ".1f"),
    "memory_mb": ("memory peak, MB", ".0f"),
    "server_cpu": ("server CPU, cores", ".2f"),
    "load_cpu": ("load CPU, cores", ".2f"),
}
ROW = "{:<9}{:<20}{:>10}{:>10}{:>14}"
LONGEST = 500
"""Characters of a problem that are printed; the JSON has all of it."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--server", choices=["daphne", "uvicorn", "both"], default="both")
    parser.add_argument("--seconds", type=positive(float), default=120.0, metavar="S", help="for each server (120)")
    parser.add_argument("--good", type=positive(int), default=500, metavar="N", help="good clients (500)")
    parser.add_argument("--bad", type=positive(int), default=20, metavar="N", help="bad clients of each kind (20)")
    kinds = [kind.kind for kind in KINDS]
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds, help="the bad clients that take part (all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that came of it to FILE too")
    return parser.parse_args()


async def main(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Soak the servers in turn, print a table for each, and return what came of it."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {options.good} good clients, ", end="")
    print(f"{options.bad} bad ones of each kind, {options.seconds:g} s a server\n", flush=True)
    plan = Plan(options.seconds, options.good, options.bad, options.kinds, all_garbage())
    print(ROW.format("server", "figure", "quiet", "loud", "loud / quiet"), flush=True)
    results = []
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        for server in ["daphne", "uvicorn"] if options.server == "both" else [options.server]:
            results.append(await soak(server, plan, Path(directory) / server))
            print(*rows(results[-1]), sep="\n", flush=True)
    return results


def rows(result: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a server's table, and of what was wrong."""
    server = result["server"]
    if "ratios" in result:
        quiet, loud = result["quiet"], result["loud"]
        for name, (label, form) in LABELS.items():
            ratio = result["ratios"].get(name, 0)
            yield ROW.format(server, label, f"{quiet[name]:{form}}", f"{loud[name]:{form}}", f"{ratio:.2f}")
    for kind, figures in result["clients"].items():
        seen = ", ".join(f"{count} {what}" for what, count in figures["seen"].items())
        yield f"{server:<9}{kind}: {figures['rounds']} rounds: {seen}"
    for problem in result["problems"]:
        yield f"FAILED {server}: {problem[:LONGEST]}"
    if not result["problems"]:
        yield f"{server:<9}passed: every good client got all that was published, and nothing is left"
    yield ""


if __name__ == "__main__":
    options = arguments()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, MAX_FILES), hard))
    try:
        results = uvloop.run(main(options))
    except (asyncio.CancelledError, KeyboardInterrupt):
        sys.exit("stopped")
    if options.json is not None:
        options.json.write_text(json.dumps({"results": results}, indent=2) + "\n")
    sys.exit(any(result["problems"] for result in results))
