"""Complaints: written once, counted, and with nothing raw in them that a client wrote."""

from __future__ import annotations

import io
import logging
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from realtime import logs
from realtime.logs import LONGEST_MESSAGE, MAX_KINDS, REPEAT_AFTER, complain, escaped, presentable, tell_repetitions

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
