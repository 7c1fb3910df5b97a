"""The layers of the C code, as its includes and its symbols show them.

A folder may include itself and the folders above it: runtime knows nothing of
hiredis and Python, redis nothing of Python, and only one file of the runtime
knows Concurrency Kit.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from offloop import _core

CSRC = Path(__file__).resolve().parent.parent.parent / "csrc"
PREFIX = {"runtime": "rt_", "redis": "rds_", "python": "core"}
VISIBLE = {"runtime": ("runtime",), "redis": ("runtime", "redis"), "python": tuple(PREFIX)}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)


def files(layer: str) -> list[Path]:
    found = sorted((CSRC / layer).glob("*.[ch]"))
    assert found, f"csrc/{layer} has no C file: the test would prove nothing"
    return found


def includes(path: Path) -> Iterator[tuple[str, str]]:
    """The (kind, name) of each include of a file; the kind is '<' or '"'."""
    for match in INCLUDE.finditer(path.read_text()):
        yield match[1], match[2]


def candidates(path: Path, name: str, layer: str) -> set[Path]:
    """The files that `#include "name"` in path may mean, as the compiler looks for it."""
    folders = [path.parent, *(CSRC / visible for visible in VISIBLE[layer])]
    return {Path(os.path.normpath(folder / name)) for folder in folders}


def complaints(layer: str) -> list[str]:
    """What a layer includes that it may not, one line each."""
    allowed = {path for name in VISIBLE[layer] for path in files(name)}
    wrong = []
    for path in files(layer):
        for kind, name in includes(path):
            where = f"{path.relative_to(CSRC)} includes {name}"
            if kind == '"' and not allowed & candidates(path, name, layer):
                wrong.append(f"{where}: not of this layer or one above")
            if name == "Python.h" and layer != "python":
                wrong.append(f"{where}: only csrc/python knows Python")
            if name.startswith(("hiredis", "openssl")) and layer == "runtime":
                wrong.append(f"{where}: the runtime knows no client library")
            if name.startswith("ck_") and path.name != "rt_queue.c":
                wrong.append(f"{where}: only rt_queue.c knows Concurrency Kit")
    return wrong


@pytest.mark.parametrize("layer", PREFIX)
def test_a_layer_includes_only_what_it_may(layer: str) -> None:
    assert complaints(layer) == []


def test_a_layer_above_may_be_included(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PREFIX:
        (tmp_path / "csrc" / name).mkdir(parents=True)
        (tmp_path / "csrc" / name / f"{name}.h").write_text('#include "../runtime/runtime.h"\n')
    monkeypatch.setattr("test_layout.CSRC", tmp_path / "csrc")
    assert [complaints(layer) for layer in PREFIX] == [[], [], []]


@pytest.mark.parametrize(
    ("layer", "line", "complaint"),
    [
        ("runtime", '#include "rds_planted.h"', "not of this layer"),
        ("runtime", "#include <Python.h>", "knows Python"),
        ("runtime", "# include <hiredis/hiredis.h>", "no client library"),
        ("runtime", "#include <ck_ring.h>", "Concurrency Kit"),
        ("redis", "#include <Python.h>", "knows Python"),
        ("redis", "  #include <ck_ec.h>", "Concurrency Kit"),
        ("redis", '#include "../python/sound.h"', "not of this layer"),
        ("runtime", '#include "../redis/sound.h"', "not of this layer"),
        ("python", '#include "../build/sound.h"', "not of this layer"),
    ],
)
def test_a_planted_include_is_seen(
    layer: str, line: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PREFIX:
        (tmp_path / "csrc" / name).mkdir(parents=True)
        (tmp_path / "csrc" / name / "sound.h").write_text("#include <stdint.h>\n")
    (tmp_path / "csrc" / layer / "planted.c").write_text(f'#include "sound.h"\n{line}\n')
    monkeypatch.setattr("test_layout.CSRC", tmp_path / "csrc")
    found = complaints(layer)
    assert len(found) == 1
    assert complaint in found[0]


def test_concurrency_kit_is_included_by_one_file() -> None:
    users = {
        path.name
        for path in CSRC.rglob("*.[ch]")
        for _, name in includes(path)
        if name.startswith("ck_")
    }
    assert users == {"rt_queue.c"}


@pytest.mark.parametrize("layer", ["runtime", "redis"])
def test_files_carry_the_prefix_of_their_layer(layer: str) -> None:
    wrong = [path.name for path in files(layer) if not path.name.startswith(PREFIX[layer])]
    assert wrong == []


def test_the_extension_exports_its_init_function_only() -> None:
    done = subprocess.run(
        ["nm", "-D", "--defined-only", "--format=posix", str(_core.__file__)],
        capture_output=True,
        text=True,
        check=True,
    )
    names = {line.split()[0] for line in done.stdout.splitlines()}
    # A sanitizer's runtime adds names of its own; ours and our libraries' stay inside.
    foreign = {name for name in names if name.startswith(("__asan", "__ubsan", "__odr_asan"))}
    assert names - foreign == {"PyInit__core"}
