"""Put the browser client into a page: ``{% load realtime %}{% realtime_client %}``."""

from __future__ import annotations

import re
from typing import Any

from django import template
from django.templatetags.static import static
from django.urls import get_script_prefix
from django.utils.html import format_html
from django.utils.safestring import SafeString

register = template.Library()

MODULE = "realtime/realtime.js"
ABSOLUTE = re.compile(r"(wss?:|https?:)?//", re.IGNORECASE)


@register.simple_tag(takes_context=True)
def realtime_client(context: template.Context, path: str = "/ws/") -> SafeString:
    """
    Load the browser client, and tell its ``connect()`` where this page connects to. There is no inline script.

    ``path`` is one of those that ``with_realtime`` serves, below the prefix that the site is mounted at, or a whole
    URL such as ``wss://example.com/ws/``. The nonce is that of ``csp_nonce`` in the context (Django 6) or on the
    request (django-csp), where there is one.
    """
    url = path if ABSOLUTE.match(path) else get_script_prefix() + path.lstrip("/")
    nonce = _nonce(context)
    attribute = "" if nonce is None else format_html(' nonce="{}"', str(nonce))
    return format_html(
        '<link rel="modulepreload" href="{module}"{nonce}>\n'
        '<script type="module" src="{module}" data-realtime-url="{url}"{nonce}></script>',
        module=static(MODULE),
        url=url,
        nonce=attribute,
    )


def _nonce(context: template.Context) -> Any:
    """Return the nonce, or None. One that nobody has asked for yet is false, and made when it becomes a string."""
    nonce = context.get("csp_nonce")
    return getattr(context.get("request"), "csp_nonce", None) if nonce is None else nonce
