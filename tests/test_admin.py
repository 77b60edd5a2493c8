"""The operator's console in the admin: who may do what, what is listed, and what closes and publishes."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import Permission, User
from django.db import connection as database
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now
from pydantic import BaseModel, JsonValue

from realtime import Topic, publishing
from realtime.events import ALL_GROUP
from realtime.hub import Connection as LiveConnection
from realtime.hub import Hub, Peer
from realtime.models import Connection, ServerProcess, Subscription
from realtime.protocol import CLOSE_CODES, client_reconnect

from .memory import ListWire, clean_process, local_connection, started_hub, subscribed, the_layer, until  # noqa: F401

LIST = "/admin/realtime/connection/"
CLOSE = "/admin/realtime/connection/close/"
SERVERS = "/admin/realtime/serverprocess/"
TOPICS = "/admin/realtime/subscription/"
LOGIN = "/admin/login/"

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
DEFAULTS = {"target": "all", "code": "1001", "reason": "closed by operator", "spread": "0"}

live = pytest.mark.django_db(transaction=True)
"""For tests with a hub: its event loop and the admin's thread see one database."""


@pytest.fixture
def registry(settings: Any) -> None:
    """Switch the registry on. Tests that use it start no hub, so nothing writes but the test."""
    settings.REALTIME = {**settings.REALTIME, "CONNECTION_REGISTRY": True}


def browser_of(*permissions: str, name: str = "ada", **options: Any) -> Client:
    """Return the browser of somebody with these permissions."""
    user = User.objects.create_user(name, **{"is_staff": True, **options})
    user.user_permissions.set(Permission.objects.filter(content_type__app_label="realtime", codename__in=permissions))
    browser = Client()
    browser.force_login(user)
    return browser


def superusers_browser(**options: Any) -> Client:
    return browser_of(name="root", is_superuser=True, **options)


@pytest.fixture
def browser(db: None) -> Client:
    """The browser of a superuser."""
    return superusers_browser()


def server_row(key: str = "s1", *, pid: int = 1, silent_for: float = 0) -> ServerProcess:
    return ServerProcess.objects.create(
        id=key, host="host", pid=pid, software="daphne", started=now(), last_seen=now() - timedelta(seconds=silent_for)
    )


def row(key: str = "c1", *topics: str, server: str = "s1", **columns: Any) -> Connection:
    """Return the row of a connection, subscribed to ``topics``."""
    values = {"server_id": server, "connected_at": now(), **columns}
    connection = Connection.objects.create(id=key, **values)
    Subscription.objects.bulk_create(Subscription(connection=connection, topic=topic) for topic in topics)
    return connection


def many_rows(count: int) -> None:
    rows = [Connection(id=f"{number:036d}", server_id="s1", connected_at=now()) for number in range(count)]
    Connection.objects.bulk_create(rows)
    Subscription.objects.bulk_create(Subscription(connection=row, topic="news") for row in rows)


def text_of(response: Any) -> str:
    """Return what a page says, without its tags, in one line."""
    html = response.content.decode()
    html = re.sub(r"(?s)<(script|style).*?</\1>", "", html[html.index("<body") :])
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def messages_of(response: Any) -> list[tuple[str, str]]:
    return [(message.level_tag, str(message)) for message in response.context["messages"]]


def listed(response: Any) -> list[str]:
    """Return the ids of the connections that a list shows."""
    return [row.pk for row in response.context["cl"].result_list]


def initial(response: Any) -> dict[str, Any]:
    """Return what the form is filled with."""
    return dict(response.context["form"].initial)


def errors(response: Any) -> dict[str, list[str]]:
    return dict(response.context["form"].errors)


def closes_sent() -> list[dict[str, Any]]:
    """Return the events that asked for connections to be closed."""
    return [message for message in the_layer().sent if message["kind"] == "close"]


# Who may do what

EVERYBODY: dict[str, Callable[[], Client]] = {
    "anonymous": Client,
    "not staff": lambda: browser_of("view_connection", "close_connections", is_staff=False),
    "staff": browser_of,
    "viewer": lambda: browser_of("view_connection", "view_serverprocess", "view_subscription"),
    "closer": lambda: browser_of("close_connections"),
    "publisher": lambda: browser_of("publish"),
    "superuser": superusers_browser,
}
LOGS_IN = {"anonymous", "not staff"}


@pytest.mark.django_db
@pytest.mark.parametrize("who", EVERYBODY)
@pytest.mark.parametrize(
    ("method", "path", "data", "allowed"),
    [
        ("get", LIST, {}, {"viewer": 200, "superuser": 200}),
        ("get", f"{LIST}c1/change/", {}, {"viewer": 200, "superuser": 200}),
        ("get", f"{LIST}c1/history/", {}, {"viewer": 200, "superuser": 200}),
        ("post", f"{LIST}c1/change/", {}, {}),
        ("get", f"{LIST}c1/delete/", {}, {}),
        ("post", f"{LIST}c1/delete/", {"post": "yes"}, {}),
        ("get", f"{LIST}add/", {}, {}),
        ("get", CLOSE, {}, {"closer": 200, "superuser": 200}),
        ("post", CLOSE, DEFAULTS, {"closer": 302, "superuser": 302}),
        ("get", SERVERS, {}, {"viewer": 200, "superuser": 200}),
        ("get", f"{SERVERS}s1/change/", {}, {"viewer": 200, "superuser": 200}),
        ("post", f"{SERVERS}s1/change/", {}, {}),
        ("get", f"{SERVERS}s1/delete/", {}, {}),
        ("get", f"{SERVERS}add/", {}, {}),
        ("get", TOPICS, {}, {"viewer": 200, "publisher": 200, "superuser": 200}),
        ("post", TOPICS, {"topic": "news", "payload": "1"}, {"publisher": 302, "superuser": 302}),
    ],
)
def test_page_is_for_those_with_its_permission(
    who: str, method: str, path: str, data: dict[str, str], allowed: dict[str, int]
) -> None:
    Topic("news")
    server_row()
    row()
    response = getattr(EVERYBODY[who](), method)(path, data)
    assert response.status_code == (302 if who in LOGS_IN else allowed.get(who, 403))
    assert (who in LOGS_IN) == response.get("Location", "").startswith(LOGIN)
    if response.status_code in (302, 403) and who not in allowed:
        assert not LogEntry.objects.exists()


@pytest.mark.django_db
def test_topics_have_no_pages_of_their_own(browser: Client) -> None:
    row("c1", "news")
    assert browser.get(f"{TOPICS}{Subscription.objects.get().pk}/change/").status_code == 404


@pytest.mark.django_db
def test_actions_are_only_for_those_who_may_close() -> None:
    row()
    page = browser_of("view_connection").get(LIST).content.decode()
    assert "close_selected" not in page
    assert CLOSE not in page


@pytest.mark.django_db
@pytest.mark.parametrize("action", ["close_selected", "close_all"])
def test_action_sent_without_the_permission_closes_nothing(action: str) -> None:
    row()
    browser = browser_of("view_connection")
    response = browser.post(LIST, {"action": action, "index": "0", "_selected_action": "c1"}, follow=True)
    assert "form" not in (response.context or {})
    assert response.status_code == (403 if action == "close_all" else 200)


@pytest.mark.django_db
def test_detail_offers_closing_only_to_those_who_may() -> None:
    row(user_id="7")
    assert CLOSE not in browser_of("view_connection").get(f"{LIST}c1/change/").content.decode()


@pytest.mark.django_db
def test_topics_page_without_the_permission_to_publish_has_no_form() -> None:
    response = browser_of("view_subscription").get(TOPICS)
    assert response.context["form"] is None
    assert '<form action="' not in response.content.decode()


@pytest.mark.django_db
def test_topics_page_without_the_permission_to_close_does_not_link_to_it() -> None:
    assert CLOSE not in browser_of("publish").get(TOPICS).content.decode()


@pytest.mark.django_db
@pytest.mark.parametrize(("path", "data"), [(CLOSE, DEFAULTS), (TOPICS, {"topic": "news", "payload": "1"})])
def test_post_without_a_csrf_token_is_refused(path: str, data: dict[str, str]) -> None:
    Topic("news")
    browser = superusers_browser()
    browser.handler.enforce_csrf_checks = True
    assert browser.post(path, data).status_code == 403
    assert not LogEntry.objects.exists()


@pytest.mark.django_db
def test_closing_without_the_permission_to_view_leads_back_to_the_form() -> None:
    assert browser_of("close_connections").post(CLOSE, DEFAULTS).headers["Location"] == CLOSE


# The list of connections


@pytest.mark.django_db
def test_list_shows_a_connection(browser: Client) -> None:
    server_row(pid=42)
    row(
        "0123456789",
        "news",
        username="grace",
        user_id="7",
        address="10.0.0.9",
        path="/ws/",
        user_agent="Tester/1.0",
        connected_at=now() - timedelta(seconds=30),
    )
    text = text_of(browser.get(LIST))
    for part in ("01234567", "grace", "10.0.0.9", "host:42", "news", "/ws/", "Tester/1.0", "(30 s)"):
        assert part in text


@pytest.mark.django_db
@pytest.mark.parametrize(("columns", "shown"), [({}, "–"), ({"user_id": "7"}, "#7"), ({"username": "grace"}, "grace")])
def test_list_names_the_user_as_well_as_it_can(browser: Client, columns: dict[str, str], shown: str) -> None:
    row(**columns)
    assert f'<td class="field-user">{shown}</td>' in browser.get(LIST).content.decode()


@pytest.mark.django_db
def test_list_shows_the_first_topics_and_how_many_more(browser: Client) -> None:
    row("c1", "a", "b", "c", "d", "e")
    assert "a, b, c and 2 more" in text_of(browser.get(LIST))


@pytest.mark.django_db
def test_list_shows_a_connection_whose_server_has_no_row(browser: Client) -> None:
    row(server="unknown")
    response = browser.get(LIST)
    assert listed(response) == ["c1"]
    assert '<td class="field-server_name">gone</td>' in response.content.decode()


@pytest.mark.django_db
def test_list_cuts_long_user_agents(browser: Client) -> None:
    row(user_agent="x" * 255)
    assert "x" * 60 not in browser.get(LIST).content.decode()


def queries_of(browser: Client, path: str) -> int:
    with CaptureQueriesContext(
        database,
    ) as queries:
        assert browser.get(path).status_code == 200
    return len(queries)


@pytest.mark.django_db
@pytest.mark.parametrize("path", [LIST, SERVERS, CLOSE])
@pytest.mark.parametrize("more", [99, 4999])
def test_page_takes_as_many_queries_for_many_rows_as_for_one(
    browser: Client, registry: None, path: str, more: int
) -> None:
    server_row()
    row("c1", "news")
    browser.get(path)
    few = queries_of(browser, path)
    for number in range(10):
        server_row(f"more{number}", pid=number)
    many_rows(more)
    assert queries_of(browser, path) == few


@pytest.mark.django_db
def test_list_has_pages_of_a_hundred(browser: Client) -> None:
    many_rows(101)
    assert len(listed(browser.get(LIST))) == 100
    assert len(listed(browser.get(f"{LIST}?p=2"))) == 1


@pytest.mark.django_db
@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("sign", ["", "-"])
def test_list_can_be_sorted(browser: Client, number: int, sign: str) -> None:
    server_row()
    row("c1", "news")
    row("c2")
    assert sorted(listed(browser.get(f"{LIST}?o={sign}{number}"))) == ["c1", "c2"]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("topic=news", ["c1", "c2"]),
        ("topic=sport", ["c2"]),
        ("topic=unknown", []),
        ("topic=", []),
        ("server=s2", ["c3"]),
        ("server=unknown", []),
        ("signed_in=yes", ["c1"]),
        ("signed_in=no", ["c2", "c3"]),
        ("topic=news&server=s1&signed_in=no", ["c2"]),
        ("user_id=7", ["c1"]),
        ("id=c2", ["c2"]),
        ("q=grace", ["c1"]),
        ("q=7", ["c1"]),
        ("q=10.0.0.9", ["c3"]),
        ("q=c2", ["c2"]),
        ("q=nothing", []),
    ],
)
def test_list_can_be_filtered_and_searched(browser: Client, query: str, found: list[str]) -> None:
    server_row("s1")
    server_row("s2", pid=2)
    row("c1", "news", user_id="7", username="grace")
    row("c2", "news", "sport", "other")
    row("c3", "other", server="s2", address="10.0.0.9")
    assert sorted(listed(browser.get(f"{LIST}?{query}"))) == found


@pytest.mark.django_db
@pytest.mark.parametrize("query", ["topic=news", "server=s2"])
def test_list_filtered_by_what_nobody_has_is_empty(browser: Client, query: str) -> None:
    row()  # there is neither a topic nor a server, so Django would leave the filters out
    assert listed(browser.get(f"{LIST}?{query}")) == []


@pytest.mark.django_db
@pytest.mark.parametrize(
    "query", ["signed_in=perhaps", "topic=%00", "server=%00", "no_such_column=1", "name=1&query=2&self=3", "p=x&p=999"]
)
def test_list_with_a_filter_that_cannot_be_is_the_whole_list(browser: Client, query: str) -> None:
    row()
    response = browser.get(f"{LIST}?{query}", follow=True)
    assert response.status_code == 200
    assert listed(response) == ["c1"]


@pytest.mark.django_db
def test_filter_lists_the_topics_with_the_most_subscribers(browser: Client) -> None:
    for number in range(60):
        row(f"c{number}", *(f"topic{topic}" for topic in range(number, 60)))
    (spec,) = [spec for spec in browser.get(LIST).context["cl"].filter_specs if spec.parameter_name == "topic"]
    assert len(spec.lookup_choices) == 50
    assert spec.lookup_choices[0] == ("topic59", "topic59 (60)")


@pytest.mark.django_db
def test_filter_by_a_topic_that_is_not_listed_shows_it_as_chosen(browser: Client) -> None:
    assert (
        '<li class="selected">\n    <a href="?topic=rare">rare</a></li>'
        in browser.get(f"{LIST}?topic=rare").content.decode()
    )


@pytest.mark.django_db
def test_list_can_be_narrowed_by_date(browser: Client) -> None:
    row("new")
    old = row("old", connected_at=now() - timedelta(days=800)).connected_at
    assert listed(browser.get(f"{LIST}?connected_at__year={old.year}")) == ["old"]


# How fresh the list is


@pytest.mark.django_db
def test_list_says_how_fresh_it_is(browser: Client, registry: None) -> None:
    server_row("s1", silent_for=1)
    server_row("s2", pid=2)
    for key in ("c1", "c2", "c3"):
        row(key)
    assert "3 connections on 2 servers, reported 1 s ago." in text_of(browser.get(LIST))


@pytest.mark.django_db
def test_list_names_servers_that_are_silent(browser: Client, registry: None) -> None:
    server_row("s1", pid=1)
    server_row("s2", pid=2, silent_for=20)
    text = text_of(browser.get(LIST))
    assert "reported 0 s ago. Nothing has been heard for a while of: host:2 (20 s)." in text


@pytest.mark.django_db
def test_list_whose_servers_are_all_silent_says_how_old_it_is(browser: Client, registry: None) -> None:
    server_row(silent_for=7200)
    assert "0 connections on 1 server, reported 2\N{NO-BREAK SPACE}hours ago." in browser.get(LIST).content.decode()


@pytest.mark.django_db
def test_list_says_when_nothing_reports(browser: Client, registry: None) -> None:
    assert "No server has reported yet." in text_of(browser.get(LIST))


@pytest.mark.django_db
def test_list_says_when_the_registry_is_off(browser: Client) -> None:
    assert "The connection registry is off" in text_of(browser.get(LIST))


# One connection


@pytest.mark.django_db
def test_detail_shows_everything_and_has_no_field_to_change(browser: Client) -> None:
    server_row()
    row("c1", "news", "sport", user_agent="x" * 255)
    response = browser.get(f"{LIST}c1/change/")
    text = text_of(response)
    assert "x" * 255 in text
    assert "news sport" in text
    assert "_save" not in response.content.decode()


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("user_id", "links"), [("", [f"{CLOSE}?id=c1"]), ("7", [f"{CLOSE}?id=c1", f"{CLOSE}?user_id=7"])]
)
def test_detail_links_to_closing_it_and_all_of_its_user_s(browser: Client, user_id: str, links: list[str]) -> None:
    row("c1", user_id=user_id)
    page = browser.get(f"{LIST}c1/change/").content.decode()
    assert re.findall(rf'href="({CLOSE}.*?)"', page) == links


@pytest.mark.django_db
def test_detail_of_a_connection_that_has_gone_leads_away(browser: Client) -> None:
    response = browser.get(f"{LIST}c1/change/", follow=True)
    assert [level for level, _ in messages_of(response)] == ["warning"]


# Server processes


@pytest.mark.django_db
def test_servers_are_listed_with_their_numbers(browser: Client) -> None:
    server_row("s1", pid=1, silent_for=3)
    server_row("s2", pid=2)
    row("c1", "a", "b", "c")
    row("c2", "a", "b")
    servers = {server.pk: server for server in browser.get(SERVERS).context["cl"].result_list}
    assert [(servers[key].connection_number, servers[key].subscription_number) for key in ("s1", "s2")] == [
        (2, 5),
        (0, 0),
    ]


@pytest.mark.django_db
def test_servers_are_listed_with_when_they_were_last_seen_and_a_link(browser: Client) -> None:
    server_row("s1", pid=42, silent_for=3)
    response = browser.get(SERVERS)
    assert "host:42" in text_of(response)
    assert "3 s ago" in text_of(response)
    assert f'href="{LIST}?server=s1"' in response.content.decode()


@pytest.mark.django_db
@pytest.mark.parametrize("number", range(1, 7))
def test_servers_can_be_sorted(browser: Client, number: int) -> None:
    server_row()
    assert len(browser.get(f"{SERVERS}?o={number}").context["cl"].result_list) == 1


# What the close form is filled with


@pytest.mark.django_db
def test_object_tool_of_the_whole_list_closes_all(browser: Client, registry: None) -> None:
    row()
    assert f'href="{CLOSE}"' in browser.get(LIST).content.decode()
    assert initial(browser.get(CLOSE)) == {"target": "all"}


@pytest.mark.django_db
@pytest.mark.parametrize("query", ["topic=news", "user_id=7", "q=grace&server=s1", "topic=a%26b%3Dc"])
def test_object_tool_of_a_filtered_list_keeps_the_filters(browser: Client, query: str) -> None:
    page = browser.get(f"{LIST}?{query}&p=1&o=1")
    assert page.context["close_url"] == f"{CLOSE}?{query}"


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("query", "filled"),
    [
        ("topic=news", {"target": "topic", "topic": "news"}),
        ("user_id=7", {"target": "user", "user": "7"}),
        ("id=c2", {"target": "selection", "ids": "c2"}),
        ("server=s1", {"target": "selection", "ids": "c1,c2"}),
        ("topic=news&server=s1", {"target": "selection", "ids": "c1"}),
        ("q=grace", {"target": "selection", "ids": "c1"}),
        ("q=", {"target": "all"}),
        ("o=1&p=1", {"target": "all"}),
        ("id=gone", {}),
        ("server=unknown", {}),
        ("signed_in=perhaps", {}),
    ],
)
def test_form_reached_from_a_filtered_list_closes_what_it_shows(
    browser: Client, registry: None, query: str, filled: dict[str, str]
) -> None:
    server_row("s1")
    row("c1", "news", user_id="7", username="grace")
    row("c2")
    row("c3", "news", server="s2")
    assert initial(browser.get(f"{CLOSE}?{query}")) == filled


@pytest.mark.django_db
def test_form_without_a_target_closes_nothing(browser: Client) -> None:
    response = browser.post(CLOSE, {**DEFAULTS, "target": ""})
    assert list(errors(response)) == ["target"]
    assert not LogEntry.objects.exists()


@pytest.mark.django_db
def test_form_says_how_many_there_are_to_close(browser: Client, registry: None) -> None:
    row("c1", "news", "sport", user_id="7", username="grace")
    row("c2", "news", user_id="7", username="grace")
    row("c3", user_id="8")
    text = text_of(browser.get(f"{CLOSE}?id=c1"))
    for part in (
        "All client connections (3)",
        "This selection (1)",
        "news (2) sport (1)",
        "grace (2) #8 (1)",
    ):
        assert part in text


@pytest.mark.django_db
def test_form_offers_the_500_topics_with_the_most_subscribers(browser: Client, registry: None) -> None:
    row("c1", *(f"topic{number}" for number in range(501)))
    row("c2", "topic500")
    choices = browser.get(CLOSE).context["form"].fields["topic"].widget.choices
    assert len(choices) == 501  # one of them says to choose
    assert choices[1] == ("topic500", "topic500 (2)")


@pytest.mark.django_db
def test_form_keeps_a_topic_that_is_not_offered(browser: Client, registry: None) -> None:
    row("c1", "news")
    assert '<option value="rare" selected>rare</option>' in browser.get(f"{CLOSE}?topic=rare").content.decode()


@pytest.mark.django_db
def test_form_without_the_registry_lets_topics_and_users_be_typed(browser: Client) -> None:
    page = browser.get(CLOSE).content.decode()
    assert re.search(r'<input type="text" name="topic"', page)
    assert re.search(r'<input type="text" name="user"', page)


@pytest.mark.django_db
def test_form_while_neither_registry_nor_layer_tell_knows_no_number(browser: Client) -> None:
    the_layer().failing = True
    assert "All client connections (number unknown)" in text_of(browser.get(CLOSE))


@pytest.mark.django_db
def test_form_offers_every_legal_code_with_what_clients_do(browser: Client) -> None:
    choices = dict(browser.get(CLOSE).context["form"].fields["code"].choices)
    assert [int(code) for code in choices if code != "custom"] == [code for code in CLOSE_CODES if code != 3008]
    for code in CLOSE_CODES:
        assert code == 3008 or client_reconnect(code) in choices[str(code)]


@pytest.mark.django_db
def test_form_calls_1006_an_interrupt(browser: Client) -> None:
    choices = dict(browser.get(CLOSE).context["form"].fields["code"].choices)
    assert "interrupt: drop without a close frame" in choices["1006"]


# What the close form refuses


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("values", "wrong", "message"),
    [
        ({"target": "everything"}, "target", "valid choice"),
        ({"target": "topic"}, "topic", "Say which topic."),
        ({"target": "user"}, "user", "Say which user."),
        ({"target": "selection"}, "target", "valid choice"),
        ({"topic": "news"}, "topic", "it is unclear what to close"),
        ({"user": "7"}, "user", "it is unclear what to close"),
        ({"target": "topic", "topic": "x" * 256}, "topic", "at most 255"),
        ({"code": "1005"}, "code", "valid choice"),
        ({"code": "3008"}, "code", "valid choice"),
        ({"code": "custom"}, "custom_code", "Give a code from 3000 to 4999."),
        ({"code": "custom", "custom_code": "2999"}, "custom_code", "3000"),
        ({"code": "custom", "custom_code": "5000"}, "custom_code", "4999"),
        ({"custom_code": "4000"}, "custom_code", "unclear which to send"),
        ({"reason": "é" * 62}, "reason", "The reason has 124 bytes of UTF-8, at most 123 fit into a close frame."),
        ({"spread": "-1"}, "spread", "0"),
        ({"spread": "3601"}, "spread", "3600"),
        ({"spread": "nan"}, "spread", "number"),
        ({"spread": ""}, "spread", "required"),
    ],
)
def test_form_refuses_before_anything_is_sent(
    browser: Client, values: dict[str, str], wrong: str, message: str
) -> None:
    response = browser.post(CLOSE, {**DEFAULTS, **values})
    assert list(errors(response)) == [wrong]
    assert message in errors(response)[wrong][0]
    assert closes_sent() == []
    assert not LogEntry.objects.exists()


@pytest.mark.django_db
def test_form_that_was_refused_keeps_what_was_typed(browser: Client) -> None:
    values = {**DEFAULTS, "target": "topic", "topic": "news", "code": "1012", "reason": "x" * 124, "spread": "7"}
    form = browser.post(CLOSE, values).context["form"]
    assert {name: form[name].value() for name in values} == values


@pytest.mark.django_db
def test_getting_the_form_closes_nothing(browser: Client) -> None:
    browser.get(CLOSE, DEFAULTS)
    assert closes_sent() == []


# Actions


@pytest.mark.django_db
def test_action_on_selected_rows_asks_how_to_close_them(browser: Client) -> None:
    for key in ("c1", "c2", "c3"):
        row(key)
    response = browser.post(LIST, {"action": "close_selected", "index": "0", "_selected_action": ["c1", "c3"]})
    assert response.context["form"].initial == {"target": "selection", "ids": "c1,c3"}
    assert "This selection (2)" in text_of(response)


@pytest.mark.django_db
def test_action_on_10_000_rows_across_all_pages_sends_them_in_one_field(browser: Client) -> None:
    many_rows(10_000)
    values = {"action": "close_selected", "index": "0", "select_across": "1", "_selected_action": "0"}
    response = browser.post(LIST, values)
    assert "This selection (10000)" in text_of(response)
    (ids,) = re.findall(r'<input type="hidden" name="ids" value="(.*?)"', response.content.decode())
    assert browser.post(CLOSE, {**DEFAULTS, "target": "selection", "ids": ids}).status_code == 302
    assert sum(len(event["ids"]) for event in closes_sent()) == 10_000


@pytest.mark.django_db
def test_action_across_all_pages_of_a_filtered_list_means_only_those(browser: Client) -> None:
    row("c1", "news")
    row("c2")
    values = {"action": "close_selected", "index": "0", "select_across": "1", "_selected_action": "c1"}
    assert initial(browser.post(f"{LIST}?topic=news", values))["ids"] == "c1"


@pytest.mark.django_db
def test_action_on_more_rows_than_a_form_holds_is_refused(browser: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("realtime.admin.connections.MOST_SELECTED", 2)
    many_rows(3)
    values = {"action": "close_selected", "index": "0", "select_across": "1", "_selected_action": "0"}
    (message,) = messages_of(browser.post(LIST, values, follow=True))
    assert message == ("warning", "More than 2 connections are selected: close all, or filter the list further.")


@pytest.mark.django_db
def test_action_on_rows_that_have_gone_says_so(browser: Client) -> None:
    values = {"action": "close_selected", "index": "0", "_selected_action": "c1"}
    (message,) = messages_of(browser.post(LIST, values, follow=True))
    assert message == ("warning", "There are no such connections any more.")


@pytest.mark.django_db
def test_action_to_close_all_needs_no_selection(browser: Client) -> None:
    response = browser.post(LIST, {"action": "close_all", "index": "0"})
    assert response.headers["Location"] == CLOSE


@pytest.mark.django_db
def test_action_to_close_all_keeps_the_filters(browser: Client) -> None:
    response = browser.post(f"{LIST}?topic=a%26b&p=1", {"action": "close_all", "index": "0"})
    assert response.headers["Location"] == f"{CLOSE}?topic=a%26b"


@pytest.mark.django_db
def test_action_to_close_all_is_there_for_an_empty_list(browser: Client) -> None:
    assert '<option value="close_all">Close all client connections…</option>' in browser.get(LIST).content.decode()


# Closing


async def operator(**options: Any) -> Client:
    return await sync_to_async(superusers_browser)(**options)


async def post(browser: Client, path: str, **values: Any) -> Any:
    """Send a form, and return the page that it leads to."""
    return await sync_to_async(browser.post)(path, values, follow=True)


async def close(browser: Client, **values: Any) -> Any:
    return await post(browser, CLOSE, **{**DEFAULTS, **values})


def connection_of(hub: Hub, user: str) -> LiveConnection:
    connection = LiveConnection(ListWire(), Peer(user_id=user))
    hub.connected(connection)
    return connection


@live
async def test_closing_all_says_how_many_on_how_many_servers() -> None:
    hub = await started_hub()
    connections = [local_connection(hub) for _ in range(3)]
    response = await close(await operator(), code="1012", reason="deploy")
    assert messages_of(response) == [("success", "3 connections closed on 1 server.")]
    assert [connection.wire.closed_with for connection in connections] == [(1012, "deploy")] * 3


@live
async def test_closing_leads_back_to_the_list() -> None:
    await started_hub()
    assert (await close(await operator())).redirect_chain == [(LIST, 302)]


@live
async def test_closing_a_topic_s_subscribers_leaves_the_others() -> None:
    hub = await started_hub()
    reader, other = await subscribed(hub, " odd, topic "), local_connection(hub)
    await close(await operator(), target="topic", topic=" odd, topic ")
    assert (reader.wire.closed, other.wire.closed) == (True, False)


@live
async def test_closing_a_user_s_connections_leaves_the_others() -> None:
    hub = await started_hub()
    seven, other = connection_of(hub, "7"), connection_of(hub, "8")
    await close(await operator(), target="user", user="7")
    assert (seven.wire.closed, other.wire.closed) == (True, False)


@live
async def test_closing_a_selection_leaves_the_others() -> None:
    hub = await started_hub()
    one, other, another = (local_connection(hub) for _ in range(3))
    await close(await operator(), target="selection", ids=f"{one.id},{another.id}")
    assert [connection.wire.closed for connection in (one, other, another)] == [True, False, True]


@live
async def test_closing_with_1006_drops_the_connections() -> None:
    connection = local_connection(await started_hub())
    await close(await operator(), code="1006")
    assert connection.wire.aborted


@live
async def test_closing_with_a_custom_code_and_no_reason() -> None:
    connection = local_connection(await started_hub())
    await close(await operator(), code="custom", custom_code="4999", reason="")
    assert connection.wire.closed_with == (4999, "")


@live
async def test_closing_with_a_spread_says_that_it_takes_time() -> None:
    hub = await started_hub()
    connections = [local_connection(hub) for _ in range(4)]
    response = await close(await operator(), spread="1000")
    assert messages_of(response) == [("success", "4 connections on 1 server: being closed over 1000 s.")]
    await until(lambda: connections[0].wire.closed)
    assert not connections[1].wire.closed


@live
async def test_closing_of_which_a_server_does_not_answer_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    local_connection(await started_hub())
    await the_layer().group_add(ALL_GROUP, "realtime.inmemory!deaf")
    monkeypatch.setattr("realtime.admin.connections.close_connections", impatient_close)
    assert messages_of(await close(await operator())) == [
        (
            "warning",
            "1 connection closed on 1 server. 1 more server did not answer in time: what it did is unknown.",
        )
    ]


def impatient_close(*args: Any, **options: Any) -> Any:
    return publishing.close_connections(*args, **options, wait=0.2)


@pytest.mark.django_db
def test_closing_where_no_server_answers_warns(browser: Client) -> None:
    response = browser.post(CLOSE, DEFAULTS, follow=True)
    message = "No server answered, so nothing is known to have been closed."
    assert messages_of(response) == [("warning", message)]


@pytest.mark.django_db
def test_closing_while_the_layer_fails_shows_the_form_again(browser: Client) -> None:
    the_layer().failing = True
    response = browser.post(CLOSE, {**DEFAULTS, "reason": "kept"})
    ((level, message),) = messages_of(response)
    assert level == "error"
    assert "Nothing is known to have been closed: the channel layer failed" in message
    assert response.context["form"]["reason"].value() == "kept"


# What is written down


@live
async def test_closing_is_recorded_with_its_outcome() -> None:
    hub = await started_hub()
    await subscribed(hub, "news")
    browser = await operator()
    await close(browser, target="topic", topic="news", code="1012", reason="deploy", spread="30")
    entry = await LogEntry.objects.select_related("user", "content_type").aget()
    assert (entry.user.username, entry.content_type.model, entry.action_flag) == ("root", "connection", CHANGE)
    assert entry.object_repr == "close subscribers of topic “news”"
    assert entry.change_message == (
        "close subscribers of topic “news” with code 1012, reason “deploy”, over 30 s – connections: 1, servers: 1"
    )


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({}, "all client connections (3)"),
        ({"target": "topic", "topic": "news"}, "subscribers of topic “news” (2)"),
        ({"target": "user", "user": "7"}, "connections of user 7 (1)"),
        ({"target": "selection", "ids": "c1,c2"}, "selected connections (2)"),
    ],
)
def test_closing_is_recorded_with_how_many_were_meant(
    browser: Client, registry: None, values: dict[str, str], what: str
) -> None:
    row("c1", "news", user_id="7")
    row("c2", "news")
    row("c3")
    browser.post(CLOSE, {**DEFAULTS, **values})
    assert LogEntry.objects.get().object_repr == f"close {what}"


@pytest.mark.django_db
def test_closing_is_recorded_before_anything_is_sent(browser: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("realtime.admin.connections.close_connections", crash)
    with pytest.raises(KeyboardInterrupt):
        browser.post(CLOSE, DEFAULTS)
    assert LogEntry.objects.count() == 1


@pytest.mark.django_db
@pytest.mark.parametrize("path", [CLOSE, TOPICS])
def test_no_transaction_waits_for_the_servers(browser: Client, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setitem(database.settings_dict, "ATOMIC_REQUESTS", True)
    with CaptureQueriesContext(database) as queries:
        browser.get(path)
    assert not [query for query in queries if "SAVEPOINT" in query["sql"]]


@pytest.mark.django_db
def test_closing_that_fails_is_recorded_as_such(browser: Client) -> None:
    the_layer().failing = True
    browser.post(CLOSE, DEFAULTS)
    assert "failed: the channel layer failed" in LogEntry.objects.get().change_message


@pytest.mark.django_db
def test_form_shows_the_last_ten_closes(browser: Client) -> None:
    for number in range(11):
        browser.post(CLOSE, {**DEFAULTS, "reason": f"number {number};"})
    text = text_of(browser.get(CLOSE))
    assert "number 10;" in text
    assert "number 0;" not in text
    assert text.count("root") >= 10


@live
async def test_closing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "realtime.admin")
    hub = await started_hub()
    await subscribed(hub, "news\nevent=forged")
    browser = await operator()
    await close(browser, target="topic", topic="news\nevent=forged", code="1012", reason="secret")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "realtime.admin"]
    assert line == (
        "event=operator_close user='root' code=1012 target=topic:'news\\nevent=forged'"
        " servers=1 connections=1 unknown=0"
    )


@pytest.mark.django_db
def test_closing_that_fails_is_logged(browser: Client, caplog: pytest.LogCaptureFixture) -> None:
    the_layer().failing = True
    browser.post(CLOSE, DEFAULTS)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "realtime.admin"]
    assert line.startswith(
        "event=operator_close_failed user='root' code=1001 target=all error=the channel layer failed"
    )


# Topics


class Order(BaseModel):
    status: str
    amount: int = 0


@live
async def test_topics_page_shows_the_subscribers_on_each_server() -> None:
    Topic("news")
    hub = await started_hub()
    await subscribed(hub, "news")
    await subscribed(hub, "news", "undeclared")
    await publishing.apublish_payload("news", "1")
    await until(lambda: hub.link.groups["news"].last)
    browser = await operator()
    response = await sync_to_async(browser.get)(TOPICS)
    text = text_of(response)
    rows = {row.name: row for row in response.context["rows"]}
    assert hub.name in text
    assert (rows["news"].subscribers, rows["undeclared"].subscribers, rows["heartbeat"].subscribers) == ([2], [1], [0])
    assert rows["news"].published.endswith(" s)")
    assert rows["heartbeat"].published == "–"
    assert "As 1 server reports it at this moment." in text


@pytest.mark.django_db
def test_topics_page_says_who_may_subscribe(browser: Client) -> None:
    Topic("open", public=True)
    Topic("members")
    Topic("guarded", authorize=lambda user: True)
    Topic("permitted", authorize="shop.view_order")
    rows = {row.name: row.audience for row in browser.get(TOPICS).context["rows"]}
    assert [rows[name] for name in ("open", "members", "guarded", "permitted")] == [
        "public",
        "signed-in users",
        "whom authorize() lets in",
        "permission shop.view_order",
    ]


@live
async def test_topics_page_knows_what_a_name_with_parameters_belongs_to() -> None:
    Topic("orders.{order_id:int}", public=True)
    await subscribed(await started_hub(), "orders.42")
    browser = await operator()
    response = await sync_to_async(browser.get)(TOPICS)
    rows = {row.name: row for row in response.context["rows"]}
    assert (rows["orders.42"].audience, rows["orders.42"].subscribers) == ("public", [1])
    assert (rows["orders.{order_id:int}"].audience, rows["orders.{order_id:int}"].subscribers) == ("public", [])


@pytest.mark.django_db
def test_topics_page_without_a_server_says_so(browser: Client) -> None:
    assert "No server answered." in text_of(browser.get(TOPICS))


@pytest.mark.django_db
def test_topics_page_while_the_layer_fails_lists_them_without_numbers(browser: Client) -> None:
    the_layer().failing = True
    response = browser.get(TOPICS)
    assert "The channel layer is unavailable" in text_of(response)
    assert {tuple(row.subscribers) for row in response.context["rows"]} == {()}


# Publishing


async def publish(browser: Client, topic: str, payload: str) -> Any:
    return await post(browser, TOPICS, topic=topic, payload=payload)


@live
@pytest.mark.parametrize("payload", ['{"a": [1, "é"]}', "null", "0", '"<script>"', "12345678901234567890123"])
async def test_publishing_sends_the_value(payload: str) -> None:
    Topic("news", JsonValue)
    connection = await subscribed(await started_hub(), "news")
    response = await publish(await operator(), "news", payload)
    await until(lambda: connection.wire.data == [json.loads(payload)])
    assert messages_of(response) == [("success", "Published on “news”.")]


@live
async def test_publishing_on_a_name_with_parameters() -> None:
    Topic("orders.{order_id:int}", Order)
    connection = await subscribed(await started_hub(), "orders.42")
    await publish(await operator(), "orders.42", '{"status": "paid"}')
    await until(lambda: connection.wire.data == [{"status": "paid", "amount": 0}])


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("topic", "payload", "wrong", "message"),
    [
        ("news", '{"a": 1', "payload", "This is not valid JSON: EOF while parsing an object at line 1 column 7."),
        ("news", "[1,\n2,\nx]", "payload", "at line 3 column 1."),
        ("news", "NaN", "payload", "not valid JSON"),
        ("news", '"\\ud800"', "payload", "not valid JSON"),
        ("news", "[" * 10_000, "payload", "not valid JSON"),
        ("news", "", "payload", "required"),
        ("nowhere", "1", "topic", "No topic of this name is declared."),
        ("heartbeat", "1", "topic", "run_heartbeats publishes on it"),
        ("orders.{order_id}", "1", "topic", "Put values in the place of the parameters."),
        ("orders.42", '{"amount": 1}', "payload", "status: Field required"),
        ("orders.42", '{"status": "paid", "amount": "many"}', "payload", "amount: Input should be a valid integer"),
        ("orders.42", "3", "payload", "Input should be an object"),
    ],
)
def test_publishing_is_refused_with_what_is_wrong(
    browser: Client, topic: str, payload: str, wrong: str, message: str
) -> None:
    Topic("news")
    Topic("orders.{order_id}", Order)
    response = browser.post(TOPICS, {"topic": topic, "payload": payload})
    assert list(errors(response)) == [wrong]
    assert message in errors(response)[wrong][0]
    assert not LogEntry.objects.exists()


@pytest.mark.django_db
def test_publishing_is_recorded_without_the_payload(browser: Client) -> None:
    Topic("news")
    browser.post(TOPICS, {"topic": "news", "payload": '"sécret"'})
    entry = LogEntry.objects.get()
    assert (entry.object_repr, entry.content_type.model) == ("publish on “news”", "subscription")
    assert entry.change_message == "publish 9 bytes on topic “news”"


@pytest.mark.django_db
def test_publishing_is_logged_without_the_payload(browser: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "realtime.admin")
    Topic("news")
    browser.post(TOPICS, {"topic": "news", "payload": '"secret"'})
    (line,) = [record.getMessage() for record in caplog.records if record.name == "realtime.admin"]
    assert line == "event=operator_publish user='root' topic='news' bytes=8"


@pytest.mark.django_db
def test_publishing_while_the_layer_fails_keeps_what_was_typed(browser: Client) -> None:
    Topic("news")
    the_layer().failing = True
    response = browser.post(TOPICS, {"topic": "news", "payload": "1"})
    ((level, message),) = messages_of(response)
    assert level == "error"
    assert "This is not known to have been published" in message
    assert response.context["form"]["payload"].value() == "1"
    assert LogEntry.objects.get().change_message.endswith("– failed")


# Hostile input, and pages without scripts


@live
@pytest.mark.parametrize(
    "path",
    [
        LIST,
        f"{LIST}c1/change/",
        SERVERS,
        f"{SERVERS}s1/change/",
        CLOSE,
        f"{CLOSE}?id=c1",
        f"{CLOSE}?topic=%3Cscript%3Ealert(1)%3C/script%3E",
        f"{LIST}?topic=%3Cscript%3Ealert(1)%3C/script%3E",
        f"{LIST}?server=%3Cscript%3Ealert(1)%3C/script%3E",
        f"{LIST}?q=%3Cscript%3Ealert(1)%3C/script%3E",
        TOPICS,
    ],
)
async def test_page_escapes_what_clients_send(settings: Any, path: str) -> None:
    await subscribed(await started_hub(), HOSTILE)
    settings.REALTIME = {**settings.REALTIME, "CONNECTION_REGISTRY": True}

    def get() -> str:
        server_row()
        row("c1", HOSTILE, username=HOSTILE, user_id="7", address=HOSTILE, path=HOSTILE, user_agent=HOSTILE)
        browser = superusers_browser()
        browser.post(CLOSE, {**DEFAULTS, "target": "topic", "topic": HOSTILE, "reason": HOSTILE})
        return browser.get(path).content.decode()

    page = await sync_to_async(get)()
    assert "<script>" not in page
    assert "<img src=x" not in page


@pytest.mark.django_db
@pytest.mark.parametrize("path", [LIST, f"{LIST}c1/change/", SERVERS, f"{SERVERS}s1/change/", CLOSE, TOPICS])
def test_page_has_no_inline_script_or_style(browser: Client, registry: None, path: str) -> None:
    server_row()
    row("c1", "news")
    page = browser.get(path).content.decode()
    assert not re.search(r"<script(?![^>]*\bsrc=)[^>]*>\s*[^<\s]", page)
    assert "<style" not in page
    assert not re.search(r"<[^>]*\s(style|on\w+)=", page)


@pytest.mark.django_db
@pytest.mark.parametrize("path", [CLOSE, TOPICS])
def test_every_field_of_a_form_has_a_label(browser: Client, registry: None, path: str) -> None:
    row("c1", "news", user_id="7")
    page = browser.get(path).content.decode()
    page = page[page.index('id="content-main"') :]
    for tag in re.findall(r"<(?:input|select|textarea)\b[^>]*>", page):
        if 'type="hidden"' not in tag and 'type="submit"' not in tag:
            (key,) = re.findall(r'\bid="(.*?)"', tag)
            assert f'for="{key}"' in page or "aria-label=" in tag
