"""docs/control.md: its examples are run, and its tables are what the code says."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from realtime import Topic
from realtime.testing import ControlServer, DemoWebsocketServer
from realtime.testing.cli import parser
from realtime.testing.control.errors import CODES, DESCRIPTIONS
from realtime.testing.control.models import ErrorCode

from .control_client import Control
from .control_docs import PAGE, table, written
from .live import TIMEOUT, Client
from .test_docs import rows

topic = Topic("demo-docs.{name}", public=True)
TEXT = PAGE.read_text()
EXAMPLES = re.findall(r"^```bash\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
ANSWERS = re.findall(r"^```json\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[Callable[[str], str]]:
    """Run commands of the page against a server of the test's own, to which a client is connected as the page says."""
    async with DemoWebsocketServer("127.0.0.1:0") as server:
        with ControlServer(server, "localhost:0") as api:

            def run(commands: str) -> str:
                here = commands.replace("http://localhost:8081", f"http://127.0.0.1:{api.port}")
                # The page's topic is that of a server without a site.
                here = here.replace("demo.prices", "demo-docs.prices")
                command = ["bash", "-e", "-c", here]
                done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT)
                assert done.returncode == 0, (here, done.stdout, done.stderr)
                return done.stdout

            async with Client(server.session("checkout").url) as client:
                await client.subscribe("demo-docs.prices")
                yield run


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
async def test_examples_run_one_after_the_other(run: Callable[[str], str]) -> None:
    assert len(EXAMPLES) >= 10
    outputs = [await asyncio.to_thread(run, example) for example in EXAMPLES]
    first = json.loads(outputs[0])
    assert first.keys() == json.loads(ANSWERS[0]).keys()
    assert (first["session"], first["number"]) == ("checkout", 1)
    assert outputs[2].startswith(ANSWERS[1].strip())


def test_every_operation_is_in_the_table_as_it_is() -> None:
    assert written() == table(), "python -m tests.control_docs writes it"


def test_every_option_is_in_the_table_as_it_is() -> None:
    serve = parser()._subparsers._group_actions[0].choices["serve"]  # type: ignore[union-attr, index]
    options = {action.option_strings[0]: action for action in serve._actions if action.option_strings[0] != "-h"}
    listed = {
        cells[0].strip("` "): cells[1].strip("` ")
        for cells in (line.strip("|").split("|") for line in TEXT.splitlines() if line.startswith("| `--"))
    }
    assert listed.keys() == options.keys()
    for name, default in listed.items():
        if isinstance(options[name].default, str):
            assert options[name].default == default


def test_every_error_is_in_the_table() -> None:
    listed = {(int(status), code.strip("`")) for status, code, *_ in rows("docs/control.md", "## Errors")}
    assert listed == {(status, code.value) for status, code in CODES.items()} | {(409, "TIMEOUT")}
    assert {code for _, code in listed} == {code.value for code in ErrorCode} - {"INTERNAL"}
    assert DESCRIPTIONS.keys() <= {status for status, _ in listed}


def test_example_of_an_error_is_what_is_answered() -> None:
    with DemoWebsocketServer("127.0.0.1:0") as server, ControlServer(server, "127.0.0.1:0") as api:
        answer = Control(api.port).ask("PUT", "profile", {"name": "zombi"})
    assert answer.json == json.loads(ANSWERS[2])
