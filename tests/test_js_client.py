"""The browser client's own tests in Node, and that it and ``protocol.py`` say the same."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from realtime.protocol import ErrorCode, Reconnect, client_reconnect

from .browser import find_node
from .test_docs import rows

ROOT = Path(__file__).resolve().parent.parent
CLIENT = ROOT / "realtime" / "static" / "realtime"
FILES = sorted((ROOT / "tests" / "js").glob("*.test.mjs"))
NAMES = {"stay_away": Reconnect.STAY_AWAY, "backoff": Reconnect.BACKOFF, "later": Reconnect.BACKOFF_10S}


def node(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [find_node(), "--disable-warning=MODULE_TYPELESS_PACKAGE_JSON", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_client_in_node(path: Path) -> None:
    done = node("--expose-gc", "--test", "--test-reporter=spec", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (count := re.search(r"^. pass (\d+)$", done.stdout, re.MULTILINE)), done.stdout
    assert int(count[1]) > 5


def test_client_does_after_every_code_what_the_protocol_says() -> None:
    script = (
        f"import {{ reconnectAfter }} from {json.dumps((CLIENT / 'realtime.js').as_uri())};"
        "const codes = Array.from({ length: 4000 }, (_, index) => 1000 + index);"
        "console.log(JSON.stringify(codes.map((code) => [code, reconnectAfter(code)])));"
    )
    done = node("--input-type=module", "--eval", script)
    assert done.returncode == 0, done.stderr
    answers = {code: NAMES[answer] for code, answer in json.loads(done.stdout)}
    assert answers == {code: client_reconnect(code) for code in range(1000, 5000)}


def test_types_name_every_error_code() -> None:
    text = (CLIENT / "realtime.d.ts").read_text()
    union = re.search(r"type ErrorCode =(.*?);", text, re.DOTALL)
    assert union is not None
    assert set(re.findall(r'"(\w+)"', union[1])) == {*ErrorCode, "TIMEOUT", "ABORTED", "CLOSED", "UNKNOWN"}


def test_client_does_nothing_that_a_strict_policy_refuses() -> None:
    code = re.sub(r"/\*.*?\*/|//.*", "", (CLIENT / "realtime.js").read_text(), flags=re.DOTALL)
    assert not re.search(r"\beval\b|\bFunction\b|innerHTML|\.style\b|console\.", code)


def test_guide_says_what_the_client_does_after_a_close() -> None:
    said = {Reconnect.BACKOFF: "comes back, with backoff", Reconnect.BACKOFF_10S: "comes back after at least 10 s"}
    table = {client: codes for codes, client in rows("docs/browser.md", "## What happens after a close")}
    for meaning, text in said.items():
        spans = re.findall(r"(\d{4})(?:–(\d{4}))?", table[text])
        listed = {code for first, last in spans for code in range(int(first), int(last or first) + 1)}
        assert listed == {code for code in range(1000, 5000) if client_reconnect(code) is meaning}
    assert table["stays away"] == "all others"


def test_code_in_the_guide_is_javascript(tmp_path: Path) -> None:
    blocks = re.findall(r"```js\n(.*?)```", (ROOT / "docs" / "browser.md").read_text(), re.DOTALL)
    assert len(blocks) > 3
    for number, block in enumerate(blocks):
        path = tmp_path / f"{number}.mjs"
        path.write_text(block)
        done = node("--check", str(path))
        assert done.returncode == 0, done.stderr
