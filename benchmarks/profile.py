"""Where a server's time goes, as py-spy sees it: the share of each package, and of the kernel, while it is busy."""

import asyncio
import shutil
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections import Counter
from pathlib import Path

RATE = 250
"""Samples a second."""
MAIN = "MainThread"
IDLE = "waiting"
CALLS = {
    "write": "kernel: writing",
    "send": "kernel: writing",
    "sendmsg": "kernel: writing",
    "writev": "kernel: writing",
    "read": "kernel: reading",
    "recv": "kernel: reading",
    "epoll_wait": IDLE,
    "epoll_pwait": IDLE,
    "gc_collect_main": "garbage collection",
}
"""What a function is there for, wherever it was called from."""
PACKAGES = {
    "pydantic": "pydantic",
    "realtime/": "realtime",
    "benchmarks/": "benchmark",
    "channels/": "Channels",
    "uvicorn/": "uvicorn",
    "websockets/": "websockets",
    "daphne/": "Daphne, Twisted, Autobahn",
    "twisted/": "Daphne, Twisted, Autobahn",
    "autobahn/": "Daphne, Twisted, Autobahn",
    "opentelemetry/": "OpenTelemetry",
    "(loop.c": "uvloop",
    "(stream.c": "uvloop",
    "(core.c": "uvloop",
    "(linux.c": "uvloop",
    "asyncio/": "asyncio",
    "(_asynciomodule.c": "asyncio",
}
"""Whose a function is, by a part of what py-spy calls it; others are counted for whoever has called them."""


def missing() -> str | None:
    """Return why no profile can be made, or None."""
    return None if executable() else "no profile: py-spy is not installed (pip install py-spy)"


def executable() -> str | None:
    beside = Path(sys.executable).parent / "py-spy"
    return str(beside) if beside.exists() else shutil.which("py-spy")


async def profile(pid: int, seconds: float, directory: Path) -> dict[str, float]:
    """Return what the server's main thread does in the next ``seconds``. Raises ``RuntimeError`` if py-spy fails."""
    command = executable()
    assert command is not None
    file = directory / f"{pid}.profile"
    options = ["--native", "--threads", "--rate", str(RATE), "--duration", str(max(1, round(seconds)))]
    process = await asyncio.create_subprocess_exec(
        *(command, "record", *options, "--format", "raw", "--output", str(file), "--pid", str(pid)),
        stdout=DEVNULL,
        stderr=PIPE,
    )
    _, said = await process.communicate()
    if process.returncode or not file.exists():
        raise RuntimeError(f"py-spy failed: {said.decode(errors='replace').strip()}")
    return shares(file.read_text())


def shares(stacks: str) -> dict[str, float]:
    """Return the share of each kind in stacks as py-spy writes them, one a line with its number of samples."""
    counted: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, times = line.rpartition(" ")
        thread, *frames = stack.split(";")
        if thread.endswith(MAIN):
            counted[kind(frames)] += int(times)
    del counted[IDLE]
    total = counted.total()
    return {name: count / total for name, count in counted.most_common()}


def kind(frames: list[str]) -> str:
    """Return what a stack's innermost function is there for, or whose it is."""
    if frames and (call := CALLS.get(frames[-1].partition(" ")[0])):
        return call
    for frame in reversed(frames):
        for part, package in PACKAGES.items():
            if part in frame:
                return package
    return "other"
