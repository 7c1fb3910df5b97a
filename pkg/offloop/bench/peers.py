"""The clients that are compared, one class each.

A peer opens its client on the running loop, turns a workload into a callable
that makes one awaitable, and closes the client. Each has the options its own
documentation recommends for many tasks on one server.
"""

from __future__ import annotations

import functools
import importlib
from asyncio import get_running_loop
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import redis
import redis.asyncio

from .. import redis as offloop_redis
from .measure import Command
from .options import BenchError, url_parts
from .workload import Workload


@dataclass(frozen=True)
class Setup:
    """What a peer may be told: the server, and its own numbers.

    ``workers`` None is offloop's default.
    """

    peer: str
    url: str
    workers: int | None = None
    threads: int = 4
    connections: int = 50


class Peer(Protocol):
    """A client on the running loop."""

    async def open(self) -> None:
        """Make the client ready."""

    def command(self, workload: Workload) -> Command:
        """A callable that starts one command and returns what to await."""
        ...

    async def aclose(self) -> None:
        """Close the client."""


async def _pipelined(client: Any, workload: Workload) -> Any:
    pipe = client.pipeline(transaction=False)
    queue = getattr(pipe, workload.method)
    for _ in range(workload.depth):
        queue(*workload.args, **workload.kwargs)
    return await pipe.execute()


def _bound(client: object, workload: Workload) -> Command:
    if workload.depth > 0:
        return functools.partial(_pipelined, client, workload)
    method = getattr(client, workload.method)
    call: Command = functools.partial(method, *workload.args, **workload.kwargs)
    return call


class ExecutorPeer:
    """The blocking redis-py client through ``loop.run_in_executor``."""

    def __init__(self, setup: Setup) -> None:
        self._client = redis.Redis.from_url(setup.url)
        self._threads = ThreadPoolExecutor(setup.threads)

    async def open(self) -> None:
        await get_running_loop().run_in_executor(self._threads, self._client.ping)

    def command(self, workload: Workload) -> Command:
        if workload.depth > 0:
            raise BenchError("the executor takes part without pipelines")
        run = get_running_loop().run_in_executor
        return functools.partial(run, self._threads, _bound(self._client, workload))

    async def aclose(self) -> None:
        self._threads.shutdown()
        self._client.close()


class AsyncioPeer:
    """redis.asyncio with a pool that makes tasks wait for a connection.

    Its default pool raises MaxConnectionsError when more tasks come.
    """

    def __init__(self, setup: Setup) -> None:
        self._pool = redis.asyncio.BlockingConnectionPool.from_url(
            setup.url, max_connections=setup.connections, timeout=None
        )
        self._client = redis.asyncio.Redis(connection_pool=self._pool)

    async def open(self) -> None:
        await self._client.ping()

    def command(self, workload: Workload) -> Command:
        return _bound(self._client, workload)

    async def aclose(self) -> None:
        await self._client.aclose()
        await self._pool.aclose()


class CoredisPeer:
    """coredis, whose pool waits for a connection by itself."""

    def __init__(self, setup: Setup) -> None:
        coredis: Any = importlib.import_module("coredis")
        self._client = coredis.Redis.from_url(setup.url, max_connections=setup.connections)

    async def open(self) -> None:
        await self._client.__aenter__()

    def command(self, workload: Workload) -> Command:
        if workload.method != "get" or workload.depth > 0:
            raise BenchError("coredis takes part with get only")
        return _bound(self._client, workload)

    async def aclose(self) -> None:
        await self._client.__aexit__(None, None, None)


class GlidePeer:
    """valkey-glide, which multiplexes over one connection."""

    # Its default refuses the 1001st command in flight.
    _IN_FLIGHT = 1_000_000
    _REQUEST_TIMEOUT_MS = 60_000

    def __init__(self, setup: Setup) -> None:
        glide: Any = importlib.import_module("glide")
        parts = url_parts(setup.url)
        if "path" in parts:
            address = glide.NodeAddress(unix_socket_path=parts["path"])
        else:
            address = glide.NodeAddress(parts.get("host", "localhost"), parts.get("port", 6379))
        password = parts.get("password")
        credentials = None
        if password is not None:
            credentials = glide.ServerCredentials(password, parts.get("username"))
        self._open = glide.GlideClient.create
        self._options = glide.GlideClientConfiguration(
            [address],
            use_tls=setup.url.lower().startswith("rediss:"),
            credentials=credentials,
            database_id=parts.get("db", 0),
            inflight_requests_limit=self._IN_FLIGHT,
            request_timeout=self._REQUEST_TIMEOUT_MS,
        )
        self._client: Any = None

    async def open(self) -> None:
        self._client = await self._open(self._options)

    def command(self, workload: Workload) -> Command:
        if workload.method != "get" or workload.depth > 0:
            raise BenchError("glide takes part with get only")
        return _bound(self._client, workload)

    async def aclose(self) -> None:
        await self._client.close()


class OffloopPeer:
    """offloop's drop-in client."""

    def __init__(self, setup: Setup) -> None:
        numbers = {} if setup.workers is None else {"workers": setup.workers}
        self._client = offloop_redis.from_url(setup.url, **numbers)

    async def open(self) -> None:
        await self._client.ping()

    def command(self, workload: Workload) -> Command:
        return _bound(self._client, workload)

    async def aclose(self) -> None:
        await self._client.aclose()


def make_peer(setup: Setup) -> Peer:
    """The peer that ``setup`` names. Raises BenchError for an unknown name."""
    if setup.peer == "executor":
        return ExecutorPeer(setup)
    if setup.peer == "asyncio":
        return AsyncioPeer(setup)
    if setup.peer == "coredis":
        return CoredisPeer(setup)
    if setup.peer == "glide":
        return GlidePeer(setup)
    if setup.peer == "offloop":
        return OffloopPeer(setup)
    raise BenchError(f"unknown peer {setup.peer!r}")
