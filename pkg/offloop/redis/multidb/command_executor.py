"""redis.asyncio.multidb.command_executor: the same module under our name."""

import sys

from redis.asyncio.multidb import command_executor as _same
from redis.asyncio.multidb.command_executor import *  # noqa: F403  # for type checkers

sys.modules[__name__] = _same  # the very same module: what is set in one is set in the other
