"""A process beside this one: started again when it ends, and gone when this one stops."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from pathlib import Path

logger = logging.getLogger("realtime.serve")

RESTART_DELAY = 1.0
"""Seconds after which a process that has ended is started again."""
STOP_TIMEOUT = 5.0
"""Seconds that it has for its own end when it is told to stop."""


class Child:
    """
    Keep one process running.

    It gets a session of its own, so that Ctrl-C in a terminal does not reach it: it is stopped when nobody needs it
    any more. What it has started itself, and left behind, ends with it. It must see for itself to its end when this
    process is killed.
    """

    def __init__(self, name: str, *command: str, directory: Path | None = None) -> None:
        self.name = name
        self.failed = False
        """Whether the process has ended by itself, at least once."""
        self._command = command
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the process, and watch over it."""
        process = self._spawn()
        threading.Thread(target=self._watch, args=[process], name=self.name, daemon=True).start()

    def stop(self) -> None:
        """End the process, if it was started, and wait until it has ended."""
        with self._lock:
            self._stopping.set()
            process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            pass
        _kill_group(process)
        process.wait()

    def _spawn(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(self._command, cwd=self._directory, start_new_session=True)
        return self._process

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        while True:
            process.wait()
            _kill_group(process)
            self.failed = not self._stopping.is_set()
            if self._stopping.wait(RESTART_DELAY):
                return
            logger.warning("event=restarting process=%s code=%d", self.name, process.returncode)
            with self._lock:
                if self._stopping.is_set():
                    return
                try:
                    process = self._spawn()
                except OSError as error:  # the machine has no room for it now
                    logger.error("event=not_restarted process=%s error=%r", self.name, error)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    if not hasattr(os, "killpg"):  # Windows has no groups of processes
        process.kill()
        return
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # nobody is left, or, on macOS, only who has ended already
        pass
