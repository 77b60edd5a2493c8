"""The scenarios: what the load does to one site, and what is counted."""

import asyncio
import resource
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from functools import partial
from typing import ClassVar, Self

from .connection import Connection, client_frame, connect
from .dialects import ask, subscribe
from .processes import Server
from .samples import MAX_TIMES, Sample
from .sites import SITES, Place, Site
from .trigger import PATH

PATIENCE = 30.0
"""Seconds that the answers may take after the last request of a run."""
WARM_UP = 0.5
"""Seconds that each site is driven for before anything counts."""
ROUNDS = 3
"""Measurements of each site, in turn, so that a slow moment of the machine meets all."""
SPARE_FILES = 300
"""Descriptors that the load and a server each need besides their connections."""
CONNECTS_AT_ONCE = 50
SETTLE = 1.5
"""Seconds after which a server has caught up with what it puts off: the registry writes about once a second."""
FIRST_CONNECTS = 10
"""Clients that come and go before memory is looked at, and make the server load all that they need."""
BEAT_INTERVAL = 0.5


def affordable(connections: int) -> int:
    """Return how many of these connections the limit on descriptors has room for."""
    return min(connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_FILES)


class Load(ABC):
    """Be the clients of one site. A subclass says what a run begins with, and what each frame leads to."""

    unit: ClassVar[str]
    plural: ClassVar[str]
    sites: ClassVar[tuple[str, ...]]
    """What is measured: realtime, and its peers."""
    servers: ClassVar[tuple[str, ...]] = ("daphne", "uvicorn")
    """The servers that it is measured on by default."""
    on_redis: ClassVar[bool] = False
    """Whether the channel layer has to be Redis."""
    environment: ClassVar[dict[str, str]] = {}
    """What the servers are given besides what their sites say."""
    sign_in: ClassVar[bool] = True
    """Whether clients present a session, where the site has them do so."""
    sizes: ClassVar[tuple[int, ...]] = (2000,)
    """The clients of each site by default: so many, and then so many, with servers started anew."""
    seconds: ClassVar[float] = 2.0
    rounds: ClassVar[int] = ROUNDS
    """For how long a site is measured by default, and in how many parts."""
    settle: ClassVar[float] = 0.0
    """Seconds after a run in which the CPU time still counts, for what the server has put off."""
    profiled: ClassVar[bool] = False
    """Whether it is of interest where the server's time goes."""
    topic: ClassVar[str] = "prices"
    expected: ClassVar[bytes] = b""
    """What each frame holds; anything else ends the benchmark, so that no refusal is counted."""

    def __init__(self, server: Server, site: Site) -> None:
        self.connections: list[Connection] = []
        self.server = server
        self._site = site
        self._size = 0
        self._count = 0
        self._times: deque[float] = deque(maxlen=MAX_TIMES)
        self._missing = 0
        self._time_is_up = False
        self._end: asyncio.Future[None] | None = None
        self._error: Exception | None = None

    @classmethod
    @asynccontextmanager
    async def running(cls, name: str, server: str, place: Place) -> AsyncIterator[Self]:
        """Run the site called ``name`` on the server called ``server``, with no clients yet."""
        async with place.serving(server, name, cls.environment) as address:
            with closing(cls(address if cls.sign_in else replace(address, cookie=""), SITES[name])) as load:
                yield load

    async def connect(self, count: int) -> None:
        """Connect ``count`` clients, and subscribe them."""
        while missing := min(CONNECTS_AT_ONCE, count - len(self.connections)):
            numbers = range(len(self.connections), len(self.connections) + missing)
            self.connections += await asyncio.gather(*(self._subscriber(self._topic(number)) for number in numbers))
        await self._prepare()

    async def run(self, seconds: float) -> Sample:
        """
        Drive the server for ``seconds``, and until all that was asked for has arrived.

        Raises ``TimeoutError`` when it does not arrive, and what went wrong on a connection.
        """
        loop = asyncio.get_running_loop()
        self._count = 0
        self._times.clear()
        self._time_is_up = False
        if self._error is not None:
            raise self._error
        self._end = loop.create_future()
        timer = loop.call_later(seconds, self._stop)
        began, before = time.perf_counter(), self._clocks()
        self._begin()
        try:
            async with asyncio.timeout(seconds + PATIENCE):
                await self._end
        except TimeoutError:
            raise TimeoutError(f"{self._missing} frames did not arrive within {PATIENCE:g} s") from None
        finally:
            timer.cancel()
        elapsed = time.perf_counter() - began
        await asyncio.sleep(min(self.settle, seconds))
        cpu = {name: now - before[name] for name, now in self._clocks().items()}
        return Sample(self._count, elapsed, cpu, [*self._times])

    def close(self) -> None:
        """Drop all connections."""
        for connection in self.connections:
            connection.close()

    async def _connect(self, path: str) -> Connection:
        return await connect(self.server, path, self._fail)

    async def _subscriber(self, topic: str) -> Connection:
        return await self._site.dialect.subscriber(self._connect, topic)

    def _topic(self, number: int) -> str:
        """Return what the client with this number subscribes to."""
        return self.topic

    @abstractmethod
    async def _prepare(self) -> None:
        """Get ready for the first run, with all clients there."""

    @abstractmethod
    def _begin(self) -> None: ...

    def _check(self, frame: bytes) -> None:
        """Look into a frame whose size is new, which the first one's is."""
        if self.expected in frame:
            self._size = len(frame)
        else:
            self._fail(RuntimeError(f"expected a frame with {self.expected!r}, got {frame!r:.300}"))

    def _clocks(self) -> dict[str, float]:
        return {"server": self.server.cpu_seconds(), "load": time.process_time()}

    def _stop(self) -> None:
        self._time_is_up = True

    def _finish(self) -> None:
        if self._end is not None and not self._end.done():
            self._end.set_result(None)

    def _fail(self, error: Exception) -> None:
        self._error = error
        if self._end is not None and not self._end.done():
            self._end.set_exception(error)


class Room:
    """Be one topic's subscribers, and the broadcast that is on its way to them."""

    __slots__ = ("began", "missing", "publish", "size")

    def __init__(self, size: int, publish: Callable[[], None]) -> None:
        self.size = size
        self.publish = publish
        self.missing = 0
        self.began = 0.0


class Fanout(Load):
    """Publish to subscribers of one topic; the next broadcast begins when the last has reached everybody."""

    unit, plural = "delivery", "deliveries"
    sites: ClassVar[tuple[str, ...]] = (
        *("realtime", "bare", "ws", "plain", "chanx", "unobserved", "traced"),
        *("socketio", "nchan", "nats"),
    )
    servers: ClassVar[tuple[str, ...]] = ("daphne", "uvicorn", "granian")
    profiled = True
    expected = b'"publication"'
    at_once = 1
    """Broadcasts on their way at any time, each on a topic of its own."""

    async def _prepare(self) -> None:
        publisher = await self._site.dialect.publisher(self._connect)
        members: dict[str, list[Connection]] = {}
        for number, connection in enumerate(self.connections):
            members.setdefault(self._topic(number), []).append(connection)
        self._idle: deque[Room] = deque()
        for topic, connections in members.items():
            room = Room(len(connections), partial(publisher.write, self._site.dialect.publish(topic)))
            self._idle.append(room)
            for connection in connections:
                connection.on_frame = partial(self._delivered, room)
        self.connections.append(publisher)

    def _begin(self) -> None:
        self._missing = 0
        for _ in range(min(self.at_once, len(self._idle))):
            self._broadcast()

    def _broadcast(self) -> None:
        """Publish on the topic that has been without a broadcast for longest."""
        room = self._idle.popleft()
        room.missing = room.size
        self._missing += room.size
        room.began = time.perf_counter()
        room.publish()

    def _delivered(self, room: Room, frame: bytes) -> None:
        if len(frame) != self._size:
            if frame == self._site.dialect.noise:
                return
            self._check(frame)
        room.missing -= 1
        if room.missing:
            return
        self._times.append(time.perf_counter() - room.began)
        self._count += room.size
        self._missing -= room.size
        self._idle.append(room)
        if not self._time_is_up:
            self._broadcast()
        elif not self._missing:
            self._finish()


class Rooms(Fanout):
    """Publish on many topics that have ten subscribers each, some of them at once."""

    sites = ("realtime", "bare", "ws", "plain", "chanx")
    servers = ("uvicorn",)
    sizes = (1000,)
    at_once = 20
    each: ClassVar[int] = 10
    first: ClassVar[int] = 1000
    """The first topic's number: all have as many digits, so that all frames are of one size."""

    def _topic(self, number: int) -> str:
        return f"items.{self.first + number // self.each}"


class Heartbeats(Load):
    """
    Receive heartbeats, and do nothing else.

    Realtime beats by itself. Peers are told to by a timer, which waits while a beat has not reached everybody.
    """

    unit, plural = "beat", "beats"
    sites = ("realtime", "plain")
    servers = ("uvicorn",)
    environment = {"REALTIME_HEARTBEAT_INTERVAL": str(BEAT_INTERVAL)}
    topic = "heartbeat"
    expected = b'"heartbeat"'

    async def _prepare(self) -> None:
        for connection in self.connections:
            connection.on_frame = self._delivered
        self._subscribers = len(self.connections)
        self._publisher = await self._connect(PATH)
        self.connections.append(self._publisher)
        self._timer: asyncio.TimerHandle | None = None

    def _begin(self) -> None:
        self._missing = self._subscribers
        if not self._site.own:
            self._beat()

    def _beat(self) -> None:
        self._next = asyncio.get_running_loop().time() + BEAT_INTERVAL
        self._publisher.write(client_frame(self.topic.encode()))

    def _delivered(self, frame: bytes) -> None:
        if len(frame) != self._size:
            self._check(frame)
        self._missing -= 1
        if self._missing:
            return
        self._count += 1
        if self._time_is_up:
            self._finish()
            return
        self._missing = self._subscribers
        if not self._site.own:
            self._timer = asyncio.get_running_loop().call_at(self._next, self._beat)

    def _stop(self) -> None:
        super()._stop()
        if self._timer is not None:
            self._timer.cancel()
        if self._count and self._missing == self._subscribers:
            self._finish()


class Echo(Load):
    """Send an echo request on each connection; the next goes out when the answer to the last is in."""

    unit, plural = "echo", "echoes"
    sites = ("realtime", "bare", "ws", "plain", "chanx", "unobserved", "traced")
    servers = ("daphne", "uvicorn", "granian")
    sizes = (50,)
    profiled = True
    expected = b"Hello"

    async def _prepare(self) -> None:
        self._request = client_frame(self._site.echo)
        for connection in self.connections:
            connection.on_frame = partial(self._echoed, connection)

    def _begin(self) -> None:
        self._missing = len(self.connections)
        for connection in self.connections:
            connection.asked = time.perf_counter()
            connection.write(self._request)

    def _echoed(self, connection: Connection, frame: bytes) -> None:
        if len(frame) != self._size:
            self._check(frame)
        now = time.perf_counter()
        self._times.append(now - connection.asked)
        self._count += 1
        if not self._time_is_up:
            connection.asked = now
            connection.write(self._request)
            return
        self._missing -= 1
        if not self._missing:
            self._finish()


class Connect(Load):
    """
    Have clients come and go, so many at once; for each that has come and subscribed, the one that came first leaves.

    Those in between stay long enough to be entered in the registry, and taken out again.
    """

    unit, plural = "connect", "connects"
    sites = ("realtime", "bare", "ws", "plain", "chanx", "unregistered")
    sizes = (600,)
    rounds = 2
    settle = SETTLE
    topic = "heartbeat"

    async def _prepare(self) -> None:
        if self._site.own:
            await ask(self.connections[0], subscribe(Load.topic))  # for it one has to be signed in

    def _begin(self) -> None:
        self._missing = CONNECTS_AT_ONCE
        self._visitors = [asyncio.ensure_future(self._come_and_go()) for _ in range(CONNECTS_AT_ONCE)]

    async def _come_and_go(self) -> None:
        try:
            while not self._time_is_up:
                self.connections.append(await self._subscriber(self.topic))
                await self.connections.pop(0).leave()
                self._count += 1
        except (OSError, RuntimeError) as error:  # a TimeoutError is an OSError
            self._fail(error)
        self._missing -= 1
        if not self._missing:
            self._finish()


class Idle(Load):
    """Subscribe, and then do nothing: what the server's memory has grown by is divided by the connections."""

    unit, plural = "connection", "connections"
    sites = ("realtime", "bare", "ws", "plain", "chanx", "anonymous")
    seconds = 1.0
    rounds = 1
    topic = "news"

    async def connect(self, count: int) -> None:
        visitors = await asyncio.gather(*(self._subscriber(self.topic) for _ in range(FIRST_CONNECTS)))
        if self._site.own and self._site.sign_in:
            await ask(visitors[0], subscribe(Load.topic))  # for it one has to be signed in
        await asyncio.gather(*(visitor.leave() for visitor in visitors))
        await asyncio.sleep(SETTLE)
        self._empty = self.server.memory()
        await super().connect(count)

    async def run(self, seconds: float) -> Sample:
        """Look at the memory after ``seconds``. Raises what went wrong on a connection."""
        await asyncio.sleep(seconds)
        if self._error is not None:
            raise self._error
        return Sample(len(self.connections), seconds, {}, memory=self.server.memory() - self._empty)

    async def _prepare(self) -> None:
        """Do nothing: what comes is ignored."""

    def _begin(self) -> None:
        """Do nothing."""
