"""What the demo's page is sent with."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
"""Everything comes from this server, and nothing stands in the page itself: neither script nor style."""


def content_security_policy(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[..., HttpResponse]:
    """Send the page with its policy. The admin's pages, and Django's own for errors, are not the demo's to restrict."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        if request.path_info == "/":
            response.headers.setdefault("Content-Security-Policy", POLICY)
        return response

    return middleware
