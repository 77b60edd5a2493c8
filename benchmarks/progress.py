"""The line that tells, at a terminal, what is being done."""

import sys


def progress(text: str) -> None:
    """Put ``text`` where the last one stood on stderr; the empty one takes it away. Do nothing but at a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
