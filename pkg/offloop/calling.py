"""Calls of Python functions: what pools, lanes and their time-limited forms share."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable
from concurrent.futures import Future as ExecutorFuture
from concurrent.futures.thread import BrokenThreadPool
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

from offloop import _core

__all__ = ["Batch", "CallTimeoutError", "Calls", "PoolClosedError", "PoolFullError", "awaiting"]

P = ParamSpec("P")
T = TypeVar("T")

_LOGGER = logging.getLogger("concurrent.futures")


if sys.version_info >= (3, 11):

    class _TimedOut(asyncio.TimeoutError):
        """What both `except TimeoutError` and `except asyncio.TimeoutError` catch."""

else:

    class _TimedOut(asyncio.TimeoutError, TimeoutError):
        """What both `except TimeoutError` and `except asyncio.TimeoutError` catch."""


class CallTimeoutError(_TimedOut):
    """A call's time was over.

    Attributes:
        began: whether it had begun to run. If so it goes on, since nothing can stop a
            thread, and what it returns is dropped; if not, it was never executed.
    """

    def __init__(self, message: str = "the call timed out", began: bool = False) -> None:
        super().__init__(message)
        self.began = began

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.began)


class PoolClosedError(RuntimeError):
    """A call was not executed, since the pool was closed before it began."""


class PoolFullError(RuntimeError):
    """`submit`: a call was not executed, since the pool's queue is full."""


class _Way(Protocol):
    """What a call is made through."""

    def call(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, T]: ...

    def _call_all(
        self, calls: Iterable[tuple[Callable[..., Any], tuple[Any, ...]]], /
    ) -> list[_core.Future]: ...


def awaiting(
    call: Callable[..., Coroutine[Any, Any, Any]], fn: Callable[P, T]
) -> Callable[P, Coroutine[Any, Any, T]]:
    """A function like fn whose calls are made by `call` and awaited."""

    @functools.wraps(fn)
    def offloaded(*args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        return call(fn, *args, **kwargs)

    # It returns a coroutine, if not by its code: let asyncio and inspect know it.
    mark = getattr(asyncio.coroutines, "_is_coroutine", None)
    if mark is not None:
        offloaded._is_coroutine = mark  # type: ignore[attr-defined]
    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(offloaded)
    return offloaded


class Batch(Generic[T]):
    """Many calls that were submitted together.

    ``await batch`` gives the results in the order of the calls; the first exception, in
    that order, is raised, and cancels the calls that have not begun. So does cancelling
    the task that awaits it. ``async for result in batch`` gives the results in the same
    order, each as soon as it is there; ``batch.as_completed()`` gives pairs of a call's
    place and its result, in the order of completion.
    """

    def __init__(self, futures: list[_core.Future]) -> None:
        self._futures = futures

    def __len__(self) -> int:
        return len(self._futures)

    def cancel(self) -> None:
        """Cancel every call that is not done: those that have not begun never will."""
        for future in self._futures:
            future.cancel()

    def _forget(self) -> None:
        """Nobody will ask for the rest: what they raise is not reported as forgotten."""
        for future in self._futures:
            if not future.cancel() and not future.cancelled():
                future.exception()

    async def _results(self) -> list[T]:
        try:
            return [await future for future in self._futures]
        except BaseException:
            self._forget()
            raise

    def __await__(self) -> Generator[Any, Any, list[T]]:
        return self._results().__await__()

    async def outcomes(self) -> list[T | BaseException]:
        """What each call returned or raised, in their order."""
        try:
            return [await self._outcome(future) for future in self._futures]
        except BaseException:
            self._forget()
            raise

    @staticmethod
    async def _outcome(future: _core.Future) -> Any:
        try:
            return await future
        except asyncio.CancelledError:
            if future.cancelled():
                return asyncio.CancelledError()
            raise
        except Exception as error:
            return error

    async def __aiter__(self) -> AsyncIterator[T]:
        try:
            for future in self._futures:
                yield await future
        finally:
            self._forget()

    async def as_completed(self) -> AsyncIterator[tuple[int, T]]:
        """(place, result) of each call, in the order of completion."""
        done: asyncio.Queue[int] = asyncio.Queue()
        try:
            for place, future in enumerate(self._futures):
                future.add_done_callback(functools.partial(_put, done, place))
            for _ in self._futures:
                place = await done.get()
                yield place, self._futures[place].result()
        finally:
            self._forget()


def _put(queue: asyncio.Queue[int], place: int, _: _core.Future) -> None:
    queue.put_nowait(place)


class Calls:
    """The ways to call that are built on `call`."""

    def bind(self: _Way, fn: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
        """A function like fn that is awaited: its calls run on a worker.

        It is a coroutine function to asyncio and inspect, has fn's name, documentation
        and signature, and may be used as a decorator, also of methods.
        """
        return awaiting(self.call, fn)

    def call_many(self: _Way, calls: Iterable[Callable[[], T] | tuple[Any, ...]]) -> Batch[T]:
        """Submit many calls at once.

        Args:
            calls: each a function, or a tuple of a function and its arguments.

        Returns:
            a `Batch`: await it for the list of the results.

        Raises:
            RuntimeError: no event loop runs in this thread, or the pool is closed.
        """
        return Batch(
            self._call_all(
                [(one[0], tuple(one[1:])) if isinstance(one, tuple) else (one, ()) for one in calls]
            )
        )

    def map_async(self: _Way, fn: Callable[..., T], /, *iterables: Iterable[Any]) -> Batch[T]:
        """Call fn with the items of the iterables, as `map` does, all submitted at once.

        Returns:
            a `Batch`: await it for the list of the results.

        Raises:
            RuntimeError: no event loop runs in this thread, or the pool is closed.
        """
        return Batch(self._call_all([(fn, args) for args in zip(*iterables, strict=False)]))


# ---- what the native part calls ---------------------------------------------------


def _adopt(
    prefix: str | None,
    index: int,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...] | None,
) -> bool:
    """A worker enters Python for the first time; whether the pool can be used."""
    thread = threading.current_thread()
    thread.name = f"offloop-w{index}" if prefix is None else f"{prefix}_{index}"
    # What threading.Thread does for its own.
    trace, profile = threading.gettrace(), threading.getprofile()
    if trace is not None:
        sys.settrace(trace)
    if profile is not None:
        sys.setprofile(profile)
    if initializer is not None:
        try:
            initializer(*(initargs or ()))
        except BaseException:
            _LOGGER.critical("Exception in initializer:", exc_info=True)
            return False
    return True


def _forget() -> None:
    """A worker's thread ends."""
    lock = getattr(threading, "_active_limbo_lock", None)
    active = getattr(threading, "_active", None)
    if lock is not None and active is not None:
        with lock:
            active.pop(threading.get_ident(), None)


async def _deferred(
    call: Callable[..., Coroutine[Any, Any, Any]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """A call made where no loop runs, which is sent when it is awaited."""
    return await call(*args, **kwargs)


_core._setup_calls(
    executor_future=ExecutorFuture,
    adopt=_adopt,
    forget=_forget,
    deferred=_deferred,
    timeout_error=CallTimeoutError,
    closed_error=PoolClosedError,
    full_error=PoolFullError,
    broken_error=BrokenThreadPool,
)
