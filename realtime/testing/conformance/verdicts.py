"""What a case is, and what can come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .stage import Stage


class Level(StrEnum):
    """Say how much a case matters: ``must`` is a rule of RFC 6455 or the protocol, ``should`` is good sense."""

    MUST = "must"
    SHOULD = "should"


class Verdict(StrEnum):
    """Say what was seen of a client."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_OBSERVED = "not observed"


class Failed(Exception):
    """Say what the client did, or did not do, against the rule of the case."""


class NotObserved(Exception):
    """Say what was missing for the case to be seen at all."""


Script = Callable[["Stage"], str]
"""Plays a case, and returns in a sentence what was seen. Raises ``Failed`` or ``NotObserved``."""


@dataclass(frozen=True, slots=True)
class Case:
    """Be one behaviour that is looked at."""

    name: str
    level: Level
    rule: str
    """What a good client does, and why, in a sentence."""
    script: Script


@dataclass(frozen=True, slots=True)
class Result:
    """Be what came of one case."""

    name: str
    level: Level
    rule: str
    verdict: Verdict
    text: str
    """What was seen, in a sentence."""
    seconds: float
    evidence: tuple[dict[str, Any], ...] = ()
    """What went over the wire, as the transcript has it, with long contents cut."""
    output: str = ""
    """The end of what the client's process wrote."""


@dataclass(slots=True)
class Cases:
    """Collect cases in their order."""

    all: list[Case] = field(default_factory=list)

    def add(self, name: str, level: Level, rule: str, script: Script) -> None:
        self.all.append(Case(name, level, rule, script))

    def case(self, name: str, level: Level, rule: str) -> Callable[[Script], Script]:
        """Decorate the script of a case."""

        def decorate(script: Script) -> Script:
            self.add(name, level, rule, script)
            return script

        return decorate
