"""
The tables.

Those of the registry say which server processes there are, who is connected to them, and to what they subscribe.
They are a copy of what the hubs know, a second or so old, for people to look at: nothing depends on them. Besides,
there are the keys with which services publish over HTTP.
"""

from __future__ import annotations

import hashlib
import secrets
from fnmatch import fnmatchcase

from django.db import models


class ServerProcess(models.Model):
    """A server process, from its start until it stops or has been silent for long."""

    id = models.CharField(primary_key=True, max_length=32, editable=False)
    host = models.CharField(max_length=255)
    pid = models.PositiveIntegerField("process id")
    software = models.CharField(max_length=100)
    started = models.DateTimeField()
    last_seen = models.DateTimeField(db_index=True)

    class Meta:
        verbose_name = "server process"
        verbose_name_plural = "server processes"
        default_permissions = ("view",)
        ordering = ("host", "pid")

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"


class Connection(models.Model):
    """A client connection. No constraint binds it to its server, as both are written and deleted in bulk."""

    id = models.CharField(primary_key=True, max_length=36, editable=False)
    server = models.ForeignKey(
        ServerProcess, models.DO_NOTHING, related_name="connections", db_constraint=False, editable=False
    )
    user_id = models.CharField(max_length=64, blank=True, db_index=True)
    username = models.CharField("user", max_length=255, blank=True)
    address = models.CharField(max_length=255, blank=True)
    path = models.CharField(max_length=255, blank=True)
    user_agent = models.CharField(max_length=255, blank=True)
    connected_at = models.DateTimeField(db_index=True)

    class Meta:
        verbose_name = "connection"
        default_permissions = ("view",)
        permissions = (
            ("close_connections", "Can close client connections"),
            ("publish", "Can publish on topics"),
        )
        ordering = ("-connected_at", "id")

    def __str__(self) -> str:
        return self.id


class Subscription(models.Model):
    """A connection's subscription to a topic."""

    connection = models.ForeignKey(
        Connection, models.DO_NOTHING, related_name="subscriptions", db_constraint=False, editable=False
    )
    topic = models.CharField(max_length=255, db_index=True)

    class Meta:
        verbose_name = "subscription"
        verbose_name_plural = "topics"
        default_permissions = ("view",)

    def __str__(self) -> str:
        return self.topic


def digest(key: str) -> str:
    """Return what is stored of a key. It is random and long, so one round of SHA-256 keeps it."""
    return hashlib.sha256(key.encode()).hexdigest()


class PublishKey(models.Model):
    """A key with which a service publishes over HTTP. Only its digest is stored."""

    name = models.CharField(max_length=100, unique=True, help_text="Who uses it, for the log.")
    digest = models.CharField(max_length=64, unique=True, editable=False)
    topics = models.TextField(
        default="*",
        help_text="The topics that it may publish on, one a line; * stands for anything, as in orders.*",
    )
    created = models.DateTimeField(auto_now_add=True)
    revoked = models.DateTimeField(null=True, blank=True, help_text="Since when it is not accepted any more.")

    class Meta:
        verbose_name = "publish key"
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name

    @classmethod
    def issue(cls, name: str, topics: str = "*") -> tuple[PublishKey, str]:
        """Return a new key, saved, and its text, which is to be had this once."""
        key = cls(name=name, topics=topics)
        text = key.renew()
        key.save()
        return key, text

    def renew(self) -> str:
        """Return a new text for the key, which is good when the key is saved."""
        text = f"dmk_{secrets.token_urlsafe(32)}"
        self.digest = digest(text)
        return text

    @classmethod
    def find(cls, text: str) -> PublishKey | None:
        """Return the key with this text, unless it was revoked."""
        return cls.objects.filter(digest=digest(text), revoked=None).first()

    def allows(self, topic: str) -> bool:
        """Return whether the key may publish on ``topic``."""
        return any(fnmatchcase(topic, pattern.strip()) for pattern in self.topics.splitlines() if pattern.strip())
