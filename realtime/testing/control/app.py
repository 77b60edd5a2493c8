"""The control API as an application."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Path, Request
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware

from ... import __version__
from ..profiles import PROFILES
from ..server import DemoWebsocketServer
from .errors import COMMON, add_handlers, answers, told
from .guard import LOOPBACK_ORIGIN, Guard
from .models import ProfileInfo, ServerInfo, SessionInfo
from .operations import router as operations
from .page import page

DESCRIPTION = """
Control a test server for WebSocket clients: look at its connections, end them in every way, and have them meet with
faults. Each operation is there for all connections, and below `/sessions/{name}` for those of one session: the clients
that connect with `?session=name` in their URL. A session begins when it is first used.
"""
SESSION = "/sessions/{name}"
"""Where the operations for one session are."""
TAGS = ["server", "connections", "messages", "clock", "faults", "transcript"]
TELEMETRY: Any = dict.fromkeys(["tracing", "metrics", "logs", "operation_spans", "auto_configure"], False)

router = APIRouter()
SessionName = Annotated[
    str, Path(min_length=1, max_length=200, description="The session's name, as in `?session=`.", examples=["checkout"])
]


def session_name(name: SessionName) -> None:
    """Document the session's name, and check it."""


@router.get("/server", tags=["server"], summary="Look at the server")
def get_server(request: Request) -> ServerInfo:
    server: DemoWebsocketServer = request.app.state.server
    with told():
        names = [name for name in server.session_names if name]
        sessions = [describe(server, name) for name in names]
    return ServerInfo(
        version=__version__,
        url=server.url,
        heartbeat_interval=server.settings.HEARTBEAT_INTERVAL,
        sessions=sessions,
    )


@router.get(SESSION, tags=["server"], summary="Look at a session")
def get_session(request: Request, name: SessionName) -> SessionInfo:
    with told():
        return describe(request.app.state.server, name)


def describe(server: DemoWebsocketServer, name: str) -> SessionInfo:
    """Describe a session as it is now, whether it has begun or not."""
    session = server.session(name)
    return SessionInfo(
        name=name, url=session.url, connections=sum(each.state == "open" for each in session.connections)
    )


@router.get("/profiles", tags=["faults"], summary="List the profiles")
def list_profiles() -> list[ProfileInfo]:
    return [ProfileInfo.of(profile) for profile in PROFILES.values()]


@router.get("/docs", include_in_schema=False)
def docs(request: Request) -> HTMLResponse:
    return HTMLResponse(page(request.app.openapi()), headers={"Content-Security-Policy": CSP})


CSP = "default-src 'none'; style-src 'unsafe-inline'"


def create_app(
    server: DemoWebsocketServer, *, allow_hosts: Iterable[str] = (), allow_addresses: bool = False
) -> FastAPI:
    """Return the application that controls ``server``."""
    app = FastAPI(
        title="demows control API",
        version=__version__,
        summary="Have a WebSocket server misbehave on demand.",
        description=DESCRIPTION,
        docs_url=None,  # what FastAPI has loads scripts from elsewhere
        redoc_url=None,
        openapi_tags=[{"name": name} for name in TAGS],
        separate_input_output_schemas=False,
        redirect_slashes=False,
        telemetry=TELEMETRY,
    )
    app.state.server = server
    common = answers(*COMMON)
    app.include_router(router, responses=common, generate_unique_id_function=operation_id)
    app.include_router(operations, responses=common, generate_unique_id_function=operation_id)
    app.include_router(
        operations,
        prefix=SESSION,
        dependencies=[Depends(session_name)],
        responses=common,
        generate_unique_id_function=lambda route: f"session_{route.name}",
    )
    add_handlers(app, methods())
    app.add_middleware(
        CORSMiddleware,
        allow_origin_regex=LOOPBACK_ORIGIN.pattern,
        allow_methods=["GET", "POST", "PUT", "DELETE"],
        allow_headers=["Content-Type"],
    )
    app.add_middleware(Guard, hosts=allow_hosts, addresses=allow_addresses)
    return app


def methods() -> dict[str, set[str]]:
    """Return the methods that there are, by their paths."""
    found: dict[str, set[str]] = {}
    for prefix, routes in (("", router.routes), ("", operations.routes), (SESSION, operations.routes)):
        for route in routes:
            if isinstance(route, APIRoute):
                found.setdefault(prefix + route.path, set()).update(route.methods or ())
    return found


def operation_id(route: APIRoute) -> str:
    return route.name
