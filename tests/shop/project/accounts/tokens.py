"""Whose a token is."""

from .models import User


def user_of_token(token):
    """Return whose token it is, or None."""
    return User.objects.filter(is_active=True, apitoken__key=token).first()
