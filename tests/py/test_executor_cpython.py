"""CPython's own tests of ThreadPoolExecutor, on a Pool, where they are installed.

The classes come from the running Python's `test` package; nothing of it is copied
here. Without it these tests are skipped, and test_executor.py has what matters.

Left out are tests that
- run a program of their own, which imports ThreadPoolExecutor there (test_call_life.py
  has the same programs for a Pool),
- look at `_threads`, which a Pool has not: its threads are native, and all of them are
  there from the first use (test_executor.py looks at their number and names),
- are about the default number of workers, which is another, or the words of an error
  about it,
- combine it with ProcessPoolExecutor and fork while threads run,
- expect a call to have begun by the time that submit() has returned, which a new
  thread of Python's makes likely and nothing makes certain (test_cancel_futures).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from concurrent import futures
from types import ModuleType
from typing import Any

import offloop
import pytest

pytest.importorskip("test.test_concurrent_futures", reason="this Python carries no tests")


def _module(name: str) -> ModuleType:
    """A package of modules since 3.12, one module before."""
    whole = importlib.import_module("test.test_concurrent_futures")
    if not hasattr(whole, "__path__"):
        return whole
    return importlib.import_module(f"test.test_concurrent_futures.{name}")


class _Pool(offloop.Pool):
    """A Pool made as a ThreadPoolExecutor is."""

    def __init__(self, max_workers: int | None = None, *args: Any, **options: Any) -> None:
        if args:
            options["thread_name_prefix"] = args[0]
        super().__init__(5 if max_workers is None else max_workers, **options)


util = _module("util")
executor, shutdown, wait = _module("executor"), _module("test_shutdown"), _module("test_wait")
completed, init = _module("test_as_completed"), _module("test_init")
thread_pool = _module("test_thread_pool")


@pytest.fixture(autouse=True)
def _in_its_place(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Some tests take the class by its name."""
    monkeypatch.setattr(futures, "ThreadPoolExecutor", _Pool)
    yield


class _Mixin(util.ExecutorMixin):  # type: ignore[misc, name-defined]
    executor_type = _Pool


def _on_a_pool(name: str, *bases: Any, without: tuple[str, ...] = ()) -> Any:
    known = {one: None for one in without if any(hasattr(base, one) for base in bases)}
    return type(name, (_Mixin, *bases, util.BaseTestCase), {"__module__": __name__, **known})


# A class of a version may lack a test that another version has.
PROGRAMS = (
    "test_interpreter_shutdown",
    "test_submit_after_interpreter_shutdown",
    "test_hang_gh83386",
    "test_cancel_futures_wait_false",
)
THREADS = (
    "test_threads_terminate",
    "test_context_manager_shutdown",
    "test_del_shutdown",
    "test_shutdown_no_wait",
    "test_thread_names_assigned",
    "test_thread_names_default",
    "test_saturation",
    "test_idle_thread_reuse",
)

TestExecutor = _on_a_pool(
    "TestExecutor",
    thread_pool.ThreadPoolExecutorTest,
    without=(
        *THREADS,
        "test_default_workers",
        "test_max_workers_negative",
        "test_hang_global_shutdown_lock",
    ),
)
TestShutdown = _on_a_pool(
    "TestShutdown",
    shutdown.ThreadPoolShutdownTest,
    without=(*PROGRAMS, *THREADS, "test_cancel_futures"),
)
TestWait = _on_a_pool("TestWait", wait.WaitTests)
TestAsCompleted = _on_a_pool("TestAsCompleted", completed.AsCompletedTests)


class TestInitializer(_Mixin, init.InitializerMixin, util.BaseTestCase):  # type: ignore[misc, name-defined]
    pass


class TestFailingInitializer(  # type: ignore[misc]
    _Mixin,
    init.FailingInitializerMixin,  # type: ignore[name-defined]
    util.BaseTestCase,  # type: ignore[name-defined]
):
    pass
