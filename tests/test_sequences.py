"""Numbers of publications, and what is missing among them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime import sequences as sequences_module
from realtime.publishing import apublish_payload
from realtime.sequences import Heard, Sequences

from .memory import RemoteLayer, clean_process, the_layer, use_layer  # noqa: F401


@pytest.fixture
def few_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences_module, "NUMBERED_TOPICS", 3)


@pytest.fixture
def few_publishers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences_module, "HEARD_PUBLISHERS", 3)


def numbers(sequences: Sequences, topics: Iterable[str]) -> list[int]:
    return [sequences.number(topic)[1] for topic in topics]


def missing(heard: Heard, publisher: str, numbers: Iterable[int]) -> list[int]:
    return [heard.missing(publisher, number) for number in numbers]


# Numbering


def test_publications_of_a_topic_are_numbered_from_one() -> None:
    assert numbers(Sequences(), ["news"] * 4) == [1, 2, 3, 4]


def test_each_topic_is_numbered_on_its_own() -> None:
    assert numbers(Sequences(), ["news", "sport", "news", "sport", "sport"]) == [1, 1, 2, 2, 3]


def test_publisher_of_a_topic_stays_the_same() -> None:
    sequences = Sequences()
    assert len({sequences.number("news")[0] for _ in range(100)}) == 1


def test_publisher_that_began_anew_is_another() -> None:
    assert len({Sequences().number("news")[0] for _ in range(100)}) == 100


def test_topics_that_are_numbered_are_bounded() -> None:
    sequences = Sequences()
    for number in range(sequences_module.NUMBERED_TOPICS + 100):
        sequences.number(f"topic {number}")
    assert len(sequences._topics) == sequences_module.NUMBERED_TOPICS


def test_ten_thousand_topics_are_numbered_side_by_side() -> None:
    sequences = Sequences()
    topics = [f"topic {number}" for number in range(10_000)]
    numbers(sequences, topics)
    assert set(numbers(sequences, topics)) == {2}


def test_topic_that_was_given_up_begins_again_with_a_new_publisher(few_topics: None) -> None:
    sequences = Sequences()
    before = sequences.number("news")
    numbers(sequences, "abc")
    after = sequences.number("news")
    assert (before[1], after[1]) == (1, 1)
    assert before[0] != after[0]


def test_topic_that_was_given_up_and_has_the_number_that_comes_next_makes_no_false_gap(few_topics: None) -> None:
    sequences, heard = Sequences(), Heard()
    assert [heard.missing(*sequences.number("news")) for _ in range(3)] == [0, 0, 0]
    numbers(sequences, "abc")
    assert [heard.missing(*sequences.number("news")) for _ in range(5)] == [0] * 5


def test_topic_that_is_given_up_is_the_one_published_on_longest_ago(few_topics: None) -> None:
    sequences = Sequences()
    assert numbers(sequences, ["a", "b", "c", "a", "d", "a", "c", "d"]) == [1, 1, 1, 2, 1, 3, 2, 2]
    assert numbers(sequences, ["b"]) == [1]


def test_publishers_of_one_process_never_share_an_id(few_topics: None) -> None:
    sequences = Sequences()
    first = [publisher for publisher, number in map(sequences.number, "abcdeabcdeabcdefg") if number == 1]
    assert len(set(first)) == len(first) > 7


# Other event loops, and other processes


async def test_other_event_loops_are_other_publishers() -> None:
    use_layer(RemoteLayer())
    await apublish_payload("news", "1")
    for _ in range(2):
        await asyncio.to_thread(lambda: asyncio.run(apublish_payload("news", "1")))
    await apublish_payload("news", "1")
    publishers = [message["publisher"] for message in the_layer().sent]
    assert len(set(publishers)) == 3
    assert publishers[0] == publishers[-1]
    assert [message["sequence"] for message in the_layer().sent] == [1, 1, 1, 2]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_event_loop_that_goes_on_in_a_forked_child_is_another_publisher() -> None:
    loop = asyncio.new_event_loop()
    loop.run_until_complete(apublish_payload("news", "1"))
    child = os.fork()
    if child == 0:
        try:
            loop.run_until_complete(apublish_payload("news", "1"))
            first, second = the_layer().sent
            os._exit(first["publisher"] == second["publisher"])
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    loop.close()


# What is missing


def test_nothing_is_missing_among_numbers_in_a_row() -> None:
    assert missing(Heard(), "p", range(1, 6)) == [0] * 5


def test_numbers_that_were_left_out_are_missing_once() -> None:
    assert missing(Heard(), "p", [1, 2, 5, 6, 8]) == [0, 0, 2, 0, 1]


@pytest.mark.parametrize("first", [1, 2, 17, 10**12])
def test_nothing_is_missing_for_who_listens_late(first: int) -> None:
    assert missing(Heard(), "p", [first, first + 1]) == [0, 0]


def test_number_that_was_heard_already_is_below_zero() -> None:
    assert missing(Heard(), "p", [1, 2, 2]) == [0, 0, -1]


def test_number_that_comes_after_a_later_one_is_below_zero() -> None:
    assert missing(Heard(), "p", [1, 4, 2, 3]) == [0, 2, -3, -2]


def test_number_that_comes_late_makes_no_gap_for_the_next() -> None:
    assert missing(Heard(), "p", [1, 2, 3, 1, 4]) == [0, 0, 0, -3, 0]


def test_publishers_have_numbers_of_their_own() -> None:
    heard = Heard()
    assert missing(heard, "p", [1, 2, 4]) == [0, 0, 1]
    assert missing(heard, "q", [1, 2, 4]) == [0, 0, 1]
    assert missing(heard, "p", [5]) == [0]


def test_publisher_that_began_anew_makes_no_gap_and_comes_not_too_late() -> None:
    heard = Heard()
    for _ in range(3):
        sequences = Sequences()
        assert [heard.missing(*sequences.number("news")) for _ in range(5)] == [0] * 5


def test_nothing_is_missing_after_all_was_forgotten() -> None:
    heard = Heard()
    missing(heard, "p", [1, 2])
    heard.clear()
    assert missing(heard, "p", [7, 9]) == [0, 1]


def test_nothing_comes_too_late_after_all_was_forgotten() -> None:
    heard = Heard()
    missing(heard, "p", [8, 9])
    heard.clear()
    assert missing(heard, "p", [1, 2]) == [0, 0]


def test_all_is_forgotten_twice_without_harm() -> None:
    heard = Heard()
    heard.clear()
    missing(heard, "p", [1])
    heard.clear()
    heard.clear()
    assert missing(heard, "p", [3]) == [0]


def test_publishers_that_are_kept_are_bounded() -> None:
    heard = Heard()
    for number in range(sequences_module.HEARD_PUBLISHERS + 100):
        heard.missing(f"publisher {number}", 1)
    assert heard._last is not None
    assert len(heard._last) == sequences_module.HEARD_PUBLISHERS


def test_gap_of_each_of_many_publishers_is_seen() -> None:
    heard = Heard()
    publishers = [f"publisher {number}" for number in range(sequences_module.HEARD_PUBLISHERS)]
    for publisher in publishers:
        heard.missing(publisher, 1)
    assert {heard.missing(publisher, 3) for publisher in publishers} == {1}


def test_publisher_that_begins_anew_again_and_again_takes_one_place() -> None:
    sequences, heard = Sequences(), Heard()
    for _ in range(100):
        sequences._topics.clear()  # as if it had published on too many others
        assert heard.missing(*sequences.number("news")) == 0
    assert heard._last is not None
    assert len(heard._last) == 1
    sequences.number("news")
    assert heard.missing(*sequences.number("news")) == 1


def test_publisher_that_was_given_up_makes_no_gap_and_comes_not_too_late(few_publishers: None) -> None:
    for number in (1, 3, 10):
        heard = Heard()
        missing(heard, "p", [3])
        for publisher in "abc":
            heard.missing(publisher, 1)
        assert heard.missing("p", number) == 0


def test_publisher_that_is_given_up_is_the_one_heard_longest_ago(few_publishers: None) -> None:
    heard = Heard()
    for publisher in "abcad":  # gives b up
        heard.missing(publisher, 1)
    assert [heard.missing(publisher, 5) for publisher in "acd"] == [3, 3, 3]
    assert heard.missing("b", 5) == 0


# Whatever gets lost

events = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["news", "sport"]), st.booleans()), max_size=60)
"""Which publisher publishes on which topic, in the order of arrival, and whether it arrives."""


@given(events)
def test_what_is_told_to_be_missing_is_what_was_lost_between_the_first_and_the_last(events: Any) -> None:
    publishers = [Sequences() for _ in range(4)]
    heard = {"news": Heard(), "sport": Heard()}
    told: dict[tuple[int, str], int] = {}
    arrived: dict[tuple[int, str], list[bool]] = {}
    for number, topic, arrives in events:
        publisher, sequence = publishers[number].number(topic)
        arrived.setdefault((number, topic), []).append(arrives)
        if arrives:
            gap = heard[topic].missing(publisher, sequence)
            assert gap >= 0
            told[number, topic] = told.get((number, topic), 0) + gap
    lost = {}
    for key, arrivals in arrived.items():
        if True in arrivals:
            first, last = arrivals.index(True), len(arrivals) - arrivals[::-1].index(True)
            lost[key] = arrivals[first:last].count(False)
    assert told == lost


@given(st.lists(st.tuples(st.sampled_from("pq"), st.integers(1, 12)), max_size=40))
def test_what_is_not_late_is_in_order_and_what_is_late_changes_nothing(arrivals: list[tuple[str, int]]) -> None:
    heard, without_late = Heard(), Heard()
    newest: dict[str, int] = {}
    for publisher, number in arrivals:
        gap = heard.missing(publisher, number)
        assert (gap < 0) == (number <= newest.get(publisher, 0))
        if gap >= 0:
            assert gap == number - newest.get(publisher, number - 1) - 1
            assert without_late.missing(publisher, number) == gap
            newest[publisher] = number


@given(st.lists(st.sampled_from("abcdef"), max_size=80), st.integers(1, 4))
def test_nothing_is_missing_where_nothing_is_lost_however_few_numbers_are_kept(topics: list[str], kept: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequences_module, "NUMBERED_TOPICS", kept)
        patch.setattr(sequences_module, "HEARD_PUBLISHERS", kept)
        publishers = [Sequences(), Sequences(), Sequences()]
        heard = {topic: Heard() for topic in "abcdef"}
        for turn, topic in enumerate(topics):
            publisher, sequence = publishers[turn % 3].number(topic)
            assert heard[topic].missing(publisher, sequence) == 0
            assert len(publishers[turn % 3]._topics) <= kept
