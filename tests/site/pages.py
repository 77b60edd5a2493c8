"""A page with the browser client in it, under a policy that allows it nothing but what it needs."""

import secrets

from django.shortcuts import render


def browser(request):
    """Show the page; with ``?nonce`` the policy lets in scripts by nonce alone, and not by where they come from."""
    scripts = "'self'"
    if "nonce" in request.GET:
        request.csp_nonce = secrets.token_urlsafe()
        scripts = f"'nonce-{request.csp_nonce}'"
    response = render(request, "site/browser.html")
    response["Content-Security-Policy"] = (
        f"default-src 'none'; script-src {scripts}; connect-src 'self'; base-uri 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    return response
