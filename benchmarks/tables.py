"""How figures are called, and the table that is printed of them."""

from collections.abc import Iterator
from typing import Any

from .scale import table
from .suite import SCENARIOS

HEADINGS = ("scenario", "server", "connections", "figure", "realtime", "peer", "", "realtime / peer")
ROW = "{:<11}{:<9}{:>12}  {:<22}{:>12}   {:<14}{:>12}{:>17}"

LABELS = {
    ("topics", "subscribe_cpu_us"): "server µs/subscribe",
    ("workers", "redis_cpu_us"): "redis µs/broadcast",
}
"""What figures are called that are for something else than what the scenario counts."""


def label(scenario: str, figure: str) -> str:
    """Return what a figure of a scenario is called, with its unit."""
    kind = SCENARIOS[scenario]
    if figure == "per_second":
        return f"{kind.plural}/s"
    if figure == "connection_kib":
        return "KiB/connection"
    if (scenario, figure) in LABELS:
        return LABELS[scenario, figure]
    name, _, unit = figure.replace("_cpu_us", "_us").rpartition("_")
    return f"{name} {unit}" if unit == "ms" else f"{name} µs/{kind.unit}"


def number(value: float) -> str:
    """Return a number with three digits or more that count."""
    return f"{value:,.{0 if value >= 1000 else 1 if value >= 10 else 2}f}"


def lines(result: dict[str, Any], *, heading: bool) -> Iterator[str]:
    """Yield what is printed of a result, and with ``heading`` what stands above the first one."""
    if "ratios" not in result:
        yield from table(result, heading=heading)
        return
    if heading:
        yield ROW.format(*HEADINGS)
    where = (result["scenario"], result["server"], result["connections"])
    own = result["figures"]["realtime"]
    if "profile" in result:
        yield f"time of {result['server']}: " + ", ".join(
            f"{name} {share:.0%}" for name, share in result["profile"].items()
        )
    if not result["ratios"]:
        for figure, value in own.items():
            yield ROW.format(*where, label(result["scenario"], figure), number(value), "", "", "").rstrip()
    for peer, ratios in result["ratios"].items():
        for figure, ratio in ratios.items():
            values = (number(own[figure]), peer, number(result["figures"][peer][figure]), f"{ratio:.3g}")
            yield ROW.format(*where, label(result["scenario"], figure), *values)
