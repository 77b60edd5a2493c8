"""Topics of every kind, for tests over real connections."""

import asyncio
import os
import threading

from pydantic import BaseModel

from realtime import Topic
from realtime.handlers import request_handler


def _raise(user):
    raise RuntimeError("authorize failed")


async def _hang(user):
    await asyncio.Event().wait()


def _hang_thread(user):
    threading.Event().wait(5)


def _stick_thread(user):
    threading.Event().wait(60)


news = Topic("news", public=True)
odd = Topic("ödd ☂ " + "x" * 200, public=True)
members = Topic("members")
forbidden = Topic("forbidden", authorize=lambda user: False)
raising = Topic("raising", authorize=_raise)
hanging = Topic("hanging", authorize=_hang)
hanging_thread = Topic("hanging-thread", authorize=_hang_thread)
many = [Topic(f"many-{number}", public=True) for number in range(130)]
latest = Topic("latest", public=True, latest=True)
numbers = Topic("numbers", public=True, report_gaps=True)
numbered = Topic("numbers.{name}", public=True, report_gaps=True)
stuck_thread = Topic("stuck-thread", authorize=_stick_thread)


class ComplainRequest(BaseModel):
    what: str


@request_handler("complain_request", public=True)
async def complain(request: ComplainRequest, caller) -> int:
    """Raise what the client sent, as careless code does."""
    return int(ComplainRequest.model_validate({"what": {request.what: 1}}).what)


class ProcessRequest(BaseModel):
    pass


@request_handler("process_request", public=True)
async def process(request: ProcessRequest, caller) -> int:
    """Tell which process serves this connection."""
    return os.getpid()
