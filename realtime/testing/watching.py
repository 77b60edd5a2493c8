"""Say in a line each what becomes of connections, while a server runs in the foreground."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from ..logs import escaped
from .server import DemoWebsocketServer
from .transcript import Entry, Log

MOST_LINES = 10_000
"""Lines that wait to be read; more are left out."""


class Watcher:
    """
    Write lines about the connections of a server for the length of a ``with`` block, which is entered before it starts.

    That is done in a thread of its own, so that the server never waits for whoever reads them. Without ``write`` it
    does nothing.
    """

    def __init__(self, server: DemoWebsocketServer, write: Callable[..., Any] | None) -> None:
        self._write = write
        self._lines: queue.Queue[str | None] = queue.Queue(MOST_LINES)
        self._thread = threading.Thread(target=self._run, name="demows-watcher", daemon=True)
        if write is not None:
            server.log = WatchedLog(self._say)

    def __enter__(self) -> Watcher:
        return self

    def begin(self) -> None:
        """Write what there is to say, from now on."""
        if self._write is not None:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self._say(None)
            self._thread.join(1.0)  # or else nobody reads

    def _say(self, line: str | None) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            pass

    def _run(self) -> None:
        assert self._write is not None
        while (line := self._lines.get()) is not None:
            try:
                self._write(line, flush=True)
            except OSError:  # nobody reads any more
                return


class WatchedLog(Log):
    """Be a transcript's log that tells of connections."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say
        self._paths: dict[str, str] = {}
        self._closes: dict[str, str] = {}

    def add(self, entry: Entry, *, keep: bool = True) -> None:
        super().add(entry, keep=keep)
        if entry.kind == "handshake" and entry.direction == "received":
            self._paths[entry.connection] = (entry.text or "").partition("\n")[0].removeprefix("GET ")
        elif entry.kind == "handshake":
            status = entry.data[9:12].decode("ascii", "replace")
            what = "connected" if status == "101" else f"refused with {status}"
            self._tell(entry, f"{what} {self._paths.get(entry.connection, '')}")
        elif entry.code is not None and entry.connection not in self._closes:
            who = "client" if entry.direction == "received" else "server"
            self._closes[entry.connection] = f"closed by the {who} with {entry.code} {entry.reason}"
        elif entry.kind == "end" and self._paths.pop(entry.connection, None) is not None:
            who = "client" if entry.direction == "received" else "server"
            self._tell(entry, self._closes.pop(entry.connection, f"dropped by the {who}"))

    def _tell(self, entry: Entry, text: str) -> None:
        self._say(escaped(f"#{entry.connection} {text}".rstrip()))
