"""Redis as the channel layer, from a URL or two."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import traceback
from typing import Any

import pytest
from channels.layers import ChannelLayerManager
from channels_redis.pubsub import RedisPubSubChannelLayer
from channels_redis.utils import create_pool
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.sentinel import SentinelManagedConnection
from redis.exceptions import ConnectionError as RedisConnectionError

from realtime.redis import redis_layer, split_urls

SENTINEL = {"sentinels": [("10.0.0.1", 26379), ("10.0.0.2", 26379)], "master_name": "main"}
TOO_LONG = 2 * 3600
"""Seconds after which Linux looks for the first time whether a silent peer is still there."""


def hosts(*given: Any) -> list[dict[str, Any]]:
    """Return the hosts as the channel layer is given them."""
    entries: list[dict[str, Any]] = redis_layer(*given)["CONFIG"]["hosts"]
    return entries


def connection(*given: Any) -> Any:
    """Return the connection object that redis-py makes for one host, without connecting."""
    [entry] = hosts(*given)
    return create_pool(entry).make_connection()


# URLs


def test_one_url_is_one_host() -> None:
    [entry] = hosts("redis://localhost:6379/0")
    assert entry["address"] == "redis://localhost:6379/0"


@pytest.mark.parametrize(
    ("urls", "expected"),
    [
        ("redis://a", ["redis://a"]),
        ("redis://a,redis://b", ["redis://a", "redis://b"]),
        ("redis://a:1/3,rediss://b:2/3,unix:///c?db=3", ["redis://a:1/3", "rediss://b:2/3", "unix:///c?db=3"]),
        (" redis://a ,redis://b ", ["redis://a", "redis://b"]),
        ("redis://a, redis://b", ["redis://a", "redis://b"]),
        ("redis://a,\n  redis://b", ["redis://a", "redis://b"]),
        ("redis://:p,w@a,redis://b", ["redis://:p,w@a", "redis://b"]),
        ("redis://:,@a,redis://u:x,y,z@b", ["redis://:,@a", "redis://u:x,y,z@b"]),
        ("unix:///tmp/a,b.sock", ["unix:///tmp/a,b.sock"]),
    ],
)
def test_urls_are_split_at_the_commas_between_them(urls: str, expected: list[str]) -> None:
    assert split_urls(urls) == expected


url = st.builds(
    "{}://{}:{}@{}:{}/{}".format,
    st.sampled_from(["redis", "rediss"]),
    st.text("abc", max_size=3),
    st.text("abc,;:!$&'()*+-._~%20", max_size=8),
    st.sampled_from(["localhost", "10.0.0.1", "[::1]"]),
    st.integers(1, 65535),
    st.just(2),
)


@given(st.lists(url, min_size=1, max_size=4))
def test_urls_that_are_joined_by_commas_are_split_into_the_same(urls: list[str]) -> None:
    assert split_urls(",".join(urls)) == urls
    assert [entry["address"] for entry in hosts(",".join(urls))] == urls


@pytest.mark.parametrize(
    "given",
    [
        ("redis://a", "redis://b", "rediss://c"),
        ("redis://a,redis://b,rediss://c",),
        ("redis://a,redis://b", "rediss://c"),
    ],
)
def test_several_urls_are_hosts_in_the_same_order(given: tuple[str, ...]) -> None:
    assert [entry["address"] for entry in hosts(*given)] == ["redis://a", "redis://b", "rediss://c"]


def test_url_with_a_comma_in_its_password_connects_with_that() -> None:
    made = connection("redis://user:p,w,@host:1234/0")
    assert (made.host, made.port, made.username, made.password) == ("host", 1234, "user", "p,w,")


def test_url_says_where_to_connect() -> None:
    made = connection("redis://user:p%40w@host:1234/5")
    assert type(made) is Connection
    assert (made.host, made.port, made.db, made.username, made.password) == ("host", 1234, 5, "user", "p@w")


def test_url_by_itself_is_redis_on_this_machine() -> None:
    made = connection("redis://")
    assert (made.host, made.port, made.db) == ("localhost", 6379, 0)


def test_url_of_tls_connects_over_tls() -> None:
    made = connection("rediss://host:1234?ssl_ca_certs=/certs/ca.pem")
    assert type(made) is SSLConnection
    assert (made.host, made.port, made.ca_certs) == ("host", 1234, "/certs/ca.pem")
    assert made.ssl_context.cert_reqs == ssl.CERT_REQUIRED


def test_url_of_a_socket_connects_to_that() -> None:
    made = connection("unix:///run/redis.sock?db=5")
    assert type(made) is UnixDomainSocketConnection
    assert (made.path, made.db) == ("/run/redis.sock", 5)


@pytest.mark.parametrize("given", ["unix:///run/redis.sock", {"address": "unix:///run/redis.sock"}])
def test_socket_is_not_kept_alive_as_it_knows_no_such_options(given: Any) -> None:
    [entry] = hosts(given)
    assert [key for key in entry if "keepalive" in key] == []
    made = ConnectionPool.from_url(entry.pop("address"), **entry).make_connection()
    assert type(made) is UnixDomainSocketConnection


def test_path_of_a_socket_in_a_dict_connects_to_that() -> None:
    made = connection({"path": "/run/redis.sock", "connection_class": UnixDomainSocketConnection})
    assert type(made) is UnixDomainSocketConnection
    assert made.path == "/run/redis.sock"


# What holds up an outage for how long


@pytest.mark.parametrize("url", ["redis://host", "rediss://host", "unix:///run/redis.sock"])
def test_connection_waits_for_nothing_for_long(url: str) -> None:
    made = connection(url)
    assert 0 < made.socket_connect_timeout <= 2
    assert 0 < made.socket_timeout <= 5
    assert 0 < made.health_check_interval <= 10


@pytest.mark.parametrize("url", ["redis://host", "rediss://host"])
def test_peer_that_is_gone_is_found_out_soon(url: str) -> None:
    made = connection(url)
    assert made.socket_keepalive
    options = made.socket_keepalive_options
    silence = options[socket.TCP_KEEPIDLE] + options[socket.TCP_KEEPINTVL] * options[socket.TCP_KEEPCNT]
    assert silence == 25 < TOO_LONG


def test_keepalive_options_are_those_that_the_system_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "TCP_KEEPIDLE")
    [entry] = hosts("redis://host")
    assert entry["socket_keepalive_options"] == {socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}


async def test_what_fails_is_tried_once_more_and_at_once() -> None:
    made = connection("redis://host")
    tries = []

    async def connect() -> None:
        tries.append(1)
        raise RedisConnectionError

    async def failed(error: Exception) -> None: ...

    with pytest.raises(RedisConnectionError):
        await made.retry.call_with_retry(connect, failed)
    assert len(tries) == 2
    assert made.retry._backoff.compute(1) == 0


# Dicts


def test_dict_is_taken_as_channels_redis_takes_it() -> None:
    made = connection({"host": "10.0.0.1", "port": 1234, "password": "secret"})
    assert (made.host, made.port, made.password, made.socket_connect_timeout) == ("10.0.0.1", 1234, "secret", 2)


def test_dict_that_is_given_is_left_as_it_is() -> None:
    mine = {**SENTINEL, "db": 3}
    before = dict(mine)
    redis_layer(mine)
    assert mine == before


@pytest.mark.parametrize(
    "mine",
    [
        {"socket_timeout": None},
        {"socket_connect_timeout": 0.5, "health_check_interval": 0},
        {"retry": None},
        {"socket_keepalive": False},
        {"socket_keepalive_options": {}},
    ],
    ids=repr,
)
def test_own_options_win_over_the_defaults(mine: dict[str, Any]) -> None:
    [entry] = hosts({"address": "redis://host", **mine})
    assert {key: entry[key] for key in mine} == mine
    assert set(entry) == set(hosts("redis://host")[0])


def test_options_in_the_url_win_over_the_defaults() -> None:
    made = connection("redis://host?socket_timeout=7&health_check_interval=3")
    assert (made.socket_timeout, made.health_check_interval, made.socket_connect_timeout) == (7, 3, 2)


def test_sentinels_are_asked_for_the_master_and_not_for_long() -> None:
    [entry] = hosts(SENTINEL)
    pool = create_pool(entry)
    made = pool.make_connection()
    assert type(made) is SentinelManagedConnection
    assert pool.service_name == "main"
    assert (made.socket_timeout, made.socket_connect_timeout, made.socket_keepalive) == (5, 2, True)
    asked = [sentinel.connection_pool.make_connection() for sentinel in pool.sentinel_manager.sentinels]
    assert [(one.host, one.port) for one in asked] == SENTINEL["sentinels"]
    assert {(one.socket_timeout, one.socket_connect_timeout) for one in asked} == {(1, 1)}


def test_own_options_for_the_sentinels_win() -> None:
    [entry] = hosts({**SENTINEL, "sentinel_kwargs": {"password": "secret"}})
    assert entry["sentinel_kwargs"] == {"password": "secret"}


def test_hosts_without_sentinels_have_no_options_for_them() -> None:
    assert "sentinel_kwargs" not in hosts("redis://host")[0]


def test_hosts_may_be_of_every_kind() -> None:
    kinds = ["redis://a,rediss://b", {"host": "c"}, SENTINEL, "unix:///d"]
    made = [create_pool(entry).make_connection() for entry in hosts(*kinds)]
    assert [type(one) for one in made] == [
        Connection,
        SSLConnection,
        Connection,
        SentinelManagedConnection,
        UnixDomainSocketConnection,
    ]


# Database numbers


@pytest.mark.parametrize(
    ("given", "prefix"),
    [
        (["redis://host"], "asgi"),
        (["redis://host/0"], "asgi"),
        (["redis://host/7"], "asgi.7"),
        (["redis://host?db=7"], "asgi.7"),
        (["redis://host/3?db=7"], "asgi.7"),
        (["unix:///run/redis.sock?db=7"], "asgi.7"),
        ([{"host": "a", "db": 7}], "asgi.7"),
        ([{"host": "a", "db": "7"}], "asgi.7"),
        ([{**SENTINEL, "db": 7}], "asgi.7"),
        ([{"address": "redis://a", "db": 7}], "asgi.7"),
        ([{"address": "redis://a/7", "db": 3}], "asgi.7"),
        (["redis://a/7,redis://b/7", {"host": "c", "db": 7}], "asgi.7"),
        (["redis://a,redis://b/0", {"host": "c"}], "asgi"),
    ],
)
def test_database_number_tells_sites_apart(given: list[Any], prefix: str) -> None:
    assert redis_layer(*given)["CONFIG"]["prefix"] == prefix
    assert {create_pool(entry).make_connection().db for entry in hosts(*given)} <= {int(prefix[5:] or 0), prefix[5:]}


@pytest.mark.parametrize(("database", "prefix"), [("", "shop"), ("/0", "shop"), ("/7", "shop.7")])
def test_own_prefix_tells_sites_apart_and_so_does_the_database_number(database: str, prefix: str) -> None:
    assert redis_layer(f"redis://host{database}", prefix="shop")["CONFIG"]["prefix"] == prefix
    assert redis_layer("redis://a/7", "redis://b/7", prefix="shop")["CONFIG"]["prefix"] == "shop.7"


@pytest.mark.parametrize(
    "given",
    [
        ["redis://a/1,redis://b/2"],
        ["redis://a", "redis://b/1"],
        ["redis://a/1", {"host": "b"}],
        [{"host": "a", "db": 1}, {**SENTINEL, "db": 2}],
        ["redis://a/1", "unix:///run/redis.sock?db=2"],
    ],
)
def test_database_numbers_that_differ_are_refused(given: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"all shards must have the same database number, and not \[\d, \d\]"):
        redis_layer(*given)


# What is no URL


@pytest.mark.parametrize(
    "url",
    ["", "localhost", "localhost:6379", "http://host", "//host", "redis://host:99999"],
)
def test_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="a Redis URL cannot be read"):
        redis_layer(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://:sesame@host",
        "redis://:sesame@host:port",
        "redis://:sesame@host:99999",
        "redis://:sesame@host/?db=many",
        "redis://:sesame@host?socket_timeout=long",
        "redis://:sesame#1@host:6379/0",
        "redis://user:sesame/1@host:6379/0",
        "redis://:sesame?@host:6379",
        "redis://:[sesame]@host:6379",
        "redis://:sesame]@host:6379",
        "redis://:sesame\u2100@host:6379",
    ],
)
def test_url_that_cannot_be_read_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match="a Redis URL cannot be read") as refusal:
        redis_layer("redis://fine", url)
    assert "sesame" not in "".join(traceback.format_exception(refusal.value))


# As settings use it


async def test_layer_can_be_made_from_it(settings: Any) -> None:
    settings.CHANNEL_LAYERS = {"default": redis_layer("redis://127.0.0.1:1/3,redis://127.0.0.1:2/3")}
    layer = ChannelLayerManager()["default"]
    assert isinstance(layer, RedisPubSubChannelLayer)
    assert layer.prefix == "asgi.3"
    assert len(layer._shards) == 2


def test_it_imports_neither_django_nor_channels() -> None:
    code = (
        "import sys; from realtime.redis import redis_layer; redis_layer('redis://a,unix:///b', {'host': 'c'});"
        "print({name.split('.')[0] for name in sys.modules} & {'django', 'channels', 'channels_redis', 'asgiref'})"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("set()\n", 0), done.stderr


def test_import_of_it_imports_no_redis() -> None:
    code = "import sys, realtime.redis; print('redis' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("False\n", 0), done.stderr
