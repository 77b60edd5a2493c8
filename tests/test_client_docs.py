"""What docs/test-a-client.md tells to do, done, and what it says there is, looked for."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from realtime import protocol, testing
from realtime.testing.server import NOT_ITS_OWN, Session

from .browser import find_node
from .live import ROOT, TIMEOUT, Process, free_port
from .shop.walkthrough import blocks_of
from .test_docs import rows
from .test_pytest_plugin import run

PAGE = ROOT / "docs" / "test-a-client.md"
MODULES = {"testing": testing, "protocol": protocol}
ASYNC = ("astart", "astop")


def blocks(heading: str, language: str) -> list[str]:
    found = [block for block in blocks_of(PAGE) if block[0] == heading and block[1] == language]
    return [block[2] for block in found]


# The quick starts


def test_python_quick_start_fails_as_the_page_says(tmp_path: Path) -> None:
    output = run(tmp_path, tests=blocks("Python", "python")[0])
    assert " 1 failed" in output, output
    [said] = blocks("Python", "text")
    assert said.strip() in output
    assert "controls.py" not in output  # what is shown is the line of the test


def test_python_quick_start_passes_when_the_client_comes_back(tmp_path: Path) -> None:
    first, in_place, more, _ = blocks("Python", "python")
    never = "    def run(self):\n        self.listen()\n"
    assert never in first
    comes_back = first.replace(never, in_place.split("\n", 1)[1])
    output = run(tmp_path, tests=f"import random\nimport time\n\nimport pytest\n{comes_back}\n\n{more}")
    assert " 5 passed" in output, output


def test_python_without_pytest(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DJANGO")}
    done = subprocess.run(
        [sys.executable, "-c", blocks("Python", "python")[3]],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert re.fullmatch(r"ws://localhost:\d+/\n", done.stdout), done.stdout + done.stderr


@pytest.fixture
def command(tmp_path: Path) -> dict[str, str]:
    """The environment in which there is the command ``demows``, whether or not the package is installed."""
    directory = tmp_path / "bin"
    directory.mkdir()
    script = directory / "demows"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m realtime "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    path = f"{directory}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DJANGO")}
    return {**environment, "PATH": path, "PYTHONPATH": str(ROOT)}


def node(directory: Path, script: str, command: dict[str, str]) -> subprocess.CompletedProcess[str]:
    (directory / "client.test.mjs").write_text(script)
    return subprocess.run(
        [find_node(), "--test", "--test-reporter=spec", "client.test.mjs"],
        cwd=directory,
        env=command,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_javascript_quick_start_passes(tmp_path: Path, command: dict[str, str]) -> None:
    [script] = blocks("JavaScript", "js")
    done = node(tmp_path, script, command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^. pass 2$", done.stdout, re.MULTILINE), done.stdout


def test_javascript_quick_start_fails_when_the_client_stays_away(tmp_path: Path, command: dict[str, str]) -> None:
    [script] = blocks("JavaScript", "js")
    script, count = re.subn(r"^ +socket\.onclose = .*\n", "", script, flags=re.MULTILINE)
    done = node(tmp_path, script, command)
    assert count == 1
    assert re.search(r"^. fail 2$", done.stdout, re.MULTILINE), done.stdout + done.stderr


def test_go_quick_start_is_go(tmp_path: Path) -> None:
    gofmt = shutil.which("gofmt")
    if gofmt is None:
        pytest.skip("no Go is installed")
    [source] = blocks("Go", "go")
    (tmp_path / "client_test.go").write_text(source)
    done = subprocess.run([gofmt, "-l", "client_test.go"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture
def shell(command: dict[str, str]) -> Iterator[tuple[dict[str, str], list[str], str]]:
    """The commands of the page that go to a server which runs, with ports that are free, and the client's command."""
    ports = {"8080": str(free_port()), "8081": str(free_port())}
    lines = [line for block in blocks("A shell", "console") for line in block.splitlines()]
    commands = [re.sub("8080|8081", lambda match: ports[match[0]], line.removeprefix("$ ")) for line in lines]
    serve, client, *curls = commands
    server = Process("sh", "-c", f"exec {serve}", **command)
    try:
        wait_for_port(int(ports["8081"]))
        yield command, curls, client
    finally:
        server.stop()


def wait_for_port(port: int) -> None:
    end = time.monotonic() + TIMEOUT
    while subprocess.run(["curl", "-s", f"localhost:{port}/connections"], capture_output=True).returncode:
        assert time.monotonic() < end, "the control API does not answer"
        time.sleep(0.1)


def ask(line: str, command: dict[str, str]) -> Any:
    line = f"{line} --fail-with-body --silent --show-error"
    done = subprocess.run(["sh", "-c", line], env=command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_shell_quick_start(shell: tuple[dict[str, str], list[str], str]) -> None:
    command, curls, client = shell
    with subprocess.Popen(
        shlex.split(client), env=command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdin is not None
        connections = next(line for line in curls if line.endswith("/connections"))
        end = time.monotonic() + TIMEOUT
        while not ask(connections, command):
            assert time.monotonic() < end, "the client does not connect"
            time.sleep(0.1)
        assert ask(curls[0], command) == {"connections": 1}
        output, _ = process.communicate(timeout=30)
        assert "1012 (service restart) deploy" in output.decode()
    for line in curls[1:]:
        assert ask(line, command) is not None


# What there is


def test_page_says_what_a_test_can_do() -> None:
    server, session = testing.DemoWebsocketServer, Session
    listed = set()
    for names, text in ((cells[0], cells[1].rstrip(" |")) for cells in rows("docs/test-a-client.md", CAN_DO)):
        owner: Any = server if text.startswith("The server's alone") else session
        for name, arguments in re.findall(r"`(\w+)(?:\((.*?)\))?`", names):
            if name in ("with", "async"):
                continue
            listed.add(name)
            member = inspect.getattr_static(owner, name)
            if not isinstance(member, property):
                assert said(arguments) == parameters(member), name
    public = {name for name in dir(server) if not name.startswith("_")} - INNER
    twins = {name for name in public if name[:1] == "a" and name[1:] in public}
    assert listed - set(ASYNC) == public - twins


CAN_DO = "## What a test can do"
INNER = {"application", "engine", "loop", "on_loop", "port", "running", "session_names", "set_up", "settings_with"}
"""What is no control: the seed's names have a table of their own, and the rest is for tools."""


def said(arguments: str) -> list[str]:
    return [part.strip() for part in arguments.split(",") if part.strip()]


def parameters(function: Any) -> list[str]:
    """Return a function's parameters as the page has them."""
    found = [each for name, each in inspect.signature(function).parameters.items() if name != "self"]
    return [each.name if each.default is each.empty else f"{each.name}={each.default!r}" for each in found]


SEED = {
    "NewDemoWebsocketServer": [],
    "DemoWebsocketServer": [],
    "DemoWebsocketServer.Start": [],
    "DemoWebsocketServer.CloseClientConnections": [],
    "DemoWebsocketServer.ServeHTTP": [],
    "CloseMessage": ["Code", "Reason"],
    "Message": ["MsgType"],
    "Request": ["ReqId"],
    "Response": ["ReqId", "Status", "Err"],
    "EchoRequest": ["Echo", "Err"],
    "EchoResponse": ["Data"],
    "EchoResponseData": ["Echo"],
    "SubscribeRequest": [],
    "SubscribeResponse": ["Data"],
    "SubscribeResponseData": ["Topic"],
    "UnsubscribeRequest": [],
    "UnsubscribeResponse": ["Data"],
    "UnsubscribeResponseData": ["Topic"],
    "Heartbeat": ["Timestamp", "Uptime"],
    "ErrorMessage": [],
    "ErrorMessageData": ["Message", "Code", "ReqId"],
}
"""The exported names of the Go package, with the fields of its structures."""
CONSTANTS = {
    "MSG_TYPE_ERROR": "error",
    "MSG_TYPE_SUBSCRIBE_REQUEST": "subscribe_request",
    "MSG_TYPE_SUBSCRIBE_RESPONSE": "subscribe_response",
    "MSG_TYPE_UNSUBSCRIBE_REQUEST": "unsubscribe_request",
    "MSG_TYPE_UNSUBSCRIBE_RESPONSE": "unsubscribe_response",
    "MSG_TYPE_ECHO_REQUEST": "echo_request",
    "MSG_TYPE_ECHO_RESPONSE": "echo_response",
    "MSG_TYPE_HEARTBEAT": "heartbeat",
    "TOPIC_HEARTBEAT": "heartbeat",
    "RESPONSE_STATUS_OK": "OK",
    "RESPONSE_STATUS_ERROR": "ERROR",
    "ERROR_ALREADY_SUBSCRIBED": "ALREADY_SUBSCRIBED",
    "ERROR_NOT_SUBSCRIBED": "NOT_SUBSCRIBED",
    "ERROR_ECHO_ASKED_BY_CLIENT": "ASKED_BY_CLIENT",
    "ERROR_TOPIC_NOT_FOUND": "TOPIC_NOT_FOUND",
    "ERROR_UNKNOWN_MESSAGE_TYPE": "UNKNOWN_MESSAGE_TYPE",
    "ERROR_BAD_REQUEST": "BAD_REQUEST",
}


def seed_rows() -> dict[str, tuple[list[str], str]]:
    """Return the table's rows by their first name: the other names of the first cell, and the second cell."""
    table = {}
    for first, second in rows("docs/test-a-client.md", "## Beside the Go package"):
        name, *fields = re.findall(r"`([\w.]+)`", first)
        table[name] = fields, second
    return table


def look_up(name: str) -> Any:
    module, *path = name.split(".")
    found: Any = MODULES[module]
    for part in path:
        found = getattr(found, part)
    return found


def test_table_beside_the_go_package_lacks_nothing() -> None:
    assert {name: fields for name, (fields, _) in seed_rows().items()} == {**SEED, **dict.fromkeys(CONSTANTS, [])}


@pytest.mark.parametrize("name", [*SEED, *CONSTANTS])
def test_our_names_beside_those_of_the_go_package_exist(name: str) -> None:
    fields, ours = seed_rows()[name]
    names = re.findall(r"`((?:testing|protocol)\.[\w.]+)`", ours)
    assert names
    found = [look_up(each) for each in names]
    if name in CONSTANTS:
        assert [str(each) for each in found] == [CONSTANTS[name]]
    elif names[0].startswith("protocol."):
        own = re.findall(r"`(\w+)`", ours)
        assert set(own) <= set(found[0].model_fields)
        assert len(own) >= len(fields)


def test_page_names_the_settings_that_a_server_cannot_have() -> None:
    text = PAGE.read_text()
    for name in NOT_ITS_OWN:
        assert f"`{name}`" in text


@pytest.mark.parametrize("page", ["test-a-client.md", "control.md"])
def test_page_says_what_a_sites_own_code_does_not_reach(page: str) -> None:
    text = " ".join((PAGE.parent / page).read_text().split())
    assert "does not reach clients of the test server" in text
    assert "`server.publish`" in text
