"""
Complaints: written once, counted, and with nothing raw in them that a client wrote.

Formats: what is a field of a line, and that whatever a client wrote can neither forge one nor break the line.
"""

from __future__ import annotations

import io
import json
import logging
import logging.config
import logging.handlers
import math
import pickle
import queue
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry import trace
from pydantic import BaseModel, ConfigDict, ValidationError

from realtime import logs
from realtime.logs import (
    LONGEST_MESSAGE,
    LONGEST_TEMPLATE,
    MAX_KINDS,
    REPEAT_AFTER,
    JsonFormatter,
    LineFormatter,
    LogContext,
    complain,
    escaped,
    fields_of,
    log_context,
    presentable,
    tell_repetitions,
)

logger = logging.getLogger("realtime.test_logs")
KIND = "event=refused reason=path"
NASTY = {
    "newline": "a\nevent=forged level=ERROR",
    "carriage return": "a\revent=forged",
    "escape": "\x1b[31mred",
    "bidi": "abc\u202edef",
    "line separator": "a\u2028b",
    "null": "a\0b",
    "C1": "a\x9bb",
    "surrogate": "a\ud800b",
}


class Clock:
    """Be the time, which stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """The time that complaints are made at; each test begins without any."""
    clock = Clock()
    monkeypatch.setattr(logs, "time", clock)
    logs._complaints.clear()
    yield clock
    logs._complaints.clear()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    """Return the messages that were logged so far."""
    caplog.set_level(logging.DEBUG)
    return lambda: [record.getMessage() for record in caplog.records]


def complain_of(path: str, kind: str = KIND) -> None:
    complain(logger, logging.INFO, kind, "path=%.200r", path)


# How often


def test_complaint_is_written_with_its_level_and_arguments(lines: Any, caplog: pytest.LogCaptureFixture) -> None:
    complain_of("/a")
    assert lines() == ["event=refused reason=path path='/a'"]
    assert (caplog.records[0].levelno, caplog.records[0].name) == (logging.INFO, logger.name)


def test_complaint_of_one_kind_is_written_once(lines: Any) -> None:
    for number in range(1000):
        complain_of(f"/{number}")
    assert lines() == ["event=refused reason=path path='/0'"]


def test_complaint_of_another_kind_is_written(lines: Any) -> None:
    complain_of("/a")
    complain_of("/a", "event=refused reason=origin")
    assert len(lines()) == 2


def test_complaint_that_comes_again_later_is_written_with_the_count_first(lines: Any, clock: Clock) -> None:
    for path in ("/a", "/b", "/c"):
        complain_of(path)
    clock.now += REPEAT_AFTER
    complain_of("/d")
    assert lines() == [f"{KIND} path='/a'", f"{KIND} repeated=2", f"{KIND} path='/d'"]


def test_complaint_that_comes_just_before_its_time_is_counted(lines: Any, clock: Clock) -> None:
    complain_of("/a")
    clock.now += REPEAT_AFTER - 0.01
    complain_of("/b")
    assert lines() == [f"{KIND} path='/a'"]


def test_repetitions_are_told_once_a_complaint_is_old(lines: Any, clock: Clock) -> None:
    complain_of("/a")
    complain_of("/b")
    tell_repetitions()
    assert len(lines()) == 1
    clock.now += REPEAT_AFTER
    tell_repetitions()
    assert lines()[1:] == [f"{KIND} repeated=1"]
    tell_repetitions()
    assert len(lines()) == 2


def test_repetitions_are_told_at_the_complaints_level(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    for _ in range(2):
        complain(logger, logging.ERROR, KIND, "")
    clock.now += REPEAT_AFTER
    tell_repetitions()
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2


def test_repetitions_of_what_came_once_are_not_told(lines: Any, clock: Clock) -> None:
    complain_of("/a")
    clock.now += REPEAT_AFTER
    tell_repetitions()
    assert len(lines()) == 1


def test_complaint_is_forgotten_once_its_repetitions_were_told(lines: Any, clock: Clock) -> None:
    complain_of("/a")
    clock.now += REPEAT_AFTER
    tell_repetitions()
    assert logs._complaints == {}
    complain_of("/b")
    assert lines()[-1] == f"{KIND} path='/b'"


def test_complaints_of_any_number_of_kinds_take_no_more_room_and_lines_than_the_most(lines: Any) -> None:
    for number in range(MAX_KINDS * 3):
        complain_of("/a", f"event=failed error=Made{number}")
    assert len(logs._complaints) <= MAX_KINDS + 1
    assert len(lines()) <= MAX_KINDS + 1


def test_complaints_beyond_the_most_kinds_are_counted_as_one(lines: Any, clock: Clock) -> None:
    for number in range(MAX_KINDS + 5):
        complain_of("/a", f"event=failed error=Made{number}")
    clock.now += REPEAT_AFTER
    tell_repetitions()
    assert lines()[-1] == "event=complaint repeated=4"


def test_complaint_of_a_known_kind_is_told_apart_though_there_are_the_most_kinds(lines: Any, clock: Clock) -> None:
    complain_of("/a")
    for number in range(MAX_KINDS):
        complain_of("/a", f"event=failed error=Made{number}")
    complain_of("/b")
    clock.now += REPEAT_AFTER
    tell_repetitions()
    assert f"{KIND} repeated=1" in lines()


@pytest.mark.parametrize("name", ["load.100%", "50%s", "%(x)s"])
def test_complaint_whose_kind_holds_a_percent_sign_is_written(lines: Any, name: str) -> None:
    complain(logger, logging.ERROR, f"event=handler_failed topic={name!r}", "connection=%s", "1")
    assert lines() == [f"event=handler_failed topic={name!r} connection=1"]


def test_complaint_without_more_to_say_is_its_kind(lines: Any, caplog: pytest.LogCaptureFixture) -> None:
    complain(logger, logging.ERROR, "event=failed part='100%'", "", error=raised(ValueError("x")))
    assert lines() == ["event=failed part='100%'"]
    assert fields_of(caplog.records[0]) == {"event": "failed", "part": "'100%'"}


# What


def written(error: BaseException) -> str:
    """Return what the log holds once ``error`` was complained of, as a handler formats it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logs._complaints.clear()
    logger.addHandler(handler)
    try:
        complain(logger, logging.ERROR, "event=failed", "connection=%s", "1", error=error)
    finally:
        logger.removeHandler(handler)
    return stream.getvalue()


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    """Return ``error`` with a traceback of this function, as if raised from ``cause``."""
    try:
        raise error from cause
    except BaseException as caught:  # noqa: BLE001
        return caught


def assert_harmless(text: str) -> None:
    """Nothing in ``text`` moves the cursor, begins a line that is not the log's, or turns the text around."""
    raw = [unicodedata.category(character) for character in text if character != "\n"]
    assert not {"Cc", "Cf", "Cs", "Zl", "Zp", "Co", "Cn"} & set(raw)
    assert not any(line.startswith("event=forged") for line in text.splitlines())


class Silly(Exception):
    """An exception with a text of its own making."""

    def __str__(self) -> str:
        return f"silly {self.args[0]}"


def as_cause(text: str) -> BaseException:
    return raised(RuntimeError("outer"), raised(ValueError(text)))


def as_context(text: str) -> BaseException:
    try:
        try:
            raise ValueError(text)
        except ValueError:
            raise RuntimeError("outer")  # noqa: B904 - the context is what is tested
    except RuntimeError as error:
        return error


HOLDERS: dict[str, Any] = {
    "message": lambda text: raised(ValueError(text)),
    "two arguments": lambda text: raised(ValueError(text, text)),
    "key": lambda text: raised(KeyError(text)),
    "file": lambda text: raised(OSError(2, "not there", text)),
    "own text": lambda text: raised(Silly(text)),
    "cause": as_cause,
    "context": as_context,
    "group": lambda text: raised(ExceptionGroup(text, [ValueError(text)])),
    "group in a group": lambda text: raised(ExceptionGroup("outer", [ExceptionGroup(text, [Silly(text)])])),
    "not raised": ValueError,
}


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS)
def test_exception_is_written_without_anything_raw(holder: Any, text: str) -> None:
    log = written(holder(text))
    assert_harmless(log)
    assert log.startswith("ERROR event=failed connection=1\n")


@given(st.text(st.characters(), max_size=400), st.sampled_from(list(HOLDERS)))
def test_exception_is_written_without_anything_raw_whatever_it_says(text: str, holder: str) -> None:
    assert_harmless(written(HOLDERS[holder](text)))


def test_exception_with_a_note_is_written_without_anything_raw() -> None:
    error = raised(ValueError("clean"))
    error.add_note("\x1b[31m\nevent=forged")
    assert_harmless(written(error))


def test_exception_is_written_with_its_name_text_and_traceback() -> None:
    log = written(raised(ValueError("no such thing")))
    assert log.splitlines()[-1] == "ValueError: no such thing"
    assert "raise error from cause" in log


def test_exception_that_had_to_be_escaped_keeps_its_name_and_traceback() -> None:
    log = written(raised(Silly("a\nb")))
    assert log.splitlines()[-1] == rf"{__name__}.Silly: silly a\nb"
    assert "raise error from cause" in log


def test_exception_that_is_clean_is_written_as_it_is() -> None:
    error = raised(ValueError("clean"))
    likeness = presentable(error)
    assert (type(likeness).__name__, str(likeness)) == ("ValueError", "clean")
    assert likeness.__traceback__ is error.__traceback__


def test_exception_that_goes_on_and_on_is_cut() -> None:
    log = written(raised(ValueError("x" * 100_000)))
    assert len(log) < 2000
    assert "x" * LONGEST_MESSAGE + "..." in log


@pytest.mark.parametrize("holder", [as_cause, as_context], ids=["cause", "context"])
def test_causes_are_written_with_their_tracebacks(holder: Any) -> None:
    log = written(holder("inner\x00"))
    assert log.count("Traceback (most recent call last):") == 2
    assert r"ValueError: inner\x00" in log
    assert log.splitlines()[-1] == "RuntimeError: outer"


def test_context_that_was_suppressed_is_not_written() -> None:
    try:
        try:
            raise ValueError("inner")
        except ValueError:
            raise RuntimeError("outer") from None
    except RuntimeError as error:
        log = written(error)
    assert "inner" not in log


def test_causes_without_end_are_written_to_some_depth() -> None:
    error: BaseException = ValueError("0")
    for number in range(1, 200):
        error = raised(ValueError(str(number)), error)
    assert 5 < written(error).count("Traceback") <= 20


def test_causes_in_a_circle_are_written_to_some_depth() -> None:
    first, second = raised(ValueError("first")), raised(ValueError("second"))
    first.__cause__, second.__cause__ = second, first
    assert written(first).count("Traceback") <= 20


def test_group_is_written_with_the_names_of_what_is_in_it() -> None:
    log = written(raised(ExceptionGroup("two failed", [ValueError("one"), KeyError("two")])))
    assert "two failed" in log.splitlines()[-1]
    assert "ValueError: one, KeyError: 'two'" in log.splitlines()[-1]


class Item(BaseModel):
    """What a client's data does not fit."""

    model_config = ConfigDict(extra="forbid")

    number: int
    code: str


def failed_validation(data: Any) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        Item.model_validate(data)
    return caught.value


def test_validation_error_shows_why_and_no_input() -> None:
    log = written(raised(failed_validation({"number": "sesame", "code": ["sesame"]})))
    assert "sesame" not in log
    assert "2 errors for Item: int_parsing, string_type" in log


def test_validation_error_as_a_cause_shows_no_input() -> None:
    log = written(raised(RuntimeError("outer"), failed_validation({"number": "sesame", "code": ""})))
    assert "sesame" not in log
    assert "int_parsing" in log


def test_validation_error_in_a_group_shows_no_input() -> None:
    error = ExceptionGroup("several", [failed_validation({"number": "sesame", "code": ""})])
    assert "sesame" not in written(raised(error))


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_validation_error_over_a_key_is_written_without_anything_raw(text: str) -> None:
    error = failed_validation({"number": 1, "code": "", text.encode("utf-8", "replace").decode(): 1})
    assert_harmless(written(raised(error)))


class Mute(Exception):
    """An exception that has no text to give."""

    def __str__(self) -> str:
        raise ZeroDivisionError("no text")


class MuteArgument:
    """Be what an exception of the built-in kinds is raised with."""

    def __str__(self) -> str:
        raise ZeroDivisionError("no text")

    __repr__ = __str__


def test_exception_whose_text_cannot_be_had_is_written_without() -> None:
    log = written(raised(Mute()))
    assert log.splitlines()[-1] == f"{__name__}.Mute: (its message cannot be had: ZeroDivisionError)"
    assert "raise error from cause" in log


def test_cause_whose_text_cannot_be_had_is_written_without() -> None:
    log = written(raised(RuntimeError("outer"), raised(Mute())))
    assert "Mute: (its message cannot be had: ZeroDivisionError)" in log
    assert log.splitlines()[-1] == "RuntimeError: outer"


def test_exception_whose_argument_has_no_text_is_written_without() -> None:
    log = written(raised(ValueError(MuteArgument())))
    assert log.splitlines()[-1] == "ValueError: (its message cannot be had: ZeroDivisionError)"


@given(st.text(st.characters(), max_size=1000))
def test_escaped_text_is_one_printable_line(text: str) -> None:
    assert escaped(text).isprintable()


@given(st.text(st.characters(exclude_categories=["C", "Z"]), max_size=LONGEST_MESSAGE))
def test_escaped_text_that_is_printable_is_itself(text: str) -> None:
    assert escaped(text) == text


# Fields


def record_of(template: Any, *args: Any, name: str = logger.name, level: int = logging.INFO, **more: Any) -> Any:
    """Return what is handed to formatters when ``template`` is logged with ``args``."""
    return logging.LogRecord(name, level, "/srv/site/views.py", 7, template, args, more.pop("exc_info", None), **more)


def fields(template: Any, *args: Any, **more: Any) -> dict[str, Any]:
    return fields_of(record_of(template, *args, **more))


class Code(IntEnum):
    NORMAL = 1000


@pytest.mark.parametrize(
    ("template", "args", "expected"),
    [
        ("event=disconnected connection=%s", ("id",), {"event": "disconnected", "connection": "id"}),
        ("event=refused reason=path path=%r", ("/a",), {"event": "refused", "reason": "path", "path": "'/a'"}),
        ("event=x a=%d b=%i", (1, -2), {"event": "x", "a": 1, "b": -2}),
        ("event=x a=%d", (Code.NORMAL,), {"event": "x", "a": 1000}),
        ("event=x a=%05d b=0%d", (42, 7), {"event": "x", "a": 42, "b": "07"}),
        ("event=x a=%g b=%g c=%.1f", (0.25, 5.0, 2.34), {"event": "x", "a": 0.25, "b": 5, "c": 2.3}),
        ("event=x a=%g b=%g", (float("inf"), float("nan")), {"event": "x", "a": "inf", "b": "nan"}),
        ("event=x a=%d", (2**53,), {"event": "x", "a": str(2**53)}),
        ("event=x a=%d", (2**53 - 1,), {"event": "x", "a": 2**53 - 1}),
        ("event=x a=%s b=%s", (1, True), {"event": "x", "a": "1", "b": "True"}),
        ("event=x a=%.2fs", (1.5,), {"event": "x", "a": "1.50s"}),
        ("event=x a=%.3r", ("abcdef",), {"event": "x", "a": "'ab"}),
        ("event=x a=%*d b=%.*f c=%s", (4, 1, 2, 0.5, "z"), {"event": "x", "a": 1, "b": 0.5, "c": "z"}),
        ("event=x a=%d%% b=%s", (50, "z"), {"event": "x", "a": "50%", "b": "z"}),
        ("event=%s kind=%s", ("unknown", "a"), {"event": "unknown", "kind": "a"}),
        ("event=x error=%r%s", ("e", " hint='y z'"), {"event": "x", "error": "'e' hint='y z'"}),
        ("event=x reason=no more, so far a=%d", (1,), {"event": "x", "reason": "no more, so far", "a": 1}),
        ("event=x topic='a b=c' a=%d", (1,), {"event": "x", "topic": "'a b=c'", "a": 1}),
        (r"event=x topic='it\'s b=c' a=%d", (1,), {"event": "x", "topic": r"'it\'s b=c'", "a": 1}),
        ('event=x topic="it\'s b=c" a=%d', (1,), {"event": "x", "topic": '"it\'s b=c"', "a": 1}),
        ("event=x topic='%s b=%s' a=%d", ("p", "q", 1), {"event": "x", "topic": "'p b=q'", "a": 1}),
        ("event=x topic='100%%' a=%d", (1,), {"event": "x", "topic": "'100%'", "a": 1}),
        ("event=x reason=' a=%d", (1,), {"event": "x", "reason": "'", "a": 1}),
        ("event=x a= b=%d", (1,), {"event": "x", "a": "", "b": 1}),
        ("event=x a=%d a=%d", (1, 2), {"event": "x", "a": 1}),
        ("event=x a-b=%d", (1,), {"event": "x a-b=1"}),
        ("event=x %s=%d", ("a", 1), {"event": "x a=1"}),
        ("event=beats_back", (), {"event": "beats_back"}),
        ("event=invalid_utf8 close=1007", (), {"event": "invalid_utf8", "close": "1007"}),
        ("event=x a=100%", (), {"event": "x", "a": "100%"}),
        ("event=x a=%(a)s b=%(b)d", ({"a": "y", "b": 2},), {"event": "x", "a": "y", "b": 2}),
        ("event=x a=%s", ({"a": 1},), {"event": "x", "a": "{'a': 1}"}),
        ("event=x a=%s b=%s", ({"a": 1}, 2), {"event": "x", "a": "{'a': 1}", "b": "2"}),
        ("event=x a=%s", ((1, 2),), {"event": "x", "a": "(1, 2)"}),
        ("event=x a=%s", (b"\xff",), {"event": "x", "a": r"b'\xff'"}),
    ],
)
def test_fields_are_those_of_the_template(template: str, args: tuple[Any, ...], expected: dict[str, Any]) -> None:
    found = fields(template, *args)
    assert found == expected
    assert [type(value) for value in found.values()] == [type(value) for value in expected.values()]


@pytest.mark.parametrize(
    ("template", "args"),
    [
        ("Not Found: %s", ("/event=x a=b",)),
        ("%s repeated=%d", ("event=x", 1)),
        (" event=x a=%s", ("y",)),
        ("", ()),
        (ValueError("event=x"), ()),
        (None, ()),
        ("event=x a=%s", ("y", "z")),
        ("event=x a=%s b=%s", ("y",)),
        ("event=x a=%*d", (1,)),
        ("event=x a=%s b=%s", ({"a": 1},)),
        ("event=x \0a=%s", ("y",)),
        ("event=x " + "a" * LONGEST_TEMPLATE + "=%s", ("y",)),
    ],
)
def test_line_that_is_another_has_no_fields(template: Any, args: tuple[Any, ...]) -> None:
    assert fields(template, *args) == {}


def test_line_without_arguments_has_fields_only_where_it_is_this_packages() -> None:
    client = "somebody admin=yes"
    assert fields(f"event=login user={client}", name="shop.views") == {}
    assert fields(f"event=login user={client}", name="realtimes") == {}
    assert fields("event=login user=%s", client, name="shop.views") == {"event": "login", "user": client}


def test_line_that_was_formatted_before_has_no_fields() -> None:
    handler = logging.handlers.QueueHandler(queue.SimpleQueue())
    assert fields_of(handler.prepare(record_of("event=x a=%s", "y admin=yes"))) == {}
    sent = logging.handlers.SocketHandler("localhost", 0).makePickle(record_of("event=x a=%s", "y admin=yes"))
    assert fields_of(logging.makeLogRecord(pickle.loads(sent[4:]))) == {}


@pytest.mark.parametrize("placeholder", ["%s", "%r", "%d", "%y"])
def test_value_that_has_no_text_leaves_the_others(placeholder: str) -> None:
    found = fields(f"event=x a={placeholder} b=%d", MuteArgument(), 1)
    assert re.fullmatch(r"\(its text cannot be had: \w+\)", found.pop("a"))
    assert found == {"event": "x", "b": 1}


def test_value_of_the_wrong_kind_or_missing_leaves_the_others() -> None:
    assert fields("event=x a=%d b=%d", "y", 1) == {"event": "x", "a": "(its text cannot be had: TypeError)", "b": 1}
    found = fields("event=x a=%(a)s b=%(b)s", {"b": 1})
    assert found == {"event": "x", "a": "(its text cannot be had: KeyError)", "b": "1"}


TEXT = st.text(st.characters(), max_size=60)
FORGERIES = st.sampled_from(
    [" x=y", "' x='y", '" x="y', "\nevent=forged x=y", "%s", "%(x)s", "\0", "\x7f", "\ud800", "\\"]
)
NASTY_TEXT = st.lists(FORGERIES | TEXT, max_size=5).map("".join)
ANYTHING = st.one_of(
    NASTY_TEXT,
    st.integers(),
    st.sampled_from([10**400, 10**5000]),  # more digits than Python turns into text
    st.floats(),
    st.binary(max_size=20),
    st.booleans(),
    st.none(),
    st.builds(MuteArgument),
    st.dictionaries(NASTY_TEXT, NASTY_TEXT, max_size=3),
    st.lists(NASTY_TEXT, max_size=3).map(tuple),
)
PLACEHOLDERS = {"%s": str, "%r": repr, "%.20r": lambda text: repr(text)[:20], "'%s'": lambda text: f"'{text}'"}


@given(st.lists(st.tuples(st.sampled_from(list(PLACEHOLDERS)), NASTY_TEXT), min_size=1, max_size=6))
def test_no_text_forges_a_field(values: list[tuple[str, str]]) -> None:
    template = "event=x " + " ".join(f"key{number}={value[0]}" for number, value in enumerate(values))
    record = record_of(template, *(text for _, text in values))
    expected = {f"key{number}": PLACEHOLDERS[kind](text) for number, (kind, text) in enumerate(values)}
    assert fields_of(record) == {"event": "x", **expected}
    assert " ".join(f"{key}={value}" for key, value in fields_of(record).items()) == record.getMessage()


@given(NASTY_TEXT | TEXT.map("event=x {}".format), st.lists(ANYTHING, max_size=4))
def test_fields_of_anything_can_be_had(template: str, args: list[Any]) -> None:
    for key, value in fields(template, *args).items():
        assert isinstance(key, str)
        assert isinstance(value, str | int | float)


# JSON


def parsed(line: str) -> dict[str, Any]:
    """Return the object in one line of JSON, which is strict: each name once, and no NaN."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    def no_constant(name: str) -> None:
        raise AssertionError(name)

    assert line.isascii()
    assert line.isprintable()
    found = json.loads(line, object_pairs_hook=once, parse_constant=no_constant)
    json.dumps(found, ensure_ascii=False).encode()  # there are no lone surrogates in it
    assert isinstance(found, dict)
    return found


def as_json(template: Any, *args: Any, **more: Any) -> dict[str, Any]:
    return parsed(JsonFormatter().format(record_of(template, *args, **more)))


def without_ids(line: dict[str, Any]) -> dict[str, Any]:
    """Return what a line says, without when it was written."""
    assert datetime.fromisoformat(line.pop("time")).tzinfo is UTC
    return line


@contextmanager
def about(context: LogContext) -> Iterator[None]:
    token = log_context.set(context)
    try:
        yield
    finally:
        log_context.reset(token)


@contextmanager
def current_span(trace_id: int, span_id: int) -> Iterator[None]:
    span = trace.NonRecordingSpan(trace.SpanContext(trace_id, span_id, is_remote=False))
    with trace.use_span(span):
        yield


def test_line_with_fields_is_those_fields() -> None:
    line = without_ids(as_json("event=disconnected connection=%s seconds=%d", "id", 7))
    assert line == {
        **{"level": "INFO", "logger": logger.name, "event": "disconnected", "connection": "id", "seconds": 7},
    }


def test_line_without_fields_is_its_text() -> None:
    line = without_ids(as_json("Not Found: %s\n", "/x", name="django.request", level=logging.WARNING))
    assert line == {"level": "WARNING", "logger": "django.request", "message": "Not Found: /x\n"}


def test_time_is_in_utc_with_microseconds() -> None:
    record = record_of("event=x")
    record.created = 1_700_000_000.0
    assert parsed(JsonFormatter().format(record))["time"] == "2023-11-14T22:13:20.000000Z"


def test_field_does_not_take_the_place_of_another() -> None:
    template = "event=x time=%d field_level=%s level=%s logger=%s exception=%s field_time=%s"
    line = as_json(template, 1, "d", "a", "b", "c", "e")
    assert (line["level"], line["logger"]) == ("INFO", logger.name)
    assert "exception" not in line
    assert [line[f"field_{name}"] for name in ("time", "logger", "exception")] == [1, "b", "c"]
    assert (line["field_level"], line["field_field_level"], line["field_field_time"]) == ("d", "a", "e")


def test_extra_is_left_out() -> None:
    record = record_of("event=x a=%s", "y")
    record.request = object()
    assert without_ids(parsed(JsonFormatter().format(record))).keys() == {"level", "logger", "event", "a"}


def exc_info_of(error: BaseException) -> Any:
    return type(error), error, error.__traceback__


def test_exception_is_its_kind_and_the_traceback() -> None:
    line = as_json("event=failed", exc_info=exc_info_of(raised(ValueError("no such thing"))))
    assert line["exception"]["kind"] == "ValueError"
    assert line["exception"]["traceback"].startswith("Traceback (most recent call last):\n")
    assert line["exception"]["traceback"].endswith("\nValueError: no such thing")


def test_exception_without_text_is_written() -> None:
    line = as_json("failed", exc_info=exc_info_of(raised(Mute())))
    assert line["exception"]["kind"] == "Mute"
    assert (line["message"], line["level"]) == ("failed", "INFO")


def test_no_exception_is_written_where_there_was_none() -> None:
    line = without_ids(as_json("event=failed", exc_info=(None, None, None)))
    assert line == {"level": "INFO", "logger": logger.name, "event": "failed"}


def test_traceback_that_was_formatted_before_is_written() -> None:
    record = record_of("failed")
    record.exc_text = "Traceback: x"
    assert parsed(JsonFormatter().format(record))["exception"] == {"traceback": "Traceback: x"}


def test_stack_is_written() -> None:
    assert as_json("event=x", sinfo="Stack: y")["stack"] == "Stack: y"


def test_complaint_is_written_as_json(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    kind = "event=handler_failed topic='100% a=b'"
    for _ in range(2):
        complain(logger, logging.ERROR, kind, "connection=%s", "id", error=raised(ValueError("x\ny")))
    clock.now += REPEAT_AFTER
    tell_repetitions()
    first, second = (without_ids(parsed(JsonFormatter().format(record))) for record in caplog.records)
    assert first.pop("exception")["traceback"].endswith(r"ValueError: x\ny")
    common = {"level": "ERROR", "logger": logger.name, "event": "handler_failed", "topic": "'100% a=b'"}
    assert first == {**common, "connection": "id"}
    assert second == {**common, "repeated": 1}


@pytest.mark.parametrize(
    ("template", "args"), [("%s %s", ("a",)), ("a", ("b",)), ("%s", (MuteArgument(),)), (MuteArgument(), ())]
)
def test_line_that_has_no_text_is_written_as_one_that_says_so(template: Any, args: tuple[Any, ...]) -> None:
    line = without_ids(as_json(template, *args))
    message = line.pop("message")
    assert re.fullmatch(r"a line of views\.py:7 cannot be written: (TypeError|ZeroDivisionError)", message)
    assert line == {"level": "INFO", "logger": logger.name}


def test_line_of_no_time_is_written() -> None:
    record = record_of("event=x")
    record.created = 1e300
    assert "cannot be written: " in parsed(JsonFormatter().format(record))["message"]


def test_queue_with_the_formatter_hands_on_the_line() -> None:
    handler = logging.handlers.QueueHandler(queue.SimpleQueue())
    handler.setFormatter(JsonFormatter())
    with about(LogContext("id")):
        record = handler.prepare(record_of("event=x a=%s", "y", exc_info=exc_info_of(raised(ValueError("z")))))
    line = parsed(logging.Formatter().format(record))
    assert (line["a"], line["connection"], line["exception"]["kind"]) == ("y", "id", "ValueError")


@given(st.lists(NASTY_TEXT, min_size=1, max_size=4), st.integers(), st.floats())
@example([""], 0, -0.0)
def test_line_of_any_values_has_exactly_its_fields(texts: list[str], whole: int, fraction: float) -> None:
    template = "event=x " + " ".join(f"key{number}=%s" for number in range(len(texts))) + " whole=%d fraction=%g"
    line = without_ids(as_json(template, *texts, whole, fraction))
    assert line.keys() == {"level", "logger", "event", "whole", "fraction", *(f"key{n}" for n in range(len(texts)))}
    for number, text in enumerate(texts):
        assert line[f"key{number}"] == text.encode("utf-8", "backslashreplace").decode()
    assert int(line["whole"]) == whole
    assert float(line["fraction"]) == float(f"{fraction:g}") or math.isnan(fraction)


@given(NASTY_TEXT | TEXT.map("event=x {}".format), st.lists(ANYTHING, max_size=4), st.sampled_from(list(HOLDERS)))
def test_line_of_anything_is_one_line_of_json(template: str, args: list[Any], holder: str) -> None:
    line = as_json(template, *args, exc_info=exc_info_of(HOLDERS[holder](template)))
    assert ("event" in line) != ("message" in line)
    assert {"time", "level", "logger"} <= line.keys()


# Which connection, and which trace


def test_connection_and_trace_are_those_of_the_context() -> None:
    with about(LogContext("id", "a" * 32, "b" * 16)):
        line = as_json("Not Found", name="shop.views")
    assert (line["connection"], line["trace_id"], line["span_id"]) == ("id", "a" * 32, "b" * 16)


def test_what_is_not_known_is_left_out() -> None:
    with about(LogContext("id")):
        assert as_json("x").keys() == {"time", "level", "logger", "message", "connection"}
    assert as_json("x").keys() == {"time", "level", "logger", "message"}


def test_connection_that_the_line_names_counts() -> None:
    with about(LogContext("other")):
        assert as_json("event=x connection=%s", "id")["connection"] == "id"


def test_trace_is_that_of_the_current_span() -> None:
    with about(LogContext("id", "a" * 32, "b" * 16)), current_span(0xABC, 0xDEF):
        line = as_json("x")
    assert (line["trace_id"], line["span_id"]) == ("abc".zfill(32), "def".zfill(16))
    assert line["connection"] == "id"


def test_current_span_that_is_none_does_not_count() -> None:
    with about(LogContext("id", "a" * 32, "b" * 16)), current_span(0, 0):
        assert as_json("x")["trace_id"] == "a" * 32
    with current_span(0, 0):
        assert "trace_id" not in as_json("x")


class BrokenSpan(trace.NonRecordingSpan):
    def get_span_context(self) -> trace.SpanContext:
        raise ZeroDivisionError


def test_current_span_that_raises_does_not_count() -> None:
    broken = BrokenSpan(trace.INVALID_SPAN_CONTEXT)
    with about(LogContext("id", "a" * 32, "b" * 16)), trace.use_span(broken):
        line = as_json("x")
    assert (line["message"], line["connection"], line["trace_id"]) == ("x", "id", "a" * 32)


def test_value_that_looks_like_an_id_is_none() -> None:
    with about(LogContext("id")):
        line = as_json("event=x path=%s", "/ connection=forged")
        text = LineFormatter().format(record_of("event=x path=%s", "/ connection=forged"))
    assert line["connection"] == "id"
    assert text.endswith(" path=/ connection=forged connection=id")


# Lines of text


def test_line_is_as_it_was_where_nothing_is_known() -> None:
    record = record_of("event=x a=%s", "y")
    expected = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s").format(record)
    assert LineFormatter().format(record) == expected
    assert expected.endswith(f" INFO {logger.name} event=x a=y")


def test_line_ends_with_the_ids_that_are_known() -> None:
    with about(LogContext("id")):
        assert LineFormatter().format(record_of("event=x")).endswith(" event=x connection=id")
        with current_span(0xABC, 0xDEF):
            text = LineFormatter().format(record_of("Not Found"))
    assert text.endswith(f" Not Found connection=id trace_id={'abc'.zfill(32)} span_id={'def'.zfill(16)}")


def test_line_has_an_id_once() -> None:
    with about(LogContext("id", "a" * 32, "b" * 16)):
        text = LineFormatter().format(record_of("event=x connection=%s code=%d", "id", 1))
    assert text.endswith(f" event=x connection=id code=1 trace_id={'a' * 32} span_id={'b' * 16}")


def test_ids_are_before_the_traceback() -> None:
    with about(LogContext("id")):
        text = LineFormatter().format(record_of("event=x", exc_info=exc_info_of(raised(ValueError("y")))))
    assert text.splitlines()[0].endswith(" event=x connection=id")
    assert text.splitlines()[-1] == "ValueError: y"


def test_line_takes_another_format() -> None:
    with about(LogContext("id")):
        assert LineFormatter("%(levelname)s: %(message)s").format(record_of("event=x")) == "INFO: event=x connection=id"


@given(NASTY_TEXT | TEXT.map("event=x {}".format), st.lists(ANYTHING, max_size=4))
def test_line_of_anything_can_be_written(template: str, args: list[Any]) -> None:
    with about(LogContext("id")):
        assert "connection=id" in LineFormatter().format(record_of(template, *args))


# In a site's settings


def test_site_uses_the_formatters_as_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).resolve().parent.parent / "docs/operate.md").read_text()
    [snippet] = re.findall(r"```python\n(LOGGING = .*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(snippet, names)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        logging.config.dictConfig(names["LOGGING"])
        with about(LogContext("id")):
            logger.info("event=x a=%s", "y z=1")
        line = parsed(capsys.readouterr().err.rstrip("\n"))
    finally:
        root.handlers[:], root.level = before[0], before[1]
    assert line["event"] == "x"
    assert (line["a"], line["connection"]) == ("y z=1", "id")
