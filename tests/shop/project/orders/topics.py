"""What browsers and programs can subscribe to, and ask."""

from django.db.models import Sum
from pydantic import BaseModel

from realtime import Caller, RequestRefused, Topic, request_handler

from .models import Order


class OrderEvent(BaseModel):
    """What has become of an order."""

    status: str


def may_see(user, order_id):
    """Let customers see their own orders, and staff with the permission all of them."""
    own = Order.objects.filter(pk=order_id, customer=user.pk).exists()
    return user.is_authenticated and (own or user.has_perm("orders.view_order"))


def current(user, order_id):
    """Return how the order is now."""
    return OrderEvent(status=Order.objects.get(pk=order_id).status)


orders = Topic("orders.{order_id:int}", OrderEvent, authorize=may_see, on_subscribe=current)
customers = Topic("customers.{customer:uuid}", authorize=lambda user, customer: user.pk == customer)
closing_time = Topic("closing-time", public=True)


class SpentRequest(BaseModel):
    """Ask what the caller has spent on orders of a status."""

    status: str


class Spent(BaseModel):
    """Say what."""

    email: str
    cents: int


@request_handler("spent_request")
def spent(request: SpentRequest, caller: Caller) -> Spent:
    """Add up the caller's orders."""
    if request.status not in ("new", "paid", "sent"):
        raise RequestRefused("NO_SUCH_STATUS", f"an order is never {request.status}")
    orders_of_caller = Order.objects.filter(customer=caller.user, status=request.status)
    return Spent(email=caller.user.email, cents=orders_of_caller.aggregate(Sum("cents"))["cents__sum"] or 0)
