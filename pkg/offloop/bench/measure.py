"""The closed loop: N tasks, each awaiting one command after the other.

A task that has its reply sends its next command at once, so that N commands
are outstanding all the time. Reading the clock twice costs a tenth of a
native command, so with many tasks every eighth command is timed (each task
begins at another one), with few tasks every command.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

Command = Callable[[], Awaitable[object]]

_TIMED_ALL_BELOW = 8
_SAMPLE_MASK = 7


@dataclass(frozen=True)
class Lateness:
    """How late a 1 ms timer of the same loop was, in milliseconds."""

    p50_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True)
class Sample:
    """What one measurement has shown. Latencies and CPU are in microseconds.

    ``cpu_us`` is the client process's user and system time per command, all
    its threads included.
    """

    ops: int
    secs: float
    ops_per_s: float
    p50_us: float
    p99_us: float
    cpu_us: float
    lateness: Lateness | None = None


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which ``share`` (0 to 1) of the ascending ``ordered`` lies."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


class _Gate:
    """Open while the tasks shall go on."""

    __slots__ = ("open",)

    def __init__(self) -> None:
        self.open = True

    def close(self) -> None:
        self.open = False


class Heartbeat:
    """A timer that sets itself again every millisecond and notes how late it ran."""

    def __init__(self, loop: asyncio.AbstractEventLoop, period: float = 0.001) -> None:
        self._loop = loop
        self._period = period
        self._late: list[float] = []
        self._due = loop.time() + period
        self._handle = loop.call_at(self._due, self._beat)

    def _beat(self) -> None:
        now = self._loop.time()
        self._late.append(now - self._due)
        self._due = now + self._period
        self._handle = self._loop.call_at(self._due, self._beat)

    def stop(self) -> Lateness:
        """End the beat and say how late it was."""
        self._handle.cancel()
        # A beat that never came is late by as much as has passed since it was due.
        self._late.append(max(0.0, self._loop.time() - self._due))
        late = sorted(self._late)
        return Lateness(percentile(late, 0.5) * 1e3, percentile(late, 0.99) * 1e3, late[-1] * 1e3)


async def _task(
    command: Command, gate: _Gate, phase: int, mask: int, record: Callable[[float], None]
) -> int:
    clock = time.perf_counter
    turn = phase
    while gate.open:
        if turn & mask:
            await command()
        else:
            began = clock()
            await command()
            record(clock() - began)
        turn += 1
    return turn - phase


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@dataclass(frozen=True)
class _Storm:
    """How many commands were answered, in what time and with what CPU time."""

    ops: int
    secs: float
    cpu: float


async def _storm(
    command: Command, tasks: int, secs: float, record: Callable[[float], None]
) -> _Storm:
    gate = _Gate()
    loop = asyncio.get_running_loop()
    mask = _SAMPLE_MASK if tasks >= _TIMED_ALL_BELOW else 0
    running = [
        loop.create_task(_task(command, gate, index, mask, record)) for index in range(tasks)
    ]
    # No task has run yet: making a hundred thousand of them is not what is measured.
    loop.call_later(secs, gate.close)
    cpu = _cpu_seconds()
    began = time.perf_counter()
    ops = sum([await one for one in running])
    return _Storm(ops, time.perf_counter() - began, _cpu_seconds() - cpu)


async def closed_loop(
    command: Command, *, tasks: int, secs: float, warmup: float, heartbeat: bool = False
) -> Sample:
    """Measure ``command`` with ``tasks`` tasks for about ``secs`` seconds.

    The time runs until the last reply is there, so every command that counts
    was answered. ``heartbeat`` adds the lateness of a timer on the same loop.
    """
    latencies: list[float] = []
    await _storm(command, tasks, warmup, latencies.append)
    latencies.clear()
    gc.collect()
    beat = Heartbeat(asyncio.get_running_loop()) if heartbeat else None
    storm = await _storm(command, tasks, secs, latencies.append)
    lateness = beat.stop() if beat is not None else None
    latencies.sort()
    return Sample(
        ops=storm.ops,
        secs=storm.secs,
        ops_per_s=storm.ops / storm.secs,
        p50_us=percentile(latencies, 0.5) * 1e6,
        p99_us=percentile(latencies, 0.99) * 1e6,
        cpu_us=storm.cpu / storm.ops * 1e6,
        lateness=lateness,
    )
