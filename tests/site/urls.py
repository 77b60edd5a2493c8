"""Pages with which tests act inside a server process, and look into it."""

from django.contrib import admin
from django.urls import include, path

from realtime.prometheus import metrics

from . import pages, probes, views

urlpatterns = [
    path("", include("realtime.urls")),
    path("admin/", admin.site.urls),
    path("publish/", views.publish_many),
    path("apublish/", views.apublish_many),
    path("close/", views.close),
    path("close-sync/", views.close_sync),
    path("census/", views.census),
    path("slow/", views.slow),
    path("mark/", probes.mark),
    path("leftovers/", probes.leftovers),
    path("wire/", probes.wire),
    path("publish_text/", probes.publish_text),
    path("publish_number/", probes.publish_number),
    path("close_twice/", probes.close_twice),
    path("hold/", probes.hold),
    path("block/", probes.block),
    path("metrics", metrics),
    path("browser/", pages.browser),
]
