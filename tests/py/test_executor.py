"""A Pool as a concurrent.futures.Executor, and as a loop's."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import socket
import threading
import time
import weakref
from concurrent.futures.thread import BrokenThreadPool
from typing import Any

import offloop
import pytest
from driving import outcomes, run, settle, until, within


def fails(error: BaseException) -> None:
    raise error


def test_submit() -> None:
    with offloop.Pool(2) as pool:
        future = pool.submit(divmod, 7, 2)
        assert isinstance(future, concurrent.futures.Future)
        assert future.result(60) == (3, 1)
        assert pool.submit(dict, a=1, timeout=2, self=3, fn=4).result(60) == {
            "a": 1,
            "timeout": 2,
            "self": 3,
            "fn": 4,
        }
        for error in (KeyError("own"), SystemExit(3), KeyboardInterrupt(), StopIteration(1)):
            assert pool.submit(fails, error).exception(60) is error
        with pytest.raises(TypeError):
            pool.submit()  # type: ignore[call-arg]
        assert isinstance(pool.submit(5).exception(60), TypeError)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.submit(len, "")


def test_map() -> None:
    with offloop.Pool(3) as pool:
        assert list(pool.map(pow, range(50), range(50))) == [i**i for i in range(50)]
        assert list(pool.map(len, ["a"] * 5, chunksize=3)) == [1] * 5
        with pytest.raises(ZeroDivisionError):
            list(pool.map(lambda x: 1 / x, [1, 0, 2]))
        gate = threading.Event()
        try:
            with pytest.raises(concurrent.futures.TimeoutError):
                list(pool.map(gate.wait, [20], timeout=0.05))
        finally:
            gate.set()
        assert list(pool.map(len, [])) == []


def test_wait_and_as_completed() -> None:
    with offloop.Pool(3) as pool:
        futures = [pool.submit(pow, 2, i) for i in range(30)]
        done, waiting = concurrent.futures.wait(futures, timeout=60)
        assert (len(done), len(waiting)) == (30, 0)
        found = {one.result() for one in concurrent.futures.as_completed(futures, timeout=60)}
        assert found == {2**i for i in range(30)}


def test_a_future_cancelled_before_it_began_never_runs() -> None:
    ran: list[int] = []
    with offloop.Pool(1) as pool:
        gate, began = threading.Event(), threading.Event()

        def wait() -> bool:
            began.set()
            return gate.wait(50)

        first = pool.submit(wait)
        assert began.wait(60)
        assert not first.cancel()
        futures = [pool.submit(ran.append, i) for i in range(20)]
        assert all(future.cancel() for future in futures[::2])
        gate.set()
        assert first.result(60)
        concurrent.futures.wait(futures, timeout=60)
    assert ran == list(range(1, 20, 2))


def test_shutdown_finishes_what_was_submitted() -> None:
    pool = offloop.Pool(2)
    futures = [pool.submit(time.sleep, 0.01) for _ in range(20)]
    pool.shutdown()
    assert all(future.done() and future.exception() is None for future in futures)
    pool.shutdown()

    pool = offloop.Pool(2)
    futures = [pool.submit(time.sleep, 0.01) for _ in range(20)]
    pool.shutdown(wait=False)
    with pytest.raises(RuntimeError):
        pool.submit(len, "")
    assert [future.result(60) for future in futures] == [None] * 20


@pytest.mark.parametrize("wait", [True, False])
def test_shutdown_may_cancel_what_has_not_begun(wait: bool) -> None:
    ran: list[int] = []
    pool = offloop.Pool(1)
    gate, began = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        gate.wait(50)
        ran.append(-1)

    first = pool.submit(work)
    assert began.wait(60)
    futures = [pool.submit(ran.append, i) for i in range(20)]

    def open_gate() -> None:  # once shutdown() has begun, which waits for the first
        with contextlib.suppress(RuntimeError):
            while True:
                futures.append(pool.submit(ran.append, -2))
                time.sleep(0.01)
        gate.set()

    opener = threading.Thread(target=open_gate)
    opener.start()
    pool.shutdown(wait, cancel_futures=True)
    opener.join()
    assert first.result(60) is None
    concurrent.futures.wait(futures, timeout=60)
    assert all(future.cancelled() for future in futures)
    assert ran == [-1]


def test_the_threads_have_names() -> None:
    with offloop.Pool(3, thread_name_prefix="Special") as pool:
        gate = threading.Barrier(3)

        def name() -> str:
            gate.wait(60)
            return threading.current_thread().name

        names = {future.result(60) for future in [pool.submit(name) for _ in range(3)]}
        assert names == {"Special_0", "Special_1", "Special_2"}
        assert pool._max_workers == 3


def test_an_unreferenced_pool_finishes_and_ends() -> None:
    pool = offloop.Pool(2)
    gate = threading.Event()
    futures = [pool.submit(gate.wait, 20) for _ in range(2)]
    futures += [pool.submit(len, "abc") for _ in range(20)]
    ref = weakref.ref(pool)
    del pool
    gc.collect()
    gate.set()
    assert [future.result(60) for future in futures] == [True] * 2 + [3] * 20
    del futures
    assert not settle(lambda: ref() is not None)


# ---- initializers ----------------------------------------------------------------------


def test_the_initializer_runs_once_on_each_thread_before_its_first_call() -> None:
    local = threading.local()
    calls: list[str] = []

    def begin(word: str) -> None:
        assert not hasattr(local, "word")
        local.word = word
        calls.append(threading.current_thread().name)

    with offloop.Pool(3, initializer=begin, initargs=("hello",)) as pool:
        assert {future.result(60) for future in [pool.submit(getattr, local, "word")] * 50} == {
            "hello"
        }
        assert run(within(pool.call(getattr, local, "word"))) == "hello"
        assert run(within(pool.lane(pinned=True).call(getattr, local, "word"))) == "hello"
    assert len(calls) == len(set(calls)) <= 3


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
def test_an_initializer_that_fails_breaks_the_pool(
    kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def begin() -> None:
        raise kind("no service")

    with offloop.Pool(2, initializer=begin) as pool:
        with pytest.raises(BrokenThreadPool):
            run(within(pool.call(len, "")))
        for _ in range(3):
            with pytest.raises(BrokenThreadPool):
                pool.submit(len, "").result(60)
        with pytest.raises(BrokenThreadPool):
            run(within(pool.lane().call(len, "")))
    assert "Exception in initializer" in caplog.text
    assert "no service" in caplog.text


def test_what_waited_for_a_broken_pool_is_told() -> None:
    gate = threading.Event()

    def begin() -> None:
        gate.wait(60)
        raise LookupError("no service")

    with offloop.Pool(2, initializer=begin) as pool:
        futures = [pool.submit(len, "") for _ in range(10)]

        async def main() -> list[Any]:
            calls = [pool.call(len, "") for _ in range(10)]
            gate.set()
            return await outcomes(calls)

        assert {type(error) for error in run(main())} == {BrokenThreadPool}
        assert {type(future.exception(60)) for future in futures} == {BrokenThreadPool}


def test_arguments_are_checked() -> None:
    with pytest.raises(TypeError, match="callable"):
        offloop.Pool(2, initializer=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="str"):
        offloop.Pool(2, thread_name_prefix=5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="workers"):
        offloop.Pool(0)


# ---- with a loop ------------------------------------------------------------------------


async def test_run_in_executor() -> None:
    loop = asyncio.get_running_loop()
    with offloop.Pool(2) as pool:
        assert await loop.run_in_executor(pool, divmod, 7, 2) == (3, 1)
        with pytest.raises(LookupError):
            await loop.run_in_executor(pool, fails, LookupError())
        await asyncio.gather(*[loop.run_in_executor(pool, len, "") for _ in range(200)])
        assert await asyncio.wrap_future(pool.submit(len, "ab")) == 2
        await pool.aclose()


@pytest.mark.parametrize("given", ["pool", "executor"])
def test_as_a_loop_s_default_executor(given: str) -> None:
    pool = offloop.Pool(2, thread_name_prefix="ours")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(pool if given == "pool" else pool.executor())
        thread = await asyncio.to_thread(threading.current_thread)
        assert thread.name.startswith("ours_")
        await loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
        assert await loop.run_in_executor(None, len, "abc") == 3

    run(main())  # asyncio.run() shuts the default executor down
    assert pool.closed == (given == "pool")
    if given == "executor":
        run(main())  # once more, with the same pool
    pool.shutdown()


def test_an_executor_ends_alone() -> None:
    with offloop.Pool(1) as pool:
        executor = pool.executor()
        assert isinstance(executor, concurrent.futures.ThreadPoolExecutor)
        gate, began = threading.Event(), threading.Event()

        def wait() -> bool:
            began.set()
            return gate.wait(50)

        first = executor.submit(wait)
        assert began.wait(60)
        late = [executor.submit(len, "a") for _ in range(5)]
        other = pool.submit(len, "ab")
        executor.shutdown(wait=False, cancel_futures=True)
        assert all(future.cancelled() for future in late)
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(len, "")
        gate.set()
        executor.shutdown()
        assert first.result(0)
        assert other.result(60) == 2
        with pool.executor() as second:
            assert list(second.map(abs, range(-5, 5))) == [5, 4, 3, 2, 1, 0, 1, 2, 3, 4]


async def test_submitted_from_many_threads_at_once() -> None:
    with offloop.Pool(3) as pool:

        def many(number: int) -> bool:
            futures = [pool.submit(divmod, number, i + 1) for i in range(200)]
            return [future.result(60) for future in futures] == [
                divmod(number, i + 1) for i in range(200)
            ]

        found = await asyncio.gather(*[asyncio.to_thread(many, n) for n in range(4)])
        assert found == [True] * 4
        await until(lambda: pool._busy == 0)
        await pool.aclose()


def test_a_full_queue_is_a_clear_error() -> None:
    with offloop.Pool(1, queue=2) as pool:
        gate, began = threading.Event(), threading.Event()

        def wait() -> bool:
            began.set()
            return gate.wait(50)

        futures = [pool.submit(wait)]
        assert began.wait(60)
        futures += [pool.submit(len, "") for _ in range(2)]
        with pytest.raises(offloop.PoolFullError, match="larger queue"):
            pool.submit(len, "")
        gate.set()
        assert [future.result(60) for future in futures] == [True, 0, 0]


def test_nothing_is_kept_of_what_was_submitted() -> None:
    class Thing:
        pass

    with offloop.Pool(1) as pool:
        thing = Thing()
        refs = [weakref.ref(thing)]
        future = pool.submit(lambda x: Thing(), thing)
        refs.append(weakref.ref(future.result(60)))
        del thing, future
        pool.submit(len, "").result(60)
        assert not settle(lambda: [ref for ref in refs if ref() is not None])
