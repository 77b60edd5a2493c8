"""
Health for load balancers, and publishing over HTTP.

A site includes this where it likes, such as ``path("realtime/", include("realtime.urls"))``.
"""

from django.urls import path

from . import asyncapi, endpoint, views

app_name = "realtime"
urlpatterns = [
    path("healthz", views.healthz, name="healthz"),
    path("readyz", views.readyz, name="readyz"),
    path("publish", endpoint.publish, name="publish"),
    path("asyncapi.json", asyncapi.show, name="asyncapi"),
]
