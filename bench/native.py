"""The programs in C that offloop is measured against, built and run."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from offloop.bench.options import BenchError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
OUT = ROOT / "build" / "bench"
_PINGS = 500


def _run(command: list[str], limit: float) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    if done.returncode != 0:
        raise BenchError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def _compile(name: str, *arguments: str) -> Path:
    program = OUT / name
    source = HERE / f"{name}.c"
    if program.is_file() and program.stat().st_mtime > source.stat().st_mtime:
        return program
    cc = shlex.split(os.environ.get("CC", "gcc"))
    _run([*cc, "-std=gnu11", "-O2", "-Wall", str(source), *arguments, "-o", str(program)], 120)
    return program


def build_with_hiredis(name: str) -> Path:
    """One of them that needs hiredis, on the same hiredis that offloop is built with."""
    OUT.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, str(ROOT / "csrc/build/hiredis.py"), "--out", str(OUT)], 300)
    return _compile(name, "-isystem", str(OUT / "include"), str(OUT / "libhiredis.a"))


def build_delay_proxy() -> Path:
    """The proxy that adds a round trip."""
    OUT.mkdir(parents=True, exist_ok=True)
    return _compile("delay_proxy")


def c_loop(program: Path, port: int, key: str, secs: float, depth: int = 0) -> dict[str, float]:
    """Run the loop; its operations per second and latencies in microseconds.

    With ``depth``, of pipelines of so many commands.
    """
    command = [str(program), "127.0.0.1", str(port), key, str(secs)]
    if depth > 0:
        command.append(str(depth))
    found: dict[str, float] = json.loads(_run(command, secs + 30))
    return found


def c_window(
    program: Path, port: int, key: str, secs: float, depth: int, work_ns: int
) -> dict[str, float]:
    """Run it with so many commands under way and so much work for each reply."""
    numbers = [str(secs), str(depth), str(work_ns)]
    found: dict[str, float] = json.loads(
        _run([str(program), "127.0.0.1", str(port), key, *numbers], secs + 30)
    )
    return found


def c_consumers(program: Path, port: int, secs: float, tasks: int, *what: str) -> dict[str, float]:
    """Run it for ``what``: stream or queue, and the two keys; messages per second and their
    CPU time in microseconds."""
    command = [str(program), "127.0.0.1", str(port), str(secs), str(tasks), *what]
    found: dict[str, float] = json.loads(_run(command, secs + 30))
    return found


def redis_benchmark(port: int, commands: int) -> float:
    """Operations per second of ``redis-benchmark -t get -P 64 -c 2``."""
    program = shutil.which("redis-benchmark")
    if program is None:
        raise BenchError("redis-benchmark is not on the PATH (apt install redis-tools)")
    numbers = ["-t", "get", "-P", "64", "-c", "2", "-n", str(commands)]
    lines = _run([program, "-p", str(port), *numbers, "--csv"], 120).splitlines()
    for row in csv.reader(lines):
        if row and row[0] == "GET":
            return float(row[1])
    raise BenchError(f"redis-benchmark said nothing of GET: {lines}")


@contextmanager
def delay_proxy(program: Path, port: int, each_way_us: int) -> Iterator[int]:
    """The port of a proxy to ``port`` that delays each direction."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([str(program), str(port), str(each_way_us)], **pipes) as proxy:
        try:
            assert proxy.stdout is not None
            yield int(proxy.stdout.readline())
        finally:
            proxy.kill()


def ping_us(port: int) -> float:
    """The median round trip of one PING at a time over a plain socket, in microseconds."""
    took: list[float] = []
    with socket.create_connection(("127.0.0.1", port), timeout=10.0) as plain:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(_PINGS):
            began = time.perf_counter()
            plain.sendall(b"PING\r\n")
            if plain.recv(64) != b"+PONG\r\n":
                raise BenchError(f"127.0.0.1:{port} did not answer PING")
            took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e6
