"""The measurements behind each target: one function for each group of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import calls as python_calls
import sql
from fanout import Fanout, fan_out, make_room
from host import Watch
from inflight import Flight, fly
from methods import CALLS, Comparison, compare
from mixed import Mix, mix
from native import c_loop, c_window, delay_proxy, ping_us, redis_benchmark
from offloop.bench.peers import Setup
from offloop.bench.worker import Task, measure
from offloop.bench.workload import KEY
from queues import Setting, consume, consume_in_c
from rows import Numbers, Report, Rounds, interleaved

#: redis.asyncio's pool in every section.
CONNECTIONS = 50
EACH_WAY_US = 500
WORK_NS = 2_000  # for a reply: what a command may cost a client
IN_FLIGHT = 100_000
FEW_IN_FLIGHT = 1_000
_PIPELINED_PER_SEC = 1_000_000
SUBSCRIBERS = 1_000
MANY_SUBSCRIBERS = 10_000
MANY_BLOCKED = 10_000


@dataclass(frozen=True)
class Bench:
    """What all sections share: the server, the rounds, and where the results go."""

    url: str
    port: int
    rounds: int
    secs: float
    loop_program: Path
    window_program: Path
    consumers_program: Path
    proxy_program: Path
    report: Report

    def peer(
        self,
        name: str,
        tasks: int,
        workload: str = "get",
        *,
        url: str = "",
        heartbeat: bool = False,
    ) -> Callable[[], Numbers]:
        """A measurement of a peer with its default settings."""
        setup = Setup(name, url or self.url, connections=CONNECTIONS)
        return partial(_measured, Task(setup, tasks, self.secs, workload, heartbeat))

    def both(self, tasks: int, workload: str = "get") -> dict[str, Callable[[], Numbers]]:
        """redis.asyncio and offloop with the same tasks and command."""
        return {
            f"{name} {workload} {tasks}": self.peer(name, tasks, workload)
            for name in ("asyncio", "offloop")
        }

    def rounds_of(self, title: str, measurements: dict[str, Callable[[], Numbers]]) -> Rounds:
        """Announce a section and run it, interleaved."""
        self.report.title(title)
        watch = Watch()
        rounds = interleaved(self.rounds, measurements, watch)
        self.report.note("CPU time that the host of this machine took for others", str(watch))
        self.report.numbers[title] = rounds.found
        return rounds


def _measured(task: Task) -> Numbers:
    sample = measure(task)
    found = {
        "ops_per_s": sample.ops_per_s,
        "p50_us": sample.p50_us,
        "p99_us": sample.p99_us,
        "cpu_us": sample.cpu_us,
    }
    if sample.lateness is not None:
        found["late_p50_ms"] = sample.lateness.p50_ms
        found["late_p99_ms"] = sample.lateness.p99_ms
        found["late_max_ms"] = sample.lateness.max_ms
    return found


def _loop(bench: Bench) -> Numbers:
    return c_loop(bench.loop_program, bench.port, KEY, bench.secs)


def _pipelined(bench: Bench) -> Numbers:
    commands = max(100_000, int(_PIPELINED_PER_SEC * bench.secs))
    return {"ops_per_s": redis_benchmark(bench.port, commands)}


def _rates(rounds: Rounds, ours: str, theirs: str) -> str:
    mine, other = rounds.median(ours, "ops_per_s"), rounds.median(theirs, "ops_per_s")
    return f"({mine / 1e3:,.1f} k/s to {other / 1e3:,.1f} k/s)"


def get(bench: Bench) -> None:
    """``await r.get`` beside redis.asyncio, a C loop and redis-benchmark."""
    measurements: dict[str, Callable[[], Numbers]] = {}
    for tasks in (1, 50, 1000):
        measurements |= bench.both(tasks)
    measurements["c loop"] = partial(_loop, bench)
    measurements["redis-benchmark"] = partial(_pipelined, bench)
    rounds = bench.rounds_of("await r.get(key)", measurements)
    report = bench.report
    for tasks, target in ((1, 2.0), (50, 25.0), (1000, 40.0)):
        ours, theirs = f"offloop get {tasks}", f"asyncio get {tasks}"
        report.at_least(
            f"ops/s to redis.asyncio's, {tasks} tasks"
            if tasks > 1
            else "ops/s to redis.asyncio's, 1 task",
            rounds.ratio(ours, theirs),
            target,
            _rates(rounds, ours, theirs),
        )
    floor = rounds.median("c loop", "p50_us")
    seen = rounds.median("offloop get 1", "p50_us")
    report.at_most(
        "p50 to that of a C loop of redisCommand, 1 task",
        seen / floor,
        1.5,
        "x",
        f"({seen:.1f} us to {floor:.1f} us)",
    )
    report.at_least(
        "ops/s to redis-benchmark -t get -P 64 -c 2, 1000 tasks",
        rounds.ratio("offloop get 1000", "redis-benchmark"),
        0.5,
        _rates(rounds, "offloop get 1000", "redis-benchmark"),
    )
    theirs_cpu = rounds.median("asyncio get 1000", "cpu_us")
    report.at_most(
        "client CPU per command, 1000 tasks",
        rounds.median("offloop get 1000", "cpu_us"),
        2.0,
        " us",
        f"(redis.asyncio {theirs_cpu:.1f} us)",
    )


def others(bench: Bench) -> None:
    """Commands other than ``get``: zadd and getrange are redis-py's own code."""
    names = ("getrange", "hget", "zadd")
    measurements: dict[str, Callable[[], Numbers]] = {}
    for name in names:
        measurements |= bench.both(50, name)
    rounds = bench.rounds_of("Other commands of redis-py's API, 50 tasks", measurements)
    for name in names:
        ours, theirs = f"offloop {name} 50", f"asyncio {name} 50"
        shown = "zadd(xx=True, ch=True)" if name == "zadd" else name
        bench.report.at_least(
            f"{shown}: ops/s to redis.asyncio's",
            rounds.ratio(ours, theirs),
            15.0,
            _rates(rounds, ours, theirs),
        )


def round_trip(bench: Bench) -> None:
    """p50 with 50 tasks on a server that is 1 ms further away."""
    with delay_proxy(bench.proxy_program, bench.port, EACH_WAY_US) as port:
        url = f"redis://127.0.0.1:{port}/0"

        def window(work_ns: int) -> Callable[[], Numbers]:
            return partial(c_window, bench.window_program, port, KEY, bench.secs, 50, work_ns)

        rounds = bench.rounds_of(
            "Behind a proxy that adds 1 ms of round trip, 50 tasks",
            {
                "ping": lambda: {"p50_us": ping_us(port)},
                "window": window(0),
                "busy window": window(WORK_NS),
                "offloop": bench.peer("offloop", 50, url=url),
                "asyncio": bench.peer("asyncio", 50, url=url),
            },
        )
    trip = rounds.median("ping", "p50_us")
    bench.report.note("round trip of a lone PING on a plain socket", f"{trip / 1e3:.3f} ms")
    seen = rounds.median("offloop", "p50_us")
    bench.report.at_most("p50 in such round trips", seen / trip, 1.1, "", f"({seen / 1e3:.3f} ms)")
    for name, what in (
        ("window", "that of a C program with 50 GETs under way"),
        ("busy window", f"that of one busy for {WORK_NS / 1e3:.0f} us with each reply"),
        ("asyncio", "redis.asyncio's p50"),
    ):
        other = rounds.median(name, "p50_us")
        bench.report.note(what, f"{other / trip:.2f} ({other / 1e3:.3f} ms)")


def in_flight(bench: Bench) -> None:
    """A hundred thousand commands at once: what each costs, and the throughput."""

    def flight(kind: str, commands: int, name: str) -> Callable[[], Numbers]:
        return lambda: {name: fly(Flight(kind, bench.url, commands, bench.secs))}

    rounds = bench.rounds_of(
        f"{IN_FLIGHT:,} commands in flight",
        {
            "memory": flight("memory", IN_FLIGHT, "bytes"),
            "many": flight("window", IN_FLIGHT, "ops_per_s"),
            "few": flight("window", FEW_IN_FLIGHT, "ops_per_s"),
            "many tasks": bench.peer("offloop", IN_FLIGHT),
            "few tasks": bench.peer("offloop", FEW_IN_FLIGHT),
        },
    )
    bench.report.at_most(
        "resident memory per command", rounds.median("memory", "bytes"), 700, " bytes"
    )
    bench.report.at_least(
        f"ops/s to that with {FEW_IN_FLIGHT:,} in flight",
        rounds.ratio("many", "few"),
        0.75,
        _rates(rounds, "many", "few"),
    )
    bench.report.note(
        "the same with a task for each command",
        f"{rounds.ratio('many tasks', 'few tasks'):.2f}x "
        f"{_rates(rounds, 'many tasks', 'few tasks')}",
    )


def heartbeat(bench: Bench) -> None:
    """How late a 1 ms timer runs while 1000 tasks storm on the same loop."""
    rounds = bench.rounds_of(
        "loop.call_later(0.001) while 1000 tasks storm: how late",
        {name: bench.peer(name, 1000, heartbeat=True) for name in ("asyncio", "offloop")},
    )
    for short in ("p50", "p99"):
        seen = rounds.median("offloop", f"late_{short}_ms")
        theirs = rounds.median("asyncio", f"late_{short}_ms")
        bench.report.at_most(f"{short}, redis.asyncio's being the limit", seen, theirs, " ms")
    seen = rounds.median("offloop", "late_max_ms")
    theirs = rounds.median("asyncio", "late_max_ms")
    bench.report.note("the latest of all", f"{seen:.2f} ms (redis.asyncio {theirs:.2f} ms)")


def methods(bench: Bench) -> None:
    """Whether each native short cut deserves its place: redis-py's own method beside it."""
    turns = max(4, round(bench.secs * 10))
    title = "Native methods beside redis-py's own on the same connection"
    bench.report.title(title)
    found: dict[str, dict[str, float]] = {}
    for call in CALLS:
        for tasks in (50, 1000):
            pairs = [
                compare(Comparison(bench.url, call, tasks, turns)) for _ in range(bench.rounds)
            ]
            ratios = [pair["ratio"] for pair in pairs]
            best = max(pairs, key=lambda pair: pair["native"])
            found[f"{call} {tasks}"] = {**best, "ratio": statistics.median(ratios)}
            bench.report.note(
                f"{call}, {tasks} tasks",
                f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f}; "
                f"{best['native'] / 1e3:.0f} k/s to {best['own'] / 1e3:.0f} k/s)",
            )
    bench.report.numbers[title] = found


def pipeline(bench: Bench) -> None:
    """Pipelines of GETs beside redis.asyncio's and a C loop of redisAppendCommand."""
    depths, several = (100, 1000), 20
    measurements: dict[str, Callable[[], Numbers]] = {}
    for depth in depths:
        for tasks in (1, several):
            measurements |= bench.both(tasks, f"pipeline{depth}")
        measurements[f"c loop {depth}"] = partial(
            c_loop, bench.loop_program, bench.port, KEY, bench.secs, depth
        )
    rounds = bench.rounds_of("Pipelines of GETs", measurements)
    report = bench.report
    for depth in depths:

        def rates(ours: str, theirs: str, depth: int = depth) -> str:
            mine, other = rounds.median(ours, "ops_per_s"), rounds.median(theirs, "ops_per_s")
            return f"({mine * depth / 1e3:,.0f} k/s to {other * depth / 1e3:,.0f} k/s)"

        name = f"pipeline{depth}"
        for tasks in (1, several):
            ours, theirs = f"offloop {name} {tasks}", f"asyncio {name} {tasks}"
            report.at_least(
                f"{depth} GETs to redis.asyncio's, {tasks} task{'s' if tasks > 1 else ''}",
                rounds.ratio(ours, theirs),
                10.0,
                rates(ours, theirs),
            )
        ours = f"offloop {name} 1"
        mine = rounds.median(ours, "ops_per_s") * depth
        floor = rounds.median(f"c loop {depth}", "ops_per_s")
        report.at_least(
            f"{depth} GETs to a C loop of redisAppendCommand, 1 task",
            mine / floor,
            0.4,
            f"({mine / 1e3:,.0f} k/s to {floor / 1e3:,.0f} k/s)",
        )
        cpu = rounds.median(ours, "cpu_us") / depth
        theirs_cpu = rounds.median(f"asyncio {name} 1", "cpu_us") / depth
        report.note(
            f"client CPU per GET, pipelines of {depth}",
            f"{cpu:.2f} us (redis.asyncio {theirs_cpu:.1f} us)",
        )


def large(bench: Bench) -> None:
    """Replies of many items and of many bytes, alone and beside small ones."""
    targets = (("mget", 50, 5.0), ("lrange", 1, 1.0), ("hgetall", 1, 1.0), ("big", 1, 1.0))
    titles = {
        "mget": "MGET of 100 keys",
        "lrange": "LRANGE of 10,000 items",
        "hgetall": "HGETALL of 1,000 fields",
        "big": "GET of 10 MB",
    }
    measurements: dict[str, Callable[[], Numbers]] = {}
    for name, tasks, _ in targets:
        measurements |= bench.both(tasks, name)
    for name in ("asyncio", "offloop"):
        setup = Setup(name, bench.url, connections=CONNECTIONS)
        measurements[f"{name} mix"] = partial(mix, Mix(asdict(setup), 50, bench.secs))
    rounds = bench.rounds_of("Large replies", measurements)
    for name, tasks, target in targets:
        ours, theirs = f"offloop {name} {tasks}", f"asyncio {name} {tasks}"
        mine, other = rounds.median(ours, "ops_per_s"), rounds.median(theirs, "ops_per_s")
        bench.report.at_least(
            f"{titles[name]} to redis.asyncio's, {tasks} task{'s' if tasks > 1 else ''}",
            rounds.ratio(ours, theirs),
            target,
            f"({mine:,.0f}/s to {other:,.0f}/s)",
        )
    seen, theirs_ms = (rounds.median(f"{name} mix", "p99_ms") for name in ("offloop", "asyncio"))
    bench.report.at_most(
        "p99 of 50 tasks' GETs beside 10 MB ones, to redis.asyncio's",
        seen / theirs_ms,
        2.0,
        "x",
        f"({seen:.1f} ms to {theirs_ms:.1f} ms)",
    )
    for name in ("offloop", "asyncio"):
        gets, bigs = (rounds.median(f"{name} mix", kind) for kind in ("gets_per_s", "bigs_per_s"))
        bench.report.note(f"{name} meanwhile", f"{gets / 1e3:,.1f} k GETs/s, {bigs:,.1f} large/s")


def pubsub(bench: Bench) -> None:
    """One publisher and many subscribers beside redis.asyncio's."""

    def audience(peer: str, kind: str, size: int) -> Callable[[], Numbers]:
        return lambda: fan_out(Fanout(peer, kind, bench.url, size, bench.secs))

    make_room(bench.url, MANY_SUBSCRIBERS)
    measurements = {name: audience(name, "rate", SUBSCRIBERS) for name in ("asyncio", "offloop")}
    measurements["memory"] = audience("offloop", "memory", MANY_SUBSCRIBERS)
    rounds = bench.rounds_of(f"Pub/sub: 1 publisher, {SUBSCRIBERS:,} subscribers", measurements)
    cpu = {name: rounds.median(name, "cpu_us") for name in ("asyncio", "offloop")}
    bench.report.at_least(
        "redis.asyncio's client CPU for a delivery to ours",
        cpu["asyncio"] / cpu["offloop"],
        5.0,
        f"({cpu['asyncio']:.1f} us to {cpu['offloop']:.1f} us)",
    )
    bench.report.note(
        "deliveries/s to redis.asyncio's",
        f"{rounds.ratio('offloop', 'asyncio'):.2f}x {_rates(rounds, 'offloop', 'asyncio')}",
    )
    bench.report.at_most(
        f"resident memory for a subscriber, {MANY_SUBSCRIBERS:,} of them",
        rounds.median("memory", "bytes"),
        8192,
        " bytes",
    )


def queues(bench: Bench) -> None:
    """Consumers that wait on the server beside redis.asyncio's; ten thousand that wait."""

    def consumers(peer: str, kind: str, tasks: int) -> Callable[[], Numbers]:
        setting = Setting(peer, kind, bench.url, tasks, bench.secs)
        if peer == "c":
            return partial(consume_in_c, bench.consumers_program, bench.port, setting)
        return partial(consume, setting)

    measurements = {
        f"{peer} {kind}": consumers(peer, kind, 8)
        for kind in ("stream", "queue")
        for peer in ("asyncio", "offloop", "c")
    }
    measurements["blocked"] = consumers("offloop", "blocked", MANY_BLOCKED)
    rounds = bench.rounds_of("Consumers that wait on the server, 8 tasks", measurements)
    for kind, shown in (("stream", "XREADGROUP and XACK"), ("queue", "BLMOVE and LREM")):
        ours, theirs = f"offloop {kind}", f"asyncio {kind}"
        mine, other = rounds.median(ours, "cpu_us"), rounds.median(theirs, "cpu_us")
        bench.report.at_least(
            f"{shown}: messages/s to redis.asyncio's",
            rounds.ratio(ours, theirs),
            5.0,
            _rates(rounds, ours, theirs),
        )
        bench.report.note(
            f"{shown}: redis.asyncio's client CPU for a message to ours",
            f"{other / mine:.2f}x ({other:.1f} us to {mine:.1f} us)",
        )
        floor, least = rounds.ratio(f"c {kind}", theirs), rounds.median(f"c {kind}", "cpu_us")
        bench.report.note(
            f"{shown}: a C program's, which does nothing else",
            f"{floor:.2f}x ({_rates(rounds, f'c {kind}', theirs).strip('()')}; {least:.1f} us)",
        )
    beside, alone = (rounds.median("blocked", name) for name in ("beside_ms", "alone_ms"))
    bench.report.at_most(
        f"p99 of GETs beside {MANY_BLOCKED:,} in BLPOP, to that without them",
        beside / alone,
        2.0,
        "x",
        f"({beside:.2f} ms to {alone:.2f} ms)",
    )
    bench.report.at_most(
        "resident memory for one that is blocked", rounds.median("blocked", "bytes"), 8192, " bytes"
    )


def calls(bench: Bench) -> None:
    """``Pool.call`` beside run_in_executor with as many threads."""

    def setting(
        peer: str, work: str, tasks: int, url: str = ""
    ) -> dict[str, Callable[[], Numbers]]:
        wanted = python_calls.Setting(peer, work, tasks, bench.secs, url)
        return {f"{peer} {work} {tasks}": partial(python_calls.measure, wanted)}

    measurements: dict[str, Callable[[], Numbers]] = {}
    for tasks in (1, 50, 1000):
        for peer in ("executor", "offloop"):
            measurements |= setting(peer, "noop", tasks)
    measurements |= setting("lane", "noop", 50) | setting("batch", "noop", 1)
    for peer in ("executor", "offloop"):
        measurements |= setting(peer, "compute", 50)
    measurements |= setting("offloop", "sleepers", 50, bench.url)
    rounds = bench.rounds_of("Calls of Python functions, 4 threads", measurements)
    report = bench.report
    for tasks, target in ((1, 4.0), (50, 10.0), (1000, 10.0)):
        ours, theirs = f"offloop noop {tasks}", f"executor noop {tasks}"
        report.at_least(
            f"calls/s to run_in_executor's, {tasks} task{'s' if tasks > 1 else ''}",
            rounds.ratio(ours, theirs),
            target,
            _rates(rounds, ours, theirs),
        )
    for name, tasks in (("lane", 50), ("batch", 1)):
        ours, theirs = f"{name} noop {tasks}", "executor noop 50"
        report.note(
            "the same in one lane, 50 tasks" if name == "lane" else "in batches of 100, 1 task",
            f"{rounds.ratio(ours, theirs):.2f}x {_rates(rounds, ours, theirs)}",
        )
    seen, theirs_ms = (
        rounds.median(f"{peer} compute 50", "late_p99_ms") for peer in ("offloop", "executor")
    )
    report.at_most(
        "p99 of a timer beside 50 tasks' computing calls, to the executor's",
        seen / theirs_ms,
        1.0,
        "x",
        f"({seen:.1f} ms to {theirs_ms:.1f} ms)",
    )
    report.note(
        "computing calls/s to the executor's",
        f"{rounds.ratio('offloop compute 50', 'executor compute 50'):.2f}x",
    )
    report.at_most(
        "p99 of GETs beside 4 calls that sleep, 50 tasks",
        rounds.median("offloop sleepers 50", "p99_us") / 1e3,
        5.0,
        " ms",
    )


def dbapi(bench: Bench) -> None:
    """``offloop.dbapi`` beside aiosqlite, aioodbc and the drivers themselves."""

    def setting(peer: str, work: str, tasks: int) -> dict[str, Callable[[], Numbers]]:
        wanted = sql.Setting(peer, work, tasks, bench.secs)
        return {f"{peer} {work} {tasks}": partial(sql.measure, wanted)}

    measurements: dict[str, Callable[[], Numbers]] = {}
    for tasks in (1, 50):
        for peer in ("aiosqlite", "offloop", "aioodbc", "odbc"):
            measurements |= setting(peer, "row", tasks)
    measurements |= setting("blocking", "rows", 1) | setting("offloop", "rows", 1)
    rounds = bench.rounds_of("Database drivers, 4 connections to an SQLite file", measurements)
    report = bench.report
    for title, ours, theirs, target in (
        ("a row by sqlite3 to aiosqlite's", "offloop", "aiosqlite", 4.0),
        ("a row by pyodbc to aioodbc's", "odbc", "aioodbc", 3.0),
    ):
        for tasks in (1, 50):
            mine, other = f"{ours} row {tasks}", f"{theirs} row {tasks}"
            report.at_least(
                f"{title}, {tasks} task{'s' if tasks > 1 else ''}",
                rounds.ratio(mine, other),
                target,
                _rates(rounds, mine, other),
            )
    mine, other = "offloop rows 1", "blocking rows 1"
    report.at_least(
        "10,000 rows to sqlite3's, blocking",
        rounds.ratio(mine, other),
        0.9,
        f"({rounds.median(mine, 'ops_per_s'):,.0f}/s to "
        f"{rounds.median(other, 'ops_per_s'):,.0f}/s)",
    )


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "get": get,
    "others": others,
    "pipeline": pipeline,
    "large": large,
    "round_trip": round_trip,
    "in_flight": in_flight,
    "heartbeat": heartbeat,
    "pubsub": pubsub,
    "queues": queues,
    "methods": methods,
    "calls": calls,
    "dbapi": dbapi,
}
