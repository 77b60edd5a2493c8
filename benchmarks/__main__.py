"""
Measure realtime beside the consumer of the Channels tutorial: ``python -m benchmarks --help``.

Both sites run at once, each in a server process of its own, and are measured in turn; the load comes
from this process.
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
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import uvloop

from .processes import HOST, Server, migrate, redis, serving
from .scenarios import SCENARIOS, Load, Sample

SITES = {"realtime": "benchmarks.realtime_site:application", "plain": "benchmarks.plain_site:application"}
ROUNDS = 3
"""Measurements of each site, in turn, so that a slow moment of the machine meets both."""
WARM_UP = 1.0
"""Seconds that each site is driven for before anything counts."""
MAX_FILES = 65_536
ROW = "{:<10}{:<9}{:>12}  {:<22}{:>12}{:>12}{:>18}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure realtime beside plain Channels.")
    parser.add_argument("scenario", nargs="?", choices=[*SCENARIOS, "all"], default="all")
    parser.add_argument("--server", choices=["daphne", "uvicorn", "both"], default="both")
    parser.add_argument("--layer", choices=["memory", "redis"], default="memory")
    defaults = ", ".join(f"{load.connections_by_default} for {name}" for name, load in SCENARIOS.items())
    parser.add_argument("--connections", type=positive(int), metavar="N", help=f"clients of each site ({defaults})")
    parser.add_argument(
        "--seconds", type=positive(float), default=3.0, metavar="S", help="seconds that a site is measured for (3)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE too")
    return parser.parse_args()


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        if not 0 < (value := kind(text)) < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
        return value

    return number  # argparse names it in its message


async def main(options: argparse.Namespace) -> None:
    """Run what the options choose, one scenario and server after the other, and print a row for each figure."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    scenarios = list(SCENARIOS) if options.scenario == "all" else [options.scenario]
    servers = ["daphne", "uvicorn"] if options.server == "both" else [options.server]
    results = []
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmarks-")))
        environment = {
            "SECRET_KEY": "benchmarks",
            "ALLOWED_HOSTS": HOST,
            "DATABASE_URL": f"sqlite:///{directory / 'db.sqlite3'}",
        }
        if options.layer == "redis":
            environment["REDIS_URL"] = await stack.enter_async_context(redis(directory))
        await migrate(environment, directory)
        print(f"Python {platform.python_version()}, {os.cpu_count()} cores, channel layer: {options.layer}\n")
        print(ROW.format("scenario", "server", "connections", "figure", *SITES, "realtime / plain"))
        for scenario in scenarios:
            for server in servers:
                result = await compare(scenario, server, options, environment, directory)
                results.append(result)
                print(*rows(result), sep="\n", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps({"layer": options.layer, "results": results}, indent=2) + "\n")


async def compare(
    scenario: str, server: str, options: argparse.Namespace, environment: dict[str, str], directory: Path
) -> dict[str, Any]:
    """Measure both sites in turn, and return the figures of each and their ratios."""
    kind = SCENARIOS[scenario]
    connections = options.connections or kind.connections_by_default
    samples = dict.fromkeys(SITES, Sample())
    async with AsyncExitStack() as stack:
        loads: dict[str, Load] = {}
        for site, application in SITES.items():
            process: Server = await stack.enter_async_context(serving(server, application, environment, directory))
            loads[site] = stack.enter_context(closing(kind(process)))
            # The plain consumer joins its group by itself.
            await loads[site].connect(connections, subscribe=site == "realtime")
            await loads[site].run(min(WARM_UP, options.seconds))
        for _ in range(ROUNDS):
            for site, load in loads.items():
                samples[site] = samples[site].plus(await load.run(options.seconds / ROUNDS))
    figures = {site: figures_of(sample) for site, sample in samples.items()}
    ratios = {name: value / figures["plain"][name] for name, value in figures["realtime"].items()}
    return {
        "scenario": scenario,
        "server": server,
        "connections": connections,
        "unit": kind.unit,
        **figures,
        "ratio": ratios,
    }


def figures_of(sample: Sample) -> dict[str, float]:
    return {
        "per_second": sample.frames / sample.seconds,
        "server_cpu_us": sample.server_cpu / sample.frames * 1e6,
        "load_cpu_us": sample.load_cpu / sample.frames * 1e6,
    }


def rows(result: dict[str, Any]) -> Iterator[str]:
    """Yield a line of the table for each figure."""
    unit = result["unit"]
    plural = {"delivery": "deliveries", "echo": "echoes"}[unit]
    labels = {
        "per_second": f"{plural}/s",
        "server_cpu_us": f"server µs/{unit}",
        "load_cpu_us": f"load µs/{unit}",
    }
    where = (result["scenario"], result["server"], result["connections"])
    for name, label in labels.items():
        realtime, plain = (f"{result[site][name]:,.{0 if name == 'per_second' else 1}f}" for site in SITES)
        yield ROW.format(*where, label, realtime, plain, f"{result['ratio'][name]:.3g}")


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, MAX_FILES), hard))
    try:
        uvloop.run(main(arguments()))
    except (asyncio.CancelledError, KeyboardInterrupt):
        sys.exit("stopped")
