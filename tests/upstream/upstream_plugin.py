"""A pytest plugin for redis-py's suite: how each test ended, and over whose connections.

For ``pytest -p upstream_plugin``. It changes no test. The environment says:

    UPSTREAM_OUT       file for the results, JSON
    UPSTREAM_SOCKET    Unix socket of the server that the tests talk to
    UPSTREAM_SHARD     "1/3": run the second third of the tests
    UPSTREAM_ONLY      file with the names of the tests to run, one a line; of these, the shard

Whose connections: the server counts the connections that it accepts, and here is
counted how many of them redis-py's own connection classes opened. The rest is ours.
A class that inherits everything from redis-py would so be found out.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis.asyncio.connection as async_connection
import redis.connection as sync_connection

# The suite switches it on for the whole run. That doubles the time, and no test looks.
tracemalloc.start = lambda *frames: None  # type: ignore[assignment]

_opened = {"redis": 0, "sync": 0}
_results: dict[str, dict[str, Any]] = {}


def _count(owner: type, kind: str) -> None:
    original: Callable[..., Any] = owner.__dict__["_connect"]

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        _opened[kind] += 1
        return original(self, *args, **kwargs)

    counted.__wrapped__ = original  # type: ignore[attr-defined]
    owner._connect = counted  # type: ignore[attr-defined]


for _kind, _module in (("redis", async_connection), ("sync", sync_connection)):
    _count(_module.Connection, _kind)
    _count(_module.UnixDomainSocketConnection, _kind)


class Observer:
    """The server's own counters, asked over one connection that is never counted."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self.connects = 0
        self.asked = 0

    def _ask(self) -> bytes:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(30)
            self._socket.connect(self._path)
            self.connects += 1
        self.asked += 1
        self._socket.sendall(b"*2\r\n$4\r\nINFO\r\n$5\r\nstats\r\n")
        stream = self._socket.makefile("rb")
        head = stream.readline()
        if not head.startswith(b"$"):
            raise OSError(f"INFO says {head!r}")
        return stream.read(int(head[1:]) + 2)

    def counters(self) -> tuple[int, int]:
        """Connections accepted and commands executed, those asked for here left out."""
        try:
            text = self._ask()
        except OSError:  # a test killed every client, or the server's users changed
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            text = self._ask()
        rows = dict(line.split(b":", 1) for line in text.splitlines() if b":" in line)
        connections = int(rows[b"total_connections_received"]) - self.connects
        return connections, int(rows[b"total_commands_processed"]) - self.asked


_observer = Observer(os.environ["UPSTREAM_SOCKET"])


@pytest.hookimpl(trylast=True)
def pytest_sessionstart() -> None:
    """Say that the server has none of the modules that the suite has tests for.

    A server 8 out of Debian lists its vector sets as a module, and the suite takes a
    list that is not empty for one that has all of them.
    """
    importlib.import_module("tests.conftest").REDIS_INFO["modules"] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep this shard's tests, or those that are named."""
    part, _, parts = os.environ.get("UPSTREAM_SHARD", "0/1").partition("/")
    named = os.environ.get("UPSTREAM_ONLY")
    kept = [item for item in items if zlib.crc32(item.nodeid.encode()) % int(parts) == int(part)]
    if named:
        with open(named) as file:
            wanted = set(file.read().splitlines())
        kept = [item for item in kept if item.nodeid in wanted]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[Any]:
    before, opened = _observer.counters(), dict(_opened)
    result = yield
    after = _observer.counters()
    row = _results.setdefault(item.nodeid, {"outcome": "passed"})
    theirs = _opened["redis"] - opened["redis"]
    sync = _opened["sync"] - opened["sync"]
    reset = after < before  # CONFIG RESETSTAT: the server has forgotten
    accepted = after[0] if reset else after[0] - before[0]
    row["talked"] = reset or after[1] > before[1]
    row["theirs"] = theirs
    row["ours"] = max(0, accepted - theirs - sync)
    return result


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    row = _results.setdefault(report.nodeid, {"outcome": "passed"})
    if report.failed:
        row["outcome"] = "failed"
        row["why"] = str(report.longreprtext)[-4000:]
    elif report.skipped and row["outcome"] != "failed":
        row["outcome"] = "xfailed" if hasattr(report, "wasxfail") else "skipped"


def pytest_sessionfinish() -> None:
    with open(os.environ["UPSTREAM_OUT"], "w") as file:
        json.dump(_results, file)
