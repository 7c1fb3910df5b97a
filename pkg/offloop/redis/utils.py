"""redis.asyncio.utils, with our from_url."""

from typing import Any

import redis.asyncio.utils as base
from redis.asyncio.utils import pipeline

from offloop.redis.client import from_url

__all__ = ["from_url", "pipeline"]


def __getattr__(name: str) -> Any:
    """Whatever else redis.asyncio.utils has: programs reach its parts by path."""
    return getattr(base, name)
