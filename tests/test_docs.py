"""What the docs say is what the code does."""

from __future__ import annotations

import ast
import inspect
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from realtime.asyncapi import ERRORS, document
from realtime.conf import Settings
from realtime.protocol import CLOSE_CODES, ErrorCode, MessageType, client_reconnect, parse

from .test_live_outage_table import OUTAGES

ROOT = Path(__file__).resolve().parent.parent


def rows(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the table below ``heading``."""
    section = (ROOT / page).read_text().split(f"{heading}\n", 1)[1]
    table = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert table is not None
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[0].splitlines()[2:]]


def attribute_docstrings(cls: type) -> dict[str, str]:
    """Return the string literal that stands below each attribute of a class."""
    [body] = [node.body for node in ast.parse(inspect.getsource(cls)).body if isinstance(node, ast.ClassDef)]
    return {
        field.target.id: below.value.value
        for field, below in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
    }


def test_settings_page_lists_every_key_with_its_default() -> None:
    listed = {key.strip("`"): (default.strip("`"), text) for key, default, text in rows("docs/settings.md", "Settings")}
    texts = attribute_docstrings(Settings)
    fields = {name: (repr(field.default), texts[name]) for name, field in Settings.model_fields.items()}
    listed = {key: (default.replace('"', "'"), text.rstrip(" |")) for key, (default, text) in listed.items()}
    assert listed == {
        name: (default, " ".join(text.split()).replace("``", "`")) for name, (default, text) in fields.items()
    }


def test_protocol_page_lists_every_error_code() -> None:
    listed = {row[0].strip("` ") for row in rows("docs/protocol.md", "## Errors")}
    assert listed == {code.value for code in ErrorCode}


def test_protocol_page_says_of_an_error_code_what_the_asyncapi_document_says() -> None:
    assert {row[0].strip("` "): row[1] for row in rows("docs/protocol.md", "## Errors")} == ERRORS


def protocol_schemas() -> dict[str, Any]:
    """Return the JSON Schemas of the protocol's messages by their types, and that of an error in a response."""
    schemas = document()["components"]["schemas"]
    types = {name: schema.get("properties", {}).get("type", {}).get("const") for name, schema in schemas.items()}
    messages = {kind: schemas[name] for name, kind in types.items() if kind in set(MessageType)}
    return messages | {"Error": schemas["ErrorMessageData"]}


def shape(schema: dict[str, Any]) -> str:
    """Return in a word what ``schema`` lets through, null aside: it counts as absent."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(shape(part) for part in schema["anyOf"] if part != {"type": "null"}))
    if "$ref" not in schema:
        return str(schema.get("type", "any"))
    name = schema["$ref"].rpartition("/")[2]
    if name.endswith("ResponseData"):
        return f"{{{fields(document()['components']['schemas'][name])}}}"
    return str(name).replace("ErrorMessageData", "Error")


def fields(schema: dict[str, Any]) -> str:
    """Return the fields of an object, but for its type."""
    required = schema["required"]
    return ", ".join(
        f"{name}{'' if name in required else '?'}: {shape(field)}"
        for name, field in schema["properties"].items()
        if name != "type"
    )


def test_protocol_page_lists_every_message_with_its_fields() -> None:
    listed = {
        row[0].removeprefix("an ").strip("`"): row[1].strip("` |") for row in rows("docs/protocol.md", "## Fields")
    }
    assert listed.keys() == {*MessageType, "Error"}
    assert listed == {name: fields(schema) for name, schema in protocol_schemas().items()}


def test_frames_on_the_protocol_page_are_frames() -> None:
    frames = re.findall(r'`(\{"type":.*?\})`', (ROOT / "docs/protocol.md").read_text())
    schemas = {"components": document()["components"]}
    shown = set()
    for frame in map(json.loads, frames):
        Draft7Validator({**schemas, "allOf": [protocol_schemas()[frame["type"]]]}).validate(frame)
        shown.add(frame["type"])
    assert shown == set(MessageType)


@pytest.mark.parametrize("row", rows("docs/protocol.md", "## Close codes"), ids=lambda row: row[0])
def test_protocol_page_says_of_a_close_code_what_the_table_says(row: list[str]) -> None:
    codes, meaning, client = row[0], row[1], row[2].rstrip(" |")
    for first, last in re.findall(r"(\d{4})(?:–(\d{4}))?", codes):
        for code in {int(first), int(last or first)}:
            assert client_reconnect(code).value == client
            if code in CLOSE_CODES and "operator's choice" not in meaning and code != 1006:
                assert CLOSE_CODES[code].meaning == meaning


@pytest.mark.parametrize("page", ["README.md", "docs/protocol.md"])
def test_requests_in_the_docs_are_requests(page: str) -> None:
    frames = re.findall(r'`(\{"type":"\w+_request".*?\})`', (ROOT / page).read_text())
    assert len(frames) >= 3
    for frame in frames:
        parse(frame)


def test_table_of_outages_has_every_outage_on_both_layers_and_no_connection_lost() -> None:
    table = rows("docs/scale.md", "## What outages cost")
    assert [row[:2] for row in table] == [[layer, outage.name] for layer in ("pubsub", "core") for outage in OUTAGES]
    assert {row[2] for row in table} == {"0"}
