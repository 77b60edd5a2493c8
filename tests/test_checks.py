"""The system checks: each with its trigger, and with its absence."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from channels.layers import channel_layers
from django.core.checks import CheckMessage, run_checks

from realtime.servers import daphne

IN_MEMORY = "channels.layers.InMemoryChannelLayer"
CORE = "channels_redis.core.RedisChannelLayer"
PUBSUB = "channels_redis.pubsub.RedisPubSubChannelLayer"
ENOUGH = {"capacity": 10_000}


def found() -> list[CheckMessage]:
    """Return what realtime's checks say."""
    messages = run_checks(tags=["realtime"])
    assert all(message.hint for message in messages)
    return messages


def ids() -> list[str | None]:
    return [message.id for message in found()]


def test_nothing_is_said_of_the_demo_project() -> None:
    assert found() == []


@pytest.mark.parametrize("layers", [{}, {"other": {"BACKEND": IN_MEMORY}}])
def test_missing_layer_is_e001(settings: Any, layers: Any) -> None:
    settings.CHANNEL_LAYERS = layers
    assert ids() == ["realtime.E001"]


def test_alias_without_a_layer_is_e001(settings: Any) -> None:
    settings.REALTIME = {"CHANNEL_LAYER": "realtime"}
    assert ids() == ["realtime.E001"]


def test_alias_with_a_layer_is_fine(settings: Any) -> None:
    settings.REALTIME = {"CHANNEL_LAYER": "realtime"}
    settings.CHANNEL_LAYERS = {"realtime": {"BACKEND": PUBSUB}}
    assert found() == []


def test_unknown_key_is_e002(settings: Any) -> None:
    settings.REALTIME = {"HARTBEAT_INTERVAL": 5}
    [message] = found()
    assert message.id == "realtime.E002"
    assert "'HARTBEAT_INTERVAL'" in message.msg


@pytest.mark.parametrize("interval", [0, -5, float("nan"), float("inf"), "soon", None])
def test_bad_interval_is_e003(settings: Any, interval: Any) -> None:
    settings.REALTIME = {"HEARTBEAT_INTERVAL": interval}
    [message] = found()
    assert message.id == "realtime.E003"
    assert f"REALTIME['HEARTBEAT_INTERVAL'] is {interval!r}" in message.msg


def test_each_problem_of_the_settings_is_a_message(settings: Any) -> None:
    settings.REALTIME = {"A": 1, "B": 2, "SYNC_THREADS": 0}
    assert sorted(ids()) == ["realtime.E002", "realtime.E002", "realtime.E003"]


@pytest.mark.parametrize("value", [None, [], "default"])
def test_settings_that_are_no_dict_are_e003(settings: Any, value: Any) -> None:
    settings.REALTIME = value
    assert ids() == ["realtime.E003"]


@pytest.mark.parametrize("alias", [None, 5, ["default"], {}])
def test_alias_of_another_type_is_e003_and_the_checks_go_on(settings: Any, alias: Any) -> None:
    settings.REALTIME = {"CHANNEL_LAYER": alias}
    assert "realtime.E003" in ids()


@pytest.mark.parametrize(
    "hosts", [None, [], ["redis://localhost"], [{"address": "redis://a", "socket_timeout": None}, "redis://b"]]
)
def test_core_redis_layer_without_socket_timeout_is_w001(settings: Any, hosts: Any) -> None:
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": CORE, "CONFIG": {"hosts": hosts, **ENOUGH}}}
    assert ids()[:1] == ["realtime.W001"]


def test_core_redis_layer_with_several_hosts_is_w005(settings: Any) -> None:
    hosts = [{"address": f"redis://{name}", "socket_timeout": None} for name in "ab"]
    for count, expected in ((1, []), (2, ["realtime.W005"])):
        settings.CHANNEL_LAYERS = {"default": {"BACKEND": CORE, "CONFIG": {"hosts": hosts[:count], **ENOUGH}}}
        assert ids() == expected
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": PUBSUB, "CONFIG": {"hosts": hosts}}}
    assert ids() == []


def test_core_redis_layer_without_config_is_w001(settings: Any) -> None:
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": CORE}}
    assert "realtime.W001" in ids()


def test_core_redis_layer_with_socket_timeout_is_fine(settings: Any) -> None:
    host = {"address": "redis://localhost", "socket_timeout": None}
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": CORE, "CONFIG": {"hosts": [host], **ENOUGH}}}
    assert found() == []


def test_core_redis_layer_with_an_older_redis_py_is_fine(settings: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(redis, "__version__", "7.1.0")
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": CORE, "CONFIG": ENOUGH}}
    assert found() == []


@pytest.mark.parametrize("config", [{}, {"capacity": 9_999}])
def test_in_memory_layer_with_a_small_capacity_is_w002(settings: Any, config: Any) -> None:
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": IN_MEMORY, "CONFIG": config}}
    assert ids() == ["realtime.W002"]


@pytest.mark.parametrize(
    ("config", "capacity"),
    [
        ({}, 100),
        ({"capacity": 9_999}, 9_999),
        ({"channel_capacity": {"http.*": 50_000}}, 100),
        ({"channel_capacity": {"realtime.*": 500}}, 500),
        ({"capacity": 50_000, "channel_capacity": {"realtime.*": 500}}, 500),
    ],
)
def test_core_redis_layer_with_a_small_capacity_is_w002(settings: Any, config: Any, capacity: int) -> None:
    host = {"address": "redis://localhost", "socket_timeout": None}
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": CORE, "CONFIG": {"hosts": [host], **config}}}
    [message] = found()
    assert message.id == "realtime.W002"
    assert f"more than {capacity} wait" in message.msg


@pytest.mark.parametrize(
    "config",
    [
        {"capacity": 10_000},
        {"channel_capacity": {"realtime.*": 10_000}},
        {"capacity": 100, "channel_capacity": {"http.*": 5, "realtime.*": 20_000}},
        {"channel_capacity": {"*": 20_000}},
    ],
)
def test_capacity_that_is_enough_is_fine(settings: Any, config: Any) -> None:
    host = {"address": "redis://localhost", "socket_timeout": None}
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": CORE, "CONFIG": {"hosts": [host], **config}}}
    assert found() == []


def test_pubsub_layer_has_no_capacity_to_be_small(settings: Any) -> None:
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": PUBSUB, "CONFIG": {"hosts": ["redis://localhost"]}}}
    assert found() == []


async def test_in_memory_layer_works_with_what_the_hint_of_w002_advises(settings: Any) -> None:
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": IN_MEMORY}}
    [message] = found()
    advice = {"channel_capacity": {"realtime.*": 10_000}} if "channel_capacity" in str(message.hint) else ENOUGH
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": IN_MEMORY, "CONFIG": advice}}
    await channel_layers["default"].send("realtime.test", {"type": "test"})


def test_daphne_that_cannot_be_repaired_is_w003(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "daphne.server", SimpleNamespace(Server=type("Server", (), {})))
    another = SimpleNamespace(WebSocketProtocol=type("WebSocketProtocol", (), {}))
    monkeypatch.setitem(sys.modules, "daphne.ws_protocol", another)
    assert ids() == ["realtime.W003"]


def test_daphne_that_is_not_imported_is_no_matter(monkeypatch: Any) -> None:
    monkeypatch.delitem(sys.modules, "daphne.server", raising=False)
    assert not daphne.install()
    assert found() == []


@pytest.mark.parametrize(("hosts", "expected"), [(["*"], ["realtime.W004"]), (["example.org"], [])])
def test_any_host_is_w004(settings: Any, hosts: list[str], expected: list[str]) -> None:
    settings.ALLOWED_HOSTS = hosts
    assert ids() == expected


def test_any_host_without_sessions_is_fine(settings: Any) -> None:
    settings.ALLOWED_HOSTS = ["*"]
    settings.INSTALLED_APPS = ["channels", "realtime"]
    assert ids() == []
