"""A layer that is spread over several Redis: what fails on one is no matter for the others."""

from __future__ import annotations

import asyncio
import itertools
import logging
import zlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest
from channels.layers import InMemoryChannelLayer
from channels_redis.core import RedisChannelLayer
from channels_redis.pubsub import RedisPubSubChannelLayer
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from realtime import aclose_connections
from realtime import link as link_module
from realtime.events import ALL_GROUP, CHANNEL_PREFIX, PROBE_PREFIX, PublicationEvent, group_name
from realtime.exceptions import LayerUnavailable
from realtime.hub import Hub, get_hub
from realtime.layers import bounded, reconnect, shard_count, shard_of
from realtime.link import JOINS_AT_ONCE
from realtime.publishing import apublish_payload

from .memory import (
    TIMEOUT,
    Layer,
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

NOBODY_LISTENS = ["redis://127.0.0.1:1", "redis://127.0.0.1:2"]
SHARDS = (0, 1)


class TwoShards(Layer):
    """Keep groups on two shards, each of which fails or freezes while told so. Channels are on neither."""

    ring_size = 2

    def __init__(self) -> None:
        super().__init__()
        self.down: set[int] = set()
        self.frozen: set[int] = set()
        self.muted = ""
        """What the names of groups begin with whose events are taken and go nowhere; empty for none."""
        self.slow_discards: list[int] = []
        """How many turns of the event loop the next discards take."""
        self.asked: list[tuple[str, str]] = []
        """What was done to which group."""

    def consistent_hash(self, name: str) -> int:
        return zlib.crc32(name.encode()) % self.ring_size

    async def _go_through(self, method: str, name: str = "") -> None:
        await super()._go_through(method, name)
        if method.startswith("group_"):
            self.asked.append((method, name))
            while self.consistent_hash(name) in self.frozen:
                await asyncio.sleep(0.005)
            if self.consistent_hash(name) in self.down:
                raise ConnectionError("the shard is down")

    async def group_discard(self, group: str, channel: str) -> None:
        for _ in range(self.slow_discards.pop(0) if self.slow_discards else 0):
            await asyncio.sleep(0)
        await super().group_discard(group, channel)

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        if self.muted and group.startswith(self.muted):
            await self._go_through("group_send", group)
        else:
            await super().group_send(group, message)


class FarShards(RemoteLayer):
    """The same, as far as anybody can tell beyond this process."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = TwoShards()


LAYERS = {"in-memory": TwoShards, "remote": FarShards}


@pytest.fixture(params=LAYERS)
def layer(request: Any, clean_process: None) -> Iterator[TwoShards]:  # noqa: F811
    """The channel layer, of two shards."""
    layer: TwoShards = use_layer(LAYERS[request.param]())
    yield layer
    layer.down.clear()
    layer.frozen.clear()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look after the layer more often."""
    monkeypatch.setattr(link_module, "BACKOFF", (0.01,))
    monkeypatch.setattr(link_module, "PROBE_INTERVAL", 0.05)


@pytest.fixture
def impatient(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for the layer less long, too."""
    monkeypatch.setattr(link_module, "PROBE_TIMEOUT", 0.2)


each_shard = pytest.mark.parametrize("broken", SHARDS)
"""For tests in which one shard is in trouble, and the other is not."""


def topics_on(shard: int) -> Iterator[str]:
    """Give names of topics whose groups are on ``shard``."""
    layer = the_layer()
    for number in itertools.count():
        if shard_of(layer, group_name(f"topic {number}")) == shard:
            yield f"topic {number}"


def topic_on(shard: int, number: int = 0) -> str:
    return next(itertools.islice(topics_on(shard), number, None))


def of_probes(shard: int) -> list[str]:
    """Return the groups for probes on ``shard`` that have members."""
    layer = the_layer()
    return [
        name
        for name, channels in layer.groups.items()
        if channels and name.startswith(PROBE_PREFIX) and shard_of(layer, name) == shard
    ]


def lines(caplog: pytest.LogCaptureFixture, *words: str) -> list[str]:
    """Return what was logged with all these words in it."""
    messages = [record.getMessage() for record in caplog.records]
    return [message for message in messages if all(word in message.split() for word in words)]


async def broken_down(hub: Hub, broken: int) -> None:
    """Let one shard fail, and wait until the hub knows."""
    hub.link.layer.down.add(broken)
    hub.link._shards[broken].probe_now.set()
    await until(lambda: not hub.link.up)


# Two shards that work


async def test_hub_is_up_once_both_shards_are(layer: TwoShards, quick: None) -> None:
    layer.down.update(SHARDS)
    hub = get_hub()
    await until(lambda: all(shard.started.is_set() for shard in hub.link._shards))
    seen = [hub.link.up]
    for shard in SHARDS:
        layer.down.discard(shard)
        await until(lambda shard=shard: hub.link._shards[shard].up)
        seen.append(hub.link.up)
    assert seen == [False, False, True]
    assert hub.link.running


async def test_hub_has_one_channel_in_the_groups_of_both_shards(layer: TwoShards) -> None:
    hub = await started_hub()
    await subscribed(hub, topic_on(0), topic_on(1))
    assert {channel for channels in layer.groups.values() for channel in channels} == {hub.link.channel}


async def test_probes_have_a_group_of_their_own_on_each_shard(layer: TwoShards, quick: None) -> None:
    hub = await started_hub()
    assert [of_probes(shard) for shard in SHARDS] == [[hub.link._shards[shard].probe.name] for shard in SHARDS]
    layer.asked.clear()
    await until(lambda: len([what for what, _ in layer.asked if what == "group_send"]) > 10)
    pinged = {name for what, name in layer.asked if what == "group_send"}
    assert pinged == {of_probes(0)[0], of_probes(1)[0]}


async def test_probes_of_two_hubs_do_not_meet(layer: TwoShards) -> None:
    hub = await started_hub()
    other = Hub(layer, hub.settings)
    other.start()
    await until(lambda: other.link.up)
    assert [len(of_probes(shard)) for shard in SHARDS] == [2, 2]
    assert {len(layer.groups[name]) for shard in SHARDS for name in of_probes(shard)} == {1}
    assert len(layer.groups[ALL_GROUP]) == 2
    await other.stop()
    assert [len(of_probes(shard)) for shard in SHARDS] == [1, 1]


async def test_publications_on_both_shards_arrive(layer: TwoShards) -> None:
    hub = await started_hub()
    connection = await subscribed(hub, topic_on(0), topic_on(1))
    for number in range(10):
        await apublish_payload(topic_on(number % 2), str(number))
    await until(lambda: len(connection.wire.data) == 10)
    assert connection.wire.data == list(range(10))


async def test_stop_leaves_everything_on_both_shards(layer: TwoShards) -> None:
    hub = await started_hub()
    connections = [await subscribed(hub, topic_on(shard, number)) for shard in SHARDS for number in range(3)]
    assert {shard_of(layer, name) for name in layer.groups} == set(SHARDS)
    for connection in connections[::2]:
        hub.disconnected(connection)
    stopping = asyncio.create_task(hub.stop())
    await until(lambda: connections[-1].wire.closed)
    for connection in connections:
        hub.disconnected(connection)
    await stopping
    assert layer.groups == {}
    assert not hub.link._tasks
    assert not hub.link.running


# One that fails


@each_shard
async def test_topics_on_the_other_shard_go_on(layer: TwoShards, broken: int) -> None:
    hub = await started_hub()
    connection = await subscribed(hub, topic_on(0), topic_on(1))
    await broken_down(hub, broken)
    await apublish_payload(topic_on(1 - broken), "1")
    await until(lambda: connection.wire.data == [1])
    assert hub.link._shards[1 - broken].up
    with pytest.raises(LayerUnavailable):
        await apublish_payload(topic_on(broken), "2")
    layer.down.clear()
    await until(lambda: hub.link.up)
    await apublish_payload(topic_on(broken), "3")
    await until(lambda: connection.wire.data == [1, 3])


@each_shard
@pytest.mark.parametrize("trouble", ["down", "frozen"])
async def test_new_topics_on_the_other_shard_are_joined_at_once(
    layer: TwoShards, broken: int, trouble: str, impatient: None
) -> None:
    hub = await started_hub()
    getattr(layer, trouble).add(broken)
    await until(lambda: not hub.link.up)
    for number in range(3):
        topic = topic_on(1 - broken, number)
        connection = await subscribed(hub, topic)
        assert members(topic) == 1
        assert hub.link.groups[topic].joined
        await apublish_payload(topic, "1")
        await until(lambda connection=connection: connection.wire.data == [1])
        hub.disconnected(connection)
        await until(lambda topic=topic: members(topic) == 0)
    assert not hub.link.up


@each_shard
@pytest.mark.parametrize("trouble", ["down", "frozen"])
async def test_topics_on_a_shard_that_is_known_to_be_down_are_answered_at_once_and_joined_when_it_is_back(
    layer: TwoShards, broken: int, trouble: str, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = await started_hub()
    getattr(layer, trouble).add(broken)
    await until(lambda: not hub.link.up)
    monkeypatch.setattr(link_module, "JOIN_TIMEOUT", 10 * TIMEOUT)
    topic = topic_on(broken)
    layer.asked.clear()
    connection = await asyncio.wait_for(subscribed(hub, topic), TIMEOUT)
    assert [what for what in layer.asked if what[1] == group_name(topic)] == []
    assert not hub.link.groups[topic].joined
    layer.down.clear()
    layer.frozen.clear()
    await until(lambda: members(topic) == 1 and hub.link.up)
    await apublish_payload(topic, "1")
    await until(lambda: connection.wire.data == [1])


@each_shard
async def test_first_join_that_fails_takes_only_its_own_shard_for_down(
    layer: TwoShards, broken: int, caplog: pytest.LogCaptureFixture
) -> None:
    hub = await started_hub()
    layer.down.add(broken)
    await subscribed(hub, topic_on(broken))
    assert [shard.up for shard in hub.link._shards] == [shard != broken for shard in SHARDS]
    assert lines(caplog, "event=layer_down", "action=join", f"shard={broken}")


@each_shard
async def test_round_trip_while_a_shard_is_down_raises(layer: TwoShards, broken: int) -> None:
    hub = await started_hub()
    assert await hub.link.round_trip() >= 0
    await broken_down(hub, broken)
    assert not hub.link.up
    with pytest.raises(LayerUnavailable, match="the channel layer is down"):
        await hub.link.round_trip()
    layer.down.clear()
    await until(lambda: hub.link.up)
    assert await hub.link.round_trip() >= 0


@each_shard
async def test_each_shard_is_logged_once_when_it_goes_and_once_when_it_comes(
    layer: TwoShards, broken: int, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    hub = await started_hub()
    assert len(lines(caplog, "event=layer_up")) == 2
    await subscribed(hub, topic_on(broken), topic_on(1 - broken))
    caplog.clear()
    await broken_down(hub, broken)
    layer.asked.clear()
    await until(lambda: len([name for _, name in layer.asked if layer.consistent_hash(name) == broken]) > 20)
    await subscribed(hub, topic_on(broken, 1))
    assert len(lines(caplog, "event=layer_down", f"shard={broken}")) == 1
    assert lines(caplog, "event=layer_up") == []
    layer.down.clear()
    await until(lambda: hub.link.up)
    await until(lambda: lines(caplog, "event=layer_up"))
    assert len(lines(caplog, "event=layer_up", f"shard={broken}")) == 1
    assert lines(caplog, f"shard={1 - broken}") == []
    levels = [record.levelname for record in caplog.records if "event=layer_" in record.getMessage()]
    assert levels == ["WARNING", "INFO"]


@each_shard
async def test_log_says_how_many_topics_of_the_shard_were_joined(
    layer: TwoShards, broken: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    hub = await started_hub()
    await subscribed(hub, topic_on(broken), topic_on(broken, 1), topic_on(1 - broken))
    await broken_down(hub, broken)
    caplog.clear()
    layer.down.clear()
    await until(lambda: lines(caplog, "event=layer_up"))
    assert lines(caplog, "event=layer_up") == [f"event=layer_up shard={broken} groups=2"]


@each_shard
async def test_shard_that_comes_back_empty_is_joined_again_and_the_other_left_alone(
    layer: TwoShards, broken: int, quick: None
) -> None:
    hub = await started_hub()
    lost = list(itertools.islice(topics_on(broken), 2 * JOINS_AT_ONCE + 1))
    kept = list(itertools.islice(topics_on(1 - broken), 3))
    connection = await subscribed(hub, *lost, *kept)
    await broken_down(hub, broken)
    for name in [name for name in layer.groups if shard_of(layer, name) == broken]:
        del layer.groups[name]
    layer.asked.clear()
    layer.down.clear()
    await until(lambda: hub.link.up and all(hub.link.groups[topic].joined for topic in lost + kept))
    assert {members(topic) for topic in lost + kept} == {1}
    assert not {group_name(topic) for topic in kept} & {name for _, name in layer.asked}
    assert list(layer.groups[ALL_GROUP]) == [hub.link.channel]
    for number, topic in enumerate(lost + kept):
        await apublish_payload(topic, str(number))
    await until(lambda: connection.wire.data == list(range(len(lost + kept))))


@each_shard
async def test_topic_that_is_left_while_its_shard_is_down_is_left_there_when_it_is_back(
    layer: TwoShards, broken: int, quick: None
) -> None:
    hub = await started_hub()
    connection = await subscribed(hub, topic_on(0), topic_on(1))
    await broken_down(hub, broken)
    hub.disconnected(connection)
    await until(lambda: joined_groups() == {group_name(topic_on(broken))})
    layer.down.clear()
    await until(lambda: not joined_groups())
    assert hub.link.groups == {}


@each_shard
async def test_hub_that_begins_while_a_shard_is_down_is_there_for_the_other(layer: TwoShards, broken: int) -> None:
    layer.down.add(broken)
    hub = get_hub()
    here, there = topic_on(1 - broken), topic_on(broken)
    connection = await subscribed(hub, there, here)
    assert (members(here), members(there)) == (1, 0)
    assert ("group_add", group_name(there)) not in layer.asked
    assert not hub.link.up
    await apublish_payload(here, "1")
    await until(lambda: connection.wire.data == [1])
    layer.down.clear()
    await until(lambda: hub.link.up and members(there) == 1)


@each_shard
async def test_hub_that_begins_while_a_shard_is_frozen_is_there_for_the_other(
    layer: TwoShards, broken: int, impatient: None
) -> None:
    layer.frozen.add(broken)
    hub = get_hub()
    topic = topic_on(1 - broken)
    connection = await subscribed(hub, topic)
    await until(lambda: hub.link._shards[1 - broken].up, timeout=2)
    await until(lambda: members(topic) == 1, timeout=2)
    await apublish_payload(topic, "1")
    await until(lambda: connection.wire.data == [1])
    layer.frozen.clear()
    await until(lambda: hub.link.up)


@each_shard
async def test_publication_that_fails_fails_none_of_the_other_shard_that_waits_behind_it(
    layer: TwoShards, broken: int
) -> None:
    hub = await started_hub()
    connection = await subscribed(hub, topic_on(0), topic_on(1))
    layer.down.add(broken)
    topics = [topic_on(broken), topic_on(broken), topic_on(1 - broken), topic_on(1 - broken)]
    outcomes = await asyncio.gather(
        *(apublish_payload(topic, str(number)) for number, topic in enumerate(topics)), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [LayerUnavailable, LayerUnavailable, type(None), type(None)]
    await until(lambda: connection.wire.data == [2, 3])


@each_shard
async def test_publication_that_hangs_holds_up_none_of_the_other_shard(layer: TwoShards, broken: int) -> None:
    hub = await started_hub()
    connection = await subscribed(hub, topic_on(0), topic_on(1))
    layer.frozen.add(broken)
    layer.asked.clear()
    hanging = asyncio.create_task(apublish_payload(topic_on(broken), "1"))
    await until(lambda: ("group_send", group_name(topic_on(broken))) in layer.asked)
    try:
        await apublish_payload(topic_on(1 - broken), "2")
        assert not hanging.done()
    finally:
        layer.frozen.clear()
        [outcome] = await asyncio.gather(hanging, return_exceptions=True)
    assert outcome is None
    await until(lambda: sorted(connection.wire.data) == [1, 2])


async def test_all_are_closed_while_the_shard_without_the_group_of_all_is_down(layer: TwoShards) -> None:
    hub = await started_hub()
    connection = local_connection(hub)
    await broken_down(hub, 1 - shard_of(layer, ALL_GROUP))
    outcome = await aclose_connections(wait=0.05)
    assert (outcome.servers, outcome.connections) == (1, 1)
    assert connection.wire.closed


@each_shard
@pytest.mark.parametrize("trouble", ["down", "frozen"])
async def test_stop_while_a_shard_is_in_trouble_leaves_the_other(
    layer: TwoShards, broken: int, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = await started_hub()
    monkeypatch.setattr(link_module, "bounded", lambda work, seconds: bounded(work, seconds / 10))
    for shard in SHARDS:
        await hub.link.join(topic_on(shard))
    getattr(layer, trouble).add(broken)
    await hub.stop()
    assert [name for name in layer.groups if shard_of(layer, name) != broken] == []
    assert not hub.link._tasks


@each_shard
async def test_reply_that_fails_takes_the_shard_of_its_channel_for_down(
    layer: TwoShards, broken: int, caplog: pytest.LogCaptureFixture
) -> None:
    hub = await started_hub()
    names = (f"not a channel {number}" for number in itertools.count())
    channel = next(name for name in names if shard_of(layer, name, group=False) == broken)
    await hub.link.reply(channel, PublicationEvent(topic="", payload="1", sent_at=0).to_message())
    assert len(lines(caplog, "event=layer_down", "action=reply", f"shard={broken}")) == 1
    assert len(lines(caplog, "event=layer_down")) == 1


async def test_hub_that_hears_nothing_any_more_listens_on_another_channel_for_both_shards(
    layer: TwoShards, impatient: None
) -> None:
    hub = await started_hub()
    topics = [topic_on(0), topic_on(1)]
    connection = await subscribed(hub, *topics)
    before = hub.link.channel
    await getattr(layer, "inner", layer).flush()  # whoever waits in receive() now waits for a queue that nobody fills
    await until(lambda: hub.link.channel not in (None, before))
    await until(lambda: hub.link.up and all(group.joined for group in hub.link.groups.values()))
    for topic in topics:
        await apublish_payload(topic, "1")
    await until(lambda: connection.wire.data == [1, 1])
    assert {channel for channels in layer.groups.values() for channel in channels} == {hub.link.channel}


async def test_hub_that_hears_nothing_on_either_shard_listens_on_one_other_channel_and_no_more(
    layer: TwoShards, quick: None
) -> None:
    hub = await started_hub()
    topics = [topic_on(0), topic_on(1)]
    connection = await subscribed(hub, *topics)
    before = hub.link.channel
    getattr(layer, "inner", layer).slow_discards = [0] * 5 + [200] * 5  # the second to give up the channel is late
    await asyncio.gather(*(hub.link._listen_anew(shard) for shard in hub.link._shards))
    await until(lambda: hub.link.up and all(group.joined for group in hub.link.groups.values()))
    assert hub.link.channel not in (None, before)
    assert {channel for channels in layer.groups.values() for channel in channels} == {hub.link.channel}
    assert [task.get_coro().__name__ for task in hub.link._tasks].count("_receive_for_ever") == 1
    for topic in topics:
        await apublish_payload(topic, "1")
    await until(lambda: connection.wire.data == [1, 1])
    assert hub.counts == {}


@each_shard
async def test_groups_that_are_joined_side_by_side_and_not_heard_at_once_are_one_failure_in_a_row(
    impatient: None, broken: int, caplog: pytest.LogCaptureFixture
) -> None:
    layer = use_layer(FarShards())
    hub = await started_hub()
    before = hub.link.channel
    topics = list(itertools.islice(topics_on(broken), JOINS_AT_ONCE))
    await subscribed(hub, *topics)
    await broken_down(hub, broken)
    layer.inner.muted = "realtime.topic."
    caplog.clear()
    layer.down.clear()
    await until(lambda: lines(caplog, "event=layer_down", f"shard={broken}"))
    layer.inner.muted = ""
    await until(lambda: hub.link.up and all(hub.link.groups[topic].joined for topic in topics))
    assert "event=deaf" not in caplog.text
    assert hub.link.channel == before


async def test_shard_that_is_joined_from_another_channel_for_the_others_sake_is_logged_in_pairs(
    layer: TwoShards, impatient: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(link_module, "PROBE_INTERVAL", 10 * TIMEOUT)
    caplog.set_level(logging.INFO)
    hub = await started_hub()
    topics = [topic_on(0), topic_on(1)]
    await subscribed(hub, *topics)
    before = hub.link.channel
    caplog.clear()
    await getattr(layer, "inner", layer).flush()
    hub.link._shards[0].probe_now.set()  # and the other is not looked at before
    await until(lambda: hub.link.channel not in (None, before) and hub.link.up)
    await until(lambda: [members(topic) for topic in topics] == [1, 1])
    await until(lambda: all(group.joined for group in hub.link.groups.values()))
    for _ in range(50):  # in which it is logged
        await asyncio.sleep(0)
    ups = [len(lines(caplog, "event=layer_up", f"shard={shard}")) for shard in SHARDS]
    downs = [len(lines(caplog, "event=layer_down", f"shard={shard}")) for shard in SHARDS]
    assert ups == downs


# Shards that come and go


scripts = st.lists(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 4)), max_size=8), max_size=5)
outages = st.lists(st.tuples(st.sampled_from(SHARDS), st.integers(1, 20)), max_size=8)


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
@given(scripts, outages)
@hypothesis_settings(max_examples=40, deadline=None)
async def test_membership_ends_as_wanted_on_shards_that_come_and_go(make: Any, scripts: Any, outages: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(link_module, "BACKOFF", (0.001,))
        patch.setattr(link_module, "PROBE_INTERVAL", 0.02)
        layer = use_layer(make())
        hub = await started_hub()

        async def come_and_go() -> None:
            for shard, turns in outages:
                layer.down.symmetric_difference_update({shard})
                for _ in range(turns):
                    await asyncio.sleep(0)
            layer.down.clear()

        await asyncio.gather(come_and_go(), *(toggle(hub, script) for script in scripts))
        await assert_settled(hub)
        for connection in list(hub.connections.values()):
            hub.disconnected(connection)
        await assert_settled(hub)
        assert hub.link.groups == {}
        await hub.stop()
        assert layer.groups == {}


# On which shard what is

GROUPS = [ALL_GROUP, *(group_name(f"topic {number}") for number in range(50))]
MESSAGE = {"type": "realtime.event"}


def core(hosts: list[str] = NOBODY_LISTENS) -> tuple[RedisChannelLayer, list[int]]:
    """Return a core layer without Redis, and the shards that it uses, in order."""
    layer, used = RedisChannelLayer(hosts=hosts), []
    redis = AsyncMock()  # an empty one
    redis.zcount.return_value = 0
    redis.zrange.return_value = []
    redis.bzpopmin = lambda *_, **__: asyncio.Event().wait()

    def connection(index: int) -> Any:
        used.append(index)
        return redis

    layer.connection = connection
    return layer, used


async def pubsub(hosts: list[str] = NOBODY_LISTENS) -> tuple[RedisPubSubChannelLayer, list[int]]:
    """Return a pub/sub layer without Redis, and the shards that it uses, in order."""
    layer, used = RedisPubSubChannelLayer(hosts=hosts), []
    for number, shard in enumerate(layer._shards):

        async def use(*arguments: Any, number: int = number) -> None:
            used.append(number)

        shard.publish = shard.subscribe = shard.unsubscribe = use
    return layer, used


async def test_groups_are_where_the_pubsub_layer_has_them() -> None:
    layer, used = await pubsub()
    channel = await layer.new_channel("realtime")
    for group in GROUPS:
        used.clear()
        await layer.group_add(group, channel)
        await layer.group_send(group, MESSAGE)
        await layer.group_discard(group, channel)
        assert used == [shard_of(layer, group)] * 3
    assert {shard_of(layer, group) for group in GROUPS} == set(SHARDS)


async def test_channels_are_where_the_pubsub_layer_has_them() -> None:
    layer, used = await pubsub()
    shards = set()
    for _ in range(50):
        used.clear()
        channel = await layer.new_channel("realtime")
        await layer.send(channel, MESSAGE)
        assert used == [shard_of(layer, channel, group=False)] * 2
        shards.update(used)
    assert shards == set(SHARDS)


async def test_groups_are_where_the_core_layer_has_them() -> None:
    layer, used = core()
    channel = await layer.new_channel("realtime")
    for group in GROUPS:
        used.clear()
        await layer.group_add(group, channel)
        await layer.group_send(group, MESSAGE)
        await layer.group_discard(group, channel)
        assert set(used) == {shard_of(layer, group)}
    assert {shard_of(layer, group) for group in GROUPS} == set(SHARDS)


async def received_from(layer: RedisChannelLayer, used: list[int], channel: str) -> int:
    """Return the shard that the core layer waits on for what is sent to ``channel``."""
    used.clear()
    receiving = asyncio.create_task(layer.receive(channel))
    await until(lambda: used)
    receiving.cancel()
    await asyncio.wait([receiving])
    return used[0]


async def test_channels_are_where_the_core_layer_receives_from_them() -> None:
    shards = set()
    for _ in range(20):
        layer, used = core()
        channels = [await layer.new_channel("realtime") for _ in range(3)]
        assert {shard_of(layer, channel, group=False) for channel in channels} == {
            await received_from(layer, used, channels[0])
        }
        shards.add(shard_of(layer, channels[0], group=False))
    assert shards == set(SHARDS)


async def test_core_layer_sends_to_a_channel_elsewhere_than_it_receives_from() -> None:
    """That is what the check realtime.W005 warns of. Where this fails, it can go."""
    elsewhere = 0
    for _ in range(40):
        layer, used = core()
        channel = await layer.new_channel(CHANNEL_PREFIX)
        used.clear()
        await layer.send(channel, MESSAGE)
        [sent_to] = set(used)
        elsewhere += sent_to != await received_from(layer, used, channel)
    assert elsewhere


async def test_layers_have_as_many_shards_as_hosts() -> None:
    for number in (1, 2, 5):
        hosts = [f"redis://127.0.0.1:{port}" for port in range(1, number + 1)]
        assert shard_count(RedisChannelLayer(hosts=hosts)) == number
        assert shard_count(RedisPubSubChannelLayer(hosts=hosts)) == number


async def test_layers_on_one_host_have_all_on_that() -> None:
    for make in (RedisChannelLayer, RedisPubSubChannelLayer):
        layer = make(hosts=NOBODY_LISTENS[:1])
        assert {shard_of(layer, name, group=group) for name in GROUPS for group in (True, False)} == {0}


@pytest.mark.parametrize("layer", [InMemoryChannelLayer(), RemoteLayer(), SimpleNamespace()])
def test_other_layers_have_one_shard(layer: Any) -> None:
    assert shard_count(layer) == 1
    assert {shard_of(layer, name, group=group) for name in GROUPS for group in (True, False)} == {0}


@each_shard
async def test_connection_of_one_shard_is_dropped_and_no_other(broken: int) -> None:
    layer, _ = await pubsub()
    for shard in layer._shards:
        shard._pubsub = SimpleNamespace(connection=AsyncMock())
    assert await reconnect(layer, broken)
    for number, shard in enumerate(layer._shards):
        assert shard._pubsub.connection.disconnect.call_count == (number == broken)


@each_shard
async def test_connection_that_is_not_there_yet_need_not_be_dropped(broken: int) -> None:
    layer, _ = await pubsub()
    assert await reconnect(layer, broken)
    layer._shards[broken]._pubsub = SimpleNamespace(connection=None)
    assert await reconnect(layer, broken)


async def test_core_layer_makes_no_new_connection_by_itself() -> None:
    assert not await reconnect(core()[0], 0)
