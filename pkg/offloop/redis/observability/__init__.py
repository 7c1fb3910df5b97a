"""The modules of redis.asyncio.observability."""

from offloop.redis.observability import recorder as recorder
