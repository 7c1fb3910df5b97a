"""Waking in place: when it happens, and when it must not."""

from __future__ import annotations

import asyncio
import collections.abc
import contextvars
import sys
from typing import Any

import pytest
from loops import SETTINGS, Drain, Setting, drain, in_place, new_loop, run, settle, turns, waiting
from offloop import _core

TAG: contextvars.ContextVar[str] = contextvars.ContextVar("TAG", default="none")
B = Drain()


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
def test_steps_a_task_inside_the_drain(setting: Setting) -> None:
    async def main() -> Any:
        f, seen = B.future(), []
        task = asyncio.create_task(waiting(seen, f))
        await turns()

        def action() -> list[Any]:
            settle((f, 1))
            return list(seen)

        inside = await drain(action)
        await task
        return inside, seen

    assert run(main(), setting) == ([1] if in_place(setting) else [], [1])


def test_task_made_of_the_future_itself_is_stepped_in_place() -> None:
    async def main() -> Any:
        f = B.future()
        task = asyncio.create_task(f)
        await turns()

        def action() -> bool:
            settle((f, "v"))
            return task.done()

        return await drain(action), task.result()

    assert run(main()) == (True, "v")


def test_set_result_and_cancel_never_step_a_task() -> None:
    async def main() -> Any:
        f, g, h, seen = B.future(), B.future(), B.future(), []
        tasks = [asyncio.create_task(waiting(seen, x)) for x in (f, g, h)]
        await turns()

        def action() -> list[Any]:
            f.set_result(1)
            g.set_exception(ValueError())
            h.cancel()
            return list(seen)

        inside = await drain(action)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        return inside, [type(r).__name__ for r in results]

    assert run(main()) == ([], ["int", "ValueError", "CancelledError"])


def test_context_and_current_task_of_the_step() -> None:
    async def main() -> Any:
        f, seen = B.future(), []

        async def wait() -> None:
            TAG.set("task")
            await f
            seen.append((TAG.get(), asyncio.current_task() is task))
            TAG.set("changed")

        task = asyncio.create_task(wait())
        await turns()

        def action() -> Any:
            TAG.set("drain")
            settle((f, 1))
            loop = asyncio.get_running_loop()
            return TAG.get(), asyncio.current_task(loop), list(seen)

        return await drain(action)

    assert run(main()) == ("drain", None, [("task", True)])


def test_one_batch_may_wake_the_same_task_again_and_again() -> None:
    async def main() -> Any:
        futs, got = [B.future() for _ in range(100)], []

        async def wait() -> None:
            for f in futs:
                got.append(await f)

        task = asyncio.create_task(wait())
        await turns()

        def action() -> bool:
            settle(*((f, i) for i, f in enumerate(futs)))
            return task.done()

        return await drain(action), got == list(range(100))

    assert run(main()) == (True, True)


class CountsSteps:
    """A coroutine that counts how often its Task sends into it."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.steps = 0

    def send(self, value: Any) -> Any:
        self.steps += 1
        return self.inner.send(value)

    def throw(self, *args: Any) -> Any:
        self.steps += 1
        return self.inner.throw(*args)

    def close(self) -> None:
        self.inner.close()

    def __await__(self) -> Any:  # pragma: no cover - makes it a Coroutine
        return self.inner.__await__()


collections.abc.Coroutine.register(CountsSteps)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
def test_each_wait_is_woken_once(setting: Setting) -> None:
    """A second wakeup would step the task into its next await."""

    async def main() -> Any:
        first, second = B.future(), B.future()

        async def wait() -> Any:
            return await first, await second

        counted = CountsSteps(wait())
        task = asyncio.create_task(counted)  # type: ignore[arg-type]
        await turns()
        await drain(lambda: settle((first, 1), (first, "again")))
        await turns()
        between = len(second._callbacks), counted.steps
        await drain(lambda: settle((second, 2)))
        return between, await task, counted.steps

    assert run(main(), setting) == ((1, 2), (1, 2), 3)


# ---- when it must not be in place


def test_not_in_place_with_a_second_callback_and_in_order() -> None:
    async def main() -> Any:
        seen: list[Any] = []
        before, after = B.future(), B.future()
        before.add_done_callback(lambda _: seen.append("before"))
        tasks = [
            asyncio.create_task(waiting(seen, before, "task 1")),
            asyncio.create_task(waiting(seen, after, "task 2")),
        ]
        await turns()
        after.add_done_callback(lambda _: seen.append("after"))

        def action() -> list[Any]:
            settle((before, 1), (after, 2))
            return list(seen)

        inside = await drain(action)
        await asyncio.gather(*tasks)
        await turns()
        return inside, seen

    assert run(main()) == ([], ["before", "task 1", "task 2", "after"])


def test_two_tasks_on_one_future_are_woken_in_order() -> None:
    async def main() -> Any:
        f, seen = B.future(), []
        tasks = [asyncio.create_task(waiting(seen, f, i)) for i in range(5)]
        await turns()
        await drain(lambda: settle((f, 1)))
        await asyncio.gather(*tasks)
        return seen

    assert run(main()) == [0, 1, 2, 3, 4]


def test_in_place_again_after_the_other_callback_was_removed() -> None:
    async def main() -> Any:
        f, seen = B.future(), []
        f.add_done_callback(print)
        task = asyncio.create_task(waiting(seen, f))
        await turns()
        f.remove_done_callback(print)

        def action() -> list[Any]:
            settle((f, 1))
            return list(seen)

        inside = await drain(action)
        await task
        return inside

    assert run(main()) == [1]


def test_other_builtin_methods_of_a_task_go_through_the_loop() -> None:
    """task.cancel is a builtin with a Task for self, as the wakeup is."""

    async def main() -> Any:
        f = B.future()
        task = asyncio.create_task(asyncio.sleep(100))
        await turns()
        f.add_done_callback(task.cancel)

        def action() -> bool:
            settle((f, 1))
            return task._must_cancel or task._fut_waiter.cancelled()  # type: ignore[attr-defined]

        at_once = await drain(action)
        with pytest.raises(asyncio.CancelledError):
            await task
        return at_once

    assert run(main()) is False


def test_other_callables_go_through_the_loop() -> None:
    async def main() -> Any:
        class List(list[Any]):
            pass

        seen: list[Any] = []
        own = List()
        futs = [B.future() for _ in range(3)]
        futs[0].add_done_callback(seen.append)
        futs[1].add_done_callback(lambda f: seen.append(f))
        futs[2].add_done_callback(own.append)

        def action() -> int:
            settle(*((f, 1) for f in futs))
            return len(seen) + len(own)

        at_once = await drain(action)
        await turns()
        return at_once, len(seen), len(own)

    assert run(main()) == (0, 2, 1)


def test_drain_inside_a_step_of_another_task() -> None:
    """A nested turn of the loop, as nest_asyncio makes it."""

    async def main() -> Any:
        f, seen = B.future(), []
        task = asyncio.create_task(waiting(seen, f))
        await turns()
        loop: Any = asyncio.get_running_loop()
        settle((f, "direct"))
        inside = list(seen)
        await task
        g = B.future()
        task = asyncio.create_task(waiting(seen, g))
        await turns()
        me = asyncio.current_task()
        loop.call_soon(settle, (g, "nested"))
        # What nest_asyncio does around it: the loop takes a turn in our step.
        handle = loop._ready.popleft()
        handle._run()
        inside += [x for x in seen if x == "nested"]
        assert asyncio.current_task() is me
        await task
        return inside, seen

    assert run(main()) == ([], ["direct", "nested"])


def test_context_that_is_entered_already() -> None:
    async def main() -> Any:
        f, seen = B.future(), []
        task = asyncio.create_task(waiting(seen, f))
        await turns()
        context = f._callbacks[0][1]

        def action() -> list[Any]:
            context.run(settle, (f, 1))
            return list(seen)

        inside = await drain(action)
        return inside, await task, seen

    assert run(main()) == ([], 1, [1])


def test_future_of_another_loop_goes_to_that_loop() -> None:
    other = new_loop()
    seen: list[Any] = []
    f = _core.new_future(other)
    task = other.create_task(waiting(seen, f))
    other.run_until_complete(asyncio.sleep(0))

    async def main() -> list[Any]:
        await drain(lambda: settle((f, 1)))
        return list(seen)

    assert run(main()) == []
    assert other.run_until_complete(task) == 1
    other.close()


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="uvloop is demanded on the version of CI only"
)
def test_uvloop_is_among_the_settings() -> None:
    assert any(s.uvloop for s in SETTINGS), "pip install uvloop"
