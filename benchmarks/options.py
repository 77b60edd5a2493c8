"""The options of ``python -m benchmarks``."""

import argparse
from collections.abc import Callable
from pathlib import Path

from .publish import Publisher
from .scale import CONNECTIONS, SECONDS
from .scenarios import SCENARIOS, Load

ROUNDS = 3
"""Measurements of each site, in turn, so that a slow moment of the machine meets all."""
PAIRED: dict[str, type[Load] | type[Publisher]] = {**SCENARIOS, "publish": Publisher}
"""What is measured beside a peer."""
OWN_OPTIONS = {
    "publish": {"seconds", "rounds", "peer"},
    "scale": {"server", "connections", "seconds", "processes"},
    "topics": {"server", "processes", "topics"},
}
"""What the scenarios take that are about Redis."""
OPTIONS = {"server", "connections", "seconds", "rounds", "peer"}
"""What all others take."""
NOBODY = "none"
"""The peer to choose for measuring realtime alone."""
MAX_PROCESSES = 16


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure realtime beside its peers, and what it costs on Redis (publish, scale, topics).",
    )
    parser.add_argument("scenario", nargs="?", choices=[*SCENARIOS, "all", *OWN_OPTIONS], default="all")
    parser.add_argument("--server", choices=["daphne", "uvicorn", "both"], help="(both; uvicorn for scale and topics)")
    parser.add_argument(
        "--peer",
        action="append",
        choices=[*dict.fromkeys(peer for kind in PAIRED.values() for peer in kind.sites[1:]), NOBODY],
        help="measure realtime beside this one only; may be given again (all)",
    )
    parser.add_argument("--layer", choices=["memory", "redis"], help="(memory; redis for what is about Redis)")
    defaults = ", ".join(f"{load.connections_by_default} for {name}" for name, load in SCENARIOS.items())
    defaults += f", {CONNECTIONS} of each process for scale"
    parser.add_argument("--connections", type=positive(int), metavar="N", help=f"clients of each site ({defaults})")
    defaults = ", ".join(f"{kind.seconds_by_default:g} for {name}" for name, kind in PAIRED.items())
    defaults += f", {SECONDS:g} for scale"
    parser.add_argument(
        "--seconds", type=positive(float), metavar="S", help=f"seconds that a site is measured for ({defaults})"
    )
    parser.add_argument("--rounds", type=positive(int), metavar="N", help=f"parts that these are split into ({ROUNDS})")
    few = range(1, MAX_PROCESSES + 1)
    parser.add_argument(
        "--processes",
        type=int,
        choices=few,
        metavar="N",
        help="servers at once (1 to 4 in turn for scale, 1 for topics)",
    )
    parser.add_argument(
        "--topics",
        type=positive(int),
        metavar="N",
        help="topics that each process subscribes to (1,000 and 10,000 in turn)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE too")
    options = parser.parse_args()
    taken = OWN_OPTIONS.get(options.scenario, OPTIONS)
    for name in sorted(OPTIONS.union(*OWN_OPTIONS.values()) - taken):
        if getattr(options, name) is not None:
            parser.error(f"{options.scenario} takes no --{name}, but {', '.join(f'--{one}' for one in sorted(taken))}")
    if options.peer and options.scenario != "all" and not {*options.peer} <= {*PAIRED[options.scenario].sites, NOBODY}:
        parser.error(f"the peers of {options.scenario} are {', '.join(PAIRED[options.scenario].sites[1:])}")
    if options.layer == "memory" and options.scenario in OWN_OPTIONS:
        parser.error(f"{options.scenario} measures what Redis is asked to do: leave out --layer memory")
    return options


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        if not 0 < (value := kind(text)) < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
        return value

    return number  # argparse names it in its message
