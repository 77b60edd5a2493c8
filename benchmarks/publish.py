"""The scenario ``publish``: synchronous code of a process that runs no server publishes on Redis."""

import asyncio
import json
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar, Self

from .processes import Server, failure, start, stop
from .samples import Sample
from .scenarios import PATIENCE, ROUNDS
from .sites import Place


class Publisher:
    """Be a process that publishes when it is told to, one call after the other."""

    unit, plural = "publish", "publishes"
    profiled = False
    sites: ClassVar[tuple[str, ...]] = ("realtime", "plain")
    servers: ClassVar[tuple[str, ...]] = ("none",)
    on_redis: ClassVar[bool] = True
    sizes: ClassVar[tuple[int, ...]] = (0,)
    seconds: ClassVar[float] = 3.0
    rounds: ClassVar[int] = ROUNDS

    def __init__(self, process: Process, redis: Server, command: list[str], log: Path) -> None:
        self._process = process
        self._redis = redis
        self._command = command
        self._log = log

    @classmethod
    @asynccontextmanager
    async def running(cls, name: str, server: str, place: Place) -> AsyncIterator[Self]:
        """Run the process that publishes as the site called ``name`` does, with no server."""
        assert place.redis is not None
        command, log = [sys.executable, "-m", "benchmarks.publisher", name], place.directory / f"publisher-{name}.log"
        process = await start(command, place.environment, log, talk=True)
        try:
            yield cls(process, place.redis, command, log)
        finally:
            await stop(process)

    async def connect(self, count: int) -> None:
        """Do nothing: nobody has to listen."""

    async def run(self, seconds: float) -> Sample:
        """Publish for ``seconds``. Raises ``RuntimeError``, with its log, when the process ends instead."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        redis_cpu = self._redis.cpu_seconds()
        self._process.stdin.write(f"{seconds}\n".encode())
        async with asyncio.timeout(seconds + PATIENCE):
            answer = await self._process.stdout.readline()
        if not answer:
            raise failure("failed", self._command, self._log)
        calls, elapsed, cpu = json.loads(answer)
        return Sample(calls, elapsed, {"publisher": cpu, "redis": self._redis.cpu_seconds() - redis_cpu})
