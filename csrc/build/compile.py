"""Compile C files into objects: in parallel, and only what changed.

setuptools recompiles everything when one file is newer and knows nothing of
headers. Here each object remembers the command that made it and the headers
it read (the compiler's own dependency file), and is made again when one of
them changed. The extension, hiredis and the C tests are all built this way.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SANITIZERS = ("address", "undefined", "thread")


class BuildError(Exception):
    """A build step failed; the text says which one and what to do."""


@dataclass(frozen=True)
class Unit:
    """One C file, the object it becomes and the command up to the file's name."""

    source: Path
    object: Path
    command: tuple[str, ...]

    def full_command(self) -> list[str]:
        deps = self.object.with_suffix(".d")
        return [
            *self.command,
            *("-MMD", "-MF", str(deps)),
            *("-c", str(self.source), "-o", str(self.object)),
        ]


def sanitizers_of(text: str) -> tuple[str, ...]:
    """The names in a comma list such as ``address,undefined``, checked and sorted."""
    names = sorted({name.strip() for name in text.split(",")} - {""})
    wrong = [name for name in names if name not in SANITIZERS]
    if wrong:
        raise BuildError(f"unknown sanitizer {wrong[0]!r}: use {', '.join(SANITIZERS)}")
    if "thread" in names and "address" in names:
        raise BuildError("the sanitizers 'thread' and 'address' exclude each other")
    return tuple(names)


def sanitizer_flags(names: Sequence[str], *, queue: bool = False) -> list[str]:
    """Compiler flags for the sanitizers.

    ``queue`` is for the one file that includes Concurrency Kit: ThreadSanitizer
    cannot see the order that CK's assembly makes, so that file stays without
    it and tells the tool itself (RT_TSAN is defined in either case).
    """
    if not names:
        return []
    flags = ["-fno-omit-frame-pointer"]
    if "thread" in names:
        flags.append("-DRT_TSAN=1")
    if "undefined" in names:
        flags.append("-fno-sanitize-recover=undefined")
    kept = [name for name in names if not (queue and name == "thread")]
    if kept:
        flags.append("-fsanitize=" + ",".join(kept))
    return flags


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """One build at a time in folder, whoever started it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def is_stale(unit: Unit) -> bool:
    """Whether the object has to be made (again)."""
    try:
        made = unit.object.stat().st_mtime_ns
        command = json.loads(unit.object.with_suffix(".cmd").read_text())
        deps = unit.object.with_suffix(".d").read_text()
    except (OSError, ValueError):
        return True
    if command != unit.full_command():
        return True
    _, _, names = deps.replace("\\\n", " ").partition(":")
    try:
        return any(os.stat(name).st_mtime_ns > made for name in shlex.split(names))
    except OSError:
        return True


def _compile(unit: Unit) -> str:
    """Make one object; returns what the compiler said, raises if it failed."""
    record = unit.object.with_suffix(".cmd")
    unit.object.parent.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    start = time.time_ns()
    command = unit.full_command()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise BuildError(f"there is no compiler {command[0]!r}: install gcc or clang") from error
    said = done.stdout + done.stderr
    if done.returncode != 0:
        raise BuildError(f"{shlex.join(command)}\n{said}cannot compile {unit.source}")
    # Dated from before the compiler read anything: a header that is edited
    # while it runs is newer than the object and is not missed.
    os.utime(unit.object, ns=(start, start))
    record.write_text(json.dumps(command))
    return said


def compile_units(units: Iterable[Unit], *, jobs: int | None = None) -> int:
    """Make every stale object and return how many there were."""
    stale = [unit for unit in units if is_stale(unit)]
    with ThreadPoolExecutor(max_workers=jobs or os.cpu_count() or 1) as workers:
        results = [workers.submit(_compile, unit) for unit in stale]
        failures = []
        for result in results:
            try:
                said = result.result()
            except BuildError as error:
                failures.append(str(error))
            else:
                if said:
                    print(said, end="", flush=True)
    if failures:
        raise BuildError("\n".join(failures))
    return len(stale)


def link_is_stale(output: Path, inputs: Sequence[Path], command: Sequence[str]) -> bool:
    """Whether what is linked from inputs by command has to be linked (again)."""
    record = output.with_name(output.name + ".cmd")
    try:
        made = output.stat().st_mtime_ns
        if json.loads(record.read_text()) != [*map(str, inputs), *command]:
            return True
        # Objects are dated before their compile, so an equal date is no proof.
        return any(item.stat().st_mtime_ns >= made for item in inputs)
    except (OSError, ValueError):
        return True


def link(output: Path, inputs: Sequence[Path], command: Sequence[str]) -> bool:
    """Run command, which makes output from inputs, if needed; say whether it was."""
    if not link_is_stale(output, inputs, command):
        return False
    output.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}cannot link {output}")
    record = output.with_name(output.name + ".cmd")
    record.write_text(json.dumps([*map(str, inputs), *command]))
    return True
