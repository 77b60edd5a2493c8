"""
The exceptions that realtime raises on purpose.

    RealtimeError
    ├── LayerUnavailable     the channel layer did not take an event in time
    ├── RequestError         a client's frame is no request (protocol.py turns it into an answer)
    ├── RequestRefused       a site's handler refuses a request, with a code of its own
    ├── ThreadsBusy          every thread for synchronous code is taken
    └── UnknownTopic         no topic of that name is declared (also a LookupError)
"""

from __future__ import annotations


class RealtimeError(Exception):
    """Be the base of what realtime raises on purpose."""


class LayerUnavailable(RealtimeError):
    """Say that the channel layer failed, or took longer than it may; nothing is known to have been sent."""


class RequestError(RealtimeError):
    """
    Say why a client's frame is not a request.

    ``code`` is an ``ErrorCode`` of the protocol; ``req_id`` the request's id where one could be read.
    """

    def __init__(self, code: str, message: str, req_id: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.req_id = req_id


class RequestRefused(RealtimeError):
    """
    Refuse a request: raise it in a handler to answer with an error.

    ``code`` is for programs, such as ``SOLD_OUT``; ``message`` for people.
    """

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message or code.replace("_", " ").lower()


class ThreadsBusy(RealtimeError):
    """Say that all ``SYNC_THREADS`` threads are busy, so that synchronous code cannot be run now."""


class UnknownTopic(RealtimeError, LookupError):
    """Say that no topic of this name is declared."""
