"""Running a measurement in a process of its own, whose CPU and memory are its alone."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from offloop.bench.options import BenchError


def apart(program: str, setting: Any, limit: float, what: str) -> Any:
    """Run a program of this folder, which reads its setting as JSON and prints JSON.

    Args:
        program: its path.
        setting: a dataclass.
        limit: seconds until it counts as hung.
        what: the measurement's name, for an error.

    Raises:
        BenchError: it failed, or hung.
    """
    try:
        done = subprocess.run(
            [sys.executable, program],
            input=json.dumps(asdict(setting)),
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{what}: no end after {limit:g} s") from error
    if done.returncode != 0:
        raise BenchError(f"{what}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)
