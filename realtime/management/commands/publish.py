"""Publish on a topic, from a shell or a script."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from pydantic import ValidationError
from pydantic_core import from_json

from ...exceptions import LayerUnavailable, UnknownTopic
from ...layers import configured_layer, is_local
from ...topics import publish


class Command(BaseCommand):
    """Validate JSON as ``publish()`` does, and publish it."""

    help = "Publishes JSON on a topic, on every server."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("topic", help="the topic's name, e.g. orders.42")
        parser.add_argument("json", help="the data as JSON; - reads it from the standard input")

    def handle(self, *args: Any, topic: str, json: str, **options: Any) -> None:
        try:
            data = from_json(sys.stdin.read() if json == "-" else json, allow_inf_nan=False)
        except ValueError as error:
            raise CommandError(f"the data is not valid JSON: {error}") from None
        if is_local(configured_layer()):
            raise CommandError(
                "The in-memory channel layer reaches only this process, where nobody subscribes. "
                "For commands to reach the servers set REDIS_URL."
            )
        try:
            publish(topic, data)
        except ValidationError as error:
            problems = (
                f"{'.'.join(map(str, p['loc'])) or 'data'}: {p['msg']}" for p in error.errors(include_url=False)
            )
            raise CommandError(f"the data does not fit the topic's model: {'; '.join(problems)}") from None
        except (LayerUnavailable, UnknownTopic, ValueError) as error:
            raise CommandError(str(error)) from None
        self.stdout.write(f"Published on {topic!r}.")
