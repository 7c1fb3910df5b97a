"""The command methods that have a native short cut.

Each row of the table is a method of redis-py that hands its arguments on as they
are. A method is here only if ``python bench/run.py --only methods`` shows at
least 1.25 times the throughput of redis-py's own on the same client.
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
        last: what the last one is where it is left out (``least`` is one less then).
        options: the parameters behind them, as far as they are known here: name, word
            on the wire, whether an int goes with it, and a group of which at most one
            may be given. Words without a number are sent first.
    """

    command: str
    least: int
    most: int
    last: int | None = None
    options: tuple[tuple[str, str, bool, int], ...] = ()

    def method(self, function: Callable[..., Any]) -> _core.Method:
        """The short cut around redis-py's own ``function``."""
        last = {} if self.last is None else {"last": self.last}
        return _core.Method(
            function, self.command, self.least, self.most, options=self.options, **last
        )


_SET_OPTIONS = (
    ("ex", "EX", True, 0),
    ("px", "PX", True, 0),
    ("nx", "NX", False, 1),
    ("xx", "XX", False, 1),
)

SHORT_CUTS: Mapping[str, ShortCut] = {
    "append": ShortCut("APPEND", 2, 2),
    "decr": ShortCut("DECRBY", 1, 2, 1),
    "decrby": ShortCut("DECRBY", 1, 2, 1),
    "delete": ShortCut("DEL", 1, _ANY),
    "exists": ShortCut("EXISTS", 1, _ANY),
    "expire": ShortCut("EXPIRE", 2, 2),
    "get": ShortCut("GET", 1, 1),
    "getdel": ShortCut("GETDEL", 1, 1),
    "hdel": ShortCut("HDEL", 2, _ANY),
    "hexists": ShortCut("HEXISTS", 2, 2),
    "hget": ShortCut("HGET", 2, 2),
    "hgetall": ShortCut("HGETALL", 1, 1),
    "hincrby": ShortCut("HINCRBY", 2, 3, 1),
    "hmget": ShortCut("HMGET", 2, _ANY),
    "hset": ShortCut("HSET", 3, 3),
    "incr": ShortCut("INCRBY", 1, 2, 1),
    "incrby": ShortCut("INCRBY", 1, 2, 1),
    "llen": ShortCut("LLEN", 1, 1),
    "lpop": ShortCut("LPOP", 1, 2),
    "lpush": ShortCut("LPUSH", 2, _ANY),
    "lrange": ShortCut("LRANGE", 3, 3),
    "mget": ShortCut("MGET", 1, _ANY),
    "rpop": ShortCut("RPOP", 1, 2),
    "rpush": ShortCut("RPUSH", 2, _ANY),
    "sadd": ShortCut("SADD", 2, _ANY),
    "scard": ShortCut("SCARD", 1, 1),
    "set": ShortCut("SET", 2, 2, options=_SET_OPTIONS),
    "setnx": ShortCut("SETNX", 2, 2),
    "sismember": ShortCut("SISMEMBER", 2, 2),
    "smembers": ShortCut("SMEMBERS", 1, 1),
    "srem": ShortCut("SREM", 2, _ANY),
    "ttl": ShortCut("TTL", 1, 1),
    "unlink": ShortCut("UNLINK", 1, _ANY),
    "zincrby": ShortCut("ZINCRBY", 3, 3),
    "zrem": ShortCut("ZREM", 2, _ANY),
    "zscore": ShortCut("ZSCORE", 2, 2),
}


def native_methods(base: type[Any]) -> dict[str, _core.Method]:
    """The methods, each around ``base``'s own; those that it does not have are left out."""
    return {
        name: cut.method(getattr(base, name))
        for name, cut in SHORT_CUTS.items()
        if hasattr(base, name)
    }
