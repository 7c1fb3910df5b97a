"""The build refuses what it must refuse, and remakes what changed and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

# Compiles every *.c of the folder in argv[1] and prints the names that were made.
COMPILE = """
import sys
from pathlib import Path
from csrc.build.compile import Unit, compile_units, is_stale
folder = Path(sys.argv[1])
units = [Unit(c, folder / "o" / f"{c.stem}.o", ("gcc", *sys.argv[2:]))
         for c in sorted(folder.glob("*.c"))]
stale = [unit.source.name for unit in units if is_stale(unit)]
assert compile_units(units) == len(stale)
print(" ".join(stale))
"""

PROVIDE = """
import sys
from pathlib import Path
from csrc.build import hiredis
print(hiredis.provide(Path(sys.argv[1]), ["gcc"]).version)
"""


def python(program: str, *arguments: str | Path, **variables: str) -> tuple[int, str]:
    """Run a program that imports the build's modules; its status and all it said."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OFFLOOP_", "PYTHON", "LD_PRELOAD"))
    }
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT,
        env=kept | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def compiled(folder: Path, *flags: str) -> list[str]:
    """What a build of the folder made (again)."""
    status, said = python(COMPILE, folder, *flags)
    assert status == 0, said
    return said.split()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two C files, one of which includes a header; built once."""
    (tmp_path / "one.h").write_text("int one(void);\n")
    (tmp_path / "one.c").write_text('#include "one.h"\nint one(void) { return 1; }\n')
    (tmp_path / "two.c").write_text("int two(void);\nint two(void) { return 2; }\n")
    assert compiled(tmp_path) == ["one.c", "two.c"]
    return tmp_path


def test_nothing_is_compiled_twice(tree: Path) -> None:
    assert compiled(tree) == []


def test_a_changed_header_remakes_its_users(tree: Path) -> None:
    (tree / "one.h").write_text("int one(void); /* changed */\n")
    assert compiled(tree) == ["one.c"]
    assert compiled(tree) == []


def test_changed_flags_remake_everything(tree: Path) -> None:
    assert compiled(tree, "-O2") == ["one.c", "two.c"]
    assert compiled(tree, "-O2") == []


def test_a_removed_header_is_an_error_and_not_an_old_object(tree: Path) -> None:
    (tree / "one.h").unlink()
    status, said = python(COMPILE, tree)
    assert status != 0
    assert "cannot compile" in said


def test_an_archive_with_another_hash_is_refused(tmp_path: Path) -> None:
    """Refused before anything is taken from it."""
    evil = tmp_path / "hiredis-3.5.0.tar.gz"
    source = tmp_path / "hiredis.c"
    source.write_text("not hiredis\n")
    with tarfile.open(evil, "w:gz") as tar:
        tar.add(source, "hiredis-3.5.0/vendor/hiredis/hiredis.c")
    status, said = python(PROVIDE, tmp_path / "build", OFFLOOP_HIREDIS_SDIST=str(evil))
    assert status != 0
    assert f"{evil}: its SHA-256 is not" in said
    assert list((tmp_path / "build").rglob("*.c")) == []


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    status, said = python(PROVIDE, tmp_path, OFFLOOP_HIREDIS_SDIST="/nowhere/x.tar.gz")
    assert status != 0
    assert "/nowhere/x.tar.gz: there is no such file" in said


def fake_pkg_config(folder: Path, version: str) -> str:
    """A pkg-config for a system whose hiredis has this version."""
    script = folder / "pkg-config"
    script.write_text(f"#!/bin/sh\ncase $1 in --modversion) echo {version} ;; *) echo ;; esac\n")
    script.chmod(0o755)
    return str(script)


@pytest.mark.parametrize("version", ["0.14.1", "0.9"])
def test_a_system_hiredis_that_is_too_old_is_refused(version: str, tmp_path: Path) -> None:
    status, said = python(
        PROVIDE,
        tmp_path,
        OFFLOOP_SYSTEM_HIREDIS="1",
        PKG_CONFIG=fake_pkg_config(tmp_path, version),
    )
    assert status != 0
    assert f"the system's hiredis is {version}, and offloop needs 1.0 or newer" in said


@pytest.mark.parametrize("version", ["1.0.0", "1.2.0", "2.0"])
def test_a_newer_system_hiredis_is_taken(version: str, tmp_path: Path) -> None:
    status, said = python(
        PROVIDE,
        tmp_path,
        OFFLOOP_SYSTEM_HIREDIS="1",
        PKG_CONFIG=fake_pkg_config(tmp_path, version),
    )
    assert status == 0, said
    assert said.strip() == version


def test_a_machine_without_pkg_config_is_told(tmp_path: Path) -> None:
    status, said = python(
        PROVIDE, tmp_path, OFFLOOP_SYSTEM_HIREDIS="1", PKG_CONFIG="/nowhere/pkg-config"
    )
    assert status != 0
    assert "needs /nowhere/pkg-config to find hiredis" in said
