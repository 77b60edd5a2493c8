"""
Several server processes under uvicorn's supervisor, and what it leaves to us.

A worker that ends by itself is replaced by uvicorn. Here a worker also ends with its supervisor, however that ends,
and refuses the in-memory channel layer; and the supervisor waits for no worker for ever.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from uvicorn.config import STARTUP_FAILURE, Config
from uvicorn.importer import import_from_string
from uvicorn.supervisors import Multiprocess

from .conf import get_settings
from .layers import configured_layer, is_local

HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)
"""Windows has no such signal."""
PARENT_CHECK = 0.5
"""Seconds between two looks whether the supervisor is still there."""
STOP_TIMEOUT = 10.0
"""Seconds that a worker has, beside what draining may take, from the signal to its end."""
SIGNAL_CHECK = 0.1
"""Seconds between two looks whether there was another signal, while workers end."""


def longest_stop() -> float:
    """Return after how many seconds a worker that was told to stop has ended, if nothing is wrong with it."""
    settings = get_settings()
    return settings.DRAIN_SECONDS + settings.DRAIN_TIMEOUT + STOP_TIMEOUT


class Application:
    """Make the site's application, in each worker. It is pickled on the way there."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.parent = os.getpid()
        self.longest_stop = longest_stop()
        self.served = False
        """Whether a worker has served with it: what goes wrong then is no reason for the others to stop."""
        self.local = multiprocessing.get_context("spawn").RawValue("b", 0)
        """Whether a worker was refused its channel layer, which it tells its supervisor in memory that they share."""

    def __call__(self) -> Any:
        # A terminal that goes away tells everybody in it. That is for the supervisor, which lets clients go first.
        if HANGUP is not None:
            signal.signal(HANGUP, signal.SIG_IGN)
        threading.Thread(target=self._stop_with_parent, name="parent", daemon=True).start()
        try:
            application = import_from_string(self.name)
            local = is_local(configured_layer())
        except Exception:
            if self.served:
                raise
            traceback.print_exc()
            sys.exit(STARTUP_FAILURE)
        if local:
            self.local.value = True
            sys.exit(STARTUP_FAILURE)
        gc.collect()
        gc.freeze()  # what the site is made of stays: to look at it again and again would hold up clients
        return application

    def _stop_with_parent(self) -> None:
        while os.getppid() == self.parent:
            time.sleep(PARENT_CHECK)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(self.longest_stop)
        os._exit(1)


class Pulse:
    """
    Ask a worker again and again whether it is there, in place of uvicorn's ``ping``.

    That waits for the answer, and the supervisor hears no signal and looks after no other worker meanwhile.
    """

    def __init__(self, connection: Connection) -> None:
        self.started = False
        """Whether the worker serves."""
        self._connection = connection
        self._asked: float | None = None

    def __call__(self, timeout: float) -> bool:
        """Return whether the worker has answered in the last ``timeout`` seconds."""
        try:
            if self._asked is not None and self._connection.poll():
                self.started = self._connection.recv()
                self._asked = None
            if self._asked is None:
                self._connection.send(b"ping")
                self._asked = time.monotonic()
        except (OSError, EOFError):
            return False
        return time.monotonic() - self._asked < timeout


class Supervisor(Multiprocess):
    """Keep ``config.workers`` processes serving ``application``, and call ``up`` once the first of them serves."""

    def __init__(self, config: Config, application: Application, up: Callable[[], None] | None) -> None:
        ignores_hangup = HANGUP is not None and signal.getsignal(HANGUP) == signal.SIG_IGN
        super().__init__(config, [config.bind_socket()])
        if HANGUP is not None and ignores_hangup:  # as nohup wants it
            signal.signal(HANGUP, signal.SIG_IGN)
        self._application = application
        self._up = up
        self._had_terminal = _has_terminal()

    @property
    def failed(self) -> bool:
        """Whether a worker could not start, so that all were stopped."""
        return any(process.exitcode == STARTUP_FAILURE for process in self.processes)

    def keep_subprocess_alive(self) -> None:
        pulses = [vars(process).setdefault("ping", Pulse(process.parent_conn)) for process in self.processes]
        super().keep_subprocess_alive()
        if not self._application.served and any(pulse.started for pulse in pulses):
            self._application.served = True
            if self._up is not None:
                self._up()

    def handle_hup(self) -> None:
        """Replace the workers one after the other, or stop where this comes of a terminal that has gone."""
        if self._had_terminal and not _has_terminal():
            self.should_exit.set()
        else:
            super().handle_hup()

    def join_all(self) -> None:
        """
        Wait until the workers have ended.

        They are told again when another signal comes, and then drop their clients. One that does not end is killed.
        """
        deadline = time.monotonic() + self._application.longest_stop
        self.signal_queue.clear()
        while left := [process.process for process in self.processes if process.exitcode is None]:
            told = {signal.SIGTERM, signal.SIGINT} & set(self.signal_queue)
            self.signal_queue.clear()
            for process in left:
                if time.monotonic() > deadline:
                    process.kill()
                elif told:
                    process.terminate()
            wait([process.sentinel for process in left], SIGNAL_CHECK)


def _has_terminal() -> bool:
    try:
        open("/dev/tty").close()
    except OSError:
        return False
    return True
