"""The coroutine face of the future."""

from __future__ import annotations

import asyncio
import collections.abc
import inspect
import io
import sys
import types
import warnings
from typing import Any

import pytest
from loops import SETTINGS, Setting, new_loop, run, turns
from offloop import _core


@pytest.fixture
def loop() -> Any:
    loop = new_loop()
    yield loop
    loop.close()


def test_is_a_coroutine_and_a_future(loop: Any) -> None:
    f = _core.new_future(loop)
    assert asyncio.iscoroutine(f)
    assert asyncio.isfuture(f)
    assert inspect.isawaitable(f)
    assert isinstance(f, collections.abc.Coroutine)
    assert isinstance(f, collections.abc.Awaitable)
    assert not inspect.iscoroutine(f)


def test_send(loop: Any) -> None:
    f = _core.new_future(loop)
    assert f.__await__() is f and iter(f) is f
    assert f.send(None) is f
    assert f._asyncio_future_blocking
    with pytest.raises(RuntimeError, match="await wasn't used with future"):
        f.send(None)
    f._asyncio_future_blocking = False
    assert next(f) is f
    f.set_result("v")
    for step in (lambda: f.send(None), lambda: next(f), lambda: f.send("ignored")):
        with pytest.raises(StopIteration) as info:
            step()
        assert info.value.value == "v"


@pytest.mark.parametrize(
    "value", [(), (1,), (1, 2), None, ValueError("v"), StopIteration(2), StopIteration, [], "s"]
)
def test_stop_iteration_carries_any_value(loop: Any, value: Any) -> None:
    f = _core.new_future(loop)
    f.set_result(value)
    with pytest.raises(StopIteration) as info:
        f.send(None)
    assert info.value.value is value
    with pytest.raises(StopIteration) as info:
        next(f)
    assert info.value.value is value


def test_send_raises_the_exception(loop: Any) -> None:
    f, error = _core.new_future(loop), ValueError("x")
    f.set_exception(error)
    with pytest.raises(ValueError) as info:
        f.send(None)
    assert info.value is error
    g = _core.new_future(loop)
    g.cancel("m")
    with pytest.raises(asyncio.CancelledError, match="m"):
        next(g)


def test_yield_from_in_a_generator_coroutine(loop: Any) -> None:
    @types.coroutine
    def old_style(f: Any) -> Any:
        value = yield from f
        return value, (yield from f.__await__())

    f = _core.new_future(loop)
    loop.call_soon(_core._settle_batch, loop, [(f, (1, 2))])

    async def main() -> Any:
        return await old_style(f)

    assert loop.run_until_complete(main()) == ((1, 2), (1, 2))


def test_yield_instead_of_await(loop: Any) -> None:
    @types.coroutine
    def bare(f: Any) -> Any:
        yield f

    async def main() -> None:
        await bare(_core.new_future(loop))

    with pytest.raises(RuntimeError, match="yield was used instead of yield from"):
        loop.run_until_complete(main())


def test_throw_forms(loop: Any) -> None:
    f = _core.new_future(loop)
    error = KeyError("k")
    with pytest.raises(KeyError) as info:
        f.throw(error)
    assert info.value is error
    with pytest.raises(KeyError):
        f.throw(KeyError)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with pytest.raises(KeyError, match="val"):
            f.throw(KeyError, "val")
        with pytest.raises(KeyError) as info:
            f.throw(KeyError, error, None)
        assert info.value is error
        with pytest.raises(KeyError) as info:
            f.throw(error, None, None)
        assert info.value is error
        with pytest.raises(TypeError, match="separate value"):
            f.throw(error, "val")
        with pytest.raises(TypeError, match="traceback object"):
            f.throw(KeyError, None, "tb")
        try:
            raise LookupError
        except LookupError as exc:
            tb = exc.__traceback__
        with pytest.raises(KeyError) as info:
            f.throw(KeyError, error, tb)
        assert tb in _tracebacks(info.value)
    for bad in ("text", 1, None, int):
        with pytest.raises(TypeError):
            f.throw(bad)
    with pytest.raises(TypeError):
        f.throw()
    with pytest.raises(TypeError):
        f.throw(1, 2, 3, 4)
    assert not f.done()


def _tracebacks(exc: BaseException) -> list[Any]:
    found, tb = [], exc.__traceback__
    while tb is not None:
        found.append(tb)
        tb = tb.tb_next
    return found


@pytest.mark.skipif(sys.version_info < (3, 12), reason="deprecated since 3.12")
def test_throw_with_three_arguments_is_deprecated(loop: Any) -> None:
    f = _core.new_future(loop)
    with pytest.warns(DeprecationWarning, match="single-arg"), pytest.raises(KeyError):
        f.throw(KeyError, KeyError("k"), None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KeyError):
            f.throw(KeyError("k"))


def test_close_does_nothing(loop: Any) -> None:
    f = _core.new_future(loop)
    f.close()
    assert not f.done()
    f.set_result(1)
    f.close()
    assert f.result() == 1


def test_cancelled_error_thrown_into_an_unawaited_future_cancels_it(loop: Any) -> None:
    f = _core.new_future(loop)
    error = asyncio.CancelledError("early")
    with pytest.raises(asyncio.CancelledError) as info:
        f.throw(error)
    assert info.value is error
    assert f.cancelled() and f._cancel_message == "early"

    g = _core.new_future(loop)
    with pytest.raises(asyncio.CancelledError):
        g.throw(asyncio.CancelledError)
    assert g.cancelled() and g._cancel_message is None


@pytest.mark.parametrize("error", [GeneratorExit, KeyError, KeyboardInterrupt])
def test_nothing_else_settles_it(loop: Any, error: type[BaseException]) -> None:
    f = _core.new_future(loop)
    with pytest.raises(error):
        f.throw(error)
    assert not f.done()


def test_cancelled_error_does_not_touch_an_awaited_future(loop: Any) -> None:
    f = _core.new_future(loop)
    f.add_done_callback(print)
    with pytest.raises(asyncio.CancelledError):
        f.throw(asyncio.CancelledError())
    assert not f.done()
    done = _core.new_future(loop)
    done.set_result(1)
    with pytest.raises(asyncio.CancelledError):
        done.throw(asyncio.CancelledError())
    assert done.result() == 1


def test_throw_makes_it_awaitable_again(loop: Any) -> None:
    """An awaiter that never waited (wrong loop, say) must not spoil it."""
    f = _core.new_future(loop)

    async def wait() -> Any:
        return await f

    coro = wait()
    coro.send(None)
    with pytest.raises(KeyError):
        coro.throw(KeyError("not my loop"))
    task = loop.create_task(wait())
    loop.run_until_complete(turns())  # it waits, on a future that is pending
    assert not task.done()
    f.set_result(1)
    assert loop.run_until_complete(task) == 1


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
def test_what_a_task_shows_of_it(setting: Setting) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        f = _core.new_future(loop)
        task = asyncio.create_task(f, name="get")
        assert "Future()" in repr(task)
        await turns()
        assert "Future()" in repr(task)
        assert task.get_coro() is f
        assert task.get_stack() == []
        out = io.StringIO()
        task.print_stack(file=out)
        f.set_result(1)
        assert await task == 1
        assert "Future()" in repr(task) and "result=1" in repr(task)

    run(main(), setting)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="TaskGroup is 3.11")
def test_task_group_that_refuses_closes_it_without_harm() -> None:
    async def main() -> Any:
        group = asyncio.TaskGroup()
        async with group:
            pass
        f = _core.new_future(asyncio.get_running_loop())
        with pytest.raises(RuntimeError):
            group.create_task(f)
        f.set_result("others may wait")
        return await f

    assert run(main()) == "others may wait"


def test_awaiter_is_collected(loop: Any) -> None:
    """The interpreter closes what a dying coroutine awaits."""
    f = _core.new_future(loop)

    async def wait() -> Any:
        return await f

    coro = wait()
    coro.send(None)
    del coro
    assert not f.done()
    f.cancel()
