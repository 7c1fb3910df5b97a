"""offloop.redis: in place of redis.asyncio.

It exports what redis.asyncio exports, and its modules have the same names. Redis and
the connection pools are offloop's, and so are the clients that Sentinel makes;
RedisCluster and the rest are redis-py's own.
"""

from redis.asyncio import (
    AsyncClusterKeyspaceNotifications,
    AsyncKeyspaceNotifications,
    AsyncKeyspaceNotificationsInterface,
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    BusyLoadingError,
    ChildDeadlockedError,
    ConnectionError,
    DataError,
    InvalidResponse,
    OutOfMemoryError,
    PubSubError,
    ReadOnlyError,
    RedisCluster,
    RedisError,
    ResponseError,
    Subscription,
    TimeoutError,
    WatchError,
    default_backoff,
)

# redis.asyncio's modules are there once it is imported, and programs reach into them.
from offloop.redis import cluster as cluster
from offloop.redis import keyspace_notifications as keyspace_notifications
from offloop.redis import lock as lock
from offloop.redis import maint_notifications as maint_notifications
from offloop.redis import observability as observability
from offloop.redis import retry as retry
from offloop.redis import utils as utils
from offloop.redis.client import Redis, StrictRedis, from_url
from offloop.redis.connection import (
    BlockingConnectionPool,
    Connection,
    ConnectionPool,
    SSLConnection,
    UnixDomainSocketConnection,
)
from offloop.redis.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)

__all__ = [
    "AsyncClusterKeyspaceNotifications",
    "AsyncKeyspaceNotifications",
    "AsyncKeyspaceNotificationsInterface",
    "AuthenticationError",
    "AuthenticationWrongNumberOfArgsError",
    "BlockingConnectionPool",
    "BusyLoadingError",
    "ChildDeadlockedError",
    "Connection",
    "ConnectionError",
    "ConnectionPool",
    "DataError",
    "InvalidResponse",
    "OutOfMemoryError",
    "PubSubError",
    "ReadOnlyError",
    "Redis",
    "RedisCluster",
    "RedisError",
    "ResponseError",
    "SSLConnection",
    "Sentinel",
    "SentinelConnectionPool",
    "SentinelManagedConnection",
    "SentinelManagedSSLConnection",
    "StrictRedis",
    "Subscription",
    "TimeoutError",
    "UnixDomainSocketConnection",
    "WatchError",
    "default_backoff",
    "from_url",
]
