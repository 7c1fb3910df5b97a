"""Calls at the ends of things: of a loop, of a pool, of the process, and in a fork."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from typing import Any

import offloop
import pytest
from child import quiet, run_child
from driving import outcome, run, settle, until, within

# ---- a loop ends ---------------------------------------------------------------------


class Thing:
    pass


@pytest.mark.parametrize("keep_loop", [False, True])
def test_results_for_a_closed_loop_are_dropped(keep_loop: bool) -> None:
    pool = offloop.Pool(2)
    gate = threading.Event()
    arguments, refs = [Thing()], []
    began: list[int] = []

    def work(_: Thing) -> Thing:
        began.append(1)
        gate.wait(50)
        result = Thing()
        refs.append(weakref.ref(result))
        return result

    loop = asyncio.new_event_loop()

    async def main() -> None:
        calls.append(asyncio.ensure_future(pool.call(work, *arguments)))
        calls.append(pool.call(work, *arguments))
        while len(began) < 2:
            await asyncio.sleep(0.001)

    calls: list[Any] = []
    loop.run_until_complete(main())
    refs.append(weakref.ref(arguments.pop()))
    calls[0].cancel()  # a task that is left pending would be complained of
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    calls.clear()
    if not keep_loop:
        del loop
    gate.set()
    assert not settle(lambda: pool._busy)
    if keep_loop:
        run(within(pool.call(len, "")))  # the pool's next loop reaps
    gc.collect()
    assert len(refs) == 3
    assert not settle(lambda: [ref for ref in refs if ref() is not None])
    run(pool.aclose())


@pytest.mark.parametrize("lane", [False, True])
def test_results_that_came_before_the_loop_was_closed_are_dropped(lane: bool) -> None:
    """They are home, and the loop never looks for them."""
    pool = offloop.Pool(1)
    way = pool.lane() if lane else pool
    gate = threading.Event()
    refs = []

    def work() -> Thing:
        gate.wait(50)
        result = Thing()
        refs.append(weakref.ref(result))
        return result

    async def main() -> None:
        way.call(work)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    gate.set()
    assert not settle(lambda: not refs or pool._busy)
    time.sleep(0.01)  # it is posted after the pool counts it
    loop.close()
    gc.collect()
    assert not settle(lambda: [ref for ref in refs if ref() is not None], 5)
    del loop
    run(pool.aclose())


def test_one_pool_many_loops_and_threads() -> None:
    pool = offloop.Pool(3)

    async def main(number: int) -> None:
        for i in range(50):
            assert await asyncio.gather(*[pool.call(pow, number, k) for k in range(5)]) == [
                number**k for k in range(5)
            ], i

    threads = [threading.Thread(target=lambda n=n: asyncio.run(main(n))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run(main(9))
    run(pool.aclose())


def test_an_uncollected_pool_ends_by_itself() -> None:
    async def main() -> list[int]:
        pool = offloop.Pool(2)
        return await pool.map_async(abs, range(10))

    assert run(main()) == list(range(10))
    gc.collect()  # the leaks fixture looks for its threads


# ---- a pool is closed -----------------------------------------------------------------


async def test_a_closed_pool_refuses() -> None:
    pool = offloop.Pool(2)
    lane = pool.lane()
    assert await pool.call(len, "a") == 1
    await pool.aclose()
    for way in (pool, lane, pool.with_timeout(3)):
        with pytest.raises(offloop.PoolClosedError, match="not executed"):
            way.call(len, "a")
    await pool.aclose()


async def test_closing_finishes_what_is_under_way() -> None:
    pool = offloop.Pool(2)
    lane = pool.lane()
    calls = [pool.call(time.sleep, 0.01) for _ in range(20)]
    calls += [lane.call(time.sleep, 0.001) for _ in range(20)]
    await pool.aclose(30)
    assert await asyncio.gather(*calls) == [None] * 40


async def test_closing_does_not_wait_for_ever() -> None:
    pool = offloop.Pool(1)
    gate, began = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        gate.wait(50)

    running = asyncio.create_task(outcome(pool.call(work)))
    queued = asyncio.create_task(outcome(pool.call(len, "a")))
    await until(began.is_set)
    await within(pool.aclose(0.1))
    found = await within(running)
    assert isinstance(found, offloop.PoolClosedError)
    assert "while the call was running" in str(found)
    gate.set()
    found = await within(queued)
    assert isinstance(found, offloop.PoolClosedError)
    assert "not executed" in str(found)


def test_shutdown_without_a_loop() -> None:
    pool = offloop.Pool(2)
    assert asyncio.run(within(pool.call(len, "ab"))) == 2
    pool.shutdown()
    assert pool.closed
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(len, "a")


async def test_a_call_cannot_wait_for_the_end_of_its_pool() -> None:
    async with offloop.Pool(1) as pool:
        with pytest.raises(RuntimeError, match="cannot wait for the end of its own pool"):
            await pool.call(pool.shutdown)


# ---- fork ------------------------------------------------------------------------------


def test_a_fork_uses_the_pool_anew() -> None:
    done = run_child(
        """
        import asyncio, os, threading, time, warnings, offloop
        warnings.simplefilter("ignore", DeprecationWarning)  # fork() beside threads
        pool = offloop.Pool(2)
        lane, pinned = pool.lane(), pool.lane(pinned=True)
        gate = threading.Event()

        async def use():
            assert await pool.call(os.getpid) == os.getpid()
            assert await lane.call(os.getpid) == os.getpid()
            assert await pinned.call(os.getpid) == os.getpid()
            assert await asyncio.wrap_future(pool.submit(os.getpid)) == os.getpid()

        asyncio.run(use())
        busy = [pool.submit(gate.wait, 30) for _ in range(5)]
        while pool._busy < 2:
            time.sleep(0.001)
        pid = os.fork()
        if pid == 0:
            asyncio.run(use())
            print("child", flush=True)
            os._exit(0)
        gate.set()
        assert all(future.result() for future in busy)
        asyncio.run(use())
        assert os.waitpid(pid, 0)[1] == 0
        print("parent")
        """
    )
    assert sorted(quiet(done).split()) == ["child", "parent"]


def test_a_fork_inside_a_call() -> None:
    done = run_child(
        """
        import asyncio, os, subprocess, warnings, offloop
        warnings.simplefilter("ignore", DeprecationWarning)  # fork() beside threads

        def fork():
            pid = os.fork()
            if pid == 0:
                os._exit(7)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

        def fork_and_return():
            pid = os.fork()
            return 8 if pid == 0 else os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

        async def main():
            async with offloop.Pool(2) as pool:
                assert await pool.call(fork) == 7
                # The child comes out of the call alone, and has nothing to do.
                assert await pool.call(fork_and_return) == 0
                out = await pool.call(subprocess.check_output, ["echo", "hi"])
                assert out == b"hi\\n"

        asyncio.run(main())
        """
    )
    quiet(done)


# ---- exit -------------------------------------------------------------------------------

_BEGIN = """
import asyncio, os, sys, threading, time, offloop
pool = offloop.Pool(3)
"""

WAYS = {
    "aclose": "await pool.aclose()",
    "nothing": "pass",
    "del": "globals().pop('pool')",
    "kept in a cycle": "pool.me = pool; sys.kept = pool",
    "a lane": "sys.lane = pool.lane(pinned=True); await sys.lane.call(len, 'a')",
    "calls queued": "sys.calls = [pool.call(len, 'abc') for i in range(200)]",
    "calls running": "sys.calls = [pool.call(time.sleep, 0.2) for i in range(3)]",
    "calls cancelled": "t = asyncio.create_task(pool.call(time.sleep, 0.2)); "
    "await asyncio.sleep(0.01); t.cancel()",
    "a timeout set": "sys.call = pool.with_timeout(60).call(time.sleep, 0.2)",
    "busy": "sys.calls = [pool.call(sum, range(3000000)) for i in range(3)]",
}


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_end(way: str) -> None:
    done = run_child(
        _BEGIN
        + f"""
async def main():
    assert await pool.call(len, "x") == 1
    {WAYS[way]}
asyncio.run(main())
"""
    )
    quiet(done)


@pytest.mark.parametrize(
    "forever",
    [
        "threading.Event().wait",
        "threading.Lock().acquire() and time.sleep",
        "os.read(os.pipe()[0], 1) or print",
        "[time.sleep(0.0001) for _ in iter(int, 1)] or print",
        "sum(iter(lambda: 1, 0)) or print",
    ],
)
def test_a_call_that_never_returns_does_not_keep_the_process(forever: str) -> None:
    done = run_child(
        _BEGIN
        + f"""
import offloop.pool
offloop.pool._EXIT_GRACE = 0.3

def work():
    began.set()
    ({forever})(3600)

async def main():
    call = asyncio.ensure_future(pool.call(work))
    while not began.is_set():
        await asyncio.sleep(0.001)

began = threading.Event()
asyncio.run(main())
"""
    )
    quiet(done)


def test_the_end_at_a_random_moment() -> None:
    """Threads with loops of their own go on calling while the main thread ends."""
    for seed in range(6):
        done = run_child(
            _BEGIN
            + """
import random
random.seed(sys.argv[1])

async def storm(lane):
    while True:
        calls = []
        try:
            for k in range(20):
                calls.append(lane.call(pow, 3, k))
            calls.append(pool.call(time.sleep, 0.001))
            await asyncio.gather(*calls)
        except RuntimeError:  # the interpreter ends; what was made before fails, too
            await asyncio.gather(*calls, return_exceptions=True)
            return

for lane in (pool, pool.lane(), pool.lane(pinned=True)):
    threading.Thread(target=lambda: asyncio.run(storm(lane)), daemon=True).start()
time.sleep(random.random() * 0.2)
""",
            seed,
        )
        quiet(done)


def test_what_was_submitted_is_finished_before_the_end() -> None:
    done = run_child(
        _BEGIN
        + """
import atexit

def say(text):
    os.write(1, f"{text}\\n".encode())  # at one stroke

def work():
    time.sleep(0.3)
    say("finished")
    try:
        pool.submit(print, "never")
    except RuntimeError as error:
        say(error)

@atexit.register
def late():
    try:
        pool.submit(print, "never")
    except RuntimeError as error:
        say(error)

pool.submit(work)
pool.submit(work)
"""
    )
    refused = "cannot schedule new futures after interpreter shutdown"
    assert sorted(quiet(done).splitlines()) == sorted(["finished", "finished", *[refused] * 3])


def test_a_pool_used_in_an_atexit_callback_says_no() -> None:
    done = run_child(
        _BEGIN
        + """
import atexit

@atexit.register
def late():
    async def main():
        try:
            await pool.call(len, "a")
        except offloop.PoolClosedError:
            print("refused")
    asyncio.run(main())

asyncio.run(asyncio.wait_for(pool.call(len, "a"), 20))
"""
    )
    assert quiet(done).split() == ["refused"]


def test_no_worker_enters_python_for_redis_alone() -> None:
    """A pool that runs no Python function makes no thread states."""
    pool = offloop.Pool(3)
    before = set(threading.enumerate())

    async def main() -> None:
        await asyncio.gather(*[pool._echo(i) for i in range(50)])

    run(main())
    assert set(threading.enumerate()) == before
    run(pool.aclose())
