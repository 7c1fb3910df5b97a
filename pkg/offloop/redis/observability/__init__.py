"""The modules of redis.asyncio.observability."""
