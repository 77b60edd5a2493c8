"""The shop's people in the admin."""

from django.contrib import admin

from .models import ApiToken, User

admin.site.register([User, ApiToken])
