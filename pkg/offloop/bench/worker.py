"""One measurement in a process of its own: ``python -m offloop.bench.worker``.

A :class:`Task` comes in on standard input as JSON, the :class:`Sample` goes
out on standard output, or ``{"error": "..."}``. The URL, which may carry a
password, is never in the arguments, where every user could read it.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

from redis.exceptions import RedisError

from .measure import Lateness, Sample, closed_loop
from .options import BenchError
from .peers import Peer, Setup, make_peer
from .workload import WORKLOADS, Workload

_WARMUP_SHARE = 0.25
_WARMUP_MOST = 0.5
_SPARE_SECS = 120.0


@dataclass(frozen=True)
class Task:
    """One measurement: a peer, how many tasks, for how many seconds, of what."""

    setup: Setup
    tasks: int
    secs: float
    workload: str = "get"
    heartbeat: bool = False


async def _checked(peer: Peer, workload: Workload) -> None:
    reply = await peer.command(workload)()
    if reply != workload.expected:
        raise BenchError(f"{workload.method} answered {reply!r} instead of {workload.expected!r}")


async def _measured(task: Task) -> Sample:
    peer = make_peer(task.setup)
    workload = WORKLOADS[task.workload]
    await peer.open()
    try:
        await _checked(peer, workload)
        sample = await closed_loop(
            peer.command(workload),
            tasks=task.tasks,
            secs=task.secs,
            warmup=min(_WARMUP_MOST, task.secs * _WARMUP_SHARE),
            heartbeat=task.heartbeat,
        )
        await _checked(peer, workload)
        return sample
    finally:
        await peer.aclose()


def _decoded(text: str) -> Task:
    fields: dict[str, Any] = json.loads(text)
    return Task(**{**fields, "setup": Setup(**fields["setup"])})


def measure(task: Task) -> Sample:
    """Run ``task`` in a new process and wait for its sample. Raises BenchError."""
    label = f"{task.setup.peer} at tasks={task.tasks}"
    try:
        done = subprocess.run(
            [sys.executable, "-m", "offloop.bench.worker"],
            input=json.dumps(asdict(task)),
            capture_output=True,
            text=True,
            timeout=task.secs * 4 + _SPARE_SECS,
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"{label} did not end in time") from None
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        last = done.stderr.strip()[-2000:]
        raise BenchError(f"{label} ended with status {done.returncode}:\n{last}") from None
    if "error" in found:
        raise BenchError(f"{label}: {found['error']}")
    late = found.pop("lateness")
    return Sample(**found, lateness=None if late is None else Lateness(**late))


def main() -> int:
    """Measure what standard input asks for."""
    task = _decoded(sys.stdin.read())
    try:
        found = asdict(asyncio.run(_measured(task)))
    except (BenchError, RedisError, OSError) as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(found))
    return 1 if "error" in found else 0


if __name__ == "__main__":
    sys.exit(main())
