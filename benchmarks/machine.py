"""What the figures were measured on: the machine, and the versions."""

import json
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from realtime import __version__

from .sites import NODE_MODULES, missing

PACKAGES = ("Django", "channels", "uvicorn", "uvloop", "daphne", "granian", "pydantic", "websockets", "chanx")

COMMANDS = {"ws": ["node", "--version"], "nchan": ["nginx", "-v"], "nats": ["nats-server", "--version"]}
"""What says a version, by the site that needs it."""
NPM = {"ws": "ws", "socketio": "socket.io"}
VERSION = re.compile(r"\d+(\.\d+)+")


def about() -> dict[str, Any]:
    """Return the processor, its cores, GiB of memory, the date, and the versions of all that is measured."""
    versions = {"realtime": __version__, "Python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            pass
    for site, command in COMMANDS.items():
        if missing(site) is None:
            said = subprocess.run(command, capture_output=True, text=True, check=True)
            versions[command[0]] = VERSION.search(said.stdout + said.stderr)[0]
    for site, package in NPM.items():
        if missing(site) is None:
            versions[package] = json.loads((Path(NODE_MODULES) / package / "package.json").read_text())["version"]
    return {
        "processor": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "versions": versions,
    }


def _field(file: str, name: str) -> str | None:
    """Return the first value called ``name`` in a file of such lines as ``name : value``, or None."""
    path = Path(file)
    lines = path.read_text().splitlines() if path.exists() else []
    values = (line.partition(":")[2].strip() for line in lines if line.startswith(name))
    return next(values, None)
