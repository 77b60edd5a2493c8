"""The sites that are measured, and what their processes share."""

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from .brokers import NCHAN_MODULE
from .dialects import Dialect, Nats, Nchan, Requests, SocketIO
from .processes import HOST, ROOT, Server, serving, serving_by

ECHO = b'{"type":"echo_request","reqId":"1","echo":"Hello"}'
NODE_MODULES = os.environ.get("BENCHMARK_NODE_MODULES", "")
"""The directory that has npm's ws; nothing is installed here."""


def chanx_absent() -> str | None:
    """Return what Chanx lacks, or None."""
    absent = [module for module in ("chanx", "rest_framework") if find_spec(module) is None]
    return f"{' and '.join(absent)} cannot be imported; pip install 'chanx[channels]' to measure it" if absent else None


def npm_absent(package: str) -> str | None:
    """Return what is lacking for a package of npm, or None."""
    if shutil.which("node") is None:
        return "there is no node"
    if not (Path(NODE_MODULES) / package).is_dir():
        install = f"npm install {package}, and set it to node_modules"
        return f"BENCHMARK_NODE_MODULES names no directory that has {package}; {install}"
    return None


def nchan_absent() -> str | None:
    """Return what Nchan lacks, or None."""
    if shutil.which("nginx") is None:
        return "there is no nginx"
    return None if NCHAN_MODULE.exists() else f"there is no {NCHAN_MODULE}; apt-get install libnginx-mod-nchan"


def nats_absent() -> str | None:
    """Return what NATS lacks, or None."""
    return None if shutil.which("nats-server") else "there is no nats-server"


class Site(NamedTuple):
    """
    Say what a server process is started with, and how the site is spoken to.

    ``dialect`` is how its clients subscribe. With ``sign_in`` they present the session's cookie. ``absent`` returns why
    the site cannot be measured here, or None. A site with a ``command`` is a server by itself, to which the port and a
    directory are given.
    """

    application: str
    environment: dict[str, str]
    dialect: Dialect = Dialect()
    sign_in: bool = True
    echo: bytes = ECHO
    absent: Callable[[], str | None] = lambda: None
    command: tuple[str, ...] = ()

    @property
    def own(self) -> bool:
        """Whether it is realtime."""
        return self.application == REALTIME


REALTIME = "benchmarks.realtime_site:application"
UNSAMPLED = {"BENCHMARK_TELEMETRY": "unsampled"}
SITES = {
    "realtime": Site(REALTIME, UNSAMPLED, Requests()),
    "unobserved": Site(REALTIME, {}, Requests()),
    "traced": Site(REALTIME, {"BENCHMARK_TELEMETRY": "traced"}, Requests()),
    "unregistered": Site(REALTIME, {**UNSAMPLED, "REALTIME_CONNECTION_REGISTRY": "0"}, Requests()),
    "anonymous": Site(REALTIME, UNSAMPLED, Requests(), sign_in=False),
    "plain": Site("benchmarks.plain_site:application", {}),
    "chanx": Site(
        "benchmarks.chanx_site:application",
        {"CHANX_USE_DJANGO": "1"},
        echo=b'{"action":"echo","payload":{"reqId":"1","echo":"Hello"}}',
        absent=chanx_absent,
    ),
    "bare": Site("benchmarks.bare_site:application", {}),
    "ws": Site(
        "",
        {"NODE_PATH": NODE_MODULES},
        absent=partial(npm_absent, "ws"),
        command=("node", str(ROOT / "benchmarks" / "ws_site.js")),
    ),
    "socketio": Site(
        "",
        {"NODE_PATH": NODE_MODULES},
        SocketIO(),
        absent=partial(npm_absent, "socket.io"),
        command=("node", str(ROOT / "benchmarks" / "socketio_site.js")),
    ),
    "nchan": Site("", {}, Nchan(), absent=nchan_absent, command=(sys.executable, "-m", "benchmarks.brokers", "nchan")),
    "nats": Site("", {}, Nats(), absent=nats_absent, command=(sys.executable, "-m", "benchmarks.brokers", "nats")),
}


def missing(name: str) -> str | None:
    """Return why a site has to be left out, or None."""
    reason = SITES[name].absent()
    return reason and f"{name} is left out: {reason}"


class Place(NamedTuple):
    """Hold what all processes of a run are given; ``redis`` is None where none is needed."""

    environment: dict[str, str]
    directory: Path
    cookie: str
    redis: Server | None = None

    def on_redis(self) -> "Place":
        """Return the same, where the channel layer is on Redis."""
        assert self.redis is not None
        return self._replace(environment={**self.environment, "REDIS_URL": f"redis://{HOST}:{self.redis.port}"})

    def serving(
        self, server: str, name: str = "realtime", environment: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[Server]:
        """Run a site on the server called ``server``, with ``environment`` besides its own."""
        site = SITES[name]
        environment = {**self.environment, **site.environment, **(environment or {})}
        cookie = self.cookie if site.sign_in else ""
        if site.command:
            return serving_by(site.command, [str(self.directory)], environment, self.directory, cookie)
        return serving(server, site.application, environment, self.directory, cookie)
