"""SQLAlchemy's view of `offloop.dbapi`: a connection and cursors whose methods wait, each
inside of SQLAlchemy's greenlet, for what a worker does.

What belongs together goes in one hop: a statement and all its rows; the end of a
transaction and of the cursors in it. The rest is what SQLAlchemy's own adapters do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from types import ModuleType, TracebackType
from typing import Any

from sqlalchemy.engine import AdaptedConnection
from sqlalchemy.util import concurrency

from offloop import dbapi
from offloop.pool import Pool

__all__ = ["Connection", "Cursor", "ServerCursor", "opened", "wait"]

#: Waits inside of SQLAlchemy's greenlet. Its name in SQLAlchemy 2.1, and before.
wait: Any = getattr(concurrency, "await_", None) or concurrency.await_only


class Cursor:
    """A cursor as SQLAlchemy wants it. A statement's rows come with it, all of them."""

    server_side = False

    def __init__(self, adapted: Connection, *args: Any) -> None:
        self._adapted = adapted
        self._args = args  # of the driver's cursor()
        self._raw: Any = None
        self._rows: deque[Any] = deque()
        # What the driver's cursor said in the same hop: nobody asks it from here while a
        # worker uses it.
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid: Any = None
        self.arraysize = 1

    # ---- run by workers

    def _open(self, raw: Any) -> Any:
        if self._raw is None:
            self._raw = raw.cursor(*self._args)
        return self._raw

    def _execute(self, raw: Any, method: str, /, *args: Any) -> None:
        cursor = self._open(raw)
        getattr(cursor, method)(*args)
        self._executed(cursor)

    def _executed(self, cursor: Any) -> None:
        self._say(cursor)
        self._rows = deque(() if self.description is None else cursor.fetchall())

    def _say(self, cursor: Any) -> None:
        self.description = cursor.description
        self.rowcount = cursor.rowcount
        self.lastrowid = getattr(cursor, "lastrowid", None)

    def _nextset(self, raw: Any) -> Any:
        cursor = self._open(raw)
        found = cursor.nextset()
        if found:
            self._executed(cursor)
        return found

    # ---- inside of the greenlet

    def _run(self, fn: Any, /, *args: Any) -> Any:
        return wait(self._adapted.driver_connection.run(fn, *args))

    def execute(self, operation: Any, parameters: Any = None) -> Any:
        """Execute a statement."""
        given = (operation,) if parameters is None else (operation, parameters)
        self._run(self._execute, "execute", *given)
        return self

    def executemany(self, operation: Any, seq_of_parameters: Any) -> Any:
        """Execute a statement with many sets of parameters."""
        self._run(self._execute, "executemany", operation, seq_of_parameters)
        return self

    def nextset(self) -> Any:
        """Go on to the next set of rows."""
        return self._run(self._nextset)

    def fetchone(self) -> Any:
        """The next row, or None."""
        return self._rows.popleft() if self._rows else None

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """The next rows."""
        count = self.arraysize if size is None else size
        return [self._rows.popleft() for _ in range(min(count, len(self._rows)))]

    def fetchall(self) -> list[Any]:
        """All rows that are left."""
        rows = list(self._rows)
        self._rows.clear()
        return rows

    def __iter__(self) -> Iterator[Any]:
        while self._rows:
            yield self._rows.popleft()

    def close(self) -> None:
        """Forget the rows. The driver's cursor holds nothing that has to be closed."""
        self._rows.clear()
        self._raw = None

    async def _async_soft_close(self) -> None:
        """SQLAlchemy closes a cursor whose rows are there, and goes on with the rows."""

    def __enter__(self) -> Cursor:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class ServerCursor(Cursor):
    """A cursor whose rows the server keeps, for ``stream()``: each fetch asks for some."""

    server_side = True

    def _open(self, raw: Any) -> Any:
        cursor = super()._open(raw)
        self._adapted._left.add(cursor)
        return cursor

    def _executed(self, cursor: Any) -> None:
        self._say(cursor)

    def _fetch(self, raw: Any, method: str, /, *args: Any) -> Any:
        return getattr(self._open(raw), method)(*args)

    def _close(self, raw: Any) -> None:
        cursor = self._raw
        if cursor is not None:
            self._adapted._left.discard(cursor)
            cursor.close()

    def fetchone(self) -> Any:
        """The next row, or None."""
        return self._run(self._fetch, "fetchone")

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """The next rows."""
        count = self.arraysize if size is None else size
        found: list[Any] = self._run(self._fetch, "fetchmany", count)
        return found

    def fetchall(self) -> list[Any]:
        """All rows that are left."""
        found: list[Any] = self._run(self._fetch, "fetchall")
        return found

    def __iter__(self) -> Iterator[Any]:
        while rows := self.fetchmany(max(self.arraysize, 100)):
            yield from rows

    def close(self) -> None:
        """Close it on the server, too."""
        if self._raw is not None:
            self._run(self._close)
            self._raw = None


class Connection(AdaptedConnection):
    """A connection as SQLAlchemy wants it; ``driver_connection`` is `offloop.dbapi`'s.

    What is not here is the driver's: methods are made by a worker and waited for.
    """

    # SQLAlchemy's types are those of asyncio's own drivers.
    _connection: Any

    def __init__(self, connection: dbapi.Connection, own_pool: Pool | None) -> None:
        self._connection = connection
        self._own_pool = own_pool  # which ends with the connection
        #: The driver's cursors that the server has something of. Used by workers, on the
        #: connection's lane.
        self._left: set[Any] = set()

    # ---- run by workers

    def _close_left(self) -> None:
        while self._left:
            with suppress(Exception):  # it is gone with what it was in
                self._left.pop().close()

    def _end(self, raw: Any, name: str) -> None:
        try:
            getattr(raw, name)()
        finally:
            self._close_left()

    # ---- inside of the greenlet

    def cursor(self, *args: Any) -> Cursor:
        """A cursor."""
        return Cursor(self, *args)

    def execute(self, operation: Any, parameters: Any = None) -> Any:
        """Execute a statement on a cursor of its own."""
        return self.cursor().execute(operation, parameters)

    def commit(self) -> None:
        """Commit. It is never ended early."""
        wait(self._connection._plain(self._end, self._connection.raw, "commit"))

    def rollback(self) -> None:
        """Roll back. It is never ended early."""
        wait(self._connection._plain(self._end, self._connection.raw, "rollback"))

    def close(self) -> None:
        """Finish what is under way and close."""
        wait(self._closed())

    async def _closed(self) -> None:
        if not self._connection.closed:
            await self._connection._plain(self._close_left)
        await self._connection.close()
        if self._own_pool is not None:
            await self._own_pool.aclose()

    def terminate(self) -> None:
        """Close, and wait for nothing, inside of a greenlet or not. What is under way is
        finished before."""
        with suppress(RuntimeError):  # the pool is closed
            self._connection._lane.submit(self._close_left)
        self._connection.terminate()
        if self._own_pool is not None:
            self._own_pool.shutdown(wait=False)

    def __getattr__(self, name: str) -> Any:
        """What else the driver's connection has."""
        if name.startswith("_"):
            raise AttributeError(name)
        found = getattr(self._connection.raw, name)
        if not callable(found) or isinstance(found, type):
            return found
        return lambda *args, **kwargs: wait(self._connection.run(_method, name, *args, **kwargs))


def _method(raw: Any, name: str, /, *args: Any, **kwargs: Any) -> Any:
    return getattr(raw, name)(*args, **kwargs)


async def opened(
    module: ModuleType,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    pool: Pool | None,
    offload: dbapi.Offload | None,
) -> tuple[dbapi.Connection, Pool | None]:
    """A connection; with a pool of its own, of one worker, if there is no other.

    Connections that share workers may wait for each other's locks, and those that wait
    would keep the workers from the one that has the lock.
    """
    own = Pool(1, thread_name_prefix="offloop-sqlalchemy") if pool is None else None
    try:
        connection = await dbapi.connect(module, *args, pool=own or pool, offload=offload, **kwargs)
    except BaseException:
        if own is not None:
            own.shutdown(wait=False)
        raise
    return connection, own
