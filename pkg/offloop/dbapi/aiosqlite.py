"""In place of the aiosqlite package: ``import offloop.dbapi.aiosqlite as aiosqlite``.

The API is aiosqlite's; the calls run on a pool of threads instead of a thread for each
connection, and most of them take one hop where aiosqlite takes two or three. `connect`
takes two keywords more, ``pool`` and ``offload``, and connections have what those of
`offloop.dbapi` have besides (``fetch``, ``transaction``, ...).

As with aiosqlite, a statement whose awaiter is cancelled while it runs is not ended early,
since an SQLite transaction would go with it; ``offload=Offload(interrupt=True)`` has that.
Where no ``pool`` is given each connection has a thread of its own, as with aiosqlite, so
connections that wait for each other's locks never keep a worker from each other.
"""

from __future__ import annotations

import asyncio
import sqlite3
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from sqlite3 import (
    DatabaseError,
    Error,
    IntegrityError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    Row,
    Warning,
    paramstyle,
    register_adapter,
    register_converter,
    sqlite_version,
    sqlite_version_info,
)
from typing import Any

from offloop.dbapi import connection as base
from offloop.dbapi import cursor as base_cursor
from offloop.dbapi.drivers import Offload
from offloop.dbapi.maker import Maker
from offloop.dbapi.opening import Opening, failed, ready
from offloop.pool import Pool

__all__ = [
    "Connection",
    "Cursor",
    "DatabaseError",
    "Error",
    "IntegrityError",
    "NotSupportedError",
    "OperationalError",
    "ProgrammingError",
    "Row",
    "Warning",
    "connect",
    "paramstyle",
    "register_adapter",
    "register_converter",
    "sqlite_version",
    "sqlite_version_info",
]

_Parameters = Iterable[Any] | None


class Cursor(base_cursor.Cursor):
    """A cursor, as aiosqlite has it."""

    _connection: Connection

    @property
    def iter_chunk_size(self) -> int:
        """How many rows come at a time."""
        return self._connection._prefetch

    def execute(self, sql: str, parameters: _Parameters = None) -> Coroutine[Any, Any, Cursor]:
        """Execute a statement; gives the cursor itself."""
        return self._if_open("execute", sql, () if parameters is None else parameters)

    def executemany(
        self, sql: str, parameters: Iterable[Iterable[Any]]
    ) -> Coroutine[Any, Any, Cursor]:
        """Execute a statement with many sets of parameters; gives the cursor itself."""
        return self._if_open("executemany", sql, parameters)

    def executescript(self, sql_script: str) -> Coroutine[Any, Any, Cursor]:
        """Execute several statements; gives the cursor itself."""
        return self._if_open("executescript", sql_script)

    def _if_open(self, method: str, /, *args: Any) -> Coroutine[Any, Any, Any]:
        if self._connection._is_over:
            return failed(ValueError("Connection closed"))
        return self._call(self._execute, method, *args)

    def fetchone(self) -> Coroutine[Any, Any, Any]:
        """The next row, or None."""
        if self._connection._is_over:
            return failed(ValueError("Connection closed"))
        return super().fetchone()

    def fetchmany(self, size: int | None = None) -> Coroutine[Any, Any, list[Any]]:
        """The next rows, so many or ``arraysize``."""
        if self._connection._is_over:
            return failed(ValueError("Connection closed"))
        return super().fetchmany(size)

    def fetchall(self) -> Coroutine[Any, Any, list[Any]]:
        """All rows that are left."""
        if self._connection._is_over:
            return failed(ValueError("Connection closed"))
        return super().fetchall()

    def close(self) -> Coroutine[Any, Any, None]:
        """Close the cursor."""
        if self._connection._is_over:
            return failed(ValueError("Connection closed"))
        return super().close()

    @property
    def row_factory(self) -> Any:
        """What makes rows. May be set, for rows that are not fetched yet too."""
        return super().row_factory

    @row_factory.setter
    def row_factory(self, value: Any) -> None:
        before = super().row_factory
        self._set("row_factory", value)
        if self._rows and (before is None or before is Row):
            rows = [tuple(row) for row in self._rows]
            self._rows.clear()
            self._rows.extend(rows if value is None else [value(self._raw, row) for row in rows])


class Connection(base.Connection):
    """A connection, as aiosqlite has it. Made by `connect`, and opened when it is awaited
    or entered.

    Args:
        connector: makes the connection of sqlite3. All calls are made by one thread then.
        iter_chunk_size: how many rows come at a time.
        loop: not used.
        pool: whose workers make the calls; one of its own, of one worker, if it is None.
        offload: how the calls are made.
    """

    _cursor_type = Cursor

    def __init__(
        self,
        connector: Callable[[], sqlite3.Connection],
        iter_chunk_size: int,
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        pool: Pool | None = None,
        offload: Offload | None = None,
        _pinned: bool = True,
    ) -> None:
        if loop is not None:
            warnings.warn(
                "aiosqlite.Connection no longer uses the `loop` parameter",
                DeprecationWarning,
                stacklevel=2,
            )
        if offload is None:
            offload = Offload(pinned=_pinned, prefetch=iter_chunk_size, interrupt=False)
        self._own_pool = pool is None
        if pool is None:
            pool = Pool(1, thread_name_prefix="offloop-aiosqlite")
        maker = Maker(sqlite3, (), {}, pool, offload)
        maker.connect_by(connector)
        super().__init__(maker)
        self._is_over = False

    # ---- life

    def __await__(self) -> Generator[Any, Any, Connection]:
        return self._opened().__await__()

    async def _opened(self) -> Connection:
        if self._raw is None:
            try:
                await self._connect()
            except BaseException:
                self._end_pool()
                raise
        return self

    def _end_pool(self) -> None:
        """What is under way is finished before; nobody waits for it."""
        if self._own_pool:
            self.pool.shutdown(wait=False)

    async def __aenter__(self) -> Connection:
        return await self

    async def close(self) -> None:
        """Finish what is under way and close. Again is harmless."""
        if self._raw is None:
            return
        try:
            await super().close()
            if self._own_pool and not self._is_over:
                await self.pool.aclose()
        finally:
            self._is_over = True

    def stop(self) -> Coroutine[Any, Any, None] | None:
        """Close, from wherever; prefer ``async with`` or `close`."""
        self._is_over = True
        if self._closing is not None:
            return ready(None)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self._closing = None
            with suppress(RuntimeError):  # the pool is closed
                self._lane.submit(self._shut_quietly)
            self._end_pool()
            return None
        self._closing = self._lane.call(self._shut_quietly)
        self._end_pool()
        return self._closing

    def _warn_of_leak(self) -> None:
        if self._is_over:
            return
        warnings.warn(
            f"{self!r} was deleted before being closed. Please use 'async with' or "
            "'.close()' to close the connection properly.",
            ResourceWarning,
            stacklevel=2,
        )

    def __del__(self) -> None:
        super().__del__()
        if getattr(self, "_is_over", True) is False and self._raw is not None:
            self._end_pool()

    @property
    def _conn(self) -> sqlite3.Connection:
        if self._raw is None or self._is_over:
            raise ValueError("no active connection")
        found: sqlite3.Connection = self._raw
        return found

    def _is_open(self) -> bool:
        return self._raw is not None and not self._is_over

    def _check(self) -> None:
        if not self._is_open():
            raise ValueError("Connection closed")

    # ---- statements

    def cursor(self) -> Opening[Cursor]:  # type: ignore[override]
        """A cursor: await it, or enter it by ``async with``."""
        if not self._is_open():
            return Opening(failed(self._refusal()), _leave)
        return Opening(ready(Cursor(self)), _leave)

    def execute(  # type: ignore[override]
        self, sql: str, parameters: _Parameters = None
    ) -> Opening[Cursor]:
        """Execute a statement; gives its cursor."""
        return self._statement("execute", sql, () if parameters is None else parameters)

    def executemany(  # type: ignore[override]
        self, sql: str, parameters: Iterable[Iterable[Any]]
    ) -> Opening[Cursor]:
        """Execute a statement with many sets of parameters; gives its cursor."""
        return self._statement("executemany", sql, parameters)

    def executescript(self, sql_script: str) -> Opening[Cursor]:  # type: ignore[override]
        """Execute several statements; gives their cursor."""
        return self._statement("executescript", sql_script)

    def _statement(self, method: str, /, *args: Any) -> Opening[Cursor]:
        if not self._is_open():
            return Opening(failed(self._refusal()), _leave)
        execute: Callable[..., Any] = Cursor(self)._execute
        return Opening(self._call(execute, method, *args), _leave)

    def execute_insert(self, sql: str, parameters: _Parameters = None) -> Opening[Any]:
        """Execute an INSERT; gives the row with the id of what was inserted."""
        return self._value(_execute_insert, sql, parameters)

    def execute_fetchall(self, sql: str, parameters: _Parameters = None) -> Opening[Any]:
        """Execute a statement and give all its rows."""
        return self._value(_execute_fetchall, sql, parameters)

    def _value(self, job: Callable[..., Any], sql: str, parameters: _Parameters) -> Opening[Any]:
        if not self._is_open():
            return Opening(failed(self._refusal()), _nothing)
        given = () if parameters is None else parameters
        return Opening(self._call(job, self._raw, sql, given), _nothing)

    def _refusal(self) -> ValueError:
        return ValueError("no active connection" if self._raw is None else "Connection closed")

    def commit(self) -> Coroutine[Any, Any, None]:
        """Commit the transaction."""
        return super().commit() if self._is_open() else failed(self._refusal())

    def rollback(self) -> Coroutine[Any, Any, None]:
        """Roll back the transaction."""
        return super().rollback() if self._is_open() else failed(self._refusal())

    async def interrupt(self) -> None:
        """Interrupt what is under way."""
        self._conn.interrupt()

    # ---- attributes

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return self._conn.in_transaction

    @property
    def isolation_level(self) -> str | None:
        """As sqlite3 has it. May be set, while nothing is under way."""
        found: str | None = self._conn.isolation_level
        return found

    @isolation_level.setter
    def isolation_level(self, value: str | None) -> None:
        self._conn.isolation_level = value  # type: ignore[assignment]

    @property
    def row_factory(self) -> Any:
        """What makes rows. May be set."""
        return self._conn.row_factory

    @row_factory.setter
    def row_factory(self, value: Any) -> None:
        self._conn.row_factory = value

    @property
    def text_factory(self) -> Any:
        """What makes texts. May be set."""
        return self._conn.text_factory

    @text_factory.setter
    def text_factory(self, value: Any) -> None:
        self._conn.text_factory = value

    @property
    def total_changes(self) -> int:
        """How many rows were changed."""
        return self._conn.total_changes

    # ---- what belongs to sqlite3

    async def _method(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        self._check()
        await self._call(getattr(self._conn, name), *args, **kwargs)

    def create_function(
        self, name: str, num_params: int, func: Callable[..., Any], deterministic: bool = False
    ) -> Coroutine[Any, Any, None]:
        """Make a function of SQL; a worker calls it."""
        return self._method("create_function", name, num_params, func, deterministic=deterministic)

    def enable_load_extension(self, value: bool) -> Coroutine[Any, Any, None]:
        """As sqlite3 has it."""
        return self._method("enable_load_extension", value)

    def load_extension(self, path: str) -> Coroutine[Any, Any, None]:
        """As sqlite3 has it."""
        return self._method("load_extension", path)

    def set_progress_handler(
        self, handler: Callable[[], int | None] | None, n: int
    ) -> Coroutine[Any, Any, None]:
        """As sqlite3 has it; a worker calls the handler."""
        return self._method("set_progress_handler", handler, n)

    def set_trace_callback(
        self, handler: Callable[[str], object] | None
    ) -> Coroutine[Any, Any, None]:
        """As sqlite3 has it; a worker calls the handler."""
        return self._method("set_trace_callback", handler)

    def set_authorizer(
        self, authorizer_callback: Callable[..., int] | None
    ) -> Coroutine[Any, Any, None]:
        """As sqlite3 has it; a worker calls the function."""
        return self._method("set_authorizer", authorizer_callback)

    async def iterdump(self) -> AsyncIterator[str]:  # type: ignore[override]
        """The statements that make the database anew."""
        self._check()
        async for line in super().iterdump():
            yield line

    async def backup(  # type: ignore[override]
        self,
        target: Connection | sqlite3.Connection,
        *,
        pages: int = 0,
        progress: Callable[[int, int, int], object] | None = None,
        name: str = "main",
        sleep: float = 0.250,
    ) -> None:
        """Copy the database into another one. Nothing else may be done with that
        meanwhile."""
        self._check()
        await super().backup(target, pages=pages, progress=progress, name=name, sleep=sleep)


# ---- run by workers ---------------------------------------------------------------------------


def _execute_insert(raw: sqlite3.Connection, sql: str, parameters: Any) -> Any:
    cursor = raw.execute(sql, parameters)
    cursor.execute("SELECT last_insert_rowid()")
    return cursor.fetchone()


def _execute_fetchall(raw: sqlite3.Connection, sql: str, parameters: Any) -> list[Any]:
    return raw.execute(sql, parameters).fetchall()


async def _leave(cursor: Cursor, exc: BaseException | None) -> None:
    cursor._leave()


async def _nothing(value: Any, exc: BaseException | None) -> None:
    """What it gave is no cursor."""


def connect(
    database: str | bytes | Path,
    *,
    iter_chunk_size: int = 64,
    loop: asyncio.AbstractEventLoop | None = None,
    pool: Pool | None = None,
    offload: Offload | None = None,
    **kwargs: Any,
) -> Connection:
    """A connection to a database; await it, or enter it by ``async with``.

    Args:
        database: its path.
        iter_chunk_size: how many rows come at a time.
        loop: not used.
        pool: whose workers make the calls; one of its own, of one worker, if it is None.
        offload: how the calls are made.
        kwargs: what `sqlite3.connect` takes.
    """
    if loop is not None:
        warnings.warn(
            "aiosqlite.connect() no longer uses the `loop` parameter",
            DeprecationWarning,
            stacklevel=2,
        )
    pinned = bool(kwargs.setdefault("check_same_thread", False))
    path = database.decode("utf-8") if isinstance(database, bytes) else str(database)
    connector = partial(_connect, path, kwargs)
    return Connection(connector, iter_chunk_size, pool=pool, offload=offload, _pinned=pinned)


def _connect(path: str, kwargs: dict[str, Any]) -> sqlite3.Connection:
    found: sqlite3.Connection = sqlite3.connect(path, **kwargs)
    return found
