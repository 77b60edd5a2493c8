"""What the docs say is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from realtime.conf import Settings
from realtime.protocol import CLOSE_CODES, ErrorCode, MessageType, client_reconnect, parse

ROOT = Path(__file__).resolve().parent.parent
LATER = {MessageType.GAP, ErrorCode.RATE_LIMITED}
"""Named in the protocol, and not sent by any server yet."""


def rows(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the table below ``heading``."""
    section = (ROOT / page).read_text().split(f"{heading}\n", 1)[1]
    table = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert table is not None
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[0].splitlines()[2:]]


def test_settings_page_lists_every_key_with_its_default() -> None:
    listed = {key.strip("`"): (default.strip("`"), text) for key, default, text in rows("docs/settings.md", "Settings")}
    fields = {name: (repr(field.default), field.description) for name, field in Settings.model_fields.items()}
    listed = {key: (default.replace('"', "'"), text.rstrip(" |")) for key, (default, text) in listed.items()}
    assert listed == {
        name: (default, " ".join((text or "").split()).replace("``", "`")) for name, (default, text) in fields.items()
    }


def test_protocol_page_lists_every_error_code() -> None:
    listed = {row[0].strip("` ") for row in rows("docs/protocol.md", "## Errors")}
    assert listed == {code.value for code in ErrorCode} - LATER


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
