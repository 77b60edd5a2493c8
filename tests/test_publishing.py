"""The publisher's side."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import weakref
from typing import Any

import pytest
from channels.layers import InMemoryChannelLayer
from django.core.exceptions import SynchronousOnlyOperation

from realtime import CloseMessage, Topic, aclose_connections, close_connections, link, publish, publishing
from realtime.events import AckEvent
from realtime.exceptions import LayerUnavailable
from realtime.hub import get_hub
from realtime.publishing import CloseOutcome, abeat, apublish_payload, publish_payload

from .memory import (
    TIMEOUT,
    Layer,
    RemoteLayer,
    clean_process,  # noqa: F401
    local_connection,
    started_hub,
    subscribed,
    the_layer,
    until,
    use_layer,
)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for the layer less long."""
    monkeypatch.setattr(publishing, "PUBLISH_TIMEOUT", 0.05)


# Events


async def test_publication_reaches_the_hub() -> None:
    Topic("news")
    connection = await subscribed(await started_hub(), "news")
    await apublish_payload("news", '{"a":1}')
    await until(lambda: connection.wire.data == [{"a": 1}])


async def test_publication_of_this_process_makes_no_detour_through_the_in_memory_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = use_layer(InMemoryChannelLayer())
    connection = await subscribed(await started_hub(), "news")
    beating = await subscribed(get_hub(), "heartbeat")
    monkeypatch.setattr(layer, "group_send", None)
    await apublish_payload("news", '{"a":1}')
    assert connection.wire.data == [{"a": 1}]
    await asyncio.to_thread(publish_payload, "news", "2")
    assert connection.wire.data == [{"a": 1}, 2]
    await asyncio.to_thread(lambda: asyncio.run(apublish_payload("news", "3")))
    assert connection.wire.data == [{"a": 1}, 2, 3]
    beats = len(beating.wire.messages)
    await abeat(time.time() + 100)
    assert len(beating.wire.messages) == beats + 1


async def test_publisher_that_does_not_wait_gives_way_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    use_layer(InMemoryChannelLayer())
    await subscribed(await started_hub(), "news")
    monkeypatch.setattr(link, "LARGEST_TURN", 100)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    for _ in range(100):
        await apublish_payload("news", f'"{"a" * 48}"')
    task.cancel()
    assert turns >= 40


async def test_publishers_side_by_side_give_way_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    use_layer(InMemoryChannelLayer())
    connection = await subscribed(await started_hub(), "news")
    monkeypatch.setattr(link, "LARGEST_TURN", 100)
    most = seen = 0

    async def other() -> None:
        nonlocal most, seen
        while True:
            most, seen = max(most, len(connection.wire.data) - seen), len(connection.wire.data)
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await asyncio.gather(*(apublish_payload("news", f'"{number:048}"') for number in range(200)))
    task.cancel()
    assert [int(text) for text in connection.wire.data] == [*range(200)]
    assert most <= 5


async def test_publication_goes_through_a_layer_that_is_derived_from_the_in_memory_one() -> None:
    connection = await subscribed(await started_hub(), "news")
    assert isinstance(the_layer(), InMemoryChannelLayer)
    await apublish_payload("news", "1")
    assert "1" in [message.get("payload") for message in the_layer().sent]
    await until(lambda: connection.wire.data == [1])


async def test_publication_carries_when_it_was_sent() -> None:
    await apublish_payload("news", "1")
    assert the_layer().sent[0]["sent_at"] == pytest.approx(time.time(), abs=5)


async def test_beat_carries_its_slot() -> None:
    await abeat(1000.0)
    assert the_layer().sent[0]["slot"] == 1000.0


async def test_publish_from_a_thread_runs_on_the_hubs_loop() -> None:
    connection = await subscribed(await started_hub(), "news")
    await asyncio.to_thread(publish_payload, "news", "1")
    await until(lambda: connection.wire.data == [1])


async def test_apublish_on_another_loop_runs_on_the_hubs() -> None:
    connection = await subscribed(await started_hub(), "news")
    await asyncio.to_thread(lambda: asyncio.run(apublish_payload("news", "1")))
    await until(lambda: connection.wire.data == [1])


def test_publish_without_a_server_reaches_nobody_and_raises_nothing() -> None:
    publish_payload("news", "1")


def test_publish_uses_one_background_loop() -> None:
    publish_payload("news", "1")
    threads = [thread for thread in threading.enumerate() if thread.name == "realtime-publisher"]
    publish_payload("news", "2")
    assert [thread for thread in threading.enumerate() if thread.name == "realtime-publisher"] == threads
    assert len(threads) == 1


def test_publish_on_another_layer_uses_the_background_loop() -> None:
    layer = use_layer(RemoteLayer())
    publish_payload("news", "1")
    assert [message["payload"] for message in layer.sent] == ["1"]


class SlowLayer(Layer):
    """Take a moment for each event."""

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        await asyncio.sleep(0.01)
        await super().group_send(group, message)


def test_loop_that_has_published_is_forgotten() -> None:
    use_layer(SlowLayer())

    async def burst() -> weakref.ref[Any]:
        await asyncio.gather(*(apublish_payload("news", "1") for _ in range(3)))
        return weakref.ref(asyncio.get_running_loop())

    loop = asyncio.run(burst())
    asyncio.run(burst())  # whoever comes next cleans up
    gc.collect()
    assert loop() is None


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_publish_from_a_forked_child_takes_a_loop_of_its_own() -> None:
    Topic("news")
    publish("news", "from the parent")
    child = os.fork()
    if child == 0:
        try:
            publish("news", "from the child")
            os._exit(len(the_layer().sent))
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2


@pytest.mark.parametrize(
    ("name", "call"),
    [("publish", lambda: publish_payload("news", "1")), ("close_connections", lambda: close_connections())],
)
async def test_sync_function_on_a_running_loop_names_its_twin(name: str, call: Any) -> None:
    with pytest.raises(SynchronousOnlyOperation, match=rf"^{name}\(\) would block .*: await a{name}\(\) instead$"):
        call()


# A layer in trouble


async def test_apublish_while_the_layer_fails_raises() -> None:
    the_layer().failing = True
    with pytest.raises(LayerUnavailable, match="the channel layer failed: ConnectionError"):
        await apublish_payload("news", "1")


async def test_apublish_while_the_layer_hangs_raises_in_time(impatient: None) -> None:
    the_layer().hanging = True
    with pytest.raises(LayerUnavailable, match=r"did not take the event within 0\.05 s"):
        await apublish_payload("news", "1")


def test_publish_while_the_layer_fails_raises() -> None:
    the_layer().failing = True
    with pytest.raises(LayerUnavailable, match="the channel layer failed: ConnectionError"):
        publish_payload("news", "1")


def test_publish_while_the_layer_hangs_raises_in_time(impatient: None) -> None:
    the_layer().hanging = True
    with pytest.raises(LayerUnavailable, match=r"did not take the event within 0\.05 s"):
        publish_payload("news", "1")


def test_publish_while_the_background_loop_is_stuck_raises_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    publishing._background.loop().call_soon_threadsafe(release.wait)
    with pytest.raises(LayerUnavailable, match=r"publish\(\) did not finish within 0\.05 s"):
        publishing._run("publish", lambda: apublish_payload("news", "1"), timeout=0.05)
    release.set()


async def test_burst_while_the_layer_hangs_fails_as_a_whole_in_the_time_of_one(impatient: None) -> None:
    the_layer().hanging = True
    began = time.monotonic()
    outcomes = await asyncio.gather(
        *(apublish_payload("news", str(number)) for number in range(100)), return_exceptions=True
    )
    assert {type(outcome) for outcome in outcomes} == {LayerUnavailable}
    assert time.monotonic() - began < 4  # not 100 times the timeout


async def test_burst_that_takes_longer_than_one_event_may_is_no_failure(impatient: None) -> None:
    layer = use_layer(SlowLayer())
    await asyncio.gather(*(apublish_payload("news", str(number)) for number in range(20)))
    assert [message["payload"] for message in layer.sent] == [str(number) for number in range(20)]


async def test_publish_after_a_failure_is_tried_again() -> None:
    the_layer().failing = True
    with pytest.raises(LayerUnavailable):
        await apublish_payload("news", "1")
    the_layer().failing = False
    await apublish_payload("news", "2")
    assert [message["payload"] for message in the_layer().sent] == ["2"]


async def test_publish_that_is_cancelled_lets_the_next_go_on() -> None:
    layer = the_layer()
    layer.hanging = True
    first = asyncio.create_task(apublish_payload("news", "1"))
    await until(lambda: layer.calls)
    second = asyncio.create_task(apublish_payload("news", "2"))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    layer.hanging = False
    await second
    assert [message["payload"] for message in layer.sent] == ["2"]


async def test_abeat_while_the_layer_fails_raises() -> None:
    the_layer().failing = True
    with pytest.raises(LayerUnavailable):
        await abeat(0)


async def test_close_while_the_layer_fails_raises() -> None:
    the_layer().failing = True
    with pytest.raises(LayerUnavailable):
        await aclose_connections()


async def test_close_while_the_layer_hangs_raises_in_time(impatient: None) -> None:
    the_layer().hanging = True
    with pytest.raises(LayerUnavailable):
        await aclose_connections()


async def test_close_while_the_layer_hangs_and_nobody_waits_any_more_leaves_no_task() -> None:
    before = asyncio.all_tasks()
    layer = the_layer()
    layer.hanging, layer.only = True, "send"
    closing = asyncio.create_task(aclose_connections())
    await until(lambda: "send" in layer.calls)
    closing.cancel()
    await asyncio.wait([closing])
    layer.hanging = False
    await until(lambda: asyncio.all_tasks() <= before, timeout=2)


# Closing


async def test_answer_that_comes_twice_counts_once() -> None:
    acks = [
        AckEvent(server="one", connections=2),
        AckEvent(server="one", connections=0),
        AckEvent(server="one", part=1, connections=3),
        AckEvent(server="two", connections=4),
    ]
    async with publishing._Inbox(the_layer()) as inbox:
        for ack in acks:
            await the_layer().send(inbox.channel, ack.to_message())
        assert await inbox.collect(3, wait=TIMEOUT) == [acks[0], *acks[2:]]


async def test_close_reaches_all_connections() -> None:
    hub = await started_hub()
    connections = [local_connection(hub) for _ in range(3)]
    assert await aclose_connections(CloseMessage(code=4000, reason="bye")) == CloseOutcome(1, 3, 0)
    assert [connection.wire.closed_with for connection in connections] == [(4000, "bye")] * 3


async def test_close_by_default_is_an_operators() -> None:
    connection = local_connection(await started_hub())
    await aclose_connections()
    assert connection.wire.closed_with == (1001, "closed by operator")


async def test_close_with_1006_drops_the_connections() -> None:
    connection = local_connection(await started_hub())
    assert await aclose_connections(CloseMessage(code=1006)) == CloseOutcome(1, 1, 0)
    assert connection.wire.aborted
    assert connection.wire.closed_with is None


async def test_close_by_topic_leaves_the_others() -> None:
    hub = await started_hub()
    reader, other = await subscribed(hub, "news"), await subscribed(hub, "sport")
    assert await aclose_connections(topic="news") == CloseOutcome(1, 1, 0)
    assert (reader.wire.closed, other.wire.closed) == (True, False)


async def test_close_by_a_topic_that_nobody_reads_closes_nobody() -> None:
    local_connection(await started_hub())
    assert await aclose_connections(topic="nowhere") == CloseOutcome(1, 0, 0)


async def test_close_by_ids_leaves_the_others() -> None:
    hub = await started_hub()
    one, other = local_connection(hub), local_connection(hub)
    assert await aclose_connections(ids=[one.id, "unknown"]) == CloseOutcome(1, 1, 0)
    assert (one.wire.closed, other.wire.closed) == (True, False)


async def test_close_by_an_id_given_twice_counts_it_once() -> None:
    hub = await started_hub()
    one = local_connection(hub)
    assert await aclose_connections(ids=[one.id, one.id]) == CloseOutcome(1, 1, 0)


async def test_close_by_no_ids_closes_nobody() -> None:
    connection = local_connection(await started_hub())
    outcome = await aclose_connections(ids=[])
    assert (outcome.connections, outcome.unknown) == (0, 0)
    assert not connection.wire.closed


async def test_close_by_many_ids_sends_a_thousand_an_event() -> None:
    hub = await started_hub()
    connections = [local_connection(hub) for _ in range(2001)]
    assert await aclose_connections(ids=[connection.id for connection in connections]) == CloseOutcome(1, 2001, 0)
    events = [message for message in the_layer().sent if message["kind"] == "close"]
    assert [len(event["ids"]) for event in events] == [1000, 1000, 1]


async def test_close_counts_a_connection_that_is_closed_already_no_more() -> None:
    local_connection(await started_hub())
    await aclose_connections()
    assert await aclose_connections() == CloseOutcome(1, 0, 0)


async def test_close_without_a_server_closes_nobody_at_once() -> None:
    assert await aclose_connections(wait=60) == CloseOutcome(0, 0, 0)


async def test_close_that_a_server_does_not_answer_is_unknown_of_it() -> None:
    local_connection(await started_hub())
    await the_layer().group_add("realtime.all", "realtime.inmemory!deaf")
    assert await aclose_connections(wait=0.05) == CloseOutcome(1, 1, 1)


async def test_close_on_a_layer_that_does_not_tell_how_many_servers_there_are() -> None:
    use_layer(RemoteLayer())
    local_connection(await started_hub())
    assert await aclose_connections(wait=0.05) == CloseOutcome(1, 1, None)


async def test_close_whose_inbox_gets_what_it_does_not_understand_goes_on() -> None:
    class LayerWithNewerServers(Layer):
        async def send(self, channel: str, message: dict[str, Any]) -> None:
            if message["kind"] == "ack":
                await super().send(channel, {"type": message["type"], "kind": "of tomorrow"})
            await super().send(channel, message)

    use_layer(LayerWithNewerServers())
    local_connection(await started_hub())
    assert await aclose_connections(wait=0.5) == CloseOutcome(1, 1, 0)


async def test_close_from_a_thread() -> None:
    connection = local_connection(await started_hub())
    assert await asyncio.to_thread(close_connections, CloseMessage(code=1012)) == CloseOutcome(1, 1, 0)
    assert connection.wire.closed_with == (1012, "closed by operator")


async def test_close_leaves_nothing_behind() -> None:
    hub = await started_hub()
    tasks, groups = asyncio.all_tasks(), {name: dict(group) for name, group in the_layer().groups.items()}
    for _ in range(20):
        await aclose_connections()
    await until(lambda: asyncio.all_tasks() <= tasks)
    assert set(the_layer().groups) == set(groups)
    assert set(the_layer().channels) <= {hub.link.channel}


async def test_close_by_topic_and_by_ids_is_refused() -> None:
    with pytest.raises(ValueError, match="close by one of topic, user, session and ids"):
        await aclose_connections(topic="news", ids=["1"])


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["spread", "wait"])
async def test_close_with_a_time_that_cannot_be_is_refused(name: str, seconds: float) -> None:
    with pytest.raises(ValueError, match="spread and wait are seconds"):
        await aclose_connections(**{name: seconds})
    assert the_layer().sent == []


def test_close_from_sync_code_with_a_time_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="spread and wait are seconds"):
        close_connections(spread=-1)


async def test_close_refuses_an_illegal_code_before_anything_is_sent() -> None:
    with pytest.raises(ValueError, match="1005 is not a close code"):
        await aclose_connections(CloseMessage(code=1005))
    assert the_layer().sent == []
