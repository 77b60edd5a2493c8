"""What ``from realtime import …`` gives, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

import realtime
from realtime import protocol, publishing, topics


def python(code: str) -> str:
    """Return what ``code`` prints in a Python where Django was not set up."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", realtime.__all__)
def test_exported_name_is_there(name: str) -> None:
    assert callable(getattr(realtime, name))


def test_exports_are_those_of_the_modules() -> None:
    assert realtime.CloseMessage is protocol.CloseMessage
    assert realtime.Topic is topics.Topic
    assert (realtime.publish, realtime.apublish) == (topics.publish, topics.apublish)
    assert realtime.close_connections is publishing.close_connections
    assert realtime.aclose_connections is publishing.aclose_connections


def test_unknown_name_raises() -> None:
    with pytest.raises(AttributeError, match="module 'realtime' has no attribute 'nothing'"):
        _ = realtime.nothing


def test_import_of_an_unknown_name_raises() -> None:
    with pytest.raises(ImportError):
        from realtime import nothing  # noqa: F401


def test_import_of_realtime_imports_nothing_else() -> None:
    assert python("import sys, realtime; print([m for m in sys.modules if m.startswith('realtime.')])") == "[]"


def test_exports_import_no_models() -> None:
    code = "from realtime import *; import sys; print({m for m in sys.modules if m.endswith('.models')})"
    assert eval(python(code)) == {"django.db.models", "django.forms.models"}  # Django's own machinery


def test_protocol_imports_no_django() -> None:
    code = "import realtime.protocol, sys; print({m.split('.')[0] for m in sys.modules} & {'django', 'channels'})"
    assert python(code) == "set()"
