"""
The table of operations in docs/control.md, as the OpenAPI document has them.

``python -m tests.control_docs`` writes it into the page.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from realtime.testing import DemoWebsocketServer
from realtime.testing.control import create_app

from .fault_docs import table_in

PAGE = Path(__file__).resolve().parent.parent / "docs" / "control.md"
NAME = "operations"
SESSION = "/sessions/{name}"


def fields(document: dict[str, Any], operation: dict[str, Any]) -> str:
    """Return what an operation takes: the fields of its body, and what its query may say."""
    taken = [f"`?{each['name']}=`" for each in operation.get("parameters", ()) if each["in"] == "query"]
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        if "$ref" not in schema:
            return "a list of faults"
        body = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        taken += [f"`{name}`{'' if name in body.get('required', ()) else '?'}" for name in body["properties"]]
    return ", ".join(taken)


def table() -> str:
    """Return the table."""
    document = create_app(DemoWebsocketServer("localhost:0")).openapi()
    lines = ["| operation | | takes | what it does |", "|---|---|---|---|"]
    for tag in document["tags"]:
        for path, item in document["paths"].items():
            for method, operation in item.items():
                if tag["name"] in operation["tags"] and not operation["operationId"].startswith("session_"):
                    star = "*" if SESSION + path in document["paths"] else ""
                    what = f"{operation['summary']}."
                    lines.append(f"| `{method.upper()} {path}` | {star} | {fields(document, operation)} | {what} |")
    return "\n".join(lines)


def main() -> None:
    page = PAGE.read_text()
    start, _, rest = page.partition(f"<!-- {NAME} -->\n")
    _, _, end = rest.partition(f"<!-- /{NAME} -->")
    PAGE.write_text(f"{start}<!-- {NAME} -->\n{table()}\n<!-- /{NAME} -->{end}")


def written() -> str:
    """Return the table as the page has it."""
    return table_in(PAGE.read_text(), NAME)


if __name__ == "__main__":
    main()
