"""
Django's settings for a test server, used only where none are configured.

There is no database, nobody signs in, and every client may have the topics ``demo.{name}`` beside ``heartbeat``.
"""

SECRET_KEY = "protects nothing: nobody signs in"
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = ["realtime", "realtime.testing"]
CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer", "CONFIG": {"capacity": 1_000_000}}}
REALTIME = {"CONNECTION_REGISTRY": False}
USE_TZ = True
LOGGING_CONFIG = None
