"""The list of server processes."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce, Now
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from ..models import Connection, ServerProcess, Subscription
from .base import ReadOnlyAdmin
from .words import duration


@admin.register(ServerProcess)
class ServerProcessAdmin(ReadOnlyAdmin):
    """List the server processes."""

    list_display = ("name", "software", "started", "seen", "connection_count", "subscription_count")
    fields = ("host", "pid", "software", "started", "seen", "connection_count", "subscription_count")
    ordering = ("host", "pid")

    def get_queryset(self, request: HttpRequest) -> QuerySet[ServerProcess]:
        # Counted in subqueries, as two joins would multiply each other's rows.
        connections = Connection.objects.filter(server=OuterRef("pk")).order_by().values("server")
        subscriptions = Subscription.objects.filter(connection__server=OuterRef("pk")).values("connection__server")
        queryset: QuerySet[ServerProcess] = super().get_queryset(request)
        return queryset.annotate(
            now=Now(),
            connection_number=Coalesce(Subquery(connections.annotate(number=Count("pk")).values("number")), 0),
            subscription_number=Coalesce(Subquery(subscriptions.annotate(number=Count("pk")).values("number")), 0),
        )

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        return super().changelist_view(request, {"title": _("Server processes"), **(extra_context or {})})

    @admin.display(description=gettext_lazy("name"), ordering="host")
    def name(self, server: Any) -> str:
        return str(server)

    @admin.display(description=gettext_lazy("last seen"), ordering="last_seen")
    def seen(self, server: Any) -> str:
        return _("%s ago") % duration((server.now - server.last_seen).total_seconds())

    @admin.display(description=gettext_lazy("connections"), ordering="connection_number")
    def connection_count(self, server: Any) -> str:
        return format_html(
            '<a href="{}">{}</a>', self.url("connection_changelist", {"server": server.pk}), server.connection_number
        )

    @admin.display(description=gettext_lazy("subscriptions"), ordering="subscription_number")
    def subscription_count(self, server: Any) -> int:
        return int(server.subscription_number)
