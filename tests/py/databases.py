"""Private database servers for the tests: PostgreSQL and MariaDB, on Unix sockets.

Each keeps its data in a temporary directory of its own and listens on a socket there and
nowhere else. One that cannot be started is an error.
"""

from __future__ import annotations

import glob
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

START_LIMIT = 60.0
STOP_LIMIT = 20.0


def odbc_driver(name: str) -> str:
    """The path of one of Debian's ODBC drivers."""
    found = glob.glob(f"/usr/lib/*/odbc/{name}")
    if not found:
        raise RuntimeError(f"the ODBC driver {name} is not installed (.ci/system.sh drivers)")
    return found[0]


def unpool_odbc() -> None:
    """Have pyodbc close what is closed: unixODBC keeps it for later, from 2.3.12 on."""
    import pyodbc  # noqa: PLC0415  # not there where its tests do not run

    pyodbc.pooling = False  # heeded until the first connection


def configure_odbc(folder: Path) -> None:
    """Have ODBC know Debian's drivers by what is written here: no logs, above all."""
    (folder / "odbcinst.ini").write_text(
        f"[SQLite3]\nDriver={odbc_driver('libsqlite3odbc.so')}\n"
        + "".join(
            f"[{name}]\nDriver={odbc_driver('psqlodbcw.so')}\nDebug=0\nCommLog=0\n"
            for name in ("PostgreSQL Unicode", "PostgreSQL")
        )
    )
    os.environ["ODBCSYSINI"] = str(folder)
    unpool_odbc()


class Database:
    """A server process in a directory of its own."""

    program = ""
    user: str | None = None  # that it runs as, if we are root

    def __init__(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="offloop-db-"))
        self.process: subprocess.Popen[bytes] | None = None

    def _as_user(self) -> list[str]:
        # A sanitizer that is loaded before the interpreter is not for the server; which
        # ends with the process that started it, however that ends.
        prefix = ["env", "--unset=LD_PRELOAD", "setpriv", "--pdeathsig", "TERM"]
        if self.user is not None and os.geteuid() == 0:
            shutil.chown(self.dir, self.user)
            prefix += [f"--reuid={self.user}", f"--regid={self.user}", "--init-groups"]
        return [*prefix, "--"]

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            [*self._as_user(), *command],
            cwd=self.dir,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{command[0]} failed:\n{done.stdout}{done.stderr}")

    def _serve(self, command: list[str], connect: Callable[[], Any]) -> None:
        with open(self.dir / "log", "ab") as log:
            self.process = subprocess.Popen(
                [*self._as_user(), *command],
                cwd=self.dir,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        give_up = time.monotonic() + START_LIMIT
        while True:
            try:
                connect().close()
                return
            except Exception as error:
                if self.process.poll() is not None or time.monotonic() > give_up:
                    text = (self.dir / "log").read_text(errors="replace")
                    raise RuntimeError(f"{command[0]} did not start:\n{text}{error}") from error
                time.sleep(0.05)

    def start(self) -> None:
        """Make its files, start it, and wait until it answers."""
        raise NotImplementedError

    def __enter__(self) -> Any:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        process, self.process = self.process, None
        if process is not None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(STOP_LIMIT)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)


class Postgres(Database):
    """PostgreSQL; the user and the database are called test."""

    user = "postgres"

    def start(self) -> None:
        """initdb and postgres."""
        import psycopg  # noqa: PLC0415  # not there where these tests do not run

        folder = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
        if not folder:
            raise RuntimeError("PostgreSQL is not installed (.ci/system.sh drivers)")
        self._run(
            f"{folder[-1]}/initdb", "-D", "data", "-A", "trust", "-U", "test", "--no-sync",
            "--no-instructions", "--locale=C.UTF-8",
        )  # fmt: skip
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.dir),
            "fsync": "off",
            "max_connections": "50",
            "max_prepared_transactions": "4",
            "shared_buffers": "16MB",
        }
        command = [f"{folder[-1]}/postgres", "-D", "data"]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        self._serve(command, lambda: psycopg.connect(self.dsn))

    @property
    def dsn(self) -> str:
        """As libpq has it."""
        return f"host={self.dir} user=test dbname=postgres"

    @property
    def odbc(self) -> str:
        """As ODBC has it."""
        where = f"Servername={self.dir};Port=5432;Username=test;Database=postgres"
        return f"Driver={odbc_driver('psqlodbcw.so')};{where}"


class Mariadb(Database):
    """MariaDB; there are no passwords, and the database is called test."""

    @property
    def socket(self) -> str:
        """The path of its socket."""
        return str(self.dir / "s")

    def start(self) -> None:
        """mariadbd, without system tables: everybody may do everything."""
        import pymysql  # noqa: PLC0415  # not there where these tests do not run

        me = ["--user=root"] if os.geteuid() == 0 else []
        server = shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin")
        if server is None:
            raise RuntimeError("MariaDB is not installed (.ci/system.sh drivers)")
        (self.dir / "data").mkdir()
        command = [
            server, "--no-defaults", *me, f"--datadir={self.dir}/data",
            f"--socket={self.socket}", f"--pid-file={self.dir}/pid", "--skip-networking",
            "--skip-grant-tables", "--skip-name-resolve", "--skip-log-bin",
            "--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=16M",
        ]  # fmt: skip

        def connect() -> Any:
            return pymysql.connect(unix_socket=self.socket, user="root")

        self._serve(command, connect)
        with connect() as db:
            db.cursor().execute("create database test")
