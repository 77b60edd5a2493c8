"""Run the site with everything it needs: one command for a laptop, and for a machine with Redis."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
import threading
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import connection

from ...conf import get_settings
from ...layers import configured_layer, is_local
from ...limits import SPARE_DESCRIPTORS, descriptors

STOP_TIMEOUT = 5.0
"""Seconds that ``run_heartbeats`` has for its own end, when the server beside it has ended."""


class Command(BaseCommand):
    """Prepare the embedded database, then run Daphne or uvicorn, and ``run_heartbeats`` where Redis is used."""

    help = "Serves the site: HTTP, WebSockets and, with Redis, heartbeats."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--host", default="localhost", help="the address to listen on (localhost)")
        parser.add_argument("--port", type=int, default=8080, help="the port to listen on (8080)")
        parser.add_argument("--server", choices=["daphne", "uvicorn"], help="daphne, or uvicorn with several workers")
        parser.add_argument("--workers", type=int, default=1, help="processes; more than one needs Redis")
        parser.add_argument("--no-heartbeats", action="store_true", help="run no run_heartbeats beside the server")

    def handle(
        self, *args: Any, host: str, port: int, server: str | None, workers: int, no_heartbeats: bool, **options: Any
    ) -> None:
        local = is_local(configured_layer())
        server = server or ("uvicorn" if workers > 1 else "daphne")
        self._refuse_nonsense(server, workers, local)
        _application()
        self._prepare_database()
        if (most := get_settings().MAX_CONNECTIONS) is not None:
            descriptors(most + SPARE_DESCRIPTORS)
        self._greet(host, port)
        # uvicorn ends by raising the signal that stopped it again, which must not skip the clean-up below.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        heartbeats = None if local or no_heartbeats else _Heartbeats()
        try:
            (_run_daphne if server == "daphne" else _run_uvicorn)(host, port, workers)
        finally:
            if heartbeats is not None:
                heartbeats.stop()

    def _refuse_nonsense(self, server: str, workers: int, local: bool) -> None:
        if workers < 1:
            raise CommandError(f"--workers takes a whole number from 1 on, not {workers}")
        if workers > 1 and server == "daphne":
            raise CommandError("Daphne is one process: use --server uvicorn with more than one worker.")
        if workers > 1 and local:
            raise CommandError(
                f"{workers} workers need Redis: the in-memory channel layer reaches one process only, so that "
                "what one worker publishes would not reach the clients of another. Set REDIS_URL."
            )
        if server == "uvicorn":
            try:
                import uvicorn  # noqa: F401
            except ImportError:
                raise CommandError("uvicorn is not installed: pip install 'demows[uvicorn]'") from None

    def _prepare_database(self) -> None:
        """Migrate the database where it is a file of this machine; another one is its operator's to migrate."""
        if connection.vendor != "sqlite":
            return
        call_command("migrate", verbosity=0, interactive=False)
        user_model = get_user_model()
        if not settings.DEBUG or user_model.USERNAME_FIELD != "username":
            return
        users = user_model._default_manager
        if not users.filter(is_superuser=True).exists() and not users.filter(username="admin").exists():
            password = secrets.token_urlsafe(9)
            users.create_superuser("admin", "", password)
            self.stdout.write(f"Created the account 'admin' with the password {password} (shown this once).")

    def _greet(self, host: str, port: int) -> None:
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        subscribe = '{"type":"subscribe_request","topic":"heartbeat"}'
        self.stdout.write(
            f"WebSocket  ws://{address}/\n"
            f"Page       http://{address}/\n"
            f"Admin      http://{address}/admin/\n"
            f"Try        {sys.executable} -m websockets ws://{address}/\n"
            f"           and type  {subscribe}\n"
            "Stop with Ctrl-C."
        )
        self.stdout.flush()


def _application() -> str:
    if not getattr(settings, "ASGI_APPLICATION", None):
        raise CommandError("ASGI_APPLICATION is not set, e.g. to 'mysite.asgi.application'.")
    module, _, name = settings.ASGI_APPLICATION.rpartition(".")
    return f"{module}:{name}"


def _run_daphne(host: str, port: int, workers: int) -> None:
    from daphne.cli import CommandLineInterface

    CommandLineInterface().run(["--bind", host, "--port", str(port), _application()])


def _run_uvicorn(host: str, port: int, workers: int) -> None:
    import uvicorn

    uvicorn.run(
        _application(),
        host=host,
        port=port,
        workers=workers,
        lifespan="on",
        # Compression costs memory and CPU a connection, and no two clients could be written the same bytes.
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=5,
        # A worker is killed that answers its supervisor later than this. Importing a site may take longer than
        # uvicorn's own 5 s on a machine that is busy.
        timeout_worker_healthcheck=60,
    )


class _Heartbeats:
    """Keep one ``run_heartbeats`` running beside the server."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._process = self._start()
        threading.Thread(target=self._watch, name="heartbeats", daemon=True).start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, sys.argv[0], "run_heartbeats", "--with-parent"])

    def _watch(self) -> None:
        while True:
            self._process.wait()
            if self._stopping.wait(1):
                return
            self._process = self._start()

    def stop(self) -> None:
        self._stopping.set()
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
