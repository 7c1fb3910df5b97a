"""The pool: a fixed number of native worker threads.

The workers run blocking calls, those of Redis without the GIL, and send what they
finished to the event loop that asked, through one eventfd for each pair of loop and
pool.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future as ExecutorFuture
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, overload

from offloop import _core
from offloop.calling import Calls, awaiting

__all__ = ["Caller", "Lane", "Pool", "default_pool", "offload"]

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds that the interpreter's end gives calls under way.
_EXIT_GRACE = 5.0


class Caller(_core.Caller, Calls):
    """A pool, or a lane, with a limit in time for each call; see `Pool.with_timeout`."""


class Lane(_core.Lane, Calls):
    """Calls of a pool that run in order and never two at once; see `Pool.lane`."""

    def with_timeout(
        self, timeout: float | None, *, interrupt: Callable[[], object] | None = None
    ) -> Caller:
        """This lane with a limit in time for each call; see `Pool.with_timeout`."""
        return Caller(self, timeout, interrupt)


class Pool(_core.Pool, Calls, ThreadPoolExecutor):  # type: ignore[override]
    """A fixed number of worker threads, shared by whatever is given the pool.

    The threads start at the first use. A pool may be used from any thread and any
    number of event loops, and belongs to none of them. It is an executor as well:
    `submit`, `map`, `shutdown` and ``with`` are those of concurrent.futures.

    Args:
        workers: the number of threads, 1 to 1024.
        queue: how many calls one event loop may have under way in the pool, and how
            many of everybody's may be queued for a worker, 1 to 16777216. Further ones
            wait, in order, until there is room; `submit` raises PoolFullError instead.
        thread_name_prefix: of the workers' names; ``offloop-w`` if there is none.
        initializer: called by each worker before its first Python call. If it raises,
            the pool is broken: all its calls raise BrokenThreadPool.
        initargs: the initializer's arguments.
        busy_poll: for how many seconds an event loop that has sent a command and has
            nothing else to do looks for the reply before it sleeps, 0 to 0.01; and for
            how many a worker that has run such a loop's call looks for the next. Both do
            so only while it pays, and there is a second CPU. 0: never.

    Raises:
        TypeError: workers or queue is not an int, or busy_poll no number.
        ValueError: workers, queue or busy_poll is out of range.
    """

    def __init__(
        self,
        workers: int = 4,
        *,
        queue: int = 65536,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        busy_poll: float = 100e-6,
    ) -> None:
        # Not ThreadPoolExecutor's: nothing of it is used but its name, which asyncio's
        # set_default_executor() asks for.
        _core.Pool.__init__(
            self,
            workers,
            queue=queue,
            thread_name_prefix=thread_name_prefix,
            initializer=initializer,
            initargs=initargs,
            busy_poll=busy_poll,
        )

    def with_timeout(
        self, timeout: float | None, *, interrupt: Callable[[], object] | None = None
    ) -> Caller:
        """This pool with a limit in time for each call.

        ``pool.with_timeout(2.5).call(fn, ...)`` raises a CallTimeoutError, which is a
        TimeoutError, when the result is not there after 2.5 seconds. A call that has not
        begun by then is never executed. One that has begun goes on, as nothing can stop
        a thread; what it returns is dropped. Every keyword of ``call`` itself is the
        function's, ``timeout`` too.

        Args:
            timeout: seconds from when the call is made, or None for no limit.
            interrupt: what ends a call's function early, as sqlite3's
                ``connection.interrupt`` does. It is called, by the loop's thread, when a
                call is given up (cancelled, timed out, or its pool's end has come) while
                its function runs, and again until it returns, and must not block. A call
                that is given up before its function was called is not executed.
        """
        return Caller(self, timeout, interrupt)

    def lane(self, *, pinned: bool = False) -> Lane:
        """An ordered lane: its calls run in order, and never two at once.

        A lane costs some hundred bytes, and there may be thousands of them: each one
        that has calls to run has its turn. A pool's other calls go on beside them.

        Args:
            pinned: have one and the same thread run all calls of the lane, for things
                that belong to the thread they were made in.
        """
        return Lane(self, pinned=pinned)

    def executor(self) -> ThreadPoolExecutor:
        """A ThreadPoolExecutor that rides on this pool, to be given away.

        Its ``shutdown`` ends it and waits for what was submitted through it, and leaves
        the pool as it is. So a loop may close its default executor, as asyncio.run()
        does, and the pool lives on:
        ``loop.set_default_executor(pool.executor())``.
        """
        return _Executor(self)

    # Executor's; `submit` is native.

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Close the pool: refuse new calls, finish those under way, end the threads.

        In a coroutine use `aclose`, which does not block the loop.

        Args:
            wait: return when the threads have ended.
            cancel_futures: cancel what has not begun.

        Raises:
            RuntimeError: a call of this very pool is to wait for the pool's end.
        """
        self._end(0.0 if cancel_futures else math.inf, wait)

    @property
    def _max_workers(self) -> int:  # type: ignore[override]
        return self.workers

    async def aclose(self, timeout: float = 5.0) -> None:
        """Close the pool: refuse new calls, finish those under way, end the threads.

        Calling it again is harmless and waits for the same end.

        Args:
            timeout: seconds for what is under way. What is not finished by then fails,
                with a ConnectionError or a PoolClosedError that says so. A function that
                does not return even then keeps its thread until it does.
        """
        until = time.monotonic() + timeout
        closing = self._close(timeout)
        ended = asyncio.Event()
        if closing is not None:
            closing.add_done_callback(lambda _: ended.set())
        while not self._ended:
            if time.monotonic() > until and self._busy:
                self._give_up()
                await asyncio.sleep(0)
                break
            try:  # None: somebody else's aclose() is under way
                await asyncio.wait_for(ended.wait(), 0.05 if closing is not None else 0.001)
            except asyncio.TimeoutError:
                continue
        if closing is not None:
            await closing
        self._detach()
        await asyncio.sleep(0)  # the loop lets go of the mailbox's descriptor

    async def __aenter__(self) -> Pool:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<offloop.Pool workers={self.workers} queue={self.queue} {state}>"

    def stats(self) -> dict[str, Any]:
        """What the pool has done so far.

        Returns:
            A dict of counters: ``workers``, ``started``, ``jobs`` (run by workers),
            ``commands`` (replies matched), ``loop_commands`` (of them by the loops' own
            threads), ``wakeups`` (workers woken), ``eventfd_writes`` (loops told),
            ``busy_polls`` and ``busy_poll_hits`` (looks for a reply before a sleep),
            ``queue_limit``, ``queue_depth`` and ``queue_high_water`` (calls under way),
            ``waiting`` (for room), ``loops``, ``sources`` (connections watched) and
            ``per_worker``, a list with ``name``, ``jobs``, ``commands``, ``batches``,
            ``wakeups``, ``busy_polls`` and ``busy_poll_hits`` (looks for a call) of each.
            They are always counted. May be called from any thread.
        """
        return super().stats()


class _Executor(ThreadPoolExecutor):
    """A ThreadPoolExecutor by type whose calls a pool runs; see `Pool.executor`."""

    def __init__(self, pool: Pool) -> None:
        # Not ThreadPoolExecutor's: it has no threads and no queue of its own.
        self._pool = pool
        self._lock = threading.Lock()
        self._closed = False
        self._pending: set[ExecutorFuture[Any]] = set()
        self._idle = threading.Condition(self._lock)

    @property
    def _max_workers(self) -> int:  # type: ignore[override]
        return self._pool.workers

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> ExecutorFuture[T]:
        """Schedule fn(*args, **kwargs) on the pool; a future of what it returns."""
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            future = self._pool.submit(fn, *args, **kwargs)
            self._pending.add(future)
        future.add_done_callback(self._done)
        return future

    def _done(self, future: ExecutorFuture[Any]) -> None:
        with self._lock:
            self._pending.discard(future)
            self._idle.notify_all()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Refuse new calls; the pool stays as it is.

        Args:
            wait: return when all that was submitted here is done.
            cancel_futures: cancel what has not begun.
        """
        with self._lock:
            self._closed = True
            pending = list(self._pending)
        if cancel_futures:
            for future in pending:
                future.cancel()
        if wait:
            with self._lock:
                while self._pending:
                    self._idle.wait()

    def __repr__(self) -> str:
        return f"<executor of {self._pool!r}>"


# ---- functions ---------------------------------------------------------------------

_default_lock = threading.Lock()
_default: list[Pool] = []


def default_pool() -> Pool:
    """The pool of `offload` where none is given: made at the first call, and never closed.

    It has as many workers as asyncio's own executor: 4 more than CPUs, 32 at most.
    """
    with _default_lock:
        if not _default:
            workers = min(32, (os.cpu_count() or 1) + 4)
            _default.append(Pool(workers, thread_name_prefix="offloop-default"))
        return _default[0]


@overload
def offload(fn: Callable[P, T], /) -> Callable[P, Coroutine[Any, Any, T]]: ...


@overload
def offload(
    *, pool: Pool | Lane | Caller | None = None, timeout: float | None = None
) -> Callable[[Callable[P, T]], Callable[P, Coroutine[Any, Any, T]]]: ...


def offload(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    pool: Pool | Lane | Caller | None = None,
    timeout: float | None = None,
) -> Any:
    """Make a blocking function one that is awaited, and whose calls run on a worker.

        @offloop.offload
        def resize(path: str, width: int) -> bytes: ...

        image = await resize("cat.png", 640)

    Args:
        pool: where they run: a pool, or a lane of one; `default_pool` if it is None.
        timeout: seconds for each call, as `Pool.with_timeout` has it.

    Returns:
        A coroutine function with the name, documentation and signature of the function,
        which is its ``__wrapped__``.
    """
    if fn is None:
        return lambda function: _offloaded(function, pool, timeout)
    return _offloaded(fn, pool, timeout)


def _offloaded(
    fn: Callable[P, T], pool: Pool | Lane | Caller | None, timeout: float | None
) -> Callable[P, Coroutine[Any, Any, T]]:
    if pool is not None:
        if timeout is None:
            return awaiting(pool.call, fn)
        if isinstance(pool, Caller):
            raise TypeError("offload(): the time is limited by pool and by timeout")
        return awaiting(pool.with_timeout(timeout).call, fn)

    def call(*args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        chosen = default_pool()
        way: Pool | Caller = chosen if timeout is None else chosen.with_timeout(timeout)
        return way.call(*args, **kwargs)

    return awaiting(call, fn)


# ---- the process --------------------------------------------------------------------


def _at_exit() -> None:
    _core._quit(_EXIT_GRACE)


# As ThreadPoolExecutor does it: before the interpreter waits for its threads, one of
# which may wait for a call.
threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_core._forked)
