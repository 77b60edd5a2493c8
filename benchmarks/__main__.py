"""
Measure realtime beside its peers: ``python -m benchmarks --help``.

All sites run at once, each in a server process of its own, and are measured in turn; the load comes
from this process. What ``scale`` and ``topics`` measure has no peer.
"""

import argparse
import asyncio
import json
import resource
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from functools import reduce
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from .machine import about
from .options import NOBODY, OWN_OPTIONS, ROUNDS, arguments
from .processes import HOST, redis, sign_in
from .progress import progress
from .publish import Publisher, publishing
from .samples import Sample
from .scale import CONNECTIONS, PROCESSES, SECONDS, TOPICS, scale, topics
from .scenarios import SCENARIOS, WARM_UP, Load
from .sites import SITES, Place, missing
from .tables import lines

MAX_FILES = 65_536


async def main(options: argparse.Namespace) -> None:
    """Run what the options choose, and print a line for each figure, or for each number of processes or topics."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    layer = options.layer or ("redis" if options.scenario in OWN_OPTIONS else "memory")
    machine = about()
    results: list[dict[str, Any]] = []
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmarks-")))
        place = await stack.enter_async_context(prepared(directory, layer))
        print(f"Python {machine['versions']['Python']}, {machine['cores']} cores, channel layer: {layer}")
        print(*left_out(options), "", sep="\n")
        async for result in measurements(options, place):
            progress("")
            print(*lines(result, heading=not results), sep="\n", flush=True)
            results.append(result)
    if options.json is not None:
        options.json.write_text(json.dumps({"layer": layer, "machine": machine, "results": results}, indent=2) + "\n")


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


def left_out(options: argparse.Namespace) -> list[str]:
    """Return why sites are left out that the options ask for."""
    kinds = SCENARIOS.values() if options.scenario == "all" else filter(None, [SCENARIOS.get(options.scenario)])
    names = {name: None for kind in kinds for name in chosen(kind.sites, options)}
    return [reason for name in names if (reason := missing(name))]


def chosen(sites: Iterable[str], options: argparse.Namespace) -> list[str]:
    """Return realtime, and which of its peers the options choose."""
    own, *peers = sites
    return [own, *(peer for peer in peers if not options.peer or peer in options.peer)]


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
            if len(chosen(SCENARIOS[scenario].sites, options)) > 1 or options.peer == [NOBODY]:
                yield await compare(scenario, server, options, place)


async def compare(scenario: str, server: str, options: argparse.Namespace, place: Place) -> dict[str, Any]:
    """Measure a scenario's sites, and return the figures of each, and realtime's ratio to each of its peers."""
    kind = SCENARIOS[scenario]
    connections = options.connections or kind.connections_by_default
    names = [name for name in chosen(kind.sites, options) if missing(name) is None]
    async with AsyncExitStack() as stack:

        async def connected(name: str) -> Load:
            address = await stack.enter_async_context(place.serving(server, name, kind.environment))
            load = stack.enter_context(closing(kind(address, SITES[name])))
            await load.connect(connections)
            return load

        progress(f"{scenario} on {server}: {connections:,} connections to each of {', '.join(names)}")
        async with asyncio.TaskGroup() as group:
            tasks = {name: group.create_task(connected(name)) for name in names}
        loads = {name: task.result() for name, task in tasks.items()}
        figures = await in_turn(loads, options, kind.seconds_by_default, f"{scenario} on {server}")
    return {"scenario": scenario, "server": server, "connections": connections, **figures}


async def compare_publishers(options: argparse.Namespace, place: Place) -> dict[str, Any]:
    """Do the same with processes that publish, and that no server is in."""
    async with AsyncExitStack() as stack:
        names = chosen(Publisher.sites, options)
        publishers = {name: await stack.enter_async_context(publishing(name, place)) for name in names}
        figures = await in_turn(publishers, options, Publisher.seconds_by_default, "publish")
    return {"scenario": "publish", "server": "none", "connections": 0, **figures}


async def in_turn(
    sites: Mapping[str, Load | Publisher], options: argparse.Namespace, seconds_by_default: float, what: str
) -> dict[str, Any]:
    """Measure the sites in turn, round by round, after a warm-up; the first one is compared to the others."""
    seconds, rounds = options.seconds or seconds_by_default, options.rounds or ROUNDS
    for name, site in sites.items():
        progress(f"{what}: warm-up of {name}")
        await site.run(min(WARM_UP, seconds))
    samples: dict[str, list[Sample]] = {name: [] for name in sites}
    for number in range(rounds):
        for name, site in sites.items():
            progress(f"{what}: round {number + 1} of {rounds}, {name}")
            samples[name].append(await site.run(seconds / rounds))
    own, *peers = sites
    return {
        "figures": {name: reduce(Sample.plus, taken).figures() for name, taken in samples.items()},
        "ratios": {peer: ratios_of(samples[own], samples[peer]) for peer in peers},
    }


def ratios_of(own: list[Sample], peers: list[Sample]) -> dict[str, float]:
    """
    Return the median of the rounds' ratios for each figure: in some rounds the machine has other things to do.

    A figure is left out that was not above 0 in some round, as memory may be with few connections.
    """
    rounds = [(one.figures(), other.figures()) for one, other in zip(own, peers, strict=True)]
    names = [name for name in rounds[0][0] if all(one[name] > 0 and other[name] > 0 for one, other in rounds)]
    return {name: median(one[name] / other[name] for one, other in rounds) for name in names}


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, MAX_FILES), hard))
    try:
        uvloop.run(main(arguments()))
    except (asyncio.CancelledError, KeyboardInterrupt):
        sys.exit("stopped")
