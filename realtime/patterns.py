"""
Names with parameters, such as ``orders.{order_id:int}``: matching a name, and making one.

A name is segments with dots between; a parameter is a whole segment. A name matches only if formatting its parsed
parameters gives the same name again, so that no two names mean the same: ``orders.042`` is not ``orders.42``.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple


class Converter(NamedTuple):
    """Turn a segment into a value, and a value back into a segment. ``parse`` raises ``ValueError``."""

    parse: Callable[[str], Any]
    format: Callable[[Any], str]
    expects: str


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or "." in value:
        raise ValueError
    return value


def _slug(value: Any) -> str:
    if not isinstance(value, str) or re.fullmatch(r"[-a-zA-Z0-9_]+", value) is None:
        raise ValueError
    return value


def _whole_number(value: Any) -> str:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError
    return str(value)


def _uuid(value: Any) -> str:
    return str(value if isinstance(value, uuid.UUID) else uuid.UUID(value))


CONVERTERS = {
    "str": Converter(_text, _text, "a text without dots"),
    "slug": Converter(_slug, _slug, "letters, digits, hyphens and underscores"),
    "int": Converter(int, _whole_number, "a whole number"),
    "uuid": Converter(uuid.UUID, _uuid, "a UUID"),
}
"""What stands behind the colon of a parameter; ``str`` where nothing does."""


class Pattern:
    """
    Match names and make them.

    Raises ``ValueError``, with what is wrong, for a text that is no pattern.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.parameters: dict[str, str] = {}
        self._segments: list[tuple[str, Converter | None]] = []
        for segment in text.split("."):
            self._segments.append(self._parse(segment))

    def _parse(self, segment: str) -> tuple[str, Converter | None]:
        if "{" not in segment and "}" not in segment:
            return segment, None
        found = re.fullmatch(r"\{([a-z_][a-z0-9_]*)(?::(\w+))?\}", segment)
        if found is None:
            raise ValueError(f"{segment!r}: a parameter is a whole segment between dots, such as {{order_id:int}}")
        name, kind = found[1], found[2] or "str"
        if kind not in CONVERTERS:
            raise ValueError(f"{segment!r}: {kind!r} is none of {', '.join(CONVERTERS)}")
        if name in self.parameters:
            raise ValueError(f"{segment!r}: there are two parameters {name!r}")
        self.parameters[name] = kind
        return name, CONVERTERS[kind]

    @property
    def key(self) -> tuple[int, str | None]:
        """The number of segments and the first one, None if that is a parameter: what candidates are found by."""
        first, converter = self._segments[0]
        return len(self._segments), first if converter is None else None

    @property
    def shape(self) -> tuple[str, ...]:
        """What two patterns that match the same names have in common: all but the parameters' names."""
        kinds = iter(self.parameters.values())
        return tuple(text if converter is None else f"{{{next(kinds)}}}" for text, converter in self._segments)

    def match(self, name: str) -> dict[str, Any] | None:
        """Return the parameters in ``name``, or None if it does not match."""
        parts = name.split(".")
        if len(parts) != len(self._segments):
            return None
        parameters: dict[str, Any] = {}
        for part, (text, converter) in zip(parts, self._segments, strict=True):
            if converter is None:
                if part != text:
                    return None
                continue
            try:
                value = converter.parse(part)
                if converter.format(value) != part:
                    return None
            except ValueError:
                return None
            parameters[text] = value
        return parameters

    def format(self, parameters: dict[str, Any]) -> str:
        """Return the name with these parameters. Raises ``ValueError`` when one is missing, unknown or does not fit."""
        if parameters.keys() != self.parameters.keys():
            expected = ", ".join(self.parameters) or "none"
            raise ValueError(f"{self.text!r} takes the parameters {expected}, not {', '.join(parameters) or 'none'}")
        parts = []
        for text, converter in self._segments:
            if converter is None:
                parts.append(text)
                continue
            try:
                parts.append(converter.format(parameters[text]))
            except (ValueError, TypeError, AttributeError):
                raise ValueError(f"{text}={parameters[text]!r}: expected {converter.expects}") from None
        return ".".join(parts)
