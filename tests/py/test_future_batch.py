"""A drain that settles many: errors out of a step, steps that change the rest."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
from loops import SETTINGS, Drain, Setting, drain, in_place, new_loop, run, settle, turns, waiting
from offloop import _core

B = Drain()


# ---- errors out of a step


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_stops_the_loop_stops_the_drain(error: type[BaseException], setting: Setting) -> None:
    """The rest is pending still; settled later, it arrives."""
    loop = new_loop(setting)
    seen: list[Any] = []

    async def dies(f: Any) -> None:
        await f
        raise error("stop")

    async def setup() -> Any:
        first, later = B.future(), B.future()
        return (
            first,
            later,
            asyncio.create_task(dies(first)),
            asyncio.create_task(waiting(seen, later)),
        )

    first, later, dying, living = loop.run_until_complete(setup())
    loop.run_until_complete(turns())
    loop.call_soon(_core._settle_batch, loop, [(first, 1), (later, 2)])
    with pytest.raises(error, match="stop"):
        loop.run_forever()
    assert first.done() and dying.done()
    assert isinstance(dying.exception(), error)
    if in_place(setting):
        assert not later.done()
        loop.call_soon(_core._settle_batch, loop, [(first, 1), (later, 2)])
    assert loop.run_until_complete(living) == 2
    loop.close()


def test_other_errors_go_to_the_handler_and_the_drain_goes_on() -> None:
    errors: list[dict[str, Any]] = []

    async def main() -> Any:
        f, used, after, seen = B.future(), B.future(), B.future(), []
        ended = asyncio.create_task(waiting(seen, f))
        living = asyncio.create_task(waiting(seen, after))
        await turns()
        wakeup, context = f._callbacks[0]
        used.add_done_callback(wakeup, context=context)
        # The second wakeup comes to a task that has ended.
        await drain(lambda: settle((f, 1), (used, 2), (after, 3)))
        await asyncio.gather(ended, living)
        return seen, used

    seen, used = run(main(), errors=errors)
    assert seen == [1, 3]
    assert len(errors) == 1
    assert isinstance(errors[0]["exception"], asyncio.InvalidStateError)
    assert errors[0]["future"] is used
    assert errors[0]["message"]


def test_handler_that_stops_the_loop() -> None:
    async def main() -> None:
        f, used, seen = B.future(), B.future(), []
        task = asyncio.create_task(waiting(seen, f))
        await turns()
        wakeup, context = f._callbacks[0]
        used.add_done_callback(wakeup, context=context)
        loop = asyncio.get_running_loop()

        def stop(*_: Any) -> None:
            raise KeyboardInterrupt("from the handler")

        before = loop.get_exception_handler()
        loop.set_exception_handler(stop)
        with pytest.raises(KeyboardInterrupt):
            await drain(lambda: settle((f, 1), (used, 2)))
        loop.set_exception_handler(before)
        await task

    run(main())


def test_exception_settled_in_place() -> None:
    errors: list[dict[str, Any]] = []

    async def main() -> Any:
        handled, ended, nobody = B.future(), B.future(), B.future()
        seen: list[Any] = []

        async def handles() -> None:
            try:
                await handled
            except LookupError as exc:
                seen.append(exc)

        error = LookupError("same")
        tasks = [asyncio.create_task(handles()), asyncio.create_task(ended)]
        await turns()
        await drain(lambda: settle((handled, error), (ended, OSError(1)), (nobody, KeyError(2))))
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert seen == [error] and handled.exception() is error
        assert repr(results[1]) == "OSError(1)"

    run(main(), errors=errors)
    assert [repr(e["exception"]) for e in errors] == ["KeyError(2)"]


def test_stop_iteration_still_ends_the_future() -> None:
    async def main() -> Any:
        f = B.future()
        task = asyncio.create_task(f)
        await turns()
        await drain(lambda: settle((f, StopIteration(1))))
        with pytest.raises((TypeError, RuntimeError), match="StopIteration"):
            await task

    run(main())


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
def test_closed_loop_is_reported_not_raised(setting: Setting) -> None:
    loop, errors = new_loop(setting), []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    f, g = _core.new_future(loop), _core.new_future(loop)
    f.add_done_callback(lambda _: None)
    loop.close()
    _core._settle_batch(loop, [(f, 1), (g, 2)])
    assert (f.result(), g.result()) == (1, 2)
    assert [str(e["exception"]) for e in errors] == ["Event loop is closed"]


# ---- a step that changes the rest of the batch


def test_woken_task_cancels_a_later_future() -> None:
    async def main() -> Any:
        first, later = B.future(), B.future()
        got: list[Any] = []

        async def cancels() -> None:
            await first
            got.append(later.cancel("not needed"))

        tasks = [asyncio.create_task(cancels()), asyncio.create_task(later)]
        await turns()
        await drain(lambda: settle((first, 1), (later, "dropped")))
        results = await asyncio.gather(*tasks, return_exceptions=True)
        return got, later.cancelled(), type(results[1]).__name__

    assert run(main()) == ([True], True, "CancelledError")


def test_woken_task_cancels_the_task_of_a_later_future() -> None:
    async def main() -> Any:
        first, later, seen = B.future(), B.future(), []

        async def cancels() -> None:
            await first
            other.cancel()

        one = asyncio.create_task(cancels())
        other = asyncio.create_task(waiting(seen, later))
        await turns()
        await drain(lambda: settle((first, 1), (later, "dropped")))
        await one
        with pytest.raises(asyncio.CancelledError):
            await other
        return seen, later.cancelled()

    assert run(main()) == ([], True)


def test_woken_task_settles_a_later_future() -> None:
    async def main() -> Any:
        first, later, seen = B.future(), B.future(), []

        async def settles() -> None:
            await first
            later.set_result("mine")

        tasks = [asyncio.create_task(settles()), asyncio.create_task(waiting(seen, later))]
        await turns()
        await drain(lambda: settle((first, 1), (later, "theirs")))
        await asyncio.gather(*tasks)
        return seen

    assert run(main()) == ["mine"]


def test_woken_task_drains_by_itself() -> None:
    """A drain in a step must not step the next task from inside this one."""

    async def main() -> Any:
        first, later, seen = B.future(), B.future(), []

        async def drains() -> Any:
            await first
            settle((later, "inner"))
            return list(seen)

        one = asyncio.create_task(drains())
        two = asyncio.create_task(waiting(seen, later))
        await turns()
        await drain(lambda: settle((first, 1), (later, "outer")))
        return await one, await two

    assert run(main()) == ([], "inner")


def test_woken_task_makes_and_awaits_more() -> None:
    async def main() -> Any:
        first, more = B.future(), []

        async def goes_on() -> Any:
            total = await first
            for _ in range(3):
                more.append(B.future())
                total += await more[-1]
            return total

        task = asyncio.create_task(goes_on())
        await turns()
        await drain(lambda: settle((first, 1)))
        for i in range(3):
            await drain(lambda i=i: settle((more[i], 10)))
        return await task

    assert run(main()) == 31


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are 3.12")
def test_woken_task_starts_eager_tasks() -> None:
    async def main() -> Any:
        first, inner, done = B.future(), B.future(), B.future()
        done.set_result("at once")

        async def starts() -> Any:
            await first
            now = asyncio.create_task(done)
            later = asyncio.create_task(inner)
            return now.done(), later.done(), now, later

        task = asyncio.create_task(starts())
        await turns()
        await drain(lambda: settle((first, 1), (inner, 2)))
        at_once, pending, now, later = await task
        return at_once, pending, await now, await later

    assert run(main(), Setting("eager", eager=True)) == (True, False, "at once", 2)


def test_bad_batch() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for bad in ([1], [(1, 2)], [(B.future(),)], [(loop.create_future(), 1)]):
            with pytest.raises(TypeError):
                _core._settle_batch(loop, bad)
        with pytest.raises(TypeError):
            _core._settle_batch(loop, 1)
        with pytest.raises(AttributeError):
            _core._settle_batch(object(), [])

    run(main())
