"""The list of connections, and closing them."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ALL_VAR, ERROR_FLAG, ORDER_VAR, PAGE_VAR, SEARCH_VAR
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import CharField, Exists, OuterRef, QuerySet, Subquery, Value
from django.db.models.functions import Cast, Concat, Now
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils.html import format_html, format_html_join
from django.utils.text import Truncator
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from ..exceptions import LayerUnavailable
from ..forms import CloseForm, busiest_topics, find_choices
from ..models import Connection, ServerProcess, Subscription
from ..publishing import close_connections
from .base import ReadOnlyAdmin, add_outcome, logger, record
from .topics import may_see_topics
from .words import date_and_age, describe_freshness, describe_outcome

MOST_IN_FILTER = 50
MOST_IN_CELL = 3
MOST_RECENT = 10
MOST_SELECTED = 50_000
"""How many ids a form may hold: with Django's default for the size of a request some more would fit."""


class AnyValueFilter(admin.SimpleListFilter):
    """Filter by a value that need not be among those listed: who types one is not shown the whole list."""

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        values, value = self.listed(), self.value()
        if value is not None and "\0" in value:
            raise IncorrectLookupParameters
        return values if value is None or value in dict(values) else [*values, (value, value)]

    def listed(self) -> list[tuple[str, str]]:
        """Return values to choose from, each with what to call it."""
        raise NotImplementedError


class TopicFilter(AnyValueFilter):
    """Filter by a topic that connections subscribe to."""

    title = gettext_lazy("topic")
    parameter_name = "topic"

    def listed(self) -> list[tuple[str, str]]:
        return busiest_topics(MOST_IN_FILTER)

    def queryset(self, request: HttpRequest, queryset: QuerySet[Connection]) -> QuerySet[Connection] | None:
        if self.value() is None:
            return None
        return queryset.filter(Exists(Subscription.objects.filter(connection=OuterRef("pk"), topic=self.value())))


class ServerFilter(AnyValueFilter):
    """Filter by the server process."""

    title = gettext_lazy("server")
    parameter_name = "server"

    def listed(self) -> list[tuple[str, str]]:
        return [(server.pk, str(server)) for server in ServerProcess.objects.all()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Connection]) -> QuerySet[Connection] | None:
        return None if self.value() is None else queryset.filter(server_id=self.value())


class SignedInFilter(admin.SimpleListFilter):
    """Filter by whether somebody signed in."""

    title = gettext_lazy("signed in")
    parameter_name = "signed_in"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        if self.value() not in (None, "yes", "no"):
            raise IncorrectLookupParameters
        return [("yes", gettext_lazy("Yes")), ("no", gettext_lazy("No"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Connection]) -> QuerySet[Connection] | None:
        match self.value():
            case "yes":
                return queryset.exclude(user_id="")
            case "no":
                return queryset.filter(user_id="")
        return None


def filters_of(request: HttpRequest) -> dict[str, str]:
    """Return the part of the query string that filters the list."""
    ignored = {ALL_VAR, ERROR_FLAG, ORDER_VAR, PAGE_VAR}
    if not request.GET.get(SEARCH_VAR):
        ignored.add(SEARCH_VAR)
    return {name: str(value) for name, value in request.GET.items() if name not in ignored}


@admin.register(Connection)
class ConnectionAdmin(ReadOnlyAdmin):
    """List the clients that are connected, and close connections."""

    list_display = ("short_id", "user", "address", "server_name", "some_topics", "connected", "short_path", "agent")
    list_filter = (TopicFilter, ServerFilter, SignedInFilter)
    list_per_page = 100
    show_full_result_count = False
    search_fields = ("username", "=user_id", "address", "^id")
    search_help_text = gettext_lazy("User name, user id, address, or the beginning of a connection's id")
    date_hierarchy = "connected_at"
    fields = ("id", "user", "user_id", "address", "server_name", "connected", "path", "user_agent", "topics")
    actions = ("close_selected", "close_all")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Connection]:
        # No join: it would hide connections whose server's row is not there.
        server = ServerProcess.objects.filter(pk=OuterRef("server_id"))
        name = Concat("host", Value(":"), Cast("pid", CharField()), output_field=CharField())
        queryset: QuerySet[Connection] = super().get_queryset(request).prefetch_related("subscriptions")
        return queryset.annotate(server_name=Subquery(server.values_list(name)), now=Now())

    def has_close_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return whether the user may close connections."""
        return request.user.has_perm("realtime.close_connections")

    # Columns

    @admin.display(description=gettext_lazy("id"), ordering="id")
    def short_id(self, connection: Any) -> str:
        return format_html('<span title="{}">{}</span>', connection.pk, connection.pk[:8])

    @admin.display(description=gettext_lazy("user"), ordering="username")
    def user(self, connection: Any) -> str:
        return connection.username or (connection.user_id and f"#{connection.user_id}") or "–"

    @admin.display(description=gettext_lazy("server"), ordering="server_name")
    def server_name(self, connection: Any) -> str:
        return connection.server_name or _("gone")

    @admin.display(description=gettext_lazy("topics"))
    def some_topics(self, connection: Any) -> str:
        topics = sorted(subscription.topic for subscription in connection.subscriptions.all())
        text = ", ".join(Truncator(topic).chars(30) for topic in topics[:MOST_IN_CELL])
        more = len(topics) - MOST_IN_CELL
        return text if more <= 0 else _("%(topics)s and %(more)d more") % {"topics": text, "more": more}

    @admin.display(description=gettext_lazy("topics"))
    def topics(self, connection: Any) -> str:
        topics = sorted(subscription.topic for subscription in connection.subscriptions.all())
        links = ((self.url("connection_changelist", {"topic": topic}), topic) for topic in topics)
        return format_html_join("", '<div><a href="{}">{}</a></div>', links)

    @admin.display(description=gettext_lazy("connected"), ordering="connected_at")
    def connected(self, connection: Any) -> str:
        return date_and_age(connection.connected_at, connection.now)

    @admin.display(description=gettext_lazy("path"), ordering="path")
    def short_path(self, connection: Any) -> str:
        return Truncator(connection.path).chars(40)

    @admin.display(description=gettext_lazy("user agent"), ordering="user_agent")
    def agent(self, connection: Any) -> str:
        return Truncator(connection.user_agent).chars(50)

    # Pages

    def get_urls(self) -> list[URLPattern]:
        close = path("close/", self.admin_site.admin_view(self.close_view), name="realtime_connection_close")
        return [close, *super().get_urls()]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if request.method == "POST" and request.POST.get("action") == "close_all":
            return self.close_all(request)  # Django would want a row to be selected
        context = {
            "title": _("Connections"),
            "freshness": describe_freshness(),
            "close_url": self.url("connection_close", filters_of(request)),
            "has_close_permission": self.has_close_permission(request),
            "has_topics_permission": may_see_topics(request),
            **(extra_context or {}),
        }
        return super().changelist_view(request, context)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        context = {"has_close_permission": self.has_close_permission(request), **(extra_context or {})}
        return super().change_view(request, object_id, form_url, context)

    @admin.action(permissions=["close"], description=gettext_lazy("Close selected connections…"))
    def close_selected(self, request: HttpRequest, queryset: QuerySet[Connection]) -> HttpResponse | None:
        initial = self._selection(request, queryset)
        return self._ask(request, CloseForm(find_choices(), initial=initial)) if initial else None

    @admin.action(permissions=["close"], description=gettext_lazy("Close all client connections…"))
    def close_all(self, request: HttpRequest, queryset: QuerySet[Connection] | None = None) -> HttpResponse:
        return HttpResponseRedirect(self.url("connection_close", filters_of(request)))

    @transaction.non_atomic_requests  # what is recorded stays, and no transaction waits for the servers
    def close_view(self, request: HttpRequest) -> HttpResponse:
        """Ask which connections to close, and close them."""
        if not self.has_close_permission(request):
            raise PermissionDenied
        if request.method != "POST":
            return self._ask(request, CloseForm(find_choices(), initial=self._preselect(request)))
        form = CloseForm(find_choices(), data=request.POST)
        if not form.is_valid() or not self._close(request, form):
            return self._ask(request, form)
        return HttpResponseRedirect(
            self.url("connection_changelist" if self.has_view_permission(request) else "connection_close")
        )

    def _preselect(self, request: HttpRequest) -> dict[str, Any]:
        """Return what a filtered list means: its topic, its user, or else every connection in it."""
        filters = filters_of(request)
        if not filters:
            return {"target": "all"}
        if len(filters) == 1 and "topic" in filters:
            return {"target": "topic", **filters}
        if len(filters) == 1 and "user_id" in filters:
            return {"target": "user", "user": filters["user_id"]}
        try:
            return self._selection(request, self.get_changelist_instance(request).get_queryset(request))
        except IncorrectLookupParameters:
            return {}

    def _selection(self, request: HttpRequest, queryset: QuerySet[Connection]) -> dict[str, Any]:
        ids = list(queryset.order_by().values_list("pk", flat=True)[: MOST_SELECTED + 1])
        if 0 < len(ids) <= MOST_SELECTED:
            return {"target": "selection", "ids": ",".join(ids)}
        if ids:
            text = _("More than %d connections are selected: close all, or filter the list further.") % MOST_SELECTED
        else:
            text = _("There are no such connections any more.")
        self.message_user(request, text, messages.WARNING)
        return {}

    def _ask(self, request: HttpRequest, form: CloseForm) -> HttpResponse:
        recent = LogEntry.objects.filter(content_type=ContentType.objects.get_for_model(Connection), action_flag=CHANGE)
        return self.page(
            request,
            "admin/realtime/connection/close.html",
            form,
            [(_("How to close them"), {"fields": ["code", "custom_code", "reason", "spread"]})],
            title=_("Close client connections"),
            recent=recent.select_related("user")[:MOST_RECENT],
        )

    def _close(self, request: HttpRequest, form: CloseForm) -> bool:
        """Close what the form says, and return whether the channel layer took it."""
        message, spread = form.message, form.cleaned_data["spread"]
        entry = record(request, Connection, f"close {form.target_for_people}", form.how_for_people)
        user, target = request.user.get_username(), form.target_for_log
        try:
            outcome = close_connections(message, spread=spread, **form.selector)
        except LayerUnavailable as error:
            logger.warning(
                "event=operator_close_failed user=%.150r code=%d target=%s error=%s", user, message.code, target, error
            )
            add_outcome(entry, f"failed: {error}")
            self.message_user(request, _("Nothing is known to have been closed: %s.") % error, messages.ERROR)
            return False
        logger.info(
            "event=operator_close user=%.150r code=%d target=%s servers=%d connections=%d unknown=%s",
            *(user, message.code, target, outcome.servers, outcome.connections, outcome.unknown),
        )
        unknown = f", {outcome.unknown} unknown" if outcome.unknown else ""
        add_outcome(entry, f"connections: {outcome.connections}, servers: {outcome.servers}{unknown}")
        text, complete = describe_outcome(outcome, spread)
        self.message_user(request, text, messages.SUCCESS if complete else messages.WARNING)
        return True
