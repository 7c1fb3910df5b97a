"""``make demo``: a small program run for real, then the comparison and its plot."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.syntax import Syntax

from .cli import FAILED, INTERRUPTED, report, terminate_cleanly
from .options import BenchError, Options, add_arguments, from_arguments
from .server import PrivateServer
from .table import make_console

EXAMPLE = Path(__file__).with_name("example.py")
PLOT = Path("build/demo.png")
_EXAMPLE_LIMIT = 60.0


def _show_source(console: Console) -> None:
    source = EXAMPLE.read_text()
    if console.is_terminal:
        console.print(Syntax(source, "python", line_numbers=True, background_color="default"))
        return
    for number, line in enumerate(source.splitlines(), 1):
        print(f"{number:>4}  {line}".rstrip())


def run_example(url: str) -> str:
    """Run the example against ``url`` and return what it prints. Raises BenchError."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), url],
        capture_output=True,
        text=True,
        timeout=_EXAMPLE_LIMIT,
    )
    if done.returncode != 0:
        raise BenchError(f"{EXAMPLE.name} ended with status {done.returncode}:\n{done.stderr}")
    return done.stdout


def _demonstrate(options: Options) -> None:
    console = make_console()
    console.rule(f"1. A program to copy: {EXAMPLE.name}")
    _show_source(console)
    with PrivateServer() as server:
        print(f"\n$ python {EXAMPLE.name} {server.url}", flush=True)
        began = time.perf_counter()
        print(run_example(server.url), end="")
        print(f"({time.perf_counter() - began:.1f} s with the interpreter's start)\n", flush=True)
    console.rule("2. The same await through other clients")
    report(options)
    print("\nOn a server of yours: python -m offloop bench --url redis://HOST:6379")


def main() -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m offloop.bench.demo", description=__doc__, allow_abbrev=False
    )
    add_arguments(parser, Options(secs=0.5, rounds=3, plot=PLOT))
    found = parser.parse_args()
    terminate_cleanly()
    try:
        if found.plot == PLOT:
            PLOT.parent.mkdir(exist_ok=True)
        _demonstrate(from_arguments(found))
    except (BenchError, OSError, subprocess.TimeoutExpired) as error:
        print(f"offloop demo: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("offloop demo: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
