"""What a comparison is asked to do, checked before anything is started."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis.connection

PLOT_SUFFIXES = (".png", ".svg", ".pdf")

#: Every peer, in the order of the table, with the module it needs.
PEER_MODULES = {
    "executor": "redis",
    "asyncio": "redis",
    "coredis": "coredis",
    "glide": "glide",
    "offloop": "offloop",
}

#: The peer all others are compared with.
BASELINE = "asyncio"


#: redis-py's own reading of a URL, which has no types.
url_parts: Callable[[str], dict[str, Any]] = redis.connection.parse_url


class BenchError(Exception):
    """A comparison cannot go on; the message is for the person at the terminal."""


@dataclass(frozen=True)
class Options:
    """One comparison.

    ``url`` is None for a private server; ``secs`` is the measured time of one
    measurement in seconds; ``threads`` is the thread count of run_in_executor
    and ``connections`` the pool size of redis.asyncio and coredis.
    """

    url: str | None = None
    unix: bool = False
    tasks: tuple[int, ...] = (1, 50, 1000)
    workers: tuple[int, ...] = (1, 2, 4)
    secs: float = 2.0
    rounds: int = 3
    peers: tuple[str, ...] = ("executor", "asyncio", "offloop")
    threads: int = 4
    connections: int = 50
    json: Path | None = None
    plot: Path | None = None


def installed(peer: str) -> bool:
    """Whether the module that a peer needs can be imported."""
    return importlib.util.find_spec(PEER_MODULES[peer]) is not None


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not within {low} to {high}")
        return value

    return parse


def _integers(low: int, high: int) -> Callable[[str], tuple[int, ...]]:
    one = _integer(low, high)

    def parse(text: str) -> tuple[int, ...]:
        values = tuple(one(part) for part in text.split(","))
        if len(set(values)) != len(values):
            raise argparse.ArgumentTypeError(f"{text!r} names a value twice")
        return values

    return parse


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0.01 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not within 0.01 to 3600 seconds")
    return value


def _peers(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in PEER_MODULES:
            known = ", ".join(PEER_MODULES)
            raise argparse.ArgumentTypeError(f"unknown peer {name!r}; there are {known}")
        if not installed(name):
            raise argparse.ArgumentTypeError(
                f"{name} is not installed: pip install 'offloop[bench]'"
            )
    if len(set(names)) != len(names):
        raise argparse.ArgumentTypeError(f"{text!r} names a peer twice")
    return names


def _url(text: str) -> str:
    try:
        url_parts(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not a Redis URL: {error}") from None
    return text


def _output(text: str) -> Path:
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a directory, not a file")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"no directory {path.parent} to write {path.name} in")
    return path


def _plot(text: str) -> Path:
    path = _output(text)
    if path.suffix not in PLOT_SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text} does not end in {', '.join(PLOT_SUFFIXES)}")
    return path


def add_arguments(parser: argparse.ArgumentParser, default: Options) -> None:
    """Give ``parser`` the arguments of a comparison, with ``default`` as defaults."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--url",
        type=_url,
        metavar="URL",
        help="the server to use; a few keys named offloop:bench:* are written there and deleted "
        "(default: start a private redis-server on 127.0.0.1)",
    )
    where.add_argument(
        "--unix", action="store_true", help="put the private server on a Unix socket instead"
    )
    parser.add_argument(
        "--tasks",
        type=_integers(1, 1_000_000),
        default=default.tasks,
        metavar="N,N,...",
        help="how many tasks await at the same time (default: 1,50,1000)",
    )
    parser.add_argument(
        "--workers",
        type=_integers(1, 1024),
        default=default.workers,
        metavar="N,N,...",
        help="offloop's worker counts (default: 1,2,4)",
    )
    parser.add_argument(
        "--secs",
        type=_seconds,
        default=default.secs,
        metavar="S",
        help=f"seconds of each measurement (default: {default.secs:g})",
    )
    parser.add_argument(
        "--rounds",
        type=_integer(1, 1000),
        default=default.rounds,
        metavar="N",
        help=f"interleaved rounds, of which the median counts (default: {default.rounds})",
    )
    parser.add_argument(
        "--peers",
        type=_peers,
        default=default.peers,
        metavar="NAME,...",
        help=f"any of {', '.join(PEER_MODULES)} (default: {','.join(default.peers)})",
    )
    parser.add_argument(
        "--threads",
        type=_integer(1, 1024),
        default=default.threads,
        metavar="N",
        help="threads of run_in_executor (default: 4)",
    )
    parser.add_argument(
        "--connections",
        type=_integer(1, 10_000),
        default=default.connections,
        metavar="N",
        help="connections of redis.asyncio's and coredis's pool (default: 50)",
    )
    parser.add_argument(
        "--json", type=_output, metavar="FILE", help="write every round as JSON to FILE"
    )
    parser.add_argument(
        "--plot",
        type=_plot,
        default=default.plot,
        metavar="FILE",
        help="draw the result (.png, .svg or .pdf)",
    )


def from_arguments(found: argparse.Namespace) -> Options:
    """The options that a parser prepared by :func:`add_arguments` has read."""
    return Options(
        url=found.url,
        unix=found.unix,
        tasks=found.tasks,
        workers=found.workers,
        secs=found.secs,
        rounds=found.rounds,
        peers=found.peers,
        threads=found.threads,
        connections=found.connections,
        json=found.json,
        plot=found.plot,
    )


def redacted(url: str) -> str:
    """``url`` without user, password and query: fit for a screen or a file."""
    parts = url_parts(url)
    if "path" in parts:
        return f"unix://{parts['path']}"
    scheme = url.split(":", 1)[0].lower()
    host = parts.get("host", "localhost")
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{parts.get('port', 6379)}/{parts.get('db', 0)}"
