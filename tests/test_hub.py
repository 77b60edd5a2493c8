"""The hub: membership, delivery, heartbeats, closing and life."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
import time
import weakref
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from realtime import Topic, publish
from realtime import hub as hub_module
from realtime import link as link_module
from realtime.conf import Settings, get_settings
from realtime.connection import Connection
from realtime.events import (
    ALL_GROUP,
    CHANNELS_TYPE,
    AckEvent,
    BeatEvent,
    CloseEvent,
    PingEvent,
    PublicationEvent,
    group_name,
)
from realtime.hub import DRAIN_BATCH, DRAIN_STEP, Hub, find_hub, get_hub
from realtime.limits import Count
from realtime.publishing import apublish_payload

from .memory import (
    TIMEOUT,
    Layer,
    ListWire,
    RemoteLayer,
    assert_settled,
    clean_process,  # noqa: F401
    joined_groups,
    local_connection,
    members,
    started_hub,
    subscribed,
    the_layer,
    toggle,
    until,
    use_layer,
)


class LeavingWire(ListWire):
    """A wire whose client leaves as soon as it is told to."""

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub

    def close(self, code: int, reason: str) -> None:
        super().close(code, reason)
        self.hub.loop.call_soon(self.hub.disconnected, self.listener)


class Batches(list[int]):
    """How many connections there were at each pause between two batches. A pause takes no time, or until ``go_on``."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()
        self.go_on.set()


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Batches:
    """The pauses of a drain."""
    batches = Batches()

    class Quick:
        def __getattr__(self, name: str) -> Any:
            return getattr(asyncio, name)

        async def sleep(self, delay: float) -> None:
            if delay != DRAIN_STEP:
                await asyncio.sleep(delay)
                return
            await asyncio.sleep(0)
            batches.append(len(get_hub().connections))
            await batches.go_on.wait()

    monkeypatch.setattr(hub_module, "asyncio", Quick())
    return batches


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look after the layer more often."""
    monkeypatch.setattr(link_module, "BACKOFF", (0.01,))
    monkeypatch.setattr(link_module, "PROBE_INTERVAL", 0.05)
    monkeypatch.setattr(link_module, "PROBE_TIMEOUT", 0.2)
    monkeypatch.setattr(link_module, "JOIN_TIMEOUT", 0.1)


def publication(topic: str, payload: str = "1", sent_at: float = 0.0) -> dict[str, Any]:
    return PublicationEvent(topic=topic, payload=payload, sent_at=sent_at).to_message()


def beat(slot: float) -> dict[str, Any]:
    return BeatEvent(slot=slot, sent_at=slot).to_message()


# Life


async def test_hub_is_one_for_each_event_loop() -> None:
    hub = get_hub()
    assert get_hub() is hub
    other = await asyncio.to_thread(lambda: asyncio.run(_hub_of_another_loop()))
    assert other is not hub


async def _hub_of_another_loop() -> Hub:
    hub = get_hub()
    await hub.stop()
    return hub


async def test_hub_is_found_from_elsewhere_while_it_runs() -> None:
    assert find_hub() is None
    hub = get_hub()
    assert await asyncio.to_thread(find_hub) is hub
    await hub.stop()
    assert find_hub() is None


async def test_hub_joins_the_group_of_all() -> None:
    hub = await started_hub()
    assert list(the_layer().groups[ALL_GROUP]) == [hub.link.channel]


async def test_hub_has_one_channel() -> None:
    hub = await started_hub()
    for topic in "abc":
        await subscribed(hub, topic)
    assert {channel for group in the_layer().groups.values() for channel in group} == {hub.link.channel}


async def test_hub_of_a_replaced_layer_is_replaced() -> None:
    old = await started_hub()
    connection = local_connection(old)
    layer = use_layer(Layer())
    new = await started_hub()
    assert new is not old
    assert new.link.layer is layer
    await until(lambda: connection.wire.closed)
    old.disconnected(connection)
    await until(lambda: not old.link._tasks)


async def test_stop_closes_every_connection_and_leaves_the_layer() -> None:
    hub = await started_hub()
    connections = [await subscribed(hub, "news") for _ in range(3)]
    stopping = asyncio.create_task(hub.stop())
    await until(lambda: all(connection.wire.closed for connection in connections))
    assert hub.draining
    assert connections[0].wire.closed_with == (1001, "server shutdown")
    for connection in connections:
        hub.disconnected(connection)
    await stopping
    assert the_layer().groups == {}
    assert not hub.link._tasks
    assert find_hub() is None


async def test_stop_drops_who_has_not_left_in_time(settings: Any) -> None:
    settings.REALTIME = {"DRAIN_TIMEOUT": 0.05}
    hub = await started_hub()
    connection = local_connection(hub)
    await hub.stop()
    assert connection.wire.aborted


async def test_stop_in_spite_of_a_wire_that_raises(settings: Any) -> None:
    settings.REALTIME = {"DRAIN_TIMEOUT": 0.05}
    hub = await started_hub()
    local_connection(hub, BrokenWire())
    connection = local_connection(hub)
    await hub.stop()
    assert connection.wire.closed
    assert the_layer().groups == {}


async def test_stop_while_the_layer_hangs_ends(settings: Any) -> None:
    hub = await started_hub()
    the_layer().hanging = True
    began = time.monotonic()
    await hub.stop()
    assert time.monotonic() - began < 4


async def test_stop_while_the_layer_fails_ends() -> None:
    hub = await started_hub()
    the_layer().failing = True
    await hub.stop()
    assert find_hub() is None


async def test_stop_before_the_hub_has_started() -> None:
    await get_hub().stop()
    assert the_layer().groups == {}


async def test_stop_twice_at_once() -> None:
    hub = await started_hub()
    await asyncio.gather(hub.stop(), hub.stop())
    assert find_hub() is None


async def test_stop_right_after_the_last_subscriber_left_leaves_no_coroutine_behind(recwarn: Any) -> None:
    hub = await started_hub()
    hub.disconnected(await subscribed(hub, "news"))
    await hub.stop()
    gc.collect()
    assert the_layer().groups == {}


async def test_drain_closes_a_small_number_at_once(batches: Batches) -> None:
    hub = await started_hub()
    connections = [local_connection(hub, LeavingWire(hub)) for _ in range(DRAIN_BATCH)]
    await hub.drain()
    assert batches == []
    assert {connection.wire.closed_with for connection in connections} == {(1001, "server shutdown")}


async def test_drain_closes_many_evenly_over_its_time(settings: Any, batches: Batches) -> None:
    settings.REALTIME = {"DRAIN_SECONDS": 1.0}
    hub = await started_hub()
    for _ in range(2000):
        local_connection(hub, LeavingWire(hub))
    await hub.drain()
    assert batches == [2000 - 200 * number for number in range(1, 10)]  # how many were left at each pause
    assert hub.connections == {}
    assert hub.counts == {}


async def test_drain_without_any_time_closes_all_at_once(settings: Any, batches: Batches) -> None:
    settings.REALTIME = {"DRAIN_SECONDS": 0}
    hub = await started_hub()
    for _ in range(2000):
        local_connection(hub, LeavingWire(hub))
    await hub.drain()
    assert batches == []
    assert hub.connections == {}


async def test_drain_of_nobody_ends_at_once(batches: Batches) -> None:
    hub = await started_hub()
    await hub.drain()
    assert batches == []
    assert hub.draining


async def test_drain_waits_for_no_batch_once_all_have_left(settings: Any, batches: Batches) -> None:
    settings.REALTIME = {"DRAIN_SECONDS": 1.0}
    hub = await started_hub()
    connections = [local_connection(hub) for _ in range(2000)]
    batches.go_on.clear()
    draining = asyncio.create_task(hub.drain())
    await until(lambda: batches)
    for connection in connections:
        hub.disconnected(connection)
    batches.go_on.set()
    await draining
    assert batches == [2000]


async def test_drain_refuses_whoever_comes_from_its_first_moment_on() -> None:
    hub = await started_hub()
    first = local_connection(hub)
    draining = asyncio.create_task(hub.drain())
    await asyncio.sleep(0)
    assert hub.draining
    late = local_connection(hub)
    assert late.wire.closed_with == (1001, "server shutdown")
    hub.disconnected(first)
    hub.disconnected(late)
    await draining


async def test_drain_counts_whom_it_drops(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    settings.REALTIME = {"DRAIN_TIMEOUT": 0.01}
    hub = await started_hub()
    connections = [local_connection(hub) for _ in range(3)]
    await hub.drain()
    assert all(connection.wire.aborted for connection in connections)
    assert hub.counts == {Count.DRAIN_ABORTED: 3}
    assert "event=drain_aborted dropped=3" in caplog.text


async def test_drain_waits_for_connections_that_the_server_has_not_ended_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    ended = False

    class Ending(ListWire):
        @property
        def gone(self) -> bool:
            nonlocal looks
            looks += 1
            return ended

        @gone.setter
        def gone(self, gone: bool) -> None: ...

    monkeypatch.setattr(hub_module, "LEAVE_INTERVAL", 0.001)
    hub = await started_hub()
    connection = local_connection(hub, Ending())
    draining = asyncio.create_task(hub.drain())
    await until(lambda: connection.wire.closed)
    hub.disconnected(connection)
    await until(lambda: looks > 10)
    assert not draining.done()
    ended = True
    await asyncio.wait_for(draining, TIMEOUT)
    assert hub.counts == {}


async def test_drain_drops_connections_that_the_server_does_not_end(settings: Any) -> None:
    settings.REALTIME = {"DRAIN_TIMEOUT": 0.05}
    hub = await started_hub()
    connection = local_connection(hub)
    connection.wire.gone = False
    hub.disconnected(connection)
    await hub.drain()
    assert connection.wire.aborted
    assert hub.counts == {Count.DRAIN_ABORTED: 1}


async def test_connection_that_the_server_has_ended_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "LOOK_INTERVAL", 0.001)
    hub = await started_hub()
    connection = local_connection(hub)
    wire = connection.wire
    wire.gone = False
    gone = weakref.ref(connection)
    hub.disconnected(connection)
    del connection
    assert gone() is not None
    wire.gone = True
    await until(lambda: gone() is None)


async def test_drain_is_cut_short_when_all_are_dropped() -> None:
    hub = await started_hub()
    connection = local_connection(hub)
    draining = asyncio.create_task(hub.drain())
    await until(lambda: connection.wire.closed)
    hub.abort_all()
    await asyncio.wait_for(draining, TIMEOUT)
    assert connection.wire.aborted
    assert hub.counts == {Count.DRAIN_ABORTED: 1}


async def test_drain_between_batches_is_cut_short_when_all_are_dropped(settings: Any, batches: Batches) -> None:
    settings.REALTIME = {"DRAIN_SECONDS": 1.0}
    hub = await started_hub()
    connections = [local_connection(hub) for _ in range(2000)]
    batches.go_on.clear()
    draining = asyncio.create_task(hub.drain())
    await until(lambda: batches)
    hub.abort_all()
    batches.go_on.set()
    await asyncio.wait_for(draining, TIMEOUT)
    assert all(connection.wire.aborted for connection in connections)
    assert batches == [2000]


async def test_drain_twice_at_once_closes_each_connection_once() -> None:
    hub = await started_hub()
    connection = local_connection(hub)
    draining = asyncio.gather(hub.drain(), hub.drain())
    await until(lambda: connection.wire.closed)
    hub.disconnected(connection)
    await asyncio.wait_for(draining, TIMEOUT)
    assert hub.counts == {}


async def test_drain_again_after_the_first_has_ended_waits_for_nobody() -> None:
    hub = await started_hub()
    await hub.drain()
    await asyncio.wait_for(hub.drain(), TIMEOUT)


async def test_stop_after_a_drain_does_not_drain_again(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = await started_hub()
    await hub.drain()
    monkeypatch.setattr(hub, "drain", None)
    await hub.stop()
    assert the_layer().groups == {}


async def test_dropping_all_where_nobody_is_counts_nothing(caplog: pytest.LogCaptureFixture) -> None:
    hub = await started_hub()
    hub.abort_all()
    assert hub.counts == {}
    assert "drain_aborted" not in caplog.text


async def test_connections_are_looked_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "LOOK_INTERVAL", 0.001)
    hub = await started_hub()
    connections = [local_connection(hub) for _ in range(3)]
    connections[1].expires = time.monotonic()
    await until(lambda: connections[1].wire.closed)
    assert [connection.wire.closed for connection in connections] == [False, True, False]
    assert hub.counts == {Count.AGED: 1}


async def test_connections_are_looked_after_all_of_them_and_some_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "LOOK_INTERVAL", 0.001)
    monkeypatch.setattr(hub_module, "CONNECTIONS_A_TURN", 2)
    hub = await started_hub()
    connections = [local_connection(hub) for _ in range(7)]
    for connection in connections:
        connection.expires = time.monotonic()
    await until(lambda: all(connection.wire.closed for connection in connections))
    assert hub.counts == {Count.AGED: 7}


async def test_connections_looked_after_are_not_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "LOOK_INTERVAL", 0.001)
    looked: list[int] = []
    monkeypatch.setattr(hub_module, "tell_repetitions", lambda: looked.append(1))
    hub = await started_hub()
    connection = local_connection(hub)
    await until(lambda: len(looked) > 3)
    gone = weakref.ref(connection)
    hub.disconnected(connection)
    del connection
    await until(lambda: gone() is None)


async def test_connection_that_comes_while_the_hub_stops_is_closed() -> None:
    hub = await started_hub()
    first = local_connection(hub)
    stopping = asyncio.create_task(hub.stop())
    await until(lambda: hub.draining)
    late = local_connection(hub)
    hub.disconnected(first)
    await asyncio.sleep(0)
    assert late.wire.closed
    hub.disconnected(late)
    await stopping


# Membership


async def test_group_is_joined_with_the_first_subscriber() -> None:
    hub = await started_hub()
    assert members("news") == 0
    await subscribed(hub, "news")
    assert members("news") == 1
    assert joined_groups() == {group_name("news")}


async def test_group_is_joined_before_join_returns() -> None:
    hub = await started_hub()
    group = await hub.link.join("news")
    assert members("news") == 1
    hub.link.release(group)


async def test_group_is_left_with_the_last_subscriber() -> None:
    hub = await started_hub()
    one, other = await subscribed(hub, "news"), await subscribed(hub, "news")
    hub.remove(one, "news")
    await asyncio.sleep(0)
    assert members("news") == 1
    hub.remove(other, "news")
    await until(lambda: members("news") == 0)
    assert hub.link.groups == {}


async def test_group_is_left_when_the_last_subscriber_disconnects() -> None:
    hub = await started_hub()
    connection = await subscribed(hub, "news", "sport")
    hub.disconnected(connection)
    await until(lambda: not joined_groups())
    assert (hub.link.groups, hub.connections, connection.topics) == ({}, {}, {})


async def test_group_is_left_when_a_join_comes_to_nothing() -> None:
    hub = await started_hub()
    hub.link.release(await hub.link.join("news"))
    await until(lambda: not joined_groups())
    assert hub.link.groups == {}


async def test_group_is_joined_once_for_concurrent_first_subscribers() -> None:
    hub = await started_hub()
    the_layer().calls.clear()
    await asyncio.gather(*(subscribed(hub, "news") for _ in range(50)))
    assert the_layer().calls.count("group_add") == 1
    assert len(list(hub.subscribers("news"))) == 50


async def test_first_subscribers_before_the_hub_has_started_wait_for_it() -> None:
    hub = get_hub()
    await asyncio.gather(*(subscribed(hub, topic) for topic in ["news", "news", "sport"]))
    assert hub.link.up
    assert (members("news"), members("sport")) == (1, 1)


async def test_channel_is_made_once_for_concurrent_first_subscribers() -> None:
    hub = get_hub()
    await asyncio.gather(*(subscribed(hub, "news") for _ in range(50)))
    assert the_layer().calls.count("new_channel") == 1


async def test_remove_of_what_was_not_subscribed_is_false() -> None:
    hub = await started_hub()
    connection = await subscribed(hub, "news")
    assert not hub.remove(connection, "sport")
    assert hub.remove(connection, "news")
    assert not hub.remove(connection, "news")


async def test_disconnected_twice_is_harmless() -> None:
    hub = await started_hub()
    connection = await subscribed(hub, "news")
    hub.disconnected(connection)
    hub.disconnected(connection)
    await until(lambda: not joined_groups())


async def test_join_that_is_cancelled_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = await started_hub()
    layer = the_layer()
    layer.hanging, layer.only = True, "group_add"
    joining = asyncio.create_task(hub.link.join("news"))
    await until(lambda: layer.calls[-1] == "group_add")
    joining.cancel()
    await asyncio.wait([joining])
    layer.hanging = False
    await until(lambda: hub.link.groups == {})
    assert not joined_groups()


async def test_memberships_are_renewed_before_they_expire() -> None:
    layer = use_layer(Layer(expiry=1, group_expiry=1))
    hub = await started_hub()
    connection = await subscribed(hub, "news")
    joined = layer.groups[group_name("news")][hub.link.channel]
    # The in-memory layer looks at whole seconds: over 2 s a membership that is not renewed has gone.
    await until(lambda: time.time() > joined + 2.1)
    await apublish_payload("news", "1")
    await until(lambda: connection.wire.data == [1], timeout=1)
    assert list(layer.groups[ALL_GROUP]) == [hub.link.channel]


async def test_hub_that_the_layer_forgot_is_heard_again(quick: None) -> None:
    layer = use_layer(Layer(expiry=0.2))
    hub = await started_hub()
    connection = await subscribed(hub, "news")
    layer._remove_from_groups(hub.link.channel)  # as the in-memory layer does after a message waited for too long
    await until(lambda: members("news") == 1, timeout=2)
    await apublish_payload("news", "1")
    await until(lambda: connection.wire.data == [1])


class SlowLayer(Layer):
    """Take a random number of turns for everything, and fail while told so."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)

    async def _go_through(self, method: str, name: str = "") -> None:
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)
        await super()._go_through(method, name)


scripts = st.lists(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 4)), max_size=8), max_size=6)


@given(scripts, st.integers())
@hypothesis_settings(max_examples=60, deadline=None)
async def test_membership_ends_as_wanted_however_subscribers_interleave(scripts: Any, seed: int) -> None:
    use_layer(SlowLayer(seed))
    hub = await started_hub()
    await asyncio.gather(*(toggle(hub, script) for script in scripts))
    await assert_settled(hub)
    for connection in list(hub.connections.values()):
        hub.disconnected(connection)
    await assert_settled(hub)
    assert hub.link.groups == {}
    await hub.stop()


@given(scripts, st.integers(), st.lists(st.integers(1, 20), max_size=6))
@hypothesis_settings(max_examples=40, deadline=None)
async def test_membership_ends_as_wanted_on_a_layer_that_comes_and_goes(
    scripts: Any, seed: int, outages: list[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(link_module, "BACKOFF", (0.001,))
        patch.setattr(link_module, "PROBE_INTERVAL", 0.02)
        layer = use_layer(SlowLayer(seed))
        hub = await started_hub()

        async def come_and_go() -> None:
            for turns in outages:
                layer.failing = not layer.failing
                for _ in range(turns):
                    await asyncio.sleep(0)
            layer.failing = False

        await asyncio.gather(come_and_go(), *(toggle(hub, script) for script in scripts))
        await until(lambda: hub.link.up)
        await assert_settled(hub)
        for connection in list(hub.connections.values()):
            hub.disconnected(connection)
        await assert_settled(hub)
        assert hub.link.groups == {}
        await hub.stop()


# A layer in trouble


async def test_join_while_the_layer_hangs_takes_about_a_second() -> None:
    hub = await started_hub()
    the_layer().hanging = True
    began = time.monotonic()
    await subscribed(hub, "news")
    assert 0.9 < time.monotonic() - began < 5


async def test_join_while_the_layer_is_known_to_be_down_takes_no_time() -> None:
    hub = await started_hub()
    the_layer().failing = True
    await subscribed(hub, "sport")
    assert not hub.link.up
    began = time.monotonic()
    await subscribed(hub, "news")
    assert time.monotonic() - began < 0.8


async def test_join_while_the_layer_hangs_at_the_start_takes_about_a_second() -> None:
    the_layer().hanging = True
    began = time.monotonic()
    await subscribed(get_hub(), "news")
    assert 0.9 < time.monotonic() - began < 5


async def test_join_while_the_layer_fails_at_the_start_takes_no_time() -> None:
    the_layer().failing = True
    began = time.monotonic()
    await subscribed(get_hub(), "news")
    assert time.monotonic() - began < 0.8


@pytest.mark.parametrize("trouble", ["failing", "hanging"])
async def test_group_is_joined_once_the_layer_is_back(quick: None, trouble: str) -> None:
    hub = await started_hub()
    setattr(the_layer(), trouble, True)
    connection = await subscribed(hub, "news")
    setattr(the_layer(), trouble, False)
    await until(lambda: members("news") == 1)
    await apublish_payload("news", "1")
    await until(lambda: connection.wire.data == [1])


async def test_group_is_joined_once_a_layer_that_was_never_there_comes(quick: None) -> None:
    the_layer().failing = True
    connection = await subscribed(get_hub(), "news")
    the_layer().failing = False
    await until(lambda: members("news") == 1)
    await apublish_payload("news", "1")
    await until(lambda: connection.wire.data == [1])


async def test_group_is_left_once_the_layer_is_back(quick: None) -> None:
    hub = await started_hub()
    connection = await subscribed(hub, "news")
    the_layer().failing = True
    hub.disconnected(connection)
    await until(lambda: not hub.link.up)
    the_layer().failing = False
    await until(lambda: hub.link.up)
    await until(lambda: not joined_groups() and hub.link.groups == {})


async def test_every_group_is_joined_anew_after_the_layer_forgot_all(quick: None) -> None:
    hub = await started_hub()
    connection = await subscribed(hub, "news", "sport")
    the_layer().failing = True
    await until(lambda: not hub.link.up)
    the_layer().groups.clear()
    the_layer().failing = False
    await until(lambda: (members("news"), members("sport")) == (1, 1))
    await apublish_payload("sport", "1")
    await until(lambda: connection.wire.data == [1])


async def test_receiver_goes_on_after_the_layer_failed(quick: None) -> None:
    hub = await started_hub()
    connection = await subscribed(hub, "news")
    layer = the_layer()
    layer.failing, layer.only = True, "receive"
    await apublish_payload("news", "1")  # wakes the receiver, whose next try fails
    await until(lambda: not hub.link.up)
    layer.failing = False
    await apublish_payload("news", "2")
    await until(lambda: connection.wire.data == [1, 2])


async def test_layer_that_goes_down_is_logged_once(quick: None, caplog: pytest.LogCaptureFixture) -> None:
    hub = await started_hub()
    layer = the_layer()
    layer.failing = True
    await subscribed(hub, "news")
    layer.calls.clear()
    await until(lambda: len(layer.calls) > 20)
    layer.failing = False
    await until(lambda: hub.link.up)
    assert [record.levelname for record in caplog.records if "layer_down" in record.message] == ["WARNING"]


async def test_layer_that_is_down_is_tried_with_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "BACKOFF", (0.01, 30.0))
    the_layer().failing = True
    get_hub()
    await until(lambda: the_layer().calls.count("group_send") == 2)
    await asyncio.sleep(0.05)
    assert the_layer().calls.count("group_send") == 2


async def test_failure_during_the_joining_anew_is_looked_after_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub must not believe for a whole probe interval that the layer is down."""
    monkeypatch.setattr(link_module, "BACKOFF", (0.01,))
    hub = await started_hub()
    await subscribed(hub, "news")
    layer = the_layer()
    layer.failing = True
    await subscribed(hub, "sport")
    layer.hanging, layer.failing, layer.only = True, False, "group_add realtime.topic"
    await until(lambda: hub.link.up)  # and now joins anew
    hub.link.failed("ack", ConnectionError("of another task"), hub.link._all.shard)
    layer.hanging = False
    await until(lambda: hub.link.up, timeout=2)


async def test_receiver_that_hears_nothing_any_more_is_started_anew(quick: None) -> None:
    hub = await started_hub()
    connection = await subscribed(hub, "news")
    await the_layer().flush()  # whoever waits in receive() now waits for a queue that nobody fills
    await apublish_payload("news", "0")
    await until(lambda: members("news") == 1, timeout=2)
    await until(lambda: hub.link.up, timeout=2)
    await apublish_payload("news", "1")
    await until(lambda: connection.wire.data[-1:] == [1], timeout=2)


async def test_remote_layer_is_up_only_once_a_ping_has_come_back(quick: None) -> None:
    layer = use_layer(RemoteLayer())
    layer.hanging, layer.only = True, "receive"
    hub = get_hub()
    await until(lambda: "receive" in layer.calls)
    await asyncio.sleep(0)
    assert not hub.link.up
    layer.hanging = False
    await until(lambda: hub.link.up)


async def test_remote_layer_confirms_each_group(quick: None) -> None:
    layer = use_layer(RemoteLayer())
    hub = await started_hub()
    layer.sent.clear()
    connection = await subscribed(hub, "news")
    assert [message["kind"] for message in layer.sent] == ["ping"]
    await apublish_payload("news", "1")
    await until(lambda: connection.wire.data == [1])
    assert hub.link._pings == {}


# Delivery


async def test_publication_is_what_the_protocol_says() -> None:
    hub = await started_hub()
    connection = await subscribed(hub, "news")
    hub.link.handle(publication("news", '{"a":"é"}', sent_at=1795367281.670383))
    assert connection.wire.messages == [
        {"type": "publication", "topic": "news", "data": {"a": "é"}, "timestamp": "2026-11-22T17:08:01.670383Z"}
    ]


async def test_publication_reaches_only_its_subscribers() -> None:
    hub = await started_hub()
    readers = [await subscribed(hub, "news", "sport") for _ in range(3)]
    other = await subscribed(hub, "sport")
    hub.link.handle(publication("news"))
    assert [reader.wire.data for reader in readers] == [[1]] * 3
    assert other.wire.data == []


async def test_publication_that_nobody_reads_is_dropped() -> None:
    hub = await started_hub()
    hub.link.handle(publication("nowhere"))
    assert hub.link.groups == {}


async def test_publication_does_not_reach_who_has_unsubscribed() -> None:
    hub = await started_hub()
    one, other = await subscribed(hub, "news"), await subscribed(hub, "news")
    hub.remove(one, "news")
    hub.link.handle(publication("news"))
    assert (one.wire.data, other.wire.data) == ([], [1])


async def test_publication_of_a_latest_topic_takes_the_place_of_the_one_before_for_a_slow_client() -> None:
    hub = await started_hub()
    slow, quick = await subscribed(hub, "prices"), await subscribed(hub, "prices")
    hub.link.groups["prices"].latest = True
    slow.wire.listener.congested()
    for number in range(4):
        hub.link.handle(publication("prices", str(number)))
    assert (slow.wire.data, quick.wire.data) == ([], [0, 1, 2, 3])
    slow.wire.listener.writable()
    assert slow.wire.data == [3]
    assert hub.counts == {Count.CONFLATED: 3}


async def test_publication_of_a_latest_topic_that_waits_is_not_sent_once_unsubscribed() -> None:
    hub = await started_hub()
    connection = await subscribed(hub, "prices", "news")
    for group in hub.link.groups.values():
        group.latest = True
    connection.wire.listener.congested()
    hub.link.handle(publication("prices"))
    hub.link.handle(publication("news", "2"))
    hub.remove(connection, "prices")
    connection.wire.listener.writable()
    assert connection.wire.data == [2]


async def test_heartbeat_takes_the_place_of_the_one_before_for_a_slow_client() -> None:
    hub = await started_hub()
    connection = await subscribed(hub, "heartbeat")
    connection.wire.listener.congested()
    for slot in (5000, 5005, 5010):
        hub.link.handle(beat(slot))
    assert connection.wire.messages == []
    connection.wire.listener.writable()
    assert [message["timestamp"] for message in connection.wire.messages] == ["1970-01-01T01:23:30.000000Z"]


async def test_publications_too_many_for_a_slow_client_close_it_and_no_other() -> None:
    hub = await started_hub()
    slow, quick = await subscribed(hub, "news"), await subscribed(hub, "news")
    slow.wire.listener.congested()
    slow.wire.buffered = hub.settings.OUTBOX_LIMIT
    hub.link.handle(publication("news"))
    hub.link.handle(publication("news"))
    assert slow.wire.closed_with == (3008, "slow consumer")
    assert quick.wire.data == [1, 1]
    assert hub.counts == {Count.SLOW_CONSUMERS: 1}


@pytest.mark.parametrize("short", [0, 50])
async def test_largest_data_that_may_be_published_closes_nobody(short: int) -> None:
    topic = Topic("news")
    hub = await started_hub()
    connection = await subscribed(hub, "news")
    data = "x" * (hub.settings.OUTBOX_LIMIT - len('""') - short)
    try:
        await topic.apublish(data)
    except ValueError:
        return  # which is as well
    await until(lambda: connection.wire.data or connection.wire.closed)
    assert not connection.wire.closed
    assert connection.wire.data == [data]


async def test_data_that_no_client_could_be_sent_is_refused() -> None:
    topic = Topic("news")
    hub = await started_hub()
    with pytest.raises(ValueError, match=r"the data is \d+ bytes as JSON, and at most \d+ can be published"):
        await topic.apublish("x" * hub.settings.OUTBOX_LIMIT)
    assert [message for message in the_layer().sent if "payload" in message] == []


async def test_publication_is_one_frame_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = []

    class KeepingWire(ListWire):
        def write(self, frame: bytes) -> None:
            frames.append(frame)

    hub = await started_hub()
    for _ in range(3):
        await subscribed(hub, "news", wire=KeepingWire())
    hub.link.handle(publication("news"))
    assert len({id(frame) for frame in frames}) == 1


async def test_burst_that_is_gathered_reaches_every_subscriber_whole_and_in_order() -> None:
    Topic("news")
    hub = await started_hub()
    connections = [await subscribed(hub, "news") for _ in range(5)]
    await asyncio.gather(*(apublish_payload("news", str(number)) for number in range(5000)))
    await until(lambda: len(connections[-1].wire.data) == 5000)
    assert [connection.wire.data for connection in connections] == [list(range(5000))] * 5


async def test_burst_from_a_sync_thread_reaches_every_subscriber_whole_and_in_order() -> None:
    Topic("news")
    hub = await started_hub()
    connections = [await subscribed(hub, "news") for _ in range(5)]

    def view() -> None:
        for number in range(5000):
            publish("news", number)

    await asyncio.to_thread(view)
    await until(lambda: len(connections[-1].wire.data) == 5000)
    assert [connection.wire.data for connection in connections] == [list(range(5000))] * 5


async def test_burst_lets_others_have_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "LONGEST_TURN", 0.0)
    hub = await started_hub()
    connection = await subscribed(hub, "news")
    for _ in range(100):
        await the_layer().send(hub.link.channel, publication("news"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert 0 < len(connection.wire.data) < 100


class BrokenWire(ListWire):
    """Raise whatever is asked."""

    def write(self, frame: bytes) -> None:
        raise OSError("broken")

    def close(self, code: int, reason: str) -> None:
        raise OSError("broken")

    def abort(self) -> None:
        self.aborted = True
        raise OSError("broken")


class HalfBrokenWire(BrokenWire):
    """Raise in ``write`` and ``close``, but not in ``abort``."""

    def abort(self) -> None:
        self.closed = self.aborted = True


@pytest.mark.parametrize("wire", [HalfBrokenWire(), BrokenWire()], ids=["write raises", "abort raises too"])
async def test_publication_passes_a_wire_that_raises(wire: Any, caplog: pytest.LogCaptureFixture) -> None:
    hub = await started_hub()
    before = await subscribed(hub, "news")
    broken = await subscribed(hub, "news", wire=wire)
    after = await subscribed(hub, "news")
    hub.link.handle(publication("news"))
    assert (before.wire.data, after.wire.data) == ([1], [1])
    assert wire.aborted
    assert broken.id in caplog.text


async def test_subscriber_that_leaves_while_being_written_to_does_not_disturb() -> None:
    hub = await started_hub()

    class LeavingWire(ListWire):
        def write(self, frame: bytes) -> None:
            hub.disconnected(leaving)

    leaving = await subscribed(hub, "news", wire=LeavingWire())
    after = await subscribed(hub, "news")
    hub.link.handle(publication("news"))
    assert after.wire.data == [1]


MALFORMED = [
    {"type": CHANNELS_TYPE, "kind": "dance"},
    {"type": CHANNELS_TYPE, "kind": "publication"},
    {"type": CHANNELS_TYPE, "kind": ["publication"]},
    {"type": CHANNELS_TYPE},
    {"type": "chat.message", "text": "hello"},
    {"type": None},
    {},
]


@pytest.mark.parametrize("message", MALFORMED, ids=repr)
async def test_event_that_is_not_understood_is_logged_once(
    message: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    hub = await started_hub()
    for _ in range(5):
        hub.link.handle(message)
    assert [record.levelname for record in caplog.records if "unknown_event" in record.message] == ["WARNING"]


@pytest.mark.parametrize("message", [None, "event", b"event", 5, [], ["type"]], ids=repr)
async def test_message_that_is_no_dict_raises_nothing(message: Any) -> None:
    (await started_hub()).link.handle(message)


async def test_event_that_fails_is_logged_and_the_next_is_delivered(caplog: pytest.LogCaptureFixture) -> None:
    hub = await started_hub()
    connection = await subscribed(hub, "news")
    hub.link.handle(publication("news", sent_at=1e300))
    hub.link.handle(publication("news"))
    assert "event_failed kind=publication" in caplog.text
    assert connection.wire.data == [1]


async def test_events_that_are_not_understood_stop_nothing(caplog: pytest.LogCaptureFixture) -> None:
    hub = await started_hub()
    connection = await subscribed(hub, "news")
    for message in MALFORMED:
        await the_layer().send(hub.link.channel, message)
    await apublish_payload("news", "1")
    await until(lambda: connection.wire.data == [1])


async def test_events_of_a_thousand_unknown_kinds_fill_no_log(caplog: pytest.LogCaptureFixture) -> None:
    hub = await started_hub()
    for number in range(1000):
        hub.link.handle({"type": CHANNELS_TYPE, "kind": f"{number}" * 1000})
    assert len(caplog.records) <= 102
    assert max(len(record.message) for record in caplog.records) < 300
    assert len(hub.link._said) <= 100


async def test_payload_is_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    hub = await started_hub()
    await subscribed(hub, "news", wire=HalfBrokenWire())
    await apublish_payload("news", '"sesame"')
    await until(lambda: "write_failed" in caplog.text)
    hub.link.handle({"type": CHANNELS_TYPE, "kind": "publication", "payload": "sesame"})
    assert "sesame" not in caplog.text


@pytest.mark.parametrize("event", [AckEvent(server="s", connections=1), PingEvent(nonce="unknown")])
async def test_event_for_somebody_else_is_no_matter(event: Any, caplog: pytest.LogCaptureFixture) -> None:
    hub = await started_hub()
    caplog.clear()
    hub.link.handle(event.to_message())
    assert caplog.records == []


# Closing


async def test_close_answers_with_how_many() -> None:
    hub = await started_hub()
    for _ in range(3):
        local_connection(hub)
    hub.link.handle(CloseEvent(code=4000, reason="bye", reply_to="inbox").to_message())
    assert await the_layer().receive("inbox") == AckEvent(server=hub.id, connections=3).to_message()


async def test_close_without_reply_to_answers_nobody() -> None:
    hub = await started_hub()
    connection = local_connection(hub)
    the_layer().calls.clear()
    hub.link.handle(CloseEvent(code=4000, reason="bye").to_message())
    assert connection.wire.closed_with == (4000, "bye")
    await asyncio.sleep(0)
    assert "send" not in the_layer().calls


async def test_close_whose_asker_cannot_be_reached_closes_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    hub = await started_hub()
    connection = local_connection(hub)
    hub.link.handle(CloseEvent(code=4000, reason="bye", reply_to="not a channel").to_message())
    assert connection.wire.closed_with == (4000, "bye")
    await until(lambda: "action=reply" in caplog.text)


async def test_close_passes_a_wire_that_raises() -> None:
    hub = await started_hub()
    local_connection(hub, BrokenWire())
    after = local_connection(hub)
    hub.link.handle(CloseEvent(code=4000, reason="bye", reply_to="inbox").to_message())
    assert after.wire.closed_with == (4000, "bye")
    assert (await the_layer().receive("inbox"))["connections"] == 2


async def test_close_with_spread_is_staggered_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = await started_hub()
    connections = [local_connection(hub) for _ in range(5)]
    scheduled: list[tuple[float, Any]] = []
    monkeypatch.setattr(hub.loop, "call_later", lambda delay, *call: scheduled.append((delay, call)))
    hub.link.handle(CloseEvent(code=4000, reason="bye", spread=10).to_message())
    assert [delay for delay, _ in scheduled] == [0, 2, 4, 6, 8]
    assert not any(connection.wire.closed for connection in connections)
    for _, (function, *arguments) in scheduled:
        function(*arguments)
    assert [connection.wire.closed_with for connection in connections] == [(4000, "bye")] * 5


async def test_close_with_spread_answers_at_once() -> None:
    hub = await started_hub()
    local_connection(hub)
    hub.link.handle(CloseEvent(code=4000, reason="bye", spread=60, reply_to="inbox").to_message())
    assert (await the_layer().receive("inbox"))["connections"] == 1


async def test_close_with_spread_of_who_has_gone_meanwhile_is_harmless() -> None:
    hub = await started_hub()
    connection = local_connection(hub)
    hub.link.handle(CloseEvent(code=4000, reason="bye", spread=0.01).to_message())
    connection.close(1000, "left")
    hub.disconnected(connection)
    await asyncio.sleep(0.02)
    assert connection.wire.closed_with == (1000, "left")


# Heartbeats


async def test_beat_is_what_the_protocol_says() -> None:
    hub = await started_hub()
    connection = await subscribed(hub, "heartbeat")
    connection.opened -= 42
    hub.link.handle(beat(1795367280))
    [message] = connection.wire.messages
    assert message == {"type": "heartbeat", "timestamp": "2026-11-22T17:08:00.000000Z", "uptime_seconds": "42"}


async def test_beat_carries_each_connections_own_age() -> None:
    hub = await started_hub()
    connections = [await subscribed(hub, "heartbeat") for _ in range(4)]
    for age, connection in zip([0, 5, 5, 3600], connections, strict=True):
        connection.opened -= age
    hub.link.handle(beat(1000))
    assert [connection.wire.messages[0]["uptime_seconds"] for connection in connections] == ["0", "5", "5", "3600"]


async def beats(*slots: float) -> int:
    """Return how many beats of ``slots`` reach a subscriber."""
    hub = await started_hub()
    connection = await subscribed(hub, "heartbeat")
    for slot in slots:
        hub.link.handle(beat(slot))
    return len(connection.wire.messages)


async def test_beats_of_slots_are_delivered() -> None:
    assert await beats(1000, 1005, 1010) == 3


async def test_beats_of_a_slot_are_delivered_once() -> None:
    assert await beats(1000, 1000, 1005, 1005, 1005) == 2


async def test_beat_that_comes_late_is_dropped() -> None:
    assert await beats(1005, 1000, 1005, 1010) == 2


async def test_beats_go_on_after_the_clock_was_put_back() -> None:
    assert await beats(10000, 6400, 6405, 6405, 6410) == 4


async def test_beats_go_on_after_a_slot_far_ahead() -> None:
    assert await beats(1000, 4e9, 1005, 1010) == 4


async def test_beat_that_nobody_waits_for_counts_as_delivered() -> None:
    hub = await started_hub()
    hub.link.handle(beat(1000))
    connection = await subscribed(hub, "heartbeat")
    hub.link.handle(beat(1000))
    assert connection.wire.messages == []


async def test_in_memory_hub_beats_by_itself(settings: Any) -> None:
    settings.REALTIME = {"HEARTBEAT_INTERVAL": 0.05}
    connection = await subscribed(await started_hub(), "heartbeat")
    await until(lambda: len(connection.wire.messages) >= 3)
    assert {message["type"] for message in connection.wire.messages} == {"heartbeat"}


async def test_in_memory_hub_beats_on_slots(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.REALTIME = {"HEARTBEAT_INTERVAL": 5.0}
    hub = await started_hub()
    monkeypatch.setattr(hub_module.time, "time", lambda: 1002.0)
    await subscribed(hub, "heartbeat")
    assert hub._beat_timer is not None
    assert hub._beat_timer.when() - hub.loop.time() == pytest.approx(3.0, abs=0.5)


async def test_in_memory_hub_beats_once_a_slot_for_many(settings: Any) -> None:
    settings.REALTIME = {"HEARTBEAT_INTERVAL": 0.05}
    hub = await started_hub()
    connections = [await subscribed(hub, "heartbeat") for _ in range(10)]
    await until(lambda: connections[0].wire.messages)
    assert {len(connection.wire.messages) for connection in connections} == {1}


async def test_in_memory_hub_does_not_beat_while_nobody_subscribes(settings: Any) -> None:
    settings.REALTIME = {"HEARTBEAT_INTERVAL": 0.05}
    hub = await started_hub()
    await subscribed(hub, "news")
    assert hub._beat_timer is None
    connection = await subscribed(hub, "heartbeat")
    assert hub._beat_timer is not None
    hub.remove(connection, "heartbeat")
    await until(lambda: hub._beat_timer is None)
    hub.add(connection, await hub.link.join("heartbeat"))
    await until(lambda: connection.wire.messages)


async def test_hub_on_another_layer_leaves_the_beat_to_run_heartbeats() -> None:
    use_layer(RemoteLayer())
    hub = await started_hub()
    await subscribed(hub, "heartbeat")
    assert hub._beat_timer is None


async def test_stop_ends_the_beat(settings: Any) -> None:
    settings.REALTIME = {"HEARTBEAT_INTERVAL": 0.05}
    hub = await started_hub()
    connection = await subscribed(hub, "heartbeat")
    timer = hub._beat_timer
    hub.disconnected(connection)
    await hub.stop()
    assert timer is not None
    assert timer.cancelled()


# Connections


async def test_connections_differ_by_id() -> None:
    assert len({Connection(ListWire()).id for _ in range(100)}) == 100


async def test_thousand_connections_leave_nothing_behind() -> None:
    hub = await started_hub()
    tasks = asyncio.all_tasks()
    gone = []
    for number in range(1000):
        connection = await subscribed(hub, "heartbeat", f"topic {number}", f"topic {number % 7}")
        hub.link.handle(publication(f"topic {number}"))
        hub.disconnected(connection)
        gone.append(weakref.ref(connection))
    del connection
    await until(lambda: asyncio.all_tasks() <= tasks)
    gc.collect()
    assert [reference for reference in gone if reference() is not None] == []
    assert (hub.connections, hub.link.groups, hub.link._pings) == ({}, {}, {})
    assert set(the_layer().groups) == {ALL_GROUP, hub.link._all.shard.probe.name}
    assert set(the_layer().channels) <= {hub.link.channel}


async def test_hub_takes_its_settings_as_arguments() -> None:
    hub = Hub(the_layer(), Settings(HEARTBEAT_INTERVAL=7))
    assert hub.settings.HEARTBEAT_INTERVAL == 7
    assert get_settings().HEARTBEAT_INTERVAL == 5


async def test_frames_on_the_wire_are_json() -> None:
    hub = await started_hub()
    connection = await subscribed(hub, "news")
    hub.link.handle(publication("news", json.dumps("\u2028")))
    assert connection.wire.data == ["\u2028"]
