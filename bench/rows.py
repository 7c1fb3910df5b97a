"""What the suite prints: one row for each target, and every number behind it."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from host import Watch

#: One measurement's numbers, by name: ops_per_s, p50_us ...
Numbers = dict[str, float]


@dataclass(frozen=True)
class Row:
    """A target and what was seen. ``ok`` is None where there is no target."""

    name: str
    target: str
    seen: str
    ok: bool | None = None

    def __str__(self) -> str:
        verdict = {True: "ok", False: "MISS", None: ""}[self.ok]
        return f"{self.name:<58} {self.target:>22}   {self.seen:<34} {verdict}".rstrip()


@dataclass
class Report:
    """Rows as they come, and the raw numbers of all rounds for a file."""

    rows: list[Row] = field(default_factory=list)
    numbers: dict[str, object] = field(default_factory=dict)

    def title(self, text: str) -> None:
        """Begin a section."""
        print(f"\n{text}", flush=True)

    def at_least(self, name: str, seen: float, target: float, note: str = "") -> None:
        """``seen`` is a ratio that must not be smaller than ``target``."""
        self._add(Row(name, f">= {target:g}x", f"{seen:.2f}x {note}".rstrip(), seen >= target))

    def at_most(self, name: str, seen: float, target: float, unit: str, note: str = "") -> None:
        """``seen`` must not be greater than ``target``, both in ``unit``."""
        shown = f"{seen:,.2f}{unit} {note}".rstrip()
        self._add(Row(name, f"<= {target:,.4g}{unit}", shown, seen <= target))

    def note(self, name: str, seen: str) -> None:
        """A number without a target."""
        self._add(Row(name, "", seen))

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        print(f"  {row}", flush=True)


@dataclass
class Rounds:
    """The numbers of one section: by measurement, in the order of the rounds."""

    found: dict[str, list[Numbers]]

    def median(self, name: str, number: str) -> float:
        """The median over the rounds of one number of one measurement."""
        return statistics.median(numbers[number] for numbers in self.found[name])

    def ratio(self, name: str, other: str, number: str = "ops_per_s") -> float:
        """The median of one measurement over that of another."""
        return self.median(name, number) / self.median(other, number)


def interleaved(
    rounds: int, measurements: Mapping[str, Callable[[], Numbers]], watch: Watch
) -> Rounds:
    """Run every measurement once in each round, while ``watch`` looks on."""
    found: dict[str, list[Numbers]] = {name: [] for name in measurements}
    for number in range(1, rounds + 1):
        for name, measurement in measurements.items():
            if sys.stdout.isatty():
                print(f"\r    round {number} of {rounds}: {name:<50}", end="", flush=True)
            found[name].append(watch.measured(measurement))
    if sys.stdout.isatty():
        print("\r" + " " * 72 + "\r", end="", flush=True)
    return Rounds(found)
