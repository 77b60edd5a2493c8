"""The sites that are measured, and what their processes share."""

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple

from .processes import Server, serving


class Site(NamedTuple):
    """Say what a server process is started with, and whether the site's clients have to ask to be subscribed."""

    application: str
    environment: dict[str, str]
    subscribe: bool = True


REALTIME = "benchmarks.realtime_site:application"
UNSAMPLED = {"BENCHMARK_TELEMETRY": "unsampled"}
SITES = {
    "realtime": Site(REALTIME, UNSAMPLED),
    "unobserved": Site(REALTIME, {}),
    "traced": Site(REALTIME, {"BENCHMARK_TELEMETRY": "traced"}),
    "unregistered": Site(REALTIME, {**UNSAMPLED, "REALTIME_CONNECTION_REGISTRY": "0"}),
    "plain": Site("benchmarks.plain_site:application", {}, subscribe=False),
}


class Place(NamedTuple):
    """Hold what all processes of a run are given; ``redis`` is None where the channel layer is in memory."""

    environment: dict[str, str]
    directory: Path
    cookie: str
    redis: Server | None = None

    def serving(self, server: str, site: str = "realtime") -> AbstractAsyncContextManager[Server]:
        """Run a site on the server called ``server``."""
        application, environment, _ = SITES[site]
        return serving(server, application, {**self.environment, **environment}, self.directory, self.cookie)
