"""
Python programs as processes of their own, forked from one that has imported the libraries they need.

An import of Django, Channels, Twisted and the rest takes a second or more, and the tests start many hundred servers.
Only libraries are imported before the fork: the settings, the site and ``realtime`` itself are the new process's own.
"""

from __future__ import annotations

import array
import fcntl
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pydantic

LIBRARIES = [
    "asgiref.sync",
    "asyncio",
    "autobahn.twisted.websocket",
    "autobahn.websocket.protocol",
    "channels.apps",
    "channels.auth",
    "channels.consumer",
    "channels.db",
    "channels.generic.websocket",
    "channels.layers",
    "channels.middleware",
    "channels.routing",
    "channels.security.websocket",
    "channels.sessions",
    "channels_redis.core",
    "channels_redis.pubsub",
    "click",
    "concurrent.futures",
    "coverage",
    "cryptography.hazmat.primitives.kdf.pbkdf2",
    "daphne.utils",
    "django.apps",
    "django.conf",
    "django.contrib.auth.hashers",
    "django.contrib.staticfiles.handlers",
    "django.core.asgi",
    "django.core.handlers.asgi",
    "django.core.mail",
    "django.core.management",
    "django.core.management.commands.runserver",
    "django.core.serializers.json",
    "django.db",
    "django.db.backends.sqlite3.base",
    "django.db.migrations.loader",
    "django.db.models",
    "django.forms",
    "django.middleware.cache",
    "django.middleware.clickjacking",
    "django.middleware.common",
    "django.shortcuts",
    "django.template.loader_tags",
    "django.test.signals",
    "django.urls",
    "django.utils.autoreload",
    "django.utils.translation.trans_real",
    "django.views.debug",
    "django.views.decorators.csrf",
    "django.views.generic",
    "django.views.i18n",
    "environ",
    "h11",
    "httptools",
    "multiprocessing.spawn",
    "opentelemetry.instrumentation.asgi",
    "opentelemetry.sdk.metrics",
    "opentelemetry.sdk.trace",
    "pydantic",
    "pydantic.fields",
    "pydantic.functional_validators",
    "pydantic.json_schema",
    "pydantic.main",
    "pydantic.type_adapter",
    "pydantic.types",
    "redis.asyncio",
    "twisted.application.internet",
    "twisted.internet.endpoints",
    "twisted.internet.posixbase",
    "twisted.internet.ssl",
    "twisted.internet.tcp",
    "twisted.internet.udp",
    "twisted.web.http",
    "urllib.request",
    "uvicorn.main",
    "uvicorn.protocols.websockets.websockets_sansio_impl",
    "uvicorn.supervisors",
    "uvloop",
    "websockets.asyncio.client",
    "websockets.server",
    "whitenoise.middleware",
]
"""What is imported before a fork: none of it opens a file, starts a thread or takes a side in a choice of reactors."""

ROOT = Path(__file__).resolve().parent.parent
PYTHON = {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
"""What is in the environment of every process."""
OWN = {**os.environ, **PYTHON}
"""The environment of the process that forks, which its interpreter has read."""
READ_EARLY = ("PYTHON", "OTEL_")
"""How the names of variables begin that the interpreter, or a library when it is imported, reads."""
HEAD = struct.Struct("!I")
STATUS = struct.Struct("!i")


class Forked:
    """Be to a forked program what ``subprocess.Popen`` is to a command."""

    def __init__(self, server: ForkServer, request: Mapping[str, Any], fds: Sequence[int]) -> None:
        self._ends, theirs = socket.socketpair()
        self._lock = threading.Lock()
        self.returncode: int | None = None
        with theirs:
            server.send(request, [*fds, theirs.fileno()])
        self.pid = int(STATUS.unpack(self._read())[0])

    def _read(self) -> bytes:
        data = self._ends.recv(STATUS.size)
        assert len(data) == STATUS.size, "the process that forks has ended"
        return data

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        with self._lock:
            if self.returncode is None and select.select([self._ends], [], [], 0)[0]:
                self.returncode = int(STATUS.unpack(self._read())[0])
                self._ends.close()
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code; raise :exc:`subprocess.TimeoutExpired` where there is none after ``timeout``."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            try:
                select.select([self._ends], [], [], left)
            except (OSError, ValueError):
                continue  # another thread has seen the end meanwhile
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def program(command: Sequence[str], env: Mapping[str, str]) -> list[str] | None:
    """Return what a :class:`ForkServer` takes of a command; None where the command needs an interpreter of its own."""
    if any(key.startswith(READ_EARLY) and value != OWN.get(key, "") for key, value in env.items()):
        return None
    first, *rest = command
    if first == sys.executable and rest and (rest[0] == "-m" or rest[0].endswith(".py")):
        return rest
    path = Path(first)
    if path.parent == Path(sys.executable).parent and path.name in ("daphne", "uvicorn"):
        return [*command]
    return None


class ForkServer:
    """Fork programs: one such process serves a whole run of tests, and ends with it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._lock = threading.Lock()
        environment = {key: value for key, value in OWN.items() if not key.startswith("COVERAGE_PROCESS")}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                env=environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def send(self, request: Mapping[str, Any], fds: Sequence[int]) -> None:
        data = json.dumps(request).encode()
        with self._lock:
            self._socket.sendmsg(
                [HEAD.pack(len(data))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            )
            self._socket.sendall(data)

    def start(
        self, arguments: Sequence[str], cwd: Path, env: Mapping[str, str], stdout: int, pass_fds: Sequence[int] = ()
    ) -> Forked:
        """
        Start a program: ``arguments`` are what would follow the interpreter's name, a script or ``-m`` and a module.

        ``pass_fds`` have the same numbers there as here.
        """
        request = {"arguments": list(arguments), "cwd": str(cwd), "env": dict(env), "numbers": list(pass_fds)}
        return Forked(self, request, [*pass_fds, stdout])

    def stop(self) -> None:
        self._socket.close()
        self._process.wait()


# The process that forks


def serve(number: int) -> None:
    """Fork for each request, and tell of each child's end, until the other side has gone."""
    for name in LIBRARIES:
        importlib.import_module(name)
    pydantic.TypeAdapter(int)  # imports what makes schemas, which pydantic puts off
    assert "twisted.internet.reactor" not in sys.modules
    assert threading.active_count() == 1
    wakeup, woken = os.pipe()
    for end in (wakeup, woken):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken)
    reports: dict[int, int] = {}
    with socket.socket(fileno=number) as requests:
        while True:
            ready, _, _ = select.select([requests, wakeup], [], [])
            if wakeup in ready:
                os.read(wakeup, 4096)
                reap(reports)
            if requests in ready:
                head, ancillary, _, _ = requests.recvmsg(HEAD.size, socket.CMSG_SPACE(64 * array.array("i").itemsize))
                if not head:
                    return
                size = HEAD.unpack(head)[0]
                request = json.loads(requests.recv(size, socket.MSG_WAITALL))
                fds = array.array("i")
                for _, _, data in ancillary:
                    fds.frombytes(data)
                *fds_passed, stdout, report = fds
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    for end in (wakeup, woken, report, requests.detach(), *reports.values()):
                        os.close(end)
                    become(request, fds_passed, stdout)
                reports[pid] = report
                for end in (*fds_passed, stdout):
                    os.close(end)
                os.write(report, STATUS.pack(pid))


def reap(reports: dict[int, int]) -> None:
    """Tell of the children that have ended."""
    while reports:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        report = reports.pop(pid)
        try:
            os.write(report, STATUS.pack(os.waitstatus_to_exitcode(status)))
        except BrokenPipeError:
            pass  # nobody wants to know
        os.close(report)


def become(request: Mapping[str, Any], fds: Sequence[int], stdout: int) -> NoReturn:
    """Be the program that was asked for."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(stdout, 1)
    os.dup2(stdout, 2)
    os.close(stdout)
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 512) for fd in fds]  # where none is overwritten by another
    for fd in fds:
        os.close(fd)
    for fd, number in zip(high, request["numbers"], strict=True):
        os.dup2(fd, number)
        os.close(fd)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    first, *rest = request["arguments"]
    import coverage

    coverage.process_startup()
    if first == "-m":
        sys.argv = ["-m", *rest[1:]]
        sys.path[0] = request["cwd"]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *rest]
        sys.path[0] = str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
