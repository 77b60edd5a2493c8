"""
Measure realtime beside the consumer of the Channels tutorial: ``python -m benchmarks --help``.

All sites run at once, each in a server process of its own, and are measured in turn; the load comes
from this process. What ``scale`` and ``topics`` measure has no peer.
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
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from functools import reduce
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from .processes import HOST, redis, sign_in
from .publish import Publisher, publishing
from .scale import CONNECTIONS, PROCESSES, SECONDS, TOPICS, scale, table, topics
from .scenarios import SCENARIOS, WARM_UP, Load, Sample
from .sites import SITES, Place

ROUNDS = 3
"""Measurements of each site, in turn, so that a slow moment of the machine meets all."""
PAIRED: dict[str, type[Load] | type[Publisher]] = {**SCENARIOS, "publish": Publisher}
"""What is measured beside a peer."""
HEADINGS = ("scenario", "server", "connections", "figure", "realtime", "peer", "", "realtime / peer")
OWN_OPTIONS = {
    "publish": {"seconds", "rounds"},
    "scale": {"server", "connections", "seconds", "processes"},
    "topics": {"server", "processes", "topics"},
}
"""What the scenarios take that are about Redis."""
OPTIONS = {"server", "connections", "seconds", "rounds"}
"""What all others take."""
MAX_FILES = 65_536
MAX_PROCESSES = 16
ROW = "{:<10}{:<9}{:>12}  {:<22}{:>12}   {:<14}{:>12}{:>17}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure realtime beside plain Channels, and what it costs on Redis (publish, scale, topics).",
    )
    parser.add_argument("scenario", nargs="?", choices=[*SCENARIOS, "all", *OWN_OPTIONS], default="all")
    parser.add_argument("--server", choices=["daphne", "uvicorn", "both"], help="(both; uvicorn for scale and topics)")
    parser.add_argument("--layer", choices=["memory", "redis"], help="(memory; redis for what is about Redis)")
    defaults = ", ".join(f"{load.connections_by_default} for {name}" for name, load in SCENARIOS.items())
    defaults += f", {CONNECTIONS} of each process for scale"
    parser.add_argument("--connections", type=positive(int), metavar="N", help=f"clients of each site ({defaults})")
    defaults = ", ".join(f"{kind.seconds_by_default:g} for {name}" for name, kind in PAIRED.items())
    defaults += f", {SECONDS:g} for scale"
    parser.add_argument(
        "--seconds", type=positive(float), metavar="S", help=f"seconds that a site is measured for ({defaults})"
    )
    parser.add_argument("--rounds", type=positive(int), metavar="N", help=f"parts that these are split into ({ROUNDS})")
    few = range(1, MAX_PROCESSES + 1)
    parser.add_argument(
        "--processes",
        type=int,
        choices=few,
        metavar="N",
        help="servers at once (1 to 4 in turn for scale, 1 for topics)",
    )
    parser.add_argument(
        "--topics",
        type=positive(int),
        metavar="N",
        help="topics that each process subscribes to (1,000 and 10,000 in turn)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE too")
    options = parser.parse_args()
    taken = OWN_OPTIONS.get(options.scenario, OPTIONS)
    for name in sorted(OPTIONS.union(*OWN_OPTIONS.values()) - taken):
        if getattr(options, name) is not None:
            parser.error(f"{options.scenario} takes no --{name}, but {', '.join(f'--{one}' for one in sorted(taken))}")
    if options.layer == "memory" and options.scenario in OWN_OPTIONS:
        parser.error(f"{options.scenario} measures what Redis is asked to do: leave out --layer memory")
    return options


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        if not 0 < (value := kind(text)) < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
        return value

    return number  # argparse names it in its message


async def main(options: argparse.Namespace) -> None:
    """Run what the options choose, and print a line for each figure, or for each number of processes or topics."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    layer = options.layer or ("redis" if options.scenario in OWN_OPTIONS else "memory")
    results: list[dict[str, Any]] = []
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmarks-")))
        place = await stack.enter_async_context(prepared(directory, layer))
        print(f"Python {platform.python_version()}, {os.cpu_count()} cores, channel layer: {layer}\n")
        async for result in measurements(options, place):
            print(*lines(result, heading=not results), sep="\n", flush=True)
            results.append(result)
    if options.json is not None:
        options.json.write_text(json.dumps({"layer": layer, "results": results}, indent=2) + "\n")


@asynccontextmanager
async def prepared(directory: Path, layer: str) -> AsyncIterator[Place]:
    """Give what all processes need: the database with a user who is signed in, and Redis for that layer."""
    environment = {
        "SECRET_KEY": "benchmarks",
        "ALLOWED_HOSTS": HOST,
        "DATABASE_URL": f"sqlite:///{directory / 'db.sqlite3'}",
    }
    async with AsyncExitStack() as stack:
        server = None
        if layer == "redis":
            server = await stack.enter_async_context(redis(directory))
            environment["REDIS_URL"] = f"redis://{HOST}:{server.port}"
        yield Place(environment, directory, await sign_in(environment, directory), server)


async def measurements(options: argparse.Namespace, place: Place) -> AsyncIterator[dict[str, Any]]:
    """Measure one thing after the other, and yield the figures of each."""
    about_redis = options.scenario in OWN_OPTIONS
    server = options.server or ("uvicorn" if about_redis else "both")
    servers = ["daphne", "uvicorn"] if server == "both" else [server]
    if options.scenario == "publish":
        yield await compare_publishers(options, place)
    elif options.scenario == "scale":
        for server, processes in product(servers, [options.processes] if options.processes else PROCESSES):
            connections, seconds = options.connections or CONNECTIONS, options.seconds or SECONDS
            yield await scale(server, processes, connections, seconds, place)
    elif options.scenario == "topics":
        for server, count in product(servers, [options.topics] if options.topics else TOPICS):
            yield await topics(server, options.processes or 1, count, place)
    else:
        for scenario, server in product(SCENARIOS if options.scenario == "all" else [options.scenario], servers):
            yield await compare(scenario, server, options, place)


async def compare(scenario: str, server: str, options: argparse.Namespace, place: Place) -> dict[str, Any]:
    """Measure a scenario's sites, and return the figures of each, and realtime's ratio to each of its peers."""
    kind = SCENARIOS[scenario]
    connections = options.connections or kind.connections_by_default
    async with AsyncExitStack() as stack:
        loads: dict[str, Load] = {}
        for name in kind.sites:
            address = await stack.enter_async_context(place.serving(server, name))
            load = loads[name] = stack.enter_context(closing(kind(address, subscribe=SITES[name].subscribe)))
            await load.connect(connections)
        figures = await in_turn(loads, options, kind.seconds_by_default)
    return {"scenario": scenario, "server": server, "connections": connections, **figures}


async def compare_publishers(options: argparse.Namespace, place: Place) -> dict[str, Any]:
    """Do the same with processes that publish, and that no server is in."""
    async with AsyncExitStack() as stack:
        publishers = {name: await stack.enter_async_context(publishing(name, place)) for name in Publisher.sites}
        figures = await in_turn(publishers, options, Publisher.seconds_by_default)
    return {"scenario": "publish", "server": "none", "connections": 0, **figures}


async def in_turn(
    sites: Mapping[str, Load | Publisher], options: argparse.Namespace, seconds_by_default: float
) -> dict[str, Any]:
    """Measure the sites in turn, round by round, after a warm-up; the first one is compared to the others."""
    seconds, rounds = options.seconds or seconds_by_default, options.rounds or ROUNDS
    for site in sites.values():
        await site.run(min(WARM_UP, seconds))
    samples: dict[str, list[Sample]] = {name: [] for name in sites}
    for _ in range(rounds):
        for name, site in sites.items():
            samples[name].append(await site.run(seconds / rounds))
    own, *peers = sites
    return {
        "figures": {name: reduce(Sample.plus, taken).figures() for name, taken in samples.items()},
        "ratios": {peer: ratios_of(samples[own], samples[peer]) for peer in peers},
    }


def ratios_of(own: list[Sample], peers: list[Sample]) -> dict[str, float]:
    """Return the median of the rounds' ratios for each figure: in some rounds the machine has other things to do."""
    rounds = [(one.figures(), other.figures()) for one, other in zip(own, peers, strict=True)]
    return {name: median(one[name] / other[name] for one, other in rounds) for name in rounds[0][0]}


def lines(result: dict[str, Any], *, heading: bool) -> Iterator[str]:
    """Yield what is printed of a result, and with ``heading`` what stands above the first one."""
    if "ratios" not in result:
        yield from table(result, heading=heading)
        return
    if heading:
        yield ROW.format(*HEADINGS)
    kind = PAIRED[result["scenario"]]
    where = (result["scenario"], result["server"], result["connections"])
    for peer, ratios in result["ratios"].items():
        for name, ratio in ratios.items():
            rate = name == "per_second"
            label = f"{kind.plural}/s" if rate else f"{name.removesuffix('_cpu_us')} µs/{kind.unit}"
            own, other = (f"{result['figures'][site][name]:,.{not rate:d}f}" for site in ("realtime", peer))
            yield ROW.format(*where, label, own, peer, other, f"{ratio:.3g}")


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, MAX_FILES), hard))
    try:
        uvloop.run(main(arguments()))
    except (asyncio.CancelledError, KeyboardInterrupt):
        sys.exit("stopped")
