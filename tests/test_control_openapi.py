"""The OpenAPI document of the control API: what it says, and that the server holds to it whatever it is asked."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from realtime.testing import ControlServer, DemoWebsocketServer
from realtime.testing.control.app import methods
from realtime.testing.faults import FAULTS

from .live import ROOT

SECONDS = {"coverage": 9, "examples,fuzzing": 9}
"""How long each way of asking may take."""
METHODS = ("get", "put", "post", "delete")


@pytest.fixture(scope="module")
def api() -> Iterator[ControlServer]:
    with (
        DemoWebsocketServer("127.0.0.1:0", heartbeat_interval=3600) as server,
        ControlServer(server, "127.0.0.1:0") as api,
    ):
        yield api


@pytest.fixture(scope="module")
def document(api: ControlServer) -> dict[str, Any]:
    return api.app.openapi()


@pytest.fixture(scope="module")
def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method, path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    ]


def resolve(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that can be validated against by itself."""
    return {**schema, "components": document["components"]}


def test_operations_have_ids_of_their_own_and_a_summary(operations: list[Any]) -> None:
    ids = [operation["operationId"] for _, _, operation in operations]
    assert len(set(ids)) == len(ids)
    assert all(operation["summary"] and operation["tags"] for _, _, operation in operations)


def test_what_there_is_for_all_is_there_for_a_session_as_well(operations: list[Any]) -> None:
    names = {operation["operationId"] for _, _, operation in operations}
    for_sessions = {name.removeprefix("session_") for name in names if name.startswith("session_")}
    assert {name for name in names if not name.startswith("session_")} - for_sessions == {
        "get_server",
        "get_session",
        "list_profiles",
    }


def test_methods_are_those_that_a_405_names(operations: list[Any]) -> None:
    documented: dict[str, set[str]] = {}
    for method, path, _ in operations:
        documented.setdefault(path, set()).add(method.upper())
    assert {path: found for path, found in methods().items() if path != "/docs"} == documented


def test_every_error_has_the_same_shape(document: dict[str, Any], operations: list[Any]) -> None:
    for _, path, operation in operations:
        errors = {status: answer for status, answer in operation["responses"].items() if status >= "400"}
        assert {"403", "409", "413", "422"} <= errors.keys()
        assert ("404" in errors) == ("{id}" in path or operation["operationId"].endswith(("publish", "use_profile")))
        for answer in errors.values():
            assert answer["content"] == {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_every_field_of_an_answer_and_of_a_body_is_typed(document: dict[str, Any]) -> None:
    for name, schema in document["components"]["schemas"].items():
        for field, content in schema.get("properties", {}).items():
            if (name, field) != ("Publication", "data"):
                assert content.keys() & {"type", "anyOf", "oneOf", "$ref", "const", "allOf"}, (name, field)


def test_faults_are_all_there_is(document: dict[str, Any]) -> None:
    body = document["paths"]["/faults"]["put"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["items"] == {"$ref": "#/components/schemas/OneFault"}
    known = document["components"]["schemas"]["OneFault"]["discriminator"]["mapping"]
    assert set(known) == {fault.name() for fault in FAULTS}


def test_examples_are_valid(document: dict[str, Any], operations: list[Any]) -> None:
    Draft202012Validator.check_schema({"$defs": document["components"]["schemas"]})
    shown = 0
    schemas = [
        operation["requestBody"]["content"]["application/json"]["schema"]
        for _, _, operation in operations
        if "requestBody" in operation
    ]
    schemas += [
        each for schema in document["components"]["schemas"].values() for each in schema.get("properties", {}).values()
    ]
    for schema in schemas:
        for example in schema.get("examples", ()):
            Draft202012Validator(resolve(document, schema)).validate(example)
            shown += 1
    assert shown >= 8


@pytest.mark.parametrize("phases", SECONDS)
def test_server_holds_to_the_document(api: ControlServer, phases: str, tmp_path: Path) -> None:
    """The operations for one session are the same functions, and are left out to save time."""
    arguments = ["--phases", phases, "--max-time", str(SECONDS[phases]), "--max-examples", "2", "--seed", "1"]
    arguments += ["--generation-database", "none", "--no-color", "--warnings", "off", "--request-timeout", "20"]
    arguments += ["--exclude-path-regex", r"^/sessions/\{name\}/"]
    # Some of what is refused cannot be said in a schema, such as a reason that has too many bytes.
    arguments += ["--exclude-checks", "positive_data_acceptance"]
    program = "from schemathesis.cli import schemathesis; schemathesis()"
    done = subprocess.run(
        [sys.executable, "-c", program, "run", f"{api.url}openapi.json", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
