"""Issue, list and revoke the keys with which services publish over HTTP."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import IntegrityError, transaction
from django.utils import timezone

from ...models import PublishKey


class Command(BaseCommand):
    """Print a new key once; nothing gives it again."""

    help = "Issues, lists and revokes the keys with which services publish over HTTP."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        issue = actions.add_parser("issue", help="make a key, and print it this once")
        issue.add_argument("name", help="who uses it")
        issue.add_argument("--topics", nargs="+", default=["*"], help="what it may publish on, e.g. news 'orders.*'")
        revoke = actions.add_parser("revoke", help="accept a key no more")
        revoke.add_argument("name")
        actions.add_parser("list", help="say which keys there are")

    def handle(self, *args: Any, action: str, **options: Any) -> None:
        if action == "issue":
            self._issue(options["name"], options["topics"])
        elif action == "revoke":
            self._revoke(options["name"])
        else:
            for key in PublishKey.objects.all():
                state = "accepted" if key.revoked is None else f"revoked {key.revoked:%Y-%m-%d}"
                self.stdout.write(f"{key.name}\t{state}\t{' '.join(key.topics.split())}")

    def _issue(self, name: str, topics: list[str]) -> None:
        try:
            with transaction.atomic():
                _, text = PublishKey.issue(name, "\n".join(topics))
        except IntegrityError:
            raise CommandError(f"there is a key {name!r} already; names are not used again") from None
        self.stdout.write(text)

    def _revoke(self, name: str) -> None:
        if not PublishKey.objects.filter(name=name, revoked=None).update(revoked=timezone.now()):
            raise CommandError(f"no key {name!r} is accepted; 'list' says which are")
        self.stdout.write(f"The key {name!r} is not accepted any more.")
