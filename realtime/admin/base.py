"""What the console's pages share: they are read-only, and what an operator does is written down."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.admin.helpers import AdminForm
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.http import urlencode

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Any]
else:
    ModelAdmin = admin.ModelAdmin

logger = logging.getLogger("realtime.admin")


class ReadOnlyAdmin(ModelAdmin):
    """Show rows, and let nobody add, change or delete one."""

    show_facets = admin.ShowFacets.NEVER
    empty_value_display = "–"

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.fields

    def url(self, name: str, query: Mapping[str, str] | None = None) -> str:
        """Return the address of a page of the console."""
        address = reverse(f"admin:realtime_{name}", current_app=self.admin_site.name)
        return f"{address}?{urlencode(query)}" if query else address

    def page(
        self, request: HttpRequest, template: str, form: Any, fieldsets: list[Any], **context: Any
    ) -> HttpResponse:
        """Return a page with a form, in the admin's look."""
        request.current_app = self.admin_site.name
        context |= {"opts": self.opts, "form": form, "fieldsets": AdminForm(form, fieldsets, {}) if form else ()}
        return TemplateResponse(request, template, {**self.admin_site.each_context(request), **context})


def record(request: HttpRequest, model: type[Model], what: str, message: str) -> LogEntry:
    """Write down in the admin's log what the user is about to do."""
    assert request.user.pk is not None
    return LogEntry.objects.create(
        user_id=request.user.pk,
        content_type=ContentType.objects.get_for_model(model),
        object_repr=what[:200],
        action_flag=CHANGE,
        change_message=message,
    )


def add_outcome(entry: LogEntry, outcome: str) -> None:
    """Write down what came of it."""
    entry.change_message = f"{entry.change_message} – {outcome}"
    entry.save(update_fields=["change_message"])
