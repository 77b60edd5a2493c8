"""Run the conformance report from the command line."""

import sys

from .command import run_command

if __name__ == "__main__":
    sys.exit(run_command())
