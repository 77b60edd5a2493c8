"""
What a test server can do wrong, as data: each fault is a model, and a list of them is what a connection suffers.

``interposer_for`` makes of them what the engine asks about each frame; it does no I/O, and chance comes from a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Union

from pydantic import Field, TypeAdapter, ValidationError

from .base import Fault
from .endings import CloseFrame, Drop, HalfClose, Mute, NoCloseHandshake, StopReading
from .handshakes import NeverAnswer, Refuse, SlowAccept, WrongSubprotocol
from .messages import (
    Binary,
    Delay,
    Duplicate,
    Fragment,
    HugeClaim,
    HugeFrame,
    InvalidJson,
    InvalidUtf8,
    Lose,
    Masked,
    MissingReqId,
    NoBeats,
    NoPongs,
    ReservedBits,
    Truncate,
    UnknownType,
    WrongReqId,
)
from .pipeline import Interposer, Pipeline
from .traffic import Bandwidth, Burst, DemandPongs, PingFlood, Reorder

FAULTS: tuple[type[Fault], ...] = (
    *(Refuse, WrongSubprotocol, SlowAccept, NeverAnswer),
    *(NoBeats, NoPongs, StopReading, Mute),
    *(Delay, Lose, Duplicate, Reorder, Truncate),
    *(MissingReqId, WrongReqId, UnknownType, InvalidJson, Binary),
    *(HugeFrame, HugeClaim, Fragment, InvalidUtf8, ReservedBits, Masked),
    *(PingFlood, DemandPongs, Burst, Bandwidth),
    *(CloseFrame, NoCloseHandshake, HalfClose, Drop),
)
"""Every fault, in the order of the docs."""

MOST_FAULTS = 32
"""How many one connection may suffer at once."""

_union: Any = Union[FAULTS]  # noqa: UP007
AnyFault = Annotated[_union, Field(discriminator="fault")]
"""What the JSON of a fault is validated against; its schema is that of all faults."""
_adapter: TypeAdapter[list[Fault]] = TypeAdapter(Annotated[list[AnyFault], Field(max_length=MOST_FAULTS)])


def parse(faults: Any) -> tuple[Fault, ...]:
    """
    Return the faults that a list of dicts stands for, or bytes or a str of JSON.

    Raises ``ValueError`` with a sentence for each thing that is wrong, which says what is legal.
    """
    try:
        if isinstance(faults, str | bytes):
            return tuple(_adapter.validate_json(faults))
        return tuple(_adapter.validate_python(faults))
    except ValidationError as error:
        raise ValueError("; ".join(_sentence(detail) for detail in error.errors(include_url=False))) from None


def _sentence(detail: Any) -> str:
    number, *rest = detail["loc"] or ("",)
    where = f"fault {number + 1}" if isinstance(number, int) else "the list of faults"
    known = {fault.name(): fault for fault in FAULTS}
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        given = detail["input"].get("fault") if isinstance(detail["input"], dict) else None
        return f"{where}: there is no fault {given!r}; there are {', '.join(known)}"
    if rest:
        name, *path = rest
        where = f"{where} ({name}{''.join(f'.{part}' for part in path)})"
        if detail["type"] == "extra_forbidden" and name in known:
            return f"{where}: there is no such field; there are {', '.join(known[str(name)].model_fields)}"
    return f"{where}: {detail['msg'][:1].lower()}{detail['msg'][1:]}, but it is {detail['input']!r:.100}"


def interposer_for(faults: Sequence[Fault], number: int) -> Interposer | None:
    """
    Return what stands between the server and connection ``number`` of its session, counted from 1; None for nothing.

    Raises ``ValueError`` for a number under 1, and for more than ``MOST_FAULTS`` faults.
    """
    if number < 1:
        raise ValueError(f"connections are counted from 1, but the number is {number}")
    if len(faults) > MOST_FAULTS:
        raise ValueError(f"at most {MOST_FAULTS} faults go together, but there are {len(faults)}")
    parts = [fault.part(number) for fault in faults if fault.concerns(number)]
    return Pipeline(parts) if parts else None


__all__ = ["FAULTS", "MOST_FAULTS", "AnyFault", "Fault", "Interposer", "interposer_for", "parse"]
__all__ += ["Bandwidth", "Binary", "Burst", "CloseFrame", "Delay", "DemandPongs", "Drop", "Duplicate", "Fragment"]
__all__ += [
    "HalfClose",
    "HugeClaim",
    "HugeFrame",
    "InvalidJson",
    "InvalidUtf8",
    "Lose",
    "Masked",
    "MissingReqId",
    "Mute",
]
__all__ += ["NeverAnswer", "NoBeats", "NoCloseHandshake", "NoPongs", "PingFlood", "Refuse", "Reorder", "ReservedBits"]
__all__ += ["SlowAccept", "StopReading", "Truncate", "UnknownType", "WrongReqId", "WrongSubprotocol"]
