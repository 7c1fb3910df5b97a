"""Pool.call: what comes back from a function on a worker, and what runs there."""

from __future__ import annotations

import asyncio
import collections.abc
import contextvars
import functools
import gc
import inspect
import pickle
import sys
import threading
import time
import traceback
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import offloop
import pytest
from driving import TooSlow, outcome, outcomes, patiently, run, until, within


@asynccontextmanager
async def opened(workers: int = 2, **options: Any) -> AsyncIterator[offloop.Pool]:
    async with offloop.Pool(workers, **options) as pool:
        yield pool


def echo(*args: object, **kwargs: object) -> tuple[tuple[object, ...], dict[str, object]]:
    return args, kwargs


async def test_arguments_reach_the_function() -> None:
    async with opened() as pool:
        assert await pool.call(echo) == ((), {})
        assert await pool.call(echo, 1, "two", three=3) == ((1, "two"), {"three": 3})
        many = tuple(range(40))
        named = {f"n{i}": i for i in many}
        assert await pool.call(echo, *many, **named) == (many, named)


async def test_every_keyword_is_the_function_s() -> None:
    names = {"timeout": 1, "pool": 2, "self": 3, "fn": 4, "lane": 5, "args": 6}
    async with opened() as pool:
        for way in (pool, pool.lane(), pool.with_timeout(20)):
            assert await way.call(echo, **names) == ((), names)


async def test_it_runs_on_a_worker_thread_of_a_name() -> None:
    async with opened(3, thread_name_prefix="beta") as pool:
        threads = await asyncio.gather(*[pool.call(threading.current_thread) for _ in range(50)])
        assert threading.current_thread() not in threads
        assert {thread.name for thread in threads} <= {"beta_0", "beta_1", "beta_2"}
        assert all(thread.daemon and thread.is_alive() for thread in threads)
    async with opened(1) as pool:
        assert (await pool.call(threading.current_thread)).name == "offloop-w0"
        local = threading.local()
        await pool.call(setattr, local, "kept", 1)  # one thread, one thread state
        assert await pool.call(getattr, local, "kept") == 1


async def test_any_callable_will_do() -> None:
    class Adder:
        def __init__(self, start: int) -> None:
            self.start = start

        def add(self, more: int) -> int:
            return self.start + more

        def __call__(self, more: int) -> int:
            return self.start * more

    async with opened() as pool:
        assert await pool.call(Adder(3).add, 4) == 7
        assert await pool.call(Adder(3), 4) == 12
        assert await pool.call(functools.partial(Adder, 3)) is not None
        assert await pool.call(len, "four") == 4
        assert await pool.call("a-b".split, "-") == ["a", "b"]
        assert await pool.call(dict, a=1) == {"a": 1}
        assert (await pool.call(Adder, 9)).start == 9


async def test_what_cannot_be_called_is_refused_at_once() -> None:
    async with opened() as pool:
        with pytest.raises(TypeError, match="needs a function"):
            pool.call()  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="must be callable, not int"):
            pool.call(3)  # type: ignore[arg-type]


# ---- exceptions ---------------------------------------------------------------------


def fails(error: BaseException) -> None:
    raise error


async def test_an_exception_comes_with_its_traceback_and_context() -> None:
    def chained() -> None:
        try:
            fails(KeyError("first"))
        except KeyError:
            fails(ValueError("second"))

    async with opened() as pool:
        with pytest.raises(ValueError, match="second") as caught:
            await pool.call(chained)
    assert isinstance(caught.value.__context__, KeyError)
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[-2:] == ["chained", "fails"]
    assert "test_an_exception_comes" in names[0]


async def test_stop_iteration_becomes_a_runtime_error() -> None:
    async with opened() as pool:
        for error in (StopIteration(5), StopIteration(), StopIteration((1, 2))):
            with pytest.raises(RuntimeError, match="raised StopIteration") as caught:
                await pool.call(fails, error)
            assert caught.value.__cause__ is error
            assert caught.value.__context__ is error
        with pytest.raises(StopAsyncIteration):
            await pool.call(fails, StopAsyncIteration())
        with pytest.raises(RuntimeError, match="raised StopIteration"):
            await pool.call(next, iter(()))


async def test_the_function_s_own_errors_are_not_the_caller_s() -> None:
    async with opened() as pool:
        own = TimeoutError("own")
        with pytest.raises(TimeoutError) as caught:
            await pool.call(fails, own)
        assert caught.value is own
        with pytest.raises(asyncio.CancelledError, match="not ours"):
            await pool.call(fails, asyncio.CancelledError("not ours"))
        assert await pool.call(len, "alive") == 5


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_ends_a_loop_ends_it(kind: type[BaseException]) -> None:
    """As with run_in_executor: the awaiting task gets it, and then the loop stops."""
    seen: list[BaseException] = []
    pool = offloop.Pool(2)

    async def main() -> None:
        try:
            await pool.call(fails, kind("stop"))
        except BaseException as error:
            seen.append(error)
            raise

    with pytest.raises(kind, match="stop"):
        asyncio.run(main())
    assert [type(error) for error in seen] == [kind]
    run(pool.aclose())


# ---- context -----------------------------------------------------------------------

variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)


async def test_the_caller_s_context_is_copied() -> None:
    def change() -> int:
        variable.set(variable.get() + 1)
        return variable.get()

    async with opened(1) as pool:
        variable.set(5)
        first = pool.call(change)
        variable.set(20)
        assert await first == 6  # as it was when the call was made
        assert await pool.call(change) == 21
        assert variable.get() == 20
        assert await pool.call(variable.get) == 20  # nothing is left on the thread


async def test_a_context_of_many_calls_is_each_task_s() -> None:
    async def task(number: int) -> bool:
        variable.set(number)
        return all([await pool.call(variable.get) == number for _ in range(20)])

    async with opened(3) as pool:
        assert all(await asyncio.gather(*[task(i) for i in range(30)]))


# ---- the awaitable ------------------------------------------------------------------


async def test_it_is_a_future_and_a_coroutine() -> None:
    async with opened() as pool:
        call = pool.call(len, "abc")
        assert isinstance(call, collections.abc.Coroutine)
        assert asyncio.isfuture(call) and asyncio.iscoroutine(call)
        assert await call == 3
        assert await call == 3  # as often as wanted
        assert await asyncio.create_task(pool.call(len, "abcd")) == 4
        assert await asyncio.wait_for(pool.call(len, "abcd"), 20) == 4
        assert await asyncio.shield(pool.call(len, "")) == 0
        done: list[int] = []
        call = pool.call(len, "abcde")
        call.add_done_callback(lambda future: done.append(future.result()))
        await call
        await until(lambda: done == [5])


def test_without_a_loop_it_is_a_coroutine_that_calls_later() -> None:
    pool = offloop.Pool(2)
    ran: list[int] = []
    try:
        coroutine = pool.call(ran.append, 1)
        assert ran == []
        assert asyncio.run(within(coroutine)) is None
        assert ran == [1]
        assert asyncio.run(within(pool.lane().call(len, "ab"))) == 2
        assert asyncio.run(within(pool.with_timeout(20).call(len, "ab"))) == 2
        pool.call(ran.append, 2).close()
        assert ran == [1]
    finally:
        run(pool.aclose())


async def test_every_result_reaches_its_own_awaiter() -> None:
    async def task(number: int) -> None:
        for i in range(40):
            assert await pool.call(divmod, number, i + 1) == divmod(number, i + 1)

    async with opened(4) as pool:
        await asyncio.gather(*[task(i) for i in range(60)])


# ---- cancelling ----------------------------------------------------------------------


async def blocked(pool: offloop.Pool, count: int) -> tuple[threading.Event, list[Any]]:
    """Calls that occupy so many workers until the event is set."""
    gate = threading.Event()
    began = threading.Semaphore(0)

    def wait() -> None:
        began.release()
        gate.wait(50)

    calls = [pool.call(wait) for _ in range(count)]
    await until(lambda: began._value == count)
    return gate, calls


async def test_cancelled_before_it_began_it_never_runs() -> None:
    ran: list[int] = []
    async with opened(2) as pool:
        gate, calls = await blocked(pool, 2)
        late = [asyncio.create_task(pool.call(ran.append, i)) for i in range(20)]
        await asyncio.sleep(0)
        for task in late[::2]:
            task.cancel()
        found = await outcomes(late[::2])
        assert all(isinstance(one, asyncio.CancelledError) for one in found)
        gate.set()
        await asyncio.gather(*late[1::2], *calls)
        assert sorted(ran) == list(range(1, 20, 2))


async def test_cancelled_while_it_runs_the_awaiter_ends_at_once() -> None:
    class Result:
        pass

    made: list[weakref.ref[Result]] = []
    async with opened(2) as pool:
        gate = threading.Event()
        began = threading.Event()

        def work() -> Result:
            began.set()
            gate.wait(50)
            result = Result()
            made.append(weakref.ref(result))
            return result

        task = asyncio.create_task(pool.call(work))
        await until(began.is_set)
        task.cancel("no longer")
        with pytest.raises(asyncio.CancelledError):
            await within(task)
        assert made == []
        gate.set()
        await until(lambda: made and made[0]() is None)  # dropped, and let go
        assert await pool.call(len, "ab") == 2


async def test_cancel_in_all_moments_under_load() -> None:
    async def task(number: int) -> int:
        good = 0
        for i in range(60):
            call = asyncio.create_task(pool.call(pow, number, i))
            for _ in range((number + i) % 4):
                await asyncio.sleep(0)
            if (number + i) % 3 == 0:
                call.cancel()
            try:
                good += await call == number**i
            except asyncio.CancelledError:
                good += 1
        return good

    async with opened(3) as pool:
        assert await asyncio.gather(*[task(i) for i in range(20)]) == [60] * 20


# ---- time ----------------------------------------------------------------------------


async def test_a_call_that_takes_too_long_goes_on_alone() -> None:
    async def attempt(secs: float) -> None:
        done = threading.Event()
        gate = threading.Event()

        def work() -> None:
            gate.wait(50)
            done.set()

        async with opened(2) as pool:
            with pytest.raises(offloop.CallTimeoutError) as caught:
                await pool.with_timeout(secs).call(work)
            if not caught.value.began:
                raise TooSlow
            assert "while it was running" in str(caught.value)
            assert isinstance(caught.value, TimeoutError)
            assert isinstance(caught.value, asyncio.TimeoutError)
            assert not done.is_set()
            gate.set()
            await until(done.is_set)

    await patiently(attempt, 0.05)


async def test_a_call_that_waits_too_long_is_never_executed() -> None:
    ran: list[int] = []
    async with opened(1) as pool:
        gate, calls = await blocked(pool, 1)
        hasty = pool.with_timeout(0.05)
        for seconds in (hasty, pool.with_timeout(0), pool.with_timeout(-1)):
            with pytest.raises(offloop.CallTimeoutError, match="not executed") as caught:
                await seconds.call(ran.append, 1)
            assert not caught.value.began
        gate.set()
        await asyncio.gather(*calls)
        assert await pool.call(len, "") == 0
        assert ran == []


async def test_many_deadlines_of_one_loop() -> None:
    """Each call has its own; those that are met leave no trace."""
    async with opened(1) as pool:
        gate, calls = await blocked(pool, 1)
        order = [0.3, 0.05, 0.2, 0.1, 0.25, 0.15]
        ended: list[tuple[float, float]] = []

        async def task(seconds: float) -> None:
            earliest = time.monotonic() + seconds
            call = pool.with_timeout(seconds).call(len, "")
            latest = time.monotonic() + seconds
            with pytest.raises(offloop.CallTimeoutError):
                await call
            ended.append((earliest, latest))

        await asyncio.gather(*[task(seconds) for seconds in order])
        for number, (earliest, _) in enumerate(ended):
            assert all(earliest <= latest for _, latest in ended[number + 1 :]), ended
        gate.set()
        await asyncio.gather(*calls)
        patient = pool.with_timeout(1000)
        assert await asyncio.gather(*[patient.call(abs, -i) for i in range(500)]) == [*range(500)]


async def test_a_stalled_loop_times_nothing_out() -> None:
    async def attempt(secs: float) -> None:
        async with opened(2) as pool:
            done: list[float] = []
            began = time.monotonic()
            call = pool.with_timeout(secs).call(lambda: done.append(time.monotonic()))
            time.sleep(2 * secs)  # the loop stands still over the deadline
            if not done or done[0] > began + secs / 2:
                await outcome(call)
                raise TooSlow
            assert await call is None

    await patiently(attempt, 0.2)


@pytest.mark.parametrize("seconds", ["1", float("nan"), object()])
async def test_a_timeout_is_a_number(seconds: Any) -> None:
    async with opened() as pool:
        with pytest.raises((TypeError, ValueError)):
            pool.with_timeout(seconds)
        assert pool.with_timeout(None).timeout is None
        assert pool.with_timeout(1.5).timeout == 1.5


def test_the_error_of_a_timeout_can_be_pickled() -> None:
    error = offloop.CallTimeoutError("text", True)
    again = pickle.loads(pickle.dumps(error))
    assert (again.args, again.began) == (("text",), True)


# ---- bind, offload --------------------------------------------------------------------


async def test_bind_gives_an_async_function() -> None:
    def area(width: int, height: int = 2) -> int:
        """The area."""
        return width * height

    async with opened() as pool:
        for way in (pool, pool.lane(), pool.with_timeout(20)):
            bound = way.bind(area)
            assert await bound(3) == 6
            assert await bound(3, height=5) == 15
            assert asyncio.iscoroutinefunction(bound)
            assert (bound.__name__, bound.__doc__) == ("area", "The area.")
            assert inspect.signature(bound) == inspect.signature(area)


async def test_offload_as_a_decorator() -> None:
    async with opened() as pool:

        class Disk:
            size = 7

            @offloop.offload(pool=pool)
            def read(self, more: int) -> int:
                return self.size + more

            @offloop.offload(pool=pool.lane(), timeout=20)
            def write(self) -> str:
                return threading.current_thread().name

            @offloop.offload(pool=pool, timeout=0.05)
            def hang(self) -> None:
                threading.Event().wait(0.3)

        assert await Disk().read(1) == 8
        assert (await Disk().write()).startswith("offloop-w")
        with pytest.raises(offloop.CallTimeoutError):
            await Disk().hang()
        assert asyncio.iscoroutinefunction(Disk.read)
        with pytest.raises(TypeError, match="by pool and by timeout"):
            offloop.offload(pool=pool.with_timeout(3), timeout=3)(len)


# ---- many ------------------------------------------------------------------------------


async def test_many_calls_in_one_submission() -> None:
    async with opened(3) as pool:
        assert await pool.map_async(pow, range(50), range(50)) == [i**i for i in range(50)]
        assert await pool.call_many([(divmod, 7, 2), dict, (len, "abc")]) == [(3, 1), {}, 3]
        assert await pool.call_many([]) == []
        assert len(pool.map_async(len, ["a"] * 5)) == 5
        assert [one async for one in pool.map_async(len, ["a", "bc"])] == [1, 2]
        pairs = [pair async for pair in pool.map_async(len, ["a", "bc", ""]).as_completed()]
        assert sorted(pairs) == [(0, 1), (1, 2), (2, 0)]
        many = tuple(range(30))
        assert await pool.call_many([(echo, *many)]) == [(many, {})]


async def test_many_calls_over_the_bound() -> None:
    async with opened(2, queue=5) as pool:
        assert await pool.map_async(abs, range(200)) == list(range(200))
        assert pool.stats()["queue_high_water"] <= 5


async def test_a_batch_is_one_wake_up() -> None:
    async with opened(1) as pool:
        await pool.call(len, "")
        before = pool.stats()
        await pool.map_async(len, [""] * 200)
        after = pool.stats()
        assert after["jobs"] - before["jobs"] == 200
        assert after["wakeups"] - before["wakeups"] <= 4


async def test_a_failure_in_a_batch_cancels_what_has_not_begun() -> None:
    ran: list[int] = []

    def work(number: int) -> int:
        if number == 0:
            raise LookupError("the first")
        ran.append(number)
        return number

    async with opened(1) as pool:
        gate, calls = await blocked(pool, 1)
        batch = pool.map_async(work, range(20))
        waiter = asyncio.create_task(_collect(batch))
        await asyncio.sleep(0)
        gate.set()
        with pytest.raises(LookupError, match="the first"):
            await within(waiter)
        await asyncio.gather(*calls)
        await pool.call(len, "")
        found = await pool.map_async(work, [1, 0, 2]).outcomes()
        assert [found[0], type(found[1]), found[2]] == [1, LookupError, 2]


async def _collect(batch: offloop.Batch[Any]) -> list[Any]:
    return await batch


async def test_a_cancelled_batch_never_runs() -> None:
    ran: list[int] = []
    async with opened(1) as pool:
        gate, calls = await blocked(pool, 1)
        task = asyncio.create_task(_collect(pool.map_async(ran.append, range(20))))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        batch = pool.map_async(ran.append, range(20))
        batch.cancel()
        gate.set()
        await asyncio.gather(*calls)
        await pool.call(len, "")
        assert ran == []


async def test_a_batch_with_something_wrong_sends_nothing() -> None:
    ran: list[int] = []
    async with opened(1) as pool:
        with pytest.raises(TypeError, match="callable"):
            pool.call_many([(ran.append, 1), 5])  # type: ignore[list-item]
        await pool.call(len, "")
        assert ran == []
    with pytest.raises(RuntimeError, match="closed"):
        pool.call_many([len])


# ---- what is kept -----------------------------------------------------------------------


async def test_nothing_is_kept_of_a_call() -> None:
    class Thing:
        def method(self, other: Thing, *, named: Thing) -> Thing:
            return Thing()

    async with opened(2) as pool:
        for way in (pool, pool.lane(), pool.lane(pinned=True), pool.with_timeout(20)):
            things = [Thing() for _ in range(3)]
            refs = [weakref.ref(thing) for thing in things]
            result = await way.call(things[0].method, things[1], named=things[2])
            refs.append(weakref.ref(result))
            del things, result
            await pool.call(len, "")
            gc.collect()
            assert [ref() for ref in refs] == [None] * 4


async def test_arguments_are_let_go_by_the_time_the_result_is_there() -> None:
    class Thing:
        pass

    async with opened(1) as pool:
        thing = Thing()
        ref = weakref.ref(thing)
        call = pool.call(id, thing)
        del thing
        await call
        assert ref() is None


def test_an_error_in_a_destructor_on_a_worker_is_told(leaks: Any) -> None:
    leaks.allow("in a destructor")

    class Sore:
        def __del__(self) -> None:
            raise OSError("in a destructor")

    async def main() -> None:
        async with opened(1) as pool:
            assert await pool.call(lambda _: 1, Sore()) == 1
            assert await pool.call(len, "ab") == 2

    run(main())
    assert any("in a destructor" in error for error in leaks.errors)


async def test_trace_functions_of_threads_are_for_workers_too() -> None:
    seen: list[str] = []

    def trace(frame: Any, event: str, arg: object) -> None:
        seen.append(frame.f_code.co_name)

    def traced_function() -> None:
        pass

    before = threading.gettrace()
    threading.settrace(trace)
    try:
        async with opened(1) as pool:
            await pool.call(traced_function)
    finally:
        threading.settrace(before)  # type: ignore[arg-type]
    assert "traced_function" in seen


async def test_deep_recursion_has_the_stack_of_a_thread() -> None:
    def deep(left: int) -> int:
        return 0 if left == 0 else 1 + max([left], key=lambda n: deep(n - 1)) * 0 + 1

    async with opened(1) as pool:
        limit = sys.getrecursionlimit()
        found = await outcome(pool.call(deep, limit // 4))
        assert isinstance(found, int), found
        with pytest.raises(RecursionError):
            await pool.call(deep, limit * 4)
        assert await pool.call(len, "ab") == 2


# ---- other loops --------------------------------------------------------------------------


async def everything() -> None:
    async with opened(2) as pool:
        lane = pool.lane()
        assert await asyncio.gather(*[pool.call(abs, -i) for i in range(100)]) == [*range(100)]
        assert await asyncio.gather(*[lane.call(abs, -i) for i in range(100)]) == [*range(100)]
        assert await pool.map_async(abs, range(600)) == [*range(600)]
        with pytest.raises(ZeroDivisionError):
            await pool.call(divmod, 1, 0)
        with pytest.raises(offloop.CallTimeoutError):
            await pool.with_timeout(0.02).call(threading.Event().wait, 0.2)
        task = asyncio.create_task(pool.call(threading.Event().wait, 0.1))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_in_debug_mode() -> None:
    run(everything(), debug=True)


def test_under_uvloop() -> None:
    uvloop = pytest.importorskip("uvloop")
    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(within(everything()))
    finally:
        loop.close()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="new in 3.12")
def test_with_eager_tasks() -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        await everything()

    run(main())
