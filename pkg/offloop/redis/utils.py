"""redis.asyncio.utils, with our from_url."""

from redis.asyncio.utils import pipeline

from offloop.redis.client import from_url

__all__ = ["from_url", "pipeline"]
