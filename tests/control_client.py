"""A client of the control API for tests, which knows no more than HTTP."""

from __future__ import annotations

import asyncio
import json
from http.client import HTTPConnection
from typing import Any, NamedTuple

from .live import TIMEOUT

JSON = {"Content-Type": "application/json"}


class Answer(NamedTuple):
    """Be an answer to a request."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str, str]:
        """The status, the code and the message of an answer that says what was wrong, and nothing else."""
        assert self.headers["content-type"] == "application/json", self
        assert self.json.keys() == {"code", "message"}, self
        return self.status, self.json["code"], self.json["message"]


class Control:
    """Speak to the control API on a port."""

    def __init__(self, port: int, prefix: str = "/") -> None:
        self._port = port
        self._prefix = prefix

    def session(self, name: str) -> Control:
        return Control(self._port, f"/sessions/{name}/")

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] = JSON, content: bytes | None = None
    ) -> Answer:
        """Return the answer to a request, whose body is JSON, or these bytes."""
        connection = HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT)
        data = json.dumps(body).encode() if content is None and body is not None else content
        try:
            connection.request(method, self._prefix + path, data, headers)
            response = connection.getresponse()
            fields = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, fields, response.read())
        finally:
            connection.close()

    async def request(self, *arguments: Any, **options: Any) -> Answer:
        return await asyncio.to_thread(self.ask, *arguments, **options)

    async def get(self, path: str) -> Any:
        return self._result(await self.request("GET", path))

    async def post(self, path: str, body: Any = None) -> Any:
        return self._result(await self.request("POST", path, body))

    async def put(self, path: str, body: Any) -> Any:
        return self._result(await self.request("PUT", path, body))

    async def delete(self, path: str) -> None:
        assert self._result(await self.request("DELETE", path)) is None

    def _result(self, answer: Answer) -> Any:
        assert answer.status in (200, 204), answer
        return answer.json if answer.status == 200 else None
