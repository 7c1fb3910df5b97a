"""Interleaved rounds over all peers, and the medians of them.

A round measures every peer at every number of tasks once, then the next round
begins: what the machine does meanwhile (another process, a warmer CPU) meets
all peers alike and does not pass for a difference between them.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Protocol

import redis
from redis.exceptions import RedisError

from .measure import Sample
from .options import BASELINE, BenchError, Options, redacted
from .peers import Setup
from .server import PrivateServer
from .worker import Task, measure
from .workload import delete_keys, write_keys

_DISTRIBUTIONS = ("offloop", "redis", "hiredis", "coredis", "valkey-glide")


@dataclass
class Entry:
    """A peer at one number of tasks: its rounds, in order."""

    peer: str
    label: str
    workers: int | None
    tasks: int
    rounds: list[Sample] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.label}, {self.tasks:,} {'task' if self.tasks == 1 else 'tasks'}"

    def median(self, name: str) -> float:
        """The median over the rounds of one field of :class:`Sample`."""
        values: list[float] = [getattr(sample, name) for sample in self.rounds]
        return statistics.median(values)


@dataclass(frozen=True)
class Machine:
    """Where the numbers were seen."""

    system: str
    cpu: str
    cpus: int
    python: str
    server: str
    versions: dict[str, str]

    def __str__(self) -> str:
        shown = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return (
            f"{self.cpu}, {self.cpus} CPUs, {self.system}, Python {self.python}, "
            f"Redis {self.server}; {shown}"
        )


@dataclass(frozen=True)
class Comparison:
    """Everything that was measured."""

    options: Options
    url: str
    machine: Machine
    entries: list[Entry]

    def ratio(self, entry: Entry) -> float | None:
        """``entry``'s throughput over redis.asyncio's at as many tasks, if that took part."""
        for other in self.entries:
            if other.peer == BASELINE and other.tasks == entry.tasks:
                return entry.median("ops_per_s") / other.median("ops_per_s")
        return None

    def as_json(self) -> dict[str, object]:
        """All rounds, for a file. Holds no password."""
        options = asdict(self.options)
        for name in ("url", "json", "plot"):
            del options[name]
        return {
            "url": self.url,
            "machine": asdict(self.machine),
            "options": options,
            "results": [self._entry_json(entry) for entry in self.entries],
        }

    def _entry_json(self, entry: Entry) -> dict[str, object]:
        names = ("ops_per_s", "p50_us", "p99_us", "cpu_us")
        return {
            "peer": entry.peer,
            "label": entry.label,
            "workers": entry.workers,
            "tasks": entry.tasks,
            "median": {name: entry.median(name) for name in names},
            "ratio": self.ratio(entry),
            "rounds": [asdict(sample) for sample in entry.rounds],
        }


class Progress(Protocol):
    """Is told what goes on."""

    def begin(self, rounds: int, measurements: int) -> None:
        """``measurements`` in each of ``rounds`` are to come."""

    def step(self, number: int, entry: Entry) -> None:
        """Round ``number`` (from 1) is about to measure ``entry``."""

    def done(self, number: int, entry: Entry) -> None:
        """Round ``number`` of ``entry`` is over; its last sample is the newest."""


def _entries(options: Options) -> list[Entry]:
    found: list[Entry] = []
    for tasks in options.tasks:
        for peer in options.peers:
            if peer == "offloop":
                for workers in options.workers:
                    plural = "worker" if workers == 1 else "workers"
                    found.append(Entry(peer, f"offloop, {workers} {plural}", workers, tasks))
            elif peer == "executor":
                label = f"executor, {options.threads} threads"
                found.append(Entry(peer, label, None, tasks))
            else:
                label = {"asyncio": "redis.asyncio", "glide": "valkey-glide"}.get(peer, peer)
                found.append(Entry(peer, label, None, tasks))
    return found


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """The versions of the clients that are installed."""
    found: dict[str, str] = {}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine(server_version: str) -> Machine:
    """The machine that this process runs on."""
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        cpu=_cpu_model(),
        cpus=len(os.sched_getaffinity(0)),
        python=platform.python_version(),
        server=server_version,
        versions=versions(),
    )


@contextmanager
def prepared(url: str) -> Iterator[str]:
    """The server's version, with the keys of the workloads written meanwhile."""
    client = redis.Redis.from_url(url)
    try:
        version = str(client.info("server")["redis_version"])
        write_keys(client)
        try:
            yield version
        finally:
            # What went wrong before is what the person needs to hear of.
            with suppress(RedisError):
                delete_keys(client)
    except RedisError as error:
        raise BenchError(f"{redacted(url)}: {error}") from None
    finally:
        client.close()


def _run(url: str, options: Options, progress: Progress) -> Comparison:
    entries = _entries(options)
    with prepared(url) as version:
        progress.begin(options.rounds, len(entries))
        for number in range(1, options.rounds + 1):
            for entry in entries:
                progress.step(number, entry)
                setup = Setup(entry.peer, url, entry.workers, options.threads, options.connections)
                entry.rounds.append(measure(Task(setup, entry.tasks, options.secs)))
                progress.done(number, entry)
    return Comparison(options, redacted(url), machine(version), entries)


def compare(options: Options, progress: Progress) -> Comparison:
    """Measure what ``options`` ask for. Raises BenchError."""
    if options.url is not None:
        return _run(options.url, options, progress)
    with PrivateServer(unix=options.unix) as server:
        return _run(server.url, options, progress)
