"""Metrics: each instrument and what moves it, what happens to them with several hubs, and what they may not grow to."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from channels_redis.pubsub import RedisPubSubChannelLayer
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from realtime import Topic, apublish, metrics, telemetry
from realtime import hub as hub_module
from realtime.conf import get_settings
from realtime.consumers import RealtimeConsumer
from realtime.events import PublicationEvent
from realtime.exceptions import RequestRefused
from realtime.hub import Hub, get_hub
from realtime.layers import waiting
from realtime.metrics import COUNTER, INSTRUMENTS, Instrument
from realtime.publishing import abeat
from realtime.registry import STARTED, Registry
from realtime.telemetry import DURATIONS, MOST_OUTCOMES, Buckets, LoopLag, Stats
from realtime.threads import get_threads

from .memory import (
    TIMEOUT,
    Client,
    Layer,
    clean_process,  # noqa: F401
    connected,
    local_connection,
    started_hub,
    subscribed,
    the_layer,
    until,
    use_layer,
)
from .test_tracing import Boom, configure, declare, no_handlers_left, raising, run_script, settle  # noqa: F401

Attributes = frozenset[tuple[str, Any]]
ORDERS = "orders.{order_id:int}"


class Meters:
    """Collect what a real meter provider is told."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def collect(self) -> dict[str, dict[Attributes, float]]:
        """Return the value of each series of each instrument, by its attributes."""
        data = self.reader.get_metrics_data()
        return {
            metric.name: {frozenset((point.attributes or {}).items()): point.value for point in metric.data.data_points}
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def value(self, name: str, attributes: dict[str, Any] | None = None) -> float | None:
        """Return the value of one series, or None where there is none."""
        return self.collect().get(name, {}).get(frozenset((attributes or {}).items()))


@pytest.fixture
def meters(settings: Any) -> Meters:
    meters = Meters()
    configure(settings, METER_PROVIDER=meters.provider, DRAIN_SECONDS=0.0, DRAIN_TIMEOUT=0.1)
    return meters


def counters() -> list[str]:
    return [instrument.name for instrument in INSTRUMENTS if instrument.kind == COUNTER]


def assert_grown(before: dict[str, dict[Attributes, float]], after: dict[str, dict[Attributes, float]]) -> None:
    """Assert that no series of any counter is less than it was, or has gone."""
    for name in counters():
        for attributes, value in before.get(name, {}).items():
            assert after[name].get(attributes, -1) >= value, (name, attributes)


# Each instrument, and what moves it


class Scene:
    """Be what causes act in: what they begin is there until the instruments were read."""

    def __init__(self, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stack = stack
        self.monkeypatch = monkeypatch
        self.hub: Hub

    async def connect(self, **options: Any) -> Client:
        return await self.stack.enter_async_context(connected(**options))

    async def wire_that_is_full(self, buffered: int) -> Any:
        connection = local_connection(self.hub)
        connection.wire.buffered = buffered
        connection.congested()
        return connection


async def nothing(scene: Scene) -> None: ...


async def connect(scene: Scene) -> None:
    await (await scene.connect()).assert_nothing_waits()


async def stop(scene: Scene) -> None:
    await scene.hub.stop()


async def subscribe_twice(scene: Scene) -> None:
    client = await scene.connect()
    for number in (1, 2):
        await client.subscribe(f"orders.{number}")


async def refuse(scene: Scene) -> None:
    client = await scene.connect()
    await client.ask(type="echo_request", echo="", err=True)


async def publish_to_two(scene: Scene) -> None:
    clients = [await scene.connect() for _ in range(2)]
    for client in clients:
        await client.subscribe("orders.1")
    await apublish("orders.1", 1)
    for client in clients:
        await client.next()


async def publish_numbers(scene: Scene, *numbers: int) -> None:
    await subscribed(scene.hub, "orders.1")
    for number in numbers:
        scene.hub.act(PublicationEvent(topic="orders.1", payload="1", sent_at=0, publisher="p", sequence=number))


async def repeat(scene: Scene) -> None:
    await publish_numbers(scene, 1, 2, 2)


async def lose(scene: Scene) -> None:
    await publish_numbers(scene, 1, 5)


async def fill_outbox(scene: Scene) -> None:
    await scene.wire_that_is_full(500)
    await until(lambda: scene.hub.stats.congested)


async def overfill_outbox(scene: Scene) -> None:
    connection = await scene.wire_that_is_full(get_settings().OUTBOX_LIMIT)
    connection.write(b"too much")


async def ask_too_often(scene: Scene) -> None:
    client = await scene.connect()
    await client.ask(type="echo_request", echo="")
    assert (await client.ask(type="echo_request", echo=""))["code"] == "RATE_LIMITED"


async def leave(scene: Scene) -> None:
    async with connected() as client:
        await client.assert_nothing_waits()
        await client.disconnect(code=4001)


async def come_from_elsewhere(scene: Scene) -> None:
    client = Client(RealtimeConsumer.as_asgi(), "/ws/", headers=[(b"origin", b"https://evil.example")])
    assert (await client.connect(TIMEOUT))[0] is False
    await client.wait()


async def come_with_a_token(scene: Scene) -> None:
    await scene.connect(headers=[(b"authorization", b"Bearer abc")])


async def lose_the_layer(scene: Scene) -> None:
    the_layer().failing = True
    for shard in scene.hub.link._shards:
        shard.probe_now.set()
    await until(lambda: not scene.hub.link.up)


async def lose_the_layer_for_a_while(scene: Scene) -> None:
    await lose_the_layer(scene)
    the_layer().failing = False
    await until(lambda: scene.hub.link.up)


async def let_messages_wait(scene: Scene) -> None:
    queue = the_layer().channels[scene.hub.link.channel]
    for _ in range(3):  # nobody takes them before the next turn of the event loop
        queue.put_nowait((time.time() + 60, {"type": "nothing"}))


async def beat(scene: Scene) -> None:
    client = await scene.connect()
    await client.subscribe("heartbeat")
    await client.next()
    await abeat(time.time())
    await client.next()


async def miss_beats(scene: Scene) -> None:
    await beat(scene)
    scene.hub.link.groups["heartbeat"].since = scene.hub.last_beat = time.monotonic() - 4 * 3600.0


async def keep_the_registry(scene: Scene) -> None:
    registry = Registry(scene.hub)
    registry._task.cancel()  # it is not to write
    scene.hub.observers.append(registry)
    scene.stack.callback(scene.hub.observers.remove, registry)
    registry._began -= 100


async def hold_up_the_loop(scene: Scene) -> None:
    time.sleep(0.3)  # noqa: ASYNC251 - that is what is measured
    for _ in range(3):
        await asyncio.sleep(0)


async def occupy_threads(scene: Scene) -> None:
    go_on = threading.Event()
    for _ in range(2):
        running = asyncio.ensure_future(get_threads().run(go_on.wait, TIMEOUT))
        scene.stack.push_async_callback(asyncio.wait, [running])
    scene.stack.callback(go_on.set)
    await until(lambda: get_threads().busy == 2)


async def drop_spans(scene: Scene) -> None:
    with scene.monkeypatch.context() as patch:
        patch.setattr(telemetry, "WAITING_JOBS", 0)
        for _ in range(4):
            assert not telemetry.worker.post(lambda: None, "span")
        assert not telemetry.worker.post(lambda: None)  # which is none


class Case(NamedTuple):
    """Say what causes an instrument to move, and by how much, or to what."""

    cause: Callable[[Scene], Awaitable[None]]
    by: float | None = None
    attributes: dict[str, Any] = {}
    fits: Callable[[float], bool] | None = None
    """Judges the value afterwards."""
    settings: dict[str, Any] = {}


ECHO = {"realtime.request.type": "echo_request"}
TOPIC = {"messaging.destination.template": ORDERS}
CASES: dict[str, list[Case]] = {
    "realtime.connections": [Case(connect, 1)],
    "realtime.connections.active": [Case(connect, 1), Case(leave, 0)],
    "realtime.start_time": [Case(nothing, fits=lambda value: value == STARTED <= time.time())],
    "realtime.started": [Case(nothing, fits=lambda value: value == 1), Case(stop, -1)],
    "realtime.subscriptions": [Case(subscribe_twice, 2, TOPIC)],
    "realtime.requests": [
        Case(connect, 1, {**ECHO, "realtime.outcome": "OK"}),
        Case(refuse, 1, {**ECHO, "realtime.outcome": "ASKED_BY_CLIENT"}),
    ],
    "realtime.request.duration.bucket": [
        Case(connect, 1, {**ECHO, "le": "+Inf"}),
        Case(connect, 1, {**ECHO, "le": "10.0"}),
    ],
    "realtime.request.duration.count": [Case(connect, 1, ECHO)],
    "realtime.request.duration.sum": [Case(connect, attributes=ECHO, fits=lambda value: 0 < value < TIMEOUT)],
    "realtime.publications": [Case(publish_to_two, 1, TOPIC)],
    "realtime.deliveries": [Case(publish_to_two, 2, TOPIC)],
    "realtime.delivery.lag.bucket": [Case(publish_to_two, 1, {"le": "+Inf"})],
    "realtime.delivery.lag.count": [Case(publish_to_two, 1)],
    "realtime.delivery.lag.sum": [Case(publish_to_two, fits=lambda value: 0 < value < TIMEOUT)],
    "realtime.publications.dropped": [Case(repeat, 1, {"realtime.reason": "repeated"})],
    "realtime.gaps": [Case(lose, 1)],
    "realtime.publications.lost": [Case(lose, 3)],
    "realtime.outbox.size": [Case(fill_outbox, 500)],
    "realtime.connections.congested": [Case(fill_outbox, 1)],
    "realtime.slow_consumers": [Case(overfill_outbox, 1)],
    "realtime.rate_limited": [Case(ask_too_often, 1, settings={"RATE_LIMIT": 5.0, "RATE_BURST": 1})],
    "realtime.closes": [
        Case(leave, 1, {"realtime.close.code": "4xxx", "realtime.close.side": "client"}),
    ],
    "realtime.handshakes.refused": [Case(come_from_elsewhere, 1, {"realtime.reason": "origin"})],
    "realtime.handshakes.unidentified": [Case(come_with_a_token, 1, settings={"AUTHENTICATE": raising(Boom("no"))})],
    "realtime.layer.up": [Case(nothing, fits=lambda value: value == 1), Case(lose_the_layer, -1)],
    "realtime.layer.reconnects": [Case(lose_the_layer_for_a_while, 1)],
    "realtime.layer.queue": [Case(let_messages_wait, 3)],
    "realtime.heartbeat.age": [Case(beat, fits=lambda value: 0 <= value < TIMEOUT)],
    "realtime.heartbeat.missing": [Case(beat, 0), Case(miss_beats, 1)],
    "realtime.registry.lag": [Case(keep_the_registry, fits=lambda value: 100 <= value < 100 + TIMEOUT)],
    "realtime.event_loop.lag": [Case(hold_up_the_loop, fits=lambda value: value > 0.15)],
    "realtime.threads.busy": [Case(occupy_threads, 2)],
    "realtime.threads.limit": [Case(nothing, fits=lambda value: value == 3, settings={"SYNC_THREADS": 3})],
    "realtime.spans.dropped": [Case(drop_spans, 4)],
}
ALL = [(name, case) for name, cases in CASES.items() for case in cases]


def test_every_instrument_has_a_case() -> None:
    assert list(CASES) == [instrument.name for instrument in INSTRUMENTS]


@pytest.mark.parametrize(("name", "case"), ALL, ids=[f"{name}-{case.cause.__name__}" for name, case in ALL])
async def test_instrument_moves_with_what_it_measures(
    settings: Any, monkeypatch: pytest.MonkeyPatch, name: str, case: Case
) -> None:
    monkeypatch.setattr(hub_module, "LOOK_INTERVAL", 0.01)
    meters = Meters()
    configure(settings, **{"METER_PROVIDER": meters.provider, "DRAIN_SECONDS": 0.0, **case.settings})
    Topic(ORDERS, public=True)
    async with AsyncExitStack() as stack:
        scene = Scene(stack, monkeypatch)
        scene.hub = await started_hub()
        settle()
        before = meters.value(name, case.attributes) or 0
        await case.cause(scene)
        after = meters.value(name, case.attributes)
        assert after is not None
        if case.by is not None:
            assert after - before == case.by
        if case.fits is not None:
            assert case.fits(after)


@pytest.fixture
async def busy(meters: Meters, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Meters]:
    """Have some of everything happen."""
    Topic(ORDERS, public=True)
    async with AsyncExitStack() as stack:
        scene = Scene(stack, monkeypatch)
        scene.hub = await started_hub()
        for cause in (
            lose_the_layer_for_a_while,
            connect,
            refuse,
            publish_to_two,
            lose,
            leave,
            come_from_elsewhere,
            beat,
        ):
            await cause(scene)
        settle()
        yield meters


async def test_series_have_the_attributes_that_their_instrument_declares(busy: Meters) -> None:
    declared = {instrument.name: {key.value for key in instrument.attributes} for instrument in INSTRUMENTS}
    collected = busy.collect()
    assert set(collected) <= set(declared)
    for name, series in collected.items():
        assert {frozenset(key for key, _ in attributes) for attributes in series} == {frozenset(declared[name])}, name


async def test_frames_that_hold_no_request_are_of_no_type(meters: Meters) -> None:
    async with connected() as client:
        await client.send_to(text_data="{")
        await client.next()
        settle()
        attributes = {"realtime.request.type": "invalid", "realtime.outcome": "BAD_REQUEST"}
        assert meters.value("realtime.requests", attributes) == 1


async def test_site_s_own_request_is_counted_under_its_type(meters: Meters) -> None:
    declare(lambda: None)
    async with connected() as client:
        await client.ask(type="ask_request")
        settle()
        assert (
            meters.value("realtime.requests", {"realtime.request.type": "ask_request", "realtime.outcome": "OK"}) == 1
        )


async def test_conflated_publications_are_counted_as_dropped(meters: Meters) -> None:
    hub = await started_hub()
    connection = await subscribed(hub, "orders.1")
    hub.link.groups["orders.1"].latest = True
    connection.wire.buffered = 500
    connection.congested()
    for number in range(3):
        hub.act(PublicationEvent(topic="orders.1", payload="1", sent_at=0, publisher="p", sequence=number + 1))
    settle()
    assert meters.value("realtime.publications.dropped", {"realtime.reason": "conflated"}) == 2


# Distributions


async def test_buckets_are_cumulative_and_agree_with_count_and_sum(busy: Meters) -> None:
    collected = busy.collect()
    for name in ("realtime.request.duration", "realtime.delivery.lag"):
        for attributes, count in collected[f"{name}.count"].items():
            bounds = [str(bound) for bound in DURATIONS] + ["+Inf"]
            numbers = [collected[f"{name}.bucket"][attributes | {("le", bound)}] for bound in bounds]
            assert count > 0
            assert all(one <= other for one, other in pairwise(numbers))
            assert numbers[-1] == count
            each = [after - before for before, after in pairwise([0, *numbers])]
            least = sum(number * bound for number, bound in zip(each, (0, *DURATIONS), strict=True))
            most = sum(number * bound for number, bound in zip(each, (*DURATIONS, float("inf")), strict=True) if number)
            assert least <= collected[f"{name}.sum"][attributes] <= most


@given(st.lists(st.floats(0, 20) | st.sampled_from(DURATIONS)))
def test_bucket_counts_what_took_up_to_its_bound(seconds: list[float]) -> None:
    buckets, other = Buckets(DURATIONS), Buckets(DURATIONS)
    for number, value in enumerate(seconds):
        (other if number % 2 else buckets).add(value)
    buckets.absorb(other)
    for number, bound in enumerate(DURATIONS):
        assert sum(buckets.counts[: number + 1]) == sum(value <= bound for value in seconds)
    assert sum(buckets.counts) == len(seconds)
    assert buckets.total == pytest.approx(sum(seconds))


# Several hubs


@pytest.mark.parametrize("stopped", [True, False])
async def test_counters_do_not_shrink_when_a_hub_takes_the_place_of_another(busy: Meters, stopped: bool) -> None:
    before = busy.collect()
    first = get_hub()
    if stopped:
        await first.stop()
    use_layer(Layer())
    second = await started_hub()
    assert second is not first
    await until(lambda: not (first.link.running or hub_module._stopping))
    async with connected() as client:
        await client.assert_nothing_waits()
        after = busy.collect()
    assert_grown(before, after)
    [connections] = after["realtime.connections"].values()
    assert connections == before["realtime.connections"][frozenset()] + 1
    assert list(after["realtime.connections.active"].values()) == [1]
    assert sum(after["realtime.subscriptions"].values()) == 0


async def test_totals_do_not_shrink_while_a_hub_s_figures_are_kept(
    meters: Meters, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = await started_hub()
    async with connected() as client:
        await client.assert_nothing_waits()
    settle()
    absorb = Stats.absorb
    seen: list[float | None] = []
    threads: list[threading.Thread] = []

    def look_meanwhile(self: Stats, other: Stats) -> None:
        threads.append(threading.Thread(target=lambda: seen.append(meters.value("realtime.connections"))))
        threads[-1].start()
        threads[-1].join(0.2)  # it may have to wait
        absorb(self, other)

    monkeypatch.setattr(Stats, "absorb", look_meanwhile)
    await hub.stop()
    for thread in threads:
        await asyncio.to_thread(thread.join, TIMEOUT)
    assert seen
    assert set(seen) == {1}


def on_another_loop(work: Callable[[], Awaitable[None]]) -> threading.Thread:
    """Do ``work`` on an event loop of a thread of its own, and stop its hub."""

    async def main() -> None:
        try:
            await work()
        finally:
            await get_hub().stop()

    thread = threading.Thread(target=asyncio.run, args=[main()])
    thread.start()
    return thread


async def test_counters_do_not_shrink_when_an_event_loop_ends(meters: Meters) -> None:
    async def work() -> None:
        async with connected() as client:
            for _ in range(3):
                await client.assert_nothing_waits()

    for number in range(1, 4):
        thread = on_another_loop(work)
        await asyncio.to_thread(thread.join, TIMEOUT)
        settle()
        assert meters.value("realtime.connections") == number
        assert meters.value("realtime.connections.active") == 0
        assert meters.value("realtime.requests", {**ECHO, "realtime.outcome": "OK"}) == 3 * number
        assert meters.value("realtime.layer.up") is None


async def test_hub_whose_event_loop_ended_before_it_could_stop_is_not_there_any_more(meters: Meters) -> None:
    async def main() -> None:
        hub = await started_hub()
        local_connection(hub)

    thread = threading.Thread(target=asyncio.run, args=[main()])
    thread.start()
    await asyncio.to_thread(thread.join, TIMEOUT)
    settle()
    assert meters.value("realtime.connections") == 1
    assert meters.value("realtime.connections.active") == 0
    assert meters.value("realtime.layer.up") is None


async def test_figures_of_two_hubs_are_added_up_by_one_set_of_instruments(
    meters: Meters, caplog: pytest.LogCaptureFixture
) -> None:
    Topic(ORDERS, public=True)
    there, done = threading.Barrier(3), threading.Event()

    async def work() -> None:
        async with connected() as client:
            await client.subscribe("orders.1")
            await client.assert_nothing_waits()
            await asyncio.to_thread(there.wait, TIMEOUT)
            await asyncio.to_thread(done.wait, TIMEOUT)

    threads = [on_another_loop(work) for _ in range(2)]
    try:
        await asyncio.to_thread(there.wait, TIMEOUT)
        settle()
        assert meters.value("realtime.connections") == 2
        assert meters.value("realtime.connections.active") == 2
        assert meters.value("realtime.subscriptions", TOPIC) == 2
        assert meters.value("realtime.requests", {**ECHO, "realtime.outcome": "OK"}) == 2
        assert meters.value("realtime.request.duration.bucket", {**ECHO, "le": "+Inf"}) == 2
        assert meters.value("realtime.layer.up") == 1
    finally:
        done.set()
        for thread in threads:
            await asyncio.to_thread(thread.join, TIMEOUT)
    assert meters.value("realtime.connections") == 2
    assert meters.value("realtime.connections.active") == 0
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


async def test_instruments_are_created_once_though_hubs_begin_at_once(
    meters: Meters, caplog: pytest.LogCaptureFixture
) -> None:
    together = threading.Barrier(8)

    async def work() -> None:
        await asyncio.to_thread(together.wait, TIMEOUT)
        await started_hub()

    threads = [on_another_loop(work) for _ in range(8)]
    for thread in threads:
        await asyncio.to_thread(thread.join, TIMEOUT)
    settle()
    assert "has been created already" not in caplog.text
    assert meters.value("realtime.connections") == 0


async def test_each_of_many_providers_gets_the_instruments(settings: Any) -> None:
    for _ in range(8):
        meters = Meters()
        configure(settings, METER_PROVIDER=meters.provider, DRAIN_SECONDS=0.0)
        use_layer(Layer())
        hub = await started_hub()
        settle()
        assert meters.value("realtime.layer.up") == 1
        await hub.stop()
        settle()
        del meters, hub
        gc.collect()


async def test_provider_that_cannot_be_a_key_is_no_worse_than_another(settings: Any) -> None:
    class Unhashable:
        __slots__ = ("_provider",)

        def __init__(self, provider: Any) -> None:
            self._provider = provider

        def __eq__(self, other: object) -> bool:
            return self is other

        def get_meter(self, *arguments: Any) -> Any:
            return self._provider.get_meter(*arguments)

    meters = Meters()
    configure(settings, METER_PROVIDER=Unhashable(meters.provider))
    async with connected() as client:
        await client.assert_nothing_waits()
        settle()
        assert meters.value("realtime.connections") == 1


async def test_totals_never_seem_to_shrink_while_hubs_come_and_go(meters: Meters) -> None:
    await started_hub()
    settle()
    seen: list[float] = []
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            seen.append(meters.value("realtime.connections") or 0)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(60):
            use_layer(Layer())
            hub = await started_hub()
            hub.stats.accepted += 1000
            hub.stats.flows.update((f"pattern {number}", telemetry.Flow()) for number in range(200))
            await hub.stop()
    finally:
        over.set()
        await asyncio.to_thread(reader.join, TIMEOUT)
    assert len(seen) > 10
    assert seen == sorted(seen)
    assert max(seen) <= 60_000


def test_forked_child_does_not_report_what_its_parent_counts() -> None:
    lines = run_script("""
import asyncio
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from realtime.hub import get_hub

reader = InMemoryMetricReader()
tests.settings.REALTIME["METER_PROVIDER"] = MeterProvider([reader])
from realtime.conf import _load
_load.cache_clear()

def tell():
    data = reader.get_metrics_data()
    points = {
        metric.name: metric.data.data_points[0].value
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics for metric in scope.metrics if metric.data.data_points
    }
    names = ("realtime.connections", "realtime.layer.up")
    os.write(1, (" ".join(str(points.get(name)) for name in names) + "\\n").encode())

async def main():
    hub = get_hub()
    await hub.link._shards[0].started.wait()
    hub.stats.accepted = 5
    settle()
    child = os.fork()
    if not child:
        tell()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    tell()

asyncio.run(main())
""")
    assert lines == [["0", "None"], ["5", "1"]]


# Reading while figures change


@pytest.fixture
def restless() -> Iterator[None]:
    """Collect garbage at nearly every allocation, and let other threads run then, as finalizers may."""

    def give_way(phase: str, _: Any) -> None:
        time.sleep(0)

    thresholds = gc.get_threshold()
    gc.callbacks.append(give_way)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50, 1_000_000, 1_000_000)
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()
    gc.callbacks.remove(give_way)


@pytest.mark.usefixtures("restless")
async def test_lag_of_a_loop_that_is_held_up_now_is_known_meanwhile() -> None:
    lag = LoopLag(asyncio.get_running_loop())
    time.sleep(LoopLag.INTERVAL + 0.3)  # noqa: ASYNC251 - that is what is measured
    assert lag.greatest >= 0.3
    lag.stop()


async def test_reading_while_the_loop_counts_does_not_fail(meters: Meters, caplog: pytest.LogCaptureFixture) -> None:
    hub = await started_hub()
    settle()
    over = threading.Event()

    def read() -> None:
        try:
            for _ in range(20):
                meters.collect()
        finally:
            over.set()

    kinds = [type(f"Kind{number}", (), {}) for number in range(300)]
    reader = threading.Thread(target=read)
    reader.start()
    number = 0
    while not over.is_set():
        stats = hub.stats
        for _ in range(200):
            number += 1
            stats.flow(f"pattern {number % 300}").deliveries += 1
            stats.requests[kinds[number % 300]].add(f"CODE_{number % 60}", 0.1)
            stats.closed(number % 65_536, "client")
            if number % 300 == 0:
                stats.flows.clear()
                stats.requests.clear()
                stats.closes.clear()
        await asyncio.sleep(0)
    await asyncio.to_thread(reader.join, TIMEOUT)
    assert number > 1000
    assert [record.getMessage() for record in caplog.records if record.name.startswith("opentelemetry")] == []


async def test_figure_that_cannot_be_read_leaves_the_others(
    meters: Meters, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Instrument("realtime.broken", COUNTER, "", "", (), raising(Boom("no figure")))
    monkeypatch.setattr(metrics, "INSTRUMENTS", [broken, *INSTRUMENTS])
    async with connected() as client:
        await client.assert_nothing_waits()
        settle()
        assert meters.value("realtime.connections") == 1
        assert meters.value("realtime.broken") is None
        await client.assert_nothing_waits()
    caplog.clear()  # the SDK says so


async def test_queue_is_known_from_another_thread_on_redis_pubsub() -> None:
    layer = RedisPubSubChannelLayer(hosts=["redis://localhost:1"])
    layer.channels["realtime.1"] = asyncio.Queue()
    layer.channels["realtime.1"].put_nowait(1)
    loop = asyncio.get_running_loop()
    assert await asyncio.to_thread(waiting, layer, "realtime.1", loop) == 1
    assert await asyncio.to_thread(waiting, layer, "realtime.2", loop) is None


# What clients send does not make series


def series(meters: Meters) -> dict[str, int]:
    return {name: len(values) for name, values in meters.collect().items()}


MANY = 5_000


async def test_what_clients_invent_makes_no_series(meters: Meters, settings: Any) -> None:
    configure(settings, METER_PROVIDER=meters.provider, RATE_LIMIT=None, DRAIN_SECONDS=0.0)
    Topic("news.{name}", public=True)
    async with connected() as client:
        invented = 0

        async def invent() -> None:
            nonlocal invented
            invented += 1
            await client.ask(type=f"kind{invented}_request")
            await client.ask(type="subscribe_request", topic=f"nowhere {invented}")
            await client.ask(type="unsubscribe_request", topic=f"news.{invented}")
            await client.ask(type="echo_request", echo="", reqId=str(invented))

        await invent()
        settle()
        before = series(meters)
        for _ in range(MANY // 4):
            await invent()
        assert series(meters) == before


async def test_topics_of_one_pattern_are_one_series(meters: Meters, settings: Any) -> None:
    configure(settings, METER_PROVIDER=meters.provider, RATE_LIMIT=None, DRAIN_SECONDS=0.0)
    Topic(ORDERS, public=True)
    async with connected() as client:
        for number in range(500):
            await client.subscribe(f"orders.{number}")
            await client.unsubscribe(f"orders.{number}")
        await client.subscribe("orders.1")
        settle()
        assert meters.collect()["realtime.subscriptions"] == {frozenset(TOPIC.items()): 1}


async def test_close_codes_are_told_apart_only_where_they_have_a_meaning(meters: Meters) -> None:
    hub = await started_hub()
    settle()
    for code in range(65_536):
        hub.stats.closed(code, "client")
    closes = meters.collect()["realtime.closes"]
    assert sum(closes.values()) == 65_536
    assert len(closes) <= len(telemetry.NAMED_CODES) + 66
    assert closes[frozenset({("realtime.close.code", "1000"), ("realtime.close.side", "client")})] == 1
    assert closes[frozenset({("realtime.close.code", "4xxx"), ("realtime.close.side", "client")})] == 1000


async def test_users_make_no_series(meters: Meters) -> None:
    hub = await started_hub()
    settle()
    local_connection(hub)
    before = series(meters)
    for number in range(MANY):
        connection = local_connection(hub)
        connection.peer = connection.peer._replace(user_id=str(number), address=f"192.0.2.{number}")
    assert series(meters) == before
    assert meters.value("realtime.connections.active") == MANY + 1


async def test_a_site_s_error_codes_are_told_apart_up_to_a_bound(meters: Meters, settings: Any) -> None:
    configure(settings, METER_PROVIDER=meters.provider, RATE_LIMIT=None, DRAIN_SECONDS=0.0)
    asked = 0

    async def handler() -> None:
        nonlocal asked
        asked += 1
        raise RequestRefused(f"CODE_{asked}")

    declare(handler)
    for hubs in range(1, 4):  # those that have stopped count as well
        use_layer(Layer())
        async with connected() as client:
            for _ in range(1000):
                await client.ask(type="ask_request")
            settle()
            outcomes = meters.collect()["realtime.requests"]
            assert sum(outcomes.values()) == hubs * 1000
            assert len(outcomes) <= 2 * (MOST_OUTCOMES + 1)  # of the hub, and of those before it
        await get_hub().stop()
        outcomes = meters.collect()["realtime.requests"]
        assert sum(outcomes.values()) == hubs * 1000
        assert len(outcomes) <= MOST_OUTCOMES + 1


def test_stats_that_absorb_others_stay_bounded_and_lose_nothing() -> None:
    past = Stats()
    for hub in range(20):
        stats = Stats()
        for number in range(100):
            stats.requests[str].add(f"CODE_{hub}_{number}", 0.5)
        stats.requests[str].add("", 0.5)
        past.absorb(stats)
    assert len(past.requests[str].refused) <= MOST_OUTCOMES + 1
    assert past.requests[str].refused.total() == 2000
    assert past.requests[str].ok == 20
    assert sum(past.requests[str].duration.counts) == 2020
