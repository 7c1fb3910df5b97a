"""Lanes: in order, never two at once, on any worker or always on the same; and Redis
beside calls that take long."""

from __future__ import annotations

import asyncio
import gc
import random
import sqlite3
import threading
import time
import weakref
from functools import partial
from typing import Any

import offloop
import offloop.redis as aioredis
import pytest
from driving import TooSlow, outcome, outcomes, patiently, run, settle, until, within
from leaks import Watch
from servers import Server


class Track:
    """What a lane may not do is seen from inside its calls."""

    def __init__(self) -> None:
        self.inside = 0
        self.ran: list[int] = []
        self.threads: set[int] = set()

    def work(self, number: int, pause: float = 0.0) -> int:
        self.inside += 1
        assert self.inside == 1, "two calls of a lane at once"
        if pause:
            time.sleep(pause)  # others may run Python code now
        self.ran.append(number)
        self.threads.add(threading.get_ident())
        assert self.inside == 1, "two calls of a lane at once"
        self.inside -= 1
        return number


@pytest.mark.parametrize("pinned", [False, True])
async def test_in_order_and_never_two_at_once(pinned: bool) -> None:
    async with offloop.Pool(4) as pool:
        track, lane = Track(), pool.lane(pinned=pinned)
        assert (lane.pinned, lane.pool) == (pinned, pool)
        pauses = [0.0005 * (i % 7 == 0) for i in range(300)]
        calls = [lane.call(track.work, i, pause) for i, pause in enumerate(pauses)]
        assert await asyncio.gather(*calls) == list(range(300))
        assert track.ran == list(range(300))
        assert len(track.threads) == 1 or not pinned


async def test_a_pinned_lane_has_one_thread_for_life() -> None:
    async with offloop.Pool(3) as pool:
        lanes = [pool.lane(pinned=True) for _ in range(6)]
        seen: list[set[int]] = [set() for _ in lanes]
        for _ in range(30):
            idents = await asyncio.gather(*[lane.call(threading.get_ident) for lane in lanes])
            await asyncio.gather(*[pool.call(time.sleep, 0) for _ in range(5)])
            for ident, known in zip(idents, seen, strict=True):
                known.add(ident)
        assert all(len(known) == 1 for known in seen)
        assert len(set.union(*seen)) == 3  # spread over the workers


async def test_what_belongs_to_its_thread() -> None:
    async with offloop.Pool(4) as pool:
        lane = pool.lane(pinned=True)
        db = await lane.call(sqlite3.connect, ":memory:")
        await lane.call(db.execute, "create table t (n integer)")
        await asyncio.gather(
            *[lane.call(db.execute, "insert into t values (?)", (i,)) for i in range(100)]
        )
        cursor = await lane.call(db.execute, "select sum(n) from t")
        assert await lane.call(cursor.fetchone) == (4950,)
        await lane.call(db.close)


async def test_thousands_of_lanes_on_two_workers() -> None:
    async with offloop.Pool(2) as pool:
        lanes = [(pool.lane(pinned=i % 10 == 0), Track()) for i in range(2000)]
        calls = [lane.call(track.work, n) for n in range(5) for lane, track in lanes]
        await asyncio.gather(*calls)
        assert all(track.ran == list(range(5)) for _, track in lanes)


async def test_a_busy_lane_leaves_room_for_the_others() -> None:
    """One worker: a lane with much to do, and others that come later."""
    async with offloop.Pool(1) as pool:
        busy, track = pool.lane(), Track()
        gate, began = threading.Event(), threading.Event()

        def wait() -> None:
            began.set()
            gate.wait(50)

        first = pool.call(wait)
        await until(began.is_set)
        many = [busy.call(track.work, i) for i in range(1000)]
        others = [pool.lane().call(lambda: len(track.ran)) for _ in range(10)]
        others.append(pool.call(lambda: len(track.ran)))
        gate.set()
        assert max(await asyncio.gather(*others)) <= 16
        await asyncio.gather(first, *many)


async def test_a_blocked_lane_blocks_itself_alone() -> None:
    async with offloop.Pool(2) as pool:
        blocked, other = pool.lane(), pool.lane()
        gate = threading.Event()
        stuck = [blocked.call(gate.wait, 50) for _ in range(3)]
        assert await within(other.call(len, "ab")) == 2
        assert await within(asyncio.gather(*[pool.call(len, "") for _ in range(50)])) == [0] * 50
        gate.set()
        assert await asyncio.gather(*stuck) == [True] * 3


@pytest.mark.parametrize("pinned", [False, True])
async def test_what_is_cancelled_or_late_is_left_out(pinned: bool) -> None:
    async with offloop.Pool(2) as pool:
        lane, track = pool.lane(pinned=pinned), Track()
        gate, began = threading.Event(), threading.Event()

        def wait() -> None:
            began.set()
            gate.wait(50)

        first = lane.call(wait)
        await until(began.is_set)
        calls = [lane.call(track.work, i) for i in range(30)]
        for call in calls[::3]:
            call.cancel()
        with pytest.raises(offloop.CallTimeoutError, match="not executed"):
            await lane.with_timeout(0.05).call(track.work, -1)
        gate.set()
        await first
        found = await outcomes(calls)
        assert [one for one in found if isinstance(one, int)] == track.ran
        assert track.ran == [i for i in range(30) if i % 3]


@pytest.mark.parametrize("pinned", [False, True])
async def test_the_next_call_of_a_lane_waits_for_an_abandoned_one(pinned: bool) -> None:
    """Nobody waits for it any more; the lane does."""
    async with offloop.Pool(2) as pool:
        lane = pool.lane(pinned=pinned)
        gate, began, done = threading.Event(), threading.Event(), threading.Event()

        def work() -> None:
            began.set()
            gate.wait(50)
            done.set()

        task = asyncio.create_task(lane.call(work))
        await until(began.is_set)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        after = lane.call(done.is_set)
        await pool.call(len, "")
        assert not done.is_set()
        gate.set()
        assert await within(after) is True


async def test_many_calls_of_a_lane_together() -> None:
    async with offloop.Pool(3) as pool:
        lane, track = pool.lane(), Track()
        assert await lane.map_async(track.work, range(100)) == list(range(100))
        assert await lane.call_many([(track.work, 100), (track.work, 101)]) == [100, 101]
        assert track.ran == list(range(102))
        assert lane.submit(track.work, 102).result(20) == 102


def test_a_lane_of_several_loops_and_threads() -> None:
    pool = offloop.Pool(3)
    lane, track = pool.lane(), Track()

    async def main() -> None:
        await asyncio.gather(*[lane.call(track.work, i) for i in range(200)])
        await asyncio.gather(*[asyncio.wrap_future(lane.submit(track.work, i)) for i in range(50)])

    threads = [threading.Thread(target=asyncio.run, args=(main(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(track.ran) == 750
    run(pool.aclose())


async def test_a_lane_that_nobody_keeps_finishes() -> None:
    async with offloop.Pool(2) as pool:
        track = Track()
        lane = pool.lane()
        ref = weakref.ref(lane)
        calls = [lane.call(track.work, i) for i in range(100)]
        del lane
        await asyncio.gather(*calls)
        calls.clear()
        assert track.ran == list(range(100))
        gc.collect()
        assert not settle(lambda: ref() is not None)


async def test_lanes_come_and_go() -> None:
    async with offloop.Pool(2) as pool:
        for i in range(2000):
            lane = pool.lane(pinned=i % 2 == 0)
            if i % 3 == 0:
                assert await lane.call(len, "a") == 1


# ---- beside Redis ------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["redis", "calls"])
@pytest.mark.parametrize("workers", [1, 2, 4])
async def test_redis_goes_on_while_all_calls_take_long(
    server: Server, workers: int, first: str
) -> None:
    """Whichever came first, and with calls waiting besides."""
    pool = offloop.Pool(workers)
    client = aioredis.Redis(unix_socket_path=server.path, pool=pool)
    gate = threading.Event()
    try:
        if first == "redis":
            await client.set("k", 0)
        lanes = [pool, pool.lane(), pool.lane(pinned=True), pool.lane(pinned=True)]
        calls = [lanes[i % 4].call(gate.wait, 50) for i in range(2 * workers)]
        for _ in range(200):
            if pool._busy >= workers:
                break  # the last free worker may keep out of them
            await asyncio.sleep(0.001)
        for i in range(50):
            await within(client.set("k", i))
            assert await within(client.get("k")) == b"%d" % i
        assert await within(client.blpop(["none"], timeout=0.05)) is None
        gate.set()
        assert await within(asyncio.gather(*calls)) == [True] * len(calls)
    finally:
        gate.set()
        await client.aclose()
        await pool.aclose()


async def test_calls_redis_and_lanes_in_one_pool(server: Server) -> None:
    async with offloop.Pool(3) as pool:
        client = aioredis.Redis(unix_socket_path=server.path, pool=pool)
        lanes = [(pool.lane(pinned=i % 2 == 0), Track()) for i in range(8)]

        async def task(number: int) -> None:
            rnd = random.Random(number)
            lane, track = lanes[number % 8]
            for i in range(60):
                match rnd.randrange(4):
                    case 0:
                        word = b"%d:%d" % (number, i)
                        assert await client.echo(word) == word
                    case 1:
                        assert await lane.call(track.work, i, 0.0002) == i
                    case 2:
                        assert await pool.call(divmod, number, i + 1) == divmod(number, i + 1)
                    case _:
                        call: Any = asyncio.create_task(lane.call(track.work, i))
                        await asyncio.sleep(0)
                        call.cancel()
                        await asyncio.gather(call, return_exceptions=True)

        await within(asyncio.gather(*[task(i) for i in range(24)]))
        await client.aclose()


# ---- interrupts ---------------------------------------------------------------------------


class Stoppable:
    """A function that runs until it is interrupted."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.stop = threading.Event()
        self.interrupts = 0

    def work(self) -> bool:
        self.began.set()
        return self.stop.wait(50)

    def interrupt(self) -> None:
        self.interrupts += 1
        self.stop.set()


@pytest.mark.parametrize("kind", ["pool", "lane"])
@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_a_call_that_is_given_up_is_interrupted(kind: str, how: str) -> None:
    async def attempt(secs: float) -> None:
        async with offloop.Pool(1) as pool:
            way = pool if kind == "pool" else pool.lane()
            one = Stoppable()
            limit = secs if how == "timeout" else None
            call = way.with_timeout(limit, interrupt=one.interrupt).call(one.work)
            task = asyncio.create_task(outcome(call))
            await until(lambda: one.began.is_set() or task.done())
            if how == "cancel":
                call.cancel()
            (found,) = await outcomes([task])
            if isinstance(found, offloop.CallTimeoutError) and not found.began:
                raise TooSlow
            assert isinstance(found, (asyncio.CancelledError, offloop.CallTimeoutError))
            assert await within(pool.call(len, "")) == 0
            assert one.interrupts >= 1

    await patiently(attempt, 0.05)


async def test_one_that_was_not_ready_is_interrupted_again() -> None:
    async with offloop.Pool(1) as pool:
        one = Stoppable()

        def later() -> None:
            one.interrupts += 1
            if one.interrupts == 4:
                one.stop.set()

        task = asyncio.create_task(pool.with_timeout(None, interrupt=later).call(one.work))
        await until(one.began.is_set)
        task.cancel()
        await within(pool.call(len, ""))
        assert one.interrupts >= 4 and task.cancelled()


async def test_a_call_that_is_over_or_never_began_is_not_interrupted() -> None:
    async with offloop.Pool(1) as pool:
        lane, one, gate = pool.lane(), Stoppable(), threading.Event()
        one.stop.set()
        way = lane.with_timeout(None, interrupt=one.interrupt)
        done = way.call(one.work)
        assert await done is True
        assert done.cancel() is False
        one.began.clear()
        first = lane.call(gate.wait, 50)
        never = way.call(one.work)
        await asyncio.sleep(0.01)
        assert lane.pending == 2
        never.cancel()
        gate.set()
        assert await first is True
        await lane.call(len, "")
        assert lane.pending == 0
        assert one.interrupts == 0 and not one.began.is_set()


async def test_the_end_of_a_pool_interrupts() -> None:
    pool = offloop.Pool(1)
    one = Stoppable()
    call = pool.with_timeout(None, interrupt=one.interrupt).call(one.work)
    await until(one.began.is_set)
    await pool.aclose(0.05)
    with pytest.raises(offloop.PoolClosedError, match="goes on"):
        await call
    assert one.interrupts >= 1


async def test_an_interrupt_that_fails_is_reported(leaks: Watch) -> None:
    leaks.allow("ZeroDivisionError")
    async with offloop.Pool(1) as pool:
        one = Stoppable()

        def fail() -> None:
            one.interrupt()
            raise ZeroDivisionError

        task = asyncio.create_task(pool.with_timeout(None, interrupt=fail).call(one.work))
        await until(one.began.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert any("ZeroDivisionError" in text for text in leaks.errors)
    with pytest.raises(TypeError, match="callable"):
        pool.with_timeout(1, interrupt=42)  # type: ignore[arg-type]


async def test_an_interrupt_meets_its_own_call_alone() -> None:
    """A C function as an interrupt: the number that it changed is the call's own."""
    async with offloop.Pool(2) as pool:
        lane = pool.lane()
        wrong, current = [], [0]
        hits: list[int] = []

        def work(number: int) -> None:
            current[0] = number
            time.sleep(0)
            if current[0] != number:
                wrong.append(number)
            current[0] = 0

        for number in range(1, 500):
            # list.extend does not let go of the GIL, nor does the list's iteration.
            way = lane.with_timeout(None, interrupt=partial(hits.extend, current))
            task = asyncio.create_task(way.call(work, number))
            for _ in range(number % 4):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, lane.call(work, -number), return_exceptions=True)
            assert set(hits) <= {number, 0}, "an interrupt met another call"
            hits.clear()
        assert wrong == []
