"""The tools for sites' tests."""

from __future__ import annotations

import asyncio

import pytest
from django.db import transaction
from pydantic import BaseModel, ValidationError

from realtime import Topic, publish
from realtime.testing import capture_publications

from .memory import clean_process, the_layer  # noqa: F401


class Order(BaseModel):
    status: str
    total: int = 0


def test_publications_are_captured_and_not_sent() -> None:
    orders = Topic("orders.{number:int}", Order)
    with capture_publications() as captured:
        orders.publish(Order(status="paid"), number=7)
        publish("orders.8", {"status": "new"})
    assert captured == [("orders.7", {"status": "paid", "total": 0}), ("orders.8", {"status": "new", "total": 0})]
    assert captured.on("orders.8") == [{"status": "new", "total": 0}]
    assert the_layer().sent == []


async def test_publications_of_asynchronous_code_and_of_threads_are_captured() -> None:
    news = Topic("news")
    with capture_publications() as captured:
        await news.apublish(1)
        await asyncio.to_thread(news.publish, 2)
    assert captured.on("news") == [1, 2]


def test_captured_publications_are_validated() -> None:
    with capture_publications() as captured, pytest.raises(ValidationError):
        Topic("orders", Order).publish({})
    assert captured == []


def test_inner_capture_takes_what_is_published_in_it() -> None:
    news = Topic("news")
    with capture_publications() as outer:
        with capture_publications() as inner:
            news.publish(1)
        news.publish(2)
    assert (inner.on("news"), outer.on("news")) == ([1], [2])


def test_publications_are_sent_again_afterwards() -> None:
    news = Topic("news")
    with pytest.raises(RuntimeError), capture_publications():
        raise RuntimeError
    news.publish(1)
    assert len(the_layer().sent) == 1


@pytest.mark.django_db(transaction=True)
def test_publications_that_wait_for_a_commit_are_captured_then() -> None:
    news = Topic("news")
    with capture_publications() as captured:
        with transaction.atomic():
            news.publish(1, on_commit=True)
            assert captured == []
        assert captured.on("news") == [1]
