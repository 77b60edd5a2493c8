"""The keys with which services publish over HTTP."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from ..models import PublishKey
from .base import ModelAdmin


@admin.register(PublishKey)
class PublishKeyAdmin(ModelAdmin):
    """Issue keys, each shown once, and revoke them."""

    list_display = ("name", "some_topics", "created", "revoked")
    search_fields = ("name", "topics")
    fields = ("name", "topics", "created", "revoked")
    readonly_fields = ("created", "revoked")
    actions = ("revoke",)

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return ("name", "topics") if obj is None else self.fields

    @admin.display(description=gettext_lazy("topics"))
    def some_topics(self, key: PublishKey) -> str:
        return ", ".join(key.topics.split())

    def save_model(self, request: HttpRequest, obj: PublishKey, form: Any, change: bool) -> None:
        text = None if change else obj.renew()
        super().save_model(request, obj, form, change)
        if text is not None:
            self.message_user(request, _("The key is %s – it is shown this once.") % text, messages.WARNING)

    @admin.action(permissions=["change"], description=gettext_lazy("Revoke selected keys"))
    def revoke(self, request: HttpRequest, queryset: Any) -> None:
        number = queryset.filter(revoked=None).update(revoked=timezone.now())
        self.message_user(request, _("%d keys are not accepted any more.") % number)
