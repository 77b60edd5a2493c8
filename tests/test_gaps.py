"""What was lost on the way: noticed by the hub, counted, and told to those who want to know."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from realtime import Topic
from realtime import hub as hub_module
from realtime.connection import Connection
from realtime.events import BeatEvent, PublicationEvent, group_name
from realtime.exceptions import LayerUnavailable
from realtime.hub import Hub
from realtime.limits import Count
from realtime.logs import REPEAT_AFTER, _complaints, tell_repetitions
from realtime.publishing import abeat, apublish_payload, publish_payload

from .memory import (
    TIMEOUT,
    Client,
    Layer,
    ListWire,
    RemoteLayer,
    clean_process,  # noqa: F401
    connected,
    members,
    started_hub,
    subscribed,
    the_layer,
    until,
    use_layer,
)

GAP = {"type": "gap", "topic": "news"}


class LossyLayer(Layer):
    """Lose some publications, and deliver some twice."""

    def __init__(self) -> None:
        super().__init__()
        self.lost: set[str] = set()
        self.twice: set[str] = set()

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        payload = message.get("payload")
        if payload not in self.lost:
            await super().group_send(group, message)
        if payload in self.twice:
            await super().group_send(group, message)


@pytest.fixture(autouse=True)
def layer(clean_process: None) -> LossyLayer:  # noqa: F811
    """The channel layer."""
    layer: LossyLayer = use_layer(LossyLayer())
    return layer


async def publish(topic: str, *payloads: Any) -> None:
    for payload in payloads:
        await apublish_payload(topic, str(payload))


async def lose(topic: str, *payloads: Any) -> None:
    """Publish what will not arrive."""
    lost = the_layer().lost
    lost.update(map(str, payloads))
    await publish(topic, *payloads)
    lost.difference_update(map(str, payloads))


async def fail(topic: str, *payloads: Any) -> None:
    """Publish while the layer does not take this topic's events."""
    layer = the_layer()
    layer.failing, layer.only = True, f"group_send {group_name(topic)}"
    for payload in payloads:
        with pytest.raises(LayerUnavailable):
            await publish(topic, payload)
    layer.failing, layer.only = False, ""


async def reporting(hub: Hub, *topics: str) -> Connection:
    """Return a connection subscribed to topics that report gaps."""
    connection = await subscribed(hub, *topics)
    for topic in topics:
        hub.link.groups[topic].report_gaps = True
    return connection


def seen(connection: Connection) -> list[Any]:
    """Return the data and the gaps that a connection was sent, in order."""
    return [message.get("data", "gap") for message in connection.wire.messages]


async def arrived(connection: Connection, data: Any) -> list[Any]:
    """Return what a connection was sent, once ``data`` was."""
    await until(lambda: data in connection.wire.data)
    return seen(connection)


async def handled() -> None:
    """Wait until the hub has handled all that was published before."""
    watcher = await subscribed(await started_hub(), "watched")
    await publish("watched", '"now"')
    await until(lambda: watcher.wire.data)


def event(topic: str, payload: Any, publisher: str = "", sequence: int = 0, sent_at: float = 0.0) -> dict[str, Any]:
    return PublicationEvent(
        topic=topic, payload=str(payload), sent_at=sent_at, publisher=publisher, sequence=sequence
    ).to_message()


# Told and counted


async def test_publications_carry_their_numbers_and_other_events_carry_none() -> None:
    await publish("news", 1, 2)
    await publish("sport", 3)
    await abeat(1000.0)
    sent = the_layer().sent
    assert [message.get("sequence") for message in sent] == [1, 2, 1, None]
    assert len({message["publisher"] for message in sent[:2]}) == 1
    assert "publisher" not in sent[3]


async def test_gap_is_told_before_the_publication_that_shows_it() -> None:
    connection = await reporting(await started_hub(), "news")
    await publish("news", 1)
    await lose("news", 2)
    await publish("news", 3, 4)
    assert await arrived(connection, 4) == [1, "gap", 3, 4]
    assert connection.wire.messages[1] == GAP


async def test_gap_of_many_is_told_once_and_counted_with_how_many() -> None:
    hub = await started_hub()
    connection = await reporting(hub, "news")
    await publish("news", 1)
    await lose("news", 2, 3, 4)
    await publish("news", 5)
    assert await arrived(connection, 5) == [1, "gap", 5]
    assert hub.counts == {Count.GAPS: 1, Count.LOST: 3}


async def test_each_gap_is_told_and_counted() -> None:
    hub = await started_hub()
    connection = await reporting(hub, "news")
    await publish("news", 1)
    await lose("news", 2, 3)
    await publish("news", 4)
    await lose("news", 5)
    await publish("news", 6)
    assert await arrived(connection, 6) == [1, "gap", 4, "gap", 6]
    assert hub.counts == {Count.GAPS: 2, Count.LOST: 3}


async def test_gap_is_told_once_to_each_subscriber() -> None:
    hub = await started_hub()
    connections = [await reporting(hub, "news") for _ in range(3)]
    await publish("news", 1)
    await lose("news", 2)
    await publish("news", 3)
    await arrived(connections[-1], 3)
    assert [seen(connection) for connection in connections] == [[1, "gap", 3]] * 3
    assert hub.counts[Count.GAPS] == 1


async def test_gap_is_told_to_nobody_on_other_topics() -> None:
    hub = await started_hub()
    reader, other = await reporting(hub, "news"), await reporting(hub, "sport")
    both = await reporting(hub, "news", "sport")
    await publish("news", 1)
    await publish("sport", 10)
    await lose("news", 2)
    await publish("sport", 11)
    await publish("news", 3)
    await publish("sport", 12)
    assert await arrived(both, 12) == [1, 10, 11, "gap", 3, 12]
    assert (seen(reader), seen(other)) == ([1, "gap", 3], [10, 11, 12])


async def test_gap_on_a_topic_that_does_not_report_it_is_counted_and_told_to_nobody() -> None:
    hub = await started_hub()
    connection = await subscribed(hub, "news")
    await publish("news", 1)
    await lose("news", 2)
    await publish("news", 3)
    assert await arrived(connection, 3) == [1, 3]
    assert hub.counts == {Count.GAPS: 1, Count.LOST: 1}


async def test_nothing_is_counted_while_nothing_is_lost() -> None:
    hub = await started_hub()
    connection = await reporting(hub, "news")
    await publish("news", *range(100))
    assert await arrived(connection, 99) == list(range(100))
    assert hub.counts == {}


async def test_what_was_lost_before_the_first_that_was_heard_is_no_gap() -> None:
    hub = await started_hub()
    await publish("news", 1)
    connection = await reporting(hub, "news")
    await lose("news", 2)
    await publish("news", 3)
    assert await arrived(connection, 3) == [3]
    assert hub.counts == {}


async def test_who_subscribes_after_the_loss_and_before_it_is_noticed_is_told_as_well() -> None:
    hub = await started_hub()
    first = await reporting(hub, "news")
    await publish("news", 1)
    await arrived(first, 1)
    await lose("news", 2)
    second = await subscribed(hub, "news")
    await publish("news", 3)
    assert await arrived(second, 3) == ["gap", 3]


async def test_gap_passes_a_wire_that_raises() -> None:
    class BrokenWire(ListWire):
        def write(self, frame: bytes) -> None:
            raise OSError("broken")

    hub = await started_hub()
    broken = await subscribed(hub, "news", wire=BrokenWire())
    connection = await reporting(hub, "news")
    await publish("news", 1)
    await lose("news", 2)
    await publish("news", 3)
    assert await arrived(connection, 3) == [1, "gap", 3]
    assert broken.wire.aborted


# What no gap is


async def test_event_of_an_older_version_has_no_publisher_and_makes_no_gap() -> None:
    hub = await started_hub()
    connection = await reporting(hub, "news")
    for message in (event("news", 1, "p", 1), event("news", 2), event("news", 2), event("news", 3, "p", 2)):
        hub.link.handle(message)
    assert seen(connection) == [1, 2, 2, 3]
    assert hub.counts == {}


async def test_event_of_an_older_version_is_understood_without_its_new_fields() -> None:
    hub = await started_hub()
    connection = await reporting(hub, "news")
    message = event("news", 1)
    del message["publisher"], message["sequence"]
    hub.link.handle(message)
    hub.link.handle(message)
    assert seen(connection) == [1, 1]
    assert hub.counts == {}


async def test_repeated_event_is_delivered_once() -> None:
    hub = await started_hub()
    connection = await reporting(hub, "news")
    the_layer().twice.update("23")
    await publish("news", 1, 2, 3, 4)
    assert await arrived(connection, 4) == [1, 2, 3, 4]
    assert hub.counts == {Count.REPEATED: 2}


async def test_event_that_comes_after_a_later_one_is_not_delivered() -> None:
    hub = await started_hub()
    connection = await reporting(hub, "news")
    for number in (1, 3, 2, 4):
        hub.link.handle(event("news", number, "p", number))
    assert seen(connection) == [1, "gap", 3, 4]
    assert hub.counts == {Count.GAPS: 1, Count.LOST: 1, Count.REPEATED: 1}


async def test_publishers_side_by_side_have_gaps_of_their_own() -> None:
    hub = await started_hub()
    connection = await reporting(hub, "news")
    for publisher, number in [("p", 1), ("q", 7), ("p", 2), ("q", 9), ("p", 3), ("q", 10), ("r", 1)]:
        hub.link.handle(event("news", number, publisher, number))
    assert seen(connection) == [1, 7, 2, "gap", 9, 3, 10, 1]
    assert hub.counts == {Count.GAPS: 1, Count.LOST: 1}


async def test_gap_is_forgotten_when_the_topic_is_left_and_joined_again() -> None:
    hub = await started_hub()
    first = await reporting(hub, "news")
    await publish("news", 1)
    await arrived(first, 1)
    hub.remove(first, "news")
    await until(lambda: members("news") == 0)
    await publish("news", 2)
    second = await reporting(hub, "news")
    await publish("news", 3)
    assert await arrived(second, 3) == [3]
    assert hub.counts == {}


async def test_gap_is_forgotten_when_the_topic_is_joined_again_while_it_is_being_left() -> None:
    hub = await started_hub()
    first = await reporting(hub, "news")
    await publish("news", 1)
    await arrived(first, 1)
    layer = the_layer()
    layer.hanging, layer.only = True, "group_discard"
    hub.remove(first, "news")
    await until(lambda: layer.calls[-1] == "group_discard")
    joining = asyncio.create_task(reporting(hub, "news"))
    await until(lambda: hub.link.groups["news"].joining)
    await lose("news", 2)
    layer.hanging = False
    second = await joining
    await publish("news", 3)
    assert await arrived(second, 3) == [3]
    assert hub.counts == {}


async def test_gap_is_forgotten_when_something_is_published_while_nobody_subscribes() -> None:
    hub = await started_hub()
    first = await reporting(hub, "news")
    await publish("news", 1)
    await arrived(first, 1)
    group = await hub.link.join("news")  # whoever it is for does not subscribe yet, but keeps the hub in the group
    hub.remove(first, "news")
    await publish("news", 2)
    await handled()
    await lose("news", 3)
    second = await reporting(hub, "news")
    await publish("news", 4)
    assert await arrived(second, 4) == [4]
    assert hub.counts == {}
    hub.link.release(group)


# A layer in trouble


async def test_publication_that_failed_shows_as_a_gap_with_the_next() -> None:
    hub = await started_hub()
    connection = await reporting(hub, "news")
    await publish("news", 1)
    await fail("news", 2, 3)
    await publish("news", 4)
    assert await arrived(connection, 4) == [1, "gap", 4]
    assert hub.counts == {Count.GAPS: 1, Count.LOST: 2}


async def test_publication_that_failed_is_no_gap_on_another_topic() -> None:
    hub = await started_hub()
    connection = await reporting(hub, "news", "sport")
    await publish("news", 1)
    await publish("sport", 10)
    await fail("news", 2)
    await publish("sport", 11)
    assert await arrived(connection, 11) == [1, 10, 11]
    assert hub.counts == {}


async def test_publication_that_the_layer_does_not_take_in_time_shows_as_a_gap(monkeypatch: Any) -> None:
    monkeypatch.setattr("realtime.publishing.PUBLISH_TIMEOUT", 0.05)
    hub = await started_hub()
    connection = await reporting(hub, "news")
    await publish("news", 1)
    layer = the_layer()
    layer.hanging, layer.only = True, f"group_send {group_name('news')}"
    with pytest.raises(LayerUnavailable):
        await publish("news", 2)
    layer.hanging = False
    await publish("news", 3)
    assert await arrived(connection, 3) == [1, "gap", 3]
    assert hub.counts == {Count.GAPS: 1, Count.LOST: 1}


async def test_publications_that_wait_behind_one_that_fails_count_as_lost_too() -> None:
    hub = await started_hub()
    connection = await reporting(hub, "news")
    await publish("news", 0)
    layer = the_layer()
    layer.failing, layer.only = True, f"group_send {group_name('news')}"
    tried = layer.calls.count("group_send")
    outcomes = await asyncio.gather(*(publish("news", number) for number in range(1, 6)), return_exceptions=True)
    layer.failing = False
    assert [type(outcome) for outcome in outcomes] == [LayerUnavailable] * 5
    assert ["waited for its turn" in str(outcome) for outcome in outcomes] == [False, True, True, True, True]
    assert layer.calls.count("group_send") == tried + 1
    await publish("news", 6)
    assert await arrived(connection, 6) == [0, "gap", 6]
    assert hub.counts == {Count.GAPS: 1, Count.LOST: 5}


async def test_publication_of_another_topic_that_waits_behind_one_that_fails_is_a_gap_there() -> None:
    hub = await started_hub()
    connection = await reporting(hub, "news", "sport")
    await publish("sport", 10)
    layer = the_layer()
    layer.failing, layer.only = True, f"group_send {group_name('news')}"
    await asyncio.gather(publish("news", 1), publish("sport", 11), return_exceptions=True)
    layer.failing = False
    await publish("news", 2)
    await publish("sport", 12)
    assert await arrived(connection, 12) == [10, 2, "gap", 12]
    assert connection.wire.messages[2] == {"type": "gap", "topic": "sport"}


async def test_publication_that_was_given_up_before_its_turn_is_a_gap() -> None:
    hub = await started_hub()
    connection = await reporting(hub, "news")
    await publish("news", 1)
    layer = the_layer()
    layer.hanging, layer.only = True, f"group_send {group_name('news')}"
    calls = len(layer.calls)
    first = asyncio.create_task(publish("news", 2))
    await until(lambda: len(layer.calls) > calls)
    second = asyncio.create_task(publish("news", 3))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait([second])
    layer.hanging = False
    await first
    await publish("news", 4)
    assert await arrived(connection, 4) == [1, 2, "gap", 4]
    assert hub.counts == {"gaps": 1, "lost": 1}


# Several event loops


class HomeLayer(LossyLayer):
    """Belong to one event loop, but take events from any, and from others only after a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.home = asyncio.get_running_loop()

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        if asyncio.get_running_loop() is self.home:
            await super().group_send(group, message)
        else:
            delivery = asyncio.run_coroutine_threadsafe(self._deliver(group, message), self.home)
            await asyncio.wrap_future(delivery)

    async def _deliver(self, group: str, message: dict[str, Any]) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        await self.group_send(group, message)


class FarLayer(RemoteLayer):
    """Reach other processes, as far as anybody can tell, and be used from any event loop."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = HomeLayer()


@pytest.mark.parametrize("make", [LossyLayer, FarLayer], ids=["in-memory", "remote"])
async def test_publishing_from_the_hubs_loop_and_from_threads_side_by_side_makes_no_false_gap(make: Any) -> None:
    use_layer(make())
    hub = await started_hub()
    connection = await reporting(hub, "news")

    async def on_the_hubs_loop(start: int) -> None:
        for number in range(start, start + 100):
            await apublish_payload("news", str(number))

    def in_a_thread(start: int) -> None:
        for number in range(start, start + 100):
            publish_payload("news", str(number))

    starts = range(0, 500, 100)
    await asyncio.gather(
        on_the_hubs_loop(0),
        on_the_hubs_loop(100),
        asyncio.to_thread(in_a_thread, 200),
        asyncio.to_thread(in_a_thread, 300),
        asyncio.to_thread(lambda: asyncio.run(on_the_hubs_loop(400))),
    )
    await until(lambda: len(connection.wire.data) == 500)
    assert hub.counts == {}
    for start in starts:
        own = [number for number in seen(connection) if start <= number < start + 100]
        assert own == list(range(start, start + 100))


async def test_gap_of_one_event_loop_is_told_though_others_publish_meanwhile() -> None:
    use_layer(FarLayer())
    hub = await started_hub()
    connection = await reporting(hub, "news")
    await publish("news", 1)
    await asyncio.to_thread(publish_payload, "news", "10")
    await lose("news", 2)
    await asyncio.to_thread(publish_payload, "news", "11")
    await publish("news", 3)
    assert await arrived(connection, 3) == [1, 10, 11, "gap", 3]
    assert hub.counts == {Count.GAPS: 1, Count.LOST: 1}


# Snapshots, and topics of which only the newest counts


@asynccontextmanager
async def fetching(*, latest: bool = False) -> AsyncIterator[tuple[Client, Callable[[], None]]]:
    """Connect a client that waits for its snapshot of a topic, and give what ends the wait."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def fetch(user: Any) -> str:
        begun.set()
        await go_on.wait()
        return "snapshot"

    Topic("news", public=True, on_subscribe=fetch, latest=latest, report_gaps=True)
    async with connected() as client:
        await client.tell(type="subscribe_request", topic="news")
        await asyncio.wait_for(begun.wait(), TIMEOUT)
        yield client, go_on.set


async def received(client: Client) -> list[Any]:
    """Return the data and the gaps that a client is sent, until there is no more."""
    await handled()
    await client.tell(type="echo_request", echo="")
    messages = []
    while (message := await client.next())["type"] != "echo_response":
        messages.append(message.get("data", message["type"]))
    return messages


async def test_gap_while_a_snapshot_is_fetched_follows_the_snapshot() -> None:
    async with fetching() as (client, go_on):
        await publish("news", 1)
        await lose("news", 2)
        await publish("news", 3)
        await handled()
        go_on()
        assert await received(client) == [{"topic": "news"}, "snapshot", 1, "gap", 3]


async def test_gap_after_the_snapshot_is_told_where_the_last_came_before_it() -> None:
    async with fetching() as (client, go_on):
        await publish("news", 1)
        await handled()
        go_on()
        assert await received(client) == [{"topic": "news"}, "snapshot", 1]
        await lose("news", 2)
        await publish("news", 3)
        assert await received(client) == ["gap", 3]


async def test_gap_while_one_fetches_a_snapshot_is_told_once_to_it_and_to_subscribers() -> None:
    async with fetching() as (client, go_on):
        hub = await started_hub()
        other = await reporting(hub, "news")
        await publish("news", 1)
        await lose("news", 2)
        await publish("news", 3)
        assert await arrived(other, 3) == [1, "gap", 3]
        go_on()
        assert await received(client) == [{"topic": "news"}, "snapshot", 1, "gap", 3]
        assert hub.counts == {Count.GAPS: 1, Count.LOST: 1}


async def test_gap_of_a_latest_topic_while_a_snapshot_is_fetched_follows_the_snapshot() -> None:
    async with fetching(latest=True) as (client, go_on):
        await publish("news", 1)
        await lose("news", 2)
        await publish("news", 3)
        await handled()
        go_on()
        assert await received(client) == [{"topic": "news"}, "snapshot", "gap", 3]


async def test_gap_is_told_to_a_client_that_subscribes_to_a_topic_that_reports_it() -> None:
    Topic("news", public=True, report_gaps=True)
    Topic("sport", public=True)
    async with connected() as client:
        await client.subscribe("news")
        await client.subscribe("sport")
        for topic in ("news", "sport"):
            await publish(topic, 1)
            await lose(topic, 2)
            await publish(topic, 3)
        assert await received(client) == [1, "gap", 3, 1, 3]


async def test_gap_of_a_latest_topic_is_told_before_the_publication() -> None:
    Topic("news", public=True, report_gaps=True, latest=True)
    async with connected() as client:
        await client.subscribe("news")
        await publish("news", 1)
        await lose("news", 2)
        await publish("news", 3)
        assert await received(client) == [1, "gap", 3]


async def test_gap_of_a_latest_topic_is_told_to_a_slow_client_before_the_newest() -> None:
    hub = await started_hub()
    connection = await reporting(hub, "news")
    hub.link.groups["news"].latest = True
    watcher = await subscribed(hub, "news")
    connection.wire.listener.congested()
    await publish("news", 1)
    await lose("news", 2)
    await publish("news", 3)
    await arrived(watcher, 3)
    connection.wire.listener.writable()
    assert seen(connection) == ["gap", 3]


# Whatever gets lost


@given(st.lists(st.tuples(st.sampled_from(["news", "sport"]), st.sampled_from(["ok", "lost", "failed", "twice"]))))
@hypothesis_settings(max_examples=60, deadline=None)
async def test_each_subscriber_is_told_of_every_loss_that_shows_and_of_no_other(fates: Any) -> None:
    layer = use_layer(LossyLayer())
    hub = await started_hub()
    connections = [await reporting(hub, "news", "sport") for _ in range(2)]
    expected: list[Any] = []
    heard, pending = set(), {"news": 0, "sport": 0}
    lost = 0
    for number, (topic, fate) in enumerate(fates):
        if fate == "lost":
            await lose(topic, number)
        elif fate == "failed":
            await fail(topic, number)
        else:
            layer.twice = {str(number)} if fate == "twice" else set()
            await publish(topic, number)
        if fate in ("lost", "failed"):
            pending[topic] += topic in heard
            continue
        heard.add(topic)
        lost += pending[topic]
        expected += ["gap", number] if pending[topic] else [number]
        pending[topic] = 0
    await handled()
    assert [seen(connection) for connection in connections] == [expected] * 2
    assert hub.counts[Count.GAPS] == expected.count("gap")
    assert hub.counts[Count.LOST] == lost
    assert hub.counts[Count.REPEATED] == sum(fate == "twice" for _, fate in fates)
    for connection in list(hub.connections.values()):
        hub.disconnected(connection)
    await hub.stop()


# What the log says


def lines(caplog: pytest.LogCaptureFixture, word: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if word in record.getMessage()]


async def test_gap_is_logged_with_its_topic_and_how_many(caplog: pytest.LogCaptureFixture) -> None:
    connection = await reporting(await started_hub(), "news")
    await publish("news", 1)
    await lose("news", 2, 3)
    await publish("news", 4)
    await arrived(connection, 4)
    [record] = [record for record in caplog.records if "gap" in record.getMessage()]
    assert record.getMessage() == "event=gap topic=news lost=2"
    assert (record.name, record.levelname) == ("realtime.hub", "WARNING")


async def test_gaps_are_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    hub = await started_hub()
    connection = await reporting(hub, "news", "sport")

    async def gap(topic: str) -> None:
        await publish(topic, 1)
        await lose(topic, 2)
        await publish(topic, 3)
        await until(lambda: connection.wire.data[-1:] == [3])
        connection.wire.messages.clear()

    for topic in ("news", "sport", "news"):
        await gap(topic)
    tell_repetitions()
    assert lines(caplog, "gap") == ["event=gap topic=news lost=1"]
    assert hub.counts[Count.GAPS] == 3
    _complaints["event=gap"].began -= REPEAT_AFTER
    tell_repetitions()
    assert lines(caplog, "gap")[1:] == ["event=gap repeated=2"]
    await gap("sport")
    assert lines(caplog, "gap")[2:] == ["event=gap topic=sport lost=1"]


async def test_gap_is_logged_in_one_line_whatever_the_topic_is_called(caplog: pytest.LogCaptureFixture) -> None:
    topic = "news\nevent=forged %s %d"
    connection = await reporting(await started_hub(), topic)
    await publish(topic, 1)
    await lose(topic, 2)
    await publish(topic, 3)
    await arrived(connection, 3)
    assert lines(caplog, "gap") == ["event=gap topic=news\\nevent=forged %s %d lost=1"]


# Beats that do not come

INTERVAL = 0.01


@pytest.fixture
def looks(settings: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> list[int]:
    """The looks at whether beats come, of which there are many. On a layer where no hub beats by itself."""
    looks: list[int] = []
    settings.REALTIME = {"HEARTBEAT_INTERVAL": INTERVAL}
    monkeypatch.setattr(hub_module, "LOOK_INTERVAL", 0.001)
    monkeypatch.setattr(hub_module, "tell_repetitions", lambda: looks.append(1))
    caplog.set_level(logging.INFO)
    use_layer(RemoteLayer())
    return looks


async def many_more(looks: list[int]) -> None:
    """Wait until it was looked often enough for beats to be missed."""
    end = time.monotonic() + 4 * INTERVAL
    until_then = len(looks) + 5
    await until(lambda: len(looks) >= until_then and time.monotonic() > end)


def beat(hub: Hub, slot: float) -> None:
    hub.link.handle(BeatEvent(slot=slot, sent_at=slot).to_message())


async def test_beats_that_are_missing_are_logged_once(looks: list[int], caplog: pytest.LogCaptureFixture) -> None:
    await subscribed(await started_hub(), "heartbeat")
    await until(lambda: lines(caplog, "beats_missing"))
    await many_more(looks)
    assert lines(caplog, "beats_") == ["event=beats_missing intervals=3 hint='does run_heartbeats run?'"]
    assert [record.levelname for record in caplog.records if "beats_" in record.getMessage()] == ["WARNING"]


async def test_beats_that_are_back_are_logged_once(looks: list[int], caplog: pytest.LogCaptureFixture) -> None:
    hub = await started_hub()
    connection = await subscribed(hub, "heartbeat")
    await until(lambda: lines(caplog, "beats_missing"))
    for slot in range(1000, 1003):
        beat(hub, slot)
    assert lines(caplog, "beats_")[1:] == ["event=beats_back"]
    assert [record.levelname for record in caplog.records if "beats_" in record.getMessage()] == ["WARNING", "INFO"]
    assert len(connection.wire.messages) == 3


async def test_beats_that_are_missing_again_are_logged_again(looks: list[int], caplog: Any) -> None:
    hub = await started_hub()
    await subscribed(hub, "heartbeat")
    for outage in range(1, 4):
        await until(lambda outage=outage: len(lines(caplog, "beats_missing")) == outage)
        beat(hub, 1000 + outage)
    assert [line.split()[0] for line in lines(caplog, "beats_")] == ["event=beats_missing", "event=beats_back"] * 3


async def test_beats_that_come_are_not_logged(looks: list[int], caplog: Any, monkeypatch: Any) -> None:
    hub = await started_hub()

    def before_each_look() -> None:
        looks.append(1)
        beat(hub, 1000 + len(looks))

    monkeypatch.setattr(hub_module, "tell_repetitions", before_each_look)
    await subscribed(hub, "heartbeat")
    await many_more(looks)
    assert lines(caplog, "beats_") == []


async def test_beats_are_not_missing_where_nobody_subscribes(
    looks: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    hub = await started_hub()
    await subscribed(hub, "news")
    await many_more(looks)
    assert not hub.beats_missing
    group = await hub.link.join("heartbeat")
    await many_more(looks)
    assert not hub.beats_missing
    assert lines(caplog, "beats_") == []
    hub.link.release(group)


async def test_beats_are_not_missing_once_the_last_subscriber_has_left(looks: list[int], caplog: Any) -> None:
    hub = await started_hub()
    connection = await subscribed(hub, "heartbeat")
    beat(hub, 1000)
    hub.remove(connection, "heartbeat")
    await until(lambda: members("heartbeat") == 0)
    before = lines(caplog, "beats_")
    await many_more(looks)
    assert not hub.beats_missing
    assert lines(caplog, "beats_") == before


async def test_beats_are_missing_three_intervals_after_the_first_has_subscribed_or_the_last_beat() -> None:
    use_layer(RemoteLayer())
    hub = await started_hub()
    hub.last_beat = time.monotonic() - 1000
    await subscribed(hub, "heartbeat")
    group = hub.link.groups["heartbeat"]
    now = time.monotonic()
    told = []
    for subscribed_ago, beat_ago in [(0, 1000), (14, 1000), (16, 1000), (1000, 14), (1000, 16), (16, 16), (14, 14)]:
        group.since, hub.last_beat = now - subscribed_ago, now - beat_ago
        told.append(hub.beats_missing)
    assert told == [False, False, True, False, True, True, False]


async def test_beats_are_missing_is_told_anew_to_no_one_who_subscribes_later(looks: list[int], caplog: Any) -> None:
    hub = await started_hub()
    await subscribed(hub, "heartbeat")
    await until(lambda: lines(caplog, "beats_missing"))
    await subscribed(hub, "heartbeat")
    await many_more(looks)
    assert len(lines(caplog, "beats_")) == 1
