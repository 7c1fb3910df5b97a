"""redis.asyncio.multidb.config: the same module under our name."""

import sys

from redis.asyncio.multidb import config as _same
from redis.asyncio.multidb.config import *  # noqa: F403  # for type checkers

sys.modules[__name__] = _same  # the very same module: what is set in one is set in the other
