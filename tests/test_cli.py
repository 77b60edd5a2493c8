"""The command line of the test server, in processes of its own, as somebody without a Django site runs it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from websockets.exceptions import InvalidStatus

from realtime import __version__
from realtime.testing.conformance.cases import CASES
from realtime.testing.faults import FAULTS
from realtime.testing.profiles import PROFILES

from .control_client import Control
from .live import ROOT, TIMEOUT, Client, Process, eventually, free_port

BARE = {name: value for name, value in os.environ.items() if not name.startswith(("DJANGO", "PYTEST"))}
"""The environment of somebody who has no site."""


def demows(*arguments: str, code: str = "pass", directory: Path | None = None, **env: str) -> Any:
    """Run a command to its end."""
    program = f"import sys; {code}; from realtime.__main__ import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        cwd=directory,
        env={**BARE, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=TIMEOUT * 2,
    )


class Serving(Process):
    """Run ``demows serve`` on free ports."""

    def __init__(self, directory: Path, *options: str, **env: str) -> None:
        self.ready = directory / "ready.json"
        # A process of our own has all that the tests' process has, and so the settings of the tests' site.
        empty = {name: "" for name in os.environ if name.startswith("DJANGO")}
        command = [sys.executable, "-W", "error", "-m", "realtime", "serve", "--ready-file", str(self.ready)]
        super().__init__(*command, "--address", "localhost:0", "--control", "localhost:0", *options, **{**empty, **env})

    def wait_until_up(self) -> Serving:
        self.wait_for_line("Ctrl-C ends it")
        self.urls: dict[str, str] = json.loads(self.ready.read_text())
        return self

    @property
    def url(self) -> str:
        return self.urls["url"]

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.urls["control"] + path, timeout=TIMEOUT) as response:
            return json.load(response)

    def put(self, path: str, body: Any) -> None:
        data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(self.urls["control"] + path, data, headers, method="PUT")
        urllib.request.urlopen(request, timeout=TIMEOUT).close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Serving]]:
    """Start servers, which are stopped with the test."""
    started = []

    def start(*options: str, **env: str) -> Serving:
        started.append(Serving(tmp_path, *options, **env))
        return started[-1].wait_until_up()

    yield start
    for process in started:
        process.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_serve_says_where_it_is_and_ends_by_a_signal_with_1001(
    serve: Callable[..., Serving], number: signal.Signals
) -> None:
    server = serve()
    assert server.wait_for_line("^WebSocket  (.*)")[1] == server.url
    assert server.wait_for_line("^Control    (.*)")[1] == server.urls["control"]
    assert server.wait_for_line("^Docs       (.*)")[1] == server.urls["control"] + "docs"
    async with Client(server.url) as client:
        await client.echo()
        assert len(server.get("connections")) == 1
        server.signal(number)
        assert await client.closed() == (1001, "server shutdown")
    assert server.wait() == 0
    assert not server.ready.exists()
    assert "Traceback" not in server.output


async def test_serve_has_a_line_for_each_connection_and_each_end(serve: Callable[..., Serving]) -> None:
    server = serve()
    async with Client(f"{server.url}ws/?session=one") as client:
        await client.echo()
        server.wait_for_line(r"^#1 connected /ws/\?session=one$")
    server.wait_for_line("^#1 closed by the client with 1000$")
    server.put("faults", [{"fault": "refuse"}])
    with pytest.raises(InvalidStatus, match="503"):
        async with Client(server.url):
            pass
    server.wait_for_line("^#2 refused with 503 /$")
    server.wait_for_line("^#2 dropped by the server|^#2 dropped by the client")


async def test_quiet_server_says_nothing_of_connections(serve: Callable[..., Serving]) -> None:
    server = serve("--quiet")
    async with Client(server.url) as client:
        await client.echo()
    server.signal(signal.SIGTERM)
    server.wait()
    assert "#1" not in server.output


def unread(*command: str) -> subprocess.Popen[bytes]:
    """Start a process whose output nobody reads."""
    return subprocess.Popen(command, cwd=ROOT, env={**BARE, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)


async def test_server_whose_output_nobody_reads_serves_on(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    command = [sys.executable, "-m", "realtime", "serve", "--address", "localhost:0", "--control", "localhost:0"]
    process = unread(*command, "--ready-file", str(ready))
    try:
        await eventually(ready.exists)
        url = json.loads(ready.read_text())["url"]
        for _ in range(20):  # lines that fill the pipe
            async with Client(f"{url}ws/?session={'x' * 4000}") as client:
                await client.echo()
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT) == 0
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


async def test_profile_and_faults_are_what_the_server_begins_with(
    serve: Callable[..., Serving], tmp_path: Path
) -> None:
    (tmp_path / "faults.json").write_text('[{"fault": "lose", "what": "beats"}]')
    server = serve("--profile", "zombie", "--faults", str(tmp_path / "faults.json"), "--heartbeat-interval", "0.5")
    assert server.get("profile") == {"profile": "zombie"}
    assert [fault["fault"] for fault in server.get("faults")] == ["mute", "lose"]
    assert server.get("server")["heartbeat_interval"] == 0.5


async def test_who_waits_is_told_when_the_server_ends(serve: Callable[..., Serving]) -> None:
    server = serve()
    port = urlsplit(server.urls["control"]).port
    assert port is not None
    waiting = asyncio.create_task(Control(port).session("x").request("POST", "wait", {"timeout": 60}))
    await eventually(lambda: server.get("server")["sessions"])
    server.signal(signal.SIGTERM)
    assert (await waiting).error[:2] == (409, "CONFLICT")
    assert server.wait() == 0


async def test_topics_are_those_of_a_site_where_there_is_one(serve: Callable[..., Serving]) -> None:
    server = serve(DJANGO_SETTINGS_MODULE="tests.settings", SECRET_KEY="only for tests")
    async with Client(server.url) as client:
        answer = await client.ask({"type": "subscribe_request", "topic": "demo.x"})
        assert answer["status"] == "ERROR"
        await client.subscribe("board")


async def test_topics_are_the_tools_own_where_there_is_no_site(serve: Callable[..., Serving]) -> None:
    async with Client(serve().url) as client:
        await client.subscribe("demo.x")


@pytest.mark.parametrize("option", ["--address", "--control"])
def test_port_that_is_taken_is_said_plainly(option: str) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        others = {"--address": "localhost:0", "--control": "localhost:0", option: address}
        done = demows("serve", *(part for pair in others.items() for part in pair))
    assert done.returncode == 1
    assert f"demows: cannot listen on {address} (address already in use); choose another with {option}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--address", "nowhere"], "no host and port"),
        (["--control", ":8081"], "has no host: 'localhost:8081' is for this machine alone"),
        (["--profile", "zombi"], "there is no profile 'zombi'; there are flaky-mobile"),
        (["--faults", '[{"fault":"los"}]'], "there is no fault 'los'; there are refuse"),
        (["--faults", "/nothing.json"], "cannot be read: No such file"),
        (["--heartbeat-interval", "-1"], "demows: HEARTBEAT_INTERVAL: input should be greater than"),
        (["--ready-file", "/nothing/ready.json", "--address", "localhost:0", "--control", "localhost:0"], "cannot wr"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_is_said_in_a_sentence(options: list[str], message: str) -> None:
    done = demows("serve", *options)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_site_that_there_is_not_is_said_in_a_sentence(tmp_path: Path) -> None:
    done = demows("serve", directory=tmp_path, DJANGO_SETTINGS_MODULE="nothing.settings")
    assert done.returncode == 1
    assert "DJANGO_SETTINGS_MODULE is 'nothing.settings', which does not work: No module named 'nothing'" in done.stderr
    assert "Traceback" not in done.stderr


def test_site_is_found_in_the_directory_that_it_is_started_in(tmp_path: Path) -> None:
    (tmp_path / "mysettings.py").write_text("from realtime.testing.settings import *\n")
    done = demows("openapi", directory=tmp_path, code="sys.path.remove('')", DJANGO_SETTINGS_MODULE="mysettings")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "websockets"])
def test_extra_that_is_not_installed_is_named(package: str) -> None:
    done = demows("serve", code=f"sys.modules[{package!r}] = None")
    assert done.returncode == 1
    assert done.stderr.endswith("pip install 'demows[testing]'\n")
    assert package in done.stderr
    assert "Traceback" not in done.stderr


def test_profiles_are_listed_with_what_a_good_client_does() -> None:
    done = demows("profiles")
    text = " ".join(done.stdout.split())
    for profile in PROFILES.values():
        assert profile.name in text
        assert profile.summary in text
        assert profile.good_client in text


def test_faults_are_listed_with_their_fields() -> None:
    lines = demows("faults").stdout.splitlines()
    assert [line for line in lines if line[:1] not in ("", " ")] == [fault.name() for fault in FAULTS]
    assert any(line.strip().startswith("retry_after = null: Seconds") for line in lines)


def test_conformance_cases_are_listed() -> None:
    lines = demows("conformance", "--list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [*CASES]


def test_conformance_run_gives_its_own_exit_code() -> None:
    done = demows("conformance", "--client", "true", "--only", "no-such-case")
    assert done.returncode == 2
    assert "no-such-case" in done.stderr


def test_openapi_document_is_printed() -> None:
    done = demows("openapi")
    assert json.loads(done.stdout)["info"]["version"] == __version__
    assert done.stderr == ""


def test_version_is_printed() -> None:
    assert demows("--version").stdout == f"demows {__version__}\n"


def test_reader_that_has_enough_is_no_error() -> None:
    command = f"{sys.executable} -m realtime openapi | head -1"
    done = subprocess.run(
        command, shell=True, cwd=ROOT, env=BARE, capture_output=True, text=True, timeout=TIMEOUT, check=True
    )
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_console_script_is_the_command_line() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["demows"].partition(":")
    assert callable(getattr(import_module(module), name))


def test_ready_file_of_a_run_that_was_killed_is_removed_first(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    ready.write_text("{}")
    done = demows("serve", "--ready-file", str(ready), "--profile", "zombi")
    assert done.returncode == 1
    assert not ready.exists()


def test_ready_file_that_is_a_directory_is_said_in_a_sentence(tmp_path: Path) -> None:
    done = demows("serve", "--ready-file", str(tmp_path))
    assert done.returncode == 1
    assert f"demows: cannot write --ready-file {tmp_path}: " in done.stderr
