"""What a native short cut is worth: ours and redis-py's own method on one connection.

Both clients share a connection pool, hence the channel, and take turns of a tenth of
a second in one process, so that what else the machine does meets both alike. The
ratio is the median over the pairs of turns.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from typing import Any

import redis.asyncio as reference
from offloop import redis as offloop_redis
from offloop.bench.options import BenchError
from offloop.redis.methods import SHORT_CUTS, ShortCut

_TURN_SECS = 0.1
_WARMUP_TURNS = 2
_TEXT = "offloop-0123456789"
_KEYS = ("ap", "few", "h", "l", "n", "s", "st", "x", "z")

#: Methods that saved too little to be in the table when they were measured.
CANDIDATES: dict[str, ShortCut] = {
    "hget": ShortCut("HGET", 2, 2),
    "hgetall": ShortCut("HGETALL", 1, 1),
    "incr": ShortCut("INCRBY", 2, 2),
    "lrange": ShortCut("LRANGE", 3, 3),
    "sismember": ShortCut("SISMEMBER", 2, 2),
    "ttl": ShortCut("TTL", 1, 1),
    "zscore": ShortCut("ZSCORE", 2, 2),
}

#: Calls of each method, as they stand in programs.
CALLS: tuple[str, ...] = (
    "get('s')",
    "set('s', 'v')",
    "set('s', 'v', ex=1000)",
    "delete('none')",
    "unlink('none')",
    "exists('s')",
    "expire('s', 1000)",
    "mget('s', 'n')",
    "hset('h', 'f', 'v')",
    "hmget('h', 'f', 'g')",
    "hdel('h', 'none')",
    "lpush('l', 'x')",
    "rpush('l', 'x')",
    "sadd('st', 'a')",
    "srem('st', 'none')",
    "zrem('z', 'none')",
    "xread({'x': '$'})",
    "xreadgroup('g', 'c', {'x': '>'}, count=1)",
    "hget('h', 'f')",
    "hgetall('h')",
    "incr('n', 1)",
    "lrange('few', 0, -1)",
    "sismember('st', 'a')",
    "ttl('s')",
    "zscore('z', 'm')",
)


class _Native(offloop_redis.Redis):
    """With the candidates, too."""


for _name, _cut in CANDIDATES.items():
    setattr(_Native, _name, _cut.method(getattr(reference.Redis, _name)))


class _Own(offloop_redis.Redis):
    """redis-py's own methods on the native execute_command."""


for _name in SHORT_CUTS:
    setattr(_Own, _name, getattr(reference.Redis, _name))


@dataclass(frozen=True)
class Comparison:
    """A call, how many tasks make it, and how many pairs of turns."""

    url: str
    call: str
    tasks: int
    turns: int


class _Gate:
    open = True


_Body = Callable[[_Gate], Coroutine[Any, Any, int]]


def _task(client: Any, call: str) -> _Body:
    """A task that makes the call as a program would, not through a variable."""
    names: dict[str, Any] = {"client": client}
    exec(
        "async def task(gate):\n"
        "    done = 0\n"
        "    while gate.open:\n"
        f"        await client.{call}\n"
        "        done += 1\n"
        "    return done\n",
        names,
    )
    body: _Body = names["task"]
    return body


async def _turn(body: _Body, tasks: int) -> float:
    gate = _Gate()
    running = [asyncio.create_task(body(gate)) for _ in range(tasks)]
    began = time.perf_counter()
    await asyncio.sleep(_TURN_SECS)
    gate.open = False
    done = sum([await each for each in running])
    return done / (time.perf_counter() - began)


async def _prepare(client: Any) -> None:
    await client.delete(*_KEYS)
    await client.set("s", _TEXT)
    await client.hset("h", mapping={"f": _TEXT, "g": _TEXT})
    await client.rpush("few", "a", "b", "c")
    await client.sadd("st", "a", "b", "c")
    await client.zadd("z", {"m": 2.5})
    await client.xgroup_create("x", "g", mkstream=True)


async def _compare(comparison: Comparison) -> dict[str, float]:
    async with _Native.from_url(comparison.url) as native:
        own = _Own(connection_pool=native.connection_pool)
        await _prepare(native)
        ours, theirs = (_task(client, comparison.call) for client in (native, own))
        pairs = []
        for turn in range(comparison.turns + _WARMUP_TURNS):
            pair = (
                await _turn(ours, comparison.tasks),
                await _turn(theirs, comparison.tasks),
            )
            if turn >= _WARMUP_TURNS:
                pairs.append(pair)
        await native.delete(*_KEYS)
    return {
        "native": statistics.median(pair[0] for pair in pairs),
        "own": statistics.median(pair[1] for pair in pairs),
        "ratio": statistics.median(pair[0] / pair[1] for pair in pairs),
    }


def compare(comparison: Comparison) -> dict[str, float]:
    """Run ``comparison`` in a new process; ops/s of both, and the ratio. Raises BenchError."""
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(asdict(comparison)),
        capture_output=True,
        text=True,
        timeout=comparison.turns * _TURN_SECS * 10 + 60,
        check=False,
    )
    if done.returncode != 0:
        raise BenchError(f"{comparison.call}:\n{done.stderr.strip()[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_compare(Comparison(**json.loads(sys.stdin.read()))))))
