"""The scenario ``workers``: subscribers on several server processes, which Redis joins."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from itertools import cycle
from typing import ClassVar, Self

from .connection import Connection, connect
from .processes import Server
from .samples import Sample
from .scenarios import Fanout
from .sites import SITES, Place, Site
from .trigger import PATH


class Spread(Fanout):
    """Have the subscribers on several servers, evenly, and let a process publish that has none."""

    def __init__(self, servers: list[Server], publisher: Server, site: Site) -> None:
        super().__init__(publisher, site)
        self._servers = servers
        self._turns = cycle(servers)

    async def _connect(self, path: str) -> Connection:
        return await connect(self.server if path == PATH else next(self._turns), path, self._fail)

    def _clocks(self) -> dict[str, float]:
        return {**super()._clocks(), "server": sum(server.cpu_seconds() for server in self._servers)}


class Workers(Spread):
    """Fan out to the clients of two server processes. What Redis takes is for one broadcast."""

    sites = ("realtime", "plain")
    servers = ("uvicorn",)
    on_redis = True
    profiled = False
    sizes = (1000,)
    processes: ClassVar[int] = 2

    def __init__(self, servers: list[Server], publisher: Server, site: Site, redis: Server) -> None:
        super().__init__(servers, publisher, site)
        self._redis = redis

    @classmethod
    @asynccontextmanager
    async def running(cls, name: str, server: str, place: Place) -> AsyncIterator[Self]:
        """Run the site called ``name`` in so many processes, and in one more, which publishes."""
        assert place.redis is not None
        async with AsyncExitStack() as stack:
            servers = [await stack.enter_async_context(place.serving(server, name)) for _ in range(cls.processes)]
            publisher = await stack.enter_async_context(place.serving(server, name))
            yield stack.enter_context(closing(cls(servers, publisher, SITES[name], place.redis)))

    async def run(self, seconds: float) -> Sample:
        """Drive the servers, and take Redis' CPU time as well."""
        before = self._redis.cpu_seconds()
        sample = await super().run(seconds)
        return sample._replace(others={"redis": (self._redis.cpu_seconds() - before, len(sample.times))})
