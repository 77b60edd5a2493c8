"""What the operator's console in the admin shows beside the registry's rows, put into words for people."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from django.utils import timezone
from django.utils.formats import date_format
from django.utils.timesince import timesince
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from ..conf import get_settings
from ..events import ReportEvent
from ..models import Connection
from ..publishing import CloseOutcome
from ..registry import freshness
from ..topics import Topic, all_topics, find_topic

SILENT = 15
"""Seconds after which a server that has not reported is named."""


# Words


def duration(seconds: float) -> str:
    """Return a time in words: to the second where it is short."""
    if seconds < 100:
        return _("%d s") % max(0, seconds)
    end = datetime.now(UTC)
    return timesince(end - timedelta(seconds=seconds), end)


def date_and_age(moment: datetime, now: datetime) -> str:
    """Return the date of ``moment``, and how long before ``now`` it was."""
    local = timezone.localtime(moment) if timezone.is_aware(moment) else moment
    return f"{date_format(local, 'DATETIME_FORMAT')} ({duration((now - moment).total_seconds())})"


def count_connections(number: int) -> str:
    """Return a number of connections in words."""
    return ngettext("%d connection", "%d connections", number) % number


def count_servers(number: int) -> str:
    """Return a number of servers in words."""
    return ngettext("%d server", "%d servers", number) % number


def describe_freshness() -> str:
    """Return how old the registry's tables are, by the database's clock, and which servers have fallen silent."""
    if not get_settings().CONNECTION_REGISTRY:
        return _("The connection registry is off, so nothing is listed. Closing and the topics page work all the same.")
    servers = freshness()
    if not servers:
        return _("No server has reported yet.")
    reporting = [seconds for _server, seconds in servers if seconds <= SILENT]
    text = _("%(connections)s on %(servers)s, reported %(age)s ago.") % {
        "connections": count_connections(Connection.objects.count()),
        "servers": count_servers(len(servers)),
        "age": duration(max(reporting) if reporting else min(seconds for _server, seconds in servers)),
    }
    if len(reporting) < len(servers):
        silent = (f"{server} ({duration(seconds)})" for server, seconds in servers if seconds > SILENT)
        text += " " + _("Nothing has been heard for a while of: %s.") % ", ".join(silent)
    return text


def describe_outcome(outcome: CloseOutcome, spread: float) -> tuple[str, bool]:
    """Return what came of a close, and whether that is all there is to it."""
    parts = {"connections": count_connections(outcome.connections), "servers": count_servers(outcome.servers)}
    if not outcome.servers:
        text = _("No server answered, so nothing is known to have been closed.")
    elif spread:
        text = _("%(connections)s on %(servers)s: being closed over %(spread)g s.") % {**parts, "spread": spread}
    else:
        text = _("%(connections)s closed on %(servers)s.") % parts
    if outcome.unknown:
        more = ngettext(
            "%d more server did not answer in time: what it did is unknown.",
            "%d more servers did not answer in time: what they did is unknown.",
            outcome.unknown,
        )
        text += " " + more % outcome.unknown
    return text, bool(outcome.servers and not outcome.unknown)


# Topics


class TopicRow(NamedTuple):
    """
    A line in the table of topics.

    ``subscribers`` holds their number on each server, and is empty for a topic with parameters, which stands for many.
    """

    name: str
    audience: str
    published: str
    subscribers: list[int]

    @property
    def total(self) -> int:
        return sum(self.subscribers)


def topic_table(reports: Sequence[ReportEvent]) -> list[TopicRow]:
    """Return a line for every topic that is declared here or subscribed to somewhere."""
    declared = {topic.name: topic for topic in all_topics()}
    found = {(topic, report.server): (number, last) for report in reports for topic, number, last in report.topics}
    now = datetime.now(UTC)
    rows = []
    for name in sorted(declared.keys() | {name for name, _server in found}):
        topic = declared.get(name) or find_topic(name)
        entries = [found.get((name, report.server), (0, 0.0)) for report in reports]
        last = max((last for _number, last in entries), default=0.0)
        published = date_and_age(datetime.fromtimestamp(last, UTC), now) if last else "–"
        stands_for_many = name in declared and declared[name].pattern.parameters
        numbers = [] if stands_for_many else [number for number, _last in entries]
        rows.append(TopicRow(name, describe_audience(topic), published, numbers))
    return rows


def describe_audience(topic: Topic | None) -> str:
    """Return who may subscribe to ``topic``."""
    if topic is None:
        return _("not declared here")
    if topic.public:
        return _("public")
    if topic.authorize is None:
        return _("signed-in users")
    if isinstance(topic.authorize, str):
        return _("permission %s") % topic.authorize
    return _("whom authorize() lets in")
