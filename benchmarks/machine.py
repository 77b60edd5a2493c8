"""What the figures were measured on: the machine, and the versions."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from realtime import __version__

from .sites import NODE_MODULES, missing

PACKAGES = ("Django", "channels", "uvicorn", "uvloop", "daphne", "pydantic", "websockets", "chanx")


def about() -> dict[str, Any]:
    """Return the processor, its cores, GiB of memory, the date, and the versions of all that is measured."""
    versions = {"realtime": __version__, "Python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            pass
    if missing("ws") is None:
        node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
        versions["Node"] = node.strip().removeprefix("v")
        versions["ws"] = json.loads((Path(NODE_MODULES) / "ws" / "package.json").read_text())["version"]
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
