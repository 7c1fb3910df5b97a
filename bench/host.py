"""What the host of a virtual machine takes for others while something is measured.

A client and its server that answer each other on two CPUs stand still together whenever
the host has one of the two elsewhere, and then it is the host that is measured: with 40 %
of the time stolen GETs at 50 tasks fell to a fifth, and those of a client that keeps one
CPU busy with itself by less than half. So each section says how much was stolen.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

Found = TypeVar("Found")

_STAT = Path("/proc/stat")
_STOLEN = 7  # of user, nice, system, idle, iowait, irq, softirq, steal; guests are in user


@dataclass(frozen=True)
class CpuTime:
    """Of all CPUs since boot, in clock ticks."""

    stolen: int
    total: int

    @classmethod
    def now(cls) -> CpuTime:
        """Zeros where the system does not tell."""
        try:
            line = _STAT.read_text(encoding="ascii").split("\n", 1)[0]
        except OSError:
            return cls(0, 0)
        ticks = [int(word) for word in line.split()[1 : _STOLEN + 2]]
        return cls(ticks[_STOLEN] if len(ticks) > _STOLEN else 0, sum(ticks))

    def stolen_since(self, before: CpuTime) -> float:
        """The share of the time since then that the host took."""
        return (self.stolen - before.stolen) / max(1, self.total - before.total)


@dataclass
class Watch:
    """Keeps account of it, measurement by measurement."""

    clock: Callable[[], CpuTime] = CpuTime.now
    shares: list[float] = field(default_factory=list)

    def measured(self, measurement: Callable[[], Found]) -> Found:
        """What the measurement finds."""
        before = self.clock()
        found = measurement()
        self.shares.append(self.clock().stolen_since(before))
        return found

    def __str__(self) -> str:
        """The median and the most, for the report."""
        shares = self.shares or [0.0]
        return f"{statistics.median(shares):.1%}, {max(shares):.1%} at most"
