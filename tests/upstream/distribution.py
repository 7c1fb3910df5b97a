"""Source distributions of other projects, for their tests: fetched, checked, unpacked.

They come from PyPI by pip, one pinned version of each, its hash checked at every use, and
are kept under ``build/upstream`` and nowhere else.

Environment:
    OFFLOOP_AIOSQLITE_SDIST=FILE, OFFLOOP_AIOODBC_SDIST=FILE
        the archive, for a machine without network
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BUILD = Path(__file__).resolve().parent.parent.parent / "build" / "upstream"


class DistributionError(Exception):
    """A distribution cannot be had, or is another one."""


@dataclass(frozen=True)
class Distribution:
    """One version of a project, and where its tests are in it."""

    name: str
    version: str
    sha256: str
    tests: str  # folder

    @property
    def archive(self) -> str:
        """Its file name."""
        return f"{self.name}-{self.version}.tar.gz"

    def _is_right(self, path: Path) -> bool:
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == self.sha256

    def fetch(self) -> Path:
        """The archive."""
        variable = f"OFFLOOP_{self.name.upper()}_SDIST"
        given = os.environ.get(variable)
        if given:
            if not self._is_right(Path(given)):
                raise DistributionError(f"{variable}={given}: no file with SHA-256 {self.sha256}")
            return Path(given)
        BUILD.mkdir(parents=True, exist_ok=True)
        kept = BUILD / self.archive
        if self._is_right(kept):
            return kept
        with tempfile.TemporaryDirectory() as scratch:
            wanted = Path(scratch) / "wanted.txt"
            wanted.write_text(f"{self.name}=={self.version} --hash=sha256:{self.sha256}\n")
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            command += ["--no-binary", self.name, "--require-hashes"]
            command += ["--dest", scratch, "--requirement", str(wanted)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            fetched = Path(scratch) / self.archive
            if done.returncode != 0 or not self._is_right(fetched):
                raise DistributionError(f"cannot fetch {self.archive}:\n{done.stdout}{done.stderr}")
            partial = kept.with_suffix(f".{os.getpid()}")
            shutil.copyfile(fetched, partial)
            partial.replace(kept)  # several may do this at the same time
        return kept

    def unpack(self, folder: Path, change: Callable[[str], str]) -> None:
        """Write its tests into folder, each file as change() has it."""
        inside = f"{self.name}-{self.version}/{self.tests}/"
        with tarfile.open(self.fetch()) as tar:
            for member in tar:
                name = member.name.removeprefix(inside)
                if not member.isfile() or name == member.name or not name.endswith(".py"):
                    continue
                target = folder / name
                if not target.resolve().is_relative_to(folder.resolve()):
                    raise DistributionError(f"{self.archive}: {member.name} leads out")
                stream = tar.extractfile(member)
                assert stream is not None
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(change(stream.read().decode()))


def swapped(name: str, ours: str) -> Callable[[str], str]:
    """A change of imports: ``import name`` and ``from name import`` mean ours."""

    def change(source: str) -> str:
        lines = []
        for line in source.split("\n"):
            if line.strip() == f"import {name}":
                line = line.replace(f"import {name}", f"import {ours} as {name}")
            elif line.startswith((f"from {name} import", f"from {name}.")):
                line = line.replace(f"from {name}", f"from {ours}", 1)
            lines.append(line)
        return "\n".join(lines)

    return change


AIOSQLITE = Distribution(
    "aiosqlite",
    "0.22.1",
    "043e0bd78d32888c0a9ca90fc788b38796843360c855a7262a532813133a0650",
    "aiosqlite/tests",
)

AIOODBC = Distribution(
    "aioodbc",
    "0.5.0",
    "cbccd89ce595c033a49c9e6b4b55bbace7613a104b8a46e3d4c58c4bc4f25075",
    "tests",
)
