"""Faults of the handshake."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ..frames import Handshake
from .base import HandshakeFault, Seconds


class Refuse(HandshakeFault):
    """
    The handshake is answered with `status` instead of 101, and with `Retry-After` where `retry_after` is given;
    401 comes with `WWW-Authenticate`.

    Comes back with backoff after 429 and 5xx, not before `Retry-After`; after 401 and 403 it stays away until it
    has other credentials, and shows why. (Browsers do not show scripts the status: to them it is 1006.)
    """

    fault: Literal["refuse"] = "refuse"
    status: Annotated[int, Field(ge=400, le=599)] = 503
    """The status: 401, 403, 429, 503, or any other from 400 to 599."""
    retry_after: Annotated[int, Field(ge=0, le=86_400)] | None = None
    """Seconds for the header `Retry-After`; null for none."""
    body: Annotated[str, Field(max_length=4096)] = ""
    """The body of the answer, as plain text."""

    def answer(self) -> Handshake:
        headers = [("Content-Type", "text/plain; charset=utf-8")] if self.body else []
        if self.status == 401:  # RFC 9110, section 15.5.2: it must
            headers.append(("WWW-Authenticate", "Bearer"))
        if self.retry_after is not None:
            headers.append(("Retry-After", str(self.retry_after)))
        return Handshake(status=self.status, headers=tuple(headers), body=self.body.encode())


class WrongSubprotocol(HandshakeFault):
    """
    The handshake is answered with 101 and a `Sec-WebSocket-Protocol` that the client has not asked for.

    Fails the connection (RFC 6455, section 4.1) before it sends anything, and says which subprotocol came.
    """

    fault: Literal["wrong-subprotocol"] = "wrong-subprotocol"
    subprotocol: Annotated[str, Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}$")] = "other.v1"
    """The subprotocol, a token as RFC 6455 has it."""

    def answer(self) -> Handshake:
        return Handshake(subprotocol=self.subprotocol)


class SlowAccept(HandshakeFault):
    """
    The handshake is answered as ever, but only after `seconds`.

    Waits while its own timeout for opening lasts, then gives up and tries again with backoff.
    """

    fault: Literal["slow-accept"] = "slow-accept"
    seconds: Seconds = 5.0
    """How long it takes."""

    def answer(self) -> Handshake:
        return Handshake(delay=self.seconds)


class NeverAnswer(HandshakeFault):
    """
    The TCP connection is accepted and the request read, and nothing ever comes.

    Has a timeout for opening, drops the connection and tries again with backoff.
    """

    fault: Literal["never-answer"] = "never-answer"

    def answer(self) -> Handshake:
        return Handshake(never=True)
