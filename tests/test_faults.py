"""The faults without a server: the very bytes, what they have in common, and what a strict client makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json
from websockets.frames import CloseCode, Opcode
from websockets.protocol import Protocol, Side, State

from realtime.testing import faults
from realtime.testing.connection import Keeper
from realtime.testing.faults.pipeline import MOST_BYTES, MOST_STEPS, Interposer, Kind, kind_of
from realtime.testing.frames import Action, Drop, Frame, HalfClose, Handshake, Wait, Write

from .fault_table import (
    ANSWER,
    BEAT,
    CLOSE,
    ECHO,
    PING,
    PUBLICATION,
    ROWS,
    SENT,
    SENT_BEAT,
    SUBSCRIBED,
    Row,
    play,
    text,
)

ANSWERS = Frame(Opcode.TEXT, ANSWER)
BEATS = Frame(Opcode.TEXT, BEAT)


def interposer(*chosen: faults.Fault, number: int = 1) -> Interposer:
    result = faults.interposer_for(chosen, number)
    assert result is not None
    return result


def written(actions: Iterable[Action]) -> bytes:
    return b"".join(action.data for action in actions if isinstance(action, Write))


def read(wire: bytes, max_size: int = 1 << 20) -> Protocol:
    """Return a client that has read ``wire``."""
    client = Protocol(Side.CLIENT, state=State.OPEN, max_size=max_size)
    client.receive_data(wire)
    return client


def messages(client: Protocol) -> list[tuple[int, bytes]]:
    return [(event.opcode, bytes(event.data)) for event in client.events_received()]  # type: ignore[union-attr]


# The table


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_fault_puts_these_very_bytes_on_the_wire(row: Row) -> None:
    assert play(row) == (row.does, row.by_itself)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_fault_does_this_to_the_handshake(row: Row) -> None:
    assert interposer(row.fault).handshake() == row.handshake


def test_the_table_has_a_row_for_every_fault_and_no_name_twice() -> None:
    assert {row.fault.name() for row in ROWS} == {fault.name() for fault in faults.FAULTS}
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_every_fault_says_what_a_good_client_does() -> None:
    for fault in faults.FAULTS:
        assert fault.on_the_wire().endswith(".")
        assert fault.good_client().endswith((".", ")"))
        undocumented = {name for name, field in fault.model_fields.items() if not field.description}
        assert undocumented == {"fault"}


# A strict client that is not ours


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (faults.ReservedBits(), CloseCode.PROTOCOL_ERROR),
        (faults.Masked(), CloseCode.PROTOCOL_ERROR),
        (faults.HugeFrame(), CloseCode.MESSAGE_TOO_BIG),
        (faults.HugeClaim(), CloseCode.MESSAGE_TOO_BIG),
        (faults.CloseFrame(code=1005), CloseCode.PROTOCOL_ERROR),
        (faults.CloseFrame(code=1006), CloseCode.PROTOCOL_ERROR),
        (faults.CloseFrame(code=1015), CloseCode.PROTOCOL_ERROR),
        (faults.CloseFrame(code=999), CloseCode.PROTOCOL_ERROR),
        (faults.CloseFrame(code=65_535), CloseCode.PROTOCOL_ERROR),
        (faults.CloseFrame(code=None), CloseCode.PROTOCOL_ERROR),
        (faults.CloseFrame(code=1013, reason="full"), CloseCode.TRY_AGAIN_LATER),
    ],
    ids=str,
)
def test_a_strict_client_closes_with(fault: faults.Fault, code: CloseCode) -> None:
    between = interposer(fault)

    client = read(written([*between.opened(), *between.outgoing(ANSWERS)]))

    assert client.close_sent is not None
    assert client.close_sent.code == code


def test_invalid_utf8_is_no_utf8_in_a_legal_text_frame() -> None:
    [(opcode, payload)] = messages(read(written(interposer(faults.InvalidUtf8()).outgoing(ANSWERS))))

    assert opcode == Opcode.TEXT
    with pytest.raises(UnicodeDecodeError):
        payload.decode()


@pytest.mark.parametrize("pieces", [2, 3, 7, 1000])
def test_a_client_puts_the_fragments_together(pieces: int) -> None:
    client = read(written(interposer(faults.Fragment(pieces=pieces)).outgoing(ANSWERS)))
    received = messages(client)

    assert b"".join(payload for opcode, payload in received if opcode != Opcode.PING) == ANSWER
    assert [opcode for opcode, _ in received[:3]] == [Opcode.TEXT, Opcode.PING, Opcode.CONT]
    assert client.close_sent is None


def test_a_huge_frame_is_still_the_same_json() -> None:
    [(_, payload)] = messages(read(written(interposer(faults.HugeFrame(size=100_000)).outgoing(ANSWERS))))

    assert len(payload) == 100_000
    assert from_json(payload) == from_json(ANSWER)


# Whom they strike


@pytest.mark.parametrize(
    ("what", "struck"),
    [
        ("answers", [ANSWER, SUBSCRIBED]),
        ("beats", [BEAT]),
        ("publications", [PUBLICATION]),
        ("messages", [ANSWER, SUBSCRIBED, BEAT, PUBLICATION]),
        ("everything", [ANSWER, SUBSCRIBED, BEAT, PUBLICATION, b"pong"]),
    ],
)
def test_a_fault_strikes_only_what_it_is_to(what: Any, struck: list[bytes]) -> None:
    between = interposer(faults.Lose(what=what))
    frames = [Frame(Opcode.TEXT, payload) for payload in (ANSWER, SUBSCRIBED, BEAT, PUBLICATION)]

    lost = [frame.payload for frame in [*frames, Frame(Opcode.PONG, b"pong")] if not between.outgoing(frame)]

    assert lost == struck


@pytest.mark.parametrize(
    ("frame", "kind"),
    [
        (Frame(Opcode.TEXT, b'{"type":"error","message":"no"}'), Kind.ANSWER),
        (Frame(Opcode.TEXT, b'{"type":"gap","topic":"a"}'), Kind.PUBLICATION),
        (Frame(Opcode.BINARY, ANSWER), Kind.ANSWER),
        (Frame(Opcode.TEXT, b'{"type":7}'), Kind.OTHER),
        (Frame(Opcode.TEXT, b'"type"'), Kind.OTHER),
        (Frame(Opcode.TEXT, b"\xff"), Kind.OTHER),
        (Frame(Opcode.PING), Kind.PING),
        (Frame(Opcode.CONT, ANSWER), Kind.OTHER),
    ],
    ids=str,
)
def test_a_frame_is_of_this_kind(frame: Frame, kind: Kind) -> None:
    assert kind_of(frame) == kind


def test_a_fault_spares_the_first_and_strikes_so_often() -> None:
    between = interposer(faults.Lose(after=2, times=3))

    assert [bool(between.outgoing(ANSWERS)) for _ in range(7)] == [True, True, False, False, False, True, True]


def test_chance_strikes_about_as_often_as_it_is_likely() -> None:
    between = interposer(faults.Lose(probability=0.25))

    assert 200 < sum(not between.outgoing(ANSWERS) for _ in range(1000)) < 300


@pytest.mark.parametrize("fault", [faults.Refuse(probability=0.5), faults.PingFlood(probability=0.5)], ids=str)
def test_chance_strikes_some_connections(fault: faults.Fault) -> None:
    struck = [number for number in range(1, 201) if faults.interposer_for([fault], number)]

    assert 70 < len(struck) < 130
    assert struck == [number for number in range(1, 201) if faults.interposer_for([fault], number)]


def test_a_handshake_fault_strikes_some_connections_of_a_session() -> None:
    fault = faults.Refuse(after=1, times=2)

    assert [faults.interposer_for([fault], number) is not None for number in range(1, 6)] == [
        *(False, True, True, False, False)
    ]


def test_a_fault_of_open_connections_strikes_some_connections_of_a_session() -> None:
    fault = faults.Lose(from_connection=2, connections=1)

    assert [faults.interposer_for([fault], number) is not None for number in range(1, 5)] == [
        *(False, True, False, False)
    ]


def test_no_faults_put_nothing_between() -> None:
    assert faults.interposer_for([], 1) is None


def test_connections_are_counted_from_one() -> None:
    with pytest.raises(ValueError, match="counted from 1, but the number is 0"):
        faults.interposer_for([], 0)


def test_only_so_many_faults_go_together() -> None:
    with pytest.raises(ValueError, match="at most 32 faults go together, but there are 33"):
        faults.interposer_for([faults.Lose()] * 33, 1)


@pytest.mark.parametrize(
    "payload", [b"[]", b"no JSON", b'{"type":"x_response","n":%b}' % (b"9" * 5000)], ids=["list", "text", "long-number"]
)
def test_a_message_that_cannot_be_changed_is_sent_as_it_is(payload: bytes) -> None:
    frame = Frame(Opcode.TEXT, payload)

    assert interposer(faults.UnknownType(what="messages")).outgoing(frame) == [Write(frame.encode())]


def test_a_connection_is_half_closed_only_once() -> None:
    between = interposer(faults.HalfClose(after=1), faults.HalfClose())

    assert between.opened() == [HalfClose()]
    assert between.outgoing(ANSWERS) == []


def test_another_seed_strikes_others() -> None:
    def lost(seed: int, number: int) -> list[bool]:
        between = interposer(faults.Lose(probability=0.5, seed=seed), number=number)
        return [not between.outgoing(ANSWERS) for _ in range(50)]

    assert lost(1, 1) == lost(1, 1)
    assert lost(1, 1) != lost(2, 1)
    assert lost(1, 1) != lost(1, 2)


# Several together


def test_faults_strike_in_the_order_given() -> None:
    duplicate, lose = faults.Duplicate(), faults.Lose(times=1)

    assert interposer(duplicate, lose).outgoing(ANSWERS) == [SENT]
    assert interposer(lose, duplicate).outgoing(ANSWERS) == []


def test_a_changed_answer_is_still_an_answer_to_the_next_fault() -> None:
    between = interposer(faults.UnknownType(), faults.Binary())

    assert between.outgoing(ANSWERS) == [
        Write(text(b'{"type":"surprise","reqId":"1","status":"OK","data":{"echo":"Hello"}}', 0x82))
    ]


def test_what_a_fault_sends_by_itself_goes_through_those_after_it() -> None:
    between = interposer(faults.PingFlood(count=1, rate=10), faults.Delay(seconds=1, what="everything"))

    assert between.tick() == (0.1, [Wait(1), Write(b"\x89\x011")])
    assert between.tick() is None


def test_what_happens_by_itself_happens_in_the_order_of_time() -> None:
    between = interposer(faults.PingFlood(count=2, rate=4), faults.DemandPongs(interval=0.4, timeout=3))

    ticks = [between.tick() for _ in range(4)]

    assert [tick and tick[0] for tick in ticks] == [0.25, 0.15, 0.1, 0.3]


def test_a_narrow_line_is_narrow_for_what_the_faults_after_it_send() -> None:
    between = interposer(faults.Bandwidth(bytes_per_second=1000), faults.Duplicate())

    actions = between.outgoing(ANSWERS)

    assert written(actions) == text(ANSWER) * 2
    assert sum(action.seconds for action in actions if isinstance(action, Wait)) == pytest.approx(0.152)


def test_handshakes_add_up() -> None:
    between = interposer(faults.SlowAccept(seconds=1), faults.Refuse(status=403), faults.SlowAccept(seconds=2))

    assert between.handshake() == Handshake(status=403, delay=3)


def test_nothing_comes_after_the_connection_was_dropped() -> None:
    between = interposer(faults.PingFlood(), faults.Drop(after=1), faults.Duplicate())

    assert between.outgoing(ANSWERS) == [SENT, SENT, Drop()]
    assert between.outgoing(ANSWERS) == []
    assert between.tick() is None


def test_a_connection_that_is_half_closed_can_still_be_dropped() -> None:
    between = interposer(faults.HalfClose(after=1), faults.DemandPongs(interval=1, timeout=1))

    assert between.outgoing(ANSWERS) == [SENT, HalfClose()]
    assert between.tick() == (1, [])
    assert between.tick() == (1, [])
    assert between.tick() == (0, [Drop()])


def test_a_client_that_answers_pings_is_not_dropped() -> None:
    between = interposer(faults.DemandPongs(interval=1, timeout=1))

    for number in range(1, 50):
        assert between.tick() == (1, [Write(text(b"%d" % number, 0x89))])
        assert between.incoming(Frame(Opcode.PONG, b"%d" % number)) is None


@pytest.mark.parametrize("payload", [b"", b"2", b"0", b"-1", b"one", b"9" * 125, "²".encode()])
def test_a_pong_that_nobody_asked_for_does_not_count(payload: bytes) -> None:
    between = interposer(faults.DemandPongs(interval=1, timeout=1))
    between.tick()
    assert between.incoming(Frame(Opcode.PONG, payload)) is None
    between.tick()

    assert between.tick() == (0, [Drop()])


def test_a_reordering_never_keeps_the_order() -> None:
    frames = [Frame(Opcode.TEXT, b'{"type":"x_response","reqId":"%d"}' % n) for n in range(5)]
    between = interposer(faults.Reorder(window=5))

    sent = [action for frame in frames for action in between.outgoing(frame)]

    assert sent != [Write(frame.encode()) for frame in frames]
    assert sorted(map(repr, sent)) == sorted(repr(Write(frame.encode())) for frame in frames)


def test_what_is_held_back_has_a_bound() -> None:
    between = interposer(faults.Burst())
    frame = Frame(Opcode.TEXT, b'{"type":"x_response","data":"%b"}' % (b"x" * 300_000))

    assert [len(between.outgoing(frame)) for _ in range(4)] == [0, 0, 0, 4]


def test_faults_that_multiply_each_other_have_a_bound() -> None:
    many = interposer(*[faults.Duplicate(copies=10)] * 32)
    big = interposer(faults.HugeFrame(size=1 << 22), *[faults.Duplicate(copies=10)] * 3)

    assert len(many.outgoing(ANSWERS)) == MOST_STEPS
    assert 0 < len(written(big.outgoing(ANSWERS))) <= MOST_BYTES


# Any frame, any fault


def _faults() -> st.SearchStrategy[faults.Fault]:
    common = {"seed": st.integers(0, 9), "probability": st.sampled_from([0.0, 0.5, 1.0])}
    kinds = []
    for fault in faults.FAULTS:
        given = dict(common)
        if "after" in fault.model_fields:
            given["after"] = st.integers(0, 2)
        if "what" in fault.model_fields:
            given["what"] = st.sampled_from(["answers", "messages"])
        if "size" in fault.model_fields:
            given["size"] = st.just(1 << 17)
        if "window" in fault.model_fields:
            given["window"] = st.integers(2, 4)
        kinds.append(st.builds(fault, **given))
    return st.one_of(kinds)


FRAMES = st.builds(
    Frame,
    opcode=st.integers(0, 15),
    payload=st.one_of(
        st.binary(max_size=200),
        st.sampled_from([ANSWER, BEAT, PUBLICATION, b"", b"[]", b'{"type":null}', b'{"type":"a_response","n":1e999}']),
        st.just(b'{"type":"a_response","n":%b}' % (b"9" * 5000)),
        st.just(b'{"type":"a_response","n":NaN,"t":"\\ud800"}'),
        st.just(b'{"type":"error","deep":' + b"[" * 5000 + b"]" * 5000 + b"}"),
    ),
    final=st.booleans(),
    reserved=st.integers(0, 7),
)


def _run(chosen: Sequence[faults.Fault], frames: Sequence[Frame], number: int) -> list[Any]:
    between = faults.interposer_for(chosen, number)
    if between is None:
        return []
    seen: list[Any] = [between.handshake(), between.opened()]
    for frame in frames:
        seen += [between.incoming(frame), between.outgoing(frame), between.tick()]
    return seen


@settings(max_examples=150)
@given(st.lists(_faults(), min_size=1, max_size=4), st.lists(FRAMES, max_size=8), st.integers(1, 3))
def test_the_same_seed_gives_the_same_and_nothing_ever_raises(
    chosen: list[faults.Fault], frames: list[Frame], number: int
) -> None:
    seen = _run(chosen, frames, number)

    assert seen == _run(chosen, frames, number)
    for actions in seen[1:]:
        if isinstance(actions, tuple):
            assert 0 <= actions[0] <= 3600
            actions = actions[1]
        assert len(written(actions or ())) <= MOST_BYTES
        assert all(0 <= action.seconds <= 3600 for action in actions or () if isinstance(action, Wait))


@settings(max_examples=50)
@given(st.lists(_faults(), max_size=5))
def test_a_fault_survives_the_way_through_json(chosen: list[faults.Fault]) -> None:
    assert list(faults.parse([fault.model_dump() for fault in chosen])) == chosen
    assert list(faults.parse(f"[{','.join(fault.model_dump_json() for fault in chosen)}]")) == chosen


@settings(max_examples=50)
@given(st.lists(st.sampled_from([ANSWERS, BEATS]), max_size=30), st.integers(0, 99))
def test_reordering_and_bursts_lose_nothing(frames: list[Frame], seed: int) -> None:
    between = interposer(faults.Reorder(seed=seed, window=3), faults.Burst())
    sent = [action for frame in frames for action in between.outgoing(frame)]
    for _ in range(6):
        tick = between.tick()
        assert tick is not None
        sent += tick[1]

    assert sorted(map(repr, sent)) == sorted(repr(Write(frame.encode())) for frame in frames)


# Errors


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([{"fault": "nap"}], "fault 1: there is no fault 'nap'; there are refuse, wrong-subprotocol, "),
        ([{}], "fault 1: there is no fault None; there are refuse"),
        ([{"fault": "lose"}, {"fault": "drop", "rst": True}], r"fault 2 \(drop.rst\): there is no such field; there "),
        ([{"fault": "delay", "seconds": -1}], r"fault 1 \(delay.seconds\): input should be greater than or equal to 0"),
        ([{"fault": "delay", "seconds": "1"}], r"fault 1 \(delay.seconds\): input should be a valid number"),
        ([{"fault": "lose", "what": "all"}], "input should be 'answers', 'beats', 'publications', 'messages' or"),
        ([{"fault": "invalid-json", "text": "{}"}], "'{}' is valid JSON"),
        ([{"fault": "close-frame", "reason": "é" * 62}], "the reason has 124 bytes of UTF-8, at most 123 fit"),
        ([{"fault": "reorder", "times": 1}], "times is 1, and must be at least window, 2"),
        ([7], "fault 1: input should be"),
        ("nope", "the list of faults: invalid JSON"),
        ([{"fault": "lose"}] * 33, "the list of faults: list should have at most 32 items"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_error_says_what_is_wrong_and_what_is_legal(given: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        faults.parse(given)


@pytest.mark.parametrize(
    ("fault", "field", "value"),
    [
        (faults.HugeFrame, "size", (1 << 24) + 1),
        (faults.HugeFrame, "times", 17),
        (faults.PingFlood, "count", 10_001),
        (faults.PingFlood, "rate", 1001.0),
        (faults.Duplicate, "copies", 11),
        (faults.Fragment, "pieces", 1001),
        (faults.Delay, "seconds", float("inf")),
        (faults.Delay, "jitter", 61.0),
        (faults.SlowAccept, "seconds", 3601.0),
        (faults.Reorder, "window", 101),
        (faults.Burst, "seconds", 0.0),
        (faults.Bandwidth, "bytes_per_second", 99),
        (faults.DemandPongs, "interval", 0.0),
        (faults.Refuse, "status", 200),
        (faults.Refuse, "retry_after", 86_401),
        (faults.WrongSubprotocol, "subprotocol", "a\r\nSet-Cookie: b"),
        (faults.CloseFrame, "code", 65_536),
        (faults.Lose, "probability", float("nan")),
        (faults.Lose, "times", 0),
    ],
)
def test_no_number_is_without_bounds(fault: type[faults.Fault], field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field):
        fault.model_validate({"fault": fault.name(), field: value})


def test_every_number_has_two_bounds() -> None:
    for fault in faults.FAULTS:
        for name, schema in fault.model_json_schema()["properties"].items():
            for kind in schema.get("anyOf", [schema]):
                if kind.get("type") in ("integer", "number"):
                    assert {"minimum", "exclusiveMinimum"} & set(kind), (fault, name)
                    assert {"maximum", "exclusiveMaximum"} & set(kind), (fault, name)


def test_the_schema_of_any_fault_tells_them_apart_and_explains_each() -> None:
    schema = TypeAdapter(faults.AnyFault).json_schema()

    mapping = schema["discriminator"]["mapping"]
    assert set(mapping) == {fault.name() for fault in faults.FAULTS}
    for reference in mapping.values():
        kind = schema["$defs"][reference.removeprefix("#/$defs/")]
        assert kind["description"]
        assert kind["additionalProperties"] is False


def test_beats_go_on_where_only_answers_are_struck() -> None:
    assert interposer(faults.InvalidJson()).outgoing(BEATS) == [SENT_BEAT]


def test_the_frames_of_the_client_are_handled_as_usual() -> None:
    between = interposer(faults.Lose(what="everything"))

    assert [between.incoming(frame) for frame in (ECHO, PING, CLOSE)] == [None, None, None]


def test_what_one_fault_gives_back_goes_through_those_after_it() -> None:
    between = interposer(faults.Burst(), faults.Duplicate(), faults.Reorder(window=100))
    assert isinstance(between, Keeper)
    assert [*between.outgoing(ANSWERS)] == []

    assert [*between.release()] == [Write(text(ANSWER))] * 2
    assert [*between.release()] == []
