"""Calls of the methods with a native short cut, for test_native_methods.py.

PLAIN and WITH_OPTIONS take the short cut, ODD must reach redis-py's own function.
"""

from __future__ import annotations

import datetime
import socket
from collections import OrderedDict
from enum import Enum
from typing import Any

import redis
from offloop.redis.methods import SHORT_CUTS
from servers import Server

NAMES = sorted(SHORT_CUTS)


class Name(str, Enum):
    """A str that is not exactly str."""

    KEY = "s"


# Every method with arguments that it takes the short cut for; replies of many kinds.
PLAIN: dict[str, list[tuple[Any, ...]]] = {
    "delete": [("s",), ("s", "n", "none"), tuple(f"k{i}" for i in range(40))],
    "exists": [("s",), ("s", "s", "none")],
    "expire": [("s", 100), ("none", 100), ("s", -1), ("s", 1.5), ("s", "x")],
    "get": [("s",), (b"s",), (7,), (1.5,), ("none",), ("h",), ("",), ("\u00e9\u65e5",)],
    "hdel": [("h", "f"), ("h", "f", "g", b"none"), ("s", "f")],
    "hmget": [("h", "f"), ("h", "f", "none", "g")],
    "hset": [("h", "f", "w"), ("h", 1, 2.5), ("new", b"\xff", b"")],
    "lpush": [("l", "x"), ("l", 1, 2.5, b"\x00"), ("s", "x")],
    "mget": [("s",), ("s", "none", b"n"), (7, 8)],
    "rpush": [("l", "x"), ("l", *range(30))],
    "sadd": [("st", "new"), ("st", "a", "b", 3)],
    "set": [("s", "v"), (b"s", b"\xff\x00"), ("s", 5), ("s", 2.5), ("h", "v"), ("s", -(2**80))],
    "srem": [("st", "a"), ("st", "a", "none")],
    "unlink": [("s",), ("s", "n", "none")],
    "xread": [
        ({"x": "0"},),
        ({b"x": b"0-0", "none": 0, "y": 5.5},),
        ({"s": "0"},),
        ({"x": "$"},),
        ({f"x{i}": "0" for i in range(8)},),
    ],
    "xreadgroup": [
        ("g", "c", {"x": ">"}),
        (b"g", 7, {"x": "0", "y": ">"}),
        ("none", "c", {"x": ">"}),
        ("COUNT", "BLOCK", {"x": ">"}),
    ],
    "zrem": [("z", "m"), ("z", "m", "none")],
}

# The same with the options that are known.
WITH_OPTIONS: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "set": [
        (("s", "v"), {"ex": 100}),
        (("s", "v"), {"px": 100_000}),
        (("s", "v", 100), {}),
        (("s", "v", None, 100_000), {}),
        (("s", "v", None, None, True), {}),
        (("s", "v", None, None, False, True), {}),
        (("s", "v"), {"nx": True}),
        (("none", "v"), {"nx": True}),
        (("none", "v"), {"xx": True}),
        (("none", "v"), {"xx": True, "nx": False}),
        (("none", "v"), {"nx": True, "ex": 100}),
        (("none", "v"), {"ex": 100, "nx": True}),
        (("s", "v", 100), {"xx": True}),
        (("s", "v"), {"ex": None, "px": None, "nx": False, "xx": False}),
        (("s", "v"), {"ex": 0}),
        (("s", "v"), {"ex": -5}),
        (("s", "v"), {"ex": 2**70}),
    ],
    "xread": [
        (({"x": "0"},), {"count": 1}),
        (({"x": "0"}, 2), {}),
        (({"x": "0"}, None), {"block": None}),
        (({"x": "0"},), {"count": 2**70}),
    ],
    "xreadgroup": [
        (("g", "c", {"x": ">"}), {"count": 1}),
        (("g", "c", {"x": ">"}, 1), {"noack": True}),
        (("g", "c", {"x": ">"}, None, None, True), {}),
        (("g", "c", {"x": ">"}), {"noack": False, "block": None}),
    ],
}

# The same, on connections of their own: the server may wait.
WAITING: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "xread": [
        (({"x": "0", "y": "$"},), {"count": 1, "block": 10}),
        (({"y": "$"}, 3, 1), {}),
        (({"x": "0"},), {"block": 0}),
    ],
    "xreadgroup": [
        (("g", "c", {"x": ">"}), {"count": 1, "block": 10, "noack": True}),
        (("g", "c", {"y": ">"}, 2, 1), {}),
        (("g", "c", {"x": ">"}), {"block": 0}),
    ],
}

# What redis-py's own function must see: other types, other counts, keywords.
ODD: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "delete": [((), {}), ((None,), {}), ((["a"],), {}), (("s", bytearray(b"n")), {})],
    "exists": [((), {}), (("s", None), {})],
    "expire": [
        (("s", datetime.timedelta(minutes=1)), {}),
        (("s", 100), {"nx": True}),
        (("s", 100, True), {}),
        (("s", None), {}),
    ],
    "get": [
        ((), {}),
        (("s", "s"), {}),
        ((), {"name": "s"}),
        (("s",), {"name": "s"}),
        ((), {"key": "s"}),
        ((None,), {}),
        ((True,), {}),
        ((Name.KEY,), {}),
        ((bytearray(b"s"),), {}),
        ((memoryview(b"s"),), {}),
        ((["s"],), {}),
        (("\udc80",), {}),
    ],
    "hmget": [(("h", ["f", "g"]), {}), (("h", ["f"], "g"), {}), (("h",), {})],
    "hset": [
        (("h",), {"mapping": {"a": 1, "b": 2}}),
        (("h", "f", None), {}),
        (("h",), {}),
        (("h", "f", "v", {"a": 1}), {}),
        (("h", None, None, {"a": 1}), {}),
        (("h",), {"items": ["a", 1]}),
    ],
    "lpush": [(("l",), {}), (("l", ["x"]), {})],
    "mget": [((["s", "n"],), {}), (([],), {}), ((("s",), "n"), {}), ((iter(("s", "n")),), {})],
    "sadd": [(("st",), {}), (("st", {"x"}), {})],
    "set": [
        (("s", "v"), {"get": True}),
        (("s", "v"), {"ex": 100, "get": True}),
        (("s", "v"), {"keepttl": True}),
        (("s", "v"), {"ex": 1, "px": 1}),
        (("s", "v"), {"nx": True, "xx": True}),
        (("s", "v", 1), {"ex": 1}),
        (("s", "v", None, None, False, False, True), {}),
        (("s", "v"), {"ex": 1.5}),
        (("s", "v"), {"ex": "100"}),
        (("s", "v"), {"ex": True}),
        (("s", "v"), {"nx": 1}),
        (("s",), {"value": "v"}),
        (("s",), {"value": "v", "ex": 100}),
        (("s", "v"), {"name": "s"}),
        (("s", "v"), {"ex": datetime.timedelta(minutes=1)}),
        (("s", None), {}),
        (("s", False), {}),
        (("s",), {}),
        (("s", "v"), {"unknown": 1}),
    ],
    "xread": [
        ((), {}),
        (({},), {}),
        (("x",), {}),
        (({"x": None},), {}),
        (({("x",): "0"},), {}),
        (({Name.KEY: "0"},), {}),
        (({f"x{i}": "0" for i in range(9)},), {}),
        ((), {"streams": {"x": "0"}}),
        (({"x": "0"},), {"streams": {"x": "0"}}),
        (({"x": "0"},), {"count": 0}),
        (({"x": "0"},), {"count": -(2**70)}),
        (({"x": "0"},), {"count": True}),
        (({"x": "0"},), {"count": "1"}),
        (({"x": "0"},), {"block": -1}),
        (({"x": "0"},), {"max_count": 5}),
        (({"x": "0"}, 1, None, None, None, 1), {}),
        ((OrderedDict(x="0"),), {}),
    ],
    "xreadgroup": [
        (("g", "c"), {}),
        (("g", "c", {}), {}),
        (("g", None, {"x": ">"}), {}),
        (("g", "c", {"x": ">"}), {"noack": 1}),
        (("g", "c", {"x": ">"}), {"claim_min_idle_time": 0}),
        (("g", "c", {"x": ">"}), {"count": 0}),
        (("g",), {"consumername": "c", "streams": {"x": ">"}}),
    ],
}


def short_calls(name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The calls of a method that take the short cut."""
    return [(args, {}) for args in PLAIN[name]] + WITH_OPTIONS.get(name, [])


def least_args(name: str, key: str) -> tuple[Any, ...]:
    """The fewest arguments of a method's short cut, the first key being ``key``."""
    cut = SHORT_CUTS[name]
    if cut.mapped is not None:
        return (*("g" for _ in range(cut.least - 1)), {key: "0"})
    return (key, *(str(number) for number in range(2, cut.least + 1)))


class Monitor:
    """What the server executes, line by line as MONITOR gives it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.marks = 0
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(server.path)
        self.file = self.socket.makefile("rb")
        self.socket.sendall(b"MONITOR\r\n")
        assert self.file.readline() == b"+OK\r\n"

    def seen(self, port: int | None = None) -> list[bytes]:
        """The commands that came over TCP since the last look, from our port or any."""
        self.marks += 1
        mark = f'"mark-{self.marks}"'.encode()
        self.server.cmd("ECHO", f"mark-{self.marks}")
        found = []
        while mark not in (line := self.file.readline()):
            head, _, rest = line.partition(b"] ")
            if head.endswith(f":{port}".encode()) if port else b"unix:" not in head:
                found.append(rest)
        return found

    def close(self) -> None:
        self.file.close()
        self.socket.close()


def seed(server: Server) -> None:
    commands = (
        ("FLUSHALL",),
        ("MSET", "s", "va\u00e9", "n", "10", "7", "seven", "1.5", "float"),
        ("HSET", "h", "f", "v", "g", "w", "i", "3"),
        ("RPUSH", "l", "a", "b", "c", "d"),
        ("SADD", "st", "a", "b"),
        ("ZADD", "z", "2.5", "m"),
        ("SET", "t", "x", "EX", "1000"),
        ("XADD", "x", "1-1", "f", "v"),
        ("XADD", "x", "1-2", "f", "w"),
        ("XADD", "x", "2-1", "f", "v", "g", "w"),
        ("XGROUP", "CREATE", "x", "g", "0"),
        ("XGROUP", "CREATE", "y", "g", "0", "MKSTREAM"),
    )
    with redis.Redis(**server.unix) as client, client.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        pipe.execute()
