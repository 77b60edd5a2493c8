"""The operator's console as an operator uses it: a real browser, two server processes, a real Redis, real clients."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from .browser import launched
from .live import SERVERS, Client, System, manage, running_system, stalls

PASSWORD = "correct horse battery"
FRESH = 15_000
"""Milliseconds that the list may take to show what has happened."""
SETUP = f"""
from django.contrib.auth.models import Permission, User
User.objects.create_superuser("ada", "", "{PASSWORD}")
viewer = User.objects.create_user("viewer", "", "{PASSWORD}", is_staff=True)
ours = Permission.objects.filter(content_type__app_label="realtime")
viewer.user_permissions.add(*ours.filter(codename__startswith="view_"))
"""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A migrated database with an operator and somebody who may only look; return its URL."""
    url = f"sqlite:///{tmp_path_factory.mktemp('console') / 'site.sqlite3'}"
    for arguments in (["migrate", "--verbosity", "0"], ["shell", "--verbosity", "0", "-c", SETUP]):
        process = manage(*arguments, DATABASE_URL=url)
        assert process.wait(60) == 0, process.output
    return url


@pytest.fixture(scope="module")
def system(database: str) -> Iterator[System]:
    """Daphne and uvicorn on one Redis and one database, with the registry on."""
    env = {"DATABASE_URL": database, "REALTIME_CONNECTION_REGISTRY": "1"}
    with running_system(*((kind, env) for kind in SERVERS)) as system:
        yield system


@pytest.fixture
async def page(system: System) -> AsyncIterator[Page]:
    """A page in which nobody has signed in."""
    async with launched() as browser:
        page = await browser.new_page(viewport={"width": 1280, "height": 900})
        yield page


async def sign_in(page: Page, system: System, user: str = "ada", path: str = "/admin/realtime/connection/") -> None:
    await page.goto(f"http://127.0.0.1:{system.servers[0].port}/admin/login/?next={path}")
    await page.get_by_label("Username").fill(user)
    await page.get_by_label("Password").fill(PASSWORD)
    await page.get_by_role("button", name="Log in").click()
    await page.wait_for_url(f"**{path}")


async def wait_for_rows(page: Page, number: int) -> None:
    """Reload the list until it has so many rows."""
    end = time.monotonic() + FRESH / 1000
    while (rows := await page.locator("#result_list tbody tr").count()) != number:
        assert time.monotonic() < end, f"the list has {rows} rows, not {number}"
        await page.wait_for_timeout(200)
        await page.reload()


async def connect(stack: AsyncExitStack, system: System, agent: str, *topics: str) -> list[Client]:
    """Connect a client to each server, subscribed to the topics."""
    clients = []
    for server in system.servers:
        client = await stack.enter_async_context(Client(server.url, user_agent_header=agent))
        for topic in topics:
            await client.subscribe(topic)
        clients.append(client)
    return clients


async def test_operator_filters_closes_a_selection_and_then_everybody(system: System, page: Page) -> None:
    async with AsyncExitStack() as stack:
        readers = await connect(stack, system, "Reader/1", "news")
        others = await connect(stack, system, "Other/1", "many-1", "many-2")
        await sign_in(page, system)
        await wait_for_rows(page, 4)
        await expect(page.locator("#content")).to_contain_text(re.compile(r"4 connections on 2 servers"))

        await page.get_by_role("link", name=re.compile("^news")).click()
        await wait_for_rows(page, 2)
        assert await page.locator("#result_list").get_by_text("Reader/1").count() == 2
        await page.locator("#action-toggle").check()
        await page.get_by_label("Action:").select_option(label="Close selected connections…")
        await page.get_by_role("button", name="Run").or_(page.get_by_role("button", name="Go")).click()
        await expect(page.get_by_label("This selection (2)")).to_be_checked()
        await page.locator("#id_code").select_option("1012")
        await page.get_by_label("Reason").fill("deploy of the reader ☂")
        await page.get_by_role("button", name="Close connections").click()
        await expect(page.locator(".messagelist")).to_contain_text("2 connections")
        assert [await client.closed() for client in readers] == [(1012, "deploy of the reader ☂")] * 2
        for client in others:
            await client.echo()
        await wait_for_rows(page, 2)

        await page.get_by_role("link", name="Close all client connections…").click()
        await expect(page.get_by_label("All client connections (2)")).to_be_checked()
        await expect(page.get_by_text("deploy of the reader ☂")).to_be_visible()  # among the recent closes
        await page.locator("#id_code").select_option("custom")
        await page.locator("#id_custom_code").fill("4321")
        await page.get_by_role("button", name="Close connections").click()
        await expect(page.locator(".messagelist")).to_contain_text("2 connections")
        assert [await client.closed() for client in others] == [(4321, "closed by operator")] * 2
        await wait_for_rows(page, 0)

        await page.get_by_role("link", name="Close all client connections…").click()  # also when nobody is there
        await expect(page.get_by_label("All client connections (0)")).to_be_checked()


async def test_operator_interrupts_the_subscribers_of_a_topic(system: System, page: Page) -> None:
    async with AsyncExitStack() as stack:
        readers = await connect(stack, system, "Reader/1", "news")
        others = await connect(stack, system, "Other/1", "many-1")
        await sign_in(page, system)
        await wait_for_rows(page, 4)
        await page.goto(f"http://127.0.0.1:{system.servers[0].port}/admin/realtime/connection/close/?topic=news")
        await expect(page.get_by_label("Subscribers of a topic")).to_be_checked()
        await page.locator("#id_code").select_option("1006")
        await page.get_by_role("button", name="Close connections").click()
        await expect(page.locator(".messagelist")).to_contain_text("2 connections")
        assert [await client.closed() for client in readers] == [(1006, "")] * 2
        for client in others:
            await client.echo()


async def test_code_and_reason_that_cannot_be_are_refused_with_the_form(system: System, page: Page) -> None:
    async with AsyncExitStack() as stack:
        [client, _] = await connect(stack, system, "Reader/1")
        await sign_in(page, system, path="/admin/realtime/connection/close/")
        await page.get_by_label("Reason").fill("☂" * 42)
        await page.get_by_role("button", name="Close connections").click()
        await expect(page.locator(".errorlist")).to_contain_text("126 bytes")
        await expect(page.get_by_label("Reason")).to_have_value("☂" * 42)
        await client.echo()


async def test_topics_are_shown_with_their_subscribers_and_published_on(system: System, page: Page) -> None:
    async with AsyncExitStack() as stack:
        clients = await connect(stack, system, "Reader/1", "news")
        await sign_in(page, system, path="/admin/realtime/subscription/")
        row = page.get_by_role("row").filter(has=page.get_by_text("news", exact=True))
        await expect(row).to_contain_text("1")
        await page.get_by_label("Topic").fill("news")
        await page.locator("textarea").fill('{"text": "<b>hello</b>"')
        await page.get_by_role("button", name="Publish").click()
        await expect(page.locator(".errorlist")).to_contain_text("JSON")
        await page.locator("textarea").fill('{"text": "<b>hello</b>"}')
        await page.get_by_role("button", name="Publish").click()
        await expect(page.locator(".messagelist")).to_contain_text("Published")
        for client in clients:
            assert await client.publications(1) == [{"text": "<b>hello</b>"}]


async def test_who_may_only_look_sees_no_button_and_gets_a_403(system: System, page: Page) -> None:
    async with AsyncExitStack() as stack:
        [client, _] = await connect(stack, system, "Reader/1")
        await sign_in(page, system, "viewer")
        await wait_for_rows(page, 2)
        assert await page.get_by_text("Close").count() == 0
        response = await page.goto(f"http://127.0.0.1:{system.servers[0].port}/admin/realtime/connection/close/")
        assert response is not None
        assert response.status == 403
        await client.echo()


async def test_servers_are_listed_with_their_counts(system: System, page: Page) -> None:
    async with AsyncExitStack() as stack:
        await connect(stack, system, "Reader/1", "news")
        await sign_in(page, system)
        await wait_for_rows(page, 2)
        await page.goto(f"http://127.0.0.1:{system.servers[0].port}/admin/realtime/serverprocess/")
        text = await page.locator("#result_list").inner_text()
        assert "daphne 4." in text
        assert "uvicorn 0." in text


async def test_closes_are_spread_over_the_time_asked(system: System, page: Page) -> None:
    path = "/admin/realtime/connection/close/"
    await sign_in(page, system, path=path)

    async def closes() -> list[float]:
        """Return when each of 300 clients is closed: seconds after the first was."""
        async with AsyncExitStack() as stack:
            clients = [client for _ in range(150) for client in await connect(stack, system, "Fleet/1")]
            await page.goto(f"http://127.0.0.1:{system.servers[0].port}{path}")
            await page.get_by_label("Spread (seconds)").fill("3")
            closed: list[float] = []

            async def note(client: Client) -> None:
                assert await client.closed() == (1001, "closed by operator")
                closed.append(time.monotonic())

            waiting = asyncio.gather(*map(note, clients))
            await page.get_by_role("button", name="Close connections").click()
            await expect(page.locator(".messagelist")).to_contain_text("300 connections")
            await waiting
        return [moment - closed[0] for moment in closed]

    for _ in range(5):
        async with stalls() as stalled:
            moments = await closes()
        if stalled.longest < 0.2:  # otherwise they say little of the servers
            break
    assert 2.5 < moments[-1] < 5, moments
    thirds = [sum(moment < limit for moment in moments) for limit in (1, 2)]
    assert 60 < thirds[0] < 140, moments
    assert 140 < thirds[1] < 260, moments


async def test_pages_look_right(system: System, page: Page, tmp_path: Path) -> None:
    """Nothing is wider than the window, in both colour schemes and on a phone."""
    async with AsyncExitStack() as stack:
        await connect(
            stack, system, "Mozilla/5.0 (X11; Linux x86_64) " + "x" * 200, "news", "many-1", "many-2", "many-3"
        )
        await sign_in(page, system)
        await wait_for_rows(page, 2)
        for path in ("connection/", "connection/close/", "subscription/", "serverprocess/"):
            await page.goto(f"http://127.0.0.1:{system.servers[0].port}/admin/realtime/{path}")
            for width in (1280, 400):
                await page.set_viewport_size({"width": width, "height": 900})
                inner, outer = await page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
                assert inner <= outer, (path, width)
