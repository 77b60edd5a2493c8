"""The test site on the engine of the test server, and its pages on a port beside: they run on the same event loop."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import uvicorn

from realtime.conf import Settings
from realtime.hub import HUB
from realtime.testing.engine import Engine
from realtime.testing.transcript import Log
from tests.site.asgi import application


async def on_the_hub_of_the_loop(scope: Any, receive: Any, send: Any) -> None:
    """Serve a connection as other servers do, so that the pages reach it."""
    del scope["extensions"][HUB]
    await application(scope, receive, send)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("pages", type=int)
    parser.add_argument("--max-size", type=int)
    arguments = parser.parse_args()
    settings = Settings()
    if arguments.max_size is not None:
        settings = settings.model_copy(update={"MAX_MESSAGE_SIZE": arguments.max_size})
    engine = Engine(on_the_hub_of_the_loop, settings, Log())
    await engine.start("127.0.0.1", arguments.port)
    try:
        await uvicorn.Server(uvicorn.Config(application, port=arguments.pages, ws="none")).serve()
    finally:
        await engine.stop()


if __name__ == "__main__":
    asyncio.run(main())
