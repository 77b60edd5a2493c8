"""The demo's page as people use it: a real Chromium, against the demo site on real servers."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Locator, Page, Request, expect

from demows_project.topics import COLOURS, HEIGHT, MARKS, WIDTH, Allowance

from .browser import launched, tab
from .live import SERVERS, TIMEOUT, Client, Redis, Server
from .test_live_commands import Browser as Operator
from .test_live_commands import Site

pytestmark = pytest.mark.asyncio(loop_scope="module")

HASTY = "Math.random = () => 0.05"
"""Let the client's backoff be short."""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Browser]:
    """The browser that the tests here share."""
    expect.set_options(timeout=TIMEOUT * 1000)
    async with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def make_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Site]]:
    """Return a function that serves one more site with ``make serve``'s settings, on a database of its own."""
    sites: list[Site] = []

    def make(kind: str, **env: str) -> Site:
        sites.append(Site(tmp_path_factory.mktemp("site")))
        sites[-1].serve("--server", kind, "--no-heartbeats", **{"DEBUG": "1", **env})
        return sites[-1]

    try:
        yield make
    finally:
        with ThreadPoolExecutor() as threads:
            [*threads.map(Site.stop, sites)]


@pytest.fixture(scope="module")
def shared(make_site: Callable[..., Site]) -> Callable[[str], Site]:
    """Return a function that returns the site on a kind of server which the tests here share."""
    return cache(make_site)


@pytest.fixture(scope="module", params=SERVERS)
def each(request: pytest.FixtureRequest, browser: Browser, shared: Callable[[str], Site]) -> Site:
    """A site on each kind of server, of one process."""
    return shared(request.param)


@pytest.fixture(scope="module")
def site(browser: Browser, shared: Callable[[str], Site]) -> Site:
    """A site on Daphne, for what is the same on all servers."""
    return shared("daphne")


@asynccontextmanager
async def opened(browser: Browser, address: str, **options: Any) -> AsyncIterator[Page]:
    """Open the demo's page and wait until it gets beats. It must ask no other host for anything."""
    asked: list[str] = []

    def note(request: Request) -> None:
        if not request.url.startswith(f"{address}/"):
            asked.append(request.url)

    async with tab(browser, **options) as page:
        await page.add_init_script(HASTY)
        page.on("request", note)
        await page.goto(f"{address}/")
        await expect(page.locator("#state")).to_have_text("Open")
        await expect(topic(page, "heartbeat")).to_contain_text("received")
        await expect(page.locator("#board")).to_have_attribute("data-live", "true")
        yield page
    assert asked == []


def topic(page: Page, name: str) -> Locator:
    return page.locator("#topics li").filter(has=page.get_by_text(name, exact=True))


def frame(page: Page, direction: str, kind: str) -> Locator:
    """Return the newest frame of a type, ``in`` or ``out``."""
    return page.locator(f"#list li.{direction}").filter(has_text=f'"type":"{kind}"').first


def cell(page: Page, row: int, column: int) -> Locator:
    return page.locator("#board button").nth(row * WIDTH + column)


async def echo(page: Page, text: str) -> None:
    """Send an echo, and wait until it is there: all that came before it is shown as well."""
    await page.get_by_label("Text").fill(text)
    await page.get_by_role("button", name="Send").click()
    await expect(page.locator("#echoed q")).to_have_text(text)


async def subscribe(page: Page, name: str) -> None:
    """Ask for a topic."""
    await page.get_by_label("Topic", exact=True).fill(name)
    await page.get_by_role("button", name="Subscribe", exact=True).click()


async def count(page: Page, name: str) -> int:
    found = re.search(r"(\d+) received", await topic(page, name).inner_text())
    assert found is not None
    return int(found[1])


def close_all(site: Site, code: int, reason: str) -> None:
    """Close all connections as an operator does: in the admin."""
    operator = Operator(site.http)
    password = site.processes[0].wait_for_line(r"account 'admin' with the password (\S+)")[1]
    assert operator.sign_in(password) == "/admin/"
    address = "/admin/realtime/connection/close/"
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', operator.open(address)[1])
    assert token is not None
    how = {"code": "custom", "custom_code": str(code)} if code >= 3000 else {"code": str(code)}
    form = {"csrfmiddlewaretoken": token[1], "target": "all", "reason": reason, "spread": "0", **how}
    assert operator.open(address, form)[0] != address


# What it is sent with


async def test_policy_lets_in_nothing_inline(browser: Browser, each: Site) -> None:
    page = await browser.new_page()
    try:
        response = await page.goto(f"{each.http}/")
        assert response is not None
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'self';")
        assert "unsafe" not in policy
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]* src=)", await response.text())
        await expect(page.locator("#state")).to_have_text("Open")
        assert await page.evaluate(REFUSED) == "script-src-elem"
    finally:
        await page.close()


REFUSED = """
new Promise((resolve) => {
  document.addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
  document.body.append(Object.assign(document.createElement("script"), { textContent: "1" }));
})
"""


async def test_links_lead_somewhere(browser: Browser, site: Site) -> None:
    async with opened(browser, site.http) as page:
        links = await page.evaluate("[...document.querySelectorAll('a:not([href^=\"#\"])')].map(({ href }) => href)")
        assert len(links) >= 7
        for link in links:
            assert link.startswith(f"{site.http}/")
            with await asyncio.to_thread(urllib.request.urlopen, link, timeout=TIMEOUT) as answer:
                assert answer.status == 200


async def test_page_is_served_by_daphne_alone_without_debug_and_database(browser: Browser, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'never migrated.sqlite3'}"
    server = Server("daphne", application="demows_project.asgi:application", DATABASE_URL=database, DEBUG="")
    try:
        address = f"http://127.0.0.1:{server.wait_until_up().port}"
        async with opened(browser, address) as page:
            await cell(page, 0, 0).click()
            await expect(cell(page, 0, 0)).to_have_attribute("data-colour", "blue")
            await echo(page, "no database")
        assert "Traceback" not in server.output
    finally:
        await asyncio.to_thread(server.stop)


# Beats, echoes, topics


async def test_beats_arrive_and_the_chart_moves(browser: Browser, each: Site) -> None:
    async with opened(browser, each.http) as page:
        pulse = page.locator("#pulse")
        before, beats = await pulse.get_attribute("d"), await count(page, "heartbeat")
        assert before is not None
        await expect(pulse).not_to_have_attribute("d", before)
        await expect(pulse).to_have_attribute("d", re.compile("l4,-44"))
        await expect(page.locator("#trip-dots")).to_have_attribute("d", re.compile("^M"))
        await expect(page.locator("#trip")).to_have_text(re.compile(r"^[\d.]+ ms$"))
        assert await count(page, "heartbeat") > beats


async def test_echo_comes_back_and_with_an_error_if_asked_for(browser: Browser, each: Site) -> None:
    async with opened(browser, each.http) as page:
        await echo(page, "Hello")
        await expect(page.locator("#echoed")).to_have_text(re.compile(r"^OK “?Hello”? in [\d.]+ ms$"))
        await page.get_by_label("Ask for an error").check()
        await page.get_by_role("button", name="Send").click()
        await expect(page.locator("#echoed")).to_have_text("ASKED_BY_CLIENT client asked for it")


async def test_hostile_text_is_shown_as_text(browser: Browser, site: Site) -> None:
    hostile = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    async with opened(browser, site.http) as page:
        await page.get_by_label("Pretty").check()
        await echo(page, hostile)
        await expect(frame(page, "in", "echo_response").locator("pre")).to_contain_text("<img src=x onerror")
        await subscribe(page, hostile)
        await expect(page.locator("#refused")).to_have_text(f"TOPIC_NOT_FOUND no such topic: {hostile}")
        assert await page.locator("main img, main script").count() == 0


async def test_unsubscribe_stops_beats(browser: Browser, site: Site) -> None:
    async with opened(browser, site.http) as page:
        await page.get_by_role("button", name="Unsubscribe from heartbeat").click()
        await expect(frame(page, "in", "unsubscribe_response")).to_be_visible()
        beats = await page.locator("#beats").inner_text()
        await page.get_by_role("button", name="Clear").click()
        # Long enough for beats to come, if they did: the round trips of several echoes, and a change of the clock.
        since = await page.locator("#since").inner_text()
        await expect(page.locator("#since")).not_to_have_text(since)
        await echo(page, "silence")
        assert await page.locator("#list li").filter(has_text='"type":"heartbeat"').count() == 0
        assert await page.locator("#beats").inner_text() == beats
        await subscribe(page, "heartbeat")
        await expect(page.locator("#beats")).not_to_have_text(beats)


async def test_topic_that_is_not_there_or_taken_is_said_to_be(browser: Browser, site: Site) -> None:
    async with opened(browser, site.http) as page:
        for name, said in (("nowhere", "TOPIC_NOT_FOUND"), ("heartbeat", "ALREADY_SUBSCRIBED")):
            await subscribe(page, name)
            await expect(page.locator("#refused")).to_contain_text(said)
        assert await page.locator("#topics li").count() == 2


# Frames


async def test_frames_are_bounded_paused_and_cleared(browser: Browser, site: Site) -> None:
    async with opened(browser, site.http) as page:
        await page.locator("#measure").uncheck()
        await page.evaluate("for (let i = 0; i < 150; i += 1) document.getElementById('echo').requestSubmit()")
        await expect(page.locator("#list li")).to_have_count(200)
        await page.get_by_role("button", name="Pause").click()
        await expect(page.locator("#count")).to_contain_text("since the pause")
        await echo(page, "while it pauses")
        assert await page.locator("#list li").filter(has_text="while it pauses").count() == 0
        await page.get_by_role("button", name="Pause").click()
        await expect(page.locator("#list li.in").filter(has_text="while it pauses")).to_be_visible()
        assert await page.locator("#list li").count() == 200
        await page.get_by_role("button", name="Pause").click()
        await page.get_by_role("button", name="Clear").click()
        assert await page.locator("#list li").count() == 0


async def test_frame_shows_its_json_on_demand(browser: Browser, site: Site) -> None:
    async with opened(browser, site.http) as page:
        await page.locator("#measure").uncheck()
        await page.get_by_role("button", name="Unsubscribe from heartbeat").click()
        await echo(page, "Hello")
        row = frame(page, "in", "echo_response")
        await row.locator("summary").click()
        await expect(row.locator("pre")).to_contain_text('"data": {\n    "echo": "Hello"\n  }')
        await page.locator("#list").focus()
        await page.keyboard.press("ArrowDown")
        await expect(row.locator("summary")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(row.locator("pre")).to_be_hidden()


# Closed, and back


async def test_close_with_4000_is_shown_and_the_page_comes_back(browser: Browser, each: Site) -> None:
    async with opened(browser, each.http) as page:
        beats = int(await page.locator("#beats").inner_text())
        await asyncio.to_thread(close_all, each, 4000, "try again")
        said = re.compile(r"^Closed by the server with 4000 “try again” – back after [\d.]+ s")
        await expect(page.locator("#closed")).to_have_text(said)
        await expect(page.locator("#list li.event").filter(has_text="4000 “try again”: comes back in")).to_be_visible()
        await expect(page.locator("#state")).to_have_text("Open")
        await expect(page.locator("#beats")).to_have_text(re.compile(rf"^(?!{beats}$)\d+$"))
        await echo(page, "still here")


async def test_close_with_1000_keeps_the_page_away_until_the_button_is_pressed(browser: Browser, each: Site) -> None:
    async with opened(browser, each.http) as page:
        await asyncio.to_thread(close_all, each, 1000, "done")
        said = "Closed by the server with 1000 “done” – the client stays away until you connect"
        await expect(page.locator("#closed")).to_have_text(said)
        await expect(page.locator("#state")).to_have_text("Closed")
        await page.get_by_role("button", name="Send").click()
        await expect(page.locator("#echoed")).to_contain_text("CLOSED")
        await page.get_by_role("button", name="Connect", exact=True).click()
        await expect(topic(page, "heartbeat")).to_contain_text("received")
        await echo(page, "back")


async def test_disconnected_page_connects_again_with_its_topics(browser: Browser, site: Site) -> None:
    async with opened(browser, site.http) as page:
        await page.get_by_role("button", name="Disconnect").click()
        await expect(page.locator("#state")).to_have_text("Closed")
        await expect(page.locator("#closed")).to_contain_text("Closed by this page with 1000")
        await expect(page.locator("#painted")).to_contain_text("Not connected")
        await page.get_by_role("button", name="Unsubscribe from heartbeat").click()
        await page.get_by_role("button", name="Connect", exact=True).click()
        await expect(topic(page, "board")).to_contain_text("received")
        await echo(page, "back")
        assert await page.locator("#topics li").count() == 1


async def test_page_waits_while_the_browser_is_offline(browser: Browser, site: Site) -> None:
    async with opened(browser, site.http) as page:
        await page.context.set_offline(True)
        await expect(page.locator("#state")).to_have_text("Offline")
        await expect(page.locator("#since")).to_have_text("until the browser is online")
        await page.context.set_offline(False)
        await echo(page, "back")


@pytest.mark.parametrize("kind", SERVERS)
async def test_page_comes_back_when_the_server_does(
    browser: Browser, make_site: Callable[..., Site], kind: str
) -> None:
    site = await asyncio.to_thread(make_site, kind)
    async with opened(browser, site.http) as page:
        await asyncio.to_thread(site.stop)
        await expect(page.locator("#closed")).to_have_text(
            re.compile("^Closed by the server with 10(01 “server shutdown”|12) – the client comes back by itself$")
        )
        await expect(page.locator("#since")).to_have_text(re.compile(r"^tries again in [\d.]+ s$"))
        await expect(page.get_by_role("button", name="Connect now")).to_be_visible()
        await asyncio.to_thread(site.serve, "--server", kind, "--no-heartbeats")
        await expect(page.locator("#then")).to_have_text(re.compile(r"^back after [\d.]+ s, at attempt \d+$"))
        await echo(page, "back")


# The board


async def test_two_windows_share_the_board_and_a_third_sees_it(browser: Browser, each: Site) -> None:
    async with opened(browser, each.http) as one, opened(browser, each.http) as other:
        await one.get_by_role("radio", name="red").check()
        await cell(one, 2, 3).click()
        await expect(cell(other, 2, 3)).to_have_attribute("data-colour", "red")
        await expect(cell(other, 2, 3)).to_have_accessible_name("Row 3, column 4: red")
        async with opened(browser, each.http) as third:
            await expect(cell(third, 2, 3)).to_have_attribute("data-colour", "red")
        await other.get_by_role("radio", name="red").check()
        await cell(other, 2, 3).click()
        await expect(cell(one, 2, 3)).to_have_attribute("data-colour", "none")


async def test_windows_on_two_servers_share_the_board(browser: Browser, make_site: Callable[..., Site]) -> None:
    redis = Redis()
    try:
        sites = [await asyncio.to_thread(make_site, kind, REDIS_URL=redis.url) for kind in SERVERS]
        async with tab(browser) as one, tab(browser) as other:
            for page, site in zip((one, other), sites, strict=True):
                await page.goto(f"{site.http}/")
                await expect(page.locator("#board")).to_have_attribute("data-live", "true")
            await cell(one, 0, 0).click()
            await cell(other, 7, 11).click()
            for page in (one, other):
                await expect(cell(page, 0, 0)).to_have_attribute("data-colour", "blue")
                await expect(cell(page, 7, 11)).to_have_attribute("data-colour", "blue")
        async with Client(sites[0].ws) as client:
            redis.kill()  # the topic is joined all the same, and changes are refused
            await client.subscribe("board")
            asked = {"type": "board_set_request", "row": 0, "column": 0, "colour": "red"}
            answer = await client.ask(asked)
            assert answer["error"]["code"] == "BOARD_UNAVAILABLE"
            await client.echo()
            assert "Traceback" not in sites[0].processes[0].output
    finally:
        redis.stop()


async def test_board_is_painted_with_the_keyboard(browser: Browser, site: Site) -> None:
    async with opened(browser, site.http) as page:
        await page.get_by_role("radio", name="green").focus()
        await page.keyboard.press("Space")
        await page.keyboard.press("Tab")
        for key in ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowUp", "ArrowUp", "ArrowUp", "Enter"):
            await page.keyboard.press(key)
        await expect(cell(page, 0, 1)).to_have_attribute("data-colour", "green")
        await expect(cell(page, 0, 1)).to_be_focused()


async def test_board_of_the_page_is_that_of_the_server(browser: Browser, site: Site) -> None:
    async with opened(browser, site.http) as page:
        assert await page.locator("#board [role=row]").count() == HEIGHT
        assert await page.locator("#board button").count() == HEIGHT * WIDTH
        assert await page.locator("#palette input").evaluate_all("all => all.map(({ value }) => value)") == [*COLOURS]
        async with Client(site.ws) as client:
            for column, colour in enumerate(COLOURS):
                asked = {"type": "board_set_request", "row": 7, "column": column, "colour": colour}
                assert (await client.ask(asked))["status"] == "OK"
            await client.subscribe("board")
            [board] = await client.publications(1)
            assert board["rows"][7].startswith(MARKS)
        for column, colour in enumerate(COLOURS):
            await expect(cell(page, 7, column)).to_have_attribute("data-colour", colour)


async def test_board_refuses_to_be_an_amplifier(site: Site) -> None:
    async with Client(site.ws) as client, Client(site.ws) as watcher:
        await watcher.subscribe("board")
        await watcher.publications(1)
        colours, changed = ["violet", "yellow"], 0
        for _ in range(60):
            answer = await client.ask({"type": "board_set_request", "row": 5, "column": 5, "colour": colours[0]})
            if answer["status"] == "OK":
                changed += 1
                colours.reverse()
            else:
                assert answer["error"]["code"] == "BOARD_BUSY"
        assert 15 <= changed < 40
        boards = await watcher.publications(changed)
        assert [board["version"] for board in boards] == sorted({board["version"] for board in boards})
        await watcher.echo()  # and there is nothing more


async def test_cell_that_is_so_already_is_not_published(site: Site) -> None:
    async with Client(site.ws) as client:
        await client.subscribe("board")
        await client.publications(1)
        asked = {"type": "board_set_request", "row": 6, "column": 6, "colour": "none"}
        assert (await client.ask(asked))["data"] == {"row": 6, "column": 6, "colour": "none"}
        await client.echo()


@pytest.mark.parametrize("wrong", [{"row": 8}, {"column": -1}, {"colour": "beige"}], ids=str)
async def test_cell_that_is_not_there_is_refused(site: Site, wrong: dict[str, Any]) -> None:
    async with Client(site.ws) as client:
        asked = {"type": "board_set_request", "row": 0, "column": 0, "colour": "red", **wrong}
        assert (await client.ask(asked))["code"] == "BAD_REQUEST"


async def test_allowance_comes_back_with_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("demows_project.topics.time.monotonic", lambda: now)
    allowance = Allowance(rate=2, burst=3)
    assert [allowance.take() for _ in range(4)] == [True, True, True, False]
    now = 100.5
    assert [allowance.take() for _ in range(2)] == [True, False]
    now = 1000.0
    assert [allowance.take() for _ in range(4)] == [True, True, True, False]


# For everybody


NAMELESS = """
[...document.querySelectorAll("a, button, input, select, svg, [role=img], [role=grid], section, nav, fieldset")]
  .filter((one) => !(
    one.ariaLabel
    || one.labels?.[0]?.textContent.trim()
    || document.getElementById(one.getAttribute("aria-labelledby"))?.textContent.trim()
    || one.querySelector(":scope > legend")?.textContent.trim()
    || (one.matches("a, button") && one.textContent.trim())
  ))
  .map((one) => one.outerHTML.slice(0, 200))
"""

TOO_WIDE = """
[...document.querySelectorAll("main *:not(.unseen, .unseen *)")]
  .filter((one) => one.getBoundingClientRect().right > innerWidth && !one.closest("#list summary, .cable"))
  .map((one) => one.outerHTML.slice(0, 200))
"""

SCHEMES: list[Literal["light", "dark"]] = ["light", "dark"]

PALE = """
(() => {
  const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
    .getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return context.getImageData(0, 0, 1, 1).data;
  };
  const luminance = (colour) => {
    const [r, g, b] = [...rgba(colour)].map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (one) => {
    const colour = getComputedStyle(one).backgroundColor;
    return rgba(colour)[3] === 255 ? colour : behind(one.parentElement);
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const one = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !one.checkVisibility() || one.matches("noscript *, .unseen")) continue;
    const style = getComputedStyle(one);
    const [light, dark] = [luminance(one.matches("svg *") ? style.fill : style.color), luminance(behind(one))]
      .sort((a, b) => b - a);
    const contrast = (light + 0.05) / (dark + 0.05);
    if (contrast < 4.5) found.push(`${texts.currentNode.data}: ${contrast.toFixed(2)}`);
  }
  return found;
})()
"""


async def test_every_control_has_a_name(browser: Browser, site: Site) -> None:
    async with opened(browser, site.http) as page:
        assert await page.evaluate(NAMELESS) == []


async def test_all_can_be_read_in_light_and_dark(browser: Browser, site: Site) -> None:
    async with opened(browser, site.http) as page:
        await subscribe(page, "nowhere")
        await expect(page.locator("#refused")).to_contain_text("TOPIC_NOT_FOUND")
        await echo(page, "Hello")
        for button in ("Pause", "Pause", "Disconnect"):
            await page.get_by_role("button", name=button).click()
            await page.mouse.move(0, 0)
            for scheme in SCHEMES:
                await page.emulate_media(color_scheme=scheme)
                assert await page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
                assert await page.evaluate(PALE) == []


async def test_nothing_is_wider_than_the_screen(browser: Browser, site: Site) -> None:
    async with opened(browser, site.http) as page:
        await echo(page, "a" * 2000)
        await page.get_by_label("Pretty").check()
        for width in (320, 390, 800, 1200, 1440):
            await page.set_viewport_size({"width": width, "height": 844})
            for _ in range(300):  # what is drawn is drawn anew some frames after the window has changed
                if not (wide := await page.evaluate(TOO_WIDE)):
                    break
                await page.evaluate("new Promise(requestAnimationFrame)")
            assert wide == []
            assert await page.evaluate("document.documentElement.scrollWidth") == width


async def test_line_for_the_terminal_is_copied(browser: Browser, site: Site) -> None:
    async with opened(browser, site.http, permissions=["clipboard-read", "clipboard-write"]) as page:
        line = page.locator(".line").filter(has_text="echo_request")
        await line.get_by_role("button").click()
        await expect(line.get_by_role("button")).to_have_text("Copied")
        copied = await page.evaluate("navigator.clipboard.readText()")
        async with Client(site.ws) as client:
            assert (await client.ask(copied))["data"] == {"echo": "Hello"}
        await expect(page.locator(".line").filter(has_text="websockets")).to_contain_text(site.ws)
