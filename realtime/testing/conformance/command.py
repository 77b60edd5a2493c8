"""The command line: ``demows conformance``, and ``python -m realtime.testing.conformance``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..server import parse_address
from .cases import CASES
from .report import Report
from .runner import JOBS, run
from .verdicts import Level, Verdict

HELP = "play some sixty scripted cases to a WebSocket client, and report which behaviours were seen"
FAST = {"patience": 2.0, "scale": 0.1}
"""What ``--fast`` stands for: for clients that heed ``{scale}``."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument(
        "--client",
        metavar="COMMAND",
        help="the command that starts the client, as in 'python my_client.py {url}'; it is run once for each case. "
        "The URL is in the environment too, as DEMOWS_URL. Without it, you start the client by hand",
    )
    parser.add_argument("--address", default=None, help="where to listen (localhost:8080, with --client any free port)")
    parser.add_argument(
        "--patience",
        type=float,
        metavar="SECONDS",
        help="how long the client has to do what it should, and is watched for what it should not (8)",
    )
    parser.add_argument(
        "--scale",
        type=float,
        metavar="FACTOR",
        help="what the client multiplies its own delays and timeouts by; it is told as {scale} and DEMOWS_SCALE (1)",
    )
    parser.add_argument("--fast", action="store_true", help="for CI: --patience 2 --scale 0.1")
    parser.add_argument("--jobs", type=int, default=JOBS, metavar="N", help=f"cases side by side ({JOBS})")
    parser.add_argument("--only", action="append", default=[], metavar="CASE", help="play this case; may be repeated")
    parser.add_argument(
        "--skip", action="append", default=[], metavar="CASE", help="leave this one out; may be repeated"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report as a page")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write it as JUnit's XML")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write it as JSON")
    parser.add_argument("--must", action="store_true", help="exit with 0 even if a case that only should pass failed")
    parser.add_argument("--list", action="store_true", help="list the cases, and end")


def main(options: argparse.Namespace) -> int:
    """Do what the options say. Return 0, 1 if a case failed or nothing was seen, or 2 if the options cannot be."""
    if options.list:
        for case in CASES.values():
            _say(f"{case.name:20} {case.level:7} {case.rule}")
        return 0
    try:
        with _hushed():
            report = _run(options)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"conformance: {error}\n")
        return 2
    for path, text in (
        (options.html, report.to_html),
        (options.junit, report.to_junit),
        (options.json, report.to_json),
    ):
        if path is not None:
            path.write_text(text(), encoding="utf-8")
    _say(f"{report.summary}, in {report.seconds:.0f} s")
    failed = [each for each in report.of(Verdict.FAILED) if not options.must or each.level is Level.MUST]
    return int(bool(failed) or len(report.of(Verdict.NOT_OBSERVED)) == len(report.results))


def _run(options: argparse.Namespace) -> Report:
    defaults = FAST if options.fast else {}
    address = options.address or ("localhost:0" if options.client else "localhost:8080")
    parse_address(address)
    return run(
        address,
        command=options.client,
        patience=options.patience if options.patience is not None else defaults.get("patience", 8.0),
        scale=options.scale if options.scale is not None else defaults.get("scale", 1.0),
        cases=options.only,
        skip=options.skip,
        jobs=options.jobs,
        tell=_say,
    )


@contextmanager
def _hushed() -> Iterator[None]:
    """Leave the server's own log out: it tells of every close that a case asks for."""
    log = logging.getLogger("realtime")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Be ``python -m realtime.testing.conformance``."""
    parser = argparse.ArgumentParser(prog="python -m realtime.testing.conformance", description=HELP)
    add_arguments(parser)
    return main(parser.parse_args(arguments))
