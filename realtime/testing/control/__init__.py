"""
The control API: what tests in any language do to a test server, over HTTP.

``ControlServer`` serves it; ``create_app`` makes the application, whose OpenAPI document says all there is to it.
"""

from __future__ import annotations

from .app import create_app
from .serving import ControlServer

__all__ = ["ControlServer", "create_app"]
