"""Programs in an interpreter of their own: what happens at exit and fork is only seen there."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time

CHILD_LIMIT = 150.0

ASAN = "libasan" in os.environ.get("LD_PRELOAD", "")

# AddressSanitizer's allocator does not survive a fork while another thread is inside it,
# and each new thread is: let them come to rest first.
_REST = 0.3
_AT_REST = f"import os, time; os.register_at_fork(before=lambda: time.sleep({_REST}))\n"
if ASAN:
    os.register_at_fork(before=lambda: time.sleep(_REST))

# Threads of such a program that end late would keep the interpreter from exiting, and
# a hang must show where: faulthandler prints the stacks before the limit here.
_PRELUDE = f"""
import faulthandler, logging
# In development mode asyncio tells of each callback that took long: on a busy machine
# that is no news, and errors are logged above this level.
logging.getLogger("asyncio").setLevel(logging.ERROR)
faulthandler.enable()
faulthandler.dump_traceback_later({CHILD_LIMIT - 10}, exit=True)
"""


def run_child(
    source: str, *arguments: object, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the program; AssertionError when it hangs. sys.argv[1:] are the arguments."""
    code = _PRELUDE + (_AT_REST if ASAN else "") + textwrap.dedent(source)
    paths = os.pathsep.join(path for path in sys.path if path)
    try:
        return subprocess.run(
            # Every warning and checked memory; not asyncio's debug mode, which is another.
            [sys.executable, "-W", "default", "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=CHILD_LIMIT,
            stdin=subprocess.DEVNULL,
            env={"PYTHONMALLOC": "debug", **os.environ, "PYTHONPATH": paths, **environment},
        )
    except subprocess.TimeoutExpired as expired:
        raise AssertionError(f"the program hangs:\n{code}\n{expired.stderr!r}") from None


def quiet(done: subprocess.CompletedProcess[str], code: int = 0) -> str:
    """Assert the exit code and that nothing was said on stderr; the standard output."""
    assert (done.returncode, done.stderr) == (code, ""), (
        f"exit code {done.returncode}, expected {code}\n"
        f"stdout: {done.stdout}\nstderr: {done.stderr}\nprogram: {done.args[4]}"
    )
    return done.stdout
