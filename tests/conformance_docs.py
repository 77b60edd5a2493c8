"""
Play the conformance cases to four clients, and write what came of it into ``docs/conformance.md``.

``CONFORMANCE_NODE_MODULES=… python -m tests.conformance_docs`` does it all: that directory must have npm's ``ws``.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from realtime.testing.conformance import CASES, Report, Result, Verdict, run

from .browser import find_node

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "conformance.md"
CLIENTS = ROOT / "tests" / "conformance_clients"
MARKS = {Verdict.PASSED: "yes", Verdict.FAILED: "**no**", Verdict.NOT_OBSERVED: "–"}
JOBS = 10
_CASES = re.compile(r"(?<=<!-- cases -->\n).*?(?=<!-- /cases -->)", re.DOTALL)
_RESULTS = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- /results -->)", re.DOTALL)


def node_command(script: str) -> list[str]:
    return [find_node(), "--disable-warning=MODULE_TYPELESS_PACKAGE_JSON", str(CLIENTS / script), "{url}"]


def python_command(module: str) -> list[str]:
    return [sys.executable, "-m", f"tests.conformance_clients.{module}", "{url}"]


def clients() -> dict[str, list[str]]:
    """Return the command of each client, by its name and version."""
    modules = Path(os.environ["CONFORMANCE_NODE_MODULES"])
    os.environ["NODE_PATH"] = str(modules)
    ws = json.loads((modules / "ws" / "package.json").read_text())["version"]
    node = subprocess.run([find_node(), "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return {
        "ours, Python": python_command("realtime_client"),
        f"ours, JavaScript (Node {node.removeprefix('v')})": node_command("realtime_client.mjs"),
        f"`websockets` {version('websockets')}": python_command("websockets_client"),
        f"`ws` {ws}": node_command("ws_client.cjs"),
    }


def case_rows() -> str:
    """Return the table of cases."""
    lines = ["| case | level | a good client |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| `{case.name}` | {case.level} | {case.rule} |" for case in CASES.values()), ""])


def result_rows(reports: dict[str, Report]) -> str:
    """Return the table of what came of each case, and below it what was seen where one failed."""
    lines = [f"| case | {' | '.join(reports)} |", f"|---{'|---' * len(reports)}|"]
    columns = [report.results for report in reports.values()]
    lines += [
        f"| `{row[0].name}` | {' | '.join(MARKS[result.verdict] for result in row)} |"
        for row in zip(*columns, strict=True)
    ]
    lines.append(f"| passed, failed, not observed | {' | '.join(map(_counts, reports.values()))} |")
    first = next(iter(reports.values()))
    lines += [
        "",
        f"Patience was {first.patience:g} s and scale {first.scale:g}. What was seen where a client failed:",
        "",
    ]
    for name, report in reports.items():
        failed = report.of(Verdict.FAILED)
        lines += [f"- {name}: {'; '.join(map(_seen, failed)) or 'nothing'}."]
    return "\n".join([*lines, ""])


def _counts(report: Report) -> str:
    return ", ".join(str(len(report.of(verdict))) for verdict in Verdict)


def _seen(result: Result) -> str:
    return f"`{result.name}`, {result.text.replace('|', '/')}"


def main() -> None:
    reports = {}
    for name, command in clients().items():
        reports[name] = run(command=command, jobs=JOBS, tell=print)
        print(f"{name}: {reports[name].summary}, in {reports[name].seconds:.0f} s: {shlex.join(command)}")
    text = PAGE.read_text()
    text = _CASES.sub(lambda _: case_rows(), text)
    PAGE.write_text(_RESULTS.sub(lambda _: result_rows(reports), text))


if __name__ == "__main__":
    main()
