"""What crosses the layer."""

from __future__ import annotations

from typing import Any

import pytest
from channels.layers import BaseChannelLayer
from hypothesis import given
from hypothesis import strategies as st

from realtime.events import (
    ALL_GROUP,
    CHANNELS_TYPE,
    AckEvent,
    BeatEvent,
    CloseEvent,
    PingEvent,
    PublicationEvent,
    from_message,
    group_name,
    next_slot,
)
from realtime.protocol import CloseCode

moments = st.floats(0, 4e9)
events = st.one_of(
    st.builds(PublicationEvent, topic=st.text(), payload=st.text(), sent_at=moments),
    st.builds(BeatEvent, slot=moments, sent_at=moments),
    st.builds(
        CloseEvent,
        code=st.integers(1000, 4999),
        reason=st.text(),
        topic=st.none() | st.text(),
        ids=st.none() | st.lists(st.text()),
        spread=moments,
        reply_to=st.none() | st.text(),
    ),
    st.builds(AckEvent, server=st.text(), connections=st.integers()),
    st.builds(PingEvent, nonce=st.text()),
)


@given(events)
def test_event_comes_back_from_its_message(event: Any) -> None:
    assert from_message(event.to_message()) == event


@given(events)
def test_event_message_holds_only_what_every_layer_serialises_alike(event: Any) -> None:
    for value in event.to_message().values():
        assert type(value) in (str, int, float) or [type(item) for item in value] == [str] * len(value)


@given(events)
def test_event_message_has_one_type_whatever_the_client_sent(event: Any) -> None:
    assert event.to_message()["type"] == "realtime.event"


def test_event_message_leaves_out_what_is_absent() -> None:
    message = CloseEvent(code=CloseCode.GOING_AWAY, reason="").to_message()
    assert message == {"type": CHANNELS_TYPE, "kind": "close", "code": 1001, "reason": "", "spread": 0.0, "part": 0}
    assert type(message["code"]) is int


def test_event_with_unknown_fields_is_read() -> None:
    assert from_message({"type": CHANNELS_TYPE, "kind": "ping", "nonce": "1", "new": {}}) == PingEvent(nonce="1")


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"type": "chat.message"},
        {"type": None, "kind": "ping", "nonce": "1"},
        {"type": [], "kind": "ping", "nonce": "1"},
        {"type": CHANNELS_TYPE},
        {"type": CHANNELS_TYPE, "kind": "dance"},
        {"type": CHANNELS_TYPE, "kind": None},
        {"type": CHANNELS_TYPE, "kind": ["ping"], "nonce": "1"},
        {"type": CHANNELS_TYPE, "kind": "ping"},
        {"type": CHANNELS_TYPE, "kind": "ping", "nonce": {}},
        {"type": CHANNELS_TYPE, "kind": "publication", "topic": "t", "payload": b"\xff", "sent_at": 0},
        {"type": CHANNELS_TYPE, "kind": "beat", "slot": "soon", "sent_at": 0},
        {"type": CHANNELS_TYPE, "kind": "close", "code": 1000, "reason": "", "ids": "all"},
    ],
)
def test_message_that_holds_no_event_raises_value_error(message: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        from_message(message)


@given(st.text(st.characters(), max_size=300))  # lone surrogates too
def test_group_name_is_legal_whatever_the_topic(topic: str) -> None:
    assert BaseChannelLayer().require_valid_group_name(group_name(topic))


@given(st.text(), st.text())
def test_group_names_differ_as_topics_differ(one: str, other: str) -> None:
    assert (group_name(one) == group_name(other)) == (one == other)


def test_group_name_is_the_same_in_every_process_and_version() -> None:
    assert group_name("heartbeat") == "realtime.topic.a313ca03c29cf033f6c584c1ddc253dc"


def test_group_of_all_hubs_is_no_topics() -> None:
    assert not group_name("").startswith(ALL_GROUP)


@pytest.mark.parametrize(
    ("interval", "now", "slot"),
    [(5, 0, 5), (5, 4.999, 5), (5, 5, 10), (0.5, 10.2, 10.5), (60, 1795367281.67, 1795367340)],
)
def test_next_slot_is_a_multiple_of_the_interval(interval: float, now: float, slot: float) -> None:
    assert next_slot(interval, now) == slot


@given(st.floats(0.01, 86400), st.floats(1e9, 4e9))
def test_next_slot_is_ahead_by_at_most_the_interval(interval: float, now: float) -> None:
    assert 0 < next_slot(interval, now) - now <= interval + 1e-6


@given(st.floats(0.01, 86400), st.floats(1e9, 4e9))
def test_next_slot_of_a_slot_is_another(interval: float, now: float) -> None:
    slot = next_slot(interval, now)
    assert next_slot(interval, slot) > slot
