"""The topics of a test server without a site: anybody may subscribe to ``demo.{name}``, whatever the name."""

from __future__ import annotations

from ..topics import Topic

demo = Topic("demo.{name}", public=True)
