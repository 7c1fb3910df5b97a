"""redis.asyncio.observability.recorder: the same module under our name."""

import sys

from redis.asyncio.observability import recorder as _same
from redis.asyncio.observability.recorder import *  # noqa: F403  # for type checkers

sys.modules[__name__] = _same  # the very same module: what is set in one is set in the other
