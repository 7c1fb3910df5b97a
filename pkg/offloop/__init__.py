"""offloop: blocking calls from asyncio on a native pool of worker threads.

import offloop
import offloop.redis as redis      # in place of redis.asyncio

pool = offloop.Pool(workers=4)
r = redis.Redis(pool=pool)         # or redis.Redis(workers=4)
value = await r.get("key")
"""

from offloop.pool import Pool

__all__ = ["Pool", "__version__"]

__version__ = "0.1.0"
