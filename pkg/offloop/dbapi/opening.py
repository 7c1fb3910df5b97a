"""What is awaited for an object, or entered for the time of an ``async with``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Generic, NoReturn, TypeVar

__all__ = ["Opening", "failed", "let_go", "ready"]

T = TypeVar("T")


async def ready(value: T) -> T:
    """An awaitable whose result is there."""
    return value


async def failed(error: BaseException) -> NoReturn:
    """An awaitable whose exception is there."""
    raise error


def let_go(call: Coroutine[Any, Any, object]) -> None:
    """A call of a lane that was made is executed in its turn, whether anybody waits or not."""


class Opening(Coroutine[Any, Any, T], Generic[T]):
    """An object that is on its way.

    ``thing = await opening`` gives it, and ``async with opening as thing`` gives it back
    at the end. It is a coroutine as well, so `asyncio.create_task`, `gather` and
    `wait_for` take it.
    """

    __slots__ = ("_coming", "_leave", "_thing")

    def __init__(
        self,
        coming: Coroutine[Any, Any, T],
        leave: Callable[[T, BaseException | None], Awaitable[object]],
    ) -> None:
        self._coming = coming
        self._leave = leave

    def __await__(self) -> Generator[Any, Any, T]:
        return self._coming.__await__()

    def send(self, value: Any) -> Any:
        """As a coroutine's."""
        return self._coming.send(value)

    def throw(self, *exception: Any) -> Any:
        """As a coroutine's."""
        return self._coming.throw(*exception)

    def close(self) -> None:
        """As a coroutine's."""
        self._coming.close()

    async def __aenter__(self) -> T:
        self._thing = await self._coming
        return self._thing

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        thing = self._thing
        del self._thing
        await self._leave(thing, exc)
