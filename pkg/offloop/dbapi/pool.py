"""A pool of connections: who gets which, and in what state it comes and goes."""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from types import ModuleType, TracebackType
from typing import Any

from offloop.calling import CallTimeoutError
from offloop.dbapi.connection import Connection
from offloop.dbapi.drivers import Offload
from offloop.dbapi.maker import Maker
from offloop.dbapi.opening import Opening
from offloop.dbapi.shared import Shared
from offloop.pool import Pool

__all__ = ["ConnectionPool", "create_pool"]

_LOGGER = logging.getLogger("offloop.dbapi")

OnConnect = Callable[[Connection], Awaitable[object]]


class ConnectionPool(Shared):
    """Connections that are lent to one task at a time. Made by `create_pool`.

    A connection is lent with no transaction open and no call under way. It comes back in
    whatever state: what is under way is ended or waited for, and what was not committed is
    rolled back, before the next one gets it; whoever gives it back does not wait for that.
    Who waits for a connection is served in order.

    ``fetch``, ``fetchrow``, ``fetchval``, ``execute`` and ``executemany`` of the pool
    itself are a transaction each, and take no more than a hop.

    A pool belongs to the event loop in which it was made.
    """

    def __init__(
        self,
        maker: Maker,
        *,
        minsize: int,
        maxsize: int,
        recycle: float | None,
        check: float | None,
        on_connect: OnConnect | None,
    ) -> None:
        _check_sizes(minsize, maxsize)
        self._maker = maker
        self._minsize, self._maxsize = minsize, maxsize
        self._recycle, self._check, self._on_connect = recycle, check, on_connect
        self._loop = asyncio.get_running_loop()
        self._free: deque[Connection] = deque()  # the one that was used last is at the end
        self._lent: dict[int, weakref.ref[Connection]] = {}
        self._opening = 0
        self._leaving = 0  # being reset or closed
        self._waiters: deque[asyncio.Future[Connection | None]] = deque()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False
        self._gone = asyncio.Event()
        self._threads: Pool | None = None  # its own
        self._counts = dict.fromkeys(
            ("acquired", "opened", "closed", "recycled", "unusable", "lost", "timeouts"), 0
        )

    # ---- sizes

    @property
    def minsize(self) -> int:
        """How many connections are opened at the beginning."""
        return self._minsize

    @property
    def maxsize(self) -> int:
        """How many there are at most."""
        return self._maxsize

    @property
    def size(self) -> int:
        """How many there are: free, lent, being opened, or being made ready."""
        return len(self._free) + len(self._lent) + self._opening + self._leaving

    @property
    def freesize(self) -> int:
        """How many are free."""
        return len(self._free)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closing

    def stats(self) -> dict[str, int]:
        """What the pool is like and what it has done.

        Returns:
            ``size``, ``free``, ``lent``, ``opening``, ``leaving`` (being reset or closed),
            ``waiting`` (for a connection), ``minsize``, ``maxsize``, and how often a
            connection was ``acquired``, ``opened``, ``closed``, ``recycled`` for its age,
            found ``unusable``, ``lost`` by who was lent it, and how many ``timeouts``
            there were in waiting for one.
        """
        return {
            "size": self.size,
            "free": len(self._free),
            "lent": len(self._lent),
            "opening": self._opening,
            "leaving": self._leaving,
            "waiting": len(self._waiters),
            "minsize": self._minsize,
            "maxsize": self._maxsize,
            **self._counts,
        }

    # ---- acquiring

    def acquire(self, timeout: float | None = None) -> Opening[Connection]:
        """Get a connection: ``async with pool.acquire() as db``, or `await` and `release`.

        Args:
            timeout: seconds for waiting for one, for opening it and for checking it.

        Raises:
            CallTimeoutError: the time is over; it is a TimeoutError.
            RuntimeError: the pool is closed.
            the driver's exceptions: it cannot connect.
        """
        if timeout is None:
            return Opening(self._acquire(), self._leave)
        return Opening(self._acquire_within(timeout), self._leave)

    async def _acquire_within(self, timeout: float) -> Connection:
        # In a task of its own, which is waited for, so that nothing is lost: neither a
        # cancel that comes together with the time, nor a connection.
        task = asyncio.ensure_future(self._acquire())
        try:
            await asyncio.wait([task], timeout=timeout)
            if task.done():
                return task.result()
        except asyncio.CancelledError:
            self._abandon(task)
            raise
        self._counts["timeouts"] += 1
        self._abandon(task)
        raise CallTimeoutError(f"no connection after {timeout:g} s")

    def _abandon(self, task: asyncio.Task[Connection]) -> None:
        """Stop acquiring; what was acquired at the last moment goes back."""
        task.cancel()
        task.add_done_callback(self._abandoned)

    def _abandoned(self, task: asyncio.Task[Connection]) -> None:
        if not task.cancelled() and task.exception() is None:
            self.release(task.result())

    async def _acquire(self) -> Connection:
        connection = await self._next()
        while True:
            if connection is None:
                connection = await self._open_one()
                break
            found = await self._made_fit(connection)
            if found is not None:
                break
            connection = None
        self._lend(connection)
        self._counts["acquired"] += 1
        return connection

    async def _next(self) -> Connection | None:
        """A connection that is free, in turn; or None: one may be opened, and is counted."""
        if self._closing:
            raise RuntimeError("the pool of connections is closed")
        if not self._waiters:
            if self._free:
                return self._taken(self._pick())
            if self.size < self._maxsize:
                self._opening += 1
                return None
        waiter: asyncio.Future[Connection | None] = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        except BaseException:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # It was given one at the very moment.
                self._opening -= 1
                connection = waiter.result()
                if connection is not None:
                    self._give(connection)
                else:
                    self._give_room()
            raise

    def _pick(self) -> Connection:
        """The free connection that was used last, of those with the fewest calls."""
        chosen = self._free[-1]
        if chosen._lane.pending:
            chosen = min(reversed(self._free), key=lambda one: one._lane.pending)
        self._free.remove(chosen)
        return chosen

    def _taken(self, connection: Connection) -> Connection:
        self._opening += 1  # until it is lent
        return connection

    async def _made_fit(self, connection: Connection) -> Connection | None:
        """The connection, if it can be used; else None, and it is closed."""
        now = time.monotonic()
        if self._is_old(connection, now):
            self._counts["recycled"] += 1
        elif connection._driver.looks_open(connection._raw):
            if not self._is_doubtful(connection, now):
                return connection
            try:
                if await connection._plain(_checked, connection):
                    connection._doubt = False
                    return connection
                self._counts["unusable"] += 1
            except Exception:
                self._counts["unusable"] += 1
            except BaseException:  # cancelled
                self._opening -= 1
                self._put_back(connection)
                raise
        else:
            self._counts["unusable"] += 1
        self._discard(connection)
        return None

    def _is_old(self, connection: Connection, now: float) -> bool:
        return self._recycle is not None and now - connection._born > self._recycle

    def _is_doubtful(self, connection: Connection, now: float) -> bool:
        """Whether it has to be asked whether it is well."""
        if connection._doubt or connection._lane.pending:
            return True
        return self._check is not None and now - connection._used >= self._check

    async def _fill(self) -> None:
        """Open the first connections; if one fails, close the pool."""
        self._opening += self._minsize
        opened = await asyncio.gather(
            *[self._open_one() for _ in range(self._minsize)], return_exceptions=True
        )
        failures = [one for one in opened if isinstance(one, BaseException)]
        for one in opened:
            if not isinstance(one, BaseException):
                self._opening -= 1
                self._give(one)
        if failures:
            await self.aclose()
            raise failures[0]

    def _new_connection(self) -> Connection:
        return Connection(self._maker)

    async def _open_one(self) -> Connection:
        """Open one that is counted already."""
        connection = self._new_connection()
        try:
            await connection._connect()
            self._counts["opened"] += 1
            if self._on_connect is not None:
                await self._on_connect(connection)
                if not self._is_clean(connection):
                    await connection._plain(_reset, connection)
        except BaseException:
            self._opening -= 1
            if connection.closed:
                self._give_room()
            else:
                self._discard(connection)
            raise
        connection._born = connection._used = time.monotonic()
        return connection

    def _lend(self, connection: Connection) -> None:
        key = id(connection)
        self._opening -= 1
        self._lent[key] = weakref.ref(connection, partial(_lose, weakref.ref(self), key))

    def _lost(self, key: int, reference: weakref.ref[Connection]) -> None:
        """Who was lent a connection has dropped it; it closes itself, with a warning."""
        self._counts["lost"] += 1
        if self._lent.get(key) is reference:  # or another one has its place in memory
            del self._lent[key]
        self._give_room()

    # ---- releasing

    def release(self, connection: Connection) -> asyncio.Future[None]:
        """Give a connection back, there and then.

        Returns:
            what may be awaited until it is ready for the next one, or closed.

        Raises:
            ValueError: it was not acquired from this pool, or was given back already.
        """
        if self._lent.pop(id(connection), None) is None:
            if self._closing and connection.closed:  # terminate() has taken it back
                return self._ready()
            raise ValueError(f"{connection!r} was not acquired from this pool of connections")
        connection._transactions.clear()
        connection._used = time.monotonic()
        if connection.closed:
            self._counts["closed"] += 1
            self._give_room()
            return self._ready()
        task = self._put_back(connection)
        return self._ready() if task is None else asyncio.shield(task)

    def _ready(self) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        future.set_result(None)
        return future

    async def _leave(self, connection: Connection, exc: BaseException | None) -> None:
        if exc is not None:
            connection._doubt = True
        self.release(connection)

    def _is_clean(self, connection: Connection) -> bool:
        """Whether nothing is under way, nor open."""
        return (
            connection._lane.pending == 0
            and connection._driver.in_transaction(connection._raw) is False
        )

    def _put_back(self, connection: Connection) -> asyncio.Task[None] | None:
        if self._is_clean(connection):
            self._give(connection)
            return None
        self._leaving += 1
        return self._spawn(self._reset(connection))

    async def _reset(self, connection: Connection) -> None:
        """Roll back, after what is under way."""
        try:
            await connection._lane.call(_reset, connection)
        except Exception:
            self._leaving -= 1
            self._counts["unusable"] += 1
            self._discard(connection)
        except BaseException:  # the loop ends
            self._leaving -= 1
            connection._close_soon()
            self._give_room()
            raise
        else:
            self._leaving -= 1
            self._give(connection)

    def _give(self, connection: Connection) -> None:
        """It is ready for the next one."""
        if self._closing:
            self._discard(connection)
            return
        waiter = self._first_waiter()
        if waiter is None:
            self._free.append(connection)
        else:
            waiter.set_result(self._taken(connection))

    def _give_room(self) -> None:
        """One connection fewer: the next one may open another."""
        if self._closing:
            self._look_for_the_end()
        elif self.size < self._maxsize and (waiter := self._first_waiter()) is not None:
            self._opening += 1
            waiter.set_result(None)

    def _first_waiter(self) -> asyncio.Future[Connection | None] | None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                return waiter
        return None

    # ---- closing

    def _discard(self, connection: Connection) -> None:
        self._leaving += 1
        self._spawn(self._close_one(connection))

    async def _close_one(self, connection: Connection) -> None:
        self._counts["closed"] += 1
        with suppress(Exception):
            await connection.close()
        self._leaving -= 1
        self._give_room()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _look_for_the_end(self) -> None:
        if self._closing and self.size == 0:
            self._gone.set()

    def close(self) -> None:
        """Lend no more, and close what is free, or as it comes back. Who waits for a
        connection gets a RuntimeError."""
        if self._closing:
            return
        self._closing = True
        while (waiter := self._first_waiter()) is not None:
            waiter.set_exception(RuntimeError("the pool of connections is closed"))
        while self._free:
            self._discard(self._free.popleft())
        self._look_for_the_end()

    def terminate(self) -> None:
        """Close, and close what is lent as well: queries are ended early where the driver
        can, and waited for otherwise."""
        self.close()
        for reference in list(self._lent.values()):
            connection = reference()
            self._lent.pop(id(connection), None)
            if connection is not None:
                self._discard(connection)
                if connection._lane.pending:
                    self._spawn(_end(connection))
        self._look_for_the_end()

    async def wait_closed(self) -> None:
        """Wait until every connection is back and closed.

        Raises:
            RuntimeError: neither `close` nor `terminate` was called.
        """
        if not self._closing:
            raise RuntimeError("wait_closed() comes after close()")
        await self._gone.wait()
        if self._threads is not None:
            await self._threads.aclose()

    async def aclose(self) -> None:
        """`close` and `wait_closed`."""
        self.close()
        await self.wait_closed()

    async def __aenter__(self) -> ConnectionPool:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        state = "closed" if self._closing else "open"
        return (
            f"<offloop.dbapi.ConnectionPool {self._maker.driver.name} size={self.size} "
            f"free={self.freesize} {state}>"
        )


# ---- elsewhere ------------------------------------------------------------------------------


def _check_sizes(minsize: int, maxsize: int) -> None:
    if not 0 <= minsize <= maxsize or maxsize < 1:
        raise ValueError(f"minsize {minsize} and maxsize {maxsize}: 0 <= minsize <= maxsize")


def _lose(pool: weakref.ref[ConnectionPool], key: int, reference: weakref.ref[Connection]) -> None:
    """A connection that was lent is collected, by whatever thread."""
    found = pool()
    if found is not None and found._lent.get(key) is reference:
        with suppress(RuntimeError):  # the loop is closed
            found._loop.call_soon_threadsafe(found._lost, key, reference)


def _checked(connection: Connection) -> bool:
    connection._driver.reset(connection._raw)
    return connection._driver.is_open(connection._raw) and _reset(connection)


def _reset(connection: Connection) -> bool:
    connection._driver.reset(connection._raw)
    return True


async def _end(connection: Connection) -> None:
    with suppress(Exception):
        await connection.interrupt()


async def _leave(pool: ConnectionPool, exc: BaseException | None) -> None:
    await pool.aclose()


def create_pool(
    module: ModuleType | str | Callable[..., Any],
    /,
    *args: Any,
    pool: Pool | None = None,
    offload: Offload | None = None,
    minsize: int = 1,
    maxsize: int = 10,
    recycle: float | None = None,
    check: float | None = 1.0,
    on_connect: OnConnect | None = None,
    **kwargs: Any,
) -> Opening[ConnectionPool]:
    """A pool of connections by any PEP 249 module.

        async with offloop.dbapi.create_pool("psycopg", dsn, maxsize=5) as pool:
            async with pool.acquire() as db:
                async with db.transaction(): ...
            row = await pool.fetchrow("select ...")

    Args:
        module, args, kwargs, offload: as `connect` has them.
        pool: whose workers make the calls; if it is None, one of its own with a worker for
            each connection.
        minsize: how many connections are opened at the beginning.
        maxsize: how many there are at most. More of them than the pool of threads has
            workers do not work at the same time; and if they wait for each other's locks,
            those that wait keep the workers from the one that has the lock.
        recycle: seconds after which a connection is replaced by a new one.
        check: seconds of idleness after which a connection is asked, when it is acquired,
            whether it is well; 0: always; None: never.
        on_connect: a coroutine function that gets each new connection first.

    Raises:
        ValueError: minsize and maxsize do not go together.
        the driver's exceptions, when awaited: one of the first connections fails.
    """
    _check_sizes(minsize, maxsize)
    threads = None if pool is not None else Pool(min(maxsize, 1024))
    maker = Maker(module, args, kwargs, pool if pool is not None else threads, offload)

    async def create() -> ConnectionPool:
        made = ConnectionPool(
            maker,
            minsize=minsize,
            maxsize=maxsize,
            recycle=recycle,
            check=check,
            on_connect=on_connect,
        )
        made._threads = threads
        await made._fill()
        return made

    return Opening(create(), _leave)
