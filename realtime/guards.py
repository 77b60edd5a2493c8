"""Who may: the rule that topics and a site's own requests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .threads import call, get_threads

Authorize = Callable[..., Any]


async def allows(user: Any, authorize: Authorize | str | None, public: bool, parameters: dict[str, Any]) -> bool:
    """
    Return whether ``user`` (None, anonymous or signed in) may.

    Everybody may what is ``public``; otherwise whoever ``authorize(user, **parameters)`` returns true for, which may
    be async, or instead the name of a Django permission; where there is none, whoever is signed in.
    """
    if public:
        return True
    signed_in = user is not None and user.is_authenticated
    if authorize is None:
        return bool(signed_in)
    if isinstance(authorize, str):
        return bool(signed_in and await get_threads().run(user.has_perm, authorize))
    return bool(await call(authorize, user, **parameters))
