"""
The operator's console in Django's admin: who is connected where, who subscribes to what, closing and publishing.

The lists show the registry's tables and change nothing in them; closing and publishing go through the channel layer.
"""

from . import connections, keys, servers, topics  # noqa: F401 - they register themselves
