"""The demo's settings, with a switch for what is measured with and without, and no limit below the load."""

from demows_project.settings import *  # noqa: F403
from demows_project.settings import REALTIME as DEMO
from demows_project.settings import env

from .observed import providers

TELEMETRY = env.str("BENCHMARK_TELEMETRY", default="")
REALTIME = {
    **DEMO,
    "CONNECTION_REGISTRY": env.bool("REALTIME_CONNECTION_REGISTRY", default=True),
    "MAX_CONNECTIONS": 100_000,
    "RATE_LIMIT": 1_000_000,
    "RATE_BURST": 1_000_000,
    **(providers(sampled=TELEMETRY == "traced") if TELEMETRY else {}),
}
