"""All scenarios that realtime is measured in, those with peers beside them."""

from .growth import Flat, Topics
from .publish import Publisher
from .scenarios import Connect, Echo, Fanout, Heartbeats, Idle, Load, Rooms
from .workers import Workers

SCENARIOS: dict[str, type[Load] | type[Publisher]] = {
    "fanout": Fanout,
    "rooms": Rooms,
    "heartbeats": Heartbeats,
    "echo": Echo,
    "connect": Connect,
    "idle": Idle,
    "publish": Publisher,
    "workers": Workers,
    "flat": Flat,
    "topics": Topics,
}
