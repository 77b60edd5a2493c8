"""
What the clients send that send garbage: the seeds in seeds.json, and what hypothesis makes up.

A seed's ``parts`` are frames: a payload from ``text`` or ``hex``, repeated until it has ``fill`` bytes, in a frame
with ``opcode``, or with ``first`` as its first byte, ``times`` times; or they are bytes as they are, ``raw``. The
connection has to be closed with one of the codes in ``closed``. Without any it has to live on.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import django

from .client import BINARY, TEXT, frame

SEEDS = Path(__file__).with_name("seeds.json")
EXAMPLES = 400
"""What hypothesis makes up; always the same, so that what fails once fails again."""
TOGETHER = 20
"""Examples that one client sends."""


class Garbage(NamedTuple):
    """Say what to send, and what may come of it: that it is closed with one of ``codes``, or that it ``lives`` on."""

    name: str
    data: bytes
    codes: frozenset[int]
    lives: bool
    half: bool
    """Whether it ends in mid-message, so that nothing can come of it."""


def all_garbage() -> list[Garbage]:
    return [*map(recorded, json.loads(SEEDS.read_text())), *made_up()]


def recorded(seed: dict[str, Any]) -> Garbage:
    """Return a seed of the file."""
    codes = frozenset(seed.get("closed", ()))
    data = b"".join(map(_bytes_of, seed["parts"]))
    return Garbage(seed["name"], data, codes, not codes or seed.get("or lives", False), seed.get("half", False))


def _bytes_of(part: dict[str, Any]) -> bytes:
    if "raw" in part:
        return bytes.fromhex(part["raw"])
    payload = part["text"].encode() if "text" in part else bytes.fromhex(part["hex"])
    if "fill" in part:
        payload = payload * (part["fill"] // len(payload))
    return frame(payload, part.get("opcode", TEXT), first=part.get("first")) * part.get("times", 1)


def made_up() -> list[Garbage]:
    """Return what hypothesis makes of the tests' strategy for frames: nothing that it sends may end a connection."""
    examples: list[bytes] = []

    def collect(message: str | bytes) -> None:
        binary = isinstance(message, bytes)
        examples.append(frame(message if binary else message.encode(), BINARY if binary else TEXT))

    _with_frames(collect)
    groups = [examples[begin : begin + TOGETHER] for begin in range(0, len(examples), TOGETHER)]
    return [Garbage(f"made up {n}", b"".join(g), frozenset(), True, False) for n, g in enumerate(groups, 1)]


def _with_frames(use: Callable[[Any], None]) -> None:
    """Call ``use`` with each example."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.soak.settings")
    os.environ.setdefault("SECRET_KEY", "soak")
    django.setup()
    from hypothesis import HealthCheck, Phase, given, seed, settings

    from tests.memory import frames

    quick = settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    seed(2026)(quick(given(frames)(use)))()
