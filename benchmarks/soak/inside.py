"""The server process, looked at from outside: its pages, its log, its memory and its CPU time."""

import asyncio
import json
import re
import urllib.request
from pathlib import Path
from typing import Any

from ..processes import HOST, Server
from .client import LOST

TIMEOUT = 30.0
LOOK_EVERY = 0.5
"""Seconds between two looks at the memory, and at the clients that do not read."""
DISCONNECTED = re.compile(r"event=disconnected connection=(\S+) code=(\d+)")


class Inside:
    """Look into one server process."""

    def __init__(self, server: Server, log: Path) -> None:
        self.port = server.port
        self.limits: dict[str, Any] = {}
        self.slow: dict[str, dict[str, int | None]] = {}
        """The connections that listen to big publications, with what the server says of each."""
        self.known: set[str] = set()
        """Those that were ever seen among them."""
        self.to_be_closed: list[str] = []
        """The ids of connections that must have been closed with 3008 in the end."""
        self.peak = 0
        """The most memory that was seen since this was last set to 0, in bytes."""
        self._server = server
        self._log = log

    async def get(self, page: str) -> Any:
        """Return the JSON of a page."""
        return await asyncio.to_thread(self._get, page)

    def _get(self, page: str) -> Any:
        with urllib.request.urlopen(f"http://{HOST}:{self.port}{page}", timeout=TIMEOUT) as response:
            return json.load(response)

    async def watch(self) -> None:
        """Look now and then, for ever."""
        while self.lives():
            self.peak = max(self.peak, self.memory())
            try:
                self.slow = await self.get("/slow/")
                self.known.update(self.slow)
            except OSError:  # whether it answers at all, others find out
                pass
            await asyncio.sleep(LOOK_EVERY)

    def waiting(self, key: str) -> int | None:
        """Return how many bytes the server holds for a connection that does not read; None if it closes it, or has."""
        if key not in self.known:
            return 0
        connection = self.slow.get(key, {"closed_with": LOST})
        return connection["waiting"] if connection["closed_with"] is None else None

    def memory(self) -> int:
        """Return the resident memory, in bytes."""
        status = Path(f"/proc/{self._server.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        return int(found[1]) * 1024 if found else 0

    def cpu_seconds(self) -> float:
        return self._server.cpu_seconds()

    def lives(self) -> bool:
        """Return whether the process is there, and no zombie."""
        try:
            return "State:\tZ" not in Path(f"/proc/{self._server.pid}/status").read_text()
        except OSError:
            return False

    def log(self) -> list[str]:
        return self._log.read_text(errors="replace").splitlines()

    def codes(self) -> dict[str, int]:
        """Return the code that each connection ended with, as the log has it."""
        return {found[1]: int(found[2]) for line in self.log() if (found := DISCONNECTED.search(line))}
