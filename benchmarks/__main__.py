"""
Measure realtime beside its peers: ``python -m benchmarks --help``.

All sites of a scenario run at once, each in a server process of its own, and are measured in turn; the load
comes from this process. ``scale`` and ``subscriptions`` are no comparison, and have tables of their own.
"""

import argparse
import asyncio
import json
import resource
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial, reduce
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from .goals import verdicts
from .machine import about
from .options import OWN_TABLES, arguments
from .processes import HOST, redis, sign_in
from .profile import profile
from .progress import Steps
from .publish import Publisher
from .samples import Sample
from .scale import CONNECTIONS, PROCESSES, SECONDS, TOPICS, scale, subscriptions
from .scenarios import WARM_UP, Load
from .sites import Place
from .steps import Step, left_out, steps
from .tables import lines

MAX_FILES = 65_536
PROFILED_SECONDS = 3.0


async def main(options: argparse.Namespace) -> None:
    """Run what the options choose, and print a line for each figure, or for each number of processes or topics."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    machine = about()
    results: list[dict[str, Any]] = []
    chosen_steps = [] if options.scenario in OWN_TABLES else [*steps(options)]
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmarks-")))
        needs_redis = options.scenario in OWN_TABLES or any(step.layer == "redis" for step in chosen_steps)
        place = await stack.enter_async_context(prepared(directory, needs_redis))
        print(f"Python {machine['versions']['Python']}, {machine['cores']} cores")
        print(*left_out(options), "", sep="\n", flush=True)
        if options.scenario in OWN_TABLES:
            async for result in own_tables(options, place.on_redis()):
                print(*lines(result, heading=not results), sep="\n", flush=True)
                results.append(result)
        progress = stack.enter_context(Steps(len(chosen_steps)))
        for step in chosen_steps:
            result = await compare(step, place.on_redis() if step.layer == "redis" else place, progress)
            progress.print("\n".join(lines(result, heading=not results)))
            results.append(result)
    print(*verdicts(results), sep="\n")
    if options.json is not None:
        run = {"machine": machine, "left_out": left_out(options), "results": results}
        options.json.write_text(json.dumps(run, indent=2) + "\n")


@asynccontextmanager
async def prepared(directory: Path, needs_redis: bool) -> AsyncIterator[Place]:
    """Give what all processes need: the database with a user who is signed in, and Redis for those who ask for it."""
    environment = {
        "SECRET_KEY": "benchmarks",
        "ALLOWED_HOSTS": HOST,
        "DATABASE_URL": f"sqlite:///{directory / 'db.sqlite3'}",
    }
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(redis(directory)) if needs_redis else None
        yield Place(environment, directory, await sign_in(environment, directory), server)


async def own_tables(options: argparse.Namespace, place: Place) -> AsyncIterator[dict[str, Any]]:
    """Measure what realtime costs on Redis, and yield the figures of each step."""
    servers = options.server or ["uvicorn"]
    if options.scenario == "scale":
        for server, processes in product(servers, [options.processes] if options.processes else PROCESSES):
            connections, seconds = options.connections or CONNECTIONS, options.seconds or SECONDS
            yield await scale(server, processes, connections, seconds, place)
    else:
        for server, count in product(servers, [options.topics] if options.topics else TOPICS):
            yield await subscriptions(server, options.processes or 1, count, place)


async def compare(step: Step, place: Place, progress: Steps) -> dict[str, Any]:
    """Measure the sites of a step, and return the figures of each, and realtime's ratio to each of its peers."""
    what = step.scenario if step.server == "none" else f"{step.scenario} on {step.server}"
    clients = f"{step.connections:,} connections to each of " if step.connections else ""
    progress.begin(f"{what}: {clients}{', '.join(step.sites)}")
    figures: dict[str, Any] = {"figures": {}, "ratios": {}}
    for sites in step.batches:
        tell = partial(_tell, progress, what)
        batch = await beside(step, sites, place, tell, with_profile=step.profiled and not figures["figures"])
        for name, values in batch.items():
            known = figures.get(name, {})
            figures[name] = {**known, **values, **known}  # what realtime did beside the first ones stands
    return {
        **{"scenario": step.scenario, "server": step.server, "layer": step.layer, "connections": step.connections},
        **figures,
        "command": step.command,
    }


def _tell(progress: Steps, what: str, text: str) -> None:
    progress.detail(f"{what}: {text}")


async def beside(
    step: Step, names: list[str], place: Place, tell: Callable[[str], None], *, with_profile: bool
) -> dict[str, Any]:
    """Run some of a step's sites, and measure them."""
    async with AsyncExitStack() as stack:

        async def connected(name: str) -> Load | Publisher:
            site = await stack.enter_async_context(step.kind.running(name, step.server, place))
            await site.connect(step.connections)
            return site

        async with asyncio.TaskGroup() as group:
            tasks = {name: group.create_task(connected(name)) for name in names}
        sites = {name: task.result() for name, task in tasks.items()}
        figures: dict[str, Any] = await in_turn(sites, step, tell)
        if with_profile:
            tell("profile of realtime")
            figures["profile"] = await profiled(sites["realtime"], place.directory)
    return figures


async def in_turn(
    sites: Mapping[str, Load | Publisher], step: Step, tell: Callable[[str], None]
) -> dict[str, dict[str, dict[str, float]]]:
    """Measure the sites in turn, round by round, after a warm-up; the first one is compared to the others."""
    for name, site in sites.items():
        tell(f"warm-up of {name}")
        await site.run(min(WARM_UP, step.seconds))
    samples: dict[str, list[Sample]] = {name: [] for name in sites}
    for number in range(step.rounds):
        for name, site in sites.items():
            tell(f"round {number + 1} of {step.rounds}, {name}")
            samples[name].append(await site.run(step.seconds / step.rounds))
    own, *peers = sites
    return {
        "figures": {name: reduce(Sample.plus, taken).figures() for name, taken in samples.items()},
        "ratios": {peer: ratios_of(samples[own], samples[peer]) for peer in peers},
    }


async def profiled(site: Load | Publisher, directory: Path) -> dict[str, float]:
    """Drive a site once more, which counts for nothing, and return where its server's time goes."""
    assert isinstance(site, Load)
    async with asyncio.TaskGroup() as group:
        group.create_task(site.run(PROFILED_SECONDS + 1))
        shares = group.create_task(profile(site.server.pid, PROFILED_SECONDS, directory))
    return shares.result()


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
