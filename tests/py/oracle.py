"""The reply-identity oracle: every command carries a number of its own, and so must its reply.

`Oracle` drives clients from tasks that await, cancel before, while and after sending,
time out, give up and go on. It keeps count; `wrong` is a list of what must never be.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

from redis.exceptions import ConnectionError, TimeoutError

EVAL = "return ARGV[1]"
NESTED = "return {ARGV[1], {ARGV[1], tonumber(ARGV[1])}}"

# What a command may end in besides its own reply while connections are cut.
ACCEPTED = (ConnectionError, TimeoutError, asyncio.TimeoutError)

# In place of a reply that never came.
NOTHING = object()


class Oracle:
    """One loop's share: `await Oracle(...).run(tasks)`, then look at wrong and seen."""

    def __init__(
        self, clients: list[Any], count: int, seed: int, *, first: int = 0, cancels: float = 0.2
    ) -> None:
        """`count` commands numbered from `first`; `cancels` is the share to be cancelled."""
        self.clients = clients
        self.random = random.Random(seed)
        self.next = first
        self.end = first + count
        self.cancels = cancels
        self.wrong: list[str] = []
        self.seen: Counter[str] = Counter()

    async def run(self, tasks: int) -> None:
        """Until every number is used up."""
        await asyncio.gather(*(self._work() for _ in range(tasks)))

    async def _work(self) -> None:
        while self.next < self.end:
            number = self.next
            self.next += 1
            client = self.random.choice(self.clients)
            await self._one(client, number)

    async def _one(self, client: Any, number: int) -> None:
        text = str(number).encode()
        kind = self.random.randrange(6)
        if kind == 0:
            await self._ask(lambda: client.echo(str(number)), text)
        elif kind == 1:
            await self._ask(lambda: client.execute_command("EVAL", EVAL, 0, number), text)
        elif kind == 2:
            await self._ask(
                lambda: client.execute_command("EVAL", NESTED, 0, number), [text, [text, number]]
            )
        elif kind == 3:
            key = f"u:{number}"
            if await self._ask(lambda: client.set(key, number), True):
                await self._ask(lambda: client.get(key), text)
        elif kind == 4:
            # Of different lengths, so that a reply is often spread over two reads.
            padding = b"%d:" % number + b"x" * self.random.choice((0, 10, 1000, 20_000))
            await self._ask(lambda: client.echo(padding), padding)
        else:
            key = f"c:{number}"
            await self._ask(lambda: client.incrby(key, number), number)

    async def _ask(self, make: Any, expected: Any) -> bool:
        """One command; True when it was answered (rightly)."""
        value = await self._reply(make, f"{expected!r:.60}")
        if value is NOTHING:
            return False
        if value != expected or type(value) is not type(expected):
            self.wrong.append(f"{expected!r:.60} was answered {value!r:.60}")
        return True

    async def _reply(self, make: Any, what: str, also: tuple[type[BaseException], ...] = ()) -> Any:
        """What it was answered; NOTHING where it was cancelled, given up or lost.

        `also` are errors that this one may end in besides those that any may.
        """
        try:
            value = await self._drive(make)
        except asyncio.CancelledError:
            self.seen["cancelled"] += 1
            current = asyncio.current_task()
            if current is not None and getattr(current, "cancelling", int)():
                raise
            return NOTHING
        except (*ACCEPTED, *also) as error:
            self.seen[type(error).__name__] += 1
            return NOTHING
        except Exception as error:
            self.wrong.append(f"{what} ended in {error!r}: {error}")
            return NOTHING
        if value is _GAVE_UP:
            self.seen["given up"] += 1
            return NOTHING
        self.seen["answered"] += 1
        return value

    async def _drive(self, make: Any) -> Any:
        if self.random.random() >= self.cancels:
            way = self.random.randrange(8)
            if way == 0:
                return await asyncio.wait_for(make(), self.random.choice((0.001, 0.01, 20)))
            if way == 1:
                return await asyncio.create_task(_await(make()))
            if way == 2:
                return await asyncio.shield(make())
            return await make()
        way = self.random.randrange(6)
        call = make()
        if way == 0:  # before anything could be sent from elsewhere
            call.cancel()
        elif way == 1:
            await asyncio.sleep(0)
            call.cancel()
        elif way == 2:  # from a timer: queued, sent or answered by then
            loop = asyncio.get_running_loop()
            loop.call_later(self.random.random() * 0.003, call.cancel)
        elif way == 3:  # through the task that awaits it
            call.add_done_callback(_look)  # it may be cancelled before it comes to that
            task = asyncio.create_task(_await(call))
            for _ in range(self.random.randrange(4)):
                await asyncio.sleep(0)
            task.cancel()
            return await task
        elif way == 4:  # never awaited
            call.add_done_callback(_look)
            return _GAVE_UP
        else:  # one of two that are gathered
            call.add_done_callback(_look)
            other = gathered(call)
            await asyncio.sleep(0)
            other.cancel()
            return await other
        return await call


_GAVE_UP = object()


def _look(call: Any) -> None:
    """Retrieve an exception that nobody awaits, or the loop reports it."""
    if not call.cancelled():
        call.exception()


async def _await(call: Any) -> Any:
    return await call


def gathered(call: Any) -> Any:
    """gather() over one call: cancelling it cancels the call."""

    async def first() -> Any:
        (value,) = await asyncio.gather(call)
        return value

    return asyncio.ensure_future(first())
