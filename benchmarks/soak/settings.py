"""The demo's settings with the soak's topics and pages. Any key of REALTIME can be set by the environment, as JSON."""

import json
import os

from demows_project.settings import *  # noqa: F403
from demows_project.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "benchmarks.soak"]
ROOT_URLCONF = "benchmarks.soak.pages"
ASGI_APPLICATION = "benchmarks.soak.asgi.application"
REALTIME = {
    name.removeprefix("REALTIME_"): json.loads(value)
    for name, value in os.environ.items()
    if name.startswith("REALTIME_")
}
