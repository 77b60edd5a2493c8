"""
The tables of the registry: which server processes there are, who is connected to them, and to what they subscribe.

The rows are a copy of what the hubs know, a second or so old, for people to look at. Nothing depends on them.
"""

from __future__ import annotations

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
