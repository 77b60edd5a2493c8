"""Users by token, as a site's ``AUTHENTICATE`` finds them."""

import asyncio
import logging
from types import SimpleNamespace

logger = logging.getLogger("tests.site")


async def authenticate(token):
    """Let in whoever has a token that begins with ``good``."""
    if token == "broken":
        raise RuntimeError(f"no database for {token}")
    if token == "hang":
        logger.info("mark hanging")
        await asyncio.Event().wait()
    known = token.startswith("good")
    return SimpleNamespace(pk=token, is_authenticated=True, get_username=lambda: "by-token") if known else None
