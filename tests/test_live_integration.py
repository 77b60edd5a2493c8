"""Realtime in somebody else's site: a shop with its own users, prefix and WebSockets, from an installed wheel."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from .live import SERVERS, Client, Redis, eventually
from .shop.installed import Installation, ShopServer, Site, build_wheel
from .shop.visitor import Visitor, ask

PREFIX = "/shop"
ENDED = (1008, "session ended")
PASSWORD = "correct horse battery"
PREPARE = f"""
import json, io, realtime
from accounts.models import ApiToken, User
from orders.models import Order

call_command("migrate", verbosity=0)
ada = User.objects.create_user("ada@example.com", "{PASSWORD}")
User.objects.create_user("bob@example.com", "{PASSWORD}")
User.objects.create_superuser("root@example.com", "{PASSWORD}")
ApiToken.objects.create(key="ada-token", user=ada)
Order.objects.create(customer=ada, cents=1999)
Order.objects.create(customer=ada, cents=500)
key = io.StringIO()
call_command("publish_key", "issue", "billing", "--topics", "orders.*", stdout=key)
print(json.dumps({{"ada": str(ada.pk), "key": key.getvalue().strip(), "realtime": realtime.__file__}}))
"""
COMMANDS = """
call_command("check", fail_level="DEBUG")
call_command("check", deploy=True, tags=["realtime"], fail_level="DEBUG")
call_command("makemigrations", check_changes=True, dry_run=True)
call_command("migrate", check_unapplied=True)
call_command("collectstatic", interactive=False)
"""


@pytest.fixture(scope="module")
def installations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Installation]]:
    """The wheel in two environments, installed at the same time: with the pinned Django, and with the newest."""
    directory = tmp_path_factory.mktemp("installed")
    wheel = build_wheel(directory)
    found = {"pinned": Installation(directory / "pinned", wheel)}
    found["newest"] = Installation(directory / "newest", wheel, newest_django=True)
    try:
        for installation in found.values():
            installation.wait()
        yield found
    finally:
        for installation in found.values():
            installation.stop()


@pytest.fixture(scope="module")
def layer() -> Iterator[Redis]:
    """The Redis that all shops here share."""
    redis = Redis()
    try:
        yield redis
    finally:
        redis.stop()


@pytest.fixture(scope="module", params=["pinned", "newest"])
def site(
    request: pytest.FixtureRequest,
    installations: dict[str, Installation],
    layer: Redis,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    """The shop, with people and orders in its database."""
    site = Site(installations[request.param], tmp_path_factory.mktemp("shop"), layer.url)
    try:
        site.facts.update(json.loads(site.script(PREPARE)))
        assert site.facts["realtime"].startswith(str(site.installation.directory))
        yield site
    finally:
        site.stop()


class Shop(NamedTuple):
    """Hold the shop's servers: ASGI's two, and one that serves pages alone."""

    site: Site
    daphne: ShopServer
    uvicorn: ShopServer
    wsgi: ShopServer


@pytest.fixture(scope="module")
def shop(site: Site) -> Shop:
    """The shop's servers, all below the prefix."""
    servers = [site.serve(kind, "--root-path", PREFIX) for kind in SERVERS]
    servers.append(site.serve("wsgi", SHOP_SCRIPT_NAME=PREFIX))
    return Shop(site, *(server.wait_until_up() for server in servers))


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, shop: Shop) -> ShopServer:
    """One of the servers that take WebSockets."""
    return getattr(shop, request.param)


class Shopper(Visitor):
    """Visit the shop through a proxy, which takes the prefix away where that suits the server."""

    def __init__(self, server: ShopServer) -> None:
        super().__init__(server.port)
        self.server = server

    def passed_on(self, path: str) -> str:
        return passed_on(self.server, path)

    def enter(self, server: ShopServer | None = None, path: str = "/shop/ws/") -> Client:
        """Return a client that connects with the cookies to this server, or to another."""
        server = server or self.server
        return self.connect(passed_on(server, path), server.port)


def passed_on(server: ShopServer, path: str) -> str:
    """Return what a proxy asks ``server`` for: uvicorn adds the prefix itself, and WSGI is not told of it."""
    return path if server.kind == "daphne" else path.removeprefix(PREFIX)


async def shopper(server: ShopServer, email: str | None = None) -> Shopper:
    shopper = Shopper(server)
    if email is not None:
        await asyncio.to_thread(shopper.sign_in, "/shop/login/", email, PASSWORD)
    return shopper


async def change_status(shopper: Shopper, order: int, status: str, **form: str) -> int:
    """Give an order another status, and return the page's."""
    page = await asyncio.to_thread(shopper.open, f"/shop/orders/{order}/status/", status=status, **form)
    return page.status


async def watch(client: Client, order: int) -> str:
    """Subscribe to an order, and return its status in the snapshot."""
    await client.subscribe(f"orders.{order}")
    [event] = await client.publications(1)
    return str(event["status"])


async def refusal(client: Client, topic: str) -> str:
    """Return the code with which a subscription is refused."""
    answer = await client.ask({"type": "subscribe_request", "topic": topic})
    return str(answer["error"]["code"])


def test_management_commands_find_nothing_to_complain_of(site: Site) -> None:
    said = site.script(COMMANDS)
    assert said.count("System check identified no issues") == 2
    assert "No changes detected" in said
    assert (site.directory / "assets/realtime/realtime.js").exists()


async def test_customer_sees_own_orders_and_nobody_elses(server: ShopServer) -> None:
    ada, bob, nobody = [await shopper(server, who) for who in ("ada@example.com", "bob@example.com", None)]
    async with ada.enter() as hers, bob.enter() as his, nobody.enter() as nobodys:
        assert await watch(hers, 2) == "new"
        assert await refusal(his, "orders.2") == "FORBIDDEN"
        assert await refusal(nobodys, "orders.2") == "FORBIDDEN"
        assert await refusal(hers, "orders.99") == "FORBIDDEN"
        assert await refusal(hers, "orders.02") == "TOPIC_NOT_FOUND"


async def test_token_lets_a_program_in(server: ShopServer) -> None:
    url = f"ws://127.0.0.1:{server.port}{passed_on(server, '/shop/ws/')}"
    async with Client(url, additional_headers={"Authorization": "Bearer ada-token"}) as program:
        assert await watch(program, 2) == "new"
    async with Client(url, additional_headers={"Authorization": "Bearer another"}) as stranger:
        assert await stranger.closed() == (1008, "token refused")


async def test_view_publishes_on_commit_to_every_server(shop: Shop, server: ShopServer) -> None:
    ada = await shopper(server, "ada@example.com")
    async with ada.enter(shop.daphne) as one, ada.enter(shop.uvicorn) as two:
        for client in (one, two):
            await watch(client, 1)
        assert await change_status(ada, 1, "paid") == 302
        for client in (one, two):
            assert await client.publications(1) == [{"status": "paid"}]


async def test_view_publishes_nothing_after_a_rollback(shop: Shop, server: ShopServer) -> None:
    ada = await shopper(server, "ada@example.com")
    async with ada.enter(shop.daphne) as one, ada.enter(shop.uvicorn) as two:
        for client in (one, two):
            await watch(client, 1)
        assert await change_status(ada, 1, "lost", fail="yes") == 500
        assert await change_status(ada, 1, "sent") == 302
        for client in (one, two):
            assert await client.publications(1) == [{"status": "sent"}]


async def test_wsgi_process_publishes_to_servers_of_websockets(shop: Shop) -> None:
    ada = await shopper(shop.wsgi, "ada@example.com")
    async with ada.enter(shop.daphne) as one, ada.enter(shop.uvicorn) as two:
        for client in (one, two):
            await watch(client, 1)
            await client.subscribe("closing-time")
        assert await change_status(ada, 1, "lost", fail="yes") == 500
        assert await change_status(ada, 1, "paid", tell="yes") == 302
        for client in (one, two):
            # At once, as it does not wait for the commit.
            assert await client.publications(2) == [{"minutes": 10}, {"status": "paid"}]


async def test_topic_of_a_uuid_is_that_users_own(server: ShopServer) -> None:
    ada, bob = [await shopper(server, f"{name}@example.com") for name in ("ada", "bob")]
    topic = f"customers.{server.site.facts['ada']}"
    async with ada.enter() as hers, bob.enter() as his:
        await hers.subscribe(topic)
        assert await refusal(his, topic) == "FORBIDDEN"
        assert await change_status(ada, 2, "new", tell="yes") == 302
        assert await hers.publications(1) == [{"order": 2}]


async def test_request_of_the_shops_own_is_answered_for_the_caller(server: ShopServer) -> None:
    ada = await shopper(server, "ada@example.com")
    async with ada.enter() as client:
        answer = await client.ask({"type": "spent_request", "reqId": "1", "status": "new"})
        assert answer["data"] == {"email": "ada@example.com", "cents": 500}
        answer = await client.ask({"type": "spent_request", "reqId": "2", "status": "eaten"})
        assert answer["error"] == {"code": "NO_SUCH_STATUS", "message": "an order is never eaten"}
    async with (await shopper(server)).enter() as client:
        answer = await client.ask({"type": "spent_request", "reqId": "3", "status": "new"})
        assert answer["error"]["code"] == "FORBIDDEN"


async def test_shops_own_consumer_works_beside_it(shop: Shop, server: ShopServer) -> None:
    ada, bob = [await shopper(server, f"{name}@example.com") for name in ("ada", "bob")]
    chat = "/shop/ws/chat/"
    async with ada.enter(path=chat) as hers, bob.enter(shop.uvicorn, path=chat) as his:
        await hers.send({"text": "hello"})
        for client in (hers, his):
            assert await client.receive() == {"from": "ada@example.com", "text": "hello"}


@pytest.mark.parametrize("where", ["server", "wsgi"])
async def test_signing_out_closes_the_sessions_connections(shop: Shop, server: ShopServer, where: str) -> None:
    here = server if where == "server" else shop.wsgi
    leaving, staying = await shopper(here, "ada@example.com"), await shopper(here, "ada@example.com")
    leave = (leaving.enter(shop.daphne), leaving.enter(shop.uvicorn))
    async with leave[0] as one, leave[1] as two, staying.enter(server) as other:
        for client in (one, two, other):
            await watch(client, 1)
        await asyncio.to_thread(leaving.open, "/shop/logout/", next="")
        assert [await one.closed(), await two.closed()] == [ENDED, ENDED]
        await other.echo()


async def test_page_says_where_to_connect_below_the_prefix(shop: Shop, server: ShopServer) -> None:
    for ada in (await shopper(server, "ada@example.com"), await shopper(shop.wsgi, "ada@example.com")):
        page = await asyncio.to_thread(ada.open, "/shop/orders/1/")
        found = re.search(r'src="(\S+)" data-realtime-url="(\S+)"', page.text)
        assert found is not None
        assert found.groups() == ("/shop/assets/realtime/realtime.js", "/shop/ws/")
        async with ada.enter(server, path=found[2]) as client:
            assert await watch(client, 1)


async def test_pages_of_realtime_need_no_login_and_the_shops_do(shop: Shop) -> None:
    for server in (shop.daphne, shop.uvicorn, shop.wsgi):
        page = await asyncio.to_thread((await shopper(server)).open, "/shop/orders/1/")
        assert (page.status, page.headers["Location"]) == (302, "/shop/login/?next=/shop/orders/1/")
        page = await asyncio.to_thread((await shopper(server)).open, "/shop/realtime/readyz")
        assert page.headers["X-Powered-By"] == "shop"
        assert (page.status, json.loads(page.text)["status"]) == (200, "ok")


async def test_service_publishes_over_http(server: ShopServer) -> None:
    headers = {"Authorization": f"Bearer {server.site.facts['key']}"}
    ada = await shopper(server, "ada@example.com")
    async with ada.enter() as client:
        await watch(client, 1)
        body = json.dumps({"topic": "orders.1", "data": {"status": "billed"}})
        page = await asyncio.to_thread(ask, server.port, passed_on(server, "/shop/realtime/publish"), body, headers)
        assert (page.status, json.loads(page.text)) == (200, {"published": 1})
        assert await client.publications(1) == [{"status": "billed"}]


async def test_admin_shows_who_is_connected(server: ShopServer) -> None:
    ada, root = [await shopper(server, f"{name}@example.com") for name in ("ada", "root")]

    def page(path: str) -> str:
        page = root.open(f"/shop/admin/{path}")
        assert page.status == 200, page
        return page.text

    async with ada.enter() as client:
        await watch(client, 1)
        await eventually(lambda: "ada@example.com" in page("realtime/connection/"))
        for path in ("", "realtime/serverprocess/", "realtime/subscription/", "realtime/publishkey/add/"):
            await asyncio.to_thread(page, path)


@pytest.mark.parametrize("site", ["pinned"], indirect=True)
@pytest.mark.parametrize(
    ("kind", "options", "env", "path"),
    [
        pytest.param("daphne", ["--root-path", PREFIX], {}, "/shop/ws/", id="daphne-option-kept"),
        pytest.param("daphne", ["--root-path", PREFIX], {}, "/ws/", id="daphne-option-stripped"),
        pytest.param("uvicorn", ["--root-path", PREFIX], {}, "/ws/", id="uvicorn-option-stripped"),
        pytest.param("uvicorn", [], {"SHOP_SCRIPT_NAME": PREFIX}, "/ws/", id="setting-stripped"),
        pytest.param("uvicorn", [], {"SHOP_SCRIPT_NAME": PREFIX}, "/shop/ws/", id="setting-kept"),
    ],
)
async def test_prefix_is_known_however_it_is_told(
    site: Site, kind: str, options: list[str], env: dict[str, str], path: str
) -> None:
    """Where the site is nothing but ``with_realtime``: a ``URLRouter`` takes of the prefix what Channels does."""
    server = site.serve(kind, *options, application="django_application", **env)
    try:
        await asyncio.to_thread(server.wait_until_up)
        client = Client(f"ws://127.0.0.1:{server.port}{path}", additional_headers={"Authorization": "Bearer ada-token"})
        async with client:
            assert await watch(client, 1)
    finally:
        await asyncio.to_thread(server.process.stop)
