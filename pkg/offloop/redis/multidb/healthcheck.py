"""redis.asyncio.multidb.healthcheck: the same module under our name."""

import sys

from redis.asyncio.multidb import healthcheck as _same
from redis.asyncio.multidb.healthcheck import *  # noqa: F403  # for type checkers

sys.modules[__name__] = _same  # the very same module: what is set in one is set in the other
