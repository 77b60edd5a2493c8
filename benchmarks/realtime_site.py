"""The site under test: the demo's settings, realtime, which reads the session's user, topics, and the trigger."""

import os

from django.core.asgi import get_asgi_application

from .trigger import DATA, with_trigger

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.settings")
django_application = get_asgi_application()

from realtime import Topic, apublish  # noqa: E402 - needs the apps to be loaded
from realtime.routing import with_realtime  # noqa: E402

prices = Topic("prices")  # for those who have signed in
items = Topic("items.{number:int}")
news = Topic("news", public=True)
offers = Topic("offers.{number:int}", public=True)


async def publish(topic: str) -> None:
    await apublish(topic, DATA)


application = with_trigger(with_realtime(django_application), publish)
