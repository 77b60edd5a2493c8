"""Names with parameters."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime.patterns import CONVERTERS, Pattern

ONE = uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")


@pytest.mark.parametrize(
    ("pattern", "name", "parameters"),
    [
        ("news", "news", {}),
        ("news", "News", None),
        ("orders.{n:int}", "orders.42", {"n": 42}),
        ("orders.{n:int}", "orders.-42", {"n": -42}),
        ("orders.{n:int}", "orders.0", {"n": 0}),
        ("orders.{n:int}", "orders.042", None),
        ("orders.{n:int}", "orders.-0", None),
        ("orders.{n:int}", "orders.+1", None),
        ("orders.{n:int}", "orders. 1", None),
        ("orders.{n:int}", "orders.1_000", None),
        ("orders.{n:int}", "orders.٤٢", None),
        ("orders.{n:int}", "orders.", None),
        ("orders.{n:int}", "orders.4.2", None),
        ("orders.{n:int}", "orders", None),
        ("orders.{n:int}.lines", "orders.1.lines", {"n": 1}),
        ("orders.{n:int}.lines", "orders.1.line", None),
        ("{a}.{b}", "x.y", {"a": "x", "b": "y"}),
        ("{a}", "", None),
        ("{a}", "ödd ☂", {"a": "ödd ☂"}),
        ("{a:slug}", "a-B_9", {"a": "a-B_9"}),
        ("{a:slug}", "ö", None),
        ("{a:slug}", "a\n", None),
        ("{a:uuid}", str(ONE), {"a": ONE}),
        ("{a:uuid}", str(ONE).upper(), None),
        ("{a:uuid}", ONE.hex, None),
        ("{a:uuid}", "{" + str(ONE) + "}", None),
    ],
)
def test_name_matches(pattern: str, name: str, parameters: dict[str, Any] | None) -> None:
    assert Pattern(pattern).match(name) == parameters


@given(st.text(), st.sampled_from(sorted(CONVERTERS)))
def test_name_that_matches_is_made_of_its_parameters(text: str, kind: str) -> None:
    pattern = Pattern(f"a.{{value:{kind}}}.b")
    parameters = pattern.match(f"a.{text}.b")
    if parameters is not None:
        assert pattern.format(parameters) == f"a.{text}.b"


VALUES = {
    "int": st.integers(),
    "uuid": st.uuids(),
    "slug": st.from_regex(r"[-a-zA-Z0-9_]+", fullmatch=True),
    "str": st.text(min_size=1).filter(lambda text: "." not in text),
}


@given(st.sampled_from(sorted(VALUES)).flatmap(lambda kind: st.tuples(st.just(kind), VALUES[kind])))
def test_name_that_is_made_matches_and_gives_the_parameters_back(value: tuple[str, Any]) -> None:
    pattern = Pattern(f"a.{{value:{value[0]}}}")
    assert pattern.match(pattern.format({"value": value[1]})) == {"value": value[1]}


@given(st.lists(st.text()), st.text())
def test_no_name_makes_a_pattern_raise(parts: list[str], more: str) -> None:
    for pattern in ("{a}.{b:int}", "x.{a:uuid}.{b:slug}", "y"):
        Pattern(pattern).match(".".join([*parts, more]))


@pytest.mark.parametrize("value", [ONE, str(ONE), ONE.hex])
def test_uuid_is_formatted_from_whatever_is_one(value: Any) -> None:
    assert Pattern("a.{b:uuid}").format({"b": value}) == f"a.{ONE}"


@pytest.mark.parametrize("value", [1, None, "x"])
def test_uuid_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="expected a UUID"):
        Pattern("a.{b:uuid}").format({"b": value})


def test_shape_is_what_two_patterns_have_in_common() -> None:
    assert Pattern("a.{b:int}.c").shape == Pattern("a.{d:int}.c").shape
    assert Pattern("a.{b:int}.c").shape != Pattern("a.{b}.c").shape
    assert Pattern("a.{b}").shape == Pattern("a.{b:str}").shape
