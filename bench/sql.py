"""Database drivers, one measurement in a process of its own (sql_peers.py).

The peers, aiosqlite and aioodbc among them, are imported by that process alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from offloop.bench.options import BenchError
from rows import Numbers


@dataclass(frozen=True)
class Setting:
    """``peer`` is offloop, aiosqlite, blocking, odbc or aioodbc; ``work`` row or rows."""

    peer: str
    work: str
    tasks: int
    secs: float


def measure(setting: Setting) -> Numbers:
    """Run ``setting`` in a new process. Raises BenchError."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("sql_peers.py"))],
        input=json.dumps(asdict(setting)),
        capture_output=True,
        text=True,
        timeout=setting.secs * 4 + 120,
        check=False,
    )
    if done.returncode != 0:
        raise BenchError(f"{setting.peer}, {setting.work}:\n{done.stderr[-2000:]}")
    found: Numbers = json.loads(done.stdout)
    return found
