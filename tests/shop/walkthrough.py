"""
A page of the docs, and following it to the letter.

In it a block that begins with a comment with a file's name is that file; with ``, added at the end`` it is added to
the file that is there. In a ``console`` block the lines after ``$`` are commands, and others what they print.
"""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ..live import Process
from .installed import START_TIMEOUT, start

COMMAND_TIMEOUT = 240.0
"""Seconds that a command may take: pip may have to download."""
SERVERS = ("runserver", "daphne", "uvicorn", "gunicorn", "run_heartbeats")
"""The commands that run until they are stopped. Those with a port are up when something listens on it."""
SERVER = re.compile(rf"(?:python manage\.py )?({'|'.join(SERVERS)})\b")
FILE = re.compile(r"(?:# |\{# )(?P<name>[\w/.-]+\.\w+)(?P<added>, added at the end)?(?: #\})?\n")


class Block(NamedTuple):
    """Be a fenced block of a page."""

    heading: str
    language: str
    text: str


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, each with the heading that it stands below."""
    blocks = []
    heading = ""
    for match in re.finditer(r"^#+ ([^\n]+)\n|^```(\w+)\n(.*?)^```\n", page.read_text(), re.MULTILINE | re.DOTALL):
        heading = match[1] or heading
        if match[2]:
            blocks.append(Block(heading, match[2], match[3]))
    return blocks


class Command(NamedTuple):
    """Be a command of a page, with the lines that it says are printed."""

    text: str
    printed: list[str]


def commands_of(block: Block) -> list[Command]:
    """Return the commands in a ``console`` block."""
    commands: list[Command] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            commands.append(Command(line[2:], []))
        else:
            commands[-1].printed.append(line)
    return commands


def wait_until_listening(process: Process, port: int) -> None:
    """Wait until something listens on a port. Raises ``AssertionError`` when that takes too long."""
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, f"{process.name} does not listen:\n{process.output}"
            time.sleep(0.05)


class Walkthrough:
    """
    Follow a page in a directory of its own.

    ``replaced`` says what else stands for something that a test cannot have as the page has it, such as a port.
    """

    def __init__(self, page: Path, directory: Path, replaced: Mapping[str, str]) -> None:
        self.directory = directory
        self.replaced = dict(replaced)
        self.running: dict[str, Process] = {}
        """The servers that were started, by their commands."""
        self._page = page
        self._blocks = blocks_of(page)
        self._before: list[str] = []
        """What a shell has been told that counts for all that follows: variables, and which Python."""

    def copy(self, directory: Path, replaced: Mapping[str, str] | None = None) -> Walkthrough:
        """Return another walk that begins where this one is: with its files, and its virtual environment."""
        shutil.copytree(self.directory, directory, ignore=shutil.ignore_patterns(".venv"))
        walk = Walkthrough(self._page, directory, {**self.replaced, **(replaced or {})})
        walk._before = [line.replace(". .venv", f". {shlex.quote(str(self.directory))}/.venv") for line in self._before]
        return walk

    def follow(self, *headings: str) -> None:
        """Do what the sections below these headings say. Raises ``AssertionError`` where something fails."""
        for heading in headings:
            blocks = [block for block in self._blocks if block.heading == heading]
            assert blocks, f"{self._page} has nothing to do below {heading!r}"
            for block in blocks:
                self._do(block)

    def _do(self, block: Block) -> None:
        if block.language == "console":
            for command in commands_of(block):
                self.run(command.text, command.printed)
        elif name := FILE.match(block.text):
            path = self.directory / name["name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            text = block.text if block.language == "html" else block.text[name.end() :]
            path.write_text(path.read_text() + "\n" + text if name["added"] else text)

    def run(self, text: str, printed: Iterable[str] = ()) -> None:
        """Run a command in the page's shell. A server is left running; what others print has these lines in it."""
        for old, new in self.replaced.items():
            text = text.replace(old, new)
        if text.startswith(("export ", ". ")):
            self._before.append(text)
            return
        script = "\n".join([*self._before, f"exec {text}"])
        process = start("bash", "-euc", script, directory=self.directory)
        if server := SERVER.match(text):
            self.running[server[1]] = process
            if port := re.search(r"\b\d{4,5}\b", text):
                wait_until_listening(process, int(port[0]))
            return
        try:
            assert process.wait(COMMAND_TIMEOUT) == 0, process.output
        finally:
            process.stop()
        missing = [line for line in printed if line not in process.lines]
        assert not missing, f"{text} does not print {missing}, but:\n{process.output}"

    def stop(self, servers: Iterable[str] = SERVERS) -> None:
        """Stop what still runs."""
        for server in servers:
            if process := self.running.pop(server, None):
                process.stop()
