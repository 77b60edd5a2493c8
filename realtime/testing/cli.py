"""The command line of the test server: ``demows serve`` and what tells of faults and profiles."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from pydantic import ValidationError

from .. import __version__
from . import faults
from .conformance import command as conformance
from .profiles import PROFILES

WIDTH = 100
"""Columns of what is printed."""


class CommandError(Exception):
    """Say what keeps a command from being carried out."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command, and return the exit code."""
    options = parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except CommandError as error:
        print(f"demows: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def parser() -> argparse.ArgumentParser:
    """Return what parses the arguments."""
    parser = argparse.ArgumentParser("demows", description="A WebSocket server to test clients against.")
    parser.add_argument("--version", action="version", version=f"demows {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the server and its control API, until Ctrl-C or SIGTERM")
    serve.set_defaults(run=_serve)
    serve.add_argument("--address", default="localhost:8080", help="where clients connect to (localhost:8080)")
    serve.add_argument("--control", default="localhost:8081", help="where the control API is (localhost:8081)")
    serve.add_argument("--heartbeat-interval", type=float, metavar="S", help="seconds between heartbeats (5)")
    serve.add_argument("--profile", metavar="NAME", help="begin with this profile: see demows profiles")
    serve.add_argument("--faults", metavar="FILE|JSON", help="begin with these faults: see demows faults")
    serve.add_argument("--quiet", action="store_true", help="print nothing about connections")
    serve.add_argument("--ready-file", type=Path, metavar="FILE", help="write the URLs there, as JSON, once it listens")
    serve.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="answer requests to the control API for this host name too",
    )
    conforms = commands.add_parser("conformance", help=conformance.HELP)
    conforms.set_defaults(run=conformance.main)
    conformance.add_arguments(conforms)
    for name, show, text in (
        ("profiles", _profiles, "list the profiles, and what a good client does"),
        ("faults", _faults, "list the faults, with their fields"),
        ("openapi", _openapi, "print the OpenAPI document of the control API"),
    ):
        commands.add_parser(name, help=text).set_defaults(run=show)
    return parser


# What tells of something


def _profiles(options: argparse.Namespace) -> None:
    for profile in PROFILES.values():
        print(profile.name)
        print(_paragraph(profile.summary))
        print(_paragraph(f"A good client: {profile.good_client}"), end="\n\n")


def _faults(options: argparse.Namespace) -> None:
    for fault in faults.FAULTS:
        print(fault.name())
        print(_paragraph(fault.on_the_wire()))
        print(_paragraph(f"A good client: {fault.good_client()}"))
        for name, field in fault.model_fields.items():
            if name != "fault":
                print(_paragraph(f"{name} = {json.dumps(field.default)}: {field.description}", indent=6))
        print()


def _paragraph(text: str, indent: int = 4) -> str:
    text = " ".join(text.replace("`", "").split())
    return textwrap.fill(text, WIDTH, initial_indent=" " * indent, subsequent_indent=" " * indent)


def _openapi(options: argparse.Namespace) -> None:
    from .control import create_app
    from .server import DemoWebsocketServer

    with django_set_up():
        app = create_app(DemoWebsocketServer())
    print(json.dumps(app.openapi(), indent=2))


# The server


def _serve(options: argparse.Namespace) -> None:
    from .control import ControlServer
    from .server import DemoWebsocketServer
    from .watching import Watcher

    if options.ready_file is not None:
        remove_stale(options.ready_file)
    interval = options.heartbeat_interval
    settings = {} if interval is None else {"heartbeat_interval": interval}
    try:
        chosen = read_faults(options.faults)
        with django_set_up():
            server = DemoWebsocketServer(options.address, profile=options.profile, faults=chosen, **settings)
        control = ControlServer(server, options.control, allow_hosts=options.allow_host)
    except ValidationError as error:
        wrong = (f"{'.'.join(map(str, each['loc']))}: {each['msg'].lower()}" for each in error.errors())
        raise CommandError("; ".join(wrong)) from None
    except ValueError as error:
        raise CommandError(str(error)) from None
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # it says nothing that is not said here
    with (
        Watcher(server, None if options.quiet else print) as watcher,
        listening(control, "--control", options.control),  # it ends last, so that those who wait are told
        listening(server, "--address", options.address),
        stop_signals() as stop,
        ready_file(options.ready_file, {"url": server.url, "control": control.url}),
    ):
        print(f"WebSocket  {server.url}")
        print(f"Control    {control.url}")
        print(f"Docs       {control.url}docs")
        print("Ctrl-C ends it.", flush=True)
        watcher.begin()
        while not stop.wait(1.0):  # without a timeout, no signal would end it on Windows
            pass


@contextmanager
def listening(server: Any, option: str, address: str) -> Iterator[None]:
    """Run a server for the length of a ``with`` block, and say in a sentence why it cannot listen."""
    try:
        server.start()
    except OSError as error:
        why = f"{error.strerror or error}".lower()
        raise CommandError(f"cannot listen on {address} ({why}); choose another with {option} localhost:0") from None
    try:
        yield
    finally:
        server.stop()


@contextmanager
def django_set_up() -> Iterator[None]:
    """Set Django up where a site says how, for the length of which its modules are found in this directory."""
    module = os.environ.get("DJANGO_SETTINGS_MODULE")
    if module and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        yield
    except (ImportError, ImproperlyConfigured) as error:
        if not module:
            raise
        raise CommandError(f"DJANGO_SETTINGS_MODULE is {module!r}, which does not work: {error}") from None


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Turn Ctrl-C and SIGTERM into an event, the first time; the second time they end the process as ever."""
    stop = threading.Event()
    numbers = [signal.SIGINT, signal.SIGTERM]
    before = {number: signal.getsignal(number) for number in numbers}

    def end(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    for number in numbers:
        signal.signal(number, end)
    try:
        yield stop
    finally:
        if not stop.is_set():
            for number, handler in before.items():
                signal.signal(number, handler)


def read_faults(text: str | None) -> tuple[faults.Fault, ...]:
    """
    Return the faults in a file, or in ``text`` if that is JSON.

    Raises ``CommandError`` where the file cannot be read, and ``ValueError`` for what are no faults.
    """
    if text is None:
        return ()
    if text.lstrip()[:1] in ("[", "{"):
        return faults.parse(text)
    try:
        return faults.parse(Path(text).read_bytes())
    except OSError as error:
        raise CommandError(
            f"--faults is {text!r}, which is no JSON list and cannot be read: {error.strerror}"
        ) from None


def remove_stale(path: Path) -> None:
    """Remove the file of a run that was killed, or whoever waits for it would take this one for ready."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise CommandError(f"cannot write --ready-file {path}: {error.strerror}") from None


@contextmanager
def ready_file(path: Path | None, content: dict[str, str]) -> Iterator[None]:
    """Have a file hold ``content`` for the length of a ``with`` block; whoever sees the file sees all of it."""
    if path is None:
        yield
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(content) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CommandError(f"cannot write --ready-file {path}: {error.strerror}") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
