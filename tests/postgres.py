"""A PostgreSQL of the tests' own, which can be killed, frozen and started again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

from .live import TIMEOUT, free_port


class Postgres:
    """Run a cluster in a temporary directory, on a free port; as root, by the user ``postgres``, as it demands."""

    def __init__(self) -> None:
        programs = self.programs()
        assert programs is not None
        self._programs = programs
        self._user = "postgres" if os.geteuid() == 0 else None
        self._directory = Path(tempfile.mkdtemp(prefix="demows-postgres-", dir="/tmp"))
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.url = f"postgres://postgres@127.0.0.1:{self.port}/postgres"
        try:
            if self._user is not None:
                shutil.chown(self._directory, self._user)
            options = ("--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-sync", "--no-instructions")
            self._run("initdb", *options, "-D", str(self._directory / "data")).check_returncode()
            self.start()
        except BaseException:
            self.destroy()
            raise

    @staticmethod
    def programs() -> Path | None:
        """Return the directory with PostgreSQL's programs, the newest if there are several."""
        if (found := shutil.which("initdb")) is not None:
            return Path(found).resolve().parent
        found_all = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
        return found_all[-1].parent if found_all else None

    def _run(self, program: str, *options: str) -> subprocess.CompletedProcess[bytes]:
        command = [str(self._programs / program), *options]
        # Its own working directory, as that of the tests may be one that the user must not read.
        return subprocess.run(command, user=self._user, cwd=self._directory, stdout=subprocess.DEVNULL, timeout=60)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        data = self._directory / "data"
        command = [str(self._programs / "postgres"), "-D", str(data), "-p", str(self.port), "-c", "fsync=off"]
        command += ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self._directory}"]
        log_file = self._directory / "log"
        with log_file.open("ab") as log:
            self._process = subprocess.Popen(
                command, user=self._user, cwd=self._directory, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                self.ask("SELECT 1")
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None, log_file.read_text()
                assert time.monotonic() < deadline, log_file.read_text()
                time.sleep(0.05)

    def ask(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Return what a query answers, in a connection of its own."""
        with psycopg.connect(self.url, autocommit=True, connect_timeout=int(TIMEOUT)) as connection:
            cursor = connection.execute(query, parameters or None)
            return cursor.fetchall() if cursor.description is not None else []

    def _members(self) -> list[int]:
        """Return the process ids of the server and its children. Each child is the leader of a session of its own."""
        if self._process is None or self._process.poll() is not None:
            return []
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        return [self._process.pid, *map(int, children.split())]

    def _signal(self, number: int) -> None:
        for pid in self._members():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def freeze(self) -> None:
        """Stop it from answering, with every connection to it open."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill it and its children, without a chance to tidy up."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(TIMEOUT)

    def stop(self) -> None:
        """Stop it as an operator would who does not wait for clients."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(TIMEOUT)

    def destroy(self) -> None:
        """End it, whatever state it is in, and leave nothing behind."""
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)
