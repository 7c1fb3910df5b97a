"""offloop: blocking calls from asyncio on a native pool of worker threads.

import offloop
import offloop.redis as redis      # in place of redis.asyncio

pool = offloop.Pool(workers=4)
r = redis.Redis(pool=pool)         # or redis.Redis(workers=4)
value = await r.get("key")
rows = await pool.call(fetch_rows, "select ...")   # any blocking function
"""

from offloop.calling import Batch, CallTimeoutError, PoolClosedError, PoolFullError
from offloop.pool import Caller, Lane, Pool, default_pool, offload

__all__ = [
    "Batch",
    "CallTimeoutError",
    "Caller",
    "Lane",
    "Pool",
    "PoolClosedError",
    "PoolFullError",
    "__version__",
    "default_pool",
    "offload",
]

__version__ = "0.1.0"
