"""
Write the figures of a run into the docs, as tables and charts: ``python -m benchmarks.report figures.json``.

What stands between two markers on the page is replaced, and so is a sentence in the README. The charts, and a copy of
the figures, go into the directory that is called as the page is.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from .charts import Bar, Panel, chart
from .goals import verdicts
from .sites import SITES
from .tables import label, number

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
BEGIN = "<!-- what follows is written by python -m benchmarks.report -->"
END = "<!-- this is where it ends -->"
README = PAGE.parent.parent / "README.md"
README_BEGIN, README_END = "<!-- measured -->", "<!-- end of measured -->"
CHARTED = {
    "heartbeats": ("server_cpu_us",),
    "idle": ("connection_kib",),
    "flat": ("server_cpu_us",),
    "topics": ("server_cpu_us", "subscribe_cpu_us"),
}
"""The figures in charts, where they are not these two."""
SMALL = 0.01
"""Shares of a profile below this are left out."""
MOST = ("per_second", "server_cpu_us")
SERVERS = {"daphne": "Daphne", "granian": "Granian", "none": "no server"}
LEGEND = (
    "A row is one figure on one server, and its columns are the sites. In parentheses stands realtime's figure divided "
    "by\nthat of the peer: for figures a second more is better, for all others less. Below each table stands what "
    "measures its rows anew."
)


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
    sections = [measured_on(run), LEGEND, *(section(name, parts, directory.name) for name, parts in results.items())]
    page.write_text("\n\n".join([before + BEGIN, *sections, END + after]))


def summarise(figures: Path, readme: Path) -> None:
    """Write into the README which server is how fast. Raises ``ValueError`` where a marker or a figure is missing."""
    text = readme.read_text()
    before, begin, rest = text.partition(README_BEGIN)
    _, end, after = rest.partition(README_END)
    if not begin or not end:
        raise ValueError(f"{readme} has to hold {README_BEGIN} and {README_END}")
    readme.write_text("\n".join([before + begin, *headline(json.loads(figures.read_text())["results"]), end + after]))


def headline(results: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the README. Raises ``ValueError`` where a figure is missing."""
    found = {(result["scenario"], result["server"]): result for result in results}
    try:
        for scenario, what in (("fanout", "deliveries"), ("echo", "echoes")):
            daphne, uvicorn = found[scenario, "daphne"], found[scenario, "uvicorn"]
            faster = uvicorn["figures"]["realtime"]["per_second"] / daphne["figures"]["realtime"]["per_second"]
            plain = [f"{part['ratios']['plain']['per_second']:.2g}" for part in (uvicorn, daphne)]
            yield (
                f"- {what} a second, {uvicorn['connections']:,} connections, one process: uvicorn {faster:.2g} times "
                f"Daphne; {plain[0]} and {plain[1]} times a\n  plain Channels consumer on the same server"
            )
    except KeyError as missing:
        raise ValueError(f"the figures have no {missing}") from None


def scenarios(results: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the results of each scenario; those that have tables of their own have no place on the page."""
    compared = (result for result in results if "ratios" in result)
    return {name: [*parts] for name, parts in groupby(compared, key=lambda result: str(result["scenario"]))}


def measured_on(run: dict[str, Any]) -> str:
    machine = run["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return "\n".join(
        [
            f"Measured on {machine['date']}: {machine['processor']}, {machine['cores']} cores, "
            f"{machine['memory_gib']} GiB of memory.",
            f"{versions}.",
            *(f"{reason}." for reason in run["left_out"]),
        ]
    )


def section(name: str, parts: list[dict[str, Any]], directory: str) -> str:
    """Return a scenario's heading, chart, table and commands."""
    heading = title(name, parts)
    picture = f"![{heading}]({directory}/{name}.svg)"
    commands = [f"    {part['command']}" for part in parts]
    return "\n".join([f"### {heading}", "", picture, "", *table(name, parts), "", *commands, *profiles(parts)])


def profiles(parts: list[dict[str, Any]]) -> Iterator[str]:
    """Yield where realtime's servers spend their time, where that was looked at."""
    for part in parts:
        if "profile" in part:
            shares = ", ".join(f"{name} {share:.0%}" for name, share in part["profile"].items() if share >= SMALL)
            yield from (
                "",
                f"Where the time of {SERVERS.get(part['server'], part['server'])}'s main thread goes: {shares}.",
            )


def title(name: str, parts: list[dict[str, Any]]) -> str:
    """Return the scenario's name, with what all parts of it have in common."""
    sizes = {part["connections"] for part in parts} - {0}
    connections = [f"{size:,} connections" for size in sizes if len(sizes) == 1]
    return ", ".join([name, *connections, *(["on Redis"] if parts[0]["layer"] == "redis" else [])])


def where(part: dict[str, Any], parts: list[dict[str, Any]]) -> str:
    """Return the server, with the connections where the parts differ in them."""
    server = SERVERS.get(part["server"], str(part["server"]))
    several = len({each["connections"] for each in parts}) > 1
    return f"{server}, {part['connections']:,} connections" if several else server


def charted(name: str, parts: list[dict[str, Any]]) -> list[str]:
    """Return the figures that are drawn."""
    own = parts[0]["figures"]["realtime"]
    return [figure for figure in CHARTED.get(name, MOST) if figure in own]


def table(name: str, parts: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a scenario's table: a row for each server and figure, with the sites side by side."""
    sites = [*dict.fromkeys(site for part in parts for site in part["figures"])]
    yield row(["server", "figure", *sites, "goal"])
    yield row(["---", "---", *("---:" for _ in sites), "---"])
    found = verdicts_by_row(parts)
    for part in parts:
        for figure in part["figures"]["realtime"]:
            cells = [cell(part, site, figure) for site in sites]
            outcomes = "; ".join(found.get((part["server"], part["connections"], figure), []))
            yield row([where(part, parts), label(name, figure), *cells, outcomes])


def verdicts_by_row(parts: list[dict[str, Any]]) -> dict[tuple[str, int, str], list[str]]:
    """Return what came of the goals, by server, connections and figure; the last row has what is about several."""
    found: dict[tuple[str, int, str], list[str]] = {}
    for verdict in verdicts(parts):
        goal = verdict.goal
        connections = [part["connections"] for part in parts if part["server"] == goal.server][-1]
        outcome = f"{verdict.goal.text} {verdict.bound}: {verdict.value:.3g}, **{verdict.outcome}**"
        found.setdefault((goal.server, connections, goal.figure), []).append(outcome)
    return found


def cell(part: dict[str, Any], site: str, figure: str) -> str:
    """Return a site's figure, and realtime's ratio to it."""
    value = part["figures"].get(site, {}).get(figure)
    ratio = part["ratios"].get(site, {}).get(figure)
    return "" if value is None else number(value) if ratio is None else f"{number(value)} ({ratio:.3g})"


def row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def panels(name: str, parts: list[dict[str, Any]]) -> list[Panel]:
    """Return what a scenario's chart shows."""
    return [
        Panel(
            label(name, figure),
            "more is better" if figure == "per_second" else "less is better",
            {where(part, parts): bars(part, figure) for part in parts},
        )
        for figure in charted(name, parts)
    ]


def bars(part: dict[str, Any], figure: str) -> list[Bar]:
    return [Bar(site, values[figure], kind(site)) for site, values in part["figures"].items()]


def kind(site: str) -> str:
    if site == "realtime":
        return "own"
    return "variant" if SITES[site].own else "peer"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.partition(":")[0])
    parser.add_argument("figures", type=Path, help="what python -m benchmarks --json wrote")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page (docs/benchmarks.md)")
    options = parser.parse_args()
    try:
        write(options.figures, options.page)
        if options.page == PAGE:
            summarise(options.figures, README)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
