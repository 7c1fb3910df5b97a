"""The command methods that have a native short cut.

Each row of the table is a method of redis-py that hands its arguments on as they
are. A method is here only if ``python bench/run.py --only methods`` shows at
least 1.25 times the throughput of redis-py's own with 1000 tasks on the same
connection; ``get``, the one called most, is at 1.1 to 1.3 there. One that takes a
fixed number of arguments and hands them on at once saves too little: the candidates
in bench/methods.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from offloop import _core

__all__ = ["SHORT_CUTS", "ShortCut", "native_methods"]

_ANY = sys.maxsize


@dataclass(frozen=True)
class ShortCut:
    """How redis-py's method becomes a command.

    Args:
        command: its name.
        least: how few positional arguments it has.
        most: how many.
        options: the parameters behind them, as far as they are known here: name, word
            on the wire, whether an int goes with it, and a group of which at most one
            may be given. Words without a number are sent first.
    """

    command: str
    least: int
    most: int
    options: tuple[tuple[str, str, bool, int], ...] = ()

    def method(self, function: Callable[..., Any]) -> _core.Method:
        """The short cut around redis-py's own ``function``."""
        return _core.Method(function, self.command, self.least, self.most, self.options)


_SET_OPTIONS = (
    ("ex", "EX", True, 0),
    ("px", "PX", True, 0),
    ("nx", "NX", False, 1),
    ("xx", "XX", False, 1),
)

SHORT_CUTS: Mapping[str, ShortCut] = {
    "delete": ShortCut("DEL", 1, _ANY),
    "exists": ShortCut("EXISTS", 1, _ANY),
    "expire": ShortCut("EXPIRE", 2, 2),
    "get": ShortCut("GET", 1, 1),
    "hdel": ShortCut("HDEL", 2, _ANY),
    "hmget": ShortCut("HMGET", 2, _ANY),
    "hset": ShortCut("HSET", 3, 3),
    "lpush": ShortCut("LPUSH", 2, _ANY),
    "mget": ShortCut("MGET", 1, _ANY),
    "rpush": ShortCut("RPUSH", 2, _ANY),
    "sadd": ShortCut("SADD", 2, _ANY),
    "set": ShortCut("SET", 2, 2, options=_SET_OPTIONS),
    "srem": ShortCut("SREM", 2, _ANY),
    "unlink": ShortCut("UNLINK", 1, _ANY),
    "zrem": ShortCut("ZREM", 2, _ANY),
}


def native_methods(base: type[Any]) -> dict[str, _core.Method]:
    """The methods, each around ``base``'s own; those that it does not have are left out."""
    return {
        name: cut.method(getattr(base, name))
        for name, cut in SHORT_CUTS.items()
        if hasattr(base, name)
    }
