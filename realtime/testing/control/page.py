"""A page about the control API, made of its OpenAPI document: it loads nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import Any

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em }}
code, pre {{ font-family: ui-monospace, monospace; font-size: 13px }}
summary code {{ font-weight: 600 }}
details {{ border-bottom: 1px solid #ddd; padding: .3em 0 }}
pre {{ background: #f4f6f8; padding: .6em; overflow-x: auto }}
</style>
<h1>{title} {version}</h1>
<p>{description}</p>
<p>The whole of it, for tools: <a href="openapi.json">openapi.json</a>.</p>
{operations}
</html>
"""


def page(document: dict[str, Any]) -> str:
    """Return the page."""
    info = document["info"]
    return PAGE.format(
        title=escape(info["title"]),
        version=escape(info["version"]),
        description=escape(info["description"].strip()),
        operations="\n".join(_sections(document)),
    )


def _sections(document: dict[str, Any]) -> Iterator[str]:
    for tag in document["tags"]:
        yield f"<h2>{escape(tag['name'].capitalize())}</h2>"
        for path, item in document["paths"].items():
            for method, operation in item.items():
                if tag["name"] in operation["tags"] and not operation["operationId"].startswith("session_"):
                    yield _operation(document, method.upper(), path, operation)


def _operation(document: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> str:
    lines = [f"<p>{escape(operation.get('description', ''))}</p>"]
    for parameter in operation.get("parameters", ()):
        lines.append(f"<p><code>{escape(parameter['name'])}</code> {escape(parameter.get('description', ''))}</p>")
    for name, field in _fields(document, operation).items():
        default = f" = {json.dumps(field['default'])}" if "default" in field else ""
        lines.append(f"<p><code>{escape(name + default)}</code> {escape(field.get('description', ''))}</p>")
    head = f"<code>{method} {escape(path)}</code> {escape(operation['summary'])}"
    return f"<details><summary>{head}</summary>{''.join(lines)}</details>"


def _fields(document: dict[str, Any], operation: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the body of an operation."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    schema = content.get("schema", {})
    if "$ref" not in schema:
        return {}
    properties: dict[str, Any] = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["properties"]
    return properties
