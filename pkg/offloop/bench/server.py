"""A private redis-server in a temporary directory, stopped by its pid."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from .options import BenchError

_START_LIMIT = 20.0
_STOP_LIMIT = 5.0


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class PrivateServer:
    """A redis-server of our own (or what $REDIS_SERVER names), without persistence.

    Use it as a context manager; ``url`` is valid inside. It is also stopped
    at interpreter exit, so that an exception on the way leaves none behind.
    """

    def __init__(self, *, unix: bool = False) -> None:
        self._unix = unix
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self.port = 0
        self.path: Path | None = None
        self.url = ""

    def start(self) -> None:
        """Start the server and wait until it answers. Raises BenchError."""
        program = shutil.which(os.environ.get("REDIS_SERVER") or "redis-server")
        if program is None:
            raise BenchError(
                "redis-server is not on the PATH: install it (apt install redis-server), "
                "or name a running server with --url"
            )
        atexit.register(self.stop)
        self._folder = Path(tempfile.mkdtemp(prefix="offloop-bench-"))
        # Another process may take the port between our look and the server's bind.
        for _ in range(5):
            if self._launch(program, self._folder):
                return
        log = (self._folder / "redis.log").read_text(errors="replace")
        self.stop()
        raise BenchError(f"redis-server did not start:\n{log[-2000:]}")

    def _launch(self, program: str, folder: Path) -> bool:
        listen = ["--port", "0"]
        if self._unix:
            self.path = folder / "redis.sock"
            listen += ["--unixsocket", str(self.path)]
            self.url = f"unix://{self.path}"
        else:
            self.port = free_port()
            listen = ["--port", str(self.port), "--bind", "127.0.0.1"]
            self.url = f"redis://127.0.0.1:{self.port}/0"
        with (folder / "redis.log").open("wb") as log:
            self._process = subprocess.Popen(
                [program, *listen, "--save", "", "--appendonly", "no", "--dir", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal is for us; we stop the server ourselves.
                start_new_session=True,
            )
        end = time.monotonic() + _START_LIMIT
        while time.monotonic() < end and self._process.poll() is None:
            if self._answers():
                return True
            time.sleep(0.01)
        self._halt()
        return False

    def _answers(self) -> bool:
        try:
            with self.connect() as probe:
                probe.sendall(b"PING\r\n")
                return probe.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def connect(self) -> socket.socket:
        """A plain socket to the server."""
        family = socket.AF_INET if self.path is None else socket.AF_UNIX
        plain = socket.socket(family)
        try:
            plain.settimeout(5.0)
            plain.connect(("127.0.0.1", self.port) if self.path is None else str(self.path))
        except BaseException:
            plain.close()
            raise
        return plain

    @property
    def pid(self) -> int:
        """The server's process id. Raises BenchError when it is not running."""
        if self._process is None:
            raise BenchError("the private redis-server is not running")
        return self._process.pid

    def _halt(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def stop(self) -> None:
        """Stop the server and remove its directory. May be called twice."""
        atexit.unregister(self.stop)
        self._halt()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __enter__(self) -> PrivateServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
