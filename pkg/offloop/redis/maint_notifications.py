"""redis.asyncio.maint_notifications: the same module under our name."""

import sys

from redis.asyncio import maint_notifications as _same
from redis.asyncio.maint_notifications import *  # noqa: F403  # for type checkers

sys.modules[__name__] = _same  # the very same module: what is set in one is set in the other
