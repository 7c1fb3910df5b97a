"""The command methods that have a native short cut.

Each row of the table is a method of redis-py that hands its arguments on as they
are, with words between them at most. A method is here only if
``python bench/run.py --only methods`` shows at least 1.25 times the throughput of
redis-py's own with 1000 tasks on the same connection; ``get``, the one called most, is
at 1.1 to 1.3 there. One that takes a fixed number of arguments and hands them on at once
saves too little: the candidates in bench/methods.py.
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
class Option:
    """A parameter behind the arguments, as far as it is known here.

    Args:
        name: the parameter's.
        word: on the wire.
        place: of the word among those of the options.
        group: of which at most one may be given.
        least: the smallest number that goes with the word; None where there is none,
            and the parameter is a bool.
    """

    name: str
    word: str
    place: int
    group: int
    least: int | None = None


@dataclass(frozen=True)
class ShortCut:
    """How redis-py's method becomes a command.

    Args:
        command: its name.
        least: how few positional arguments it has.
        most: how many.
        options: the parameters behind them, in their order.
        prefix: a word before the arguments.
        mapped: a word before the keys and then the values of the last argument, a dict.
    """

    command: str
    least: int
    most: int
    options: tuple[Option, ...] = ()
    prefix: str | None = None
    mapped: str | None = None

    def method(self, function: Callable[..., Any]) -> _core.Method:
        """The short cut around redis-py's own ``function``."""
        options = tuple(
            (each.name, each.word, each.least is not None, each.group, each.least or 0, each.place)
            for each in self.options
        )
        return _core.Method(
            function, self.command, self.least, self.most, options, self.prefix, self.mapped
        )


_INT = -sys.maxsize - 1
_SET_OPTIONS = (
    Option("ex", "EX", 2, 0, _INT),
    Option("px", "PX", 3, 0, _INT),
    Option("nx", "NX", 0, 1),
    Option("xx", "XX", 1, 1),
)
_XREAD_OPTIONS = (
    Option("count", "COUNT", 1, 0, 1),
    Option("block", "BLOCK", 0, 1, 0),
)
_XREADGROUP_OPTIONS = (
    Option("count", "COUNT", 0, 0, 1),
    Option("block", "BLOCK", 1, 1, 0),
    Option("noack", "NOACK", 2, 2),
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
    "xread": ShortCut("XREAD", 1, 1, _XREAD_OPTIONS, mapped="STREAMS"),
    "xreadgroup": ShortCut(
        "XREADGROUP", 3, 3, _XREADGROUP_OPTIONS, prefix="GROUP", mapped="STREAMS"
    ),
    "zrem": ShortCut("ZREM", 2, _ANY),
}


def native_methods(base: type[Any]) -> dict[str, _core.Method]:
    """The methods, each around ``base``'s own; those that it does not have are left out."""
    return {
        name: cut.method(getattr(base, name))
        for name, cut in SHORT_CUTS.items()
        if hasattr(base, name)
    }
