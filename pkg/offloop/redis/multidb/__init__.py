"""The modules of redis.asyncio.multidb."""
