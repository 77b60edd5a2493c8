"""A test server where there is no site: what it serves then, and that it starts without ado."""

from __future__ import annotations

import os
import subprocess
import sys

from .live import ROOT

HEAD = """
import json, sys, time
from realtime.testing import CloseMessage, DemoWebsocketServer
from websockets.sync.client import connect

def ask(client, **message):
    client.send(json.dumps(message))
    return json.loads(client.recv(timeout=10))
"""


def run(code: str) -> str:
    """Return what ``code`` prints in a Python where nothing of Django is configured."""
    env = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", HEAD + code],
        env={**env, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.strip()


def test_topics_of_whatever_name_are_there_for_everybody() -> None:
    code = """
with DemoWebsocketServer("localhost:0") as server, connect(server.url, proxy=None) as client:
    print(ask(client, type="subscribe_request", topic="demo.x")["status"])
    print(ask(client, type="subscribe_request", topic="other")["error"]["code"])
    print(server.publish("demo.x", {"a": 1}), json.loads(client.recv(timeout=10))["data"])
"""
    assert run(code) == "OK\nTOPIC_NOT_FOUND\n1 {'a': 1}"


def test_pages_of_this_machine_may_connect_and_others_may_not() -> None:
    code = """
from websockets.exceptions import InvalidStatus
with DemoWebsocketServer("localhost:0") as server:
    for origin in ("http://localhost:5173", "https://127.0.0.1", "http://[::1]:8000", "https://example.com", "http://["):
        try:
            with connect(server.url, proxy=None, origin=origin) as client:
                print(ask(client, type="echo_request", echo="x")["status"])
        except InvalidStatus as error:
            print(error.response.status_code)
"""
    assert run(code).split() == ["OK", "OK", "OK", "403", "403"]


def test_server_starts_in_well_under_a_second() -> None:
    code = """
server = DemoWebsocketServer("localhost:0")
began = time.monotonic()
server.start()
with connect(server.url, proxy=None) as client:
    ask(client, type="echo_request", echo="x")
print(time.monotonic() - began < 1)
server.stop()
"""
    assert run(code) == "True"


def test_interpreter_ends_although_the_server_was_not_stopped() -> None:
    assert run('DemoWebsocketServer("localhost:0").start(); print("end")') == "end"


def test_import_of_the_tools_for_sites_needs_no_websockets() -> None:
    code = "print(sorted(name for name in sys.modules if name.startswith(('websockets.server', 'realtime.testing.'))))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from realtime.testing import capture_publications; " + code],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == "[]", done.stderr
