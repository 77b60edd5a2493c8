"""
Measure realtime beside the consumer of the Channels tutorial: ``python -m benchmarks --help``.

All sites run at once, each in a server process of its own, and are measured in turn; the load comes
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
from functools import reduce
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import uvloop

from .processes import HOST, redis, serving, sign_in
from .scenarios import SCENARIOS, Load, Sample


class Site(NamedTuple):
    """Say what a server process is started with, and whether the site's clients have to ask to be subscribed."""

    application: str
    environment: dict[str, str]
    subscribe: bool = True


SITES = {
    "realtime": Site("benchmarks.realtime_site:application", {}),
    "unregistered": Site("benchmarks.realtime_site:application", {"REALTIME_CONNECTION_REGISTRY": "0"}),
    "plain": Site("benchmarks.plain_site:application", {}, subscribe=False),
}
ROUNDS = 3
"""Measurements of each site, in turn, so that a slow moment of the machine meets all."""
HEADINGS = ("scenario", "server", "connections", "figure", "realtime", "peer", "", "realtime / peer")
WARM_UP = 1.0
"""Seconds that each site is driven for before anything counts."""
MAX_FILES = 65_536
ROW = "{:<10}{:<9}{:>12}  {:<22}{:>12}   {:<14}{:>12}{:>17}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure realtime beside plain Channels.")
    parser.add_argument("scenario", nargs="?", choices=[*SCENARIOS, "all"], default="all")
    parser.add_argument("--server", choices=["daphne", "uvicorn", "both"], default="both")
    parser.add_argument("--layer", choices=["memory", "redis"], default="memory")
    defaults = ", ".join(f"{load.connections_by_default} for {name}" for name, load in SCENARIOS.items())
    parser.add_argument("--connections", type=positive(int), metavar="N", help=f"clients of each site ({defaults})")
    defaults = ", ".join(f"{load.seconds_by_default:g} for {name}" for name, load in SCENARIOS.items())
    parser.add_argument(
        "--seconds", type=positive(float), metavar="S", help=f"seconds that a site is measured for ({defaults})"
    )
    parser.add_argument(
        "--rounds", type=positive(int), default=ROUNDS, metavar="N", help=f"parts that these are split into ({ROUNDS})"
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
        cookie = await sign_in(environment, directory)
        print(f"Python {platform.python_version()}, {os.cpu_count()} cores, channel layer: {options.layer}\n")
        print(ROW.format(*HEADINGS))
        for scenario in scenarios:
            for server in servers:
                result = await compare(scenario, server, options, environment, directory, cookie)
                results.append(result)
                print(*rows(result), sep="\n", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps({"layer": options.layer, "results": results}, indent=2) + "\n")


async def compare(
    scenario: str,
    server: str,
    options: argparse.Namespace,
    environment: dict[str, str],
    directory: Path,
    cookie: str,
) -> dict[str, Any]:
    """Measure a scenario's sites in turn, and return the figures of each, and realtime's ratio to each of its peers."""
    kind = SCENARIOS[scenario]
    connections = options.connections or kind.connections_by_default
    seconds = options.seconds or kind.seconds_by_default
    samples: dict[str, list[Sample]] = {name: [] for name in kind.sites}
    async with AsyncExitStack() as stack:
        loads: dict[str, Load] = {}
        for name in kind.sites:
            site = SITES[name]
            command = serving(server, site.application, {**environment, **site.environment}, directory, cookie)
            load = kind(await stack.enter_async_context(command), subscribe=site.subscribe)
            loads[name] = stack.enter_context(closing(load))
            await load.connect(connections)
            await load.run(min(WARM_UP, seconds))
        for _ in range(options.rounds):
            for name, load in loads.items():
                samples[name].append(await load.run(seconds / options.rounds))
    own, *peers = kind.sites
    return {
        "scenario": scenario,
        "server": server,
        "connections": connections,
        "figures": {name: figures_of(reduce(Sample.plus, rounds)) for name, rounds in samples.items()},
        "ratios": {peer: ratios_of(samples[own], samples[peer]) for peer in peers},
    }


def figures_of(sample: Sample) -> dict[str, float]:
    return {
        "per_second": sample.frames / sample.seconds,
        "server_cpu_us": sample.server_cpu / sample.frames * 1e6,
        "load_cpu_us": sample.load_cpu / sample.frames * 1e6,
    }


def ratios_of(own: list[Sample], peers: list[Sample]) -> dict[str, float]:
    """Return the median of the rounds' ratios for each figure: in some rounds the machine has other things to do."""
    rounds = [(figures_of(one), figures_of(other)) for one, other in zip(own, peers, strict=True)]
    return {name: median(one[name] / other[name] for one, other in rounds) for name in rounds[0][0]}


def rows(result: dict[str, Any]) -> Iterator[str]:
    """Yield a line of the table for each figure and peer."""
    kind = SCENARIOS[result["scenario"]]
    labels = {
        "per_second": f"{kind.plural}/s",
        "server_cpu_us": f"server µs/{kind.unit}",
        "load_cpu_us": f"load µs/{kind.unit}",
    }
    where = (result["scenario"], result["server"], result["connections"])
    for peer, ratios in result["ratios"].items():
        for name, label in labels.items():
            own, other = (f"{result['figures'][site][name]:,.{name != 'per_second':d}f}" for site in ("realtime", peer))
            yield ROW.format(*where, label, own, peer, other, f"{ratios[name]:.3g}")


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, MAX_FILES), hard))
    try:
        uvloop.run(main(arguments()))
    except (asyncio.CancelledError, KeyboardInterrupt):
        sys.exit("stopped")
