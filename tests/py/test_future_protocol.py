"""The future protocol, attribute by attribute, beside asyncio's own Future."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import re
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from loops import OURS, REFERENCE, Backend, Setting, run, turns
from offloop import _core

Probe = Callable[[Any], Any]


def tried(fn: Callable[[], Any]) -> Any:
    """The value, or what was raised, in a form that can be compared."""
    try:
        return fn()
    except BaseException as exc:
        return type(exc).__name__, str(exc)


def set_exception(f: Any, exc: Any) -> Any:
    return tried(lambda: f.set_exception(exc))


def pending(f: Any) -> None:
    pass


def finished(f: Any) -> None:
    f.set_result([1, 2])


def failed(f: Any) -> None:
    f.set_exception(ValueError("bad", 1))


def failed_by_class(f: Any) -> None:
    f.set_exception(KeyError)


def cancelled(f: Any) -> None:
    f.cancel()


def cancelled_with_message(f: Any) -> None:
    f.cancel(msg="why")


STATES: list[Probe] = [
    pending,
    finished,
    failed,
    failed_by_class,
    cancelled,
    cancelled_with_message,
]

PROBES: dict[str, Probe] = {
    "done": lambda f: f.done(),
    "cancelled": lambda f: f.cancelled(),
    "result": lambda f: f.result(),
    "result again": lambda f: (tried(f.result), f.result()),
    "exception": lambda f: repr(f.exception()),
    "cancel": lambda f: (f.cancel(), f.cancel("second"), f.cancelled(), f._cancel_message),
    "cancel by name": lambda f: (f.cancel(msg="m"), f._cancel_message),
    "cancel none": lambda f: (f.cancel(msg=None), f._cancel_message, tried(f.result)),
    "cancel twice named": lambda f: type(tried(lambda: f.cancel("a", msg="b"))),
    "cancel odd message": lambda f: (f.cancel(("t", 1)), tried(f.result)),
    "set_result": lambda f: f.set_result(3),
    "set_exception": lambda f: f.set_exception(OSError("x")) or repr(f.exception()),
    "set_exception none": lambda f: f.set_exception(None)[0] if f.done() else "skip",
    "set_exception wrong": lambda f: f.set_exception(object()),
    "set_exception int class": lambda f: f.set_exception(int),
    "stop iteration": lambda f: (set_exception(f, StopIteration(1)), f.done(), tried(f.result)),
    "stop iteration class": lambda f: (set_exception(f, StopIteration), f.done()),
    "get_loop": lambda f: f.get_loop() is asyncio.get_running_loop(),
    "_loop": lambda f: f._loop is asyncio.get_running_loop(),
    "_state": lambda f: f._state,
    "_result": lambda f: f._result,
    "_exception": lambda f: repr(f._exception),
    "_callbacks": lambda f: f._callbacks,
    "_source_traceback": lambda f: f._source_traceback,
    "_cancel_message": lambda f: f._cancel_message,
    "_cancel_message set": lambda f: (setattr(f, "_cancel_message", "s"), f._cancel_message),
    "_make_cancelled_error": lambda f: repr(f._make_cancelled_error()),
    "_log_traceback": lambda f: f._log_traceback,
    "_log_traceback off": lambda f: (setattr(f, "_log_traceback", False), f._log_traceback),
    "_log_traceback on": lambda f: setattr(f, "_log_traceback", True),
    "_log_traceback after result": lambda f: (tried(f.result), f._log_traceback),
    "_log_traceback after exception": lambda f: (tried(f.exception) and None, f._log_traceback),
    "_log_traceback after cancel": lambda f: (f.cancel(), f._log_traceback),
    "blocking": lambda f: f._asyncio_future_blocking,
    "blocking set": lambda f: (
        setattr(f, "_asyncio_future_blocking", True),
        f._asyncio_future_blocking,
    ),
    "isfuture": asyncio.isfuture,
    "repr": repr,
    "bad context": lambda f: type(tried(lambda: f.add_done_callback(print, bad=1))),
    "no callback": lambda f: tried(lambda: f.add_done_callback())[0],
    "positional context": lambda f: tried(lambda: f.add_done_callback(print, None))[0],
    "remove unknown": lambda f: f.remove_done_callback(print),
    "weak": lambda f: weakref.ref(f)() is f,
    "hash": lambda f: (hash(f) == hash(f), f == f, bool(f)),
}


@pytest.mark.parametrize("probe", PROBES, ids=str)
def test_same_answer_as_asyncio(probe: str) -> None:
    async def main(b: Backend, state: Probe) -> Any:
        f = b.future()
        state(f)
        answer = tried(lambda: PROBES[probe](f))
        if f.done() and not f.cancelled():
            f.exception()
        return answer

    for state in STATES:
        assert run(main(OURS[0], state)) == run(main(REFERENCE, state)), state.__name__


def test_every_public_name_is_there() -> None:
    ours, theirs = set(dir(_core.Future)), set(dir(asyncio.Future))
    # Inside asyncio: 3.10's half of repr(), and 3.14's call graph.
    assert theirs - ours - {"_repr_info", "_asyncio_awaited_by"} == set()


def test_attributes_that_cannot_be_set_or_deleted() -> None:
    async def main() -> None:
        f = OURS[0].future()
        for name in ("_state", "_result", "_exception", "_callbacks", "_loop"):
            with pytest.raises(AttributeError):
                setattr(f, name, None)
        for name in ("_asyncio_future_blocking", "_log_traceback", "_cancel_message"):
            with pytest.raises(AttributeError):
                delattr(f, name)
        with pytest.raises(AttributeError):
            f.anything = 1
        f.cancel()

    run(main())


def test_type() -> None:
    with pytest.raises(TypeError):
        _core.Future()
    with pytest.raises(TypeError):
        type("Sub", (_core.Future,), {})
    with pytest.raises(TypeError):
        _core.Future.done = None
    assert repr(_core.Future[int]) == "offloop._core.Future[int]"
    assert _core.Future.__module__ == "offloop._core"
    with pytest.raises(TypeError):
        _core.new_future()
    with pytest.raises(AttributeError):
        _core.new_future(object())


def test_explicit_context_none_means_the_current_one() -> None:
    """As documented; asyncio's C Future takes the one at settling instead."""
    tag: contextvars.ContextVar[str] = contextvars.ContextVar("tag")

    async def main() -> Any:
        f, seen = OURS[0].future(), []
        tag.set("at add")
        f.add_done_callback(lambda _: seen.append(tag.get()), context=None)
        tag.set("later")
        f.set_result(1)
        await turns()
        return seen

    assert run(main()) == ["at add"]


def test_traceback_does_not_grow_with_each_await() -> None:
    async def main() -> Any:
        f = OURS[0].future()
        try:
            raise ValueError("once")
        except ValueError as exc:
            f.set_exception(exc)
        depths = []
        for _ in range(3):
            try:
                await f
            except ValueError as exc:
                depth, tb = 0, exc.__traceback__
                while tb is not None:
                    depth, tb = depth + 1, tb.tb_next
                depths.append(depth)
        return depths

    depths = run(main())
    assert len(set(depths)) == 1


def test_callbacks_attribute() -> None:
    async def main() -> None:
        f = OURS[0].future()
        context = contextvars.copy_context()
        f.add_done_callback(len, context=context)
        assert f._callbacks == [(len, context)]
        f.add_done_callback(repr, context=context)
        f.add_done_callback(abs, context=context)
        assert f._callbacks == [(len, context), (repr, context), (abs, context)]
        assert "cb=[" in repr(f) and "<1 more>" in repr(f)
        f._callbacks.clear()
        assert len(f._callbacks) == 3
        assert f.remove_done_callback(repr) == 1
        assert f._callbacks == [(len, context), (abs, context)]
        assert f.remove_done_callback(len) == 1
        assert f.remove_done_callback(abs) == 1
        assert f._callbacks is None

    run(main())


class _Evil:
    """Equal to everything, after doing something."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action

    def __eq__(self, other: object) -> bool:
        self.action()
        return True

    def __call__(self, _: Any) -> None:  # pragma: no cover - always removed
        raise AssertionError("removed callback called")

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_comparison_that_changes_the_future(n: int) -> None:
    async def main() -> None:
        calls: list[Any] = []
        actions: list[Callable[[Any], Any]] = [
            lambda f: f.add_done_callback(calls.append),
            lambda f: f.remove_done_callback(print),
            lambda f: f.done() or f.set_result(1),
            lambda f: f.cancel(),
        ]
        for action in actions:
            f = OURS[0].future()
            for _ in range(n):
                f.add_done_callback(_Quiet())
            assert 0 <= f.remove_done_callback(_Evil(functools.partial(action, f))) <= n
            f.cancel()
        await turns()
        assert all(isinstance(c, _core.Future) for c in calls)

    class _Quiet:
        def __call__(self, _: Any) -> None:
            pass

    run(main())


def test_comparison_that_raises_keeps_the_callbacks() -> None:
    class Raises:
        def __eq__(self, other: object) -> bool:
            raise LookupError("no comparison")

        __hash__ = None  # type: ignore[assignment]

    async def main() -> Any:
        f, seen = OURS[0].future(), []
        f.add_done_callback(lambda _: seen.append(1))
        with pytest.raises(LookupError):
            f.remove_done_callback(Raises())
        f.add_done_callback(lambda _: seen.append(2))
        with pytest.raises(LookupError):
            f.remove_done_callback(Raises())
        f.set_result(None)
        await turns()
        return seen

    assert run(main()) == [1, 2]


def test_exception_class_whose_constructor_settles_the_future() -> None:
    async def main() -> None:
        f = OURS[0].future()

        class Sneaky(Exception):
            def __init__(self) -> None:
                f.set_result("first")

        with pytest.raises(asyncio.InvalidStateError):
            f.set_exception(Sneaky)
        assert f.result() == "first"

    run(main())


def test_recursive_repr() -> None:
    async def main() -> str:
        f = OURS[0].future()
        value: list[Any] = [f]
        f.set_result(value)
        text = repr(f)
        value.clear()
        return text

    assert "..." in run(main())


def test_debug_mode_keeps_where_it_was_made() -> None:
    async def main() -> Any:
        f = OURS[0].future()
        f.cancel()
        return f._source_traceback, repr(f)

    stack, text = run(main(), Setting("debug", debug=True))
    assert any(frame.filename == __file__ and frame.name == "main" for frame in stack)
    assert re.search(r"created at .*loops\.py:\d+", text)


def test_debug_mode_refuses_another_thread() -> None:
    async def main() -> Any:
        errors: list[BaseException] = []
        f, g = OURS[0].future(), OURS[0].future()

        def settle() -> None:
            for fut in (f, g):
                try:
                    fut.set_exception(OSError()) if fut is g else fut.set_result(1)
                except BaseException as exc:
                    errors.append(exc)

        f.add_done_callback(lambda _: None)
        g.add_done_callback(lambda _: None)
        thread = threading.Thread(target=settle)
        thread.start()
        thread.join()
        return [str(e) for e in errors]

    assert all("Non-thread-safe" in e for e in run(main(), Setting("debug", debug=True)))


def test_closed_loop() -> None:
    loop = asyncio.new_event_loop()
    quiet, waited = _core.new_future(loop), _core.new_future(loop)
    waited.add_done_callback(lambda _: None)
    loop.close()
    quiet.set_result(1)
    assert quiet.result() == 1
    with pytest.raises(RuntimeError, match="closed"):
        waited.set_exception(ValueError("nobody to tell"))
    assert waited.done() and not waited._log_traceback


def test_run_until_complete() -> None:
    loop = asyncio.new_event_loop()
    try:
        f = _core.new_future(loop)
        loop.call_soon(f.set_result, 5)
        assert loop.run_until_complete(f) == 5
        f = _core.new_future(loop)
        loop.call_soon(_core._settle_batch, loop, [(f, KeyError("k"))])
        with pytest.raises(KeyError):
            loop.run_until_complete(f)
    finally:
        loop.close()


def test_of_another_loop() -> None:
    async def main() -> None:
        here, other = asyncio.get_running_loop(), asyncio.new_event_loop()
        f = _core.new_future(other)
        with pytest.raises(RuntimeError, match="attached to a different loop"):
            await here.create_task(f)
        # It can still be awaited where it belongs.
        other.call_soon(f.set_result, 1)
        asyncio.events._set_running_loop(None)
        try:
            got = other.run_until_complete(f)
        finally:
            asyncio.events._set_running_loop(here)
        other.close()
        assert got == 1

    run(main())
