"""The client under test: a command that is started for each case, or an author who starts it by hand."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import IO, Any, Protocol

OUTPUT = 4000
"""Bytes of what a client writes that are kept, from the end."""
STOP_TIMEOUT = 3.0
"""Seconds that a process has to end when it is killed."""


class Client(Protocol):
    """Be what a case starts and stops. Its methods are called from the thread that plays the case."""

    def start(self, url: str) -> None:
        """Begin to connect to ``url``, with nothing known of an earlier case."""

    def ask_to_stop(self) -> None:
        """Have it end as its users would end it: in an orderly way."""

    def end(self) -> None:
        """Have it end at once, whatever state it is in."""

    @property
    def ended(self) -> str | None:
        """How it ended by itself, or None while it runs or nobody knows."""

    @property
    def output(self) -> str:
        """The end of what it wrote."""


MakeClient = Callable[[], Client]


class Command:
    """Start a command in a process of its own; ``{url}`` and ``{scale}`` in its arguments are filled in."""

    def __init__(self, command: str | Sequence[str], scale: float) -> None:
        self._arguments = shlex.split(command) if isinstance(command, str) else list(command)
        if not self._arguments:
            raise ValueError("the command of the client is empty; expected something like 'python my_client.py {url}'")
        if shutil.which(self._arguments[0]) is None:
            raise ValueError(f"the command of the client cannot be found: {self._arguments[0]!r}")
        self._scale = f"{scale:g}"
        self._process: subprocess.Popen[bytes] | None = None
        self._file: IO[bytes] | None = None

    def start(self, url: str) -> None:
        values = {"{url}": url, "{scale}": self._scale}
        arguments = [_filled(argument, values) for argument in self._arguments]
        environment = {**os.environ, "DEMOWS_URL": url, "DEMOWS_SCALE": self._scale}
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed in end()
        options: dict[str, Any] = {} if sys.platform == "win32" else {"start_new_session": True}
        self._process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=self._file, stderr=self._file, env=environment, **options
        )

    def ask_to_stop(self) -> None:
        if self._process is not None and self.ended is None:
            self._process.terminate()

    def end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            self._kill(process)
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:  # nothing more can be done to it
                pass
        if self._file is not None:
            self._file.close()

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a process and those that it has started, as a command may be a wrapper around the client."""
        try:
            if sys.platform == "win32":
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # all of them have ended
            pass

    @property
    def ended(self) -> str | None:
        if self._process is None:
            return None
        status = _status(self._process)
        return None if status is None else f"its process ended with status {status}"

    @property
    def output(self) -> str:
        if self._file is None or self._file.closed:
            return ""
        # By a descriptor of no position: the process writes to the same file.
        size = os.fstat(self._file.fileno()).st_size
        start = max(0, size - OUTPUT)
        return os.pread(self._file.fileno(), size - start, start).decode(errors="replace")


def _filled(argument: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        argument = argument.replace(name, value)
    return argument


class ByHand:
    """Tell an author to start the client, whose URL stays the same."""

    ended = None
    output = ""

    def __init__(self, tell: Callable[[str], object]) -> None:
        self._tell = tell

    def start(self, url: str) -> None:
        self._tell(f"waiting for the client to connect to {url} (start it again if it has ended)")

    def ask_to_stop(self) -> None:
        self._tell("stop the client now, as its users would")

    def end(self) -> None:
        """Leave it to the author."""


def _status(process: subprocess.Popen[bytes]) -> int | None:
    """
    Return with which status a process has ended, or None while it runs.

    Where that can be, it is left to be waited for, since its id must not become another's before its group is killed.
    """
    if sys.platform == "win32" or not hasattr(os, "waitid"):
        return process.poll()
    info = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if info is None:
        return None
    return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status
