"""What a person sees: progress while it runs, and the table at its end."""

from __future__ import annotations

import sys

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from .compare import Comparison, Entry

_PLAIN_WIDTH = 110
_CAPTION = (
    "p50, p99: of one await. CPU: of the client process, per command. ratio: ops/s to those of "
    "redis.asyncio.\nexecutor: the blocking redis-py through run_in_executor.\n"
)


def make_console() -> Console:
    """A console on standard output; without a terminal it is wide and plain."""
    if sys.stdout.isatty():
        return Console()
    return Console(width=_PLAIN_WIDTH, no_color=True, highlight=False)


class ProgressBars:
    """A bar over all rounds and one over the running round; plain lines without a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description:<46}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._all = TaskID(0)
        self._round = TaskID(0)
        self._rounds = 0
        self._measurements = 0
        self._at = 0

    def __enter__(self) -> ProgressBars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, rounds: int, measurements: int) -> None:
        self._rounds, self._measurements = rounds, measurements
        self._all = self._bars.add_task("all rounds", total=rounds * measurements)
        self._round = self._bars.add_task("round 1", total=measurements)

    def step(self, number: int, entry: Entry) -> None:
        if self._at == self._measurements:
            self._at = 0
            self._bars.reset(self._round)
        text = f"round {number}: {entry}"
        self._bars.update(self._round, description=text)

    def done(self, number: int, entry: Entry) -> None:
        self._at += 1
        self._bars.advance(self._all)
        self._bars.advance(self._round)
        if not self._console.is_terminal:
            rate = entry.rounds[-1].ops_per_s
            print(
                f"round {number} of {self._rounds}, {self._at:>2} of {self._measurements}: "
                f"{entry}: {rate:,.0f} ops/s",
                flush=True,
            )


def make_table(comparison: Comparison) -> Table:
    """Operations per second, latencies, CPU and ratio: one line for each peer."""
    options = comparison.options
    rounds = "1 round" if options.rounds == 1 else f"{options.rounds} interleaved rounds"
    table = Table(
        title=f"await r.get(key): median of {rounds} of {options.secs:g} s",
        caption=_CAPTION + str(comparison.machine),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("tasks", justify="right", no_wrap=True)
    table.add_column("client", no_wrap=True)
    for name in ("ops/s", "p50 us", "p99 us", "CPU us", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    for at, tasks in enumerate(options.tasks):
        if at:
            table.add_section()
        for entry in comparison.entries:
            if entry.tasks == tasks:
                table.add_row(*_cells(comparison, entry), style=_style(entry))
    return table


def _style(entry: Entry) -> str:
    return "bold" if entry.peer == "offloop" else ""


def _cells(comparison: Comparison, entry: Entry) -> list[str]:
    ratio = comparison.ratio(entry)
    return [
        f"{entry.tasks:,}",
        entry.label,
        f"{entry.median('ops_per_s'):,.0f}",
        f"{entry.median('p50_us'):,.0f}",
        f"{entry.median('p99_us'):,.0f}",
        f"{entry.median('cpu_us'):,.2f}",
        "-" if ratio is None else f"{ratio:.2f}x",
    ]
