"""Transactions and savepoints, for ``async with``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

from offloop.calling import CallTimeoutError
from offloop.dbapi.opening import let_go

if TYPE_CHECKING:
    from offloop.dbapi.connection import Connection

__all__ = ["Transaction"]


class Transaction:
    """A transaction, or a savepoint inside of one; see `Connection.transaction`.

    ``async with`` begins it and ends it: by a commit, or by a rollback if the block
    raises. The end is made in any case, even if the task is cancelled meanwhile: it comes
    before whatever is done with the connection next.
    """

    def __init__(self, connection: Connection, statement: str | None) -> None:
        self._connection = connection
        self._statement = statement
        self._task: asyncio.Task[Any] | None = None
        self._savepoint = ""
        self._after: Callable[[Any], object] | None = None
        self._begun = False

    # ---- run by workers

    def _begin(self) -> None:
        connection = self._connection
        driver, raw = connection._driver, connection._raw
        # What the user has begun is not ours to be committed.
        if self._statement is None and (self._savepoint or driver.in_transaction(raw)):
            self._savepoint = self._savepoint or "offloop_0"
            driver.run(raw, f"SAVEPOINT {self._savepoint}")
        else:
            self._savepoint = ""
            self._after = driver.begin(raw, self._statement)
        self._begun = True

    def _commit(self) -> None:
        connection = self._connection
        if not self._begun:
            return
        try:
            if self._savepoint:
                connection._driver.run(connection._raw, f"RELEASE SAVEPOINT {self._savepoint}")
            else:
                connection._driver.commit(connection._raw)
        except BaseException:
            # It must not stay open; what went wrong is what counts.
            with suppress(Exception):
                self._rollback()
            raise
        self._finish()

    def _rollback(self) -> None:
        connection = self._connection
        if not self._begun:
            return
        try:
            if self._savepoint:
                driver, raw = connection._driver, connection._raw
                driver.run(raw, f"ROLLBACK TO SAVEPOINT {self._savepoint}")
                driver.run(raw, f"RELEASE SAVEPOINT {self._savepoint}")
            else:
                connection._driver.rollback(connection._raw)
        finally:
            self._finish()

    def _finish(self) -> None:
        self._begun = False
        after, self._after = self._after, None
        if after is not None:
            after(self._connection._raw)

    def _rollback_quietly(self) -> None:
        with suppress(Exception):
            self._rollback()

    # ---- run by the task

    async def __aenter__(self) -> Transaction:
        stack = self._connection._transactions
        task = asyncio.current_task()
        if stack and stack[-1]._task is not task:
            raise RuntimeError(
                "another task is in a transaction of this connection: they need a connection "
                "each (see offloop.dbapi.create_pool)"
            )
        if self in stack or self._begun:
            raise RuntimeError("a transaction is entered once at a time")
        self._task = task
        self._savepoint = f"offloop_{len(stack)}" if stack else ""
        stack.append(self)
        try:
            await self._connection._plain(self._begin)
        except BaseException:
            stack.remove(self)
            let_go(self._later(self._rollback_quietly))
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        stack = self._connection._transactions
        if self in stack:
            stack.remove(self)
        self._task = None
        if self._connection.closed:
            return
        if exc is not None:
            # If the server rolled it back already, or is gone, the block's exception
            # tells more than this one.
            await asyncio.shield(self._later(self._rollback_quietly))
            return
        try:
            await self._connection._plain(self._commit)
        except (asyncio.CancelledError, CallTimeoutError):
            let_go(self._later(self._rollback_quietly))  # nothing, if it was committed
            raise

    def _later(self, fn: Callable[[], None]) -> Coroutine[Any, Any, None]:
        """Have it done next, whether anybody waits or not."""
        return self._connection._lane.call(fn)
