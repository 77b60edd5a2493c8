"""The scenarios ``flat`` and ``topics``: subscribers and topics become many, and realtime is alone."""

import asyncio
import time
from typing import ClassVar

from .connection import Connection
from .dialects import ask, subscribe, unsubscribe
from .samples import Sample
from .scenarios import Fanout

CALM = 0.05
"""The share of a core below which a server is done with those who have just come."""
CALM_INTERVAL = 0.5
CALM_TIMEOUT = 20.0


class Growth(Fanout):
    """
    Fan out to clients without a session, of whom twenty thousand are there soon.

    The first broadcast waits until the server is calm: thousands of rows are written to the registry.
    """

    sites = ("realtime",)
    servers = ("uvicorn",)
    sign_in = False
    profiled = False
    topic = "news"

    async def _prepare(self) -> None:
        await super()._prepare()
        patience = time.monotonic() + CALM_TIMEOUT
        while time.monotonic() < patience:
            cpu = self.server.cpu_seconds()
            await asyncio.sleep(CALM_INTERVAL)
            if self.server.cpu_seconds() - cpu < CALM * CALM_INTERVAL:
                return


class Flat(Growth):
    """Fan out to more and more subscribers of one topic: a delivery has to cost the same."""

    sizes = (100, 1000, 5000, 20_000)
    rounds = 1


class Topics(Growth):
    """
    Publish on a topic that has ten subscribers, while each other client subscribes to a topic of its own.

    Then one more client subscribes to one of those topics and unsubscribes, again and again.
    """

    unit, plural = "broadcast", "broadcasts"
    each: ClassVar[int] = 10
    sizes = (10 + 10, 10 + 1000, 10 + 10_000)
    rounds = 1
    first: ClassVar[int] = 100_000
    """The first topic's number."""

    def _topic(self, number: int) -> str:
        return f"offers.{self.first + max(0, number + 1 - self.each)}"

    async def _prepare(self) -> None:
        self._last = self._topic(len(self.connections) - 1)
        await super()._prepare()
        room = self._idle[0]
        self._idle.clear()
        self._idle.append(room)
        self._visitor: Connection = await self._connect("/ws/")
        self.connections.append(self._visitor)

    async def run(self, seconds: float) -> Sample:
        """Publish for half of ``seconds``, and subscribe for the other half."""
        deliveries = await super().run(seconds / 2)
        return deliveries._replace(
            units=len(deliveries.times), others={"subscribe": await self._come_and_go(seconds / 2)}
        )

    async def _come_and_go(self, seconds: float) -> tuple[float, int]:
        """Return the server's CPU time, and how often the visitor subscribed and unsubscribed in it."""
        count, cpu, end = 0, self.server.cpu_seconds(), time.perf_counter() + seconds
        while time.perf_counter() < end:
            await ask(self._visitor, subscribe(self._last))
            await ask(self._visitor, unsubscribe(self._last))
            count += 1
        return self.server.cpu_seconds() - cpu, count
