"""The module alone: what it exports, import order, a second copy, interpreter exit."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from offloop import _core

PREAMBLE = """
    import importlib.util, sys
    spec = importlib.util.spec_from_file_location("offloop._core", {path!r})
    _core = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(_core)
"""


def script(text: str) -> subprocess.CompletedProcess[str]:
    """Run it in a fresh interpreter that has imported nothing but _core."""
    whole = textwrap.dedent(PREAMBLE).format(path=_core.__file__) + textwrap.dedent(text)
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", whole],
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_core_imported_before_asyncio() -> None:
    """_asyncio imported first makes asyncio use tables its Tasks do not keep."""
    done = script(
        """
        import asyncio
        async def main():
            task = asyncio.current_task()
            assert task is not None and task in asyncio.all_tasks()
            loop = asyncio.get_running_loop()
            f = _core.new_future(loop)
            loop.call_soon(_core._settle_batch, loop, [(f, 1)])
            assert await asyncio.wait_for(f, 10) == 1
        asyncio.run(main())
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_one_symbol_is_exported() -> None:
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", _core.__file__], capture_output=True, text=True, check=True
    )
    names = [line.split()[-1] for line in listed.stdout.splitlines()]
    sanitizer = {n for n in names if n.startswith(("__asan", "__odr_asan", "__ubsan", "__tsan"))}
    assert set(names) - sanitizer == {"PyInit__core"}


def test_second_module_object_is_independent() -> None:
    done = script(
        """
        import asyncio, gc, weakref
        second = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(second)
        assert second.Future is not _core.Future
        loop = asyncio.new_event_loop()
        one, two = _core.new_future(loop), second.new_future(loop)
        try:
            second._settle_batch(loop, [(one, 1)])
        except TypeError:
            pass
        else:
            raise AssertionError("took another module's future")
        gone = weakref.ref(second)
        del second
        gc.collect()
        two.set_result("still works")
        assert two.result() == "still works"
        del two
        gc.collect()
        loop.close()
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "leave",
    [
        "keep = f",
        "keep = task",
        "f.set_result(f)",
        "sys.keep = f; f.add_done_callback(lambda _: sys)",
        "import builtins; builtins.keep = [f, task, loop]",
        "f.cancel(); keep = [f, f]",
        "keep = f; sys.modules.clear()",
    ],
)
def test_interpreter_exit(leave: str) -> None:
    done = script(
        f"""
        import asyncio
        loop = asyncio.new_event_loop()
        f = _core.new_future(loop)
        async def wait():
            await f
        task = None
        if {"task" in leave}:
            # The task's own complaint is not what this is about.
            task = loop.create_task(wait())
            loop.run_until_complete(asyncio.sleep(0))
            task._log_destroy_pending = False
        loop.close()
        {leave}
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_interpreter_exit_with_an_error_nobody_asked_for() -> None:
    done = script(
        """
        import asyncio
        loop = asyncio.new_event_loop()
        f = _core.new_future(loop)
        f.set_exception(ValueError("lost at exit"))
        loop.close()
        """
    )
    assert done.returncode == 0, done.stderr
    assert "lost at exit" in done.stderr and "never retrieved" in done.stderr
