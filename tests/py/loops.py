"""Loops for the tests of the awaitable.

A *backend* makes futures and settles them; the same scenario runs over
asyncio's own Future (the reference) and over ours, and must be seen to do the
same.  A *setting* is the loop it runs under.  `run` fails a scenario that
leaves an unhandled error in its loop.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from offloop import _core

try:
    import uvloop
except ImportError:  # pragma: no cover - the tests that need it say so
    uvloop = None
else:
    # libuv keeps one pipe for the whole process from its first loop on, which
    # would look like a leak of the test that happens to be the first.
    uvloop.new_event_loop().close()

Outcome = Any
Scenario = Callable[["Backend"], Coroutine[Any, Any, Any]]

HANG_SECS = 60.0


class Backend:
    """asyncio's own Future: what the others are measured by."""

    name = "asyncio"

    def future(self) -> Any:
        return asyncio.get_running_loop().create_future()

    def task(self, fut: Any) -> asyncio.Task[Any]:
        async def call() -> Any:
            return await fut

        return asyncio.get_running_loop().create_task(call())

    def coroutine(self, fut: Any) -> Any:
        async def call() -> Any:
            return await fut

        return call()

    def settle(self, *batch: tuple[Any, Outcome]) -> None:
        """Settle each future in order, in the next turn of the loop."""
        asyncio.get_running_loop().call_soon(self._settle_now, batch)

    def _settle_now(self, batch: tuple[tuple[Any, Outcome], ...]) -> None:
        for fut, outcome in batch:
            if fut.done():
                continue
            if isinstance(outcome, BaseException):
                fut.set_exception(outcome)
            else:
                fut.set_result(outcome)


class Ours(Backend):
    """Ours, settled by set_result: through call_soon."""

    name = "ours"

    def future(self) -> Any:
        return _core.new_future(asyncio.get_running_loop())

    def task(self, fut: Any) -> asyncio.Task[Any]:
        return asyncio.get_running_loop().create_task(fut)

    def coroutine(self, fut: Any) -> Any:
        return fut


class Drain(Ours):
    """Ours, settled as a drain does: the waiting task is stepped in place."""

    name = "drain"

    def _settle_now(self, batch: tuple[tuple[Any, Outcome], ...]) -> None:
        _core._settle_batch(asyncio.get_running_loop(), batch)


REFERENCE = Backend()
OURS: tuple[Backend, ...] = (Ours(), Drain())


@dataclass(frozen=True)
class Setting:
    """A way to run a loop."""

    name: str
    debug: bool = False
    python_task: bool = False
    eager: bool = False
    uvloop: bool = False


SETTINGS: list[Setting] = [
    Setting("plain"),
    Setting("debug", debug=True),
    Setting("python-task", python_task=True),
]
if sys.version_info >= (3, 12):
    SETTINGS.append(Setting("eager", eager=True))
if uvloop is not None:
    SETTINGS.append(Setting("uvloop", uvloop=True))
    SETTINGS.append(Setting("uvloop-debug", uvloop=True, debug=True))

PLAIN = SETTINGS[0]


def _python_task(loop: Any, coro: Any, **kwargs: Any) -> Any:
    return asyncio.tasks._PyTask(coro, loop=loop, **kwargs)  # type: ignore[attr-defined]


def new_loop(setting: Setting = PLAIN) -> asyncio.AbstractEventLoop:
    loop: asyncio.AbstractEventLoop
    loop = uvloop.new_event_loop() if setting.uvloop else asyncio.new_event_loop()
    loop.set_debug(setting.debug)
    if setting.python_task:
        loop.set_task_factory(_python_task)
    if setting.eager:
        loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    return loop


def run(
    main: Coroutine[Any, Any, Any],
    setting: Setting = PLAIN,
    errors: list[dict[str, Any]] | None = None,
) -> Any:
    """Run main in a new loop with a limit against hanging.

    Contexts given to the exception handler are collected in `errors`; without
    one, any of them fails the test.
    """
    seen: list[dict[str, Any]] = [] if errors is None else errors
    loop = new_loop(setting)
    loop.set_exception_handler(lambda _, context: seen.append(context))
    try:
        asyncio.set_event_loop(loop)
        result = loop.run_until_complete(asyncio.wait_for(main, HANG_SECS))
        left = asyncio.all_tasks(loop)
        gc.collect(1)  # what this run made is young
        loop.run_until_complete(asyncio.sleep(0))
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    assert not left, f"tasks left behind: {left}"
    if errors is None:
        assert not seen, f"unhandled in the loop: {seen}"
    return result


async def turns(n: int = 3) -> None:
    """Let the loop turn n times."""
    for _ in range(n):
        await asyncio.sleep(0)


async def outcome(aw: Any) -> tuple[Any, ...]:
    """How an await ends, in a form that can be compared."""
    try:
        return ("result", await aw)
    except BaseException as exc:
        return ("raised", type(exc).__name__, exc.args)


# ---- scenarios


class Scenarios(list[Scenario]):
    """Those of one file; used as a decorator, and as what to parametrize by."""

    def __call__(self, fn: Scenario) -> Scenario:
        self.append(fn)
        return fn

    def since(self, *version: int) -> Callable[[Scenario], Scenario]:
        return self if sys.version_info >= version else lambda fn: fn


@functools.cache
def expected(fn: Scenario, setting: Setting) -> str:
    """What asyncio does, as text: a value kept here would look like a leak."""
    return repr(run(fn(REFERENCE), setting))


def same_as_asyncio(fn: Scenario, backend: Backend) -> None:
    """The scenario ends the same under every setting as over asyncio's Future."""
    for setting in SETTINGS:
        # Eager tasks and Python's own Task differ by themselves; the others do not.
        alike = setting if setting.eager or setting.python_task else PLAIN
        got = repr(run(fn(backend), setting))
        assert got == expected(fn, alike), setting.name


# ---- drains


def in_place(setting: Setting) -> bool:
    """Whether a drain may step a task under this setting."""
    return not setting.debug and not setting.python_task


async def drain(action: Callable[[], Any]) -> Any:
    """Call action as the loop calls a reader: in no task."""
    box: list[Any] = []
    done = asyncio.get_running_loop().create_future()

    def call() -> None:
        try:
            box.append(action())
        except BaseException as exc:
            box.append(exc)
        done.set_result(None)

    asyncio.get_running_loop().call_soon(call)
    await done
    if isinstance(box[0], BaseException):
        raise box[0]
    return box[0]


def settle(*batch: tuple[Any, Outcome]) -> None:
    """Settle each future as one drain of the running loop."""
    _core._settle_batch(asyncio.get_running_loop(), batch)


async def waiting(seen: list[Any], fut: Any, name: Any = None) -> Any:
    """Await fut; note its value, or name, once woken."""
    value = await fut
    seen.append(value if name is None else name)
    return value
