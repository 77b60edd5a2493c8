"""Topics of every kind, for tests over real connections."""

import asyncio
import threading

from realtime import Topic


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
stuck_thread = Topic("stuck-thread", authorize=_stick_thread)
