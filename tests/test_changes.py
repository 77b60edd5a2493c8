"""Publishing what happens to a model's rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.db import transaction
from django.db.models.signals import post_delete, post_save

from realtime import Topic, publish_changes

from .memory import clean_process, the_layer  # noqa: F401

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def no_receivers_left() -> Iterator[None]:
    receivers = list(post_save.receivers), list(post_delete.receivers)
    yield
    post_save.receivers, post_delete.receivers = receivers
    for signal in (post_save, post_delete):
        signal.sender_receivers_cache.clear()


def sent() -> list[tuple[str, Any]]:
    return [(message["topic"], message["payload"]) for message in the_layer().sent if message["kind"] == "publication"]


def test_saving_and_deleting_a_row_publishes() -> None:
    Topic("groups.{pk:int}")
    publish_changes("groups.{pk}", lambda group, change: [change, group.name])(Group)
    group = Group.objects.create(name="one")
    pk = group.pk
    group.name = "two"
    group.save()
    group.delete()
    assert sent() == [
        (f"groups.{pk}", '["created","one"]'),
        (f"groups.{pk}", '["updated","two"]'),
        (f"groups.{pk}", '["deleted","two"]'),
    ]


def test_change_is_published_after_the_commit() -> None:
    Topic("groups")
    publish_changes("groups", lambda group, change: change)(Group)
    with transaction.atomic():
        Group.objects.create(name="one")
        assert sent() == []
    assert sent() == [("groups", '"created"')]
    with transaction.atomic():
        Group.objects.create(name="two")
        transaction.set_rollback(True)
    assert len(sent()) == 1


def test_topic_may_be_a_function_of_the_row() -> None:
    Topic("groups.{name}")
    publish_changes(lambda group: f"groups.{group.name}" if group.name != "secret" else None, lambda *_: 1)(Group)
    Group.objects.create(name="one")
    Group.objects.create(name="secret")
    assert sent() == [("groups.one", "1")]


def test_nothing_is_published_where_the_serializer_says_so() -> None:
    Topic("groups")
    publish_changes("groups", lambda group, change: None)(Group)
    Group.objects.create(name="one")
    assert sent() == []


def test_rows_of_a_fixture_publish_nothing() -> None:
    Topic("groups")
    publish_changes("groups", lambda group, change: change)(Group)
    Group(name="one").save_base(raw=True)
    assert sent() == []


def test_decorator_returns_the_model() -> None:
    assert publish_changes("groups", lambda *_: 1)(Group) is Group
