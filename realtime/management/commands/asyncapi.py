"""Write the site's AsyncAPI document, for generators of clients and of documentation."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ...asyncapi import document


class Command(BaseCommand):
    """Print the document, or write it to a file."""

    help = "Writes an AsyncAPI document of the messages, the topics and the site's own requests."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--url", help="where the WebSocket is, e.g. wss://example.org/ws/")
        parser.add_argument("--indent", type=int, default=2, help="spaces a level; 0 writes one line (default: 2)")
        parser.add_argument("--output", type=Path, help="the file to write to (default: the standard output)")

    def handle(self, *args: Any, url: str | None, indent: int, output: Path | None, **options: Any) -> None:
        if indent < 0:
            raise CommandError(f"--indent takes a whole number from 0 on, not {indent}")
        try:
            text = json.dumps(document(url=url), indent=indent or None)
            if output is None:
                self.stdout.write(text)
            else:
                output.write_text(f"{text}\n", encoding="utf-8")
        except ValueError as error:
            raise CommandError(str(error)) from None
        except OSError as error:
            raise CommandError(f"cannot write the document: {error}") from None
