"""The client: redis.asyncio.Redis on a native channel.

redis-py's command methods, options and response callbacks are used as they are;
what is replaced is execute_command, which is one C call (``_core.Client``), and the
connection pool behind it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import redis.asyncio.client as base
from redis._parsers import helpers
from redis._parsers.base import BaseParser
from redis.asyncio.client import Monitor
from redis.asyncio.observability import recorder
from redis.commands.json.commands import JSONCommands
from redis.commands.search import AsyncPipeline
from redis.commands.timeseries.commands import TimeSeriesCommands
from redis.exceptions import (
    ConnectionError,
    DataError,
    InvalidResponse,
    MaxConnectionsError,
    RedisError,
    ResponseError,
    TimeoutError,
)
from redis.observability import providers

from offloop import _core
from offloop.pool import Pool
from offloop.redis.connection import AbstractConnection, ConnectionPool, NativeChannel, adopt
from offloop.redis.locks import LoopsLock
from offloop.redis.methods import native_methods
from offloop.redis.modules import JSON, Search, TimeSeries
from offloop.redis.pipeline import NativePipeline
from offloop.redis.pubsub import PubSub
from offloop.redis.retries import READS, settle_by
from offloop.redis.unknown import forget, learn, name_of

__all__ = ["Monitor", "Pipeline", "PubSub", "Redis", "StrictRedis", "from_url"]


class _Speller(base.Redis):
    """A client of which each command method gives what it would execute.

    What a pipeline queued by a short cut is shown as redis-py would show it.
    """

    def __init__(self) -> None:
        pass

    def execute_command(self, *args: Any, **options: Any) -> Any:
        return args, options


_ENCODER, _DECODER = json.JSONEncoder(), json.JSONDecoder()

_core._setup_redis(
    parse_error=BaseParser.parse_error,
    redis_error=RedisError,
    connection_error=ConnectionError,
    max_connections_error=MaxConnectionsError,
    timeout_error=TimeoutError,
    data_error=DataError,
    invalid_response=InvalidResponse,
    response_error=ResponseError,
    chain=settle_by,
    reads=READS,
    recorder=recorder,
    providers=providers,
    speller=_Speller(),
)
_core._setup_callbacks(helpers)


_WAITS = frozenset(("WAIT", "WAITAOF"))
_NOBODY = "__offloop:wait__"  # a shard channel: no pattern that anybody listens to has it


def _words(args: tuple[Any, ...]) -> list[str]:
    """A command's words, the name in upper case; none where they are not text."""
    words: list[str] = []
    for arg in args:
        if isinstance(arg, (bytes, bytearray)):
            arg = arg.decode(errors="surrogateescape")
        words += str(arg).split() if not words else [str(arg)]
    return [word.upper() if not index else word for index, word in enumerate(words)]


async def _execute_command(self: _core.Client, *args: Any, **options: Any) -> Any:
    """Send a command; the reply.

    On an instance the command is sent when this is called, and the reply is awaited.

    Args:
        args: the command's name and its arguments: bytes, str, int, float, bytearray,
            memoryview.
        options: for the response callback, and redis-py's own.

    Raises:
        DataError: an argument is of another type.
    """
    return await _core.Client.execute_command(self, *args, **options)


_execute_command.__name__ = "execute_command"
_execute_command.__qualname__ = "Redis.execute_command"


class Redis(_core.Client, base.Redis):  # type: ignore[misc]  # execute_command is not async
    """redis.asyncio.Redis, with its commands carried by a native pool of workers.

    A command is sent when its method is called; what is returned is an awaitable
    that is a future and a coroutine at once. Where no event loop runs in the
    thread, a coroutine is returned that sends when it is awaited. A client may be
    used from any thread and from several loops.

    Args:
        workers: worker threads of its own, 1 to 1024; 4 by default.
        pool: an offloop.Pool to share instead.
        kwargs: as redis.asyncio.Redis.

    Raises:
        ValueError: workers or port is out of range, or workers= or pool= is given
            together with the other or with connection_pool=.
        TypeError: an option is unknown.
    """

    execute_command = _core.Entry(_core.Client.execute_command, _execute_command)

    _connection: AbstractConnection | None = None

    def __init__(
        self, *, workers: int | None = None, pool: Pool | None = None, **kwargs: Any
    ) -> None:
        given = kwargs.get("connection_pool")
        if given is not None and (workers is not None or pool is not None):
            raise ValueError("workers= and pool= belong to the connection pool that is given")
        super().__init__(**kwargs)
        # redis-py's belong to the first loop that has to wait.
        self._single_conn_lock: Any = LoopsLock()
        self._usage_lock: Any = LoopsLock()
        if given is None:
            adopt(self.connection_pool, workers, pool, own_retry="retry" in kwargs)

    @classmethod
    def from_url(
        cls,
        url: str,
        single_connection_client: bool = False,
        auto_close_connection_pool: bool | None = None,
        **kwargs: Any,
    ) -> Redis:
        """A client configured from a URL.

        Args:
            url: ``redis://``, ``unix://`` or ``rediss://``, as redis-py has it, with
                the option ``workers`` besides.
            kwargs: as for the connection pool, ``workers`` and ``pool`` among them.

        Raises:
            ValueError: the URL or an option in it is invalid.
        """
        client = cls(
            connection_pool=ConnectionPool.from_url(url, **kwargs),
            single_connection_client=single_connection_client,
        )
        if auto_close_connection_pool is None:
            auto_close_connection_pool = True
        else:
            warnings.warn(
                '"auto_close_connection_pool" is deprecated since redis-py 5.0.1: create a '
                "ConnectionPool and give it to the constructor",
                DeprecationWarning,
                stacklevel=2,
            )
        client.auto_close_connection_pool = auto_close_connection_pool
        return client

    @property  # type: ignore[override]
    def connection(self) -> AbstractConnection | None:
        """The one connection that every command uses, if there is such a one.

        A single-connection client has it once it is initialized; a program may set it.
        """
        return self._connection

    @connection.setter
    def connection(self, connection: AbstractConnection | None) -> None:
        changed = connection is not self._connection
        self._connection = connection
        if changed:
            self.connection_pool = self.connection_pool  # where commands go is asked anew

    @connection.deleter
    def connection(self) -> None:
        self.connection = None  # pyright: ignore[reportIncompatibleVariableOverride]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """A pipeline, which queues commands until its execute() sends them together.

        Args:
            transaction: wrap them in MULTI and EXEC.
            shard_hint: kept for redis-py's signature.
        """
        return Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)

    def pubsub(self, **kwargs: Any) -> PubSub:
        """A subscriber, which has a connection for itself.

        Args:
            kwargs: as for PubSub.
        """
        dispatcher: Any = self._event_dispatcher
        return PubSub(self.connection_pool, event_dispatcher=dispatcher, **kwargs)

    def ft(self, index_name: Any = "idx") -> Search:
        """The commands of the search module, for one index."""
        return Search(self, index_name, SearchPipeline)

    def json(  # type: ignore[override]
        self, encoder: Any = _ENCODER, decoder: Any = _DECODER
    ) -> JSON:
        """The commands of the JSON module."""
        return JSON(self, encoder, decoder, JSONPipeline)

    def ts(self) -> TimeSeries:  # type: ignore[override]
        """The commands of the time series module."""
        return TimeSeries(self, TimeSeriesPipeline)

    def _open_channel(self) -> _core.Channel | None:
        """The channel for this client's commands; None: redis-py's own connections."""
        if self.single_connection_client or self.connection is not None:
            return None
        if type(self).parse_response is not base.Redis.parse_response:
            return None  # the program reads replies from the connection itself
        connection_pool = self.connection_pool
        if isinstance(connection_pool, NativeChannel):
            return connection_pool.open_channel()
        return None

    def _execute_leased(self, *args: Any, **options: Any) -> Awaitable[Any]:
        """A command on a connection of its own, redis-py's way."""
        name, channel = name_of(args), self._open_channel()
        if channel is not None and name:
            if name == "AUTH":
                return self._log_in(_words(args)[1:], options)
            if name in _WAITS:
                return self._wait(args, options)
            if channel.sharing(name) == "unknown":
                return self._execute_unknown(channel, name, args, options)
        execute: Callable[..., Awaitable[Any]] = base.Redis.execute_command
        return execute(self, *args, **options)

    async def _wait(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """WAIT or WAITAOF: for every write that the server has by now.

        A server counts who has the last write of the connection that asks (up to 7.0: its
        last command), and ours were others'. So it gets one: a message that nobody hears.
        """
        async with self.pipeline(transaction=False) as pipe:
            pipe.execute_command("PING").execute_command("SPUBLISH", _NOBODY, "")
            pipe.execute_command(*args, **options)
            _, written, reply = await pipe.execute(raise_on_error=False)
        if isinstance(written, Exception) and "unknown command" not in str(written):
            raise written
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def _execute_unknown(
        self, channel: _core.Channel, name: str, args: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        """A command that is in no table: what it needs is asked for first."""
        unsure = await learn(channel, [name])
        try:
            sent = _core.Client.execute_command(self, *args, **options)
        finally:
            forget(channel, unsure)
        return await sent

    async def _log_in(self, words: list[str], options: dict[str, Any]) -> Any:
        """AUTH: who the client is from now on, on every connection that it shares."""
        if len(words) not in (1, 2):
            raise ResponseError("wrong number of arguments for 'auth' command")
        username = words[0] if len(words) == 2 else None
        reply = await self.connection_pool.log_in(username, words[-1])
        callback = self.response_callbacks.get("AUTH")
        return reply if callback is None else callback(reply, **options)

    async def _execute_deferred(self, *args: Any, **options: Any) -> Any:
        """A command made where no loop runs: sent by whoever awaits it."""
        return await _core.Client.execute_command(self, *args, **options)

    def stats(self) -> dict[str, Any]:
        """What the client's channel and pool have done so far.

        Returns:
            A dict of counters: ``workers``, ``commands``, ``pipelines``, ``replies``,
            ``batches`` and ``mean_batch`` (replies a read), ``writes``, ``inline_sends``
            (of them by the calling thread), ``inline_reads`` (reads by the loop's thread),
            ``loans`` (times a socket was lent to it for that), ``wakeups``, ``eventfd_writes``,
            ``queue_depth``, ``queue_high_water``, ``connections`` (without leases),
            ``large_reads_aside`` (commands on the second of them), ``connects``,
            ``connect_failures``, ``tls_handshakes``, ``tls_resumed`` (of them with an
            earlier session), ``losses``, ``bytes_in``, ``bytes_out``, ``errors``,
            ``timeouts``, ``cancelled``, ``dropped_replies``, ``pushes``,
            ``retained_unsent``; ``blocking_commands``, ``leases`` (connections for one
            of them each, open now), ``leases_idle``, ``leases_high_water``,
            ``leases_opened``, ``waiting_for_lease`` (commands), ``held`` (of the leases, those of
            pub/sub and the like), ``held_pushes`` (RESP3 messages for them); and ``pool``, which is
            the pool's stats(). Always counted; may be called from any thread. Empty
            but for ``pool`` where the connection pool is redis-py's.
        """
        connection_pool = self.connection_pool
        if isinstance(connection_pool, NativeChannel):
            return connection_pool.stats()
        return {}


for _name, _method in native_methods(base.Redis).items():
    setattr(Redis, _name, _method)


class Pipeline(NativePipeline, base.Pipeline, Redis):  # type: ignore[misc]
    """redis.asyncio's Pipeline, whose commands are one job of the native pool.

    Each method queues its command and returns the pipeline; execute() sends them all
    at once and gives the replies in order. After watch(), and where a command needs a
    connection to itself, the pipeline goes redis-py's way on a connection of its own.

    Args:
        connection_pool: whose channel it uses.
        response_callbacks: command name to the function that its reply goes through.
        transaction: wrap the commands in MULTI and EXEC.
        shard_hint: kept for redis-py's signature.
    """


class SearchPipeline(Pipeline, AsyncPipeline):  # type: ignore[misc]
    """A pipeline of ``client.ft()``."""


class JSONPipeline(JSONCommands, Pipeline):  # type: ignore[misc]
    """A pipeline of ``client.json()``."""


class TimeSeriesPipeline(TimeSeriesCommands, Pipeline):  # type: ignore[misc]
    """A pipeline of ``client.ts()``."""


StrictRedis = Redis


def from_url(url: str, **kwargs: Any) -> Redis:
    """A client configured from a URL; see Redis.from_url()."""
    return Redis.from_url(url, **kwargs)


def __getattr__(name: str) -> Any:
    """Whatever else redis.asyncio.client has: programs reach its parts by path."""
    return getattr(base, name)
