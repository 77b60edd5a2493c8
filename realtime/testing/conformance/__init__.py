"""
A guided run that plays scripted cases to a WebSocket client, and reports which behaviours it saw.

    report = run(command="python my_client.py {url}")
    assert report.passed, report.summary
"""

from .cases import CASES
from .clients import Client
from .report import Report
from .runner import run
from .verdicts import Case, Level, Result, Verdict

__all__ = ["CASES", "Case", "Client", "Level", "Report", "Result", "Verdict", "run"]
