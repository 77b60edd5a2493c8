"""The sites that are measured, and what their processes share."""

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from .processes import ROOT, Server, serving, serving_by

ECHO = b'{"type":"echo_request","reqId":"1","echo":"Hello"}'
NODE_MODULES = os.environ.get("BENCHMARK_NODE_MODULES", "")
"""The directory that has npm's ws; nothing is installed here."""


def chanx_absent() -> str | None:
    """Return what Chanx lacks, or None."""
    absent = [module for module in ("chanx", "rest_framework") if find_spec(module) is None]
    return f"{' and '.join(absent)} cannot be imported; pip install 'chanx[channels]' to measure it" if absent else None


def ws_absent() -> str | None:
    """Return what Node's ws lacks, or None."""
    if shutil.which("node") is None:
        return "there is no node"
    if not (Path(NODE_MODULES) / "ws").is_dir():
        return "BENCHMARK_NODE_MODULES names no directory that has ws; npm install ws, and set it to node_modules"
    return None


class Site(NamedTuple):
    """
    Say what a server process is started with, and how the site is spoken to.

    With ``subscribe`` clients send a subscribe request; else the topic is in the path that they connect to. With
    ``sign_in`` they present the session's cookie. ``absent`` returns why the site cannot be measured here, or None. A
    site with a ``command`` is a server by itself, to which the port is given.
    """

    application: str
    environment: dict[str, str]
    subscribe: bool = True
    sign_in: bool = True
    echo: bytes = ECHO
    absent: Callable[[], str | None] = lambda: None
    command: tuple[str, ...] = ()


REALTIME = "benchmarks.realtime_site:application"
UNSAMPLED = {"BENCHMARK_TELEMETRY": "unsampled"}
SITES = {
    "realtime": Site(REALTIME, UNSAMPLED),
    "unobserved": Site(REALTIME, {}),
    "traced": Site(REALTIME, {"BENCHMARK_TELEMETRY": "traced"}),
    "unregistered": Site(REALTIME, {**UNSAMPLED, "REALTIME_CONNECTION_REGISTRY": "0"}),
    "anonymous": Site(REALTIME, UNSAMPLED, sign_in=False),
    "plain": Site("benchmarks.plain_site:application", {}, subscribe=False),
    "chanx": Site(
        "benchmarks.chanx_site:application",
        {"CHANX_USE_DJANGO": "1"},
        subscribe=False,
        echo=b'{"action":"echo","payload":{"reqId":"1","echo":"Hello"}}',
        absent=chanx_absent,
    ),
    "bare": Site("benchmarks.bare_site:application", {}, subscribe=False),
    "ws": Site(
        "",
        {"NODE_PATH": NODE_MODULES},
        subscribe=False,
        absent=ws_absent,
        command=("node", str(ROOT / "benchmarks" / "ws_site.js")),
    ),
}


def missing(name: str) -> str | None:
    """Return why a site has to be left out, or None."""
    reason = SITES[name].absent()
    return reason and f"{name} is left out: {reason}"


class Place(NamedTuple):
    """Hold what all processes of a run are given; ``redis`` is None where the channel layer is in memory."""

    environment: dict[str, str]
    directory: Path
    cookie: str
    redis: Server | None = None

    def serving(
        self, server: str, name: str = "realtime", environment: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[Server]:
        """Run a site on the server called ``server``, with ``environment`` besides its own."""
        site = SITES[name]
        environment = {**self.environment, **site.environment, **(environment or {})}
        cookie = self.cookie if site.sign_in else ""
        if site.command:
            return serving_by(site.command, [], environment, self.directory, cookie)
        return serving(server, site.application, environment, self.directory, cookie)
