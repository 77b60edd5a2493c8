"""The shop's own middleware, written long before there was anything asynchronous in it."""


def powered_by_shop(get_response):
    """Say on every page whose it is."""

    def middleware(request):
        response = get_response(request)
        response["X-Powered-By"] = "shop"
        return response

    return middleware
