"""Realtime as others have it: a wheel that pip has installed into an environment, and the working tree nowhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from ..live import ROOT, TIMEOUT, Process, free_port

INSTALL_TIMEOUT = 240.0
"""Seconds that pip may take, which may have to download."""
START_TIMEOUT = 60.0
"""Seconds that a server and a command may take: what they import is compiled the first time."""
EXTRAS = "daphne,redis,uvicorn"
UNSET = ("DJANGO_SETTINGS_MODULE", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
"""What a process in an environment of its own is not to inherit from the tests."""


def build_wheel(directory: Path) -> Path:
    """Build the wheel of the working tree as a release would, and return its path."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(directory), str(ROOT)]
    subprocess.run(pip, cwd=directory, check=True, timeout=INSTALL_TIMEOUT)
    [wheel] = directory.glob("demows-*.whl")
    return wheel


@lru_cache(maxsize=1)
def newest_python() -> str:
    """Return the newest Python there is, which takes the newest Django of all."""
    names = [f"python3.{minor}" for minor in range(20, 11, -1)]
    installed = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/3.*/bin/python3.??"))
    found = [sys.executable] + [shutil.which(name) for name in names] + [str(path) for path in installed]
    versions: dict[tuple[int, ...], str] = {}
    for path in filter(None, found):
        asked = [path, "-c", "import sys, venv, ssl, sqlite3; print(*sys.version_info[:2])"]
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        if answer.returncode == 0:  # pyenv has commands for what is not switched on, which fail
            versions[tuple(map(int, answer.stdout.split()))] = path
    newest = max(versions, default=(0,))
    return versions.get(newest, sys.executable)


def start(*command: str, directory: Path, **env: str) -> Process:
    """Start a process in ``directory``, which is where both servers look for modules first."""
    unset = [option for name in UNSET for option in ("--unset", name)]
    return Process("env", *unset, "--chdir", str(directory), *(f"{k}={v}" for k, v in env.items()), *command)


class Installation:
    """Be a virtual environment with the wheel in it. Ask ``wait()`` before anything else."""

    def __init__(self, directory: Path, wheel: Path, *, newest_django: bool = False) -> None:
        self.directory = directory
        python = newest_python() if newest_django else sys.executable
        assert python is not None
        subprocess.run([python, "-m", "venv", "--without-pip", str(directory)], check=True, timeout=START_TIMEOUT)
        constraints = directory / "constraints.txt"
        lines = (ROOT / "requirements.txt").read_text().splitlines()
        # The newest Django is whatever it is today; all else is what the project's own tests run with.
        constraints.write_text("\n".join(line for line in lines if not (newest_django and line.startswith("Django=="))))
        pip = [sys.executable, "-m", "pip", "--python", self.program("python"), "install", "--quiet", "--no-compile"]
        self._pip = start(*pip, "--constraint", str(constraints), f"{wheel}[{EXTRAS}]", directory=directory)

    def wait(self) -> None:
        """Wait until everything is installed. Raises ``AssertionError`` when that fails."""
        assert self._pip.wait(INSTALL_TIMEOUT) == 0, self._pip.output

    def stop(self) -> None:
        """Stop installing, if that is not over."""
        self._pip.stop()

    def program(self, name: str) -> str:
        """Return the path of a program of the environment."""
        return str(self.directory / "bin" / name)

    def run(self, name: str, *arguments: str, directory: Path, **env: str) -> str:
        """Run a program of the environment, and return its output. Raises ``AssertionError`` when it fails."""
        process = start(self.program(name), *arguments, directory=directory, **env)
        try:
            assert process.wait(START_TIMEOUT) == 0, process.output
        finally:
            process.stop()
        return process.output


class Site:
    """Be a copy of the shop with a database and a Redis, of which processes are started."""

    def __init__(self, installation: Installation, directory: Path, redis_url: str) -> None:
        self.installation = installation
        self.directory = directory / "project"
        shutil.copytree(Path(__file__).parent / "project", self.directory, ignore=shutil.ignore_patterns("__pycache__"))
        self.env = {"REDIS_URL": redis_url, "SHOP_DATABASE": str(self.directory / "shop.sqlite3")}
        self.facts: dict[str, str] = {}
        """What a test has to know of the database."""
        self.processes: list[Process] = []

    def script(self, code: str) -> str:
        """Run Python code in the shop, where every warning is an error, and return its output."""
        code = f"{SET_UP}\n{code}"
        return self.installation.run("python", "-W", "error", "-c", code, directory=self.directory, **self.env)

    def serve(self, kind: str, *options: str, application: str = "application", **env: str) -> ShopServer:
        """Start Daphne or uvicorn with one of the shop's ASGI applications, or the standard library's WSGI server."""
        server = ShopServer(self, kind, *options, f"shop.asgi:{application}", **env)
        self.processes.append(server.process)
        return server

    def stop(self) -> None:
        for process in self.processes:
            process.stop()


SET_UP = """
import os, django
os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
django.setup()
from django.core.management import call_command
"""
WSGI = """
import sys
from wsgiref.simple_server import make_server
sys.path.insert(0, "")
from shop.wsgi import application
with make_server("127.0.0.1", int(sys.argv[1]), application) as server:
    print("Listening on", server.server_port, flush=True)
    server.serve_forever()
"""
UP = {"daphne": "Listening on TCP address", "uvicorn": "Uvicorn running on", "wsgi": "Listening on"}


class ShopServer:
    """Be one server process of the shop."""

    def __init__(self, site: Site, kind: str, *options: str, **env: str) -> None:
        self.site = site
        self.kind = kind
        self.port = free_port()
        python, port = site.installation.program("python"), str(self.port)
        command = {
            "daphne": [python, "-m", "daphne", "-b", "127.0.0.1", "-p", port, *options],
            "uvicorn": [python, "-m", "uvicorn", "--port", port, *options],
            "wsgi": [python, "-c", WSGI, port],
        }[kind]
        self.process = start(*command, directory=site.directory, **{**site.env, **env})

    def wait_until_up(self) -> ShopServer:
        self.process.wait_for_line(UP[self.kind], START_TIMEOUT)
        return self
