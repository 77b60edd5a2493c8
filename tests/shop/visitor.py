"""Somebody who visits a site with a browser, as far as cookies and forms go."""

from __future__ import annotations

import http.client
import urllib.parse
from http.cookies import SimpleCookie
from typing import NamedTuple

from ..live import TIMEOUT, Client


class Page(NamedTuple):
    """Hold a response."""

    status: int
    headers: http.client.HTTPMessage
    text: str


def ask(port: int, path: str, body: str | None = None, headers: dict[str, str] | None = None) -> Page:
    """Return what a page answers with to GET, or with a body to POST; a redirect as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    try:
        connection.request("GET" if body is None else "POST", path, body, headers or {})
        response = connection.getresponse()
        return Page(response.status, response.headers, response.read().decode())
    finally:
        connection.close()


class Visitor:
    """Visit the site on a port. A subclass says what a proxy in front makes of paths."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.cookies: dict[str, str] = {}

    def passed_on(self, path: str) -> str:
        """Return what the server is asked for where the browser asks for ``path``."""
        return path

    @property
    def headers(self) -> dict[str, str]:
        return {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}

    def open(self, path: str, **form: str) -> Page:
        """Open a page, or send it a form."""
        headers = {**self.headers, "X-CSRFToken": self.cookies.get("csrftoken", "")}
        if form:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        body = urllib.parse.urlencode(form) if form else None
        page = ask(self.port, self.passed_on(path), body, headers)
        for line in page.headers.get_all("Set-Cookie", []):
            for name, morsel in SimpleCookie(line).items():
                self.cookies[name] = morsel.value
                if not morsel.value:
                    del self.cookies[name]
        return page

    def sign_in(self, path: str, username: str, password: str) -> None:
        """Fill in the form on a login page. Raises ``AssertionError`` where that leads nowhere."""
        self.open(path)
        page = self.open(path, username=username, password=password)
        assert page.status == 302, page

    def connect(self, path: str, port: int | None = None) -> Client:
        """Return a client that connects to ``path``, of another server's ``port`` if need be, with the cookies."""
        return Client(f"ws://127.0.0.1:{port or self.port}{path}", additional_headers=self.headers)
