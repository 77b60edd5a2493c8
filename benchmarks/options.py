"""The options of ``python -m benchmarks``."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .processes import COMMANDS
from .scale import CONNECTIONS, SECONDS
from .suite import SCENARIOS

OWN_TABLES = {
    "scale": {"server", "connections", "seconds", "processes"},
    "subscriptions": {"server", "processes", "topics"},
}
"""What the scenarios take that are no comparison."""
OPTIONS = {"server", "connections", "seconds", "rounds", "peer"}
"""What all others take, but for the one in which no server runs."""
TAKEN = {**OWN_TABLES, "publish": OPTIONS - {"server", "connections"}}
NOBODY = "none"
"""The peer to choose for measuring realtime alone."""
MAX_PROCESSES = 16


def arguments() -> argparse.Namespace:
    """Return the options, or end the program where some do not fit together."""
    parser = parser_of_options()
    options = parser.parse_args()
    taken = TAKEN.get(options.scenario, OPTIONS)
    for name in sorted(OPTIONS.union(*OWN_TABLES.values()) - taken):
        if getattr(options, name) is not None:
            parser.error(f"{options.scenario} takes no --{name}, but {', '.join(f'--{one}' for one in sorted(taken))}")
    kind = SCENARIOS.get(options.scenario)
    if options.peer and kind is not None and not {*options.peer} <= {*kind.sites, NOBODY}:
        peers = f"the peers of {options.scenario} are {', '.join(kind.sites[1:])}"
        parser.error(peers if kind.sites[1:] else f"{options.scenario} has no peers")
    if options.layer == "memory" and (options.scenario in OWN_TABLES or kind is not None and kind.on_redis):
        parser.error(f"{options.scenario} measures what Redis is asked to do: leave out --layer memory")
    return options


def parser_of_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure realtime beside its peers, and what it costs on Redis (scale, subscriptions).",
    )
    parser.add_argument("scenario", nargs="?", choices=[*SCENARIOS, "all", *OWN_TABLES], default="all")
    parser.add_argument(
        "--server",
        action="append",
        choices=[*COMMANDS],
        help=f"may be given again ({each(lambda kind: ' and '.join(kind.servers))})",
    )
    parser.add_argument(
        "--peer",
        action="append",
        choices=[*dict.fromkeys(peer for kind in SCENARIOS.values() for peer in kind.sites[1:]), NOBODY],
        help="measure realtime beside this one only; may be given again (all)",
    )
    parser.add_argument("--layer", choices=["memory", "redis"], help="(memory; redis for what is about Redis)")
    sizes = each(lambda kind: ", then ".join(map(str, kind.sizes)))
    parser.add_argument(
        "--connections",
        type=positive(int),
        metavar="N",
        help=f"clients of each site ({sizes}; {CONNECTIONS} of each process for scale)",
    )
    parser.add_argument(
        "--seconds",
        type=positive(float),
        metavar="S",
        help=f"seconds that a site is measured for ({each(lambda kind: f'{kind.seconds:g}')}; {SECONDS:g} for scale)",
    )
    parser.add_argument(
        "--rounds",
        type=positive(int),
        metavar="N",
        help=f"parts that these are split into ({each(lambda kind: str(kind.rounds))})",
    )
    few = range(1, MAX_PROCESSES + 1)
    parser.add_argument(
        "--processes",
        type=int,
        choices=few,
        metavar="N",
        help="servers at once (1 to 4 in turn for scale, 1 for subscriptions)",
    )
    parser.add_argument(
        "--topics",
        type=positive(int),
        metavar="N",
        help="topics that each process subscribes to (1,000 and 10,000 in turn)",
    )
    parser.add_argument(
        "--profile", action="store_true", help="see where the server's time goes, where py-spy is there"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE too")
    return parser


def each(default: Callable[[Any], str]) -> str:
    """Return the scenarios' defaults as text: those that share one are named together."""
    names: dict[str, list[str]] = {}
    for name, kind in SCENARIOS.items():
        names.setdefault(default(kind), []).append(name)
    return "; ".join(f"{text} for {', '.join(scenarios)}" for text, scenarios in names.items())


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        if not 0 < (value := kind(text)) < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
        return value

    return number  # argparse names it in its message
