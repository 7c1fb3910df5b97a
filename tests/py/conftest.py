"""What every test gets: a private server, a guard against hangs, a watch for leaks."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import signal
from collections.abc import Iterator
from types import FrameType

import pytest
from driving import HANG_LIMIT, run, settle
from leaks import Watch
from proxy import Proxy
from servers import Server, server_binary

try:
    import uvloop
except ImportError:  # the tests with it are skipped
    uvloop = None

# The guard raises in the main thread first; if that thread does not run Python code
# any more, faulthandler prints every stack and ends the process some seconds later.
_GRACE = 20.0
_stderr: list[int] = []


def pytest_collection_finish() -> None:
    """Keep what was imported out of every test's look for leaks: a second of it, each ten tests."""
    if uvloop is not None:
        uvloop.new_event_loop().close()  # the first one opens a pipe for signals, for good
    gc.collect()
    gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: runs for more than some seconds")
    config.addinivalue_line("markers", "soak: runs for minutes; only with -m soak")
    config.addinivalue_line("markers", "limit(secs): the test may take that long")
    config.addinivalue_line("markers", "compared: with redis.asyncio, which may connect")
    config.addinivalue_line("markers", "drivers: of databases, some with a server; run once")
    # Kept from before the capturing, or the stacks of a hang would be lost with it.
    _stderr.append(os.dup(2))


def _limit(item: pytest.Item) -> float:
    marker = item.get_closest_marker("limit")
    if marker is not None:
        return float(marker.args[0])
    return HANG_LIMIT * (5 if item.get_closest_marker("slow") else 1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    limit = _limit(item)

    def hung(number: int, frame: FrameType | None) -> None:
        faulthandler.dump_traceback(file=_stderr[0])
        raise AssertionError(f"{item.nodeid} hangs: {limit:.0f} s are over")

    before = signal.signal(signal.SIGALRM, hung)
    signal.setitimer(signal.ITIMER_REAL, limit)
    faulthandler.dump_traceback_later(limit + _GRACE, exit=True, file=_stderr[0])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """An `async def` test runs in a loop of its own."""
    if not asyncio.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in wanted}
    run(pyfuncitem.obj(**arguments), limit=_limit(pyfuncitem) - 5)
    return True


@pytest.fixture(autouse=True)
def leaks() -> Iterator[Watch]:
    """Fails the test that left an unhandled error, a thread, a descriptor or a future."""
    watch = Watch()
    yield watch
    wrong = watch.close()
    if wrong:
        if len(wrong) > 20:
            wrong[20:] = [f"and {len(wrong) - 20} more"]
        pytest.fail("\n".join(wrong), pytrace=False)


@pytest.fixture(scope="session")
def _shared_server() -> Iterator[Server]:
    if server_binary() is None:
        pytest.exit("no redis-server found: apt install redis-server", 3)
    with Server() as server:
        yield server


@pytest.fixture
def server(_shared_server: Server) -> Iterator[Server]:
    """An empty server. Connections that a test leaves open on it fail the test."""
    server = _shared_server
    if server.process is None or server.process.poll() is not None:
        server.start()
    server.cmd("FLUSHALL")
    server.cmd("CONFIG", "RESETSTAT")
    before = server.client_ids()
    yield server
    left = settle(lambda: server.client_ids() - before)
    if left:
        rows = [row for row in server.clients() if row["id"] in left]
        pytest.fail(f"connections left open: {rows}", pytrace=False)


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server of this test alone, which it may stop, pause and kill."""
    with Server() as server:
        yield server


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    """A TCP proxy before the server."""
    with Proxy(server.path) as proxy:
        yield proxy
