"""
The demo's own topic: a small board that everybody who opens the page paints on, and the request to paint a cell.

The cells are in Django's cache. That is Redis where the channel layer is Redis, so that all processes show one board;
else it is this process's memory, and then the in-memory layer reaches no other process either. No database is needed.
The board lasts as long as the cache does, and nothing more is promised.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Annotated, Any, Literal, get_args
from weakref import WeakKeyDictionary

from django.core.cache import cache
from pydantic import BaseModel, Field

from realtime import Caller, RequestRefused, Topic, request_handler

logger = logging.getLogger("demows_project.topics")

WIDTH, HEIGHT = 12, 8
Colour = Literal["none", "blue", "green", "yellow", "red", "violet"]
COLOURS = get_args(Colour)
MARKS = ".bgyrv"
"""What stands for each colour in a row: whoever reads the frame sees the picture."""
KEYS = [[f"demows.board.{row}.{column}" for column in range(WIDTH)] for row in range(HEIGHT)]
VERSION = "demows.board.version"
Row = Annotated[str, Field(pattern=rf"^[{MARKS}]{{{WIDTH}}}$")]
BUSY = "too many changes, try again in a moment"


class Board(BaseModel):
    """
    Be the whole board; it is so small that every publication is one.

    Of several that a client gets the one with the greatest ``version`` holds, in whatever order they arrive: a version
    is taken after its cell was set and before the board is read, so that a greater one has seen all that a smaller has.
    """

    version: int
    rows: Annotated[list[Row], Field(min_length=HEIGHT, max_length=HEIGHT)]


class Cell(BaseModel):
    """Be what a cell is to become, or is."""

    row: int = Field(ge=0, lt=HEIGHT)
    column: int = Field(ge=0, lt=WIDTH)
    colour: Colour


class Allowance:
    """Let something happen ``rate`` times a second, after a burst of up to ``burst``."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = self._left = burst
        self._since = time.monotonic()

    def take(self) -> bool:
        """Return whether it may happen now."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._since) * self._rate)
        self._since = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


# A change goes out to everybody who watches. No connection may make the server send much, nor may many together.
_lock = threading.Lock()  # handlers run on several threads
_everybody = Allowance(rate=25, burst=50)
_each: WeakKeyDictionary[Any, Allowance] = WeakKeyDictionary()


def may_change(connection: Any) -> bool:
    """Return whether a client, and this process as a whole, may change the board now."""
    with _lock:
        return _each.setdefault(connection, Allowance(rate=5, burst=15)).take() and _everybody.take()


def read(version: int) -> Board:
    """Return the board as it is now."""
    cells = cache.get_many([key for row in KEYS for key in row])
    return Board(version=version, rows=["".join(MARKS[cells.get(key, 0)] for key in row) for row in KEYS])


def snapshot(user: Any) -> Board | None:
    """Return what a new subscriber is sent first: nothing while the cache is away, as the next change brings all."""
    try:
        return read(cache.get(VERSION, 0))
    except Exception as error:  # noqa: BLE001 - each cache raises its own kind
        logger.warning("event=board_not_read error=%r", error)
        return None


board = Topic("board", Board, public=True, on_subscribe=snapshot)


@request_handler("board_set_request", public=True)
def set_cell(request: Cell, caller: Caller) -> Cell:
    """Give a cell a colour, and publish the board if that changes it."""
    if not may_change(caller.connection):
        raise RequestRefused("BOARD_BUSY", BUSY)
    try:
        change(KEYS[request.row][request.column], COLOURS.index(request.colour))
    except Exception as error:
        logger.warning("event=board_not_changed error=%r", error)
        raise RequestRefused("BOARD_UNAVAILABLE", "the board cannot be reached now") from error
    return Cell(row=request.row, column=request.column, colour=request.colour)


def change(key: str, colour: int) -> None:
    """Set a cell, and publish the board. Raises what the cache raises, and ``LayerUnavailable``."""
    if cache.get(key, 0) == colour:
        return
    cache.set(key, colour, None)
    # Each cell is a key of its own, so that two changes at once are both kept. The first version is the clock's
    # milliseconds: a cache that was emptied goes on with greater ones, and the pages need not be told.
    cache.add(VERSION, int(time.time() * 1000), None)
    board.publish(read(cache.incr(VERSION)))
