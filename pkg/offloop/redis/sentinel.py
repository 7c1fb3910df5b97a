"""Sentinel, whose clients are ours.

The connections to a master or a replica are redis-py's own, made by its
SentinelConnectionPool, which asks for the address each time it connects.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import redis.asyncio.sentinel as base
from redis.asyncio.client import Redis as AsyncRedis
from redis.asyncio.sentinel import (
    MasterNotFoundError,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
    SlaveNotFoundError,
)

from offloop.redis.client import Redis

__all__ = [
    "MasterNotFoundError",
    "Sentinel",
    "SentinelConnectionPool",
    "SentinelManagedConnection",
    "SentinelManagedSSLConnection",
    "SlaveNotFoundError",
]


class Sentinel(base.Sentinel):
    """redis.asyncio's Sentinel; the clients that it makes are offloop's.

    Args:
        sentinels: pairs of host and port.
        min_other_sentinels: peers that a sentinel must know for its word to count.
        sentinel_kwargs: options for the connections to the sentinels; by default the
            socket_* ones of connection_kwargs.
        force_master_ip: used in place of the address that the sentinels name.
        connection_kwargs: options for the connections to the servers.
    """

    def __init__(
        self,
        sentinels: Iterable[tuple[str, int]],
        min_other_sentinels: int = 0,
        sentinel_kwargs: dict[str, Any] | None = None,
        force_master_ip: str | None = None,
        **connection_kwargs: Any,
    ) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            (), min_other_sentinels, sentinel_kwargs, force_master_ip, **connection_kwargs
        )
        self.sentinels = [
            Redis(host=host, port=port, **self.sentinel_kwargs) for host, port in sentinels
        ]

    def master_for(
        self,
        service_name: str,
        redis_class: type[AsyncRedis] = Redis,
        connection_pool_class: type[SentinelConnectionPool] = SentinelConnectionPool,
        **kwargs: Any,
    ) -> Any:
        """A client of the service's master, wherever it is when a connection is made."""
        return super().master_for(service_name, redis_class, connection_pool_class, **kwargs)

    def slave_for(
        self,
        service_name: str,
        redis_class: type[AsyncRedis] = Redis,
        connection_pool_class: type[SentinelConnectionPool] = SentinelConnectionPool,
        **kwargs: Any,
    ) -> Any:
        """A client of the service's replicas, in turn."""
        return super().slave_for(service_name, redis_class, connection_pool_class, **kwargs)

    def replica_for(
        self,
        service_name: str,
        redis_class: type[AsyncRedis] = Redis,
        connection_pool_class: type[SentinelConnectionPool] = SentinelConnectionPool,
        **kwargs: Any,
    ) -> Any:
        """The same as slave_for()."""
        return super().replica_for(service_name, redis_class, connection_pool_class, **kwargs)


def __getattr__(name: str) -> Any:
    """Whatever else redis.asyncio.sentinel has: programs reach its parts by path."""
    return getattr(base, name)
