"""Trying commands again that failed: redis-py's Retry, made safe by default.

A command of which nothing was sent is kept by the channel and needs nothing here. Of one
that was sent nobody knows whether it ran, so by default only those are sent again that
change nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from redis.asyncio.retry import Retry
from redis.commands.cluster import READ_COMMANDS

from offloop import _core

__all__ = ["READS", "Retries", "settle_by"]

# redis-py's list, which it uses to read from replicas, and what it has no use for there.
READS = READ_COMMANDS | {
    *("COMMAND", "DBSIZE", "ECHO", "INFO", "LASTSAVE", "LOLWUT", "OBJECT", "PING", "ROLE", "TIME"),
    *("CONFIG GET", "LATENCY LATEST", "MEMORY USAGE", "SLOWLOG GET", "SLOWLOG LEN"),
    *("ACL LIST", "ACL WHOAMI", "PUBSUB", "SCRIPT EXISTS", "XINFO"),
    *("GEORADIUS_RO", "GEORADIUSBYMEMBER_RO", "SORT_RO", "SUBSTR"),
    *("VCARD", "VDIM", "VEMB", "VGETATTR", "VINFO", "VISMEMBER", "VLINKS", "VRANDMEMBER", "VSIM"),
    *("BF.CARD", "BF.EXISTS", "BF.INFO", "BF.MEXISTS", "CF.COUNT", "CF.EXISTS", "CF.INFO"),
    *("TS.GET", "TS.INFO", "TS.MGET", "TS.MRANGE", "TS.MREVRANGE", "TS.RANGE", "TS.REVRANGE"),
}


def settle_by(future: _core.Future, awaitable: Awaitable[Any]) -> None:
    """Give a command the outcome of something else; if it is cancelled, cancel that."""

    async def wait() -> Any:
        return await awaitable

    def transfer(task: asyncio.Task[Any]) -> None:
        if future.done():
            if not task.cancelled():
                task.exception()  # looked at: nobody else will
        elif task.cancelled():
            future.cancel()
        elif (error := task.exception()) is not None:
            future.set_exception(error)
        else:
            future.set_result(task.result())

    task = future.get_loop().create_task(wait())
    task.add_done_callback(transfer)
    future.add_done_callback(lambda settled: task.cancel() if settled.cancelled() else None)


async def _nothing(error: Exception) -> None:
    """What redis-py does before it tries again is to disconnect; here others go on."""


class Retries:
    """Asked by a channel about each command that failed after it was sent.

    Args:
        retry: the policy: how often, after which pauses, on which errors.
    """

    def __init__(self, retry: Retry) -> None:
        self._retry = retry

    def __call__(
        self,
        channel: _core.Channel,
        future: _core.Future,
        error: BaseException,
        call: tuple[Any, ...],
    ) -> bool:
        """Whether future is settled by what is done here."""
        if not self.covers(error):
            return False
        settle_by(future, self.again(channel, error, lambda: channel._resend(call)))
        return True

    def covers(self, error: BaseException) -> bool:
        """Whether the policy is about such errors."""
        return isinstance(error, self._retry._supported_errors)

    async def again(
        self, channel: _core.Channel, error: BaseException, resend: Callable[[], Awaitable[Any]]
    ) -> Any:
        """The first try has been: redis-py's Retry is told so, and goes on from there."""
        last, tries = error, 0

        async def attempt() -> Any:
            nonlocal last, tries
            tries += 1
            if tries == 1 or channel.closed:
                raise last
            try:
                return await resend()
            except Exception as again:
                last = again
                raise

        return await self._retry.call_with_retry(attempt, _nothing)
