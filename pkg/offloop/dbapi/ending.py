"""Ending a query early where that blocks: in a thread of its own, and never the next one."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from offloop.dbapi.drivers import AT_ONCE, BESIDE
from offloop.dbapi.maker import Maker
from offloop.pool import Caller, Lane

__all__ = ["Ender", "Ticket"]

T = TypeVar("T")

_NAME = "offloop-dbapi-cancel"
_LOGGER = logging.getLogger("offloop.dbapi")


class Ticket:
    """One call, and what ends it.

    The call's end waits for an ending that is under way, so that it meets this call or
    none.
    """

    __slots__ = ("_end", "_lock", "_over", "_thread")

    def __init__(self, end: Callable[[], object]) -> None:
        self._end = end
        self._lock = threading.Lock()
        self._over = False
        self._thread: threading.Thread | None = None

    def run(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """What a worker calls."""
        try:
            return fn(*args, **kwargs)
        finally:
            with self._lock:
                self._over = True

    def give_up(self) -> None:
        """Nobody waits for the call any more. Does not block. It is called again and
        again: the query may not have begun when it is ended."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._give_up, name=_NAME, daemon=True)
            self._thread.start()

    def _give_up(self) -> None:
        with self._lock:
            if self._over:
                return
            try:
                self._end()
            except Exception:
                _LOGGER.warning("a query that nobody waits for goes on", exc_info=True)


class Ender:
    """Ends what a connection executes.

    A cursor, or the connection, is not closed while an ending is at it: a driver may
    crash, since it looks at the cursor again when it has let go of the GIL (pyodbc).
    """

    def __init__(self, maker: Maker, lane: Lane) -> None:
        self._maker = maker
        self._lane = lane
        self._raw: Any = None
        self._name: Any = None
        self._lock = threading.Lock()  # held by an ending
        #: The driver's cursor that executes, or did so last.
        self.active: Any = None

    def let_go(self, cursor: Any = None) -> None:
        """The cursor, or any with None, is closed next. Waits for an ending that is under
        way; a later one does not touch it. Thread: a worker."""
        with self._lock:
            if cursor is None or cursor is self.active:
                self.active = None

    def way(self, raw: Any) -> Callable[..., Coroutine[Any, Any, Any]] | None:
        """How a query of the connection is called, so that it is ended when it is given
        up; None if that cannot be."""
        self._raw = raw
        offload, driver = self._maker.offload, self._maker.driver
        self._name = driver.name_of(raw)
        if offload.interrupt is False:
            return None
        if not callable(offload.interrupt) and driver.way_to_end(offload) == AT_ONCE:
            return Caller(self._lane, offload.timeout, driver.interrupt(raw)).call
        if callable(offload.interrupt) or driver.way_to_end(offload) == BESIDE:
            return self._ticketed
        return None

    def _ticketed(
        self, fn: Callable[..., T], /, *args: Any, **kwargs: Any
    ) -> Coroutine[Any, Any, T]:
        ticket = Ticket(self._end)
        caller = Caller(self._lane, self._maker.offload.timeout, ticket.give_up)
        return caller.call(ticket.run, fn, *args, **kwargs)

    def _end(self) -> None:
        interrupt = self._maker.offload.interrupt
        with self._lock:
            if callable(interrupt):
                interrupt(self._raw)
            else:
                driver = self._maker.driver
                driver.cancel(self._raw, self.active, self._name, self._maker.connect)

    async def end_now(self) -> None:
        """End the query that is under way, whoever made it."""
        offload, driver = self._maker.offload, self._maker.driver
        at_once = driver.interrupt(self._raw) if not callable(offload.interrupt) else None
        if at_once is not None:
            at_once()
        elif callable(offload.interrupt) or driver.way_to_end(offload) == BESIDE:
            await _beside(self._end)
        else:
            raise NotImplementedError(f"{driver.name}: no way to end a query is known")


async def _beside(fn: Callable[[], T]) -> T:
    """Call fn in a thread of its own: all workers may be busy with what it is to end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)

    def work() -> None:
        value: Any = None
        failure: BaseException | None = None
        try:
            value = fn()
        except BaseException as error:
            failure = error
        try:
            loop.call_soon_threadsafe(settle, value, failure)
        except RuntimeError:  # the loop is closed: nobody waits
            return

    threading.Thread(target=work, name=_NAME, daemon=True).start()
    return await future
