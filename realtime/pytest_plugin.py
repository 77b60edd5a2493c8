"""
Fixtures for tests of WebSocket clients: a server that a test can start, look into, and have misbehave.

Nothing is imported before a fixture is used.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .testing.server import DemoWebsocketServer, Session

MARK = "demo_server"
_sessions = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark."""
    config.addinivalue_line(
        "markers",
        f"{MARK}(address='localhost:0', **settings): how the server of the fixture demo_server is made, "
        "such as heartbeat_interval=0.1 or profile='zombie'",
    )


def _options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return what the marks of a test say, of which the one closest to it wins."""
    options: dict[str, Any] = {"address": "localhost:0"}
    for mark in reversed(list(request.node.iter_markers(MARK))):
        if mark.args:
            raise pytest.UsageError(f"@pytest.mark.{MARK} takes keyword arguments alone, and got {mark.args!r}")
        options |= mark.kwargs
    return options


@pytest.fixture
def demo_server(request: pytest.FixtureRequest) -> Iterator[DemoWebsocketServer]:
    """A WebSocket server of the test's own, on a free port. It may be stopped and started again in the test."""
    from .testing.server import DemoWebsocketServer

    with DemoWebsocketServer(**_options(request)) as server:
        yield server


@pytest.fixture(scope="session")
def _demo_server_of_all_tests() -> Iterator[DemoWebsocketServer]:
    from .testing.server import DemoWebsocketServer

    with DemoWebsocketServer("localhost:0") as server:
        yield server


@pytest.fixture
def demo_server_session(
    request: pytest.FixtureRequest, _demo_server_of_all_tests: DemoWebsocketServer
) -> Iterator[Session]:
    """A session of the test's own on a server that all tests share, which is faster than one for each."""
    if list(request.node.iter_markers(MARK)):
        raise pytest.UsageError(f"@pytest.mark.{MARK} is for demo_server: all tests share demo_server_session's server")
    session = _demo_server_of_all_tests.session(f"test-{next(_sessions)}")
    yield session
    session.reset()
