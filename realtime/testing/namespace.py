"""One session of the engine: its hub, its connections and its faults, of which other sessions notice nothing."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from channels.layers import InMemoryChannelLayer

from ..conf import Settings
from ..protocol import CloseMessage
from .connection import Interposer, ServerConnection, State
from .stepped import SteppedHub, Timer

if TYPE_CHECKING:
    from .profiles import CloseEvent, Profile

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
    query: str
    """What the client's URL has after the path, without the question mark."""
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
        query=connection.query,
        subprotocol=connection.subprotocol,
        user_agent=connection.user_agent,
        topics=tuple(getattr(connection.listener, "topics", ())),
        opened=connection.opened,
        state=connection.state,
    )


class Arrivals:
    """Remember which connections were opened and have not been waited for."""

    def __init__(self) -> None:
        self._new: OrderedDict[str, ConnectionInfo] = OrderedDict()
        self._waiters: set[asyncio.Future[None]] = set()

    def add(self, connection: ConnectionInfo) -> None:
        self._new[connection.id] = connection
        if len(self._new) > REMEMBERED:
            self._new.popitem(last=False)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def forget(self, connection: str | None = None) -> None:
        """Take all that have come until now for old, or the one with this id."""
        if connection is None:
            self._new.clear()
        else:
            self._new.pop(connection, None)

    def forget_session(self, name: str) -> None:
        """Take all that have come until now in one session for old."""
        for connection in [info.id for info in self._new.values() if info.session == name]:
            del self._new[connection]

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
            self._new.popitem(last=False)
        return self._new.popitem(last=False)[1]


class Namespace:
    """Be one session."""

    def __init__(
        self, name: str, settings: Settings, everybody: Arrivals, *, offset: float = 0.0, beating: bool = True
    ) -> None:
        self.name = name
        self.forgotten = False
        """Whether it was reset, so that nothing more of it is to be seen."""
        self._everybody = everybody
        self.hub = SteppedHub(InMemoryChannelLayer(capacity=CAPACITY), settings, offset=offset, beating=beating)
        self.hub.start()
        self.connections: dict[str, ServerConnection] = {}
        self.arrivals = Arrivals()
        self.count = 0
        """How many connections there have been."""
        self.make_interposer: MakeInterposer | None = None
        self.own_interposers: dict[str, MakeInterposer] = {}
        """What single connections have of their own, by their ids."""
        self.profile: Profile | None = None
        self._profile_timers: set[Timer] = set()

    def use_profile(self, profile: Profile | None, settings: Settings) -> None:
        """Begin a profile, whose ``settings`` these are, in place of another; its faults are not set here."""
        for timer in self._profile_timers:
            timer.cancel()
        self._profile_timers.clear()
        self.profile = profile
        self.hub.use_settings(settings.model_copy(update={"CONNECTION_REGISTRY": False}))
        if self.hub.beating:
            self.hub.resume_beats()  # at the interval that holds now
        for event in self._events("started"):
            self._later(event.after, partial(self._close_all, event))
        for connection in self.open_connections():
            self._close_in_time(connection)

    def opened(self, connection: ServerConnection) -> None:
        """Take note that a WebSocket was opened."""
        self.arrivals.add(describe(connection))
        self._close_in_time(connection)

    def left(self, connection: ServerConnection) -> None:
        """Take note that a connection is gone."""
        self.connections.pop(connection.id, None)
        self.own_interposers.pop(connection.id, None)

    def _events(self, since: str) -> list[CloseEvent]:
        return [] if self.profile is None else [event for event in self.profile.events if event.since == since]

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        def fire() -> None:
            self._profile_timers.discard(timer)
            call()

        timer = self.hub.call_later(seconds, fire)
        self._profile_timers.add(timer)

    def _close_all(self, event: CloseEvent) -> None:
        for connection in self.open_connections():
            self._close_later(connection, event, 0.0)

    def _close_in_time(self, connection: ServerConnection) -> None:
        for event in self._events("connected"):
            self._close_later(connection, event, event.after)

    def _close_later(self, connection: ServerConnection, event: CloseEvent, after: float) -> None:
        # The same connection, by its number, is closed at the same moment each time.
        delay = after + Random(f"{event.after}:{connection.number}").uniform(0.0, event.spread)
        self._later(delay, partial(self._close_now, connection, event.message))

    def _close_now(self, connection: ServerConnection, message: CloseMessage) -> None:
        # Others may have come back already from a close that is spread over some time: those count.
        for arrivals in (self.arrivals, self._everybody):
            arrivals.forget(connection.id)
        close_connection(connection, message)

    def forget_arrivals(self) -> None:
        """Take all connections that have come until now for old, whoever waits for them."""
        self.arrivals.forget()
        self._everybody.forget_session(self.name)

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


def close_connection(connection: ServerConnection, message: CloseMessage) -> None:
    """Close a connection as the hub does, so that it counts as closed by the server; 1006 drops it."""
    close = getattr(connection.listener, "close", None)
    if close is not None:
        close(message.code, message.reason)
    elif message.code == 1006:
        connection.drop()
    else:
        connection.close(message.code, message.reason)


async def end_all(connections: Iterable[ServerConnection]) -> None:
    """Drop connections, and wait until their applications have ended."""
    await asyncio.gather(*(connection.end() for connection in connections))
