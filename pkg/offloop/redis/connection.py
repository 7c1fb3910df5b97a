"""Connection pools that own a native channel.

A connection pool of redis-py is where a client's configuration lives, and clients
that share one share its connections. So it is the connection pool that has the
channel. It is a pool of connections too, for what needs one to itself (pub/sub, WATCH,
SELECT ...), and those go over leases of the channel.
"""

from __future__ import annotations

import asyncio
import functools
import math
from typing import Any, TypeVar

import redis.asyncio.connection as base
from redis.asyncio.connection import (
    AbstractConnection,
    ConnectionPoolInterface,
    parse_url,
)
from redis.asyncio.retry import Retry
from redis.auth.token import TokenInterface
from redis.driver_info import DriverInfo, resolve_driver_info

from offloop import _core
from offloop.pool import Pool
from offloop.redis.held import (
    OURS,
    Connection,
    HeldConnection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from offloop.redis.locks import LoopsCondition, LoopsLock
from offloop.redis.options import channel_options, is_native
from offloop.redis.retries import Retries

__all__ = [
    "AbstractConnection",
    "BlockingConnectionPool",
    "Connection",
    "ConnectionPool",
    "ConnectionPoolInterface",
    "SSLConnection",
    "UnixDomainSocketConnection",
    "adopt",
    "parse_url",
]

_DEFAULT_WORKERS = 4
_CLOSE_TIMEOUT = 5.0

_HELD = frozenset(OURS.values())

# Options that say what the connection calls itself.
_DRIVER = frozenset({"driver_info", "lib_name", "lib_version"})

_PoolT = TypeVar("_PoolT", bound="NativeChannel")


@functools.cache
def _driver_info() -> DriverInfo | None:
    """What a connection calls itself where nothing else is said."""
    return resolve_driver_info()


def _check_workers(workers: int | None) -> int | None:
    if workers is not None:
        Pool(workers)  # checks the range; its threads would start at the first use
    return workers


def _url_options(url: str) -> dict[str, Any]:
    """What redis-py reads from a URL, and the number of workers."""
    options: dict[str, Any] = dict(parse_url(url))
    if "workers" in options:
        try:
            options["workers"] = int(options["workers"])
        except ValueError:
            raise ValueError("Invalid value for 'workers' in connection URL.") from None
    return options


def _check_port(kwargs: dict[str, Any]) -> None:
    port = kwargs.get("port")
    if port is not None and not 1 <= int(port) <= 65535:
        raise ValueError(f"port must be between 1 and 65535, not {port!r}")


def wire(words: list[str]) -> bytes:
    """A command as it goes over the connection."""
    encoded = [word.encode() for word in words]
    parts = [b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded]
    return b"*%d\r\n" % len(parts) + b"".join(parts)


class NativeChannel:
    """What turns a connection pool of redis-py into the owner of a channel."""

    # The parts of a redis-py connection pool that are used here.
    connection_class: Any
    connection_kwargs: dict[str, Any]
    max_connections: int

    _offloop_shared: Pool | None = None  # given by the program
    _offloop_own: Pool | None = None  # made here
    _offloop_workers: int | None = None
    _offloop_channel: _core.Channel | None = None
    _offloop_provider: Any = None
    _offloop_login: dict[str, Any] | None = None  # in place of the configured credentials
    _offloop_own_retry: bool = False  # the program gave its Retry: it decides for writes too
    _offloop_declined: dict[str, Any] | None = None  # what redis-py connects with itself
    _offloop_tasks: set[asyncio.Task[None]]
    _lock: Any
    _condition: Any

    def _configure(self, workers: int | None, pool: Pool | None) -> None:
        if pool is not None and workers is not None:
            raise ValueError("give either workers= or pool=, not both")
        if pool is not None and not isinstance(pool, _core.Pool):
            raise TypeError(f"pool must be an offloop.Pool, not {type(pool).__name__}")
        _check_port(self.connection_kwargs)
        self.connection_class = OURS.get(self.connection_class, self.connection_class)
        self._offloop_workers = _check_workers(workers)
        self._offloop_shared = pool
        self._offloop_tasks = set()
        self._offloop_own_retry = self.connection_kwargs.get("retry") is not None
        self._lock = LoopsLock()  # redis-py's belong to the first loop that has to wait
        if isinstance(self, base.BlockingConnectionPool):
            self._condition = LoopsCondition()
        dispatcher: Any = self._event_dispatcher  # type: ignore[attr-defined]
        if getattr(dispatcher, "_async_lock", dispatcher) is None:  # it was not used yet
            dispatcher._async_lock = LoopsLock()

    @classmethod
    def from_url(cls: type[_PoolT], url: str, **kwargs: Any) -> _PoolT:
        """A connection pool configured from a URL, whose options win over kwargs.

        Args:
            url: as redis-py has it, with the option ``workers`` besides.
            kwargs: as for the connection pool.

        Raises:
            ValueError: the URL or an option in it is invalid.
        """
        return cls(**{**kwargs, **_url_options(url)})

    @property
    def pool(self) -> Pool:
        """The pool of worker threads that serves this connection pool."""
        if self._offloop_shared is not None:
            return self._offloop_shared
        if self._offloop_own is None or self._offloop_own.closed:
            self._offloop_own = Pool(self._offloop_workers or _DEFAULT_WORKERS)
        return self._offloop_own

    def open_channel(self) -> _core.Channel | None:
        """The channel, made at the first call; None where redis-py must connect itself."""
        channel = self._offloop_channel
        if channel is not None and not channel.closed:
            return channel
        if not is_native(self.connection_class, self.connection_kwargs):
            return None
        if self._offloop_declined is not None and self._offloop_declined == self.connection_kwargs:
            return None
        # redis-py's own connection checks the configuration and knows the defaults.
        connection = self.connection_class(**self.connection_kwargs)
        options = channel_options(connection, self._credentials_needed)
        if options is None:
            self._offloop_declined = dict(self.connection_kwargs)
            return None
        self._offloop_provider = connection.credential_provider
        self._offloop_channel = _core.Channel(self.pool, {**options, **self._lease_options()})
        self._set_channel_retry(connection.retry)
        return self._offloop_channel

    def _lease_options(self) -> dict[str, Any]:
        """How many connections blocking commands may have, and how long they wait for one."""
        if isinstance(self, base.BlockingConnectionPool):
            wait = self.timeout
            return {
                "max_connections": self.max_connections,
                "connection_wait": math.inf if wait is None else max(wait, 0.000001),
            }
        return {"max_connections": self.max_connections}

    def _set_channel_retry(self, retry: Retry) -> None:
        if self._offloop_channel is not None:
            asked = Retries(retry) if retry.get_retries() != 0 else None
            self._offloop_channel._retry(asked, self._offloop_own_retry)

    def set_retry(self, retry: Retry) -> None:
        """Have commands and connecting retried by this policy, those that write as well."""
        self.connection_kwargs["retry"] = retry
        self._offloop_own_retry = True
        super().set_retry(retry)  # type: ignore[misc]
        self._set_channel_retry(retry)

    def _credentials_needed(self, channel: _core.Channel, loop: asyncio.AbstractEventLoop) -> None:
        """Called in a loop that has a command waiting for a connection."""
        task = loop.create_task(self._provide_credentials(channel))
        self._offloop_tasks.add(task)
        task.add_done_callback(self._offloop_tasks.discard)

    async def _provide_credentials(self, channel: _core.Channel) -> None:
        try:
            credentials = await self._offloop_provider.get_credentials_async()
            name_and_password: tuple[Any, ...] = (None, *credentials)
            username, password = name_and_password[-2:]
            channel.credentials(username, password)
        except BaseException as error:
            channel.credentials_failed(error)
            if not isinstance(error, Exception):
                raise

    async def log_in(self, username: str | None, password: str) -> Any:
        """Authenticate the shared connection, and those made from now on, as somebody.

        Commands made before go out as who they were; later ones as username.

        Raises:
            AuthenticationError: the server refuses; nothing has changed then.
        """
        channel = self.open_channel()
        if channel is not None:
            channel.renewed()  # what is not on the shared connection comes after AUTH
        reply = await self._authenticate(username, password)
        self._offloop_login = {
            "username": username,
            "password": password,
            "credential_provider": None,
        }
        channel = self.open_channel()
        if channel is not None:
            channel.login(username, password)
        # Those of redis-py that are idle are made anew.
        await base.ConnectionPool.disconnect(self, inuse_connections=False)  # type: ignore[arg-type]
        return reply

    async def _authenticate(self, username: str | None, password: str) -> Any:
        channel = self.open_channel()
        if channel is None:
            return None
        words = ["AUTH", password] if username is None else ["AUTH", username, password]
        return await channel._send_wire(wire(words))

    def make_connection(self) -> AbstractConnection:
        """A new connection, logged in as the channel is once it is connected."""
        connection: AbstractConnection
        login = self._offloop_login or {}
        if self.connection_class in _HELD:
            # What is the same for all of them is made once: ten thousand of them are few.
            alike = {"event_dispatcher": self._event_dispatcher}  # type: ignore[attr-defined]
            if _DRIVER.isdisjoint(self.connection_kwargs):
                alike["driver_info"] = _driver_info()
            connection = self.connection_class(**{**alike, **self.connection_kwargs, **login})
            connection._offloop_owner = self  # type: ignore[attr-defined]
        elif login:
            connection = self.connection_class(**{**self.connection_kwargs, **login})
        else:
            connection = super().make_connection()  # type: ignore[misc]
        return connection

    async def release(self, connection: AbstractConnection) -> None:
        """Take a connection back, which may then be closed when another needs the room."""
        in_use = self._in_use_connections  # type: ignore[attr-defined]
        if isinstance(connection, HeldConnection) and connection in in_use:
            connection.set_aside()
        await super().release(connection)  # type: ignore[misc]

    async def re_auth_callback(self, token: TokenInterface) -> None:
        """A credential provider has a new token: use it on the connections there are."""
        await super().re_auth_callback(token)  # type: ignore[misc]
        for connection in self._available_connections:  # type: ignore[attr-defined]
            if isinstance(connection, HeldConnection):
                connection.set_aside()  # those that were made anew for it, too
        if self._offloop_channel is not None:
            self._offloop_channel.renewed()
            await self._authenticate(token.try_get("oid"), token.get_value())

    async def close_channel(self, timeout: float = _CLOSE_TIMEOUT) -> None:
        """Finish the commands under way, close the connection and the pool made here.

        A later command opens both anew, as with redis-py's connection pools.

        Args:
            timeout: seconds for the commands under way; what is not finished by
                then fails.
        """
        channel, self._offloop_channel = self._offloop_channel, None
        own, self._offloop_own = self._offloop_own, None
        if channel is not None:
            closed = channel.close(timeout)
            if closed is not None:
                await closed
        if own is not None:
            await own.aclose(timeout)

    def stats(self) -> dict[str, Any]:
        """The channel's counters, and the pool's under ``pool``; see Redis.stats()."""
        channel = self.open_channel()
        pool = self.pool.stats()
        counters: dict[str, Any] = dict(channel.stats()) if channel is not None else {}
        batches = counters.get("batches", 0)
        counters["mean_batch"] = counters["replies"] / batches if batches else 0.0
        counters["workers"] = pool["workers"]
        counters["wakeups"] = pool["wakeups"]
        counters["eventfd_writes"] = pool["eventfd_writes"]
        counters["pool"] = pool
        return counters


class ConnectionPool(  # pyright: ignore[reportIncompatibleVariableOverride, reportIncompatibleMethodOverride]
    NativeChannel, base.ConnectionPool
):
    """redis.asyncio's ConnectionPool, with a native channel for what can share one.

    Args:
        workers: worker threads of its own, 1 to 1024; 4 by default.
        pool: an offloop.Pool to share instead.
        others: as redis.asyncio's ConnectionPool.

    Raises:
        ValueError: workers or port is out of range, or workers and pool are both given.
    """

    def __init__(
        self, *args: Any, workers: int | None = None, pool: Pool | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._configure(workers, pool)

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the connections; the shared one of the channel once it is quiet."""
        if self._offloop_channel is not None:
            self._offloop_channel.disconnect(inuse_connections)
        await super().disconnect(inuse_connections)

    async def aclose(self) -> None:
        """Close the connections and the pool's own threads; a later command reopens them."""
        await super().aclose()
        await self.close_channel()


class BlockingConnectionPool(  # pyright: ignore[reportIncompatibleVariableOverride, reportIncompatibleMethodOverride]
    NativeChannel, base.BlockingConnectionPool
):
    """redis.asyncio's BlockingConnectionPool, with a native channel.

    Commands that share the channel's connection wait for nobody; the limit holds for
    what needs a connection to itself. Arguments as ConnectionPool.
    """

    def __init__(
        self, *args: Any, workers: int | None = None, pool: Pool | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._configure(workers, pool)

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the connections; the shared one of the channel once it is quiet."""
        if self._offloop_channel is not None:
            self._offloop_channel.disconnect(inuse_connections)
        await super().disconnect(inuse_connections)

    async def aclose(self) -> None:
        """Close the connections and the pool's own threads; a later command reopens them."""
        await super().aclose()
        await self.close_channel()


def adopt(
    connection_pool: base.ConnectionPool,
    workers: int | None,
    pool: Pool | None,
    own_retry: bool,
) -> ConnectionPool:
    """Make redis-py's own connection pool, just made by its client, one of ours.

    It is the same object afterwards: redis-py has registered it with listeners
    already (credential providers, maintenance notifications), which must go on
    meeting the pool that the client uses.
    """
    connection_pool.__class__ = ConnectionPool
    assert isinstance(connection_pool, ConnectionPool)
    connection_pool._configure(workers, pool)
    connection_pool._offloop_own_retry = own_retry
    return connection_pool


def __getattr__(name: str) -> Any:
    """Whatever else redis.asyncio.connection has: programs reach its parts by path."""
    return getattr(base, name)
