"""How many workers? Throughput and p99 of calls over the number of workers, and a picture.

    python bench/workers.py [--secs 1] [--svg docs/pictures/workers.svg]

64 tasks call in a closed loop, by pools of 1 to 64 workers: functions that wait (2 ms, as
for a database on the network), queries of SQLite (by a key, each worker with a connection
of its own), and functions that compute in Python (about 0.2 ms). It prints a table; the
picture needs matplotlib (the extra `bench`).
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from offloop import Pool

WORKERS = (1, 2, 4, 8, 16, 32, 64)
TASKS = 64
ROWS = 10_000

_local = threading.local()


def wait() -> None:
    """What a query on the network is for its thread."""
    time.sleep(0.002)


def compute() -> int:
    """Hold the interpreter for about 0.2 ms."""
    total = 0
    for number in range(4000):
        total += number
    return total


def querying(path: str) -> Callable[[], object]:
    """A query by a key, on the thread's own connection."""

    def query() -> object:
        db = getattr(_local, "db", None)
        if db is None:
            db = _local.db = sqlite3.connect(path)
        return db.execute("select name from t where id = ?", (ROWS // 2,)).fetchall()

    return query


async def measure(fn: Callable[[], object], workers: int, secs: float) -> tuple[float, float]:
    """Calls a second, and the p99 of one in milliseconds."""
    took: list[float] = []
    async with Pool(workers) as pool:
        await asyncio.gather(*[pool.call(fn) for _ in range(2 * TASKS)])
        begin = time.perf_counter()
        end = begin + secs

        async def task() -> None:
            before = time.perf_counter()
            while before < end:
                await pool.call(fn)
                after = time.perf_counter()
                took.append(after - before)
                before = after

        await asyncio.gather(*[task() for _ in range(TASKS)])
        passed = time.perf_counter() - begin
    took.sort()
    return len(took) / passed, took[int(len(took) * 0.99)] * 1e3


Numbers = dict[str, list[tuple[float, float]]]


def all_numbers(secs: float) -> Numbers:
    """For each kind of call, its numbers over `WORKERS`."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/db"
        with sqlite3.connect(path) as db:
            db.execute("create table t (id integer primary key, name text)")
            db.executemany("insert into t values (?, ?)", ((i, f"n{i}") for i in range(ROWS)))
        db.close()
        kinds = {"wait 2 ms": wait, "SQLite by key": querying(path), "compute 0.2 ms": compute}
        return {
            name: [asyncio.run(measure(fn, workers, secs)) for workers in WORKERS]
            for name, fn in kinds.items()
        }


def draw(numbers: Numbers, path: Path) -> None:
    """The picture: text as text, a transparent ground, colours that both grounds bear."""
    import matplotlib  # noqa: PLC0415  # of an extra, for the picture alone

    matplotlib.use("svg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    grey = "#808890"
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "offloop",
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": grey,
        "axes.labelcolor": grey,
        "axes.edgecolor": grey,
        "xtick.color": grey,
        "ytick.color": grey,
        "grid.color": grey,
        "grid.alpha": 0.25,
    }
    with plt.rc_context(style):
        figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
        for column, (axis, title) in enumerate(
            zip(axes, ("calls a second", "p99 of a call, ms"), strict=True)
        ):
            for name, colour, mark in zip(
                numbers, ("#2f81f7", "#d29922", "#e5534b"), "os^", strict=True
            ):
                values = [pair[column] for pair in numbers[name]]
                axis.plot(WORKERS, values, color=colour, marker=mark, markersize=4, label=name)
            axis.set(xscale="log", yscale="log", title=title, xlabel="workers")
            axis.set_xticks(WORKERS, [str(count) for count in WORKERS])
            axis.minorticks_off()
            axis.grid(True)
        axes[0].legend(frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description="Throughput and p99 over the workers.")
    parser.add_argument("--secs", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--svg", type=Path, help="where to draw it")
    given = parser.parse_args()
    numbers = all_numbers(given.secs)
    print(f"{TASKS} tasks; calls/s (p99 in ms)")
    print(f"{'workers':16}" + "".join(f"{count:>17}" for count in WORKERS))
    for name, pairs in numbers.items():
        cells = [f"{rate:,.0f} ({p99:.1f})" for rate, p99 in pairs]
        print(f"{name:16}" + "".join(f"{cell:>17}" for cell in cells))
    if given.svg is not None:
        draw(numbers, given.svg)


if __name__ == "__main__":
    main()
