"""The management commands, as far as they go without other processes."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from django.contrib.auth import authenticate
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from pydantic import BaseModel

from realtime import Topic, embedded_redis, publishing
from realtime.exceptions import LayerUnavailable
from realtime.hub import get_hub
from realtime.management.commands import close_connections, run_heartbeats, serve

from .memory import Layer, RemoteLayer, clean_process, the_layer, until, use_layer  # noqa: F401

APPLICATION = "demows_project.asgi:application"


@pytest.fixture(autouse=True)
def signals_restored() -> Iterator[None]:
    """Put the signal handlers back that a command, or the event loop it ran, replaced."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def output_of(*command: str, **options: Any) -> str:
    """Return what a command prints."""
    out = StringIO()
    call_command(*command, stdout=out, **options)
    return out.getvalue()


# run_heartbeats


def test_run_heartbeats_on_the_in_memory_layer_is_refused() -> None:
    with pytest.raises(CommandError, match=r"these heartbeats would reach nobody. .* set REDIS_URL") as caught:
        call_command("run_heartbeats")
    assert caught.value.returncode == 1


@pytest.mark.parametrize("interval", ["0", "-1", "nan", "inf", "-inf"])
def test_run_heartbeats_with_an_interval_that_cannot_be_is_refused(interval: str) -> None:
    use_layer(RemoteLayer())
    with pytest.raises(CommandError, match="--interval takes a number of seconds above 0, not"):
        call_command("run_heartbeats", f"--interval={interval}")


@pytest.mark.parametrize("count", ["0", "-1"])
def test_run_heartbeats_with_a_count_that_cannot_be_is_refused(count: str) -> None:
    use_layer(RemoteLayer())
    with pytest.raises(CommandError, match="--count takes a whole number from 1 on, not"):
        call_command("run_heartbeats", f"--count={count}")


@pytest.mark.parametrize("arguments", ["--interval=soon", "--count=1.5", "--what"])
def test_run_heartbeats_with_an_argument_of_another_kind_is_refused(arguments: str) -> None:
    with pytest.raises(CommandError):
        call_command("run_heartbeats", arguments)


class RemoteLayerThat(RemoteLayer):
    """Call ``what`` whenever something is sent to a group, with the number of the call."""

    def __init__(self, what: Any) -> None:
        super().__init__()
        self.what, self.number = what, 0

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        self.number += 1
        self.what(self.number)
        await self.inner.group_send(group, message)


def test_run_heartbeats_beats_on_slots_so_many_times() -> None:
    layer = use_layer(RemoteLayer())
    assert output_of("run_heartbeats", interval=0.05, count=3) == "Stopped after 3 beats.\n"
    slots = [message["slot"] for message in layer.sent]
    assert [round(slot / 0.05, 3) % 1 for slot in slots] == [0, 0, 0]
    assert len(set(slots)) == 3


def test_run_heartbeats_takes_its_interval_from_the_settings(settings: Any) -> None:
    settings.REALTIME = {"HEARTBEAT_INTERVAL": 0.05}
    use_layer(RemoteLayer())
    assert output_of("run_heartbeats", count=1) == "Stopped after 1 beats.\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_heartbeats_stops_at_a_signal(number: int) -> None:
    use_layer(RemoteLayerThat(lambda call: signal.raise_signal(number) if call == 2 else None))
    assert output_of("run_heartbeats", interval=0.05) == "Stopped after 2 beats.\n"


def test_run_heartbeats_goes_on_through_an_outage(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run_heartbeats, "BACKOFF", (0.001,))

    def fail(call: int) -> None:
        if 2 <= call <= 5:
            raise ConnectionError

    caplog.set_level("INFO", "realtime.heartbeats")
    use_layer(RemoteLayerThat(fail))
    assert output_of("run_heartbeats", interval=0.05, count=3) == "Stopped after 3 beats.\n"
    events = [record.message.split()[0] for record in caplog.records if record.name == "realtime.heartbeats"]
    assert events == ["event=heartbeats_started", "event=heartbeat_failed", "event=heartbeats_resumed"]


def test_run_heartbeats_gives_up_a_beat_whose_slot_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_heartbeats, "BACKOFF", (0.01,))
    slots: list[float] = []

    async def abeat(slot: float) -> None:
        slots.append(slot)
        if len(set(slots)) < 3:
            raise LayerUnavailable

    monkeypatch.setattr(run_heartbeats, "abeat", abeat)
    use_layer(RemoteLayer())
    assert output_of("run_heartbeats", interval=0.05, count=1) == "Stopped after 1 beats.\n"
    assert len(set(slots)) == 3


def test_run_heartbeats_stops_with_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = [1000]
    monkeypatch.setattr(run_heartbeats.os, "getppid", lambda: parents[0])
    monkeypatch.setattr(run_heartbeats, "PARENT_CHECK", 0.01)
    use_layer(RemoteLayerThat(lambda call: parents.__setitem__(0, 1)))
    assert output_of("run_heartbeats", interval=0.05, with_parent=True) == "Stopped after 1 beats.\n"


def test_run_heartbeats_with_its_parent_ends_at_the_count_too() -> None:
    use_layer(RemoteLayer())
    assert output_of("run_heartbeats", interval=0.05, count=1, with_parent=True) == "Stopped after 1 beats.\n"


# close_connections


def test_close_connections_on_the_in_memory_layer_is_refused() -> None:
    with pytest.raises(CommandError, match="reaches only this process, which has no connections"):
        call_command("close_connections")


@pytest.mark.parametrize("code", ["0", "999", "1004", "1005", "1015", "2999", "5000"])
def test_close_connections_with_an_illegal_code_lists_the_legal_ones(code: str) -> None:
    use_layer(RemoteLayer())
    with pytest.raises(CommandError, match=f"{code} is not a close code .* 1000-1003, 1006 .*, 1007-1014, 3000-4999"):
        call_command("close_connections", f"--code={code}")
    assert the_layer().sent == []


def test_close_connections_with_a_reason_over_123_bytes_is_refused() -> None:
    use_layer(RemoteLayer())
    with pytest.raises(CommandError, match="124 bytes of UTF-8, at most 123"):
        call_command("close_connections", reason="é" * 62)
    assert the_layer().sent == []


@pytest.mark.parametrize("spread", ["-1", "nan", "inf"])
def test_close_connections_with_a_spread_that_cannot_be_is_refused(spread: str) -> None:
    use_layer(RemoteLayer())
    with pytest.raises(CommandError, match="spread"):
        call_command("close_connections", f"--spread={spread}")
    assert the_layer().sent == []


def test_close_connections_while_the_layer_is_down_says_so() -> None:
    use_layer(RemoteLayer()).failing = True
    with pytest.raises(CommandError, match="the channel layer failed"):
        call_command("close_connections")


def test_close_connections_says_how_many_on_how_many_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    use_layer(RemoteLayer())
    outcome, asked = publishing.CloseOutcome(2, 7, None), []

    def closing(message: Any, **options: Any) -> Any:
        asked.append((message.code, message.reason, options))
        return outcome

    monkeypatch.setattr(close_connections, "close_connections", closing)
    text = output_of("close_connections", code=4000, reason="bye", topic="news", spread=2.5)
    assert text == "Closed 7 connections on 2 servers.\n"
    assert asked == [(4000, "bye", {"topic": "news", "user": None, "spread": 2.5})]


def test_close_connections_fails_when_a_server_did_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    use_layer(RemoteLayer())
    outcome = publishing.CloseOutcome(1, 3, 1)
    monkeypatch.setattr(close_connections, "close_connections", lambda message, **options: outcome)
    with pytest.raises(CommandError, match="1 more servers did not answer in time"):
        call_command("close_connections", stdout=StringIO())


def test_close_connections_reaches_a_hub_of_the_publishing_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    use_layer(RemoteLayer())
    loop = publishing._background.loop()

    async def start() -> Any:
        hub = get_hub()
        await until(lambda: hub.link.up)
        return hub

    hub = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    assert output_of("close_connections") == "Closed 0 connections on 1 servers.\n"
    asyncio.run_coroutine_threadsafe(hub.stop(), loop).result(10)


# serve


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--workers=0"], "--workers takes a whole number from 1 on, not 0"),
        (["--workers=-1"], "--workers takes a whole number from 1 on, not -1"),
        (["--workers=2", "--server=daphne"], "Daphne is one process: use --server uvicorn"),
        (["--workers=2"], "2 workers need Redis: .* Set REDIS_URL"),
        (["--workers=2", "--server=uvicorn"], "2 workers need Redis: .* Set REDIS_URL"),
        (["--server=gunicorn"], "invalid choice: 'gunicorn'"),
        (["--port=http"], "invalid int value: 'http'"),
    ],
)
def test_serve_with_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch, arguments: list[str], reason: str) -> None:
    monkeypatch.setattr(embedded_redis, "executable", lambda: None)
    with pytest.raises(CommandError, match=reason):
        call_command("serve", *arguments)


def test_serve_without_uvicorn_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(CommandError, match="uvicorn is not installed: pip install 'demows"):
        call_command("serve", server="uvicorn")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Keep what a server would have been started with."""
    calls: list[Any] = []
    monkeypatch.setattr(serve, "_run_daphne", lambda *arguments: calls.append(("daphne", *arguments)))
    monkeypatch.setattr(serve, "_run_uvicorn", lambda *arguments: calls.append(("uvicorn", *arguments)))
    monkeypatch.setattr(serve, "_run_workers", lambda *arguments: calls.append(("workers", *arguments)))
    return calls


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("options", "call"),
    [
        ({}, ("daphne", APPLICATION, "localhost", 8080)),
        ({"host": "::1", "port": 9000}, ("daphne", APPLICATION, "::1", 9000)),
        ({"server": "uvicorn"}, ("uvicorn", APPLICATION, "localhost", 8080)),
    ],
)
def test_serve_runs_the_server(served: list[Any], options: Any, call: Any) -> None:
    output_of("serve", **options)
    assert served == [call]


@pytest.mark.django_db(transaction=True)
def test_serve_with_several_workers_runs_uvicorn(served: list[Any]) -> None:
    use_layer(RemoteLayer())
    output_of("serve", workers=3, no_heartbeats=True)
    assert served == [("workers", APPLICATION, "localhost", 8080, 3, None)]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("host", "url"), [("localhost", "ws://localhost:8080/"), ("::1", "ws://[::1]:8080/"), ("0.0.0.0", "ws://0.0.0.0:8")]
)
def test_serve_prints_the_addresses(served: list[Any], host: str, url: str) -> None:
    text = output_of("serve", host=host)
    assert f"WebSocket  {url}" in text
    assert '{"type":"subscribe_request","topic":"heartbeat"}' in text


@pytest.mark.django_db(transaction=True)
def test_serve_with_debug_creates_an_administrator_once(served: list[Any], settings: Any) -> None:
    settings.DEBUG = True
    first, second = output_of("serve"), output_of("serve")
    password = first.split("with the password ")[1].split()[0]
    user = authenticate(username="admin", password=password)
    assert user is not None
    assert user.is_superuser
    assert "password" not in second
    assert User.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_serve_with_debug_where_somebody_else_is_called_admin_does_not_fail(served: list[Any], settings: Any) -> None:
    settings.DEBUG = True
    User.objects.create_user("admin", password="theirs")
    output_of("serve")
    assert not User.objects.get(username="admin").is_superuser
    assert len(served) == 1


@pytest.mark.django_db(transaction=True)
def test_serve_without_debug_creates_nobody(served: list[Any]) -> None:
    assert "password" not in output_of("serve")
    assert User.objects.count() == 0


@pytest.mark.django_db(transaction=True)
def test_serve_ends_at_sigterm_by_cleaning_up(served: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "_run_daphne", lambda *_: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as caught:
        output_of("serve")
    assert caught.value.code == 0


class Child:
    """Be a process beside the server that is never started."""

    log: list[Any] = []

    def __init__(self, *command: str) -> None:
        self.command = command

    def start(self) -> None:
        self.log.append(self.command[3:])

    def stop(self) -> None:
        self.log.append("stopped")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("layer", "options", "beats"), [(RemoteLayer, {}, 1), (RemoteLayer, {"no_heartbeats": True}, 0), (Layer, {}, 0)]
)
def test_serve_runs_heartbeats_where_they_are_needed(
    served: list[Any], monkeypatch: pytest.MonkeyPatch, layer: Any, options: Any, beats: int
) -> None:
    monkeypatch.setattr(serve, "Child", Child)
    monkeypatch.setattr(Child, "log", [])
    use_layer(layer())
    output_of("serve", **options)
    assert Child.log == [("run_heartbeats", "--with-parent", str(os.getpid()))] * beats + ["stopped"]


# publish


class Order(BaseModel):
    status: str


def test_publish_sends_json() -> None:
    Topic("orders.{number:int}", Order)
    use_layer(RemoteLayer())
    assert output_of("publish", "orders.7", '{"status": "paid"}') == "Published on 'orders.7'.\n"
    [message] = the_layer().sent
    assert (message["topic"], message["payload"]) == ("orders.7", '{"status":"paid"}')


def test_publish_reads_the_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    Topic("news")
    use_layer(RemoteLayer())
    monkeypatch.setattr("sys.stdin", StringIO("[1, 2]"))
    output_of("publish", "news", "-")
    assert the_layer().sent[0]["payload"] == "[1,2]"


@pytest.mark.parametrize(
    ("topic", "data", "problem"),
    [
        ("orders.7", "{", "the data is not valid JSON"),
        ("orders.7", "NaN", "the data is not valid JSON"),
        ("orders.7", "{}", "does not fit the topic's model: status: Field required"),
        ("orders.7", "1", "does not fit the topic's model: data: Input should be"),
        ("orders.07", "{}", "no topic 'orders.07' is declared"),
        ("heartbeat", "{}", "is the server's own"),
    ],
)
def test_publish_of_what_cannot_be_published_is_refused(topic: str, data: str, problem: str) -> None:
    Topic("orders.{number:int}", Order)
    use_layer(RemoteLayer())
    with pytest.raises(CommandError, match=problem):
        output_of("publish", topic, data)
    assert the_layer().sent == []


def test_publish_on_the_in_memory_layer_is_refused() -> None:
    Topic("news")
    with pytest.raises(CommandError, match="set REDIS_URL"):
        output_of("publish", "news", "1")


def test_publish_while_the_layer_is_down_is_an_error() -> None:
    Topic("news")
    use_layer(RemoteLayer()).failing = True
    with pytest.raises(CommandError, match="the channel layer failed"):
        output_of("publish", "news", "1")


def test_serve_keeps_what_the_site_is_made_of_out_of_garbage_collection() -> None:
    before = gc.get_freeze_count()
    try:
        serve._load("tests.settings:application")
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()


def test_serve_does_not_hide_what_is_wrong_with_the_site() -> None:
    with pytest.raises(ModuleNotFoundError, match="tests.no_such_module"):
        serve._load("tests.no_such_module:application")
