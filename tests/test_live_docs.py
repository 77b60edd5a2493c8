"""What docs/integrate.md tells to do, done: in an empty directory, with the wheel, to a page that updates itself."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from .browser import launched
from .live import ROOT, Client, Redis, free_port
from .shop.installed import build_wheel
from .shop.visitor import Visitor, ask
from .shop.walkthrough import Walkthrough, blocks_of

PAGE = ROOT / "docs" / "integrate.md"
STEPS = ("1. A site", "2. Set it up", "3. Declare a topic", "4. Publish", "5. Show it")
ORDER = "/orders/1/"


def ports() -> dict[str, str]:
    """Return free ports for those on the page."""
    return {port: str(free_port()) for port in ("8000", "8001")}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walkthrough]:
    """The page up to the site that runs, on the in-memory layer."""
    directory = tmp_path_factory.mktemp("integrate")
    wheel = build_wheel(directory)
    (directory / "constraints.txt").write_text((ROOT / "requirements.txt").read_text() + "gunicorn==27.0.1\n")
    project = directory / "project"
    project.mkdir()
    pip = f"pip install --no-compile --constraint {directory}/constraints.txt "
    walk = Walkthrough(PAGE, project, {**ports(), "pip install ": pip, "demows[": f"{wheel}["})
    try:
        walk.follow(*STEPS, "6. See it")
        yield walk
    finally:
        walk.stop()


@pytest.fixture
def walk(done: Walkthrough, layer: Redis, tmp_path: Path) -> Iterator[Walkthrough]:
    """A walk that begins when all that is done, with ports and files of its own, on Redis."""
    walk = done.copy(tmp_path / "project", {**ports(), "redis://localhost:6379/0": layer.url})
    try:
        yield walk
    finally:
        walk.stop()


@pytest.fixture(scope="module")
def layer() -> Iterator[Redis]:
    """A Redis for those sections of the page that want one."""
    redis = Redis()
    try:
        yield redis
    finally:
        redis.stop()


async def ada(port: str) -> Visitor:
    """Sign the page's user in."""
    visitor = Visitor(int(port))
    await asyncio.to_thread(visitor.sign_in, "/admin/login/", "ada", "correct-horse")
    return visitor


async def pay(visitor: Visitor, path: str = ORDER) -> None:
    """Press the page's button."""
    assert (await asyncio.to_thread(visitor.open, path)).status == 200
    assert (await asyncio.to_thread(visitor.open, f"{path}pay/", pay="")).status == 302


async def follow_order(client: Client) -> str:
    """Subscribe to the order as the page does, and return its status."""
    await client.subscribe("orders.1")
    [event] = await client.publications(1)
    return str(event["status"])


async def assert_pay_arrives(visitor: Visitor, *clients: Client) -> None:
    for client in clients:
        await follow_order(client)
    await pay(visitor)
    for client in clients:
        assert await client.publications(1) == [{"status": "paid"}]


async def test_view_of_the_page_reaches_a_subscriber(done: Walkthrough) -> None:
    visitor = await ada(done.replaced["8000"])
    async with visitor.connect("/ws/") as client:
        await assert_pay_arrives(visitor, client)


async def test_nobody_else_sees_the_order(done: Walkthrough) -> None:
    async with Visitor(int(done.replaced["8000"])).connect("/ws/") as client:
        answer = await client.ask({"type": "subscribe_request", "topic": "orders.1"})
        assert answer["error"]["code"] == "FORBIDDEN"


async def test_page_in_a_browser_updates_itself(done: Walkthrough) -> None:
    site = f"http://localhost:{done.replaced['8000']}"
    code = "Order.objects.create(customer=User.objects.get(username='ada'))"
    await asyncio.to_thread(done.run, f'python manage.py shell -c "{code}"')
    async with launched() as browser:
        page = await browser.new_page()
        await page.goto(f"{site}/admin/login/?next=/orders/2/")
        await page.fill("#id_username", "ada")
        await page.fill("#id_password", "correct-horse")
        await page.click("[type=submit]")
        await page.wait_for_url("**/orders/2/")
        assert await page.inner_text("#status") == "new"
        await pay(await ada(done.replaced["8000"]), "/orders/2/")
        await page.wait_for_function("document.querySelector('#status').textContent === 'paid'")


def test_tests_of_the_page_pass(walk: Walkthrough) -> None:
    walk.follow("7. Test it")


async def test_processes_on_redis_reach_each_other(walk: Walkthrough, layer: Redis) -> None:
    await asyncio.to_thread(walk.follow, "Several processes")
    uvicorn, daphne = walk.replaced["8000"], walk.replaced["8001"]
    visitor = await ada(uvicorn)
    async with visitor.connect("/ws/") as one, visitor.connect("/ws/", int(daphne)) as two:
        await assert_pay_arrives(visitor, one, two)
        await one.subscribe("heartbeat")
        await one.beat()  # the one that greets
        await one.beat()  # and one that somebody broadcasts
    for port in (uvicorn, daphne):
        page = await asyncio.to_thread(ask, int(port), "/realtime/readyz")
        assert (page.status, json.loads(page.text)["status"]) == (200, "ok")


async def test_pages_of_a_wsgi_process_publish_to_an_asgi_process(walk: Walkthrough) -> None:
    await asyncio.to_thread(walk.follow, "WSGI for the pages")
    visitor = await ada(walk.replaced["8000"])
    async with visitor.connect("/ws/", int(walk.replaced["8001"])) as client:
        await assert_pay_arrives(visitor, client)


async def test_websockets_of_the_sites_own_stay(walk: Walkthrough) -> None:
    await asyncio.to_thread(walk.follow, "WebSockets of your own")
    visitor = await ada(walk.replaced["8000"])
    async with visitor.connect("/ws/") as client, visitor.connect("/ws/shout/") as own:
        await assert_pay_arrives(visitor, client)
        await own.send("hello")
        assert await own.ws.recv() == "ada: HELLO"


async def test_prefix_and_log_are_as_the_page_says(walk: Walkthrough) -> None:
    await asyncio.to_thread(walk.follow, "When it does not work", "Below a prefix")
    visitor = await ada(walk.replaced["8000"])
    page = await asyncio.to_thread(visitor.open, ORDER)
    assert 'data-realtime-url="/shop/ws/"' in page.text
    async with visitor.connect("/ws/") as client:
        await assert_pay_arrives(visitor, client)
    walk.running["daphne"].wait_for_line("event=disconnected")


def test_page_names_every_check_that_there_is() -> None:
    ids = re.compile(r"realtime\.[EW]\d{3}")
    assert set(ids.findall(PAGE.read_text())) == set(ids.findall((ROOT / "realtime" / "checks.py").read_text()))


def test_everything_on_the_page_is_followed() -> None:
    followed = re.findall(r'"([^"\n]+)"', Path(__file__).read_text())
    assert {block.heading for block in blocks_of(PAGE)} <= {*followed, "nginx in front"}
