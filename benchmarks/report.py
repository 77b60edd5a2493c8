"""
Write the figures of a run into the docs, as tables and charts: ``python -m benchmarks.report figures.json``.

What stands between two markers on the page is replaced. The charts, and a copy of the figures, go into the directory
that is called as the page is.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from .charts import Bar, Panel, chart
from .sites import REALTIME, SITES
from .tables import label, number

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
BEGIN = "<!-- what follows is written by python -m benchmarks.report -->"
END = "<!-- this is where it ends -->"
CHARTED = {"heartbeats": ("server_cpu_us",), "idle": ("connection_kib",)}
"""The figures in charts and in ratios, where they are not these two."""
MOST = ("per_second", "server_cpu_us")
SERVERS = {"daphne": "Daphne"}


def write(figures: Path, page: Path) -> None:
    """Write tables onto the page, and charts and figures beside it. Raises ``ValueError`` where a marker is missing."""
    text = page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has to hold two lines that the tables go between: {BEGIN} and {END}")
    run = json.loads(figures.read_text())
    results = scenarios(run["results"])
    directory = page.with_suffix("")
    directory.mkdir(exist_ok=True)
    (directory / "figures.json").write_text(json.dumps(run, indent=2) + "\n")
    for name, parts in results.items():
        (directory / f"{name}.svg").write_text(chart(title(name, parts), panels(name, parts)))
    sections = [measured_on(run), *(section(name, parts, directory.name) for name, parts in results.items())]
    page.write_text("\n\n".join([before + BEGIN, *sections, END + after]))


def scenarios(results: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the results of each scenario that has peers; those that have none have no place on the page."""
    compared = (result for result in results if "ratios" in result)
    return {name: [*parts] for name, parts in groupby(compared, key=lambda result: str(result["scenario"]))}


def measured_on(run: dict[str, Any]) -> str:
    machine = run["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"Measured on {machine['date']}: {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB of memory; channel layer: {run['layer']}.\n{versions}."
    )


def section(name: str, parts: list[dict[str, Any]], directory: str) -> str:
    """Return a scenario's heading, chart and table."""
    heading = title(name, parts)
    return "\n".join([f"### {heading}", "", f"![{heading}]({directory}/{name}.svg)", "", *table(name, parts)])


def title(name: str, parts: list[dict[str, Any]]) -> str:
    connections = parts[0]["connections"]
    return f"{name}, {connections:,} connections" if connections else name


def charted(name: str, parts: list[dict[str, Any]]) -> list[str]:
    """Return the figures that are drawn, and divided by realtime's."""
    own = parts[0]["figures"]["realtime"]
    return [figure for figure in CHARTED.get(name, MOST) if figure in own]


def table(name: str, parts: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a scenario's table: a row for each server and site."""
    figures = [*parts[0]["figures"]["realtime"]]
    ratios = charted(name, parts)
    headings = [label(name, figure) for figure in figures]
    headings += [f"realtime / peer, {label(name, figure)}" for figure in ratios]
    yield row(["server", "site", *headings])
    yield row(["---", "---", *("---:" for _ in headings)])
    for part in parts:
        for site, values in part["figures"].items():
            divided = part["ratios"].get(site, {})
            cells = [number(values[figure]) if figure in values else "" for figure in figures]
            cells += [f"{divided[figure]:.3g}" if figure in divided else "" for figure in ratios]
            yield row([server(part), site, *cells])


def row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def panels(name: str, parts: list[dict[str, Any]]) -> list[Panel]:
    """Return what a scenario's chart shows."""
    return [
        Panel(
            label(name, figure),
            "more is better" if figure == "per_second" else "less is better",
            {server(part): bars(part, figure) for part in parts},
        )
        for figure in charted(name, parts)
    ]


def bars(part: dict[str, Any], figure: str) -> list[Bar]:
    return [Bar(site, values[figure], kind(site)) for site, values in part["figures"].items()]


def kind(site: str) -> str:
    if site == "realtime":
        return "own"
    return "variant" if SITES[site].application == REALTIME else "peer"


def server(part: dict[str, Any]) -> str:
    return SERVERS.get(part["server"], str(part["server"]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.partition(":")[0])
    parser.add_argument("figures", type=Path, help="what python -m benchmarks --json wrote")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page (docs/benchmarks.md)")
    options = parser.parse_args()
    try:
        write(options.figures, options.page)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
