"""Calls over a bound: they wait for room, whoever took it, and are never lost or refused."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import weakref
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from typing import Any

import offloop
import offloop.redis as aioredis
import pytest
from child import quiet, run_child
from driving import outcome, outcomes, run, settle, until, within
from servers import Server


class Door:
    """A function that holds its worker until the door is opened."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.inside = 0

    def __call__(self) -> bool:
        self.inside += 1
        return self.gate.wait(50)


async def fill(pool: offloop.Pool, door: Door) -> list[Future[Any]]:
    """Keep the one worker busy, and fill the queue as one who is no loop."""
    futures: list[Future[Any]] = [pool.submit(door)]
    await until(lambda: door.inside)
    return futures + [pool.submit(len, "a") for _ in range(pool.queue)]


@asynccontextmanager
async def filled(queue: int = 2) -> AsyncIterator[tuple[offloop.Pool, Door, list[Future[Any]]]]:
    door = Door()
    async with offloop.Pool(1, queue=queue) as pool:
        futures = await fill(pool, door)
        try:
            yield pool, door, futures
        finally:
            door.gate.set()


# ---- the loop's own bound ---------------------------------------------------------------


async def test_over_the_bound_calls_wait_in_order() -> None:
    ran: list[int] = []
    door = Door()
    async with offloop.Pool(1, queue=4) as pool:
        first = pool.call(door)
        more = [pool.call(ran.append, i) for i in range(100)]
        assert pool.stats()["waiting"] == 97
        door.gate.set()
        await asyncio.gather(first, *more)
        assert ran == list(range(100))
        assert pool.stats()["queue_high_water"] <= 4


async def test_a_timeout_while_waiting_for_room() -> None:
    ran: list[int] = []
    door = Door()
    async with offloop.Pool(1, queue=1) as pool:
        first = pool.call(door)
        with pytest.raises(offloop.CallTimeoutError) as caught:
            await pool.with_timeout(0.05).call(ran.append, 1)
        assert not caught.value.began
        door.gate.set()
        await first
        await pool.call(len, "")
        assert ran == []


# ---- the pool's queue, full of what others sent --------------------------------------------


async def test_a_queue_full_of_what_others_sent() -> None:
    """Nothing of this loop is under way that would come home and be a sign of room."""
    async with filled() as (pool, door, futures):
        with pytest.raises(offloop.PoolFullError, match="queue is full"):
            pool.submit(len, "")
        late = pool.call(len, "ab")
        batch = pool.map_async(len, ["a", "bc", "def"])
        lane = pool.lane().call(len, "abcd")
        cancelled = pool.call(len, "")
        cancelled.cancel()
        assert pool.stats()["waiting"] == 6
        assert pool.stats()["queue_depth"] == 2  # what waits is not in it
        door.gate.set()
        assert await within(late) == 2
        assert await within(batch) == [1, 2, 3]
        assert await within(lane) == 4
        assert [future.result(20) for future in futures] == [True, 1, 1]
        assert pool.stats()["waiting"] == pool.stats()["queue_depth"] == 0
        assert pool.stats()["queue_high_water"] <= 2


async def test_they_keep_their_order() -> None:
    ran: list[int] = []
    async with filled(3) as (pool, door, futures):
        calls = [pool.call(ran.append, i) for i in range(10)]
        calls += [pool.with_timeout(50).call(ran.append, i) for i in range(10, 20)]
        batch = pool.map_async(ran.append, range(20, 30))
        calls += [pool.call(ran.append, i) for i in range(30, 40)]
        door.gate.set()
        await asyncio.gather(batch, *calls)
        assert ran == list(range(40))
        assert [future.result(20) for future in futures] == [True, 1, 1, 1]


async def test_first_one_bound_and_then_the_other() -> None:
    """Calls over the loop's bound find the queue full when their turn comes."""
    ran: list[int] = []
    door, second = Door(), Door()
    async with offloop.Pool(1, queue=2) as pool:
        first = pool.call(door)
        await until(lambda: door.inside)
        calls = [pool.call(ran.append, i) for i in range(20)]
        assert pool.stats()["waiting"] == 19
        other = pool.submit(second)
        door.gate.set()
        await first
        calls += [pool.call(ran.append, i) for i in range(20, 30)]
        await until(lambda: second.inside)
        second.gate.set()
        await within(asyncio.gather(*calls))
        assert ran == list(range(30))
        assert other.result(20) is True


async def test_a_timeout_while_the_queue_is_full() -> None:
    ran: list[int] = []
    async with filled() as (pool, door, futures):
        hurried = pool.with_timeout(0.05)
        calls = [hurried.call(ran.append, i) for i in range(200)]
        errors = await outcomes(calls)
        assert all(isinstance(error, offloop.CallTimeoutError) for error in errors)
        assert not any(error.began for error in errors)
        door.gate.set()
        await within(pool.call(len, ""))
        assert [future.result(20) for future in futures] == [True, 1, 1]
        assert ran == []


async def test_what_nobody_waits_for_is_not_kept() -> None:
    """A pool that stands still, and callers who give up and try again."""

    class Thing:
        pass

    async with filled() as (pool, door, _):
        kept = pool.call(len, "ab")
        refs = []
        for _ in range(1000):
            thing = Thing()
            refs.append(weakref.ref(thing))
            call = pool.call(id, thing)
            del thing
            call.cancel()
            del call
        await asyncio.sleep(0)
        gc.collect()
        assert sum(ref() is not None for ref in refs) < 100
        assert pool.stats()["waiting"] < 100
        door.gate.set()
        assert await within(kept) == 2


def test_loops_and_little_room() -> None:
    """Each waits for room that the others take."""
    pool = offloop.Pool(2, queue=2)
    wrong: list[Any] = []

    async def work() -> None:
        values = await outcomes([pool.call(len, "x" * (i % 50)) for i in range(1000)])
        if values != [i % 50 for i in range(1000)]:
            wrong.append(values)

    threads = [threading.Thread(target=lambda: run(work())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    run(pool.aclose())


# ---- beside Redis ----------------------------------------------------------------------------


async def test_a_pop_that_waits_is_no_sign_of_room(server: Server) -> None:
    """It is under way in the same loop, and may never come home."""
    async with (
        filled() as (pool, door, futures),
        aioredis.Redis(**server.unix, pool=pool) as client,
    ):
        pop = asyncio.ensure_future(client.blpop("none", timeout=0))
        await until(lambda: server.cmd("INFO", "clients").count("blocked_clients:1"))
        late = pool.call(len, "ab")
        door.gate.set()
        assert await within(late) == 2
        assert [future.result(20) for future in futures] == [True, 1, 1]
        assert not pop.done()
        await client.rpush("none", "end")
        assert await within(pop) == (b"none", b"end")


async def test_commands_do_not_wait_behind_calls(server: Server) -> None:
    """They are not in the queue that is full."""
    async with (
        filled() as (pool, door, _),
        aioredis.Redis(**server.unix, pool=pool) as client,
    ):
        await client.set("k", "v")
        late = [pool.call(len, "ab") for _ in range(3)]
        assert await within(client.get("k")) == b"v"
        assert await within(client.pipeline().get("k").get("k").execute()) == [b"v", b"v"]
        assert pool.stats()["waiting"] == 3
        door.gate.set()
        assert await outcomes(late) == [2, 2, 2]


# ---- what calls keep, and lets go of in the middle --------------------------------------------


class Canceller:
    """It cancels calls when it goes."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __del__(self) -> None:
        for call in self.calls:
            call.cancel()


def references(things: list[Any]) -> set[int]:
    return {sys.getrefcount(things[i]) for i in range(len(things))}


def cancelling(pool: offloop.Pool, calls: list[Any]) -> None:
    """Calls of which each would cancel all."""
    for _ in range(5):
        thing = Canceller()
        calls.append(pool.call(id, thing))
        thing.calls = calls


async def test_an_argument_that_cancels_calls_as_they_are_refused() -> None:
    pool, door = offloop.Pool(1, queue=1), Door()
    calls: list[Any] = []
    plain = [pool.call(len, "") for _ in range(3)]
    await asyncio.gather(*plain)
    await fill(pool, door)
    cancelling(pool, calls)
    await within(pool.aclose(0.1))
    assert all(call.done() for call in calls)
    assert references(calls) == references(plain)
    door.gate.set()
    await until(lambda: not pool._busy)


@pytest.mark.parametrize("waiting", [True, False])
def test_an_argument_that_cancels_calls_as_their_loop_ends(waiting: bool) -> None:
    pool, door = offloop.Pool(1, queue=1 if waiting else 100), Door()
    calls: list[Any] = []
    plain: list[Any] = []

    async def main() -> None:
        plain.extend(pool.call(len, "") for _ in range(3))
        await asyncio.gather(*plain)
        if waiting:
            await fill(pool, door)
        else:
            pool.submit(door)
            await until(lambda: door.inside)
        cancelling(pool, calls)

    run(main())
    door.gate.set()
    assert not settle(lambda: pool._busy)
    run(within(pool.call(len, "")))
    assert references(calls) == references(plain)
    run(pool.aclose())


def test_an_argument_that_closes_the_loop_as_it_is_swept_out() -> None:
    pool, door = offloop.Pool(1, queue=1), Door()
    loop = asyncio.new_event_loop()
    calls: list[Any] = []

    class Closer:
        def __del__(self) -> None:
            loop.close()

    async def main() -> None:
        await fill(pool, door)
        calls.extend(pool.call(id, Closer()) for _ in range(70))

    loop.run_until_complete(main())
    door.gate.set()
    assert not settle(lambda: pool._busy)
    for call in calls:
        with suppress(RuntimeError):  # the loop is closed
            call.cancel()
    assert loop.is_closed()
    pool.shutdown()


# ---- the end -----------------------------------------------------------------------------------


@pytest.mark.parametrize("theirs", [True, False])
async def test_closing_while_calls_wait(theirs: bool) -> None:
    """A worker that stays in its function; calls wait for what others sent, or for that."""
    pool, door = offloop.Pool(1, queue=1), Door()
    first = None if theirs else asyncio.ensure_future(outcome(pool.call(door)))
    if theirs:
        await fill(pool, door)
    await until(lambda: door.inside)
    calls = [pool.call(len, "a") for _ in range(3)]
    await within(pool.aclose(0.1))
    errors = await outcomes(calls, 20)
    assert all(isinstance(error, offloop.PoolClosedError) for error in errors)
    assert all("not executed" in str(error) for error in errors)
    if first is not None:
        assert "while the call was running" in str(await within(first))
    door.gate.set()
    await until(lambda: not pool._busy)


@pytest.mark.parametrize("queue", [1, 2])
async def test_closing_takes_no_room(queue: int) -> None:
    """A function of the pool needs the loop to be told that a call of its was refused."""
    loop = asyncio.get_running_loop()
    pool, door = offloop.Pool(1, queue=queue), Door()
    pool.submit(door)
    await until(lambda: door.inside)
    for _ in range(queue - 1):
        pool.submit(len, "")
    told = pool.submit(
        lambda: asyncio.run_coroutine_threadsafe(within(outcome(late)), loop).result(50)
    )
    late = pool.call(len, "a")
    closing = asyncio.ensure_future(pool.aclose(300))
    await asyncio.sleep(0.01)
    door.gate.set()
    await until(told.done)
    assert isinstance(told.result(), offloop.PoolClosedError)
    await within(closing)


def test_an_interrupt_while_waiting_calls_are_refused() -> None:
    """Those that are left are refused when the loop runs again."""
    pool, door = offloop.Pool(1, queue=1), Door()
    loop = asyncio.new_event_loop()
    calls: list[Any] = []
    tasks: list[asyncio.Task[None]] = []

    async def interrupt(call: Any) -> None:
        with suppress(offloop.PoolClosedError):
            await call
        raise KeyboardInterrupt

    async def main() -> None:
        calls.append(pool.call(door))
        await until(lambda: door.inside)
        calls.extend(pool.call(len, "a") for _ in range(4))
        tasks.append(asyncio.ensure_future(interrupt(calls[1])))
        await asyncio.sleep(0)
        await pool.aclose(0.1)

    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(main())
    assert isinstance(tasks[0].exception(), KeyboardInterrupt)
    errors = loop.run_until_complete(outcomes(calls, 30))
    assert all(isinstance(error, offloop.PoolClosedError) for error in errors)
    door.gate.set()
    assert not settle(lambda: pool._busy)
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


async def test_closing_in_time_while_calls_wait() -> None:
    async with filled() as (pool, door, futures):
        calls = [pool.call(len, "a") for _ in range(3)]
        closing = asyncio.ensure_future(pool.aclose(30))
        await asyncio.sleep(0)
        door.gate.set()
        errors = await outcomes(calls)
        assert all(isinstance(error, offloop.PoolClosedError) for error in errors)
        await within(closing)
        assert [future.result(20) for future in futures] == [True, 1, 1]


def test_the_loop_ends_while_calls_wait() -> None:
    class Thing:
        pass

    refs = []
    pool, door = offloop.Pool(1, queue=1), Door()

    async def main() -> None:
        await fill(pool, door)
        thing = Thing()
        refs.append(weakref.ref(thing))
        for _ in range(3):
            pool.call(id, thing)

    run(main())
    door.gate.set()
    assert not settle(lambda: pool._busy)
    assert run(within(pool.call(len, "ab"))) == 2
    gc.collect()
    assert not settle(lambda: [ref for ref in refs if ref() is not None])
    run(pool.aclose())


@pytest.mark.parametrize("end", ["pass", "await pool.aclose(0.2)", "os.fork() or os._exit(0)"])
def test_the_process_ends_while_calls_wait(end: str) -> None:
    done = run_child(
        f"""
        import asyncio, os, sys, threading, time, warnings, offloop
        import offloop.pool
        offloop.pool._EXIT_GRACE = 0.3
        warnings.simplefilter("ignore", DeprecationWarning)  # fork() beside threads
        pool = offloop.Pool(1, queue=1)

        async def main():
            pool.submit(time.sleep, 1)
            while not pool._busy:
                await asyncio.sleep(0.001)
            pool.submit(len, "")
            sys.calls = [pool.call(len, "a") for _ in range(3)]
            await asyncio.sleep(0.01)
            {end}
            for call in sys.calls:
                call.cancel()

        asyncio.run(main())
        """
    )
    quiet(done)
