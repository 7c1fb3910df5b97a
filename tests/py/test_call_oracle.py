"""An oracle over calls, lanes and executors: what every call may have done is known.

Tasks call functions by every way there is, cancel some and time some out at random
moments. Each call has a number and a record of its own, written by the function:

- a result is that of its own call;
- a call whose error says that it was not executed has not run, and one that was
  awaited to its end has run exactly once;
- the calls of a lane never overlap, and run in the order in which they were made;
- when all is over nothing is queued or kept.

The short form runs always, the long one, of a million calls, with ``-m soak``.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import offloop
import pytest
from driving import run, settle, until
from leaks import Watch


class Lane:
    """A lane and what its calls see of each other."""

    def __init__(self, pool: offloop.Pool, pinned: bool) -> None:
        self.lane = pool.lane(pinned=pinned)
        self.pinned = pinned
        self.inside = 0
        self.last = -1
        self.threads: set[int] = set()
        self.wrong: list[str] = []

    def enter(self, number: int) -> None:
        self.inside += 1
        if self.inside != 1:
            self.wrong.append(f"{number}: {self.inside} calls at once")
        if number <= self.last:
            self.wrong.append(f"{number} after {self.last}")
        self.last = number
        if self.pinned:
            self.threads.add(threading.get_ident())

    def leave(self) -> None:
        self.inside -= 1


class Oracle:
    """Numbers calls, runs them, and judges each."""

    def __init__(self, pool: offloop.Pool, calls: int, seed: int) -> None:
        self.pool = pool
        self.left = calls
        self.random = random.Random(seed)
        self.lanes = [Lane(pool, pinned=i % 3 == 0) for i in range(12)]
        self.made = 0
        self.submits = False  # the last one was made by `submit`
        self.runs: dict[int, int] = {}
        self.counts = dict.fromkeys(("good", "failed", "cancelled", "late", "unborn", "refused"), 0)

    def work(self, number: int, lane: Lane | None, pause: float, fail: bool) -> tuple[str, int]:
        """What every call runs."""
        if lane is not None:
            lane.enter(number)
        self.runs[number] = self.runs.get(number, 0) + 1
        if pause >= 0:
            time.sleep(pause)
        if lane is not None:
            lane.leave()
        if fail:
            raise LookupError(number)
        return "result", number

    def call(self) -> tuple[int, bool, Awaitable[Any]]:
        """Make one call in some way: its number, whether it fails, what to await."""
        rnd, number = self.random, self.made
        self.made += 1
        kind = rnd.randrange(8)
        self.submits = kind == 0
        # What is submitted does not wait for room: it would overtake a lane's calls that do.
        lane = rnd.choice(self.lanes) if kind > 0 and rnd.random() < 0.5 else None
        fail = rnd.random() < 0.1
        pause = rnd.choice([0, 0.0003, 0.002]) if rnd.random() < 0.05 else -1.0
        arguments = (number, lane, pause, fail)
        way: Any = lane.lane if lane is not None else self.pool
        if kind == 0:
            return number, fail, asyncio.wrap_future(way.submit(self.work, *arguments))
        if kind <= 2:
            limit = rnd.choice([0.0, 0.0002, 0.001, 60.0])
            way = way.with_timeout(limit)
        if kind == 3:
            return number, fail, way.bind(self.work)(*arguments)
        if kind == 4:
            return number, fail, asyncio.create_task(way.call(self.work, *arguments))
        return number, fail, way.call(self.work, *arguments)

    async def task(self) -> None:
        rnd = self.random
        while self.left > 0:
            self.left -= 1
            try:
                number, fail, call = self.call()
            except offloop.PoolFullError:
                assert self.submits, "a call was refused that may wait for room"
                await self.refused(self.made - 1)
                continue
            future: Any = asyncio.ensure_future(call)
            cancelled = rnd.random() < 0.15
            if cancelled:
                for _ in range(rnd.randrange(3)):
                    await asyncio.sleep(0)
                future.cancel()
            await self.judge(number, fail, cancelled, future)

    async def judge(self, number: int, fail: bool, cancelled: bool, future: Any) -> None:
        try:
            found: Any = await future
        except asyncio.CancelledError:
            assert cancelled, f"{number} was cancelled by nobody"
            self.counts["cancelled"] += 1
            return
        except offloop.CallTimeoutError as error:
            self.counts["late" if error.began else "unborn"] += 1
            if not error.began:
                assert number not in self.runs, f"{number} ran, and timed out before"
                self.runs[number] = 0  # and it never will
            return
        except LookupError as error:
            assert fail and error.args == (number,), f"{number} got {error!r}"
            self.counts["failed"] += 1
        else:
            assert not fail and found == ("result", number), f"{number} got {found!r}"
            self.counts["good"] += 1
        assert self.runs.pop(number) == 1, f"{number} did not run once"

    async def refused(self, number: int) -> None:
        """The queue is full, and `submit` does not wait for room."""
        self.counts["refused"] += 1
        assert number not in self.runs
        self.runs[number] = 0
        await asyncio.sleep(0.001)

    async def batches(self) -> None:
        """Some go together, beside the others."""
        while self.left > 0:
            self.left -= 50
            first = self.made
            self.made += 50
            got = await self.pool.map_async(
                self.work, range(first, first + 50), [None] * 50, [-1.0] * 50, [False] * 50
            )
            assert got == [("result", number) for number in range(first, first + 50)]
            for number in range(first, first + 50):
                assert self.runs.pop(number) == 1
            self.counts["good"] += 50

    async def main(self, tasks: int) -> None:
        await asyncio.gather(*[self.task() for _ in range(tasks)], self.batches())
        # What was given up may run still; nothing of it was executed twice.
        await until(lambda: self.pool._busy == 0 and self.pool.stats()["queue_depth"] == 0)
        assert set(self.runs.values()) <= {0, 1}
        for lane in self.lanes:
            assert lane.wrong == []
            assert lane.inside == 0
            assert len(lane.threads) <= 1


def judge(leaks: Watch, calls: int, tasks: int, workers: int, limit: float) -> None:
    # A task that is cancelled at the very moment at which its call has failed never asks.
    leaks.allow("Future exception was never retrieved")
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    pool = offloop.Pool(workers, queue=256)
    oracle = Oracle(pool, calls, seed)
    run(oracle.main(tasks), limit=limit)
    print(oracle.counts)
    # Those that time out while they run are too rare in the short form to be sure of.
    seen = {kind for kind, count in oracle.counts.items() if count}
    assert seen | {"late", "refused"} == set(oracle.counts), "a kind of outcome was never seen"
    run(pool.aclose())
    assert not settle(lambda: pool.stats()["queue_depth"])


@pytest.mark.parametrize("workers", [1, 3])
def test_the_short_form(leaks: Watch, workers: int) -> None:
    judge(leaks, 12_000, 60, workers, 50)


@pytest.mark.soak
@pytest.mark.limit(1800)
def test_a_million_calls(leaks: Watch) -> None:
    judge(leaks, 1_000_000, 200, 4, 1700)


# ---- references ------------------------------------------------------------------------

Path = Callable[[offloop.Pool], Awaitable[Any]]


def _fail() -> None:
    raise LookupError


async def _failed(pool: offloop.Pool) -> None:
    with contextlib.suppress(LookupError):
        await pool.call(_fail)


async def _cancelled(pool: offloop.Pool) -> None:
    call: Any = pool.call(len, "a")
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)


async def _late(pool: offloop.Pool) -> None:
    with contextlib.suppress(offloop.CallTimeoutError):
        await pool.with_timeout(0).call(len, "a")


async def _lane(pool: offloop.Pool) -> None:
    await pool.lane(pinned=True).call(len, "a")


async def _many_arguments(pool: offloop.Pool) -> None:
    await pool.call(dict, **{f"name{i}": [i] for i in range(20)})


async def _batch(pool: offloop.Pool) -> None:
    await pool.map_async(len, ["a", "b", "c"])


async def _batch_failed(pool: offloop.Pool) -> None:
    await asyncio.gather(_awaited(pool.call_many([_fail, _fail, list])), return_exceptions=True)


async def _awaited(batch: offloop.Batch[Any]) -> Any:
    return await batch


async def _refused(pool: offloop.Pool) -> None:
    for wrong in (lambda: pool.call(5), lambda: pool.call_many([len, 5])):  # type: ignore[arg-type, list-item]
        with contextlib.suppress(TypeError):
            wrong()


async def _submitted(pool: offloop.Pool) -> None:
    await asyncio.wrap_future(pool.submit(len, "a"))


async def _unawaited(pool: offloop.Pool) -> None:
    pool.call(len, "a")
    await pool.call(len, "a")


async def _stop_iteration(pool: offloop.Pool) -> None:
    with contextlib.suppress(RuntimeError):
        await pool.call(next, iter(()))


PATHS: list[Path] = [
    _failed,
    _cancelled,
    _late,
    _lane,
    _many_arguments,
    _batch,
    _batch_failed,
    _refused,
    _submitted,
    _unawaited,
    _stop_iteration,
]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__.strip("_"))
def test_no_path_of_a_call_keeps_memory(path: Path) -> None:
    """A block that is kept each time shows after many times."""
    rounds = 400

    async def grown(pool: offloop.Pool) -> int:
        for _ in range(rounds):
            await path(pool)
        await asyncio.sleep(0)
        gc.collect()
        before = sys.getallocatedblocks()
        for _ in range(rounds):
            await path(pool)
        await pool.call(len, "")
        await asyncio.sleep(0)
        gc.collect()
        return sys.getallocatedblocks() - before

    async def main() -> None:
        async with offloop.Pool(1) as pool:
            seen = [await grown(pool) for _ in range(3)]
            assert min(seen) < rounds // 4, seen

    run(main())
