"""What docs/operate.md says of limits, counters and events is what the code has."""

from __future__ import annotations

import ast
import re
from typing import Any

from realtime.conf import Settings
from realtime.limits import Count

from .test_docs import ROOT, rows

PAGE = "docs/operate.md"
NO_LIMITS = {
    *("CHANNEL_LAYER", "CLOSE_ON_SESSION_END", "CONNECTION_REGISTRY", "HEARTBEAT_INTERVAL", "TRUSTED_HOPS"),
    *("TRACER_PROVIDER", "METER_PROVIDER", "TRUST_CLIENT_TRACEPARENT"),
}
"""Keys that limit nobody. Every other one, a new one as well, needs a row."""


def named(cell: str) -> list[str]:
    """Return what stands between backticks."""
    return re.findall(r"`([^`]+)`", cell)


def limits() -> dict[str, list[str]]:
    """Return the cells of each row of the table of limits by its key."""
    table = rows(PAGE, "## Limits")
    keyed = {key: row for row in table for key in named(row[0])}
    assert len(keyed) == len(table)
    return keyed


def test_every_limit_has_a_row_with_its_default() -> None:
    defaults: dict[str, Any] = {key: ast.literal_eval(named(row[1])[0]) for key, row in limits().items()}
    assert defaults == {key: field.default for key, field in Settings.model_fields.items() if key not in NO_LIMITS}


def test_every_counter_is_in_a_table_and_nothing_else() -> None:
    counters = {name for row in limits().values() for name in named(row[3])}
    counters |= {name for row in rows(PAGE, "## What was lost") for name in named(row[0])}
    if "`refused_path`" in (ROOT / PAGE).read_text():  # no key limits that
        counters.add("refused_path")
    assert counters == {count.value for count in Count}


def test_every_key_that_the_page_names_exists() -> None:
    names = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", (ROOT / PAGE).read_text()))
    names |= set(re.findall(r'REALTIME = \{"(\w+)"', (ROOT / PAGE).read_text()))
    others = {"RATE_LIMITED", "TOO_MANY_SUBSCRIPTIONS", "INTERNAL_ERROR"}
    others |= {"REDIS_URL", "RLIMIT_NOFILE", "SECURE_PROXY_SSL_HEADER"}
    assert names - others <= set(Settings.model_fields)
    assert set(Settings.model_fields) >= NO_LIMITS


def test_every_event_that_the_page_lists_is_logged() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "realtime").rglob("*.py"))
    logged = set(re.findall(r"event=(\w+)", code))
    listed = [event for row in rows(PAGE, "## What the log says") for event in named(row[0])]
    assert len(listed) == len(set(listed))
    assert set(listed) <= logged


def test_every_reason_of_a_refusal_is_listed() -> None:
    [row] = [row for row in rows(PAGE, "## What the log says") if named(row[0]) == ["refused"]]
    listed = {name.removeprefix("reason=") for name in named(row[1])}
    reasons = {count.removeprefix("refused_") for count in Count if count.startswith("refused_")}
    assert listed == reasons
