"""The page of topics, and publishing on them."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils.translation import gettext as _

from ..events import ReportEvent
from ..exceptions import LayerUnavailable
from ..forms import PublishForm
from ..models import Subscription
from ..publishing import survey
from ..topics import publish
from .base import ReadOnlyAdmin, add_outcome, logger, record
from .words import topic_table


def may_publish(request: HttpRequest) -> bool:
    """Return whether the user may publish on topics."""
    return request.user.has_perm("realtime.publish")


def may_see_topics(request: HttpRequest) -> bool:
    """Return whether the user may see the page of topics."""
    return request.user.has_perm("realtime.view_subscription") or may_publish(request)


@admin.register(Subscription)
class SubscriptionAdmin(ReadOnlyAdmin):
    """Show the topics with their subscribers as the servers report them now, and publish."""

    def get_urls(self) -> list[URLPattern]:
        return [path("", self.admin_site.admin_view(self.changelist_view), name="realtime_subscription_changelist")]

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return may_see_topics(request)

    @transaction.non_atomic_requests  # no transaction waits for the servers
    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if not may_see_topics(request) or (request.method == "POST" and not may_publish(request)):
            raise PermissionDenied
        form = PublishForm(request.POST if request.method == "POST" else None)
        if form.is_valid() and self._publish(request, form):
            return HttpResponseRedirect(self.url("subscription_changelist"))
        reports: list[ReportEvent] = []
        problem = ""
        try:
            reports = sorted(survey(), key=lambda report: report.name)
        except LayerUnavailable as error:
            problem = str(error)
        return self.page(
            request,
            "admin/realtime/subscription/change_list.html",
            form if may_publish(request) else None,
            [(_("Publish"), {"fields": ["topic", "payload"]})],
            title=_("Topics"),
            reports=reports,
            problem=problem,
            rows=topic_table(reports),
            has_close_permission=request.user.has_perm("realtime.close_connections"),
            has_connections_permission=request.user.has_perm("realtime.view_connection"),
            **(extra_context or {}),
        )

    def _publish(self, request: HttpRequest, form: PublishForm) -> bool:
        """Publish what the form says, and return whether the channel layer took it."""
        topic, size = form.cleaned_data["topic"], len(form.cleaned_data["payload"].encode())
        entry = record(request, Subscription, f"publish on “{topic}”", f"publish {size} bytes on topic “{topic}”")
        user = request.user.get_username()
        try:
            publish(topic, form.value)
        except (LayerUnavailable, ValueError) as error:  # ValueError: what the topic's model takes but JSON does not
            logger.warning(
                "event=operator_publish_failed user=%.150r topic=%r error=%s", user, topic, type(error).__name__
            )
            add_outcome(entry, "failed")
            self.message_user(request, _("This is not known to have been published: %s.") % error, messages.ERROR)
            return False
        logger.info("event=operator_publish user=%.150r topic=%r bytes=%d", user, topic, size)
        self.message_user(request, _("Published on “%s”.") % topic, messages.SUCCESS)
        return True
