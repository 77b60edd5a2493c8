"""The shop's orders."""

from django.conf import settings
from django.db import models

from realtime import publish_changes


def published(order, change):
    """Return what those who watch an order are told of a change."""
    return None if change == "created" else {"status": order.status if change == "updated" else change}


@publish_changes("orders.{pk}", published)
class Order(models.Model):
    """What somebody has bought."""

    customer = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE)
    status = models.CharField(max_length=20, default="new")
    cents = models.PositiveIntegerField(default=0)

    def __str__(self):
        return f"#{self.pk}"
