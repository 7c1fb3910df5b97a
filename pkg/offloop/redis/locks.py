"""A lock and a condition for tasks of any loop, where redis-py has asyncio's.

asyncio's belong to the loop in which somebody first had to wait; another loop's tasks get
a RuntimeError then, or are never woken. A connection pool here may be used from several
loops at the same time.

Why it is correct: taking the one token out of a list is atomic, and so is taking a waiter
out of a deque: one task has it. Who finds no token leaves a waiter and looks again; who
gives the token back looks for a waiter, and again after it was put down: either sees the
other. A waiter that was taken out has the lock, and if it was cancelled meanwhile it
releases it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

__all__ = ["LoopsCondition", "LoopsLock"]


class _Waiter:
    """A task of some loop that waits."""

    __slots__ = ("future", "loop", "told")

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self.loop.create_future()
        self.told = False  # it has what it waits for, whether it knows or not


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _wake(waiters: deque[_Waiter]) -> bool:
    """Wake the first whose loop is still there; whether there was one."""
    while True:
        try:
            waiter = waiters.popleft()
        except IndexError:
            return False
        waiter.told = True
        try:
            if waiter.loop is asyncio._get_running_loop():
                _settle(waiter.future)
            else:
                waiter.loop.call_soon_threadsafe(_settle, waiter.future)
            return True
        except RuntimeError:
            waiter.told = False  # that loop is closed: nobody waits there


def _taken_back(waiter: _Waiter, waiters: deque[_Waiter]) -> bool:
    """It waits no longer; False: it has been told already, and has to pass that on."""
    try:
        waiters.remove(waiter)
    except ValueError:
        return not waiter.told
    return True


class LoopsLock:
    """asyncio.Lock, for tasks of any loop and thread. Who waits is served in order."""

    def __init__(self) -> None:
        self._tokens = [None]
        self._waiters: deque[_Waiter] = deque()

    def locked(self) -> bool:
        """Whether somebody has it."""
        return not self._tokens

    def _take(self) -> bool:
        try:
            self._tokens.pop()
        except IndexError:
            return False
        return True

    async def acquire(self) -> bool:
        """Wait until nobody has it, and have it."""
        if not self._waiters and self._take():
            return True
        waiter = _Waiter()
        self._waiters.append(waiter)
        self._hand_over()  # it may have been given back before it could be seen that we wait
        try:
            await waiter.future
        except BaseException:
            if not _taken_back(waiter, self._waiters):
                self.release()
            raise
        return True

    def release(self) -> None:
        """Let the next have it.

        Raises:
            RuntimeError: nobody has it.
        """
        if self._tokens:
            raise RuntimeError("Lock is not acquired.")
        self._tokens.append(None)
        self._hand_over()

    def _hand_over(self) -> None:
        while self._waiters and self._take():
            if _wake(self._waiters):
                return
            self._tokens.append(None)

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *error: object) -> None:
        self.release()


class LoopsCondition(LoopsLock):
    """asyncio.Condition, with a lock of its own, for tasks of any loop and thread."""

    def __init__(self) -> None:
        super().__init__()
        self._sleepers: deque[_Waiter] = deque()

    async def wait(self) -> bool:
        """Let go of the lock, wait for notify(), and have the lock again."""
        sleeper = _Waiter()
        self._sleepers.append(sleeper)
        self.release()
        try:
            await sleeper.future
        except BaseException:
            if not _taken_back(sleeper, self._sleepers):
                self.notify()
            raise
        finally:
            await self._again()
        return True

    async def _again(self) -> None:
        """The lock, whoever is cancelled meanwhile: the caller is about to release it."""
        cancelled = None
        while True:
            try:
                await self.acquire()
                break
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    async def wait_for(self, predicate: Callable[[], Any]) -> Any:
        """Wait until predicate() is true; what it is."""
        while not (found := predicate()):
            await self.wait()
        return found

    def notify(self, n: int = 1) -> None:
        """Wake so many of those who wait()."""
        for _ in range(n):
            _wake(self._sleepers)
