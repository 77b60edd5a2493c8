"""Fixtures for live tests, and the rule that a skip in CI needs a reason that is written down."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from .live import SERVERS, Redis, Server, running
from .postgres import Postgres

# A runner in the background of a shell ignores SIGINT, and under nohup SIGHUP, and would hand that down to the servers.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# How fast a machine is says nothing about the code.
hypothesis.settings.register_profile(
    "demows", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("demows")

ALLOWED_SKIPS = Path(__file__).resolve().parent.parent / ".ci" / "allowed-skips"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """Turn a skip into a failure where all services are required, unless it is named in ``.ci/allowed-skips``."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("DEMOWS_REQUIRE_SERVICES"):
        allowed = {line.split()[0] for line in ALLOWED_SKIPS.read_text().splitlines() if line[:1] not in ("", "#")}
        if item.nodeid not in allowed:
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} was skipped, and .ci/allowed-skips does not name it: {report.longrepr}"
    return report


@pytest.fixture(scope="session", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server on the in-memory layer that all tests share: it must survive each of them."""
    with running(request.param) as server:
        yield server


@pytest.fixture(params=SERVERS)
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of server, for tests that start their own."""
    return str(request.param)


@pytest.fixture
def redis() -> Iterator[Redis]:
    """A Redis of the test's own."""
    redis = Redis()
    try:
        yield redis
    finally:
        redis.stop()


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL of the module's own."""
    if Postgres.programs() is None:
        pytest.skip("no PostgreSQL server is installed")
    postgres = Postgres()
    try:
        yield postgres
    finally:
        postgres.destroy()
