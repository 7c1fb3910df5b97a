"""What a user does: `pip install .` into an empty environment, then import."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
# libc in its parts, the loader, and OpenSSL: nothing else may be asked of a system.
ALLOWED = re.compile(r"(ld-linux[\w-]*|libc|libm|libpthread|libdl|librt|libssl|libcrypto)\.so\.\d+")
NEEDED = re.compile(r"\(NEEDED\).*\[(.+)\]")
# What belongs to this checkout's builds, not to its source.
LEFT_OUT = ("build", "dist", ".git", ".venv", ".venvs", ".hypothesis", "*.so", "*.egg-info")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.limit(600),
    pytest.mark.xdist_group("packaging"),
    pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="builds unsanitized"),
]


def environment() -> dict[str, str]:
    """This one, without what would lead the new interpreter back to this tree."""
    ours = ("PYTHON", "OFFLOOP_", "VIRTUAL_ENV", "LD_PRELOAD")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an empty environment after `pip install .` on a copy of the source."""
    folder = tmp_path_factory.mktemp("install")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*LEFT_OUT), dirs_exist_ok=True)
    # The pattern "build" is also the name of the folder with the build's own code.
    shutil.copytree(ROOT / "csrc" / "build", source / "csrc" / "build", dirs_exist_ok=True)
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", ".", cwd=source)
    shutil.rmtree(source)
    return python


def test_the_installed_package_imports_without_its_source(installed: Path, tmp_path: Path) -> None:
    said = run(
        installed,
        "-c",
        "import offloop, offloop.redis, offloop._core as c; print(c.__file__)",
        cwd=tmp_path,
    )
    assert Path(said.strip()).is_relative_to(installed.parent.parent)


def test_the_installed_package_is_typed(installed: Path, tmp_path: Path) -> None:
    said = run(installed, "-c", "import offloop; print(offloop.__file__)", cwd=tmp_path)
    package = Path(said.strip()).parent
    assert (package / "py.typed").is_file()
    assert (package / "_core.pyi").is_file()


def test_the_extension_needs_libc_and_openssl_only(installed: Path, tmp_path: Path) -> None:
    core = run(
        installed, "-c", "import offloop._core as c; print(c.__file__)", cwd=tmp_path
    ).strip()
    # What it names itself: OpenSSL's own needs differ from one system to the next.
    names = set(NEEDED.findall(run("readelf", "--dynamic", "--wide", core, cwd=tmp_path)))
    assert {name for name in names if not ALLOWED.fullmatch(name)} == set()
    assert any(name.startswith("libc.so") for name in names), "readelf named no library"
