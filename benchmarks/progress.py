"""What tells on stderr how far the run is: a bar at a terminal, a line for each step elsewhere."""

import sys
from typing import Any

try:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
except ImportError:  # no dependency of realtime
    Console = None


class Steps:
    """Count ``total`` steps. Use it as a context manager, and print by ``print`` within."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._number = 0
        self._bar: Any = None
        if Console is not None and sys.stderr.isatty():
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> "Steps":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, text: str) -> None:
        """Say what the next step is; those before it are done."""
        self._number += 1
        if self._bar is None:
            print(f"[{self._number}/{self._total}] {text}", file=sys.stderr, flush=True)
        else:
            self._bar.update(self._task, completed=self._number - 1, description=text)

    def detail(self, text: str) -> None:
        """Say, beside a bar only, what the step is at."""
        if self._bar is not None:
            self._bar.update(self._task, description=text)

    def print(self, text: str) -> None:
        """Print to stdout, above the bar where there is one."""
        if self._bar is not None and sys.stdout.isatty():
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, flush=True)
