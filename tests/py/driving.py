"""Running coroutines under a limit, and waiting for something to become so.

No test measures time; the limits here only tell a hang from slowness.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

import redis.asyncio
from redis.exceptions import ConnectionError, TimeoutError

T = TypeVar("T")

# Seconds after which a test counts as hung.
HANG_LIMIT = 240.0


async def _result_of(awaitable: Awaitable[T]) -> T:
    return await awaitable


async def within(awaitable: Awaitable[T], secs: float = 60.0) -> T:
    """The awaitable's result; AssertionError when there is none after so many seconds."""
    # In a task of its own: asyncio.wait() refuses what is a coroutine as well.
    task = asyncio.create_task(_result_of(awaitable))
    done, _ = await asyncio.wait([task], timeout=secs)
    if not done:
        task.cancel()
        raise AssertionError(f"no end after {secs} s: {awaitable!r}, {task.get_stack()}")
    return task.result()


def run(main: Coroutine[Any, Any, T], *, limit: float = HANG_LIMIT - 10, debug: bool = False) -> T:
    """`asyncio.run` with a limit: a test that hangs fails, with the task in the message."""
    return asyncio.run(within(main, limit), debug=debug)


def settle(probe: Callable[[], T], secs: float = 30.0) -> T:
    """Ask until the answer is falsy (nothing left) or the time is over; the last answer."""
    give_up = time.monotonic() + secs
    while (answer := probe()) and time.monotonic() < give_up:
        time.sleep(0.01)
    return answer


async def until(condition: Callable[[], Any], secs: float = 60.0) -> None:
    """Let the loop turn until the condition holds; AssertionError when it never does."""
    give_up = time.monotonic() + secs
    while not condition():
        assert time.monotonic() < give_up, "it never became so"
        await asyncio.sleep(0.002)


async def outcome(awaitable: Awaitable[T]) -> T | BaseException:
    """The result, or the exception as a value (cancellation of the caller passes on)."""
    try:
        return await awaitable
    except Exception as error:
        return error


async def until_good(client: redis.asyncio.Redis, secs: float = 60.0) -> int:
    """Ping until one is answered; how many failed."""
    failures = 0
    give_up = time.monotonic() + secs
    while True:
        value = await within(outcome(client.ping()))
        if value is True:
            return failures
        assert isinstance(value, (ConnectionError, TimeoutError)), value
        assert time.monotonic() < give_up, value
        failures += 1
        await asyncio.sleep(0.01)


class TooSlow(Exception):
    """The machine was too slow for the time that a test gave it: nothing is proved."""


async def patiently(attempt: Callable[[float], Awaitable[T]], secs: float) -> T:
    """Make an attempt with a time-out of `secs`, and again with more as long as it is TooSlow.

    A test of a time-out needs one that is over soon and yet leaves the time to come so far
    on a machine that does other things. No time-out does both everywhere.
    """
    while True:
        try:
            return await attempt(secs)
        except TooSlow:
            secs *= 4
            if secs > 60:
                raise


async def in_time(awaitable: Awaitable[T]) -> T:
    """The result of what only prepares a test; TooSlow when it timed out."""
    try:
        return await within(awaitable)
    except TimeoutError as error:
        raise TooSlow from error


def was_sent(value: Any) -> Any:
    """What a call ended in; TooSlow when its time was over before it was sent."""
    if isinstance(value, TimeoutError) and "not executed" in str(value):
        raise TooSlow from value
    return value


async def outcomes(awaitables: Iterable[Awaitable[Any]], secs: float = 90.0) -> list[Any]:
    """Everything awaited at once; results and exceptions in order."""
    return await within(asyncio.gather(*awaitables, return_exceptions=True), secs)


async def end(tasks: Iterable[asyncio.Task[Any]], secs: float = 60.0) -> None:
    """Cancel tasks until they are done.

    More than once: asyncio.wait_for() of 3.11 and before, which redis-py's own
    connections use, loses a cancel that comes together with the result.
    """
    left = set(tasks)
    give_up = time.monotonic() + secs
    while left:
        assert time.monotonic() < give_up, f"these do not end: {left}"
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=0.1)
