"""
What clients cause to be logged: nothing that they wrote reaches the log raw, and no client can fill it.

A complaint is written once; when it comes again within a minute it is counted, and the count is written then.

Lines are ``event=name key=value ...``. ``LineFormatter`` writes them as they are, and ``JsonFormatter`` as JSON, both
with the ids of the connection and of the trace. Fields are told apart in a line's template and never in its text: what
a client wrote is an argument, and cannot look like a field of ours.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, NamedTuple

from opentelemetry.trace import get_current_span
from pydantic import ValidationError

REPEAT_AFTER = 60.0
"""Seconds after which a complaint is written again."""
LONGEST_MESSAGE = 300
"""Characters of an exception's message that are written."""
MAX_KINDS = 1000
"""Kinds of complaints that are told apart; what comes beyond counts as one."""
LONGEST_TEMPLATE = 4_000
"""Characters of a template that fields are looked for in; a longer one was not written by hand."""
LARGEST_NUMBER = 2**53
"""What numbers in JSON stay below: beyond it many readers get another number (RFC 8259 §6)."""
LINE = "%(asctime)s %(levelname)s %(name)s %(message)s"

_PLACEHOLDER = re.compile(
    r"%(?:\((?P<name>[^)]*)\))?[-+ #0]*(?P<width>\*|\d*)(?:\.(?P<precision>\*|\d*))?[hlL]?(?P<kind>.)", re.DOTALL
)
_KEY = r"[A-Za-z_][A-Za-z0-9_]*="
_FIELD = re.compile(
    # A value between quotes may hold what looks like a field. Any other goes on up to the next field.
    rf"""(?:^|\ )(?P<key>{_KEY})
    (?P<value>(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|.*?))
    (?=\ {_KEY}|\Z)""",
    re.DOTALL | re.VERBOSE,
)
_HOLE = "\0"
"""Stands for a placeholder while a template is taken apart."""


class LogContext(NamedTuple):
    """Say which connection what is logged now is about, and the span that let it in, where it is traced."""

    connection: str
    trace_id: str = ""
    """In lower hexadecimal, as in the header ``traceparent`` of W3C Trace Context; empty where nothing is traced."""
    span_id: str = ""


log_context: ContextVar[LogContext | None] = ContextVar("log_context", default=None)
"""Set in the task of a connection, and around what runs for it on threads."""


class _Complaint:
    __slots__ = ("began", "level", "logger", "repeated")

    def __init__(self, logger: logging.Logger, level: int) -> None:
        self.logger = logger
        self.level = level
        self.began = time.monotonic()
        self.repeated = 0


_complaints: dict[str, _Complaint] = {}


def complain(
    logger: logging.Logger, level: int, kind: str, text: str, *args: Any, error: BaseException | None = None
) -> None:
    """
    Log ``text`` with ``args``, and the traceback of ``error``, unless there was a complaint of this kind just now.

    ``kind`` is what ``text`` begins with, such as ``event=refused reason=path``: the code's own words and no client's.
    """
    if kind not in _complaints and len(_complaints) >= MAX_KINDS:
        kind = "event=complaint"
    complaint = _complaints.get(kind)
    if complaint is not None and time.monotonic() - complaint.began < REPEAT_AFTER:
        complaint.repeated += 1
        return
    if complaint is not None:
        _tell_repetitions(kind, complaint)
    _complaints[kind] = _Complaint(logger, level)
    # Without arguments nothing is formatted, and a doubled sign would stay so.
    template = f"{kind.replace('%', '%%') if args else kind} {text}".rstrip()
    logger.log(level, template, *args, exc_info=None if error is None else presentable(error))


def tell_repetitions() -> None:
    """Write how often complaints were repeated that are over a minute old, and forget them."""
    now = time.monotonic()
    for kind, complaint in list(_complaints.items()):
        if now - complaint.began >= REPEAT_AFTER:
            _tell_repetitions(kind, complaint)
            _complaints.pop(kind, None)  # another thread's hub may have done the same


def _tell_repetitions(kind: str, complaint: _Complaint) -> None:
    if complaint.repeated:
        complaint.logger.log(complaint.level, f"{kind.replace('%', '%%')} repeated=%d", complaint.repeated)


def presentable(error: BaseException, depth: int = 10) -> BaseException:
    """
    Return ``error`` as it may be written: a likeness with the same traceback.

    The message of the likeness is escaped and cut, and does not repeat what a client sent.
    """
    try:
        message = _message_of(error)
    except Exception as failure:  # noqa: BLE001 - the site's exceptions are its own code
        message = f"(its message cannot be had: {type(failure).__name__})"
    names = {"__module__": type(error).__module__, "__qualname__": type(error).__qualname__}
    likeness: BaseException = type(type(error).__name__, (Exception,), names)(message)
    likeness.__traceback__ = error.__traceback__
    if depth and error.__cause__ is not None:
        likeness.__cause__ = presentable(error.__cause__, depth - 1)
    elif depth and error.__context__ is not None and not error.__suppress_context__:
        likeness.__context__ = presentable(error.__context__, depth - 1)
    return likeness


def _message_of(error: BaseException) -> str:
    if isinstance(error, ValidationError):  # whose own text shows the input, and whose places may be the client's
        kinds = ", ".join(detail["type"] for detail in error.errors(include_input=False))
        return escaped(f"{error.error_count()} errors for {error.title}: {kinds}")
    if isinstance(error, BaseExceptionGroup):
        inner = ", ".join(f"{type(e).__name__}: {_message_of(e)}" for e in error.exceptions[:5])
        return escaped(f"{error.message} ({inner})")
    return escaped(str(error))


def described(error: BaseException) -> str:
    """Return an exception's kind and message in one line. A library's ``repr`` need not have the message."""
    return escaped(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


def escaped(text: str) -> str:
    """Return ``text`` in one line that can be written to a log: not too long, and nothing in it unprintable."""
    text = text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}..."
    return text if text.isprintable() else repr(text)[1:-1]


# Fields and formats


class JsonFormatter(logging.Formatter):
    """
    Write each line as one JSON object, in ASCII: ``time``, ``level``, ``logger``, and the line's own fields.

    A line without fields has its text as ``message``. ``connection``, ``trace_id`` and ``span_id`` are there where
    they are known, ``exception`` has the ``kind`` and the ``traceback``, and ``stack`` what ``stack_info`` asks for.
    What a caller passes as ``extra`` is left out. A name that is taken already gets ``field_`` in front.
    """

    def format(self, record: logging.LogRecord) -> str:
        try:
            return self._written(record)
        except Exception as error:  # noqa: BLE001 - a record may hold anything, and a log must not raise
            return self._written(_stand_in(record, error))

    def _written(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")[:-6] + "Z",
            "level": record.levelname,
            "logger": record.name,
        }
        taken = {*line, "message", "exception", "stack"}
        fields = fields_of(record)
        for name, value in fields.items():
            while name in taken:
                name = f"field_{name}"
            taken.add(name)
            line[name] = value
        if not fields:
            line["message"] = record.getMessage()
        line.update((name, value) for name, value in _ids().items() if name not in fields)
        if (exception := self._exception_of(record)) is not None:
            line["exception"] = exception
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return json.dumps(_encodable(line), allow_nan=False)

    def _exception_of(self, record: logging.LogRecord) -> dict[str, str] | None:
        if record.exc_info and record.exc_info[0] is not None:
            return {"kind": record.exc_info[0].__name__, "traceback": self.formatException(record.exc_info)}
        return {"traceback": record.exc_text} if record.exc_text else None


class LineFormatter(logging.Formatter):
    """Write each line as text, with the ids of the connection and of the trace at its end where they are known."""

    def __init__(self, fmt: str | None = LINE, *args: Any, **kwargs: Any) -> None:
        super().__init__(fmt, *args, **kwargs)

    def format(self, record: logging.LogRecord) -> str:
        try:
            return super().format(record)
        except Exception as error:  # noqa: BLE001 - a record may hold anything, and a log must not raise
            return super().format(_stand_in(record, error))

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = super().formatMessage(record)
        if not (ids := _ids()):
            return text
        fields = fields_of(record)
        return " ".join([text, *(f"{name}={value}" for name, value in ids.items() if name not in fields)])


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """
    Return the fields of a line that was logged as ``event=name key=%s other=%d``, and {} of any other line.

    Values are what the line has, so what ``%r`` has escaped stays escaped; only numbers written by ``%d``, ``%g`` and
    the like are numbers. Without arguments there may be no template but a text with anything in it, which counts for
    loggers of this package alone, as does ``args=None``, by which handlers mark what they have formatted already.
    """
    template, args = record.msg, record.args
    if not isinstance(template, str) or not template.startswith("event=") or len(template) > LONGEST_TEMPLATE:
        return {}
    if _HOLE in template or not isinstance(args, tuple | Mapping) or not (args or record.name.startswith("realtime.")):
        return {}
    values: list[_Value] = []
    if args:
        found = _values(template, args)
        if found is None:
            return {}
        values = found
        template = _PLACEHOLDER.sub(_HOLE, template)
    fields: dict[str, Any] = {}
    rest = iter(values)
    for match in _FIELD.finditer(template):
        fields.setdefault(match["key"][:-1], _filled(match["value"], rest))
    return fields


class _Value(NamedTuple):
    text: str
    numeric: bool = False


def _values(template: str, args: tuple[Any, ...] | Mapping[str, Any]) -> list[_Value] | None:
    """Return what the placeholders of ``template`` stand for, or None if there are more or fewer than ``args``."""
    named = isinstance(args, Mapping)
    waiting: tuple[Any, ...] = (args,) if isinstance(args, Mapping) else args
    values = []
    for match in _PLACEHOLDER.finditer(template):
        if match["kind"] == "%":
            values.append(_Value("%"))
        elif match["name"] is not None:
            values.append(_value(match, args))
        else:
            count = 1 + (match["width"] == "*") + (match["precision"] == "*")
            if len(waiting) < count:
                return None
            values.append(_value(match, waiting[:count]))
            waiting = waiting[count:]
    return None if waiting and not named else values


def _value(match: re.Match[str], args: tuple[Any, ...] | Mapping[str, Any]) -> _Value:
    try:
        return _Value(match[0] % args, match["kind"] in "diueEfFgG")
    except Exception as error:  # noqa: BLE001 - of an argument's own code, or one that does not fit
        return _Value(f"(its text cannot be had: {type(error).__name__})")


def _filled(text: str, rest: Iterator[_Value]) -> str | float:
    """Return ``text`` with what belongs into its holes; what is one number and nothing else is a number."""
    if text != _HOLE:
        return re.sub(_HOLE, lambda _: next(rest).text, text)
    value = next(rest)
    return _number(value.text) if value.numeric else value.text


def _number(text: str) -> str | float:
    """Return the number that ``text`` is, unless JSON has no such number or many readers would get another one."""
    try:
        number: float = int(text)
    except ValueError:
        number = float(text)
    return number if abs(number) < LARGEST_NUMBER else text


def _ids() -> dict[str, str]:
    """Return the ids of the connection and of the trace that what is logged now belongs to, where they are known."""
    ids = {}
    if (context := log_context.get()) is not None:
        ids = {name: value for name, value in context._asdict().items() if value}
    try:
        span = get_current_span().get_span_context()
        if span.is_valid:
            ids |= {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}
    except Exception:  # noqa: BLE001 - a tracer is the site's own code
        pass
    return ids


def _stand_in(record: logging.LogRecord, error: Exception) -> logging.LogRecord:
    """Return what is written in place of a record that cannot be formatted: where it is from, and why."""
    text = f"a line of {record.filename}:{record.lineno} cannot be written: {type(error).__name__}"
    return logging.makeLogRecord({"name": record.name, "levelname": record.levelname, "msg": text, "args": None})


def _encodable(value: Any) -> Any:
    """Return ``value`` with each lone surrogate, which is no text that JSON could carry, as an escape."""
    if isinstance(value, dict):
        return {key: _encodable(item) for key, item in value.items()}
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
