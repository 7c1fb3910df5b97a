"""``python -m offloop bench``: arguments in, table, JSON and plot out."""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

from .compare import Comparison, compare
from .options import (
    PEER_MODULES,
    BenchError,
    Options,
    add_arguments,
    from_arguments,
    installed,
)
from .table import ProgressBars, make_console, make_table

#: Exit statuses: 2 is a bad argument or a server that cannot be used.
FAILED = 2
INTERRUPTED = 130


def make_parser() -> argparse.ArgumentParser:
    """The parser of ``python -m offloop``."""
    parser = argparse.ArgumentParser(prog="python -m offloop")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    bench = commands.add_parser(
        "bench",
        help="compare offloop with other Redis clients",
        description="Compare offloop with other Redis clients, on a private redis-server or on "
        "yours. Each measurement runs in a process of its own.",
    )
    peers = tuple(name for name in PEER_MODULES if installed(name))
    add_arguments(bench, Options(peers=peers))
    return parser


def terminate_cleanly() -> None:
    """Let SIGTERM unwind the stack, so that the private server is stopped."""

    def unwind(_: int, __: FrameType | None) -> NoReturn:
        sys.exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, unwind)


def _plotter(options: Options) -> Any:
    """matplotlib takes long to import, so only who wants a plot waits for it."""
    return None if options.plot is None else importlib.import_module("offloop.bench.plot")


def report(options: Options) -> Comparison:
    """Compare, print the table and write the files. Raises BenchError."""
    console = make_console()
    plotter = _plotter(options)
    with ProgressBars(console) as progress:
        comparison = compare(options, progress)
    console.print(make_table(comparison))
    if options.json is not None:
        options.json.write_text(json.dumps(comparison.as_json(), indent=2) + "\n")
        print(f"JSON: {options.json.resolve()}")
    if plotter is not None and options.plot is not None:
        plotter.save_plot(comparison, options.plot)
        print(f"plot: {options.plot.resolve()}")
    return comparison


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    found = make_parser().parse_args(arguments)
    terminate_cleanly()
    try:
        report(from_arguments(found))
    except (BenchError, OSError) as error:
        print(f"offloop bench: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("offloop bench: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0
