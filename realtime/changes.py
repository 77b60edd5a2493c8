"""Publish what happens to a model's rows: a decorator for the model, or a call for one of somebody else's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from django.db.models import Model
from django.db.models.signals import post_delete, post_save

from .topics import publish

M = TypeVar("M", bound=type[Model])
Change = Literal["created", "updated", "deleted"]


def publish_changes(
    topic: str | Callable[[Any], str | None], serialize: Callable[[Any, Change], Any]
) -> Callable[[M], M]:
    """
    Publish on ``topic`` whenever a row of the decorated model is saved or deleted, after the transaction's commit.

    ``topic`` is a name, in which ``{field}`` stands for the row's field (``"orders.{pk}"``), or a function of the row
    that returns one, or None to publish nothing. ``serialize(row, change)`` returns the data, where ``change`` is
    ``"created"``, ``"updated"`` or ``"deleted"``; None publishes nothing.

    Django sends no signal for ``QuerySet.update()`` and ``bulk_create()``, so they publish nothing.
    """

    def name_for(row: Any) -> str | None:
        return topic.format_map(_Fields(row)) if isinstance(topic, str) else topic(row)

    def changed(row: Any, change: Change, using: str) -> None:
        name = name_for(row)
        data = None if name is None else serialize(row, change)
        if name is not None and data is not None:
            publish(name, data, on_commit=using)

    def saved(*, instance: Any, created: bool, raw: bool, using: str, **_: Any) -> None:
        if not raw:  # a fixture's rows may refer to others that are not there yet
            changed(instance, "created" if created else "updated", using)

    def deleted(*, instance: Any, using: str, **_: Any) -> None:
        changed(instance, "deleted", using)

    def decorate(model: M) -> M:
        post_save.connect(saved, sender=model, weak=False)
        post_delete.connect(deleted, sender=model, weak=False)
        return model

    return decorate


class _Fields(dict[str, Any]):
    """Look names up as a row's attributes."""

    def __init__(self, row: Any) -> None:
        super().__init__()
        self._row = row

    def __missing__(self, name: str) -> Any:
        return getattr(self._row, name)
