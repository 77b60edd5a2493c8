"""
The table of outages in docs/scale.md: run every outage three times with many subscribers, and write what came of it.

``python -m tests.outages`` runs tests/test_live_outage_table.py; each test there writes its figures to a file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "scale.md"
BEGIN, END = "<!-- outages: written by make outages -->\n", "<!-- end of outages -->\n"
TESTS = "tests/test_live_outage_table.py"
COLUMNS = {
    "connections_lost": "connections lost",
    "echo": "echo, s",
    "connect": "connect, s",
    "subscribe": "subscribe, s",
    "publish_fails": "`publish()` raises after, s",
    "beats_back": "beats back, s",
    "publications_back": "publications back, s",
    "lost": "lost of published",
    "gaps": "gaps told",
}


def main() -> None:
    """Run the tests, and put the worst figure of all runs into each cell of the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.outages", description="Fill the table of outages.")
    parser.add_argument("--runs", type=int, default=3, help="times that everything is run (3)")
    parser.add_argument("--subscribers", type=int, default=100, help="on each of the two servers (100)")
    options = parser.parse_args()
    figures: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="outages-") as directory:
        for number in range(options.runs):
            report = Path(directory) / f"{number}.jsonl"
            environment = {
                **os.environ,
                "OUTAGE_LAYERS": "pubsub,core",
                "OUTAGE_REPORT": str(report),
                "OUTAGE_SUBSCRIBERS": str(options.subscribers),
            }
            command = [sys.executable, "-m", "pytest", TESTS, "-q", "-o", "faulthandler_timeout=120"]
            if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode:
                sys.exit(f"run {number + 1} of {options.runs} failed; {PAGE.name} is as it was")
            for line in report.read_text().splitlines():
                row = json.loads(line)
                figures.setdefault(f"{row['layer']} | {row['name']}", []).append(row)
    figures = dict(sorted(figures.items(), key=lambda item: item[0].split(" | ")[0], reverse=True))
    head, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}{table(figures)}{END}{tail}")


def table(figures: dict[str, list[dict[str, Any]]]) -> str:
    """Return the table in Markdown."""
    lines = ["| layer | outage | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name, runs in figures.items():
        cells = [cell(key, [run[key] for run in runs]) for key in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(key: str, values: list[Any]) -> str:
    """Return the worst of the runs' values."""
    if key == "lost":
        lost, published = max(values)
        return f"{lost} of {published}"
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    worst = max(known)
    return str(worst) if isinstance(worst, int) else "<0.01" if worst < 0.01 else f"{worst:.2f}"


if __name__ == "__main__":
    main()
