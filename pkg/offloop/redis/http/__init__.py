"""The modules of redis.asyncio.http."""
