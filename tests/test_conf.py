"""The settings."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from pydantic import ValidationError

from realtime.conf import Settings, get_settings

SECONDS = (
    *("HEARTBEAT_INTERVAL", "HANDLER_TIMEOUT", "DRAIN_TIMEOUT", "AUTHENTICATION_TIMEOUT", "WRITE_TIMEOUT"),
    *("FLOOD_TIMEOUT", "FIRST_MESSAGE_TIMEOUT", "MAX_CONNECTION_AGE"),
)
"""The keys whose values are times that must be longer than none."""
OPTIONAL = (
    *("RATE_LIMIT", "MAX_CONNECTIONS", "MAX_CONNECTIONS_PER_ADDRESS", "MAX_CONNECTIONS_PER_USER"),
    *("FIRST_MESSAGE_TIMEOUT", "MAX_CONNECTION_AGE"),
)
"""The limits that a site may do without."""


def test_settings_that_are_missing_have_defaults(settings: Any) -> None:
    settings.REALTIME = {}  # del alone tells nobody
    del settings.REALTIME
    assert get_settings() == Settings()


def test_settings_that_are_empty_have_defaults(settings: Any) -> None:
    settings.REALTIME = {}
    assert get_settings().model_dump() == {
        "CHANNEL_LAYER": "default",
        "HEARTBEAT_INTERVAL": 5.0,
        "MAX_SUBSCRIPTIONS": 128,
        "HANDLER_TIMEOUT": 10.0,
        "SYNC_THREADS": 8,
        "REQUIRE_ORIGIN": False,
        "AUTHENTICATE": None,
        "CLOSE_ON_SESSION_END": True,
        "CONNECTION_REGISTRY": True,
        "AUTHENTICATION_TIMEOUT": 2.0,
        "OUTBOX_LIMIT": 1_048_576,
        "WRITE_TIMEOUT": 10.0,
        "MAX_MESSAGE_SIZE": 65_536,
        "RATE_LIMIT": 100.0,
        "RATE_BURST": 1000,
        "FLOOD_TIMEOUT": 10.0,
        "MAX_CONNECTIONS": 10_000,
        "MAX_CONNECTIONS_PER_ADDRESS": None,
        "MAX_CONNECTIONS_PER_USER": None,
        "TRUSTED_HOPS": 0,
        "FIRST_MESSAGE_TIMEOUT": None,
        "MAX_CONNECTION_AGE": 86_400.0,
        "DRAIN_SECONDS": 2.0,
        "DRAIN_TIMEOUT": 5.0,
        "TRACER_PROVIDER": None,
        "METER_PROVIDER": None,
        "TRUST_CLIENT_TRACEPARENT": False,
    }


def test_settings_are_read_at_access_time(settings: Any) -> None:
    settings.REALTIME = {"MAX_SUBSCRIPTIONS": 1}
    assert get_settings().MAX_SUBSCRIPTIONS == 1
    settings.REALTIME = {"MAX_SUBSCRIPTIONS": 2}
    assert get_settings().MAX_SUBSCRIPTIONS == 2


def test_settings_are_not_read_anew_while_they_stay() -> None:
    assert get_settings() is get_settings()


def test_settings_are_fixed() -> None:
    with pytest.raises(ValidationError):
        get_settings().SYNC_THREADS = 1  # type: ignore[misc]


def test_settings_survive_a_change_of_another_setting(settings: Any) -> None:
    before = get_settings()
    settings.DEBUG = True
    assert get_settings() is before


def test_unknown_key_is_refused_and_the_known_are_listed(settings: Any) -> None:
    settings.REALTIME = {"HEARTBEAT_INTERVALL": 5}
    with pytest.raises(ImproperlyConfigured, match="'HEARTBEAT_INTERVALL'; known are CHANNEL_LAYER, HEARTBEAT_INTERV"):
        get_settings()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("CHANNEL_LAYER", None),
        ("CHANNEL_LAYER", ["default"]),
        ("MAX_SUBSCRIPTIONS", 0),
        ("MAX_SUBSCRIPTIONS", 1.5),
        ("SYNC_THREADS", 0),
        ("SYNC_THREADS", None),
        *((key, value) for key in SECONDS for value in (0, -1, float("inf"), float("nan"), "soon")),
        *((key, 0) for key in ("RATE_BURST", "MAX_CONNECTIONS", "MAX_CONNECTIONS_PER_ADDRESS")),
        ("MAX_CONNECTIONS_PER_USER", 0),
        ("RATE_LIMIT", 0),
        ("RATE_LIMIT", float("inf")),
        ("RATE_BURST", None),
        ("OUTBOX_LIMIT", (1 << 17) - 1),
        ("OUTBOX_LIMIT", None),
        ("MAX_MESSAGE_SIZE", 1023),
        ("TRUSTED_HOPS", -1),
        ("TRUSTED_HOPS", 1.5),
        ("DRAIN_SECONDS", -1),
        ("DRAIN_SECONDS", float("inf")),
    ],
)
def test_bad_value_is_refused_with_its_key_and_itself(settings: Any, key: str, value: Any) -> None:
    settings.REALTIME = {key: value}
    with pytest.raises(ImproperlyConfigured) as caught:
        get_settings()
    assert f"REALTIME[{key!r}] is {value!r}: " in str(caught.value)


@pytest.mark.parametrize("key", OPTIONAL)
def test_limit_that_is_none_is_none(settings: Any, key: str) -> None:
    settings.REALTIME = {key: None}
    assert getattr(get_settings(), key) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [("OUTBOX_LIMIT", 1 << 17), ("MAX_MESSAGE_SIZE", 1024), ("DRAIN_SECONDS", 0), ("TRUSTED_HOPS", 3)],
)
def test_least_value_is_taken(settings: Any, key: str, value: int) -> None:
    settings.REALTIME = {key: value}
    assert getattr(get_settings(), key) == value


def test_every_problem_is_told_at_once(settings: Any) -> None:
    settings.REALTIME = {"SYNC_THREADS": 0, "NO": 1}
    with pytest.raises(ImproperlyConfigured, match=r"SYNC_THREADS.*; .*'NO'"):
        get_settings()


@pytest.mark.parametrize("value", [None, [], "HEARTBEAT_INTERVAL", 5])
def test_settings_that_are_no_dict_are_refused(settings: Any, value: Any) -> None:
    settings.REALTIME = value
    with pytest.raises(ImproperlyConfigured, match="REALTIME must be a dict, but is"):
        get_settings()
