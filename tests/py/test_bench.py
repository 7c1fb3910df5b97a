"""``python -m offloop bench`` as a person runs it, at a tiny duration."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import offloop.bench
import pytest
from offloop.bench.measure import Heartbeat, closed_loop, percentile
from offloop.bench.options import BenchError, redacted
from offloop.bench.peers import Setup
from offloop.bench.server import PrivateServer
from offloop.bench.worker import Task, measure
from servers import Server

PACKAGE = Path(offloop.bench.__file__).parent
LIMIT = 200.0
TINY = ("--secs", "0.1", "--rounds", "1", "--tasks", "1,5", "--workers", "1")
PAIR = ("--peers", "asyncio,offloop")
SUITE = Path(__file__).resolve().parents[2] / "bench" / "run.py"

needs_extra = pytest.mark.skipif(
    importlib.util.find_spec("rich") is None or importlib.util.find_spec("matplotlib") is None,
    reason="needs the extra 'bench'",
)


def environment(*first: Path) -> dict[str, str]:
    """The environment of a child that imports the offloop that is tested here."""
    folders = [*map(str, first), str(PACKAGE.parents[1]), os.environ.get("PYTHONPATH", "")]
    return dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, folders)))


def command_line(
    *arguments: str, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "offloop", *arguments],
        cwd=cwd,
        env=environment() if env is None else env,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@needs_extra
@pytest.mark.slow
def test_comparison_gives_table_json_and_plot(tmp_path: Path) -> None:
    files = ("--json", "out.json", "--plot", "out.png")
    done = command_line("bench", *TINY, *PAIR, *files, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    # tasks, client (two or three words), ops/s, p50, p99, CPU, ratio
    assert [(row[0], row[-1]) for row in rows if row[1:2] == ["redis.asyncio"]] == [
        ("1", "1.00x"),
        ("5", "1.00x"),
    ]
    assert len([row for row in rows if row[1:4] == ["offloop,", "1", "worker"]]) == 2

    content: dict[str, Any] = json.loads((tmp_path / "out.json").read_text())
    assert content["machine"]["cpus"] >= 1
    assert content["options"]["tasks"] == [1, 5]
    seen = [(one["peer"], one["workers"], one["tasks"]) for one in content["results"]]
    assert seen == [
        ("asyncio", None, 1),
        ("offloop", 1, 1),
        ("asyncio", None, 5),
        ("offloop", 1, 5),
    ]
    for one in content["results"]:
        assert len(one["rounds"]) == 1
        sample = one["rounds"][0]
        assert sample["ops"] > 0 and sample["secs"] > 0.05
        assert sample["ops_per_s"] == pytest.approx(sample["ops"] / sample["secs"])
        assert 0 < sample["p50_us"] <= sample["p99_us"]
        assert sample["cpu_us"] > 0
        assert one["median"]["ops_per_s"] == sample["ops_per_s"]
        assert one["ratio"] > 0

    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert str(tmp_path / "out.png") in done.stdout
    port = int(content["url"].rsplit(":", 1)[1].split("/")[0])
    assert refuses(port), "the private server is still there"


@needs_extra
def test_given_server_keeps_its_own_keys_and_nothing_of_ours(
    server: Server, tmp_path: Path
) -> None:
    server.cmd("SET", "mine", "kept")
    url = f"unix://{server.path}"
    done = command_line("bench", *TINY, "--url", url, "--peers", "offloop", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert server.cmd("KEYS", "*") == ["mine"]


@needs_extra
@pytest.mark.slow
def test_every_installed_peer_takes_part_by_default(tmp_path: Path) -> None:
    line = ("--secs", "0.1", "--rounds", "1", "--tasks", "5", "--workers", "2")
    done = command_line("bench", *line, "--json", "out.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    wanted = {"executor", "asyncio", "offloop"}
    wanted |= {name for name in ("coredis", "glide") if importlib.util.find_spec(name)}
    assert {one["peer"] for one in results} == wanted


@needs_extra
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--peers", "nobody"), "unknown peer 'nobody'"),
        (("--peers", "asyncio,asyncio"), "twice"),
        (("--url", "http://localhost"), "not a Redis URL"),
        (("--tasks", "0"), "0 is not within 1 to"),
        (("--tasks", "1,x"), "'x' is not a whole number"),
        (("--workers", "1025"), "1025 is not within 1 to 1024"),
        (("--secs", "0"), "not within 0.01 to"),
        (("--secs", "nan"), "not within 0.01 to"),
        (("--rounds", "none"), "'none' is not a whole number"),
        (("--json", "no/such/file"), "no directory"),
        (("--plot", "plot.doc"), "does not end in .png"),
        (("--unix", "--url", "redis://localhost"), "not allowed with"),
    ],
)
def test_bad_argument_is_named(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = command_line("bench", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@needs_extra
def test_server_that_is_not_there(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        url = f"redis://me:hunter2@127.0.0.1:{port}/0"
        done = command_line("bench", *TINY, "--url", url, cwd=tmp_path)
    assert done.returncode == 2
    assert f"redis://127.0.0.1:{port}/0" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@needs_extra
def test_wrong_password_is_not_repeated(tmp_path: Path) -> None:
    with Server(requirepass="correct-horse") as server:
        url = f"redis://:hunter2@127.0.0.1:{server.port}/0"
        done = command_line("bench", *TINY, "--url", url, cwd=tmp_path)
    assert done.returncode == 2
    assert f"redis://127.0.0.1:{server.port}/0: " in done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@needs_extra
def test_no_redis_server_on_the_path(tmp_path: Path) -> None:
    env = dict(environment(), PATH=str(tmp_path))
    env.pop("REDIS_SERVER", None)
    done = command_line("bench", *TINY, cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert "redis-server" in done.stderr and "--url" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["rich", "matplotlib"])
def test_missing_extra_is_named(name: str, tmp_path: Path) -> None:
    if name == "matplotlib" and importlib.util.find_spec("rich") is None:
        pytest.skip("rich is missed first")
    absent = tmp_path / "absent"
    absent.mkdir()
    error = f"raise ModuleNotFoundError('No module named {name}', name={name!r})\n"
    (absent / f"{name}.py").write_text(error)
    done = command_line("bench", *TINY, "--plot", "out.png", cwd=tmp_path, env=environment(absent))
    assert done.returncode == 2
    assert f"{name} is not installed: pip install 'offloop[bench]'" in done.stderr
    assert "Traceback" not in done.stderr


@needs_extra
def test_terminated_comparison_stops_its_server(tmp_path: Path) -> None:
    env = dict(environment(), TMPDIR=str(tmp_path))
    line = ("bench", "--secs", "60", "--peers", "offloop", "--tasks", "1", "--workers", "1")
    with subprocess.Popen([sys.executable, "-m", "offloop", *line], env=env) as running:
        end = time.monotonic() + LIMIT
        while not list(tmp_path.glob("offloop-bench-*/redis.log")):
            assert time.monotonic() < end, "the server was never started"
            time.sleep(0.02)
        running.send_signal(signal.SIGTERM)
        assert running.wait(LIMIT) == 128 + signal.SIGTERM
    assert not list(tmp_path.glob("offloop-bench-*"))


def test_private_server_ends_with_its_block() -> None:
    for unix in (False, True):
        with PrivateServer(unix=unix) as server:
            pid, path = server.pid, server.path
            assert (path is not None) == unix
            os.kill(pid, 0)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        with pytest.raises(BenchError):
            _ = server.pid


def test_measurement_says_what_went_wrong(server: Server) -> None:
    # The keys of the workload are not there, so the reply is not the expected one.
    with pytest.raises(BenchError, match=r"asyncio at tasks=1: .*answered None"):
        measure(Task(Setup("asyncio", f"unix://{server.path}"), 1, 0.05))
    with pytest.raises(BenchError, match="unknown peer 'nobody'"):
        measure(Task(Setup("nobody", f"unix://{server.path}"), 1, 0.05))


def test_example_of_the_demo_runs(server: Server, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(PACKAGE / "example.py"), f"unix://{server.path}"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "10,000 visits counted, the last was number 10,000" in done.stdout
    assert server.cmd("GET", "visits") == "10000"


@pytest.mark.slow
@pytest.mark.skipif(
    not SUITE.is_file()
    or shutil.which("gcc") is None
    or shutil.which("redis-benchmark") is None
    or importlib.util.find_spec("hiredis") is None,
    reason="needs the source tree, gcc, redis-benchmark and hiredis",
)
def test_suite_prints_a_row_for_each_target(tmp_path: Path) -> None:
    line = ["--rounds", "1", "--secs", "0.05", "--only", "get", "round_trip", "heartbeat"]
    done = subprocess.run(
        [sys.executable, str(SUITE), *line, "--json", str(tmp_path / "out.json")],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    judged = [row for row in rows if row["ok"] is not None]
    assert len(judged) == 9
    for row in judged:
        verdict = "ok" if row["ok"] else "MISS"
        assert any(
            row["name"] in shown and shown.endswith(verdict) for shown in done.stdout.splitlines()
        )


@pytest.mark.skipif(not SUITE.is_file(), reason="needs the source tree")
def test_suite_says_what_the_host_has_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SUITE.parent))
    host = importlib.import_module("host")
    ticks = iter(host.CpuTime(*at) for at in ((5, 100), (25, 200), (25, 300), (28, 400), (28, 500)))
    last = host.CpuTime(28, 600)
    watch = host.Watch(clock=lambda: next(ticks, last))
    numbers = iter(range(3))
    assert [watch.measured(lambda: next(numbers)) for _ in range(3)] == [0, 1, 2]
    assert watch.shares == pytest.approx([0.2, 0.03, 0.0])
    assert str(watch) == "3.0%, 20.0% at most"
    now = host.CpuTime.now()
    assert 0 <= now.stolen <= now.total


def test_percentile() -> None:
    values = [float(value) for value in range(1, 101)]
    assert percentile(values, 0.5) == 51.0
    assert percentile(values, 0.99) == 100.0
    assert percentile([7.0], 0.99) == 7.0
    assert percentile([], 0.5) == 0.0


async def test_closed_loop_counts_what_was_answered() -> None:
    answered = 0
    most = running = 0

    async def command() -> None:
        nonlocal answered, most, running
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        answered += 1

    warm = await closed_loop(command, tasks=20, secs=0.05, warmup=0.0)
    # The warm-up of no length still answers one command for each task.
    assert answered - 20 <= warm.ops <= answered
    assert most == 20
    assert warm.ops_per_s == pytest.approx(warm.ops / warm.secs)
    assert warm.lateness is None


async def test_heartbeat_notices_a_loop_that_stands_still() -> None:
    beat = Heartbeat(asyncio.get_running_loop())
    await asyncio.sleep(0.01)
    time.sleep(0.2)
    await asyncio.sleep(0.01)
    late = beat.stop()
    assert late.max_ms >= 190.0
    assert late.p50_ms <= late.p99_ms <= late.max_ms


def test_redacted_url_has_no_secret() -> None:
    assert redacted("redis://me:pw@host:7000/3?password=pw") == "redis://host:7000/3"
    assert redacted("rediss://:pw@[::1]/0") == "rediss://[::1]:6379/0"
    assert redacted("unix://me:pw@/run/redis.sock?db=1") == "unix:///run/redis.sock"
