"""The browser client in a real browser, on a page with a strict policy, against real servers."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page

from .browser import launched, tab
from .live import TIMEOUT, Server, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

one_server = pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
"""For what is between the page and the browser: the kind of server makes no difference."""

FROM_BACK = {"ignore_default_args": ["--disable-back-forward-cache"]}
"""Launch a browser that keeps pages for "back", as Playwright's would not."""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Browser]:
    """The browser that the tests here share."""
    async with launched() as browser:
        yield browser


@asynccontextmanager
async def opened(browser: Browser, server: Server, options: str = "", query: str = "") -> AsyncIterator[Page]:
    """Open the site's page, and connect it."""
    async with tab(browser, f"http://127.0.0.1:{server.port}/browser/{query}") as page:
        await page.evaluate(f"start({options})")
        yield page
        assert await page.evaluate("noted.violations") == []


async def until(page: Page, condition: str) -> None:
    """Wait until ``condition`` holds in the page. Playwright's own wait would need the policy to allow ``eval``."""
    try:
        async with asyncio.timeout(TIMEOUT):
            await page.evaluate(f"async () => {{ while (!({condition})) await new Promise(requestAnimationFrame); }}")
    except TimeoutError:
        state = await page.evaluate("[window.client?.state, window.noted]")
        raise AssertionError(f"not so within {TIMEOUT:g} s: {condition}; the page has {state}") from None


async def follow(page: Page, topic: str = "news") -> None:
    """Subscribe the page to a topic, and wait until it is."""
    await page.evaluate("topic => void follow(topic)", topic)
    await until(page, f"noted.subscribed.includes({topic!r})")


async def publish(server: Server, count: int = 1, topic: str = "news") -> None:
    await server.aget(f"/publish/?count={count}&topic={topic}")


async def assert_subscribed(page: Page, server: Server, times: int) -> None:
    """Assert that the page has subscribed so many times, and that what is published arrives."""
    await until(page, f"noted.subscribed.length === {times}")
    await page.evaluate("noted.data = []")
    await publish(server)
    await until(page, "noted.data.length === 1")


async def test_thousand_publications_arrive_in_order(browser: Browser, server: Server) -> None:
    async with opened(browser, server) as page:
        await follow(page)
        await publish(server, 1_000)
        await until(page, "noted.data.length === 1000")
        assert await page.evaluate("noted.data.map(({ number }) => number)") == list(range(1_000))


@one_server
async def test_policy_of_nonces_lets_the_module_in(browser: Browser, server: Server) -> None:
    async with opened(browser, server, query="?nonce") as page:
        await follow(page)


@one_server
async def test_heartbeats_arrive(browser: Browser, server: Server) -> None:
    async with opened(browser, server) as page:
        await follow(page, "heartbeat")
        await until(page, "noted.data.length > 2")
        assert {beat["type"] for beat in await page.evaluate("noted.data")} == {"heartbeat"}


async def test_requests_are_answered(browser: Browser, server: Server) -> None:
    failing = "request => client.request(...request).catch(({ code, message }) => [code, message])"
    async with opened(browser, server) as page:
        assert await page.evaluate("client.echo('ödd ☂')") == "ödd ☂"
        answer = await page.evaluate(failing, ["echo_request", {"echo": "a", "err": True}])
        assert answer == ["ASKED_BY_CLIENT", "client asked for it"]
        assert await page.evaluate(failing, ["no_request"]) == [
            "UNKNOWN_MESSAGE_TYPE",
            "unknown message type 'no_request'",
        ]
        assert (await page.evaluate(failing, ["echo_request"]))[0] == "BAD_REQUEST"
        assert (await page.evaluate(failing, ["echo_request", {"echo": "\ud800"}]))[0] == "BAD_REQUEST"
        assert await page.evaluate("client.echo('last')") == "last"


async def test_refused_subscriptions_are_told(browser: Browser, server: Server) -> None:
    async with opened(browser, server) as page:
        await page.evaluate("for (const topic of ['forbidden', 'raising', 'no such topic']) follow(topic)")
        await until(page, "noted.errors.length === 3")
        assert await page.evaluate("noted.errors") == [
            ["forbidden", "FORBIDDEN"],
            ["raising", "INTERNAL_ERROR"],
            ["no such topic", "TOPIC_NOT_FOUND"],
        ]


@one_server
async def test_two_handlers_share_a_subscription(browser: Browser, server: Server) -> None:
    async with opened(browser, server) as page:
        await page.evaluate("window.one = follow('news'); window.two = follow('news')")
        await until(page, "noted.subscribed.length === 2")
        await page.evaluate("one.unsubscribe()")
        await publish(server)
        await until(page, "noted.data.length === 1")
        await page.evaluate("two.unsubscribe()")
        answer = await page.evaluate("client.request('unsubscribe_request', {topic: 'news'}).catch(({ code }) => code)")
        assert answer == "NOT_SUBSCRIBED"


@one_server
async def test_handler_that_throws_is_reported_and_disturbs_nobody(browser: Browser, server: Server) -> None:
    async with opened(browser, server) as page:
        await page.evaluate(
            "window.addEventListener('error', (event) => { event.preventDefault(); noted.reported = event.message; });"
            "client.subscribe('news', () => { throw new Error('of the page'); })"
        )
        await follow(page)
        await publish(server)
        await until(page, "noted.data.length === 1")
        assert await page.evaluate("noted.reported") == "Uncaught Error: of the page"


@pytest.mark.parametrize("code", [1006, 1012, 4000])
async def test_client_comes_back_after(code: int, browser: Browser, server: Server) -> None:
    async with opened(browser, server) as page:
        await follow(page)
        await server.aget(f"/close/?code={code}&reason=deploy")
        await assert_subscribed(page, server, 2)
        [close] = await page.evaluate("noted.closes")
        assert (close["code"], close["willReconnect"]) == (code, True)
        assert close["reason"] == ("" if code == 1006 else "deploy")
        assert 0 <= close["delay"] <= 50


@pytest.mark.parametrize("code", [1000, 4500])
async def test_client_stays_away_after(code: int, browser: Browser, server: Server) -> None:
    async with opened(browser, server) as page:
        await follow(page)
        await server.aget(f"/close/?code={code}&reason=done")
        await until(page, "client.state === 'closed'")
        assert await page.evaluate("noted.closes") == [
            {"code": code, "reason": "done", "willReconnect": False, "delay": None}
        ]
        await page.evaluate("dispatchEvent(new Event('online')); client.reconnect()")
        await assert_subscribed(page, server, 2)
        assert await page.evaluate("noted.states") == ["open", "closed", "connecting", "open"]


async def test_client_survives_a_server_that_is_killed(
    browser: Browser, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(kind) as server:
        port = server.port
        monkeypatch.setattr("tests.live.free_port", lambda: port)
        async with opened(browser, server) as page:
            await follow(page)
            server.signal(signal.SIGKILL)
            await until(page, "noted.closes.length > 3")
            await asyncio.to_thread(server.stop)
            with running(kind) as server:
                await assert_subscribed(page, server, 2)
            assert {close["code"] for close in await page.evaluate("noted.closes.slice(0, 4)")} == {1006}


@pytest.mark.parametrize("kind", ["uvicorn"], indirect=True)
async def test_client_leaves_a_server_that_is_frozen(browser: Browser, kind: str) -> None:
    with running(kind) as server:
        async with opened(browser, server, "{hurry: 50}") as page:
            await follow(page)
            server.signal(signal.SIGSTOP)
            await until(page, "noted.closes.length > 1")
            assert [close["reason"] for close in await page.evaluate("noted.closes.slice(0, 2)")] == [
                "the server is silent",
                "no connection in time",
            ]
            server.signal(signal.SIGCONT)
            await until(page, "client.state === 'open' && noted.subscribed.length > 1")


@one_server
async def test_client_drops_the_connection_when_offline_and_is_back_at_once(browser: Browser, server: Server) -> None:
    async with opened(browser, server) as page:
        await follow(page)
        await page.context.set_offline(True)
        await until(page, "client.state === 'offline'")
        await page.context.set_offline(False)
        await assert_subscribed(page, server, 2)
        assert await page.evaluate("noted.states") == ["open", "offline", "connecting", "open"]
        assert (await page.evaluate("noted.closes"))[0]["reason"] == "the browser is offline"


@one_server
async def test_page_that_is_left_is_kept_and_connects_when_it_is_back(server: Server) -> None:
    async with launched(**FROM_BACK) as browser, opened(browser, server) as page:
        await follow(page)
        await page.evaluate("window.addEventListener('pageshow', ({ persisted }) => { noted.persisted = persisted; })")
        await page.goto(f"http://127.0.0.1:{server.port}/browser/?another")
        await page.go_back(wait_until="commit")
        await until(page, "noted.persisted === true")
        await assert_subscribed(page, server, 2)
        assert [close["reason"] for close in await page.evaluate("noted.closes")] == ["the page is hidden"]


async def test_token_that_has_expired_is_replaced(browser: Browser, server: Server) -> None:
    async with tab(browser, f"http://127.0.0.1:{server.port}/browser/") as page:
        await page.evaluate("window.token = 'good-1'; start({token: async () => window.token})")
        await follow(page, "members")
        await page.evaluate("window.token = 'expired'")
        await server.aget("/close/?code=1012&topic=members")
        await until(page, "client.state === 'closed'")
        close = (await page.evaluate("noted.closes"))[-1]
        assert close == {"code": 1008, "reason": "token refused", "willReconnect": False, "delay": None}
        await page.evaluate("window.token = 'good-2'; client.reconnect()")
        await until(page, "noted.subscribed.length === 2")


async def test_close_tells_the_server_why(browser: Browser, server: Server) -> None:
    start = await server.mark()
    async with opened(browser, server) as page:
        await until(page, "client.state === 'open'")
        await page.evaluate("client.close(4321, 'bye')")
        await asyncio.to_thread(server.wait_for_line, "event=disconnected .*code=4321", start=start)
        assert await page.evaluate("client.state") == "closed"


@one_server
async def test_client_that_is_refused_keeps_trying(browser: Browser, server: Server) -> None:
    async with tab(browser, f"http://127.0.0.1:{server.port}/browser/") as page:
        await page.evaluate("start({ url: '/nothing-here/' })")
        await until(page, "noted.closes.length > 2")
        assert {close["code"] for close in await page.evaluate("noted.closes")} == {1006}
