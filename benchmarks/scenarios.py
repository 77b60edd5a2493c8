"""The scenarios: what the load does to one site, and what is counted."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import ClassVar, NamedTuple

from .connection import Connection, client_frame, connect
from .processes import Server
from .trigger import PATH

PATIENCE = 30.0
"""Seconds that the answers may take after the last request of a run."""
WARM_UP = 1.0
"""Seconds that each site is driven for before anything counts."""
CONNECTS_AT_ONCE = 50
SETTLE = 1.5
"""Seconds after which a server has caught up with what it puts off: the registry writes about once a second."""
ECHO = client_frame(b'{"type":"echo_request","reqId":"1","echo":"Hello"}')
PUBLISH = client_frame(b"publish")


def subscribe(topic: str) -> bytes:
    """Return the frame of a subscribe request."""
    return client_frame(b'{"type":"subscribe_request","topic":"%s"}' % topic.encode())


async def ask(connection: Connection, request: bytes) -> None:
    """Send ``request``, and wait for the answer. Raises ``RuntimeError`` when it is a refusal."""
    answer = await connection.ask(request)
    if b'"status":"OK"' not in answer:
        raise RuntimeError(f"the request was refused: {answer!r}")


class Sample(NamedTuple):
    """Hold what was counted in so many seconds, and the seconds of CPU time of each process that counts."""

    units: int
    seconds: float
    cpu: dict[str, float]

    def plus(self, other: "Sample") -> "Sample":
        """Return both measurements as one."""
        cpu = {name: taken + other.cpu[name] for name, taken in self.cpu.items()}
        return Sample(self.units + other.units, self.seconds + other.seconds, cpu)

    def figures(self) -> dict[str, float]:
        cpu = {f"{name}_cpu_us": taken / self.units * 1e6 for name, taken in self.cpu.items()}
        return {"per_second": self.units / self.seconds, **cpu}


class Load(ABC):
    """
    Be the clients of one site. A subclass says what a run begins with, and what each frame leads to.

    With ``subscribe`` they send a subscribe request; else the site subscribes them by itself.
    """

    unit: ClassVar[str]
    plural: ClassVar[str]
    sites: ClassVar[tuple[str, ...]] = ("realtime", "plain")
    connections_by_default: ClassVar[int]
    seconds_by_default: ClassVar[float] = 3.0
    settle: ClassVar[float] = 0.0
    """Seconds after a run in which the CPU time still counts, for what the server has put off."""
    subscription: ClassVar[bytes] = subscribe("prices")
    expected: ClassVar[bytes] = b""
    """What each frame holds; anything else ends the benchmark, so that no refusal is counted."""

    def __init__(self, server: Server, *, subscribe: bool) -> None:
        self.connections: list[Connection] = []
        self._server = server
        self._subscribe = subscribe
        self._size = 0
        self._count = 0
        self._missing = 0
        self._time_is_up = False
        self._end: asyncio.Future[None] | None = None
        self._error: Exception | None = None

    async def connect(self, count: int) -> None:
        """Connect ``count`` clients, and subscribe them."""
        while missing := min(CONNECTS_AT_ONCE, count - len(self.connections)):
            self.connections += await asyncio.gather(*(self._subscriber() for _ in range(missing)))
        await self._prepare()

    async def run(self, seconds: float) -> Sample:
        """
        Drive the server for ``seconds``, and until all that was asked for has arrived.

        Raises ``TimeoutError`` when it does not arrive, and what went wrong on a connection.
        """
        loop = asyncio.get_running_loop()
        self._count = 0
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
        return Sample(self._count, elapsed, {name: now - before[name] for name, now in self._clocks().items()})

    def close(self) -> None:
        """Drop all connections."""
        for connection in self.connections:
            connection.close()

    async def _connect(self, path: str) -> Connection:
        return await connect(self._server, path, self._fail)

    async def _subscriber(self) -> Connection:
        connection = await self._connect("/ws/")
        if self._subscribe:
            await ask(connection, self.subscription)
        return connection

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
        return {"server": self._server.cpu_seconds(), "load": time.process_time()}

    def _stop(self) -> None:
        self._time_is_up = True

    def _finish(self) -> None:
        if self._end is not None and not self._end.done():
            self._end.set_result(None)

    def _fail(self, error: Exception) -> None:
        self._error = error
        if self._end is not None and not self._end.done():
            self._end.set_exception(error)


class Fanout(Load):
    """Publish to subscribers of one topic; the next broadcast begins when the last has reached everybody."""

    unit, plural = "delivery", "deliveries"
    sites = ("realtime", "plain", "unobserved", "traced")
    connections_by_default = 2000
    expected = b'"publication"'

    async def _prepare(self) -> None:
        for connection in self.connections:
            connection.on_frame = self._delivered
        publisher = await self._connect(PATH)
        self._publish: Callable[[], None] = partial(publisher.write, PUBLISH)
        self._subscribers = len(self.connections)
        self.connections.append(publisher)

    def _begin(self) -> None:
        self._missing = self._subscribers
        self._publish()

    def _delivered(self, frame: bytes) -> None:
        if len(frame) != self._size:
            self._check(frame)
        self._missing -= 1
        if not self._missing:
            self._count += self._subscribers
            if self._time_is_up:
                self._finish()
            else:
                self._begin()


class Echo(Load):
    """Send an echo request on each connection; the next goes out when the answer to the last is in."""

    unit, plural = "echo", "echoes"
    sites = ("realtime", "plain", "unobserved", "traced")
    connections_by_default = 50
    expected = b"Hello"

    async def _prepare(self) -> None:
        for connection in self.connections:
            connection.on_frame = partial(self._echoed, connection)

    def _begin(self) -> None:
        self._missing = len(self.connections)
        for connection in self.connections:
            connection.write(ECHO)

    def _echoed(self, connection: Connection, frame: bytes) -> None:
        if len(frame) != self._size:
            self._check(frame)
        self._count += 1
        if not self._time_is_up:
            connection.write(ECHO)
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
    sites = ("realtime", "unregistered", "plain")
    connections_by_default = 600
    seconds_by_default = 6.0
    settle = SETTLE
    subscription = subscribe("heartbeat")

    async def _prepare(self) -> None:
        if self._subscribe:
            await ask(self.connections[0], Load.subscription)  # for it one has to be signed in

    def _begin(self) -> None:
        self._missing = CONNECTS_AT_ONCE
        self._visitors = [asyncio.ensure_future(self._come_and_go()) for _ in range(CONNECTS_AT_ONCE)]

    async def _come_and_go(self) -> None:
        try:
            while not self._time_is_up:
                self.connections.append(await self._subscriber())
                await self.connections.pop(0).leave()
                self._count += 1
        except (OSError, RuntimeError) as error:  # a TimeoutError is an OSError
            self._fail(error)
        self._missing -= 1
        if not self._missing:
            self._finish()


SCENARIOS: dict[str, type[Load]] = {"fanout": Fanout, "echo": Echo, "connect": Connect}
