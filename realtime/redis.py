"""
Redis as the channel layer, for a site's settings: ``CHANNEL_LAYERS = {"default": redis_layer("redis://localhost")}``.

This imports nothing of Django's, as settings must not.
"""

from __future__ import annotations

import re
import socket
from typing import Any

SHARD_SEPARATOR = re.compile(r",\s*(?=\w+://)")
"""A comma between two URLs; one in a password stays."""
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""A peer that is gone without a word is found out after 25 s, and not after two hours."""


def split_urls(urls: str) -> list[str]:
    """Return each of the URLs in ``urls``, which are separated by commas."""
    return [url.strip() for url in SHARD_SEPARATOR.split(urls)]


def redis_layer(host: str | dict[str, Any], *more: str | dict[str, Any], prefix: str = "asgi") -> dict[str, Any]:
    """
    Return an entry of ``CHANNEL_LAYERS``: the pub/sub layer on Redis, which no outage of Redis holds up for long.

    A host is a URL as redis-py takes them, ``redis://user:password@host:6379/0``, ``rediss://`` for TLS (with
    ``?ssl_ca_certs=/path``), or ``unix:///path/to/socket?db=0``; or it is a dict as channels_redis takes them, which
    Sentinel needs: ``{"sentinels": [("10.0.0.1", 26379)], "master_name": "main"}``. Of several hosts, or of several
    URLs with commas between them, each carries the topics that fall to it: every process of the site must be given the
    same in the same order. ``prefix`` keeps sites apart that share a Redis. So do database numbers, as the prefix gets
    them as well: PUBLISH itself reaches every database.

    Raises ``ValueError`` for a URL that is none.
    """
    hosts = [one for each in (host, *more) for one in (split_urls(each) if isinstance(each, str) else [each])]
    entries = [_entry(one) for one in hosts]
    databases = {_database(entry) for entry in entries}
    if len(databases) > 1:
        raise ValueError(f"all shards must have the same database number, and not {sorted(databases)}")
    [database] = databases
    config = {"hosts": entries, "prefix": f"{prefix}.{database}" if database else prefix}
    return {"BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer", "CONFIG": config}


def _entry(host: str | dict[str, Any]) -> dict[str, Any]:
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    entry: dict[str, Any] = {
        "socket_connect_timeout": 2,
        "socket_timeout": 5,
        "health_check_interval": 10,
        "retry": Retry(NoBackoff(), 1),  # a pooled connection that died is found out by using it
    }
    if isinstance(host, str):
        entry["address"] = host
    else:
        entry |= host
    if not str(entry.get("address", "")).startswith("unix:") and "path" not in entry:
        entry.setdefault("socket_keepalive", True)
        entry.setdefault(
            "socket_keepalive_options",
            {getattr(socket, name): value for name, value in KEEPALIVE.items() if hasattr(socket, name)},
        )
    if "sentinels" in entry:
        entry.setdefault("sentinel_kwargs", {"socket_connect_timeout": 1, "socket_timeout": 1})
    return entry


def _database(entry: dict[str, Any]) -> int:
    from redis.asyncio.connection import parse_url

    if "address" not in entry:
        return int(entry.get("db", 0))
    try:
        return int(parse_url(entry["address"]).get("db", entry.get("db", 0)))
    except ValueError:  # which may tell parts of the password
        raise ValueError(
            "a Redis URL cannot be read: it begins with redis://, rediss:// or unix://, and what is no letter or digit "
            "in a password has to be percent-encoded"
        ) from None
