"""What aioodbc's tests ask of pytest-asyncio, in the form of the version that they are for.

``import pytest_asyncio`` in them finds this file, and ``-p pytest_asyncio`` has pytest know
``@pytest.mark.asyncio``. Tests and fixtures run in the loop of the fixture ``event_loop``,
which the tests define; later versions of pytest-asyncio do not know it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

__all__ = ["fixture"]


def pytest_configure(config: pytest.Config) -> None:
    """Know the marker."""
    config.addinivalue_line("markers", "asyncio: runs in the loop of event_loop")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine function."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    loop = pyfuncitem._request.getfixturevalue("event_loop")
    names = pyfuncitem._fixtureinfo.argnames
    loop.run_until_complete(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


def fixture(function: Callable[..., Any]) -> Any:
    """A fixture that is an asynchronous generator."""

    @functools.wraps(function)
    def wrapper(event_loop: Any, **kwargs: Any) -> Iterator[Any]:
        generator = function(**kwargs)
        yield event_loop.run_until_complete(generator.__anext__())
        with_end = False
        try:
            event_loop.run_until_complete(generator.__anext__())
        except StopAsyncIteration:
            with_end = True
        assert with_end

    parameters = list(inspect.signature(function).parameters.values())
    loop = inspect.Parameter("event_loop", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    wrapper.__signature__ = inspect.Signature([loop, *parameters])  # type: ignore[attr-defined]
    del wrapper.__wrapped__
    return pytest.fixture(wrapper)
