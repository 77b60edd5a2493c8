"""``python -m realtime``: the command line of the test server, which is also ``demows``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

MISSING = "demows: {name!r} is not installed, which the test server needs: pip install 'demows[testing]'\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit code."""
    try:
        from .testing.cli import run

        return run(arguments)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("fastapi", "starlette", "uvicorn", "websockets"):
            raise
        sys.stderr.write(MISSING.format(name=error.name))
        return 1


if __name__ == "__main__":
    sys.exit(main())
