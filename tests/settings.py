"""The demo's settings for tests in one process: without the registry, whose thread would use a test's database."""

from demows_project.settings import *  # noqa: F403
from demows_project.settings import REALTIME as DEMO

REALTIME = {**DEMO, "CONNECTION_REGISTRY": False}
