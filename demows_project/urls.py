"""The demo's pages."""

from django.contrib import admin
from django.urls import include, path
from django.views.generic import TemplateView

urlpatterns = [
    path("", TemplateView.as_view(template_name="demows_project/index.html")),
    path("", include("realtime.urls")),
    path("admin/", admin.site.urls),
]
try:
    from realtime.prometheus import metrics
except ImportError:  # its extra is not installed
    pass
else:
    urlpatterns.append(path("metrics", metrics))
