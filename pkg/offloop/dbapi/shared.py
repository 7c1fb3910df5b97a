"""Statements of a pool itself: a transaction each, on whichever connection is free."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from offloop.dbapi.connection import Connection
from offloop.dbapi.opening import Opening

__all__ = ["Shared"]


class Shared:
    """What a pool does without lending a connection.

    A statement goes to a free connection, and stays in its lane together with others:
    since each is one call, and a transaction of its own, nothing can come in between.
    Where every connection is lent, it waits in the line for one.
    """

    _free: deque[Connection]
    _maxsize: int
    _check: float | None
    _recycle: float | None
    _closing: bool

    # What the pool has.
    acquire: Callable[[], Opening[Connection]]
    _open_one: Callable[[], Coroutine[Any, Any, Connection]]
    _give: Callable[[Connection], None]
    _spawn: Callable[[Coroutine[Any, Any, None]], object]
    size: Any
    _opening: int
    _is_old: Callable[[Connection, float], bool]

    def fetch(self, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, list[Any]]:
        """Execute a statement, give all its rows, and commit."""
        return self._shared(Connection._fetch, args, kwargs)

    def fetchrow(self, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """Execute a statement, give its first row, or None, and commit."""
        return self._shared(Connection._fetchrow, args, kwargs)

    def fetchval(self, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """Execute a statement, give its first row's first value, or None, and commit."""
        return self._shared(Connection._fetchval, args, kwargs)

    def execute(self, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, int]:
        """Execute a statement, and commit; gives how many rows it has changed, or -1."""
        return self._shared(_execute, args, kwargs)

    def executemany(self, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, int]:
        """Execute a statement with many sets of parameters, and commit, as `execute`."""
        return self._shared(_executemany, args, kwargs)

    def _shared(
        self, job: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        connection = self._least_busy()
        if connection is None:
            return self._lent_for(job, args, kwargs)
        return connection._call(_settled, connection, job, args, kwargs)

    def _least_busy(self) -> Connection | None:
        """A free connection that needs no look at it before."""
        free = self._free
        if not free or self._closing:
            return None
        chosen = free[-1]
        if chosen._lane.pending:
            # Go round, so that those with the same count take turns.
            free.rotate(1)
            least = chosen._lane.pending
            for one in free:
                pending = one._lane.pending
                if pending < least:
                    chosen, least = one, pending
                    if not pending:
                        break
            if least and self.size < self._maxsize:
                self._opening += 1
                self._spawn(self._grow())
        now = time.monotonic()
        if (
            chosen._doubt
            or (self._check is not None and now - chosen._used >= self._check)
            or self._is_old(chosen, now)
        ):
            return None
        chosen._used = now
        return chosen

    async def _grow(self) -> None:
        """Open a further connection, since the others are busy."""
        with suppress(Exception):  # who needs one and cannot have it will hear of it
            connection = await self._open_one()
            self._opening -= 1
            self._give(connection)

    async def _lent_for(
        self, job: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        async with self.acquire() as connection:
            return await connection._call(_settled, connection, job, args, kwargs)


# ---- run by workers ---------------------------------------------------------------------------


def _settled(
    connection: Connection,
    job: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Do a job as a transaction of its own."""
    driver, raw = connection._driver, connection._raw
    try:
        found = job(connection, *args, **kwargs)
        driver.settle(raw)
    except BaseException:
        connection._doubt = True
        with suppress(Exception):
            driver.reset(raw)
        raise
    return found


def _execute(connection: Connection, /, *args: Any, **kwargs: Any) -> int:
    return _count(connection, "execute", args, kwargs)


def _executemany(connection: Connection, /, *args: Any, **kwargs: Any) -> int:
    return _count(connection, "executemany", args, kwargs)


def _count(
    connection: Connection, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> int:
    driver = connection._driver
    cursor = connection._ender.active = driver.cursor_of(connection._raw)
    try:
        getattr(cursor, method)(*args, **kwargs)
        found: int = cursor.rowcount
        return found
    finally:
        connection._ender.let_go(cursor)
        driver.close_cursor(cursor)
