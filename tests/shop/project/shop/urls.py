"""The shop's pages."""

from django.contrib import admin
from django.contrib.auth.views import LoginView, LogoutView
from django.urls import include, path
from orders import views

urlpatterns = [
    path("admin/", admin.site.urls),
    path("login/", LoginView.as_view(), name="login"),
    path("logout/", LogoutView.as_view(next_page="login"), name="logout"),
    path("realtime/", include("realtime.urls")),
    path("", views.listing, name="orders"),
    path("orders/<int:pk>/", views.show, name="order"),
    path("orders/<int:pk>/status/", views.change_status, name="order-status"),
]
