"""Cases of messages: answers that come late, twice or not at all, and what a client does not know."""

from __future__ import annotations

import json

from ..faults import Delay, Duplicate, Fault, Lose, Mute, Reorder
from ..transcript import Entry
from .framing import beat
from .stage import Stage
from .verdicts import Cases, Failed, Level, NotObserved

MESSAGES = Cases()

PAIRS = 4
"""Answers that a client tells of, after which it is believed to match them well."""

ANSWERED = "answered "
"""
What the text of an echo request begins with in which a client tells what it took for the answers to earlier ones.

There follows JSON: a list of pairs of the text that was sent and the text that came back.
"""


def answered(text: object) -> list[tuple[str, str]]:
    """Return the pairs in the text of such an echo request; none where it is another."""
    if not isinstance(text, str) or not text.startswith(ANSWERED):
        return []
    try:
        return [(str(sent), str(came)) for sent, came in json.loads(text.removeprefix(ANSWERED))]
    except (ValueError, TypeError):
        return []


def _is_injected(stage: Stage, payload: bytes) -> str:
    connection = stage.connect()
    before = len(stage.attempts)
    stage.text(connection, payload)
    return stage.lives_on(connection, before)


@MESSAGES.case(
    "unknown-type",
    Level.MUST,
    "A message of a type that the client does not know is ignored, so that the server can learn new ones.",
)
def _unknown_type(stage: Stage) -> str:
    connection = stage.connect()
    stage.text(connection, b'{"type":"surprise","topic":"heartbeat"}')
    stage.answers_ping(connection)
    return "it stayed connected, and answered a ping afterwards"


@MESSAGES.case(
    "unknown-fields",
    Level.MUST,
    "Fields that the client does not know are ignored, so that messages can grow.",
)
def _unknown_fields(stage: Stage) -> str:
    connection = stage.connect()
    stage.text(connection, beat(surprise={"a": [1, None]}))
    stage.answers_ping(connection)
    return "it stayed connected, and answered a ping afterwards"


@MESSAGES.case(
    "invalid-json",
    Level.SHOULD,
    "A text that is no JSON is dropped, or the client closes and comes back; it does not end with an exception.",
)
def _invalid_json(stage: Stage) -> str:
    return _is_injected(stage, b'{"type":oops}')


@MESSAGES.case(
    "no-object",
    Level.SHOULD,
    "JSON that is no object is dropped, or the client closes and comes back; it does not end with an exception.",
)
def _no_object(stage: Stage) -> str:
    return _is_injected(stage, b"null")


@MESSAGES.case(
    "req-ids",
    Level.SHOULD,
    "Requests have a reqId each, different for all of a connection, so that answers can be told apart.",
)
def _req_ids(stage: Stage) -> str:
    connection = stage.connect()
    stage.wait(lambda entries: len(_requests(stage, connection)) > 2 or None, stage.times.patience)
    ids = _requests(stage, connection)
    if len(ids) < 2:
        raise NotObserved(f"it sent {len(ids)} requests, and two are needed")
    if None in ids:
        raise Failed(f"{ids.count(None)} of its {len(ids)} requests had no reqId")
    if len(set(ids)) < len(ids):
        raise Failed(f"it used a reqId twice on one connection: {', '.join(map(str, ids[:8]))}")
    return f"its {len(ids)} requests had a reqId each"


def _requests(stage: Stage, connection: str) -> list[object]:
    messages = [entry.message or {} for entry in stage.received(connection)]
    return [each.get("reqId") for each in messages if str(each.get("type", "")).endswith("_request")]


def _echoes(stage: Stage) -> str:
    """Return the connection of a client that sends an echo request now and then: one more after it had an answer."""
    connection = stage.connect()

    def again(entries: list[Entry]) -> bool | None:
        kinds = [(each.message or {}).get("type") for each in entries if each.connection == connection]
        answers = [number for number, kind in enumerate(kinds) if kind == "echo_response"]
        return True if answers and "echo_request" in kinds[answers[0] :] else None

    if stage.wait(again, stage.times.patience) is None:
        raise NotObserved("it sent no echo request after another")
    return connection


def _matches(stage: Stage, fault: Fault) -> str:
    """Look at what a client takes for the answers to its echo requests, if it tells."""
    connection = _echoes(stage)
    stage.strike(fault)
    before, known = len(stage.attempts), len(stage.received(connection))

    def told() -> list[tuple[str, str]]:
        texts = [(entry.message or {}).get("echo") for entry in stage.received(connection)[known:]]
        return [pair for text in texts for pair in answered(text)]

    def enough(entries: list[Entry]) -> bool | None:
        pairs = told()
        return True if len(pairs) >= PAIRS or any(sent != came for sent, came in pairs) else None

    stage.wait(enough, stage.times.patience)
    for sent, came in told():
        if sent != came:
            raise Failed(f"it took {came[:60]!r} for the answer to {sent[:60]!r}")
    lived = stage.lives_on(connection, before)
    if not told():
        raise NotObserved(f"{lived}, but does not tell what it took for the answers (see the guide)")
    return f"it took {len(told())} answers for what they were"


@MESSAGES.case(
    "answers-late",
    Level.SHOULD,
    "An answer that comes late is that to its own request, not to a later one.",
)
def _answers_late(stage: Stage) -> str:
    return _matches(stage, Delay(seconds=min(1.5, stage.times.patience / 8)))


@MESSAGES.case(
    "answers-reordered",
    Level.SHOULD,
    "Answers are matched to requests by reqId, whatever the order in which they come.",
)
def _answers_reordered(stage: Stage) -> str:
    return _matches(stage, Reorder(window=2, hold=min(1.5, stage.times.patience / 8)))


@MESSAGES.case("answers-twice", Level.SHOULD, "An answer that comes a second time is ignored.")
def _answers_twice(stage: Stage) -> str:
    connection = _echoes(stage)
    stage.strike(Duplicate())
    return _goes_on(stage, connection, stage.times.patience, requests=2)  # the first is struck


@MESSAGES.case(
    "answers-of-others",
    Level.SHOULD,
    "An answer with a reqId that the client did not send is ignored.",
)
def _answers_of_others(stage: Stage) -> str:
    connection = _echoes(stage)
    stage.text(connection, b'{"type":"echo_response","reqId":"of nobody","status":"OK","data":{"echo":"x"}}')
    return _goes_on(stage, connection, stage.times.patience)


@MESSAGES.case(
    "answer-missing",
    Level.SHOULD,
    "A request that is never answered times out, and what the client does goes on.",
)
def _answer_missing(stage: Stage) -> str:
    connection = _echoes(stage)
    stage.strike(Lose(times=1))
    return _goes_on(stage, connection, stage.times.timeout, requests=2)  # the first is struck


def _goes_on(stage: Stage, connection: str, seconds: float, *, requests: int = 1) -> str:
    """See whether a client sends so many further requests, one after the other, or gives up and comes back."""
    before = next(n for n, each in enumerate(stage.attempts, 1) if each.connection == connection)
    for _ in range(requests):
        try:
            stage.answers_ping(connection)  # by then it has sent what it sends together with its last request
        except Failed:
            if stage.end_of(connection, 0) is None:
                raise
        sent = len(_requests(stage, connection))

        def another(entries: list[Entry], sent: int = sent) -> bool | None:
            return bool(stage.attempts[before:]) or len(_requests(stage, connection)) > sent or None

        if stage.wait(another, seconds) is None:
            raise Failed(f"it sent no further request: {stage.client.ended or 'it is connected, and waits'}")
        if stage.attempts[before:]:
            return "it gave up the connection, and came back"
    return "it went on with its requests"


@MESSAGES.case(
    "zombie",
    Level.SHOULD,
    "When nothing comes any more although the TCP connection is open, the client notices and comes back.",
)
def _zombie(stage: Stage) -> str:
    connection = stage.connect()
    stage.wait_for_request(connection, "subscribe_request")
    stage.answers_ping(connection)
    before = len(stage.attempts)
    stage.strike(Mute(connections=1))
    seconds = stage.comes_back(before, stage.times.silence)
    return f"it gave up the silent connection and came back after {seconds:.1f} s"
