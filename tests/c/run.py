"""Build and run the C tests, each program in a process of its own.

    python tests/c/run.py [--variant plain|asan|tsan] [-k TEXT] [--seed N] [--jobs N] [--list]

Every ``tests/c/<layer>/test_*.c`` is one program. Its folder says what it is
linked with: ``runtime`` gets csrc/runtime alone, ``redis`` gets csrc/redis and
hiredis as well; other C files of the folder are linked into each of its
programs. A program prints its seed (``--seed N`` or OFFLOOP_SEED runs it again)
and has a time limit, 480 s, or 800 s with "stress" in its name.

A redis test finds a private server of its own in OFFLOOP_TEST_REDIS_SOCK,
OFFLOOP_TEST_REDIS_HOST, OFFLOOP_TEST_REDIS_PORT and OFFLOOP_TEST_REDIS_PID.

A program whose first line is ``/* expect: tsan-report */`` has a race planted
(it and its layer are compiled with RT_PLANT_RACE): it runs in the variant tsan
only, and passes when ThreadSanitizer reports it.

A program whose first line is ``/* expect: failure, with MACRO */`` is compiled,
with its layers, with a bug that MACRO plants: it runs in the variant plain only,
and passes when a check of its own fails.

One whose first line is ``/* not with: VARIANT, why */`` is left out of that variant.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[0] = str(ROOT)

from csrc.build import hiredis  # noqa: E402  (the path is set just above)
from csrc.build.compile import (  # noqa: E402
    BuildError,
    Unit,
    compile_units,
    link,
    locked,
    sanitizer_flags,
)
from csrc.build.sources import QUEUE, layer_includes, layer_sources, switch  # noqa: E402

TESTS = ROOT / "tests" / "c"
LAYERS = ("runtime", "redis")
LIMIT, STRESS_LIMIT = 480, 800
EXPECT_REPORT = "/* expect: tsan-report */"
EXPECT_FAILURE = re.compile(r"/\* expect: failure, with (\w+) \*/")
NOT_WITH = re.compile(r"/\* not with: (\w+)\b.*\*/")
PLANTED_RACE = "RT_PLANT_RACE"
TAIL = 300  # lines shown of a program that failed


@dataclass(frozen=True)
class Variant:
    """One way to build: its sanitizers, its flags, the environment its programs get."""

    name: str
    sanitize: tuple[str, ...]
    flags: tuple[str, ...]
    environment: Mapping[str, str]


# tsan leaves the assertions out: their loads could order what they look at.
VARIANTS = {
    "plain": Variant("plain", (), ("-O2", "-DRT_DEBUG=1"), {}),
    "asan": Variant(
        "asan",
        ("address", "undefined"),
        ("-O1", "-DRT_DEBUG=1"),
        {
            "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "OFFLOOP_SCALE": "40",  # per cent: a bad access needs no luck, a race does
        },
    ),
    "tsan": Variant(
        "tsan",
        ("thread",),
        ("-O1",),
        {
            # A second's wait at each exit is too much for tests of many processes.
            "TSAN_OPTIONS": "exitcode=66:history_size=7:second_deadlock_stack=1:atexit_sleep_ms=100"
        },
    ),
}


@dataclass(frozen=True)
class Test:
    """One program."""

    layer: str
    source: Path
    planted: str  # the macro that plants a bug, or ""

    @property
    def name(self) -> str:
        return f"{self.layer}/{self.source.stem}"

    @property
    def limit(self) -> int:
        return STRESS_LIMIT if "stress" in self.source.stem else LIMIT


@dataclass(frozen=True)
class Outcome:
    """How one program ended."""

    passed: bool
    reason: str
    output: str
    seconds: float


def planted_bug(first_line: str) -> str:
    """The macro that plants the bug which a program's first line speaks of, or ""."""
    if first_line == EXPECT_REPORT:
        return PLANTED_RACE
    found = EXPECT_FAILURE.fullmatch(first_line)
    return found[1] if found else ""


def find_tests(text: str, variant: Variant) -> list[Test]:
    """The programs whose name contains text and that belong to the variant."""
    tests = []
    for layer in LAYERS:
        for source in sorted((TESTS / layer).glob("test_*.c")):
            with open(source) as lines:
                first_line = lines.readline().strip()
            unfit = NOT_WITH.fullmatch(first_line)
            if unfit is not None and unfit[1] == variant.name:
                continue
            planted = planted_bug(first_line)
            tests.append(Test(layer, source, planted))
    wanted = [test for test in tests if text in test.name]
    homes = {"": variant.name, PLANTED_RACE: "tsan"}
    return [test for test in wanted if homes.get(test.planted, "plain") == variant.name]


class Builder:
    """Builds programs of one variant under build/ctests/<variant>."""

    def __init__(self, variant: Variant, cc: list[str]) -> None:
        self.variant = variant
        self.cc = cc
        self.folder = ROOT / "build" / "ctests" / "-".join([variant.name, Path(cc[-1]).name])
        self.hiredis: hiredis.Hiredis | None = None

    def client_library(self) -> hiredis.Hiredis:
        """hiredis with the variant's sanitizers, made at the first use."""
        if self.hiredis is None:
            self.hiredis = hiredis.provide(ROOT / "build", self.cc, self.variant.sanitize)
        return self.hiredis

    def unit(self, test: Test, layer: str, source: Path) -> Unit:
        """How one C file of a layer (or of its tests) is compiled for test."""
        command = [*self.cc, "-std=gnu11", "-D_GNU_SOURCE=1", "-g", "-pthread", *self.variant.flags]
        command += ["-Wall", "-Wextra", "-Wshadow", *layer_includes(layer)]
        command += [f"-I{TESTS}"] if source.is_relative_to(TESTS) else []
        command += ["-Werror"] if switch("OFFLOOP_WERROR") else []
        command += [f"-D{test.planted}=1"] if test.planted else []
        command += [] if layer == "runtime" else self.client_library().cflags
        command += sanitizer_flags(self.variant.sanitize, queue=source.name == QUEUE)
        folder = self.folder / (test.planted or "sound")
        place = source.relative_to(ROOT).with_suffix(".o")
        return Unit(source, folder / place, tuple(command))

    def units(self, test: Test) -> list[Unit]:
        """Everything that test is linked from, its own file first."""
        layers = LAYERS[: LAYERS.index(test.layer) + 1]
        fixtures = sorted(
            set(test.source.parent.glob("*.c")) - {*test.source.parent.glob("test_*.c")}
        )
        units = [self.unit(test, test.layer, source) for source in (test.source, *fixtures)]
        for layer in layers:
            units += [self.unit(test, layer, source) for source in layer_sources(layer)]
        return units

    def launcher(self) -> list[str]:
        """What starts a program: ThreadSanitizer cannot stand a high address randomisation."""
        setarch = shutil.which("setarch")
        if "thread" not in self.variant.sanitize or setarch is None:
            return []
        return [setarch, os.uname().machine, "-R"]

    def program(self, test: Test) -> Path:
        return self.folder / test.layer / test.source.stem

    def link(self, test: Test) -> None:
        inputs = [unit.object for unit in self.units(test)]
        libs: list[str] = []
        if test.layer == "redis":
            library = self.client_library()
            inputs += library.archives
            libs += library.libs
        flags = sanitizer_flags(self.variant.sanitize)
        command = [*self.cc, "-g", "-pthread", *flags, *map(str, inputs), *libs]
        output = self.program(test)
        link(output, inputs, [*command, "-l:libck.a", "-lm", "-o", str(output)])


def free_port() -> int:
    """A TCP port that nothing listens on right now.

    Below those that the kernel gives to connections: a test has thousands of them, and
    one of them could have the port before the server has it.
    """
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def answers(path: str) -> bool:
    """Whether a Redis server answers PING on the Unix socket."""
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(5)
            probe.connect(path)
            probe.sendall(b"PING\r\n")
            return probe.recv(16).startswith(b"+PONG")
    except OSError:
        return False


@contextmanager
def redis_server() -> Iterator[dict[str, str]]:
    """A private redis-server; gives the variables that tell a test where it is."""
    binary = os.environ.get("REDIS_SERVER") or shutil.which("redis-server")
    if binary is None:
        raise BuildError("there is no redis-server: 'make test' installs one")
    # A Unix socket's path is short by law; the usual temporary folder may be deep.
    folder = tempfile.mkdtemp(prefix="offloop-c-", dir="/tmp")
    path, port, log = f"{folder}/s", free_port(), f"{folder}/log"
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--unixsocket", path]
    command += ["--save", "", "--appendonly", "no", "--daemonize", "no"]
    command += ["--dir", folder, "--logfile", log]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while not answers(path):
            if server.poll() is not None or time.monotonic() > until:
                raise BuildError("redis-server did not start:\n" + Path(log).read_text())
            time.sleep(0.01)
        yield {
            "OFFLOOP_TEST_REDIS_SOCK": path,
            "OFFLOOP_TEST_REDIS_HOST": "127.0.0.1",
            "OFFLOOP_TEST_REDIS_PORT": str(port),
            "OFFLOOP_TEST_REDIS_PID": str(server.pid),
            "OFFLOOP_TEST_REDIS_BIN": binary,
        }
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def run_program(command: list[str], environment: dict[str, str], limit: int) -> Outcome:
    """Run one program, and end it and all it started when its time is over."""
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    reason = ""
    try:
        said, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        reason = f"killed after {limit} s"
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
    if not reason and process.returncode < 0:
        reason = f"killed by {signal.Signals(-process.returncode).name}"
    elif not reason and process.returncode > 0:
        reason = f"exit status {process.returncode}"
    seconds = time.monotonic() - start
    return Outcome(not reason, reason, said.decode(errors="replace"), seconds)


def run_test(test: Test, builder: Builder, seed: str | None) -> Outcome:
    """Run one built test with what it needs around it, and judge it."""
    environment = {**os.environ, **builder.variant.environment}
    # The program's own alarm comes first: it can say where it hangs.
    environment["OFFLOOP_TIME_LIMIT"] = str(test.limit - 5)
    if seed is not None:
        environment["OFFLOOP_SEED"] = seed
    command = [*builder.launcher(), str(builder.program(test))]
    if test.layer == "redis":
        with redis_server() as variables:
            outcome = run_program(command, environment | variables, test.limit)
    else:
        outcome = run_program(command, environment, test.limit)
    if not test.planted:
        return outcome
    # Any other way to fail would be no proof that the bug is seen.
    if test.planted == PLANTED_RACE:
        bug, sign = "race", "WARNING: ThreadSanitizer: data race"
    else:
        bug, sign = "bug", ": FAILED: "
    if sign in outcome.output:
        return Outcome(True, f"the planted {bug} was reported", outcome.output, outcome.seconds)
    reason = f"the planted {bug} was not reported ({outcome.reason or 'exit status 0'})"
    return Outcome(False, reason, outcome.output, outcome.seconds)


def seed_of(output: str) -> str:
    """The seed a program printed, as the option that brings it back."""
    found = re.search(r"^seed (\d+)$", output, re.MULTILINE)
    return f"--seed {found[1]}" if found else "no seed"


def main() -> int:
    parser = argparse.ArgumentParser(description="Build and run the C tests.")
    parser.add_argument("--variant", choices=VARIANTS, default="plain")
    parser.add_argument("-k", default="", metavar="TEXT", help="only names that contain TEXT")
    parser.add_argument("--seed", metavar="N", help="run with this seed")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="programs at a time")
    parser.add_argument("--cc", default=os.environ.get("CC", "gcc"))
    parser.add_argument("--list", action="store_true", help="name the programs and stop")
    parser.add_argument("--build-only", action="store_true")
    parser.add_argument("-v", action="store_true", help="show what passing programs print, too")
    options = parser.parse_args()

    variant = VARIANTS[options.variant]
    tests = find_tests(options.k, variant)
    if options.list:
        print("\n".join(test.name for test in tests))
        return 0
    builder = Builder(variant, shlex.split(options.cc))
    try:
        with locked(builder.folder):
            units = {unit.object: unit for test in tests for unit in builder.units(test)}
            compile_units(units.values())
            for test in tests:
                builder.link(test)
    except BuildError as error:
        print(f"{error}\n0 passed, {max(len(tests), 1)} failed")
        return 1
    if options.build_only:
        return 0

    failed = 0
    executor = ThreadPoolExecutor(max(options.jobs, 1))
    outcomes = executor.map(lambda test: run_test(test, builder, options.seed), tests)
    for test, outcome in zip(tests, outcomes, strict=True):
        verdict = "ok  " if outcome.passed else "FAIL"
        notes = ", ".join(filter(None, [seed_of(outcome.output), outcome.reason]))
        print(f"{verdict} {variant.name} {test.name}  {outcome.seconds:.1f} s  ({notes})")
        if not outcome.passed or options.v:
            print("\n".join(f"    {line}" for line in outcome.output.splitlines()[-TAIL:]))
        sys.stdout.flush()
        failed += not outcome.passed
    if not tests:
        print("no C test was found")
    print(f"{len(tests) - failed} passed, {failed} failed")
    return 1 if failed or not tests else 0


if __name__ == "__main__":
    sys.exit(main())
