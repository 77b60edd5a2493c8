"""What realtime is to reach, and whether it has: nothing but the figures of a run decides."""

from collections.abc import Iterator
from typing import Any, NamedTuple

Results = list[dict[str, Any]]


class Goal(NamedTuple):
    """
    Be a bound for a figure of a scenario on a server: the least that will do with ``least``, else the most.

    ``peer`` is the one whose figure realtime's is divided by. ``site`` is a variant of realtime whose figure counts.
    ``connections`` are those that it is for, where it is for no other number.
    """

    scenario: str
    server: str
    figure: str
    bound: float
    text: str
    least: bool = False
    peer: str = ""
    site: str = "realtime"
    connections: int = 0

    def values(self, results: Results) -> list[float]:
        """Return the figures of this kind, one for each number of connections that was measured."""
        values = []
        for result in results:
            here = (result["scenario"], result["server"]) == (self.scenario, self.server)
            if here and self.connections in (0, result["connections"]):
                source = result["ratios"].get(self.peer) if self.peer else result["figures"].get(self.site)
                if source and self.figure in source:
                    values.append(source[self.figure])
        return values

    def value(self, results: Results) -> float | None:
        """Return what came out, or None where that was not measured."""
        values = self.values(results)
        return values[-1] if values else None

    def met(self, value: float) -> bool:
        return value >= self.bound if self.least else value <= self.bound


class Spread(Goal):
    """Be a bound for how many times the dearest of several figures is the cheapest."""

    def value(self, results: Results) -> float | None:
        values = self.values(results)
        return max(values) / min(values) if len(values) > 1 else None


PLAIN = "times plain's"
DELIVERIES = f"deliveries/s, {PLAIN}"
COST = "server µs/delivery"
# Microseconds and bytes were set on one machine, where Nchan took 3.3 µs, ws 5.9, NATS 7.4, and a bare connection
# 18.7 KiB: on another machine the same goal is a ratio to these.
GOALS = (
    Goal("fanout", "uvicorn", "per_second", 30, DELIVERIES, least=True, peer="plain", connections=2000),
    Goal("fanout", "daphne", "per_second", 8, DELIVERIES, least=True, peer="plain", connections=2000),
    Goal("fanout", "uvicorn", "server_cpu_us", 4.5, COST, connections=2000),
    Goal("fanout", "uvicorn", "server_cpu_us", 1.36, f"{COST}, times nchan's", peer="nchan", connections=2000),
    Goal("fanout", "uvicorn", "server_cpu_us", 0.76, f"{COST}, times ws's", peer="ws", connections=2000),
    Goal("fanout", "uvicorn", "server_cpu_us", 0.61, f"{COST}, times NATS's", peer="nats", connections=2000),
    Goal("echo", "uvicorn", "per_second", 3.5, f"echoes/s, {PLAIN}", least=True, peer="plain", connections=50),
    Goal("echo", "uvicorn", "server_cpu_us", 1.15, "server µs/echo, times bare's", peer="bare", connections=50),
    Goal("idle", "uvicorn", "connection_kib", 28, "KiB/connection with a session", connections=2000),
    Goal("idle", "uvicorn", "connection_kib", 1.5, "KiB/connection, times bare's", peer="bare", connections=2000),
    Goal("idle", "uvicorn", "connection_kib", 23, "KiB/connection without one", site="anonymous", connections=2000),
    Goal("publish", "none", "per_second", 4, f"publishes/s, {PLAIN}", least=True, peer="plain"),
    Spread("flat", "uvicorn", "server_cpu_us", 1.5, f"{COST}, the dearest through the cheapest"),
)


class Verdict(NamedTuple):
    """Be what came of a goal."""

    goal: Goal
    value: float

    @property
    def outcome(self) -> str:
        return "met" if self.goal.met(self.value) else "not met"

    @property
    def bound(self) -> str:
        return f"{'≥' if self.goal.least else '≤'} {self.goal.bound:g}"

    def __str__(self) -> str:
        where = self.goal.scenario if self.goal.server == "none" else f"{self.goal.scenario} on {self.goal.server}"
        return f"{where}: {self.goal.text}: {self.value:.3g}, the goal is {self.bound}: {self.outcome}"


def verdicts(results: Results) -> Iterator[Verdict]:
    """Yield what came of each goal for which the figures are there."""
    compared = [result for result in results if "ratios" in result]
    for goal in GOALS:
        if (value := goal.value(compared)) is not None:
            yield Verdict(goal, value)
