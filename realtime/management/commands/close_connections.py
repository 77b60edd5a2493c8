"""Close client connections on every server, with a code and a reason."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from pydantic import ValidationError

from ...exceptions import LayerUnavailable
from ...layers import configured_layer, is_local
from ...protocol import LEGAL_CLOSE_CODES, CloseMessage
from ...publishing import close_connections


class Command(BaseCommand):
    """Send one close event through the layer, and report what the servers acknowledge."""

    help = "Closes client connections on every server, and says how many on how many servers."

    def add_arguments(self, parser: ArgumentParser) -> None:
        defaults = CloseMessage()
        parser.add_argument("--code", type=int, default=defaults.code, help=f"legal: {LEGAL_CLOSE_CODES}")
        parser.add_argument("--reason", default=defaults.reason, help="at most 123 bytes of UTF-8")
        parser.add_argument("--topic", help="only connections that subscribe to this topic")
        parser.add_argument("--user", help="only connections of the user with this primary key")
        parser.add_argument("--spread", type=float, default=0.0, help="stagger the closes over so many seconds")

    def handle(
        self,
        *args: Any,
        code: int,
        reason: str,
        topic: str | None,
        user: str | None = None,
        spread: float = 0.0,
        **options: Any,
    ) -> None:
        try:
            message = CloseMessage(code=code, reason=reason)
        except ValidationError as error:
            raise CommandError("; ".join(detail["msg"] for detail in error.errors(include_url=False))) from None
        if is_local(configured_layer()):
            raise CommandError(
                "The in-memory channel layer reaches only this process, which has no connections. "
                "For commands to reach the servers set REDIS_URL."
            )
        try:
            outcome = close_connections(message, topic=topic, user=user, spread=spread)
        except (LayerUnavailable, ValueError) as error:
            raise CommandError(str(error)) from None
        self.stdout.write(f"Closed {outcome.connections} connections on {outcome.servers} servers.")
        if outcome.unknown:
            raise CommandError(f"{outcome.unknown} more servers did not answer in time: what they did is unknown.")
