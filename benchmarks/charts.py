"""Bar charts as SVG, made by hand: a card with a background of its own, legible on light pages and on dark ones."""

from collections.abc import Iterator
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

from .tables import number

WIDTH, MARGIN = 760, 24
NAMES, BARS = 140, 480
"""Pixels for the names of bars, and for the longest bar; what is left is for its number."""
LINE, BAR = 22, 14
"""Pixels from line to line, and those that a bar is high."""
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-size: 16px; font-weight: 600 }
.heading { font-weight: 600 }
.quiet { fill: #59636e }
.card { fill: #ffffff; stroke: #d1d9e0 }
.own { fill: #0969da }
.variant { fill: #80b3ee }
.peer { fill: #9aa4ae }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc }
  .quiet { fill: #9198a1 }
  .card { fill: #161b22; stroke: #3d444d }
  .own { fill: #4493f8 }
  .variant { fill: #2c5a94 }
  .peer { fill: #6a737d }
}
"""


class Bar(NamedTuple):
    """Be one bar. ``kind`` is "own", "variant" or "peer"."""

    name: str
    value: float
    kind: str


class Panel(NamedTuple):
    """Be the bars of one figure, in groups with a name. ``note`` says what is better."""

    figure: str
    note: str
    groups: dict[str, list[Bar]]


def chart(title: str, panels: list[Panel]) -> str:
    """Return the SVG of some panels, one below the other."""
    y = MARGIN + 12
    parts = [text(MARGIN, y, title, "title")]
    for panel in panels:
        longest = max(bar.value for bars in panel.groups.values() for bar in bars)
        y += LINE * 3 // 2
        parts += [text(MARGIN, y, panel.figure, "heading"), text(WIDTH - MARGIN, y, panel.note, "quiet", "end")]
        for name, bars in panel.groups.items():
            y += LINE
            parts.append(text(MARGIN, y, name, "quiet"))
            for bar in bars:
                y += LINE
                parts += drawn(bar, y, bar.value / longest)
    height = y + MARGIN
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    card = f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label={quoteattr(title)}>'
    return "\n".join([head, f"<style>{STYLE}</style>", card, *parts, "</svg>\n"])


def drawn(bar: Bar, y: int, share: float) -> Iterator[str]:
    """Yield a bar's name, the bar, and its number; ``y`` is where text stands, ``share`` is of the longest bar."""
    left, width = MARGIN + NAMES, max(1.0, share * BARS)
    yield text(left - 10, y, bar.name, "", "end")
    yield f'<rect class="{bar.kind}" x="{left}" y="{y - BAR + 2}" width="{width:.1f}" height="{BAR}" rx="2"/>'
    yield text(left + round(width) + 8, y, number(bar.value))


def text(x: int, y: int, content: str, kind: str = "", anchor: str = "start") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{x}" y="{y}" text-anchor="{anchor}">{escape(content)}</text>'
