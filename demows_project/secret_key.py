"""A secret key for who has not set one: made at random, kept in a file that only this user reads."""

import os
import secrets
import tempfile
from pathlib import Path


def secret_key(path: Path) -> str:
    """
    Return the key kept at ``path``, and make one first if there is none.

    Workers that start at the same moment get the same key: whoever is first to link its file wins.
    """
    try:
        return path.read_text()
    except FileNotFoundError:
        pass
    handle, name = tempfile.mkstemp(dir=path.parent)  # mode 600
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_urlsafe(50))
    try:
        os.link(name, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(name)
    return path.read_text()
