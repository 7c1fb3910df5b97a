"""How futures end: cycles, references, the free list, the unretrieved error."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from loops import Setting, new_loop, run, turns
from offloop import _core


class Plain:
    """Something that can be weakly referenced."""


@pytest.fixture
def errors() -> Iterator[list[dict[str, Any]]]:
    seen: list[dict[str, Any]] = []
    yield seen
    seen.clear()  # the futures in it, which pytest would keep


@pytest.fixture
def loop(errors: list[dict[str, Any]]) -> Any:
    loop = new_loop()
    loop.set_exception_handler(lambda _, context: errors.append(context))
    yield loop
    loop.close()


# ---- cycles


def _through_result(f: Any, link: Any) -> None:
    link.future = f
    f.set_result(link)


def _through_exception(f: Any, link: Any) -> None:
    exc = ValueError(link)
    link.future = f
    f.set_exception(exc)
    f.exception()


def _through_callback(f: Any, link: Any) -> None:
    link.future = f
    f.add_done_callback(lambda _: link)


def _through_more_callbacks(f: Any, link: Any) -> None:
    link.future = f
    for _ in range(3):
        f.add_done_callback(lambda _: link)


def _through_message(f: Any, link: Any) -> None:
    link.future = f
    f.cancel(link)


def _through_loop(f: Any, link: Any) -> None:
    link.future = f
    f.get_loop().link = link


@pytest.mark.parametrize(
    "tie",
    [
        _through_result,
        _through_exception,
        _through_callback,
        _through_more_callbacks,
        _through_message,
        _through_loop,
    ],
)
def test_cycles_are_collected(tie: Callable[[Any, Any], None]) -> None:
    loop = asyncio.new_event_loop()
    f, link = _core.new_future(loop), Plain()
    tie(f, link)
    watch = weakref.ref(f), weakref.ref(link)
    loop.close()
    del f, link, loop
    gc.collect()
    assert [w() for w in watch] == [None, None]


def test_dropped_task_and_its_future_are_collected(loop: Any, errors: list[dict[str, Any]]) -> None:
    f = _core.new_future(loop)
    task = loop.create_task(f)
    loop.run_until_complete(turns())
    watch = weakref.ref(f), weakref.ref(task)
    del f, task
    gc.collect()
    assert [w() for w in watch] == [None, None]
    assert ["destroyed" in e["message"] for e in errors] == [True]


# ---- references


def _rounds(loop: Any, n: int) -> None:
    """Every way through a future once, n times."""
    loop.set_exception_handler(lambda *_: None)  # the "never retrieved" of each round
    settle = _core._settle_batch
    value, error = object(), ValueError("x")

    async def wait(f: Any) -> Any:
        try:
            return await f
        except (ValueError, asyncio.CancelledError):
            return None

    async def main() -> None:
        here = asyncio.get_running_loop()
        for _ in range(n):
            futs = [_core.new_future(here) for _ in range(8)]
            tasks = [asyncio.create_task(wait(f)) for f in futs]
            itself = asyncio.create_task(futs[0])
            await turns()
            futs[1].add_done_callback(id)
            futs[1].add_done_callback(len)
            futs[1].remove_done_callback(len)
            futs[2].cancel("m")
            tasks[3].cancel()
            here.call_soon(
                settle, here, [(f, error if i % 2 else value) for i, f in enumerate(futs)]
            )
            await asyncio.gather(*tasks)
            await itself
            for f in futs[:3]:
                f.add_done_callback(id)
                repr(f), f._callbacks
            early = asyncio.create_task(_core.new_future(here))
            early.cancel()
            await asyncio.wait([early])
            lone = _core.new_future(here)
            lone.set_exception(error)
            del lone, futs, tasks, itself, early, f
        await turns()

    loop.run_until_complete(main())


def test_no_reference_is_lost_or_kept(loop: Any) -> None:
    _rounds(loop, 20)
    gc.collect()
    before = _counts(loop)
    _rounds(loop, 200)
    gc.collect()
    after = _counts(loop)
    # One too many or too few a round would show as 200 or more.
    moved = {name: after[name] - before[name] for name in before}
    assert {name: n for name, n in moved.items() if abs(n) > 20} == {}


def _counts(loop: Any) -> dict[str, int]:
    things = {
        "loop": loop,
        "Future": _core.Future,
        "module": _core,
        "CancelledError": asyncio.CancelledError,
        "InvalidStateError": asyncio.InvalidStateError,
        "id": id,
        "len": len,
        "Task": asyncio.Task,
    }
    return {name: sys.getrefcount(thing) for name, thing in things.items()}


def test_memory_does_not_grow(loop: Any) -> None:
    _rounds(loop, 100)
    grown = []
    tracemalloc.start()
    try:
        _rounds(loop, 300)  # fills the interpreter's free lists, which count as used
        gc.collect()
        for _ in range(4):
            before = tracemalloc.get_traced_memory()[0]
            _rounds(loop, 500)
            gc.collect()
            grown.append(tracemalloc.get_traced_memory()[0] - before)
    finally:
        tracemalloc.stop()
    # 500 rounds of 10 futures: one object of 16 bytes left by each is 80 KB. What the
    # interpreter's own tables grow by comes once; a leak comes in every window.
    assert min(grown) < 40_000


def test_what_a_future_held_is_dropped_with_it(loop: Any) -> None:
    for end in ("drop", "result", "exception", "cancel"):
        held, f = Plain(), _core.new_future(loop)
        watch = weakref.ref(held)
        f.add_done_callback(lambda _, held=held: None)
        if end == "result":
            f.set_result(held)
        elif end == "exception":
            f.set_exception(ValueError(held))
            f.exception()
        elif end == "cancel":
            f.cancel(held)
        loop.run_until_complete(turns())
        del f, held
        assert watch() is None, end


def test_weak_references_and_callbacks(loop: Any) -> None:
    seen: list[Any] = []
    f = _core.new_future(loop)
    ref = weakref.ref(f, seen.append)
    assert ref() is f
    del f
    assert seen == [ref] and ref() is None


# ---- the free list


def test_reused_future_is_as_new(loop: Any) -> None:
    f = _core.new_future(loop)
    f.add_done_callback(len)
    f.add_done_callback(len)
    f._asyncio_future_blocking = True
    f._cancel_message = "m"
    address = id(f)
    del f
    again = _core.new_future(loop)
    assert id(again) == address, "the free list is not used: this test says nothing"
    assert again._state == "PENDING" and again._callbacks is None
    assert not again._asyncio_future_blocking and not again._log_traceback
    assert again._cancel_message is None and again._result is None
    assert again._exception is None and again._source_traceback is None
    assert gc.is_tracked(again)


def test_more_futures_than_the_free_list_holds(loop: Any) -> None:
    for _ in range(3):
        futs = [_core.new_future(loop) for _ in range(5000)]
        for i, f in enumerate(futs):
            f.set_result(i)
        assert [f.result() for f in futs] == list(range(5000))
        del futs, f


def test_dropped_in_another_thread(loop: Any) -> None:
    box = [_core.new_future(loop) for _ in range(100)]
    thread = threading.Thread(target=box.clear)
    thread.start()
    thread.join()
    assert _core.new_future(loop).done() is False


def test_deep_chain_of_results(loop: Any) -> None:
    f = _core.new_future(loop)
    f.set_result(None)
    for _ in range(1000):
        outer = _core.new_future(loop)
        outer.set_result(f)
        f = outer
    del f, outer
    gc.collect()


# ---- an exception nobody asked for


def test_never_retrieved(loop: Any, errors: list[dict[str, Any]]) -> None:
    f, error = _core.new_future(loop), ValueError("lost")
    f.set_exception(error)
    del f
    assert len(errors) == 1
    context = errors.pop()
    assert context["exception"] is error
    assert context["message"] == "Future exception was never retrieved"
    assert isinstance(context["future"], _core.Future)
    assert "source_traceback" not in context


def test_never_retrieved_in_debug_mode(loop: Any, errors: list[dict[str, Any]]) -> None:
    loop.set_debug(True)
    f = _core.new_future(loop)
    f.set_exception(ValueError("lost"))
    del f
    frames = errors.pop()["source_traceback"]
    assert frames[-1].name == "test_never_retrieved_in_debug_mode"


def test_never_retrieved_is_said_each_time_the_memory_is_used_again(
    loop: Any, errors: list[dict[str, Any]]
) -> None:
    """The collector's mark "finalized" must not stay on a reused object."""
    for _ in range(3):
        for _ in range(20):
            f = _core.new_future(loop)
            f.set_exception(ValueError("lost"))
            del f
        for _ in range(20):
            f, link = _core.new_future(loop), Plain()
            link.future = f  # type: ignore[attr-defined]
            f.set_exception(ValueError(link))
            del f, link
        gc.collect()
        assert len(errors) == 40
        errors.clear()


def test_a_pending_future_that_the_collector_finalized_logs_later(
    loop: Any, errors: list[dict[str, Any]]
) -> None:
    saved: list[Any] = []

    class Saves:
        def __del__(self) -> None:
            saved.append(self.future)  # type: ignore[attr-defined]

    f, saves = _core.new_future(loop), Saves()
    saves.future = f  # type: ignore[attr-defined]
    f.add_done_callback(lambda _, s=saves: s)
    del f, saves
    gc.collect()
    f = saved.pop()
    f.cancel()
    del f
    gc.collect()
    for _ in range(1100):
        g = _core.new_future(loop)
        g.set_exception(KeyError())
        del g
    assert len(errors) == 1100


def _by_result(f: Any) -> None:
    with pytest.raises(ValueError):
        f.result()


def _by_send(f: Any) -> None:
    with pytest.raises(ValueError):
        f.send(None)


@pytest.mark.parametrize(
    "look",
    [
        _by_result,
        _by_send,
        lambda f: f.exception(),
        lambda f: f.cancel(),
        lambda f: setattr(f, "_log_traceback", False),
    ],
)
def test_retrieved(look: Callable[[Any], Any], loop: Any, errors: list[dict[str, Any]]) -> None:
    f = _core.new_future(loop)
    f.set_exception(ValueError("seen"))
    look(f)
    del f
    gc.collect()
    assert errors == []


def test_handler_that_raises_is_not_fatal() -> None:
    class Loop:
        def get_debug(self) -> bool:
            return False

        def call_exception_handler(self, context: Any) -> None:
            raise ValueError("handler")

    seen: list[Any] = []
    hook, sys.unraisablehook = sys.unraisablehook, lambda args: seen.append(args.exc_value)
    try:
        f = _core.new_future(Loop())
        f.set_exception(KeyError())
        del f
    finally:
        sys.unraisablehook = hook
    assert [str(e) for e in seen] == ["handler"]


def test_finalizer_that_resurrects(loop: Any) -> None:
    kept: list[Any] = []
    loop.set_exception_handler(lambda _, context: kept.append(context["future"]))
    f = _core.new_future(loop)
    f.set_exception(ValueError("kept"))
    del f
    f = kept.pop()
    assert str(f.exception()) == "kept"
    del f
    assert kept == []


def test_debug_run_leaves_nothing() -> None:
    async def main() -> Any:
        f = _core.new_future(asyncio.get_running_loop())
        task = asyncio.create_task(f)
        await turns()
        f.set_result(1)
        return await task

    assert run(main(), Setting("debug", debug=True)) == 1
