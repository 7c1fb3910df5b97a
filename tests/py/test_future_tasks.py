"""Our future under tasks: each scenario gives what asyncio's Future gives.

The expected value is not written down here: it is what the running Python's
own Future and coroutine do in the plain loop.
"""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import pytest
from loops import (
    OURS,
    SETTINGS,
    Backend,
    Scenario,
    Scenarios,
    Setting,
    outcome,
    run,
    same_as_asyncio,
    turns,
)

scenario = Scenarios()
TAG: contextvars.ContextVar[str] = contextvars.ContextVar("TAG", default="none")


# ---- plain awaits


@scenario
async def await_result(b: Backend) -> Any:
    f = b.future()
    b.settle((f, 7))
    return await f, f.done(), f.cancelled(), f.result(), f.exception(), f._state


@scenario
async def await_odd_results(b: Backend) -> Any:
    seen: list[Any] = []
    for value in ((1, 2), (), None, ((),), StopIteration, [ValueError], 0.5):
        f = b.future()
        b.settle((f, value))
        seen.append(await f)
        g = b.future()
        b.settle((g, value))
        seen.append(await b.task(g))
    return seen


@scenario
async def result_that_is_an_exception(b: Backend) -> Any:
    f, error = b.future(), ValueError(1)
    f.set_result(error)
    got = [await f is error, await b.task(f) is error]
    f = b.future()
    f.set_result(StopIteration(3))
    return got, type(await f).__name__, type(await b.task(f)).__name__


@scenario
async def await_exception_is_the_same_instance(b: Backend) -> Any:
    f, error = b.future(), LookupError("gone", 3)
    b.settle((f, error))
    seen = []
    for _ in range(3):
        try:
            await f
        except LookupError as exc:
            seen.append((exc is error, exc.args))
    return seen, f.exception() is error


@scenario
async def await_done(b: Backend) -> Any:
    f = b.future()
    f.set_result("there")
    return await f, await f, await b.task(f)


@scenario
async def await_twice_from_two_tasks(b: Backend) -> Any:
    f = b.future()

    async def wait(n: int) -> tuple[int, Any]:
        return n, await f

    tasks = [asyncio.create_task(wait(n)) for n in range(4)]
    await turns()
    b.settle((f, "both"))
    return [await t for t in tasks]


@scenario
async def one_of_two_awaiters_is_closed(b: Backend) -> Any:
    f = b.future()

    async def wait() -> Any:
        return await f

    other = asyncio.create_task(wait())
    await turns()
    coro = wait()
    coro.send(None)
    f._asyncio_future_blocking = False
    coro.close()
    await turns()
    seen = [f.done(), other.done()]
    b.settle((f, "still"))
    return seen, await other


@scenario
async def one_of_two_awaiters_is_thrown_into(b: Backend) -> Any:
    f = b.future()

    async def wait() -> Any:
        return await f

    other = asyncio.create_task(wait())
    await turns()
    coro = wait()
    coro.send(None)
    f._asyncio_future_blocking = False
    seen: list[Any] = []
    for error in (KeyError("k"), asyncio.CancelledError()):
        try:
            coro.throw(error)
        except BaseException as exc:
            seen.append(exc is error)
        coro = wait()
        coro.send(None)
        f._asyncio_future_blocking = False
    coro.close()
    seen.append((f.done(), other.done()))
    b.settle((f, "still"))
    return seen, await other


@scenario
async def sequential_awaits(b: Backend) -> Any:
    total = 0
    for i in range(50):
        f = b.future()
        b.settle((f, i))
        total += await f
    return total


@scenario
async def awaits_in_async_generator(b: Backend) -> Any:
    async def numbers() -> Any:
        for i in range(5):
            f = b.future()
            b.settle((f, i))
            yield await f

    return [i async for i in numbers()]


@scenario
async def a_batch_for_many_tasks(b: Backend) -> Any:
    futs = [b.future() for _ in range(100)]
    tasks = [b.task(f) for f in futs]
    await turns()
    b.settle(*((f, i) for i, f in enumerate(futs)))
    return await asyncio.gather(*tasks)


@scenario
async def a_woken_task_cancels_a_later_future_of_the_batch(b: Backend) -> Any:
    first, later = b.future(), b.future()
    got: list[Any] = []

    async def cancels() -> None:
        await first
        got.append(later.cancel("stop"))

    # Both orders end with `later` cancelled: with call_soon the batch is
    # settled before any task runs, hence the callback to cancel by.
    first.add_done_callback(lambda _: None)
    task = asyncio.create_task(cancels())
    await turns()
    later.cancel("stop")
    b.settle((first, 1), (later, 2))
    await task
    return later.cancelled(), got


# ---- create_task of the awaitable itself


@scenario
async def create_task_result(b: Backend) -> Any:
    f = b.future()
    t = b.task(f)
    await turns()
    b.settle((f, [1]))
    return await t, t.done(), f.done()


@scenario
async def create_task_exception(b: Backend) -> Any:
    f = b.future()
    t = b.task(f)
    b.settle((f, OSError(2, "no")))
    return await outcome(t), type(t.exception()).__name__


@scenario
async def create_task_cancelled_before_its_first_step(b: Backend) -> Any:
    f = b.future()
    t = b.task(f)
    return t.cancel("early"), await outcome(t), t.cancelled()


@scenario
async def create_task_cancelled_while_waiting(b: Backend) -> Any:
    f = b.future()
    t = b.task(f)
    await turns()
    return t.cancel(), await outcome(t), t.cancelled(), f.cancelled(), f.cancel()


@scenario
async def create_task_cancelled_with_message(b: Backend) -> Any:
    f = b.future()
    t = b.task(f)
    await turns()
    t.cancel("why")
    return await outcome(t), f._cancel_message, await outcome(f)


@scenario
async def task_cancelled_after_settling_but_before_delivery(b: Backend) -> Any:
    f = b.future()
    t = b.task(f)
    await turns()
    f.set_result("late")
    return t.cancel(), await outcome(t), f.result()


@scenario
async def task_suppresses_cancel_and_awaits_again(b: Backend) -> Any:
    f, g = b.future(), b.future()

    async def stubborn() -> Any:
        try:
            await f
        except asyncio.CancelledError:
            return await g

    t = asyncio.create_task(stubborn())
    await turns()
    t.cancel()
    await turns()
    b.settle((f, "no"), (g, "yes"))
    return await t, f.cancelled(), t.cancelled()


@scenario.since(3, 11)
async def uncancel(b: Backend) -> Any:
    f, g = b.future(), b.future()

    async def main() -> Any:
        task = asyncio.current_task()
        assert task is not None
        try:
            await f
        except asyncio.CancelledError:
            left = task.uncancel()
        return left, task.cancelling(), await g

    t = asyncio.create_task(main())
    await turns()
    t.cancel()
    await turns()
    b.settle((g, 1))
    return await t, t.cancelling()


@scenario.since(3, 11)
async def uncancel_before_delivery(b: Backend) -> Any:
    f = b.future()
    t = b.task(f)
    await turns()
    f.set_result("kept")
    t.cancel()
    t.uncancel()
    return await outcome(t)


# ---- contexts


@scenario
async def context_of_a_task(b: Backend) -> Any:
    f = b.future()

    async def wait() -> Any:
        TAG.set("mine")
        value = await f
        seen = TAG.get()
        TAG.set("after")
        return value, seen, TAG.get()

    TAG.set("outer")
    t = asyncio.create_task(wait())
    await turns()
    b.settle((f, 1))
    return await t, TAG.get()


@scenario
async def context_of_callbacks(b: Backend) -> Any:
    f, seen = b.future(), []
    given = contextvars.copy_context()
    given.run(TAG.set, "given")
    TAG.set("at add")
    f.add_done_callback(lambda _: seen.append(TAG.get()))
    f.add_done_callback(lambda _: seen.append(TAG.get()), context=given)
    TAG.set("later")
    b.settle((f, 1))
    await f
    f.add_done_callback(lambda _: seen.append(TAG.get()))
    f.add_done_callback(lambda _: seen.append(TAG.get()), context=given)
    TAG.set("last")
    await turns()
    return seen


@scenario.since(3, 11)
async def two_tasks_share_a_context(b: Backend) -> Any:
    shared = contextvars.copy_context()
    futs = [b.future() for _ in range(2)]

    async def wait(f: Any, tag: str) -> Any:
        before = TAG.get()
        value = await f
        TAG.set(tag)
        return before, value

    loop = asyncio.get_running_loop()
    tasks = [
        loop.create_task(wait(f, str(i)), context=shared)  # type: ignore[call-arg]
        for i, f in enumerate(futs)
    ]
    await turns()
    b.settle((futs[0], 0), (futs[1], 1))
    return [await t for t in tasks], shared[TAG]


# ---- callbacks


@scenario
async def callbacks_in_order(b: Backend) -> Any:
    f, seen = b.future(), []
    for i in range(4):
        f.add_done_callback(lambda fut, i=i: seen.append((i, fut is f)))

    async def wait() -> None:
        await f
        seen.append(("task", True))

    t = asyncio.create_task(wait())
    await turns()
    f.add_done_callback(lambda fut: seen.append(("last", True)))
    b.settle((f, 1))
    await t
    await turns()
    return seen


@scenario
async def remove_callbacks(b: Backend) -> Any:
    f, seen = b.future(), []

    def one(_: Any) -> None:
        seen.append(1)

    def two(_: Any) -> None:
        seen.append(2)

    for fn in (one, two, one, two, one):
        f.add_done_callback(fn)
    counts = [f.remove_done_callback(one), f.remove_done_callback(one)]
    f.add_done_callback(one)
    counts += [f.remove_done_callback(two), len(f._callbacks)]
    b.settle((f, 1))
    await f
    counts.append(f.remove_done_callback(one))
    await turns()
    return counts, seen


@scenario
async def callback_removes_another(b: Backend) -> Any:
    """Too late once the future is done: both are on their way."""
    f, seen = b.future(), []

    def second(_: Any) -> None:
        seen.append("second")

    def first(_: Any) -> None:
        seen.append(f.remove_done_callback(second))

    f.add_done_callback(first)
    f.add_done_callback(second)
    b.settle((f, 1))
    await f
    await turns()
    return seen


@scenario
async def callback_on_a_done_future_is_not_called_at_once(b: Backend) -> Any:
    f, seen = b.future(), []
    f.set_result(1)
    f.add_done_callback(lambda _: seen.append("called"))
    at_once = list(seen)
    await turns()
    return at_once, seen


@scenario
async def callbacks_of_a_cancelled_future(b: Backend) -> Any:
    f, seen = b.future(), []
    f.add_done_callback(lambda fut: seen.append(fut.cancelled()))
    got = [f.cancel(), f.cancel()]
    before = list(seen)
    await turns()
    return got, before, seen


# ---- the matrix


@pytest.mark.parametrize("backend", OURS, ids=lambda b: b.name)
@pytest.mark.parametrize("fn", scenario, ids=lambda fn: fn.__name__)
def test_same_as_asyncio(fn: Scenario, backend: Backend) -> None:
    same_as_asyncio(fn, backend)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
def test_cancel_before_the_first_step_cancels_the_call(setting: Setting) -> None:
    """Only ours can do this: the task IS the call, so it must not be sent."""

    async def main() -> Any:
        b = OURS[0]
        f = b.future()
        t = b.task(f)
        t.cancel("never sent")
        with pytest.raises(asyncio.CancelledError):
            await t
        return f.cancelled(), f._cancel_message

    # An eager task has taken its first step by then: its own cancel has the
    # message; before the step it comes in the exception.
    assert run(main(), setting) == (True, "never sent")
