"""CPython's own tests of futures and tasks, over our future, where they are installed.

The classes come from the running Python's `test` package (Debian has it in
libpythonX-testsuite); nothing of it is copied here.  Without it these tests
are skipped: the comparison in the other files needs nothing.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from offloop import _core

pytest.importorskip("test.test_asyncio", reason="this Python carries no tests")

from test.test_asyncio import test_futures, test_tasks, utils


class _Factory:
    """Stands for the class: calls make a future, as loop.create_future does."""

    __name__ = "Future"
    __qualname__ = "Future"
    set_result = staticmethod(_core.Future.set_result)
    set_exception = staticmethod(_core.Future.set_exception)

    def __call__(self, *, loop: Any = None) -> Any:
        if loop is None:
            loop = getattr(asyncio.events, "_get_event_loop", asyncio.get_event_loop)()
        return _core.new_future(loop)

    def __getitem__(self, item: Any) -> Any:
        return _core.Future[item]


FACTORY: Any = _Factory()


def _does_not_apply(*names: str) -> Any:
    """Tests of what ours is not meant to be: a class to be called or derived from."""

    def mark(cls: Any) -> Any:
        for name in names:
            setattr(cls, name, None)
        return cls

    return mark


@_does_not_apply(
    "test_uninitialized",  # there is no half-made future
    "test_generic_alias",  # checks __origin__ to be the factory
    "test_future_source_traceback",  # counts the frames of the factory
    "test_future_del_collect",  # 100 full collections: test_future_life has it
)
class TestFuture(test_futures.BaseFutureTests, utils.TestCase):  # type: ignore[misc]
    cls = FACTORY


class TestFutureCallbacks(  # type: ignore[misc]
    test_futures.BaseFutureDoneCallbackTests, utils.TestCase
):
    def _new_future(self) -> Any:
        return _core.new_future(self.loop)


@_does_not_apply(
    # Future.set_result(task): a Task is none of ours.
    "test_set_result_causes_invalid_state",
    "test_set_exception_causes_invalid_state",
    "test_task_del_collect",
)
class TestTask(test_tasks.BaseTaskTests, test_tasks.SetMethodsTest, utils.TestCase):  # type: ignore[misc]
    Task = asyncio.Task
    Future = FACTORY
    current_task = staticmethod(asyncio.current_task)


@_does_not_apply(
    "test_set_result_causes_invalid_state",
    "test_set_exception_causes_invalid_state",
    "test_task_del_collect",
)
class TestPythonTask(test_tasks.BaseTaskTests, test_tasks.SetMethodsTest, utils.TestCase):  # type: ignore[misc]
    Task = asyncio.tasks._PyTask  # type: ignore[attr-defined]
    Future = FACTORY
    current_task = staticmethod(getattr(asyncio.tasks, "_py_current_task", asyncio.current_task))
