"""The good clients: each checks that it gets every publication, once and in order, and how soon."""

import asyncio
import json
import time
from array import array
from functools import lru_cache
from typing import Any

from .client import Client, opened, request

RATE = 20.0
"""Publications a second."""
SIZE = 100
"""Characters that fill up a publication, which has about 200 bytes with them."""
AT_ONCE = 50
"""Clients that connect or leave at the same time."""
PATIENCE = 15.0
"""Seconds that the last publication may take to reach everybody."""
SUBSCRIBE = request("subscribe", topic="ticker")


@lru_cache(maxsize=64)
def parse(payload: bytes) -> dict[str, Any]:
    """Return a message: every subscriber is sent the same bytes."""
    message: dict[str, Any] = json.loads(payload)
    return message


class Listeners:
    """Be all the good clients, and the one that publishes for them."""

    def __init__(self, port: int, problems: list[str]) -> None:
        self.latencies = array("d")
        """Seconds from publishing to each delivery since this was last replaced."""
        self.problems = problems
        """What a good client should not have met is added to it."""
        self.published = 0
        self._port = port
        self._clients: list[Client] = []
        self._next: dict[Client, int] = {}
        """The number that each client has to get next."""
        self._publisher: Client | None = None
        self._leaving = False

    async def connect(self, count: int) -> None:
        self._publisher = await opened(self._port)
        while missing := min(AT_ONCE, count - len(self._clients)):
            self._clients += await asyncio.gather(*(self._listener() for _ in range(missing)))

    async def _listener(self) -> Client:
        client = await opened(self._port)
        client.gone.add_done_callback(self._gone)
        await client.demand(SUBSCRIBE)
        self._next[client] = self.published + 1
        client.on_frame = lambda opcode, payload: self._delivered(client, payload)
        return client

    def _gone(self, code: asyncio.Future[int]) -> None:
        if not self._leaving:
            self.problems.append(f"a good client was closed with {code.result()}")

    def _delivered(self, client: Client, payload: bytes) -> None:
        message = parse(payload)
        if message["type"] != "publication":
            self.problems.append(f"a good client got {payload!r:.200}")
            return
        number, expected = message["data"]["number"], self._next[client]
        if number != expected:
            self.problems.append(f"a good client got publication {number} and expected {expected}")
        self._next[client] = number + 1
        self.latencies.append(time.monotonic() - message["data"]["sent"])

    async def run(self, seconds: float) -> array:
        """Publish for ``seconds``, wait until all has arrived, and return how long each delivery took."""
        assert self._publisher is not None
        self.latencies = latencies = array("d")
        begin = time.monotonic()
        for number in range(int(seconds * RATE)):
            await asyncio.sleep(begin + number / RATE - time.monotonic())
            if self._publisher.gone.done():
                raise ConnectionError("the connection that publishes has ended")
            self.published += 1
            fields = {"topic": "ticker", "size": SIZE, "number": self.published, "sent": time.monotonic()}
            self._publisher.write(request("publish", **fields))
        await self._complete()
        return latencies

    async def _complete(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while (behind := self._behind()) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        if behind:
            missing = sum(self.published + 1 - self._next[client] for client in behind)
            self.problems.append(f"{len(behind)} good clients did not get {missing} publications within {PATIENCE:g} s")

    def _behind(self) -> list[Client]:
        return [client for client, number in self._next.items() if number != self.published + 1]

    async def leave(self) -> None:
        """Say goodbye on every connection, in batches."""
        self._leaving = True
        clients = self._connected()
        for begin in range(0, len(clients), AT_ONCE):
            await asyncio.gather(*(client.leave() for client in clients[begin : begin + AT_ONCE]))

    def close(self) -> None:
        """Drop what is still connected."""
        self._leaving = True
        for client in self._connected():
            client.reset()

    def _connected(self) -> list[Client]:
        everybody = [*self._clients, self._publisher]
        return [client for client in everybody if client is not None and not client.lost.done()]
