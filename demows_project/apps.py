"""The demo as a Django app: its telemetry is set up with it, for servers and commands alike."""

from django.apps import AppConfig

from . import telemetry


class DemowsConfig(AppConfig):
    name = "demows_project"

    def ready(self) -> None:
        telemetry.setup()
