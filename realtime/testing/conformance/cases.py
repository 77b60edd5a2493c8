"""All cases, in their order."""

from __future__ import annotations

from collections.abc import Iterable

from .closes import CLOSES
from .framing import FRAMING
from .messages import MESSAGES
from .returns import RETURNS
from .verdicts import Case

CASES: dict[str, Case] = {case.name: case for cases in (CLOSES, RETURNS, FRAMING, MESSAGES) for case in cases.all}


def choose(only: Iterable[str] = (), skip: Iterable[str] = ()) -> list[Case]:
    """Return the cases ``only``, or all if there are none, without those to ``skip``. Raises ``ValueError``."""
    only, skip = list(only), list(skip)
    for name in (*only, *skip):
        if name not in CASES:
            raise ValueError(f"there is no case {name!r}; there are {', '.join(CASES)}")
    return [case for name, case in CASES.items() if (not only or name in only) and name not in skip]
