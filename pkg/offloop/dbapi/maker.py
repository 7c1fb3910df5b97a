"""What makes connections that are alike, and which lane their calls are on."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

from offloop.dbapi.drivers import Driver, Offload, driver_of
from offloop.pool import Lane, Pool, default_pool

__all__ = ["Maker", "lane_of"]

_lock = threading.Lock()
#: The lanes of modules that threads may not even share.
_alone: weakref.WeakKeyDictionary[Pool, dict[str, Lane]] = weakref.WeakKeyDictionary()


def lane_of(pool: Pool, driver: Driver, pinned: bool) -> Lane:
    """A lane for a new connection. A module whose threadsafety is 0 has one, pinned, for
    all its connections of a pool."""
    if not driver.alone:
        return pool.lane(pinned=pinned)
    with _lock:
        lanes = _alone.setdefault(pool, {})
        if driver.name not in lanes:
            lanes[driver.name] = pool.lane(pinned=True)
        return lanes[driver.name]


class Maker:
    """What makes connections that are alike: the driver, its arguments, how to call it."""

    def __init__(
        self,
        module: ModuleType | str | Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        pool: Pool | None,
        offload: Offload | None,
    ) -> None:
        self.driver, self._function = driver_of(module)
        self._args = args
        self._kwargs = kwargs
        self.offload = offload if offload is not None else Offload()
        self.pool = pool if pool is not None else default_pool()
        pinned = self.offload.pinned
        self.pinned = self.driver.pinned(kwargs) if pinned is None else pinned

    def connect_by(self, function: Callable[[], Any]) -> None:
        """Have a function connect."""
        self._function = function
        self._args, self._kwargs = (), {}

    def connect(self) -> Any:
        """Connect; the driver's own connection. Blocks."""
        if self._function is not None:
            return self._function(*self._args, **self._kwargs)
        return self.driver.connect(self._args, self._kwargs, self.pinned)
