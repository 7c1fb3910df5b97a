"""Run redis-py's own asyncio tests on offloop.redis: only their import is swapped.

    python tests/upstream/run.py [--server NAME ...] [--resp 2 3 default] [--over tcp unix]
                                 [--jobs N] [--files test_x.py ...] [--part I/N]

For each server, protocol and transport the suite runs swapped, on offloop.redis, and what
does not pass there runs as it is, on redis.asyncio. Where it passes, it has to pass here
as well. The only tests left out are those that excluded.txt names: they look into
redis.asyncio's internals, and it says how. None is there because it fails. At least 95 %
of the tests that talk to the server must do so by our own connections alone, or the
result would say nothing.

A test that fails here is run again by itself, twice at most, before it counts, and is
reported when it then passes: some of the suite's tests are timed.

Servers: ``system`` (the redis-server that is installed), and out of Debian's packages,
unpacked under build/, ``valkey``, ``8.0`` and ``8.6``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from inside import Job
from packages import SOURCES, PackageError, provide
from suite import ASYNC_TESTS, LEFT_OUT, SuiteError, certificates, prepare

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "upstream"

OURS_AT_LEAST = 0.95
_LIMIT = 1500.0  # seconds for one run of the suite: it hangs
_AGAIN = 2
_TOO_MANY = 60  # that fail: it is not timing

# These go by redis-py's own cluster client, which is exported as it is.
CLUSTER_FILES = ("test_cluster.py", "test_cluster_transaction.py")

Rows = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One cell of the matrix."""

    server: str
    resp: str
    over: str

    def __str__(self) -> str:
        return f"{self.server}-resp-{self.resp}-{self.over}"


@dataclass
class Verdict:
    """What a case has shown.

    excluded: by name, passing on redis.asyncio; unneeded: of them, those that
    pass here; wrong: to why; talked: tests that talk to the server, by our connections
    alone (ours), by both kinds (mixed) or by redis-py's.
    """

    passed: int = 0
    excluded: list[str] = field(default_factory=list)
    unneeded: list[str] = field(default_factory=list)
    unsteady: list[str] = field(default_factory=list)
    wrong: dict[str, str] = field(default_factory=dict)
    talked: int = 0
    ours: int = 0
    mixed: int = 0


def read_excluded(path: Path) -> dict[str, str]:
    """Test (file::class::name, without parameters) to the reason why it is left out."""
    excluded = {}
    for line in path.read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, _, reason = line.partition("  ")
        if not reason.strip():
            raise SuiteError(f"{path.name}: {name} has no reason")
        excluded[name.strip()] = reason.strip()
    return excluded


def bare(nodeid: str) -> str:
    """A test's name without its folder and parameters."""
    return nodeid.partition("[")[0].removeprefix(f"{ASYNC_TESTS}/")


class NamespaceError(SuiteError):
    """The suite cannot have a network of its own, in which every port is free."""


def _unshare() -> list[str]:
    """The command that gives a process a network of its own."""
    program = shutil.which("unshare")
    if program is None:
        raise SuiteError("unshare (util-linux) is needed")
    for command in ([program, "--net"], [program, "--map-root-user", "--net"]):
        if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
            return command
    raise NamespaceError(
        "this machine allows no network namespaces: run as root, or in a container "
        "with CAP_SYS_ADMIN"
    )


class Runner:
    """Runs one side of a case, in parts at the same time."""

    def __init__(self, trees: dict[str, Path], options: argparse.Namespace) -> None:
        self._trees = trees
        self._jobs: int = options.jobs
        first, _, parts = options.part.partition("/")
        self._part_of = int(first), int(parts)
        self._unshare = _unshare()
        ignored = [f"--ignore={folder}" for folder in LEFT_OUT]
        named = [f"{ASYNC_TESTS}/{name}" for name in options.files] or [ASYNC_TESTS]
        self._arguments = [*named, *ignored]

    def _part(self, job: Job) -> tuple[int, Rows]:
        out = Path(job.out)
        out.unlink(missing_ok=True)
        done = subprocess.run(
            [*self._unshare, sys.executable, str(HERE / "inside.py")],
            input=json.dumps(asdict(job)),
            capture_output=True,
            text=True,
            check=False,
        )
        if not out.is_file():
            tail = Path(job.log).read_text(errors="replace")[-3000:]
            raise SuiteError(f"{job.log}: no results (exit {done.returncode})\n"
                             f"{done.stdout}{done.stderr}{tail}")  # fmt: skip
        return done.returncode, json.loads(out.read_text())

    def run(
        self,
        side: str,
        case: Case,
        server: list[str],
        only: Sequence[str] = (),
        again: str = "",
    ) -> Rows:
        """How the suite, or the tests named, end on one side: ``offloop`` or ``redis``."""
        folder = BUILD / "results" / str(case)
        folder.mkdir(parents=True, exist_ok=True)
        count = 1 if only else self._jobs
        named = folder / f"{side}-only{again}.txt"
        if only:
            named.write_text("\n".join(only))
        tree = self._trees[side]
        first, parts = (0, 1) if only else self._part_of
        jobs = [
            Job(
                tree=str(tree),
                server=server,
                certificates=str(certificates(tree)),
                over=case.over,
                resp=case.resp,
                shard=f"{first + number * parts}/{count * parts}",
                only=str(named) if only else "",
                out=str(folder / f"{side}-{number}{again}.json"),
                log=str(folder / f"{side}-{number}{again}.log"),
                limit=_LIMIT,
                arguments=self._arguments,
            )
            for number in range(count)
        ]
        rows: Rows = {}
        with ThreadPoolExecutor(count) as threads:
            for _, part in threads.map(self._part, jobs):
                rows.update(part)
        return rows


def _count_connections(verdict: Verdict, rows: Rows) -> None:
    for test, row in rows.items():
        if not row.get("talked") or row["outcome"] not in ("passed", "failed"):
            continue
        if bare(test).partition("::")[0] in CLUSTER_FILES:
            continue
        verdict.talked += 1
        if row["theirs"] == 0:
            verdict.ours += 1
        elif row["ours"]:
            verdict.mixed += 1


def judge(
    runner: Runner, case: Case, server: list[str], excluded: dict[str, str]
) -> tuple[Verdict, Rows]:
    """Run a case; what does not pass is asked of redis.asyncio."""
    swapped = runner.run("offloop", case, server)
    verdict = Verdict()
    asked = []
    for test, row in swapped.items():
        left_out = bare(test) in excluded
        if row["outcome"] != "passed":
            asked.append(test)
        elif left_out:
            verdict.excluded.append(test)
            verdict.unneeded.append(test)
        else:
            verdict.passed += 1
    theirs = runner.run("redis", case, server, asked) if asked else {}
    suspects = []
    for test in asked:
        if theirs.get(test, {}).get("outcome") != "passed":
            continue
        if bare(test) in excluded:
            verdict.excluded.append(test)
        else:
            suspects.append(test)
    for _ in range(_AGAIN):
        if not suspects or len(suspects) > _TOO_MANY:
            break
        again = runner.run("offloop", case, server, suspects, "-again")
        for test in list(suspects):
            if again.get(test, {}).get("outcome") == "passed":
                suspects.remove(test)
                verdict.unsteady.append(test)
                verdict.passed += 1
    for test in suspects:
        row = swapped[test]
        verdict.wrong[test] = row.get("why", row["outcome"])
    _count_connections(verdict, swapped)
    return verdict, swapped


def report(case: Case, verdict: Verdict, seconds: float, whole: bool) -> bool:
    """Print what a case has shown; whether it is as it must be.

    The share of our own connections is judged for the whole suite: a part may hold just
    those tests that go by others.
    """
    share = verdict.ours / verdict.talked if verdict.talked else 1.0
    print(
        f"{case}: {verdict.passed} of {verdict.passed + len(verdict.wrong)} pass that pass "
        f"with redis.asyncio ({len(verdict.excluded)} left out by name); {verdict.ours} of "
        f"{verdict.talked} that talk to the server ({share:.1%}) by our connections alone, "
        f"{verdict.mixed} more by both; {seconds:.0f} s"
    )
    for test in verdict.unsteady:
        print(f"  passes only when run again: {test}")
    needed = {bare(test) for test in set(verdict.excluded) - set(verdict.unneeded)}
    for name in sorted({bare(test) for test in verdict.unneeded} - needed):
        print(f"  left out by name but passes: {name}")
    for test, why in verdict.wrong.items():
        last = [line for line in why.splitlines() if line.startswith("E ")][-1:] or [why[:200]]
        print(f"  FAILS: {test}\n      {last[0]}")
    if verdict.passed == 0:
        print("  FAILS: nothing passes")
        return False
    enough = share >= OURS_AT_LEAST or not whole
    if not enough:
        print(f"  FAILS: less than {OURS_AT_LEAST:.0%} go by our own connections alone")
    return not verdict.wrong and enough


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", nargs="+", choices=["system", *SOURCES], default=["system"])
    parser.add_argument("--resp", nargs="+", choices=["2", "3", "default"], default=["2", "3"])
    parser.add_argument("--over", nargs="+", choices=["tcp", "unix"], default=["tcp", "unix"])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--files", nargs="+", default=[], metavar="FILE", help="only these files")
    parser.add_argument("--part", default="0/1", metavar="I/N", help="every Nth test, from I on")
    parser.add_argument("--theirs", action="store_true", help="name tests on redis-py connections")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the matrix; 0 if everything is as it must be.

    3: a server cannot be had; 4: the suite cannot have a network of its own.
    """
    options = parse(argv)
    try:
        runner = Runner(prepare(BUILD), options)
        excluded = read_excluded(HERE / "excluded.txt")
        servers = {name: provide(name, BUILD / "servers") for name in options.server}
    except NamespaceError as error:
        print(f"offloop: {error}", file=sys.stderr)
        return 4
    except SuiteError as error:
        print(f"offloop: {error}", file=sys.stderr)
        return 2
    except PackageError as error:
        print(f"offloop: {error}", file=sys.stderr)
        return 3
    right, whole = True, not options.files and options.part == "0/1"
    seen: set[str] = set()
    for name, command in servers.items():
        for resp in options.resp:
            for over in options.over:
                case = Case(name, resp, over)
                start = time.monotonic()
                verdict, after = judge(runner, case, command, excluded)
                right &= report(case, verdict, time.monotonic() - start, whole)
                sys.stdout.flush()
                seen |= {bare(test) for test in after}
                if options.theirs:
                    files = Counter(
                        bare(test)
                        for test, row in after.items()
                        if row.get("talked") and row.get("theirs")
                    )
                    for test, count in sorted(files.items()):
                        print(f"  by redis-py's connections: {test} ({count})")
    if whole:
        for name in sorted(set(excluded) - seen):
            print(f"FAILS: excluded.txt names {name}, which the suite does not have")
            right = False
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
