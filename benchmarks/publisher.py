"""
Publish from synchronous code, in a process that runs no server: ``python -m benchmarks.publisher realtime``.

Each line on stdin says for how many seconds. The answer is a line of JSON: calls, seconds, and seconds of CPU time.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial

from .trigger import DATA


def realtime() -> Callable[[], None]:
    from . import realtime_site  # noqa: F401 - declares the topic

    from realtime import publish  # isort: skip - needs the apps to be loaded

    return partial(publish, "prices", DATA)


def plain() -> Callable[[], None]:
    from asgiref.sync import async_to_sync

    from .plain_site import publish

    return lambda: async_to_sync(publish)("prices")  # as the documentation of Channels has it, made anew for each call


def publish_for(seconds: float, publish: Callable[[], None]) -> tuple[int, float, float]:
    """Call ``publish``, again when it has returned, and return how often, in what time, and with what CPU time."""
    calls = 0
    began, cpu = time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - began) < seconds:
        publish()
        calls += 1
    return calls, elapsed, time.process_time() - cpu


if __name__ == "__main__":
    publish = {"realtime": realtime, "plain": plain}[sys.argv[1]]()
    for line in sys.stdin:
        print(json.dumps(publish_for(float(line), publish)), flush=True)
