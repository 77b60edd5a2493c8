"""The report of a run: what was seen of a client, as a page, as JUnit's XML and as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from html import escape
from typing import Any
from xml.etree import ElementTree

from .verdicts import Result, Verdict

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML cannot hold, not even escaped."""


@dataclass(frozen=True, slots=True)
class Report:
    """Be what came of a run."""

    client: str
    """What was run: the command, or what stands in its place."""
    user_agent: str
    """How the client called itself at its handshakes; empty if it did not."""
    patience: float
    scale: float
    started: str
    """When the run began (RFC 3339 in UTC)."""
    seconds: float
    results: tuple[Result, ...]

    def of(self, verdict: Verdict) -> list[Result]:
        """Return the results with this verdict."""
        return [result for result in self.results if result.verdict is verdict]

    @property
    def passed(self) -> bool:
        """Whether no case failed and some passed: a client that never connects has shown nothing."""
        return bool(self.of(Verdict.PASSED)) and not self.of(Verdict.FAILED)

    @property
    def summary(self) -> str:
        """How many cases came out how."""
        return ", ".join(f"{len(self.of(verdict))} {verdict}" for verdict in Verdict)

    def to_json(self, **options: Any) -> str:
        """Return everything as JSON; ``options`` are those of ``json.dumps``."""
        counts = {verdict: len(self.of(verdict)) for verdict in Verdict}
        return json.dumps({**asdict(self), "counts": counts}, **options)

    def to_junit(self) -> str:
        """Return the XML that CI systems read: what was not observed is skipped there."""
        suite = ElementTree.Element(
            "testsuite",
            name=_xml(f"conformance of {self.client}"),
            tests=str(len(self.results)),
            failures=str(len(self.of(Verdict.FAILED))),
            errors="0",
            skipped=str(len(self.of(Verdict.NOT_OBSERVED))),
            time=f"{self.seconds:.3f}",
            timestamp=self.started,
        )
        for result in self.results:
            _add_case(suite, result)
        suites = ElementTree.Element("testsuites")
        suites.append(suite)
        ElementTree.indent(suites)
        return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"

    def to_html(self) -> str:
        """Return a page to be read, which needs nothing else."""
        return PAGE.format(
            client=escape(self.client),
            agent=escape(self.user_agent or "a client without a User-Agent"),
            started=escape(self.started),
            seconds=f"{self.seconds:.0f}",
            patience=f"{self.patience:g}",
            scale=f"{self.scale:g}",
            summary=escape(self.summary),
            rows="\n".join(_row(result) for result in self.results),
        )


def _xml(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)


def _add_case(suite: ElementTree.Element, result: Result) -> None:
    case = ElementTree.SubElement(
        suite, "testcase", classname=f"conformance.{result.level}", name=_xml(result.name), time=f"{result.seconds:.3f}"
    )
    if result.verdict is Verdict.FAILED:
        failure = ElementTree.SubElement(case, "failure", message=_xml(result.text), type=str(result.level))
        failure.text = _xml("\n".join([result.rule, *_lines(result.evidence)]))
    elif result.verdict is Verdict.NOT_OBSERVED:
        ElementTree.SubElement(case, "skipped", message=_xml(result.text))
    if result.verdict is not Verdict.FAILED or result.output:
        out = ElementTree.SubElement(case, "system-out")
        out.text = _xml(result.output or result.text)


def _lines(evidence: Iterable[dict[str, Any]]) -> Iterable[str]:
    """Return an entry of the transcript a line."""
    for entry in evidence:
        arrow = "client:" if entry["direction"] == "received" else "server:"
        what = entry.get("name", entry["kind"])
        content = f"{entry['code']} {entry['reason']}" if "code" in entry else entry.get("text", entry.get("hex", ""))
        yield f"{entry['at'][11:23]} #{entry['connection']} {arrow} {what} {content} {entry.get('note', '')}".rstrip()


def _row(result: Result) -> str:
    state = result.verdict.replace(" ", "-")
    evidence = escape("\n".join(_lines(result.evidence)) or "nothing")
    output = f"<h3>The end of what it wrote</h3><pre>{escape(result.output)}</pre>" if result.output else ""
    return (
        f'<tr class="{state}" id="{escape(result.name)}"><td><b>{escape(result.name)}</b><td>{result.level}'
        f"<td class=verdict>{result.verdict}<td><p>{escape(result.rule)}<p><b>Seen:</b> {escape(result.text)}."
        f"<details><summary>What went over the wire, in {result.seconds:.1f} s</summary>"
        f"<pre>{evidence}</pre>{output}</details>"
    )


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Conformance of {client}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em }}
table {{ border-collapse: collapse; width: 100% }}
td, th {{ padding: .4em .8em; text-align: left; vertical-align: top; border-bottom: 1px solid #ccc }}
td p {{ margin: 0 0 .2em }}
td:nth-child(-n+3) {{ white-space: nowrap }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; background: #f4f4f4; padding: .6em; font-size: 12px }}
h3 {{ font-size: 1em; margin: .5em 0 0 }}
summary {{ cursor: pointer; color: #555 }}
.passed .verdict {{ color: #06642c }}
.failed .verdict {{ color: #b00020; font-weight: bold }}
.failed {{ background: #fff3f3 }}
.not-observed .verdict {{ color: #5c5c5c }}
</style>
<h1>Conformance of {client}</h1>
<p><b>{summary}.</b> The client called itself {agent}. The run began at {started} and took {seconds} s.
<p>The client had {patience} s to do what it should, and was watched for as long for what it should not;
its own delays were taken times {scale}. What is said to be not observed says nothing against the client.
<table>
<thead><tr><th>Case<th>Level<th>Verdict<th>What a good client does, and what was seen</thead>
<tbody>
{rows}
</tbody>
</table>
</html>
"""
