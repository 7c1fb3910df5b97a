"""The commands that are measured, and the keys they need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import redis

VALUE = b"offloop-0123456789"
KEY = "offloop:bench:string"
HASH = "offloop:bench:hash"
ZSET = "offloop:bench:zset"
LIST = "offloop:bench:list"
WIDE = "offloop:bench:wide"
BIG = "offloop:bench:big"
_KEYS = (KEY, HASH, ZSET, LIST, WIDE, BIG)
_ITEMS = [b"item-%d" % number for number in range(10_000)]
_FIELDS: dict[Any, Any] = {b"field-%d" % number: VALUE for number in range(1_000)}
_BYTES = b"\xa5" * 10_000_000


@dataclass(frozen=True)
class Workload:
    """One call of redis-py's API and the reply that proves it was answered.

    With ``depth``, a pipeline of so many such calls, which counts as one.
    """

    method: str
    args: tuple[object, ...]
    expected: object
    kwargs: Mapping[str, object] = field(default_factory=dict)
    depth: int = 0


WORKLOADS = {
    "get": Workload("get", (KEY,), VALUE),
    "execute": Workload("execute_command", ("GET", KEY), VALUE),
    "pipeline100": Workload("get", (KEY,), [VALUE] * 100, depth=100),
    "pipeline1000": Workload("get", (KEY,), [VALUE] * 1000, depth=1000),
    "getrange": Workload("getrange", (KEY, 0, 6), VALUE[:7]),
    "hget": Workload("hget", (HASH, "field"), VALUE),
    "mget": Workload("mget", ([KEY] * 100,), [VALUE] * 100),
    "lrange": Workload("lrange", (LIST, 0, -1), _ITEMS),
    "hgetall": Workload("hgetall", (WIDE,), _FIELDS),
    "big": Workload("get", (BIG,), _BYTES),
    "zadd": Workload("zadd", (ZSET, {"member": 2.5}), 0, {"xx": True, "ch": True}),
}


def write_keys(server: redis.Redis) -> None:
    """Write what the workloads read."""
    server.set(KEY, VALUE)
    server.hset(HASH, "field", VALUE)
    server.zadd(ZSET, {"member": 2.5})
    server.delete(LIST, WIDE)
    server.rpush(LIST, *_ITEMS)
    server.hset(WIDE, mapping=_FIELDS)
    server.set(BIG, _BYTES)


def delete_keys(server: redis.Redis) -> None:
    """Take away again what :func:`write_keys` has written."""
    server.delete(*_KEYS)
