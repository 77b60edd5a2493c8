"""Publishing over HTTP."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import DatabaseError
from django.test import Client
from pydantic import BaseModel

from realtime import Topic
from realtime.models import PublishKey
from realtime.testing import capture_publications

from .memory import RemoteLayer, clean_process, use_layer  # noqa: F401

pytestmark = pytest.mark.django_db(transaction=True)


class Order(BaseModel):
    status: str


@pytest.fixture(autouse=True)
def topics() -> None:
    Topic("orders.{number:int}", Order)
    Topic("news")


@pytest.fixture
def key() -> str:
    return PublishKey.issue("billing", "orders.*\n  news  \nheartbeat\nnowhere")[1]


def post(key: str | None, body: Any, **options: Any) -> tuple[int, Any]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    data = body if isinstance(body, str | bytes) else json.dumps(body)
    response = Client(enforce_csrf_checks=True).post(
        "/publish", data, content_type="application/json", headers=headers, **options
    )
    return response.status_code, response.json()


def test_publication_is_published(key: str) -> None:
    with capture_publications() as captured:
        assert post(key, {"topic": "orders.7", "data": {"status": "paid"}}) == (200, {"published": 1})
    assert captured == [("orders.7", {"status": "paid"})]


def test_batch_is_published_in_order(key: str) -> None:
    publications = [{"topic": "news", "data": number} for number in range(100)]
    with capture_publications() as captured:
        assert post(key, {"publications": publications}) == (200, {"published": 100})
    assert captured.on("news") == list(range(100))


def test_batch_may_be_empty(key: str) -> None:
    assert post(key, {"publications": []}) == (200, {"published": 0})


GOOD = {"topic": "news", "data": 1}


@pytest.mark.parametrize(
    ("body", "status", "code", "message"),
    [
        ("", 400, "BAD_REQUEST", "the body is not valid JSON"),
        ("{", 400, "BAD_REQUEST", "the body is not valid JSON"),
        (b"\xff", 400, "BAD_REQUEST", "the body is not valid JSON"),
        ([], 400, "BAD_REQUEST", "body: "),
        ({}, 400, "BAD_REQUEST", "topic: field required; data: field required"),
        ({"topic": "news"}, 400, "BAD_REQUEST", "data: field required"),
        ({"topic": 1, "data": 1}, 400, "BAD_REQUEST", "topic: input should be a valid string"),
        ({**GOOD, "more": 1}, 400, "BAD_REQUEST", "more: extra inputs are not permitted"),
        ({"publications": [GOOD, {}]}, 400, "BAD_REQUEST", "publications.1.topic: field required"),
        ({"publications": [GOOD] * 1001}, 400, "BAD_REQUEST", "publications: list should have at most 1000 items"),
        ({"topic": "sport", "data": 1}, 403, "TOPIC_FORBIDDEN", "may not publish on 'sport'"),
        ({"topic": "nowhere", "data": 1}, 404, "TOPIC_NOT_FOUND", "no topic 'nowhere'"),
        ({"topic": "orders.x", "data": 1}, 404, "TOPIC_NOT_FOUND", "no topic 'orders.x'"),
        ({"topic": "orders.1", "data": {}}, 400, "BAD_DATA", "status: field required"),
        ({"topic": "orders.1", "data": 1}, 400, "BAD_DATA", "data: input should be"),
        ({"topic": "heartbeat", "data": 1}, 400, "BAD_DATA", "is the server's own"),
    ],
)
def test_request_that_does_not_fit_is_refused_with_the_reason(
    key: str, body: Any, status: int, code: str, message: str
) -> None:
    with capture_publications() as captured:
        got, answer = post(key, body)
    assert (got, answer["error"]["code"]) == (status, code)
    assert message in answer["error"]["message"]
    assert captured == []


def test_nothing_of_a_batch_is_published_where_one_does_not_fit(key: str) -> None:
    bad = {"topic": "orders.1", "data": {"status": 5}}
    with capture_publications() as captured:
        status, answer = post(key, {"publications": [GOOD, GOOD, bad]})
    assert (status, answer["error"]["index"], captured) == (400, 2, [])


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, "KEY_MISSING"),
        ("Bearer", "KEY_MISSING"),
        ("Basic abc", "KEY_MISSING"),
        ("Bearer dmk_unknown", "KEY_UNKNOWN"),
        ("bearer \xff", "KEY_UNKNOWN"),
    ],
)
def test_request_without_a_good_key_is_refused(header: str | None, code: str) -> None:
    headers = {} if header is None else {"Authorization": header}
    response = Client().post("/publish", GOOD, content_type="application/json", headers=headers)
    assert (response.status_code, response["WWW-Authenticate"]) == (401, "Bearer")
    assert response.json()["error"]["code"] == code


def test_key_that_was_revoked_is_refused(key: str) -> None:
    call_command("publish_key", "revoke", "billing")
    assert post(key, GOOD)[1]["error"]["code"] == "KEY_UNKNOWN"


def test_key_is_stored_as_a_digest_alone(key: str) -> None:
    [row] = PublishKey.objects.values()
    assert not any(key in str(value) for value in row.values())


def test_keys_differ() -> None:
    assert PublishKey.issue("one")[1] != PublishKey.issue("two")[1]


@pytest.mark.parametrize(
    ("topics", "topic", "allowed"),
    [
        ("*", "anything.at.all", True),
        ("orders.*", "orders.1.lines", True),
        ("orders.*", "orders", False),
        ("news\nsport", "sport", True),
        ("NEWS", "news", False),
        ("", "news", False),
        ("\n", "", False),
    ],
)
def test_key_is_for_certain_topics(topics: str, topic: str, allowed: bool) -> None:
    assert PublishKey(topics=topics).allows(topic) is allowed


@pytest.mark.parametrize("method", ["get", "put", "delete"])
def test_other_methods_are_refused(key: str, method: str) -> None:
    assert getattr(Client(), method)("/publish").status_code == 405


def test_body_that_is_too_large_is_refused(key: str, settings: Any) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1000
    status, answer = post(key, {"topic": "news", "data": "x" * 1000})
    assert (status, answer["error"]["code"]) == (413, "BODY_TOO_LARGE")


def test_layer_that_is_down_is_a_503(key: str) -> None:
    use_layer(RemoteLayer()).failing = True
    status, answer = post(key, {"publications": [GOOD, GOOD]})
    assert (status, answer["error"]["code"]) == (503, "LAYER_UNAVAILABLE")
    assert "0 were published before" in answer["error"]["message"]


def test_database_that_is_down_is_a_503(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(text: str) -> None:
        raise DatabaseError("gone")

    monkeypatch.setattr(PublishKey, "find", fail)
    assert post(key, GOOD)[1]["error"]["code"] == "DATABASE_UNAVAILABLE"


# manage.py publish_key


def test_command_issues_lists_and_revokes(capsys: pytest.CaptureFixture[str]) -> None:
    call_command("publish_key", "issue", "billing", "--topics", "news", "orders.*")
    text = capsys.readouterr().out.strip()
    assert text.startswith("dmk_")
    assert post(text, GOOD)[0] == 200
    call_command("publish_key", "revoke", "billing")
    call_command("publish_key", "list")
    assert "billing\trevoked" in capsys.readouterr().out
    assert post(text, GOOD)[0] == 401


@pytest.mark.parametrize("action", ["issue", "revoke"])
def test_command_refuses_what_it_cannot_do(action: str) -> None:
    PublishKey.issue("billing")
    call_command("publish_key", "revoke", "billing")
    with pytest.raises(CommandError, match="'billing'"):
        call_command("publish_key", action, "billing")


# The admin


@pytest.fixture
def admin() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("ada"))
    return client


def test_admin_issues_a_key_and_shows_it_once(admin: Client) -> None:
    page = admin.post("/admin/realtime/publishkey/add/", {"name": "billing", "topics": "news"}, follow=True)
    found = re.search(r"dmk_[-\w]{43}", page.content.decode())
    assert found is not None
    with capture_publications():
        assert post(found[0], GOOD)[0] == 200
    assert "dmk_" not in admin.get("/admin/realtime/publishkey/").content.decode()


def test_admin_changes_a_key_s_topics_and_not_the_key(admin: Client, key: str) -> None:
    [row] = PublishKey.objects.all()
    path = f"/admin/realtime/publishkey/{row.pk}/change/"
    page = admin.post(path, {"name": "billing", "topics": "orders.*"}, follow=True).content.decode()
    assert "dmk_" not in page
    assert post(key, GOOD)[1]["error"]["code"] == "TOPIC_FORBIDDEN"


def test_admin_revokes_keys(admin: Client, key: str) -> None:
    [row] = PublishKey.objects.all()
    admin.post("/admin/realtime/publishkey/", {"action": "revoke", "_selected_action": [row.pk]})
    assert post(key, GOOD)[1]["error"]["code"] == "KEY_UNKNOWN"
