"""What a test must not leave behind.

`Watch` is taken before a test and asked after it. It fails the test for

- an error that nobody handled: in an event loop (whatever reaches
  `loop.call_exception_handler` is logged by asyncio's logger), in a finaliser or
  destructor (`sys.unraisablehook`), in a thread (`threading.excepthook`);
- a coroutine that was never awaited;
- worker threads of the native pool (their names begin with `offloop`), and Python
  threads;
- file descriptors;
- native futures that are still referenced.

Threads and descriptors are given some seconds, as closing ends off the loop.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import offloop._core as core

SETTLE_LIMIT = 30.0


def native_threads() -> dict[str, str]:
    """Thread id -> name of every worker thread of the pool in this process."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            name = (task / "comm").read_text().strip()
        except OSError:
            continue
        if name.startswith("offloop"):
            found[task.name] = name
    return found


def descriptors() -> dict[int, str]:
    """Descriptor -> what it is."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            # A file that somebody else removes meanwhile, our output perhaps, is the same one.
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}").removesuffix(" (deleted)")
        except OSError:
            continue  # the descriptor of the listing itself
    return found


def native_futures() -> list[Any]:
    """Native futures that something still refers to."""
    return [thing for thing in gc.get_objects() if type(thing) is core.Future]


class _LoopErrors(logging.Handler):
    def __init__(self, seen: list[str]) -> None:
        super().__init__(logging.ERROR)
        self.seen = seen

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += "\n" + "".join(traceback.format_exception(*record.exc_info))
        self.seen.append(f"event loop: {text}")


class Watch:
    """Everything noticed since it was made."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self._allowed: list[str] = []
        gc.collect()
        self.threads = set(native_threads())
        self.python_threads = set(threading.enumerate())
        self.fds = descriptors()
        self.futures = {id(future) for future in native_futures()}
        self._handler = _LoopErrors(self.errors)
        logging.getLogger("asyncio").addHandler(self._handler)
        self._hooks = (sys.unraisablehook, threading.excepthook)
        sys.unraisablehook = self._unraisable
        threading.excepthook = self._in_thread
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        self._showwarning = warnings.showwarning
        warnings.filterwarnings("always", "coroutine .* was never awaited")
        warnings.showwarning = self._warned  # type: ignore[assignment]

    def allow(self, text: str) -> None:
        """An error whose text contains this is what the test is about."""
        self._allowed.append(text)

    def _unraisable(self, args: Any) -> None:
        lines = traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback)
        self.errors.append(f"{args.err_msg or 'ignored'} {args.object!r}: {''.join(lines)}")

    def _in_thread(self, args: Any) -> None:
        lines = traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback)
        self.errors.append(f"thread {args.thread!r}: {''.join(lines)}")

    def _warned(self, message: Any, category: Any, *rest: Any, **named: Any) -> None:
        if "never awaited" in str(message):
            self.errors.append(str(message))
        else:
            self._showwarning(message, category, *rest, **named)

    def _leftovers(self) -> list[str]:
        left = [
            f"thread {name} ({number})"
            for number, name in native_threads().items()
            if number not in self.threads
        ]
        left += [
            f"Python thread {thread.name}"
            for thread in threading.enumerate()
            if thread not in self.python_threads
        ]
        left += [
            f"descriptor {fd}: {what}"
            for fd, what in descriptors().items()
            if self.fds.get(fd) != what
        ]
        left += [
            f"native future {future!r}"
            for future in native_futures()
            if id(future) not in self.futures
        ]
        return left

    def close(self) -> list[str]:
        """Put the hooks back; what is wrong, one line each."""
        gc.collect()
        give_up = time.monotonic() + SETTLE_LIMIT
        while (left := self._leftovers()) and time.monotonic() < give_up:
            time.sleep(0.01)
            gc.collect()
        logging.getLogger("asyncio").removeHandler(self._handler)
        sys.unraisablehook, threading.excepthook = self._hooks
        self._warnings.__exit__(None, None, None)
        unhandled = [
            text for text in self.errors if not any(part in text for part in self._allowed)
        ]
        return [f"unhandled: {text}" for text in unhandled] + [
            f"left behind: {text}" for text in left
        ]
