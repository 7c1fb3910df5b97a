"""In place of the aioodbc package: ``import offloop.dbapi.aioodbc as aioodbc``.

The API is aioodbc's; the calls of a connection run in order on a pool of threads, and
rows come along with ``execute``. `connect` and `create_pool` take two keywords more,
``pool`` and ``offload``; an ``executor`` that is an `offloop.Pool` is taken as ``pool``, and
any other one is kept but not used. Connections and pools have what those of
`offloop.dbapi` have besides.

As with aioodbc, a query whose awaiter is cancelled while it runs is not ended early;
``offload=Offload()`` has that.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import traceback
import warnings
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from contextlib import suppress
from types import TracebackType
from typing import Any

import pyodbc

from offloop.dbapi import connection as base
from offloop.dbapi import cursor as base_cursor
from offloop.dbapi.drivers import Offload
from offloop.dbapi.maker import Maker
from offloop.dbapi.opening import Opening, failed, ready
from offloop.dbapi.pool import ConnectionPool
from offloop.pool import Pool as Threads
from offloop.pool import default_pool

__all__ = ["Connection", "Cursor", "Pool", "connect", "create_pool", "dataSources"]

_LOGGER = logging.getLogger("offloop.dbapi.aioodbc")

#: What says that the connection is gone, and how its text begins.
_GONE = {"08S01": "", "HY000": "[HY000] server closed the connection unexpectedly"}


def _is_gone(error: pyodbc.Error) -> bool:
    """Whether an error says that the connection is gone."""
    state, text = (*error.args, "", "")[:2]
    return state in _GONE and str(text).startswith(_GONE[state])


def _deprecated(loop: object) -> None:
    if loop is not None:
        text = "Explicit loop is deprecated, and has no effect."
        warnings.warn(text, DeprecationWarning, stacklevel=3)


class Cursor(base_cursor.Cursor):
    """A cursor, as aioodbc has it. Its catalog functions (``tables``, ``columns`` ...) are
    pyodbc's, awaited."""

    _connection: Connection

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._call = self._watched
        self._echo = self._connection.echo

    def _watched(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if self._closed:
            return failed(pyodbc.OperationalError("Cursor is closed."))
        return self._connection._watched(fn, *args, **kwargs)

    @property
    def echo(self) -> bool:
        """Whether statements are logged."""
        return self._echo

    @property
    def connection(self) -> Connection | None:  # type: ignore[override]
        """The connection; None when the cursor is closed."""
        return None if self._closed else self._connection

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return self._connection.loop

    @property
    def autocommit(self) -> bool:
        """The connection's. May be set."""
        return self._connection.autocommit

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        self._connection.autocommit = value

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def execute(self, sql: str, *params: Any) -> Coroutine[Any, Any, Cursor]:
        """Execute a statement; gives the cursor itself."""
        self._connection._log(sql)
        return self._watched(self._execute, "execute", sql, *params)  # type: ignore[no-any-return]

    def executemany(  # type: ignore[override]
        self, sql: str, *params: Any
    ) -> Coroutine[Any, Any, None]:
        """Execute a statement with many sets of parameters."""
        return self._watched(self._many_times, sql, *params)  # type: ignore[no-any-return]

    def _many_times(self, sql: str, *params: Any) -> None:
        self._execute("executemany", sql, *params)

    def callproc(self, procname: str, args: Any = ()) -> Any:
        """pyodbc has none: execute ``{call ...}``."""
        raise NotImplementedError

    async def setinputsizes(self, sizes: Any = None) -> None:
        """As pyodbc has it."""
        await self._watched(self._run, "setinputsizes", sizes)

    async def setoutputsize(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing, as with pyodbc."""

    def fetchval(self) -> Coroutine[Any, Any, Any]:
        """The first value of the next row, or None."""
        return self._value()

    async def _value(self) -> Any:
        row = await self.fetchone()
        return None if row is None else row[0]

    async def __anext__(self) -> Any:
        row = await self.fetchone()
        if row is None:
            raise StopAsyncIteration
        return row

    async def commit(self) -> None:
        """Commit the connection's transaction."""
        await self._watched(self._run, "commit")

    async def rollback(self) -> None:
        """Roll back the connection's transaction."""
        await self._watched(self._run, "rollback")

    async def close(self) -> None:
        """Close it. Again is harmless."""
        if self._closed:
            return
        self._closed = True
        if self._raw is not None:
            await self._connection._watched(self._shut)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


class Connection(base.Connection):
    """A connection, as aioodbc has it. Made by `connect`."""

    _source_traceback: traceback.StackSummary | None = None

    def __init__(
        self,
        *,
        dsn: str,
        autocommit: bool = False,
        ansi: bool | None = None,
        timeout: int = 0,
        executor: Executor | None = None,
        echo: bool = False,
        loop: object = None,
        after_created: Callable[[Any], Awaitable[object]] | None = None,
        pool: Threads | None = None,
        offload: Offload | None = None,
        **kwargs: Any,
    ) -> None:
        _deprecated(loop)
        self._executor = executor
        self._loop = asyncio.get_running_loop()
        self._echo = echo
        self._after_created = after_created
        if self._loop.get_debug():
            self._source_traceback = traceback.extract_stack(sys._getframe(1))
        if pool is None and isinstance(executor, Threads):
            pool = executor
        kwargs = {"autocommit": autocommit, "ansi": bool(ansi), "timeout": timeout, **kwargs}
        offload = offload if offload is not None else Offload(interrupt=False)
        super().__init__(Maker(pyodbc, (dsn,), kwargs, pool, offload))
        self._last_usage = self._loop.time()

    async def _connect(self) -> Connection:
        await super()._connect()
        if self._after_created is not None:
            try:
                await self._after_created(self._raw)
            except BaseException:
                self._close_soon()
                raise
        return self

    def _warn_of_leak(self) -> None:
        warnings.warn(f"Unclosed connection {self!r}", ResourceWarning, stacklevel=2)
        context: dict[str, Any] = {"connection": self, "message": "Unclosed connection"}
        if self._source_traceback is not None:
            context["source_traceback"] = self._source_traceback
        self._loop.call_exception_handler(context)

    async def _watched(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Make a call; if it finds the connection gone, close it."""
        try:
            return await self._call(fn, *args, **kwargs)
        except pyodbc.Error as error:
            if _is_gone(error) and not self.closed:
                with suppress(pyodbc.Error):
                    await self.close()
            raise

    def _log(self, sql: str) -> None:
        if self._echo:
            _LOGGER.info("%s", sql)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop in which it was made."""
        return self._loop

    @property
    def _conn(self) -> Any:
        return None if self.closed else self._raw

    @property
    def autocommit(self) -> bool:
        """Whether statements are committed by themselves. May be set."""
        return bool(self._raw.autocommit)

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        self._raw.autocommit = value

    @property
    def timeout(self) -> int:
        """Seconds for a query, as the driver has it; 0: none."""
        found: int = self._raw.timeout
        return found

    @property
    def last_usage(self) -> float:
        """When a cursor was made last, by the loop's time."""
        return self._last_usage

    @property
    def echo(self) -> bool:
        """Whether statements are logged."""
        return self._echo

    def cursor(self) -> Opening[Cursor]:  # type: ignore[override]
        """A cursor: await it, or enter it by ``async with``, which commits at the end, or
        rolls back if the block raises."""
        self._last_usage = self._loop.time()
        return Opening(ready(Cursor(self)), _leave_cursor)

    async def execute(self, sql: str, *args: Any) -> Cursor:  # type: ignore[override]
        """Execute a statement on a new cursor, and give that."""
        self._log(sql)
        cursor = Cursor(self)
        await self._watched(cursor._execute, "execute", sql, *args)
        return cursor

    def getinfo(self, type_: int) -> Coroutine[Any, Any, Any]:
        """As pyodbc has it."""
        return self._watched(base._method, self, "getinfo", type_)

    def add_output_converter(self, sqltype: int, func: Any) -> Coroutine[Any, Any, None]:
        """As pyodbc has it; a worker calls the function."""
        return self._watched(base._method, self, "add_output_converter", sqltype, func)

    def clear_output_converters(self) -> Coroutine[Any, Any, None]:
        """As pyodbc has it."""
        return self._watched(base._method, self, "clear_output_converters")

    def set_attr(self, attr_id: int, value: int) -> Coroutine[Any, Any, None]:
        """As pyodbc has it."""
        return self._watched(base._method, self, "set_attr", attr_id, value)


async def _leave_cursor(cursor: Cursor, exc: BaseException | None) -> None:
    try:
        if exc is not None:
            await cursor.rollback()
        elif not cursor._closed and not cursor.autocommit:
            await cursor.commit()
    finally:
        await cursor.close()


async def _leave_connection(connection: Connection, exc: BaseException | None) -> None:
    try:
        if connection.closed:
            return
        if exc is not None:
            await connection.rollback()
        elif not connection.autocommit:
            await connection.commit()
    finally:
        await connection.close()


def connect(*, dsn: str, loop: object = None, **kwargs: Any) -> Opening[Connection]:
    """Connect: await it, or enter it by ``async with``, which commits at the end, or rolls
    back if the block raises.

    Args:
        dsn: the connection string.
        autocommit, ansi, timeout: as pyodbc has them.
        echo: log statements.
        after_created: a coroutine function that gets pyodbc's connection first.
        executor, loop: kept, and not used; but an executor that is an `offloop.Pool` is.
        pool: whose workers make the calls; `offloop.default_pool` if it is None.
        offload: how the calls are made.
        kwargs: what `pyodbc.connect` takes.
    """
    _deprecated(loop)

    async def opened() -> Connection:
        connection = Connection(dsn=dsn, **kwargs)
        await connection._connect()
        return connection

    return Opening(opened(), _leave_connection)


class Pool(ConnectionPool):
    """A pool of connections, as aioodbc has it. Made by `create_pool`.

    More than aioodbc's: a connection that comes back with a transaction open is rolled
    back before the next one gets it.
    """

    def __init__(
        self, dsn: str, minsize: int, maxsize: int, echo: bool, pool_recycle: int, **kwargs: Any
    ) -> None:
        threads = kwargs.get("pool")
        if threads is None and isinstance(kwargs.get("executor"), Threads):
            threads = kwargs["executor"]
        own = Threads(min(max(maxsize, 1), 1024)) if threads is None else None
        self._arguments = {**kwargs, "dsn": dsn, "echo": echo, "pool": threads or own}
        super().__init__(
            Maker(pyodbc, (), {}, threads or own, None),
            minsize=minsize,
            maxsize=maxsize,
            recycle=None if pool_recycle < 0 else pool_recycle,
            check=None,
            on_connect=None,
        )
        self._threads = own
        self._echo = echo
        self._was_closed = False

    def _new_connection(self) -> Connection:
        return Connection(**self._arguments)

    def _pick(self) -> base.Connection:
        return self._free.popleft()

    def _is_old(self, connection: base.Connection, now: float) -> bool:
        return self._recycle is not None and now - connection._used > self._recycle

    async def _acquire(self) -> base.Connection:
        while not self._closing and self.size < self.minsize:
            self._opening += 1
            connection = await self._open_one()
            self._opening -= 1
            self._give(connection)
        return await super()._acquire()

    @property
    def _used(self) -> set[base.Connection]:
        found = [reference() for reference in self._lent.values()]
        return {connection for connection in found if connection is not None}

    @property
    def echo(self) -> bool:
        """Whether statements are logged."""
        return self._echo

    @property
    def closed(self) -> bool:
        """Whether `wait_closed` has come to its end."""
        return self._was_closed

    async def clear(self) -> None:
        """Close all free connections."""
        while self._free:
            self._discard(self._free.popleft())
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def wait_closed(self) -> None:
        """Wait until every connection is back and closed."""
        await super().wait_closed()
        self._was_closed = True


def create_pool(
    dsn: str,
    minsize: int = 10,
    maxsize: int = 10,
    echo: bool = False,
    loop: object = None,
    pool_recycle: int = -1,
    **kwargs: Any,
) -> Opening[Pool]:
    """A pool of connections: await it, or enter it by ``async with``.

    Args:
        dsn: the connection string.
        minsize, maxsize: how many connections there are.
        echo: log statements.
        loop: not used.
        pool_recycle: seconds of idleness after which a connection is replaced; -1: never.
        kwargs: what `connect` takes. Without ``pool`` the calls have threads of their own,
            one for each connection.
    """
    _deprecated(loop)

    async def created() -> Pool:
        pool = Pool(dsn, minsize, maxsize, echo, pool_recycle, **kwargs)
        await pool._fill()
        return pool

    async def leave(pool: Pool, exc: BaseException | None) -> None:
        await pool.aclose()

    return Opening(created(), leave)


async def dataSources(loop: object = None, executor: Executor | None = None) -> dict[str, str]:
    """The names of the data sources, and their drivers' descriptions."""
    _deprecated(loop)
    pool = executor if isinstance(executor, Threads) else default_pool()
    found: dict[str, str] = await pool.call(pyodbc.dataSources)
    return found
