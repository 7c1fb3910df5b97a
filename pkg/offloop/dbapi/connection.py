"""The asynchronous connection over a driver's own, and `connect`."""

from __future__ import annotations

import asyncio
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future as ExecutorFuture
from contextlib import suppress
from itertools import islice
from types import ModuleType, TracebackType
from typing import Any, TypeVar

from offloop.dbapi.cursor import Cursor
from offloop.dbapi.drivers import Driver, Offload
from offloop.dbapi.ending import Ender
from offloop.dbapi.maker import Maker, lane_of
from offloop.dbapi.opening import Opening
from offloop.dbapi.transaction import Transaction
from offloop.pool import Caller, Pool

__all__ = ["Connection", "connect"]

T = TypeVar("T")


class Connection:
    """A PEP 249 connection whose methods are awaited. Made by `connect`, or by a pool.

    Its calls run one after another, in the order in which they were made, on the workers
    of a `offloop.Pool`. The driver's exceptions are raised as they are. Several tasks may
    use it at the same time, but they share its transaction; a pool is better for that.

    ``fetch``, ``fetchrow`` and ``fetchval`` execute and fetch in one hop; so does
    ``execute``, which brings the first rows along. What is not here is the driver's own:
    its methods are awaited (``await db.set_trace_callback(print)``), its attributes read.
    """

    def __init__(self, maker: Maker) -> None:
        self._maker = maker
        self._driver: Driver = maker.driver
        self._lane = lane_of(maker.pool, maker.driver, maker.pinned)
        self._prefetch = maker.offload.prefetch
        self._raw: Any = None
        self._gone = False  # the driver's connection was closed; workers say so
        self._closing: Coroutine[Any, Any, None] | ExecutorFuture[None] | None = None
        self._cursors: weakref.WeakSet[Cursor] = weakref.WeakSet()  # if the driver is tidy
        self._transactions: list[Transaction] = []
        # Of a pool of connections: when it was made and used last, and whether it has to
        # be asked if it is well.
        self._born = self._used = 0.0
        self._doubt = False
        self._ender = Ender(maker, self._lane)
        timeout = maker.offload.timeout
        way = self._lane if timeout is None else Caller(self._lane, timeout)
        # Calls that go on when they are given up, and queries, which are ended early.
        self._plain: Callable[..., Coroutine[Any, Any, Any]] = way.call
        self._call = self._plain

    # ---- life

    def _open(self) -> None:
        """Connect. Run by a worker."""
        raw = self._maker.connect()
        self._call = self._ender.way(raw) or self._plain
        self._raw = raw

    async def _connect(self) -> Connection:
        try:
            await self._plain(self._open)
        except BaseException:
            # It may be under way, or have ended just now: nobody will close it.
            self._close_soon()
            raise
        return self

    def _shut(self) -> None:
        """Close the driver's connection. Run by a worker, its own thread if it is pinned."""
        if self._raw is not None and not self._gone:
            self._gone = True
            for cursor in list(self._cursors):
                cursor._shut_quietly()
            self._ender.let_go()
            self._raw.close()

    def _shut_quietly(self) -> None:
        with suppress(Exception):
            self._shut()

    def _close_soon(self) -> None:
        """Close, and wait for nothing."""
        with suppress(RuntimeError):  # the pool is closed
            self._closing = self._lane.call(self._shut_quietly)

    @property
    def closed(self) -> bool:
        """Whether it was closed, or is being closed, or was never opened."""
        return self._closing is not None or self._raw is None

    async def close(self) -> None:
        """Finish what is under way and close. Again is harmless."""
        if self._closing is None:
            self._closing = self._lane.call(self._shut)
        # Whoever waits may be cancelled; the connection is closed all the same.
        if isinstance(self._closing, ExecutorFuture):
            await asyncio.shield(asyncio.wrap_future(self._closing))
        else:
            await asyncio.shield(self._closing)

    def terminate(self) -> None:
        """Finish what is under way and close, and wait for nothing. Thread: any, with or
        without an event loop."""
        if self._closing is None and self._raw is not None:
            with suppress(RuntimeError):  # the pool is closed
                self._closing = self._lane.submit(self._shut_quietly)

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        if getattr(self, "_raw", None) is None or self._closing is not None:
            return
        self._warn_of_leak()
        # On its own thread, and without us: the driver's connection is all that is left.
        with suppress(RuntimeError):  # the pool is closed
            self._lane.submit(_close, self._raw)

    def _warn_of_leak(self) -> None:
        warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=2, source=self)

    # ---- run by workers

    def _fetch(self, /, *args: Any, **kwargs: Any) -> list[Any]:
        cursor = self._ender.active = self._driver.cursor_of(self._raw)
        try:
            cursor.execute(*args, **kwargs)
            rows = cursor.fetchall()
        finally:
            self._ender.let_go(cursor)
            self._driver.close_cursor(cursor)
        return rows if isinstance(rows, list) else list(rows)

    def _fetchrow(self, /, *args: Any, **kwargs: Any) -> Any:
        cursor = self._ender.active = self._driver.cursor_of(self._raw)
        try:
            cursor.execute(*args, **kwargs)
            return cursor.fetchone()
        finally:
            self._ender.let_go(cursor)
            self._driver.close_cursor(cursor)

    def _fetchval(self, /, *args: Any, **kwargs: Any) -> Any:
        row = self._fetchrow(*args, **kwargs)
        if row is None:
            return None
        try:
            return row[0]
        except (KeyError, TypeError):  # rows that are mappings
            return next(iter(row.values()))

    # ---- queries

    def cursor(self, *args: Any, **kwargs: Any) -> Cursor:
        """A cursor; the arguments are those of the driver's ``cursor``.

        It may be awaited, and entered by ``async with``; neither is necessary.
        """
        return Cursor(self, args, kwargs)

    def execute(self, /, *args: Any, **kwargs: Any) -> Opening[Cursor]:
        """Execute a statement on a new cursor and bring the first rows along, in one hop.

        Returns:
            the cursor, when awaited; ``async with`` closes it at the end.
        """
        cursor = Cursor(self, own=False)
        return Opening(self._call(cursor._execute, "execute", *args, **kwargs), _leave)

    def executemany(self, /, *args: Any, **kwargs: Any) -> Opening[Cursor]:
        """Execute a statement with many sets of parameters; as `execute`."""
        cursor = Cursor(self, own=False)
        return Opening(self._call(cursor._execute, "executemany", *args, **kwargs), _leave)

    def executescript(self, /, *args: Any, **kwargs: Any) -> Opening[Cursor]:
        """Execute several statements, where the driver can; as `execute`."""
        cursor = Cursor(self, own=False)
        return Opening(self._call(cursor._execute, "executescript", *args, **kwargs), _leave)

    def fetch(self, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, list[Any]]:
        """Execute a statement and give all its rows, in one hop."""
        return self._call(self._fetch, *args, **kwargs)

    def fetchrow(self, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """Execute a statement and give its first row, or None, in one hop."""
        return self._call(self._fetchrow, *args, **kwargs)

    def fetchval(self, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """Execute a statement and give its first row's first value, or None."""
        return self._call(self._fetchval, *args, **kwargs)

    def run(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, T]:
        """Call fn(raw, *args, **kwargs) with the driver's own connection, in one hop.

        fn may do any number of things with it; no other call comes between them.
        """
        return self._call(_run, self, fn, *args, **kwargs)

    # ---- transactions

    def commit(self) -> Coroutine[Any, Any, None]:
        """Commit what was done since the last commit. It is never ended early."""
        return self._plain(_commit, self)

    def rollback(self) -> Coroutine[Any, Any, None]:
        """Undo what was done since the last commit. It is never ended early."""
        return self._plain(_rollback, self)

    def transaction(self, begin: str | None = None) -> Transaction:
        """A transaction, for ``async with``: committed at the end, or rolled back.

        One inside of another is a savepoint. A connection's transaction is one task's at
        a time.

        Args:
            begin: the statement that begins it, such as ``BEGIN IMMEDIATE``; by default
                what suits the driver.

        Raises:
            RuntimeError: on entering it, if another task is in one.
        """
        return Transaction(self, begin)

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open.

        Raises:
            AttributeError: the driver does not know.
        """
        found = self._driver.in_transaction(self._raw)
        if found is None:
            raise AttributeError(f"{self._driver.name} does not tell: in_transaction")
        return found

    @property
    def autocommit(self) -> bool:
        """Whether statements are committed by themselves; see `set_autocommit`.

        Raises:
            AttributeError: the driver does not know.
        """
        found = self._driver.autocommit(self._raw)
        if found is None:
            raise AttributeError(f"{self._driver.name} does not tell: autocommit")
        return found

    def set_autocommit(self, value: Any) -> Coroutine[Any, Any, None]:
        """Have statements committed by themselves, or not."""
        return self._plain(_set_autocommit, self, value)

    @property
    def isolation_level(self) -> Any:
        """As the driver has it; see `set_isolation_level`."""
        return self._raw.isolation_level

    def set_isolation_level(self, value: Any) -> Coroutine[Any, Any, None]:
        """Set it, by the driver's method or attribute."""
        return self._plain(_set_isolation_level, self, value)

    # ---- what some drivers have

    @property
    def row_factory(self) -> Any:
        """What makes rows, where the driver has it. May be set."""
        return self._raw.row_factory

    @row_factory.setter
    def row_factory(self, value: Any) -> None:
        self._raw.row_factory = value

    @property
    def text_factory(self) -> Any:
        """What makes texts, where the driver has it. May be set."""
        return self._raw.text_factory

    @text_factory.setter
    def text_factory(self, value: Any) -> None:
        self._raw.text_factory = value

    def create_function(self, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """Make a function of SQL; a worker calls it."""
        return self._plain(_method, self, "create_function", *args, **kwargs)

    def backup(self, target: Any, /, **kwargs: Any) -> Coroutine[Any, Any, None]:
        """Copy an SQLite database into another one.

        Args:
            target: a `Connection`, or one of sqlite3's that any thread may use. Nothing
                else may be done with it meanwhile.
            kwargs: pages, progress, name, sleep: as sqlite3 has them.
        """
        return self._call(_backup, self, target, kwargs)

    async def iterdump(self, **kwargs: Any) -> AsyncIterator[str]:
        """The statements that make an SQLite database anew, some hundred a hop."""
        lines: Iterator[str] = await self._call(_method, self, "iterdump", **kwargs)
        while some := await self._call(_some, lines, 256):
            for line in some:
                yield line

    async def interrupt(self) -> None:
        """End the query that is under way, whoever made it; its awaiter gets the driver's
        error. Nothing happens if there is none.

        Raises:
            NotImplementedError: the driver has no way to do so, or `Offload` forbids it.
        """
        await self._ender.end_now()

    cancel = interrupt

    def __getattr__(self, name: str) -> Any:
        """What else the driver's connection has; methods are awaited."""
        if name.startswith("_"):
            raise AttributeError(name)
        found = getattr(self._raw, name)
        if not callable(found) or isinstance(found, type):
            return found
        return lambda *args, **kwargs: self._call(_method, self, name, *args, **kwargs)

    @property
    def raw(self) -> Any:
        """The driver's own connection; for attributes only. See `run`."""
        return self._raw

    @property
    def pool(self) -> Pool:
        """The pool whose workers make the calls."""
        return self._maker.pool

    @property
    def pinned(self) -> bool:
        """Whether one and the same thread makes all calls."""
        return self._lane.pinned

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<offloop.dbapi.Connection {self._driver.name} {state}>"


# ---- run by workers ---------------------------------------------------------------------


def _close(raw: Any) -> None:
    with suppress(Exception):
        raw.close()


def _run(connection: Connection, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    return fn(connection._raw, *args, **kwargs)


def _method(connection: Connection, name: str, /, *args: Any, **kwargs: Any) -> Any:
    return getattr(connection._raw, name)(*args, **kwargs)


def _commit(connection: Connection) -> None:
    connection._driver.commit(connection._raw)


def _rollback(connection: Connection) -> None:
    connection._driver.rollback(connection._raw)


def _set_autocommit(connection: Connection, value: Any) -> None:
    connection._driver.set_autocommit(connection._raw, value)


def _set_isolation_level(connection: Connection, value: Any) -> None:
    method = getattr(connection._raw, "set_isolation_level", None)
    if method is not None:
        method(value)
    else:
        connection._raw.isolation_level = value


def _backup(connection: Connection, target: Any, kwargs: dict[str, Any]) -> None:
    if isinstance(target, Connection):
        target = target._raw
    connection._raw.backup(target, **kwargs)


def _some(lines: Iterator[str], count: int) -> list[str]:
    return list(islice(lines, count))


async def _leave(cursor: Cursor, exc: BaseException | None) -> None:
    cursor._leave()


async def _leave_connection(connection: Connection, exc: BaseException | None) -> None:
    await connection.close()


def connect(
    module: ModuleType | str | Callable[..., Any],
    /,
    *args: Any,
    pool: Pool | None = None,
    offload: Offload | None = None,
    **kwargs: Any,
) -> Opening[Connection]:
    """Connect to a database by any PEP 249 module.

        async with offloop.dbapi.connect("sqlite3", "app.db") as db:
            rows = await db.fetch("select ...")

        db = await offloop.dbapi.connect("pyodbc", dsn)
        await db.close()

    Args:
        module: the module, its name, or a function that returns a connection of it.
        args, kwargs: what the module's ``connect`` takes.
        pool: whose workers make the calls; `offloop.default_pool` if it is None.
        offload: how the calls are made.

    Raises:
        ImportError: there is no such module.
        TypeError: it is no PEP 249 module.
        the driver's exceptions, when awaited.
    """
    connection = Connection(Maker(module, args, kwargs, pool, offload))
    return Opening(connection._connect(), _leave_connection)
