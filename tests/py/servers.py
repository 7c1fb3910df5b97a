"""Private Redis servers for the tests: started here, stopped here, nobody else's.

Each server listens on a Unix socket in its own temporary directory and on a free
TCP port of 127.0.0.1. `REDIS_SERVER=/path/to/valkey-server` runs the suite
against another server binary.

What the server itself says (CLIENT LIST, counters, databases) is asked through
`Server.cmd`, redis-py's blocking client on a connection of its own that is closed
at once, so that nothing here shares code with what is tested.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import redis as sync_redis

START_LIMIT = 60.0
STOP_LIMIT = 60.0

# The name under which `Server.cmd` shows up in CLIENT LIST, to be left out of counts.
OBSERVER = "observer"


def server_binary() -> str | None:
    """The server to start: $REDIS_SERVER, else redis-server, else valkey-server."""
    named = os.environ.get("REDIS_SERVER")
    if named:
        return named
    return shutil.which("redis-server") or shutil.which("valkey-server")


def quoted(value: str) -> str:
    """A value as the server's configuration file takes it."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago.

    Below those that the kernel gives to connections: of these there are thousands while
    the tests run, and one could have the port before the server, or between its end and
    its next start.
    """
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


class Server:
    """One server process.

    `options` are server options as the command line takes them, without dashes:
    `Server(appendonly="yes", requirepass="x", save="")`.
    """

    def __init__(self, **options: str) -> None:
        # A Unix socket's path is short by law; the usual temporary folder may be deep.
        deep = len(tempfile.gettempdir()) > 60
        self.dir = Path(tempfile.mkdtemp(prefix="offloop-test-", dir="/tmp" if deep else None))
        self.path = str(self.dir / "s")
        self.port = free_port()
        self.password: str | None = options.get("requirepass")
        self.options = {
            "bind": "127.0.0.1 -::1",
            "port": str(self.port),
            "unixsocket": self.path,
            "dir": str(self.dir),
            "save": "",
            "appendonly": "no",
            "enable-debug-command": "yes",
            "maxclients": "4000",
            "daemonize": "no",
            **{name.replace("_", "-"): value for name, value in options.items()},
        }
        self.process: subprocess.Popen[bytes] | None = None

    # --- life ------------------------------------------------------------------

    def start(self) -> Server:
        """Start (again, with the same port, path and data) and wait until it answers."""
        binary = server_binary()
        if binary is None:
            raise RuntimeError("no redis-server found: apt install redis-server")
        config = "".join(
            f"{name} {value if name == 'bind' else quoted(value)}\n"
            for name, value in self.options.items()
        )
        (self.dir / "conf").write_text(config)
        with open(self.dir / "log", "ab") as log:
            self.process = subprocess.Popen(
                [binary, str(self.dir / "conf")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        give_up = time.monotonic() + START_LIMIT
        while True:
            try:
                self.cmd("PING")
                return self
            except (sync_redis.ConnectionError, sync_redis.TimeoutError):
                if self.process.poll() is not None or time.monotonic() > give_up:
                    log_text = (self.dir / "log").read_text(errors="replace")
                    raise RuntimeError(f"{binary} did not start:\n{log_text}") from None
                time.sleep(0.02)

    def stop(self) -> None:
        """SIGTERM and wait. Nothing happens when it is not running."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9 and wait."""
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.send_signal(number)
        try:
            process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def pause(self) -> None:
        """SIGSTOP: it accepts connections (the kernel does) and answers nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def remove(self) -> None:
        """Stop it and delete its directory."""
        self.stop()
        shutil.rmtree(self.dir, ignore_errors=True)

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.remove()

    # --- addresses ---------------------------------------------------------------

    @property
    def url(self) -> str:
        """redis:// with the password when there is one."""
        secret = f":{self.password}@" if self.password else ""
        return f"redis://{secret}127.0.0.1:{self.port}/0"

    @property
    def unix_url(self) -> str:
        """unix:// with the password when there is one."""
        secret = f":{self.password}@" if self.password else ""
        return f"unix://{secret}{self.path}?db=0"

    @property
    def unix(self) -> dict[str, Any]:
        """Keyword arguments of a client over the Unix socket."""
        return {"unix_socket_path": self.path, **self._secret()}

    @property
    def tcp(self) -> dict[str, Any]:
        """Keyword arguments of a client over TCP."""
        return {"host": "127.0.0.1", "port": self.port, **self._secret()}

    def _secret(self) -> dict[str, Any]:
        return {"password": self.password} if self.password else {}

    # --- what the server says ----------------------------------------------------

    def cmd(self, *args: Any, db: int = 0) -> Any:
        """One command on a connection of its own; the raw reply, decoded."""
        with sync_redis.Redis(
            unix_socket_path=self.path,
            db=db,
            password=self.password,
            decode_responses=True,
            protocol=2,
            client_name=OBSERVER,
            socket_timeout=60,
            retry=None,
        ) as client:
            client.response_callbacks.clear()
            return client.execute_command(*args)

    def clients(self) -> list[dict[str, str]]:
        """CLIENT LIST without the observer, one dict a connection."""
        lines = str(self.cmd("CLIENT LIST")).splitlines()
        rows = [
            dict(field.partition("=")[::2] for field in line.split(" ")) for line in lines if line
        ]
        return [row for row in rows if row["name"] != OBSERVER]

    def client_ids(self) -> set[str]:
        """The ids of the connections there are."""
        return {row["id"] for row in self.clients()}

    def calls(self, name: str) -> int:
        """How often the command was executed (INFO commandstats; `config|get` for two words)."""
        text = str(self.cmd("INFO", "commandstats"))
        for line in text.splitlines():
            if line.startswith(f"cmdstat_{name.lower()}:"):
                return int(line.split("calls=")[1].split(",")[0])
        return 0

    def accepted(self) -> int:
        """Connections accepted since the start, the observer's own included."""
        text = str(self.cmd("INFO", "stats"))
        line = next(
            row for row in text.splitlines() if row.startswith("total_connections_received")
        )
        return int(line.split(":")[1])

    def kill_clients(self) -> int:
        """CLIENT KILL of every connection but the observer's; how many it were."""
        count = 0
        for row in self.clients():
            count += int(self.cmd("CLIENT", "KILL", "ID", row["id"]))
        return count
