"""One soak of one server: a quiet time, a loud one, and what is left after it."""

import asyncio
import itertools
import os
import re
import time
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Container, Iterable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, NamedTuple

from ..processes import HOST, serving, sign_in
from .bad import Slow, Vanisher
from .garbage import Garbage
from .good import Listeners
from .inside import Inside
from .mob import Mob

Result = dict[str, Any]
APPLICATION = "benchmarks.soak.asgi:application"
QUIET = 0.25
"""The part of the time in which the good clients are by themselves."""
SETTLE = 40.0
"""Seconds after which nothing may be left of clients that have gone, as no timeout of a server is longer."""
UNIQUE = re.compile(r"^[-0-9]+ [:,0-9]+ |connection=\S+")
"""What differs in each line of the log."""
REASONS = ("full", "stalled")
"""Why a client can be closed that does not read; the soak has clients for either."""


class Plan(NamedTuple):
    """Say how long to soak, with how many good clients, and how many bad ones of which kinds."""

    seconds: float
    good: int
    bad: int
    kinds: Container[str]
    garbage: list[Garbage]


async def soak(name: str, plan: Plan, directory: Path) -> Result:
    """Return what came of a soak of the server called ``name``; under ``problems`` what should not have come of it."""
    async with running(name, directory) as inside:
        result: Result = {"server": name, "good": plan.good, "bad": plan.bad, "clients": {}}
        problems: list[str] = []
        try:
            result |= await with_everybody(inside, plan, problems)
        except OSError as error:  # a TimeoutError is one, too
            problems.append(f"the soak could not be finished: {error!r}")
        if not inside.lives():
            problems.append("the server process has ended")
    problems += of_log(inside, plan)
    return {**result, "problems": counted(problems), "tracebacks": tracebacks(inside.log())}


async def with_everybody(inside: Inside, plan: Plan, problems: list[str]) -> Result:
    """Return the figures; add to ``problems`` what went wrong with the clients, and what they left behind."""
    before = await baseline(inside)
    with closing(Listeners(inside.port, problems)) as listeners:
        await listeners.connect(plan.good)
        quiet = await measured(inside, listeners, plan.seconds * QUIET)
        mob = Mob(inside, plan.bad, plan.garbage, plan.kinds)
        async with mob.at_work():
            loud = await measured(inside, listeners, plan.seconds * (1 - QUIET))
        problems += mob.problems()
        await listeners.leave()
    after = await settled(inside, before)
    problems += of_leftovers(before, after)
    return {
        "published": listeners.published,
        "quiet": quiet,
        "loud": loud,
        "ratios": {key: loud[key] / quiet[key] for key in quiet if quiet[key] and key != "seconds"},
        "clients": mob.figures(),
        "counts": (await inside.get("/about/"))["counts"],
        "leftovers": {"before": before, "after": after},
    }


@asynccontextmanager
async def running(name: str, directory: Path) -> AsyncIterator[Inside]:
    """Run a server on a database of its own, with what the environment says of REALTIME, and watch it."""
    directory.mkdir()  # noqa: ASYNC240 - nobody waits for it
    environment = {key: value for key, value in os.environ.items() if key.startswith("REALTIME_")} | {
        "SECRET_KEY": "soak",
        "ALLOWED_HOSTS": HOST,
        "DATABASE_URL": f"sqlite:///{directory / 'db.sqlite3'}",
    }
    await sign_in(environment, directory)
    async with serving(name, APPLICATION, environment, directory, "") as server:
        inside = Inside(server, directory / f"{server.port}.log")
        inside.limits = (await inside.get("/about/"))["limits"]
        watching = asyncio.create_task(inside.watch())
        try:
            yield inside
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def measured(inside: Inside, listeners: Listeners, seconds: float) -> dict[str, float]:
    """Return the figures of the good clients and of the server, over so many seconds."""
    inside.peak = inside.memory()
    begin, server_cpu, load_cpu = time.monotonic(), inside.cpu_seconds(), time.process_time()
    latencies = await listeners.run(seconds)
    elapsed = time.monotonic() - begin
    return {
        "seconds": elapsed,
        "p50_ms": percentile(latencies, 50),
        "p99_ms": percentile(latencies, 99),
        "memory_mb": inside.peak / 1e6,
        "server_cpu": (inside.cpu_seconds() - server_cpu) / elapsed,
        "load_cpu": (time.process_time() - load_cpu) / elapsed,
    }


def percentile(seconds: array, part: int) -> float:
    """Return in milliseconds what so many of a hundred stay below."""
    return sorted(seconds)[len(seconds) * part // 100] * 1000 if seconds else 0.0


async def baseline(inside: Inside) -> dict[str, int]:
    """Return what is there while nobody is connected, once what is made only once was made."""
    with closing(Listeners(inside.port, [])) as listeners:
        await listeners.connect(10)
        await listeners.run(0.2)
        await listeners.leave()
    vanishers = [Vanisher(number, inside) for number in range(14)]
    await asyncio.gather(*(vanisher.attempt() for vanisher in vanishers))
    last: dict[str, int] = {}
    for _ in range(20):
        await asyncio.sleep(1)
        last, before = await inside.get("/leftovers/"), last
        if last == before and not last["connections"] and (await inside.get("/about/"))["registered"]:
            break
    return last


async def settled(inside: Inside, before: dict[str, int]) -> dict[str, int]:
    """Return what is left, as soon as that is nothing beyond ``before``, or else in the end."""
    deadline = time.monotonic() + SETTLE
    while True:
        after = await inside.get("/leftovers/")
        if not list(of_leftovers(before, after)) or time.monotonic() > deadline:
            return after
        await asyncio.sleep(0.5)


def of_leftovers(before: dict[str, int], after: dict[str, int]) -> Iterable[str]:
    for kind, count in after.items():
        if count > before[kind]:
            yield f"left over: {count} {kind}, where {before[kind]} were before"


def of_log(inside: Inside, plan: Plan) -> Iterable[str]:
    """Yield what is in the log and should not be, or the other way round."""
    lines = inside.log()
    for title, count in tracebacks(lines).items():
        yield f"the server's log has {count} times the traceback of {title}"
    for reason in REASONS if Slow.kind in plan.kinds and plan.bad >= len(REASONS) else ():
        if not any(f"event=slow_consumer reason={reason}" in line for line in lines):
            yield f"nobody was closed for being {reason}"


def tracebacks(lines: list[str]) -> Counter[str]:
    """Return the tracebacks in a log, each as its exception with the line before it, and how often it is there."""
    found: Counter[str] = Counter()
    for number, line in enumerate(lines):
        if "Traceback (most recent call last)" in line:
            inner = itertools.takewhile(lambda text: text.startswith(" "), lines[number + 1 :])
            last = number + 1 + sum(1 for _ in inner)
            found[f"{lines[last] if last < len(lines) else ''} ({UNIQUE.sub('...', lines[number - 1])})"] += 1
    return found


def counted(problems: list[str]) -> list[str]:
    """Return each problem once, with how often there was one like it."""
    return [text if count == 1 else f"{text} ({count} times)" for text, count in Counter(problems).items()]
