"""
The reference tables in docs/test-a-client.md, as the models have them.

``python -m tests.fault_docs`` writes them into the page.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from realtime.testing.faults import FAULTS, Fault
from realtime.testing.faults.base import ConnectionFault, FrameFault, HandshakeFault
from realtime.testing.profiles import PROFILES, Profile

PAGE = Path(__file__).resolve().parent.parent / "docs" / "test-a-client.md"
COMMON = {"fault", *Fault.model_fields, *HandshakeFault.model_fields, *ConnectionFault.model_fields}
TIMES = {"after", "times"}


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _value(value: Any) -> str:
    return json.dumps(value)


def _fields(fault: type[Fault]) -> Iterator[str]:
    counted = TIMES if issubclass(fault, HandshakeFault | FrameFault) else set()
    for name, field in fault.model_fields.items():
        # What all have stands above the table, unless this one says otherwise.
        inherited = FrameFault.model_fields.get(name)
        if name in COMMON - TIMES or (name in counted and inherited and inherited.default == field.default):
            continue
        yield f"`{name}` = `{_value(field.default)}`: {field.description}"


def faults_table() -> str:
    """Return the table of the faults."""
    lines = ["| `fault` | on the wire | a good client | fields |", "|---|---|---|---|"]
    for fault in FAULTS:
        cells = (f"`{fault.name()}`", fault.on_the_wire(), fault.good_client(), "<br>".join(_fields(fault)))
        lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    return "\n".join(lines)


def _consists_of(profile: Profile) -> Iterator[str]:
    for fault in profile.faults:
        given = ", ".join(
            f"{name} {_value(getattr(fault, name))}"
            for name in type(fault).model_fields
            if name in fault.model_fields_set
        )
        yield f"`{fault.fault}`{given and ': '}{given}"
    for event in profile.events:
        spread = f", spread over {event.spread:g} s" if event.spread else ""
        since = "the handshake" if event.since == "connected" else "the start"
        yield f"close {event.message.code} (`{event.message.reason}`) {event.after:g} s after {since}{spread}"
    for key, value in profile.settings.items():
        yield f"`{key}` = `{value!r}`"


def profiles_table() -> str:
    """Return the table of the profiles."""
    lines = ["| profile | what happens | made of | a good client |", "|---|---|---|---|"]
    for profile in PROFILES.values():
        cells = (f"`{profile.name}`", profile.summary, "<br>".join(_consists_of(profile)), profile.good_client)
        lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    return "\n".join(lines)


TABLES = {"faults": faults_table, "profiles": profiles_table}


def table_in(page: str, name: str) -> str:
    """Return the table of that name as ``page`` has it."""
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", page, re.DOTALL)
    return found[1] if found else ""


def main() -> None:
    page = PAGE.read_text()
    for name, table in TABLES.items():
        page = page.replace(
            f"<!-- {name} -->\n{table_in(page, name)}\n<!-- /{name} -->",
            f"<!-- {name} -->\n{table()}\n<!-- /{name} -->",
        )
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
