"""What a run yields: counts, seconds, CPU time and memory, and the figures that are made of them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

MAX_TIMES = 100_000
"""The most latencies that one run keeps: the newest."""


class Sample(NamedTuple):
    """
    Hold what was counted in so many seconds, and the seconds of CPU time of each process that counts.

    ``times`` are the seconds that each echo took, or each broadcast until it had reached everybody. ``memory`` is the
    bytes that so many units take, where nothing but that is measured. ``others`` are seconds of CPU time as well, each
    with the number of what took them, where that is something else than the units.
    """

    units: int
    seconds: float
    cpu: dict[str, float]
    times: Sequence[float] = ()
    memory: int | None = None
    others: Mapping[str, tuple[float, int]] = {}

    def plus(self, other: "Sample") -> "Sample":
        """Return both measurements as one."""
        return Sample(
            self.units + other.units,
            self.seconds + other.seconds,
            {name: taken + other.cpu[name] for name, taken in self.cpu.items()},
            [*self.times, *other.times],
            None if self.memory is None or other.memory is None else self.memory + other.memory,
            {name: (a + other.others[name][0], b + other.others[name][1]) for name, (a, b) in self.others.items()},
        )

    def figures(self) -> dict[str, float]:
        if self.memory is not None:
            return {"connection_kib": self.memory / self.units / 1024}
        figures = {"per_second": self.units / self.seconds}
        figures |= {f"{name}_cpu_us": taken / self.units * 1e6 for name, taken in self.cpu.items()}
        figures |= {f"{name}_cpu_us": taken / count * 1e6 for name, (taken, count) in self.others.items()}
        if self.times:
            times = sorted(self.times)
            figures |= {f"p{percent}_ms": quantile(times, percent / 100) * 1e3 for percent in (50, 99)}
        return figures


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value that ``share`` of all are below: of fewer than 100, the greatest for 0.99."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
