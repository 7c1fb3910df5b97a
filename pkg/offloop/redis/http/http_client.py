"""redis.asyncio.http.http_client: the same module under our name."""

import sys

from redis.asyncio.http import http_client as _same
from redis.asyncio.http.http_client import *  # noqa: F403  # for type checkers

sys.modules[__name__] = _same  # the very same module: what is set in one is set in the other
