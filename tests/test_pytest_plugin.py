"""The pytest plugin, in test runs of their own: with and without Django's plugin, and in parallel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .live import ROOT

TESTS = """
import pytest
from websockets.sync.client import connect

ECHO = '{"type":"echo_request","echo":"x"}'


def ask(url, message=ECHO):
    with connect(url, proxy=None) as client:
        client.send(message)
        return client.recv(timeout=10)


def test_server_answers(demo_server):
    assert '"data":{"echo":"x"}' in ask(demo_server.url)
    assert len(demo_server.transcript.received) >= 1


def test_server_can_be_stopped_in_a_test(demo_server):
    demo_server.stop()


@pytest.mark.demo_server(heartbeat_interval=0.1)
def test_mark_makes_the_server(demo_server):
    assert demo_server.settings.HEARTBEAT_INTERVAL == 0.1


@pytest.mark.parametrize("number", range(4))
def test_session_is_the_tests_own(demo_server_session, number):
    assert demo_server_session.transcript.entries == []
    assert "echo" in ask(demo_server_session.url)
    assert demo_server_session.wait_for_connection().number == 1
"""


def run(directory: Path, *options: str, tests: str = TESTS, **env: str) -> str:
    """Run tests in a process of their own, and return what it says."""
    (directory / "test_it.py").write_text(tests)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "DJANGO"))}
    command = [sys.executable, "-m", "pytest", "-p", "realtime.pytest_plugin", "--strict-markers", "-W", "error"]
    command += ["-W", "ignore::pytest.PytestDeprecationWarning"]  # pytest-asyncio wants to be configured
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", *options],
        cwd=directory,
        env={**environment, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("options", [[], ["-p", "no:django"], ["-p", "no:asyncio"], ["-n", "2"]], ids=" ".join)
def test_fixtures_work(tmp_path: Path, options: list[str]) -> None:
    assert " 7 passed" in (output := run(tmp_path, *options)), output


def test_fixtures_work_under_the_settings_of_a_site(tmp_path: Path) -> None:
    tests = TESTS + (
        "\n\ndef test_topics_are_the_sites(demo_server):\n"
        "    from realtime.topics import find_topic\n"
        "    assert find_topic('board') and not find_topic('demo.x')\n"
    )
    output = run(tmp_path, tests=tests, DJANGO_SETTINGS_MODULE="tests.settings", SECRET_KEY="only for tests")
    assert " 8 passed" in output, output


def test_mark_with_an_unknown_setting_is_an_error_that_names_it(tmp_path: Path) -> None:
    tests = "import pytest\n@pytest.mark.demo_server(hartbeat=1)\ndef test_it(demo_server): pass\n"
    output = run(tmp_path, tests=tests)
    assert "hartbeat" in output, output
    assert " 1 error" in output, output


def test_plugin_imports_nothing_before_a_fixture_is_used(tmp_path: Path) -> None:
    tests = (
        "import sys\ndef test_it():\n"
        "    names = {name.partition('.')[0] for name in sys.modules}\n"
        "    assert not names & {'channels', 'websockets', 'pydantic', 'opentelemetry'}\n"
    )
    options = ["-p", "no:django", "-p", "no:asyncio"]
    assert " 1 passed" in (output := run(tmp_path, *options, tests=tests, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")), output
