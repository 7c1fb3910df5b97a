"""Small commands beside large replies of the same client, in a process of its own."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from apart import apart
from offloop.bench.measure import percentile
from offloop.bench.peers import Setup, make_peer
from offloop.bench.workload import WORKLOADS


@dataclass(frozen=True)
class Mix:
    """``setup`` is the fields of a Setup; so many tasks GET while one reads 10 MB values."""

    setup: dict[str, Any]
    tasks: int
    secs: float


async def _loop(command: Callable[[], Awaitable[object]], until: float) -> list[float]:
    """One command after the other; how long each took, in seconds."""
    took = []
    began = time.perf_counter()
    while began < until:
        await command()
        now = time.perf_counter()
        took.append(now - began)
        began = now
    return took


async def _mixed(task: Mix) -> dict[str, float]:
    peer = make_peer(Setup(**task.setup))
    await peer.open()
    try:
        small, large = (peer.command(WORKLOADS[name]) for name in ("get", "big"))
        until = time.perf_counter() + task.secs
        first, *others = await asyncio.gather(
            _loop(large, until), *(_loop(small, until) for _ in range(task.tasks))
        )
    finally:
        await peer.aclose()
    latencies = sorted(secs for one in others for secs in one)
    return {
        "p99_ms": percentile(latencies, 0.99) * 1e3,
        "gets_per_s": len(latencies) / task.secs,
        "bigs_per_s": len(first) / task.secs,
    }


def mix(task: Mix) -> dict[str, float]:
    """Run ``task`` in a new process. Raises BenchError."""
    what = f"the mix of {task.setup['peer']}"
    found: dict[str, float] = apart(__file__, task, task.secs * 4 + 120, what)
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_mixed(Mix(**json.loads(sys.stdin.read()))))))
