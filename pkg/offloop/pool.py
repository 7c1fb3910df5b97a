"""The pool: a fixed number of native worker threads.

The workers run blocking calls without the GIL and send what they finished to the
event loop that asked, through one eventfd for each pair of loop and pool.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

from offloop import _core

__all__ = ["Pool"]


class Pool(_core.Pool):
    """A fixed number of worker threads, shared by whatever is given the pool.

    The threads start at the first use. A pool may be used from any thread and any
    number of event loops, and belongs to none of them.

    Args:
        workers: the number of threads, 1 to 1024.
        queue: how many calls one event loop may have under way in the pool,
            1 to 16777216. Further ones wait, in order, until there is room.

    Raises:
        TypeError: workers or queue is not an int.
        ValueError: workers or queue is out of range.
    """

    def __init__(self, workers: int = 4, *, queue: int = 65536) -> None:
        super().__init__(workers, queue=queue)

    async def aclose(self, timeout: float = 5.0) -> None:
        """Close the pool: refuse new calls, finish those under way, end the threads.

        Calling it again is harmless and waits for the same end.

        Args:
            timeout: seconds for what is under way; what is not finished by then
                fails with a ConnectionError that says so.
        """
        ended = self._close(timeout)
        if ended is not None:
            await ended
        while not self._ended:  # somebody else's aclose() is under way
            await asyncio.sleep(0.001)
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
            ``queue_limit``, ``queue_depth`` and ``queue_high_water`` (calls under way),
            ``waiting`` (for room), ``loops``, ``sources`` (connections watched) and
            ``per_worker``, a list with ``name``, ``jobs``, ``commands``, ``batches`` and
            ``wakeups`` of each. They are always counted. May be called from any thread.
        """
        return super().stats()
