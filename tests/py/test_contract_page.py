"""docs/contract.md: every promise names tests, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "contract.md").read_text()
PROMISES = {
    part.partition("\n")[0]: re.findall(r"^- `([^`]+)`$", part, re.MULTILINE)
    for part in PAGE.split("\n## ")[1:]
}


def names(path: Path) -> set[str]:
    """The functions that a test file defines at its top level."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, kinds)}


def test_all_lines_are_there() -> None:
    assert list(PROMISES) == [
        "Identity", "Cancellation", "Timeout", "At most once", "Order", "Isolation",
        "Backpressure", "Shutdown", "Fork", "Threads", "Secrets",
    ]  # fmt: skip


@pytest.mark.parametrize("promise", PROMISES)
def test_it_is_tested(promise: str) -> None:
    assert PROMISES[promise], "no test is named"
    for named in PROMISES[promise]:
        path, _, name = named.partition("::")
        assert (ROOT / path).is_file(), named
        assert name == "" or name in names(ROOT / path), named
