"""One run of the suite in a network namespace of its own, where every port is free.

    unshare -n python tests/upstream/inside.py < job.json

redis-py's tests name localhost:6379 in places, and other ports for TLS and for the
sentinels, so the servers listen on just those. The job is a JSON object, see Job.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

PORT = 6379
TLS_PORT = 6666
SENTINEL_PORTS = (26379, 26380, 26381)
MASTER = "redis-py-test"
_START_LIMIT = 20.0


@dataclass(frozen=True)
class Job:
    """What to run.

    tree: folder of the unpacked suite; server: command that starts the server;
    certificates: folder, for TLS; over: ``tcp`` or ``unix``; resp: ``2``, ``3`` or
    ``default``; shard: ``i/n``; only: file with names of tests, or empty;
    out: file for the results; log: file for what pytest prints; limit: seconds.
    """

    tree: str
    server: list[str]
    certificates: str
    over: str
    resp: str
    shard: str
    only: str
    out: str
    log: str
    limit: float
    arguments: list[str]


def _loopback_up() -> None:
    """What `ip link set lo up` does, for machines without it."""
    get_flags, set_flags, up = 0x8913, 0x8914, 0x1
    with socket.socket() as sock:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(sock, get_flags, request))[1]
        fcntl.ioctl(sock, set_flags, struct.pack("16sh14x", b"lo", flags | up))


def _start(argv: list[str], port: int, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    give_up = time.monotonic() + _START_LIMIT
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process
        except OSError:
            if process.poll() is not None or time.monotonic() > give_up:
                process.kill()
                sys.exit(f"{argv[-1]} did not start:\n{log.read_text(errors='replace')}")
            time.sleep(0.02)


def _servers(job: Job, folder: Path) -> list[subprocess.Popen[bytes]]:
    certificates = Path(job.certificates)
    settings = {
        "port": PORT,
        "tls-port": TLS_PORT,
        "tls-cert-file": certificates / "redis.crt",
        "tls-key-file": certificates / "redis.key",
        "tls-ca-cert-file": certificates / "ca.crt",
        "tls-auth-clients": "no",
        "unixsocket": folder / "socket",
        "dir": folder,
        "save": '""',
        "enable-debug-command": "yes",
    }
    config = folder / "redis.conf"
    config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    started = [_start([*job.server, str(config)], PORT, folder / "log")]
    for port in SENTINEL_PORTS:
        config = folder / f"sentinel-{port}.conf"
        config.write_text(
            f"port {port}\ndir {folder}\nsentinel monitor {MASTER} 127.0.0.1 {PORT} 2\n"
        )
        started.append(
            _start([*job.server, str(config), "--sentinel"], port, folder / f"log-{port}")
        )
    return started


def run(job: Job) -> int:
    """Start the servers, run pytest, stop the servers; pytest's exit code."""
    _loopback_up()
    with tempfile.TemporaryDirectory(prefix="upstream-") as name:
        folder = Path(name)
        servers = _servers(job, folder)
        path = folder / "socket"
        url = f"unix://{path}?db=0" if job.over == "unix" else f"redis://localhost:{PORT}/0"
        command = [sys.executable, "-X", "faulthandler", "-m", "pytest", "-p", "upstream_plugin"]
        command += ["-p", "no:cacheprovider", "-c", "pyproject.toml", "-o", "addopts="]
        command += ["-q", "--tb=short", "--no-header", "-W", "ignore", "--timeout=30"]
        command += ["--redis-url", url, "--redis-mod-url", url]
        command += ["--redis-ssl-url", f"rediss://localhost:{TLS_PORT}"]
        if job.resp != "default":
            command += ["--protocol", job.resp]
        environment = {
            **os.environ,
            "UPSTREAM_OUT": job.out,
            "UPSTREAM_SOCKET": str(path),
            "UPSTREAM_SHARD": job.shard,
            "UPSTREAM_ONLY": job.only,
        }
        here = str(Path(__file__).resolve().parent)
        before = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{here}:{before}" if before else here
        try:
            with open(job.log, "wb") as log:
                done = subprocess.run(
                    [*command, *job.arguments],
                    cwd=job.tree,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    timeout=job.limit,
                    check=False,
                )
            return done.returncode
        except subprocess.TimeoutExpired:
            return 124
        finally:
            for server in servers:
                server.kill()
            for server in servers:
                server.wait()


if __name__ == "__main__":
    sys.exit(run(Job(**json.load(sys.stdin))))
