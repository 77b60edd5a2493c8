"""One session of the engine: its hub, its connections and its faults, of which other sessions notice nothing."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from channels.layers import InMemoryChannelLayer

from ..conf import Settings
from .connection import Interposer, ServerConnection, State
from .stepped import SteppedHub

CAPACITY = 1_000_000
"""Events that may wait on a session's channel layer, which cannot be reached."""
REMEMBERED = 10_000
"""Connections that were opened, and that nobody has waited for, of which is known that they were."""

MakeInterposer = Callable[[int], Interposer | None]
"""Returns what stands between the server and a session's connection of this number."""


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """Describe a connection as it was when it was looked at."""

    id: str
    number: int
    """Which of its session's connections it is, counted from 1."""
    session: str
    address: str
    path: str
    subprotocol: str | None
    user_agent: str
    topics: tuple[str, ...]
    opened: float
    """When it was opened (seconds since the epoch)."""
    state: State


def describe(connection: ServerConnection) -> ConnectionInfo:
    """Describe a connection as it is now."""
    return ConnectionInfo(
        id=connection.id,
        number=connection.number,
        session="" if connection.namespace is None else connection.namespace.name,
        address=connection.address,
        path=connection.path,
        subprotocol=connection.subprotocol,
        user_agent=connection.user_agent,
        topics=tuple(getattr(connection.listener, "topics", ())),
        opened=connection.opened,
        state=connection.state,
    )


class Arrivals:
    """Remember which connections were opened and have not been waited for."""

    def __init__(self) -> None:
        self._new: deque[ConnectionInfo] = deque(maxlen=REMEMBERED)
        self._waiters: set[asyncio.Future[None]] = set()

    def add(self, connection: ConnectionInfo) -> None:
        self._new.append(connection)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def forget(self) -> None:
        """Take all that have come until now for old."""
        self._new.clear()

    @property
    def count(self) -> int:
        return len(self._new)

    async def wait(self, count: int) -> ConnectionInfo:
        """Wait until so many have come, take them for old, and return the last of them, as it was then."""
        while len(self._new) < count:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)
        for _ in range(count - 1):
            self._new.popleft()
        return self._new.popleft()


class Namespace:
    """Be one session."""

    def __init__(self, name: str, settings: Settings, *, offset: float = 0.0, beating: bool = True) -> None:
        self.name = name
        self.hub = SteppedHub(InMemoryChannelLayer(capacity=CAPACITY), settings, offset=offset, beating=beating)
        self.hub.start()
        self.connections: dict[str, ServerConnection] = {}
        self.arrivals = Arrivals()
        self.count = 0
        """How many connections there have been."""
        self.make_interposer: MakeInterposer | None = None

    def open_connections(self, chosen: str | None = None) -> list[ServerConnection]:
        """Return the connections that are open, or the one with this id if it is."""
        return [
            connection
            for connection in self.connections.values()
            if connection.state == "open" and chosen in (None, connection.id)
        ]

    async def stop(self) -> None:
        """Close every connection, and stop the hub."""
        await self.hub.stop()
        await end_all(list(self.connections.values()))


async def end_all(connections: Iterable[ServerConnection]) -> None:
    """Drop connections, and wait until their applications have ended."""
    await asyncio.gather(*(connection.end() for connection in connections))
