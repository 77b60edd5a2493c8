"""The operations: each is there for all sessions, and below ``/sessions/{name}`` for one."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request
from fastapi.responses import HTMLResponse

from ..controls import Controls
from .errors import answers, answers_of_a_page, told
from .models import (
    Advance,
    Affected,
    Beats,
    Clock,
    Close,
    Connection,
    CurrentProfile,
    FaultList,
    Interrupt,
    OneFault,
    ProfileChoice,
    Publication,
    TranscriptEntry,
    TranscriptPage,
    Wait,
)

CENTURY = 100 * 366 * 86_400.0
"""By how many seconds the clock can be ahead at most, so that there is still a date for it."""
SESSION = "name"

router = APIRouter()


def controls_of(request: Request) -> Controls:
    """Return what controls the session in the path, or all of them."""
    server = request.app.state.server
    name = request.path_params.get(SESSION)
    controls: Controls = server if name is None else server.session(name)
    return controls


Chosen = Annotated[Controls, Depends(controls_of)]
ConnectionId = Annotated[str, Path(pattern="^[0-9]{1,20}$", description="The connection's `id`.", examples=["1"])]
CLOSE, INTERRUPT, WAIT = Close(), Interrupt(), Wait()
"""What is done where there is no body."""


def find(controls: Controls, connection: str, *states: str) -> Connection:
    """Return a connection, if it is in one of ``states``."""
    with told():
        found = [each for each in controls.connections if each.id == connection]
    if not found:
        raise HTTPException(404, f"there is no connection {connection!r:.50} any more, or never was")
    if states and found[0].state not in states:
        raise HTTPException(409, f"the connection {connection!r} is {found[0].state}, and not {' or '.join(states)}")
    return Connection.of(found[0])


# Connections


@router.get("/connections", tags=["connections"], summary="List the connections, the oldest first")
def list_connections(controls: Chosen) -> list[Connection]:
    with told():
        return [Connection.of(info) for info in controls.connections]


@router.post("/wait", tags=["connections"], summary="Wait for a client that connects, or comes back")
async def wait_for_connection(controls: Chosen, body: Wait = WAIT) -> Connection:
    """
    Answer with the connection once there is one, and with 409 and the code `TIMEOUT` if none comes in time.

    Each connection is answered with once. Those of before the last close or interrupt do not count.
    """
    try:
        with told():
            return Connection.of(await controls.await_for_connection(body.timeout, body.count))
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise HTTPException(409, "the server was stopped") from None


@router.get("/connections/{id}", tags=["connections"], summary="Look at one connection", responses=answers(404))
def get_connection(controls: Chosen, id: ConnectionId) -> Connection:
    return find(controls, id)


# How connections end


@router.post("/close", tags=["connections"], summary="Close every connection with a code and a reason")
def close_all(controls: Chosen, body: Close = CLOSE) -> Affected:
    with told():
        closed = controls.close(body.message(), delay=body.delay, mid_message=body.mid_message)
    return Affected(connections=closed)


@router.post(
    "/connections/{id}/close",
    tags=["connections"],
    summary="Close one connection with a code and a reason",
    responses=answers(404),
)
def close_one(controls: Chosen, id: ConnectionId, body: Close = CLOSE) -> Affected:
    with told():
        message = body.message()
    find(controls, id, "open")
    with told():
        closed = controls.close(message, connection=id, delay=body.delay, mid_message=body.mid_message)
    return Affected(connections=closed)


@router.post("/interrupt", tags=["connections"], summary="Drop every TCP connection, without a close frame")
def interrupt_all(controls: Chosen, body: Interrupt = INTERRUPT) -> Affected:
    with told():
        return Affected(connections=controls.interrupt(reset=body.reset))


@router.post(
    "/connections/{id}/interrupt",
    tags=["connections"],
    summary="Drop one TCP connection, without a close frame",
    responses=answers(404),
)
def interrupt_one(controls: Chosen, id: ConnectionId, body: Interrupt = INTERRUPT) -> Affected:
    find(controls, id, "open")
    with told():
        return Affected(connections=controls.interrupt(id, reset=body.reset))


# What is sent


@router.post("/publish", tags=["messages"], summary="Publish on a topic", responses=answers(404))
def publish(controls: Chosen, body: Publication) -> Affected:
    """Answer with how many connections it was sent to."""
    with told():
        return Affected(connections=controls.publish(body.topic, body.data))


@router.post("/beat", tags=["messages"], summary="Send a heartbeat now")
def beat(controls: Chosen) -> Affected:
    """Answer with how many connections it was sent to: those that subscribe to `heartbeat`."""
    with told():
        return Affected(connections=controls.beat())


@router.get("/beats", tags=["messages"], summary="Say whether heartbeats are sent by themselves")
def get_beats(controls: Chosen) -> Beats:
    with told():
        return Beats(beating=controls.beating)


@router.post("/beats/pause", tags=["messages"], summary="Send no heartbeats by themselves")
def pause_beats(controls: Chosen) -> Beats:
    with told():
        controls.pause_beats()
    return Beats(beating=False)


@router.post("/beats/resume", tags=["messages"], summary="Send heartbeats by themselves again")
def resume_beats(controls: Chosen) -> Beats:
    with told():
        controls.resume_beats()
    return Beats(beating=True)


# The clock


@router.get("/clock", tags=["clock"], summary="Say by how much the clock was put forward")
def get_clock(controls: Chosen) -> Clock:
    with told():
        return Clock.of(controls)


@router.post("/clock/advance", tags=["clock"], summary="Put the clock forward, without waiting")
def advance(controls: Chosen, body: Advance) -> Clock:
    """What would happen in that time happens at once: heartbeats, delayed closes, what faults delay, timeouts."""
    with told():
        if controls.ahead + body.seconds > CENTURY:
            raise ValueError(f"the clock is {controls.ahead:g} s ahead, and can be {CENTURY:g} s ahead at most")
        controls.advance(body.seconds)
        return Clock.of(controls)


# What goes wrong


@router.get("/faults", tags=["faults"], summary="List the faults that connections meet with")
def get_faults(controls: Chosen) -> list[OneFault]:
    with told():
        return controls.faults()


@router.put("/faults", tags=["faults"], summary="Have connections meet with these faults, in place of others")
def set_faults(controls: Chosen, body: FaultList) -> list[OneFault]:
    """They hold for the connections that are there, and for all that come."""
    with told():
        controls.set_faults(body)
        return controls.faults()


@router.delete("/faults", tags=["faults"], summary="Have connections meet with no faults", status_code=204)
def delete_faults(controls: Chosen) -> None:
    with told():
        controls.set_faults([])


@router.get(
    "/connections/{id}/faults",
    tags=["faults"],
    summary="List the faults that one connection meets with",
    responses=answers(404),
)
def get_connection_faults(controls: Chosen, id: ConnectionId) -> list[OneFault]:
    with told():
        return controls.faults(id)


@router.put(
    "/connections/{id}/faults",
    tags=["faults"],
    summary="Have one connection meet with these faults, in place of others",
    responses=answers(404),
)
def set_connection_faults(controls: Chosen, id: ConnectionId, body: FaultList) -> list[OneFault]:
    with told():
        controls.set_faults(body, id)
        return controls.faults(id)


@router.delete(
    "/connections/{id}/faults",
    tags=["faults"],
    summary="Have one connection meet with no faults",
    status_code=204,
    responses=answers(404),
)
def delete_connection_faults(controls: Chosen, id: ConnectionId) -> None:
    with told():
        controls.set_faults([], id)


@router.get("/profile", tags=["faults"], summary="Say which profile is in force")
def get_profile(controls: Chosen) -> CurrentProfile:
    with told():
        profile = controls.profile
    return CurrentProfile(profile=None if profile is None else profile.name)


@router.put("/profile", tags=["faults"], summary="Begin a profile", responses=answers(404))
def use_profile(controls: Chosen, body: ProfileChoice) -> CurrentProfile:
    """Its faults, its settings and the moments at which it closes connections take the place of what there was."""
    with told():
        try:
            controls.use_profile(body.name)
        except ValueError as error:
            raise LookupError(str(error)) from None
    return CurrentProfile(profile=body.name)


@router.delete("/profile", tags=["faults"], summary="End the profile", status_code=204)
def end_profile(controls: Chosen) -> None:
    with told():
        controls.use_profile(None)


# What went over the wire


@router.get(
    "/transcript", tags=["transcript"], summary="Return what went over the wire", response_model_exclude_unset=True
)
def get_transcript(
    controls: Chosen,
    connection: Annotated[str | None, Query(max_length=20, description="Only of this connection.")] = None,
    direction: Annotated[Literal["received", "sent"] | None, Query(description="Only this way.")] = None,
    kind: Annotated[
        Literal["handshake", "frame", "bytes", "end"] | None, Query(description="Only entries of this kind.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100_000, description="So many of the newest.")] = 1000,
) -> TranscriptPage:
    wanted = {"connection": connection, "direction": direction, "kind": kind}
    transcript = controls.transcript
    entries = [
        entry
        for entry in transcript.entries
        if all(value is None or getattr(entry, name) == value for name, value in wanted.items())
    ]
    return TranscriptPage(dropped=transcript.dropped, entries=[TranscriptEntry.of(entry) for entry in entries[-limit:]])


@router.get(
    "/transcript.html",
    tags=["transcript"],
    summary="Return what went over the wire, as a page to be read",
    response_class=HTMLResponse,
    responses=answers_of_a_page(),
)
def get_transcript_page(controls: Chosen) -> HTMLResponse:
    page = controls.transcript.to_html().encode(errors="backslashreplace")
    return HTMLResponse(page, headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"})


@router.delete("/transcript", tags=["transcript"], summary="Forget what went over the wire", status_code=204)
def clear_transcript(controls: Chosen) -> None:
    controls.transcript.clear()


@router.post("/reset", tags=["server"], summary="Drop every connection, and forget all that was set", status_code=204)
def reset(controls: Chosen) -> None:
    """All is as if it had just begun, with the profile and the faults that it was started with."""
    with told():
        controls.reset()
