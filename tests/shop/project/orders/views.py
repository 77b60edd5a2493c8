"""The pages on which orders are seen and changed. A request is a transaction (``ATOMIC_REQUESTS``)."""

from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST

from realtime import publish

from .models import Order
from .topics import customers, orders


def listing(request):
    """Greet who signed in."""
    return HttpResponse(f"Hello {request.user}")


def show(request, pk):
    """Show one of the visitor's orders, as it is and as it will be."""
    return render(request, "orders/order.html", {"order": get_object_or_404(Order, pk=pk, customer=request.user)})


@require_POST
def change_status(request, pk):
    """Give an order another status; ``fail`` raises when that is done, and ``tell`` publishes beside the model."""
    order = get_object_or_404(Order, pk=pk)
    order.status = request.POST["status"]
    order.save()
    if request.POST.get("tell"):
        customers.publish({"order": order.pk}, customer=order.customer_id, on_commit=True)
        publish("closing-time", {"minutes": 10})
    if request.POST.get("fail"):
        orders.publish({"status": "never"}, order_id=order.pk, on_commit=True)
        raise RuntimeError("the shop's own mistake")
    return redirect("order", pk)
