"""Our future where asyncio combines awaitables: gather, timeouts, groups, shield.

As in test_future_tasks, what asyncio's own Future does is what is expected.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any

import pytest
from loops import OURS, Backend, Scenario, Scenarios, outcome, run, same_as_asyncio, turns

scenario = Scenarios()


@scenario
async def gather(b: Backend) -> Any:
    futs = [b.future() for _ in range(3)]
    b.settle(*((f, i) for i, f in enumerate(futs)))
    return await asyncio.gather(*futs)


@scenario
async def gather_same_future_twice(b: Backend) -> Any:
    f = b.future()
    b.settle((f, 1))
    return await asyncio.gather(f, f)


@scenario
async def gather_exceptions(b: Backend) -> Any:
    futs = [b.future() for _ in range(3)]
    b.settle((futs[0], 1), (futs[1], ValueError("one")), (futs[2], 3))
    got = await asyncio.gather(*futs, return_exceptions=True)
    again = [b.future() for _ in range(2)]
    b.settle((again[1], ValueError("two")), (again[0], 0))
    return [repr(x) for x in got], await outcome(asyncio.gather(*again))


@scenario
async def gather_cancelled(b: Backend) -> Any:
    futs = [b.future() for _ in range(3)]
    futs[0].set_result(0)
    whole = asyncio.gather(*futs)
    await turns()
    whole.cancel("all")
    return await outcome(whole), [f.cancelled() for f in futs]


@scenario
async def gather_with_a_cancelled_child(b: Backend) -> Any:
    futs = [b.future() for _ in range(2)]
    whole = asyncio.gather(*futs, return_exceptions=True)
    futs[0].cancel("child")
    b.settle((futs[1], 1))
    return [repr(x) for x in await whole]


@scenario
async def wait_for_in_time(b: Backend) -> Any:
    f = b.future()
    b.settle((f, "in time"))
    return await asyncio.wait_for(f, 10)


@scenario
async def wait_for_times_out(b: Backend) -> Any:
    f = b.future()
    return await outcome(asyncio.wait_for(f, 0.001)), f.cancelled()


@scenario
async def wait_for_cancelled(b: Backend) -> Any:
    f = b.future()
    t = asyncio.create_task(asyncio.wait_for(f, 10))
    await turns()
    t.cancel()
    return await outcome(t), f.cancelled()


@scenario
async def wait_for_done_or_zero(b: Backend) -> Any:
    f, g = b.future(), b.future()
    f.set_result(1)
    return await asyncio.wait_for(f, 0), await outcome(asyncio.wait_for(g, 0)), g.cancelled()


@scenario.since(3, 11)
async def timeout_block(b: Backend) -> Any:
    f, g = b.future(), b.future()
    b.settle((f, 1))
    async with asyncio.timeout(10) as ok:
        first = await f
    try:
        async with asyncio.timeout(0.001) as late:
            await g
    except TimeoutError:
        pass
    task = asyncio.current_task()
    assert task is not None
    return first, ok.expired(), late.expired(), g.cancelled(), task.cancelling()


@scenario.since(3, 11)
async def task_group(b: Backend) -> Any:
    futs = [b.future() for _ in range(3)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(b.coroutine(f)) for f in futs]
        await turns()
        b.settle(*((f, i) for i, f in enumerate(futs)))
    return [t.result() for t in tasks]


@scenario.since(3, 11)
async def task_group_fails(b: Backend) -> Any:
    bad, good = b.future(), b.future()
    names = []
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(b.coroutine(bad))
            group.create_task(b.coroutine(good))
            await turns()
            b.settle((bad, ValueError("bad")))
    except BaseException as group_error:
        names = [repr(e) for e in group_error.exceptions]  # type: ignore[attr-defined]
    return names, good.cancelled()


@scenario.since(3, 11)
async def task_group_refuses(b: Backend) -> Any:
    f = b.future()
    group = asyncio.TaskGroup()
    async with group:
        pass
    coro = b.coroutine(f)
    with contextlib.suppress(RuntimeError):
        group.create_task(coro)
    coro.close()
    still = f.done()
    b.settle((f, 1))
    return still, await f


@scenario
async def shield(b: Backend) -> Any:
    f = b.future()
    outer = asyncio.shield(f)
    await turns()
    outer.cancel()
    seen = await outcome(outer), f.cancelled()
    b.settle((f, "lives"))
    return seen, await f


@scenario
async def shield_in_a_cancelled_task(b: Backend) -> Any:
    f = b.future()

    async def wait() -> Any:
        return await asyncio.shield(f)

    t = asyncio.create_task(wait())
    await turns()
    t.cancel()
    seen = await outcome(t), f.done()
    b.settle((f, 1))
    return seen, await f


@scenario
async def as_completed(b: Backend) -> Any:
    futs = [b.future() for _ in range(3)]
    b.settle((futs[2], "c"), (futs[0], "a"), (futs[1], "b"))
    return [await f for f in asyncio.as_completed(futs)]


@scenario
async def wait_first_completed(b: Backend) -> Any:
    futs = [b.future() for _ in range(3)]
    tasks = [b.task(f) for f in futs]
    await turns()
    b.settle((futs[1], "first"))
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    got = [t.result() for t in done], len(pending)
    b.settle((futs[0], 0), (futs[2], 2))
    done, pending = await asyncio.wait(tasks)
    return got, len(done), len(pending), sorted(str(t.result()) for t in done)


@scenario
async def ensure_future_gives_it_back(b: Backend) -> Any:
    f = b.future()
    same = asyncio.ensure_future(f) is f
    f.cancel()
    return same, asyncio.isfuture(f), f.get_loop() is asyncio.get_running_loop()


@scenario
async def run_coroutine_threadsafe(b: Backend) -> Any:
    loop, f = asyncio.get_running_loop(), b.future()
    from_thread = loop.run_in_executor(
        None, lambda: asyncio.run_coroutine_threadsafe(b.coroutine(f), loop).result(10)
    )
    await turns()
    b.settle((f, "over"))
    return await from_thread


@scenario
async def locks_and_queues(b: Backend) -> Any:
    """Ours among the futures that asyncio's own primitives make."""
    queue: asyncio.Queue[int] = asyncio.Queue(1)
    lock, event = asyncio.Lock(), asyncio.Event()
    order: list[Any] = []

    async def reader() -> None:
        await event.wait()
        for _ in range(3):
            f = b.future()
            b.settle((f, "r"))
            async with lock:
                order.append((await queue.get(), await f))

    t = asyncio.create_task(reader())
    await turns()
    event.set()
    for i in range(3):
        await queue.put(i)
    await t
    return order


@pytest.mark.parametrize("backend", OURS, ids=lambda b: b.name)
@pytest.mark.parametrize("fn", scenario, ids=lambda fn: fn.__name__)
def test_same_as_asyncio(fn: Scenario, backend: Backend) -> None:
    same_as_asyncio(fn, backend)


@pytest.mark.parametrize("backend", OURS, ids=lambda b: b.name)
def test_wait_takes_it_as_it_takes_a_coroutine(backend: Backend) -> None:
    """asyncio.wait refuses coroutines since 3.11, and ours is one as well."""

    async def main() -> Any:
        f = backend.future()
        backend.settle((f, 1))
        if sys.version_info >= (3, 11):
            with pytest.raises(TypeError, match="coroutines is forbidden"):
                await asyncio.wait([f])
        else:
            done, _ = await asyncio.wait([f])
            assert done == {f}
        return await f

    assert run(main()) == 1
