"""
What clients cause to be logged: nothing that they wrote reaches the log raw, and no client can fill it.

A complaint is written once; when it comes again within a minute it is counted, and the count is written then.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from pydantic import ValidationError

REPEAT_AFTER = 60.0
"""Seconds after which a complaint is written again."""
LONGEST_MESSAGE = 300
"""Characters of an exception's message that are written."""
MAX_KINDS = 1000
"""Kinds of complaints that are told apart; what comes beyond counts as one."""


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
    logger.log(
        level, f"{kind.replace('%', '%%')} {text}", *args, exc_info=None if error is None else presentable(error)
    )


def tell_repetitions() -> None:
    """Write how often complaints were repeated that are over a minute old, and forget them."""
    now = time.monotonic()
    for kind, complaint in list(_complaints.items()):
        if now - complaint.began >= REPEAT_AFTER:
            _tell_repetitions(kind, complaint)
            del _complaints[kind]


def _tell_repetitions(kind: str, complaint: _Complaint) -> None:
    if complaint.repeated:
        complaint.logger.log(complaint.level, "%s repeated=%d", kind, complaint.repeated)


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
