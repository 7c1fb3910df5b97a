"""hiredis, the C client library: one pinned version, built static.

Its C source comes inside the source distribution of the Python package of the
same name, which pip fetches from wherever this machine's pip is set up to
fetch from. The archive's hash is checked at every use and only the C files of
``vendor/hiredis`` are taken from it.

    python csrc/build/hiredis.py --out DIR [--sanitize thread] [--cc clang]

makes ``DIR/libhiredis.a`` (with its TLS part) and ``DIR/include/hiredis/*.h``.

Environment:
    OFFLOOP_SYSTEM_HIREDIS=1        use the system's hiredis, 1.0 or newer
    OFFLOOP_HIREDIS_SDIST=FILE      the archive, for a machine without network
    XDG_CACHE_HOME                  where a downloaded archive is kept as well
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
if __package__ in (None, ""):  # run as a program: this folder would shadow "hiredis"
    sys.path[0] = str(ROOT)

from csrc.build.compile import (  # noqa: E402  (the path is set just above)
    BuildError,
    Unit,
    compile_units,
    link,
    locked,
    sanitizer_flags,
    sanitizers_of,
)

VERSION = "3.5.0"  # of the Python package; it carries hiredis 1.5.0
SHA256 = "c227592cc56b7df247abe4755c26723965be68972be2149fa441ac33d82131ba"
ARCHIVE = f"hiredis-{VERSION}.tar.gz"
INSIDE = f"hiredis-{VERSION}/vendor/hiredis/"
# async.c is here for its connection functions, which ssl.c refers to.
SOURCES = ("alloc", "async", "hiredis", "net", "read", "sds", "sockcompat", "ssl")
OLDEST_SYSTEM = (1, 0)


@dataclass(frozen=True)
class Hiredis:
    """What a compiler and a linker need to use hiredis and OpenSSL."""

    version: str
    cflags: tuple[str, ...]
    archives: tuple[Path, ...]
    libs: tuple[str, ...]


def _is_right(archive: Path) -> bool:
    try:
        return hashlib.sha256(archive.read_bytes()).hexdigest() == SHA256
    except OSError:
        return False


def _download(into: Path) -> Path:
    """Fetch the archive with pip, which also checks the hash before it opens it."""
    if importlib.util.find_spec("pip") is None:
        raise BuildError(
            f"hiredis {VERSION} has to be fetched and this Python has no pip: install pip, or "
            f"give the file {ARCHIVE} with OFFLOOP_HIREDIS_SDIST=FILE"
        )
    wanted = into / "wanted.txt"
    wanted.write_text(f"hiredis=={VERSION} --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", "hiredis", "--require-hashes"]
    if importlib.util.find_spec("setuptools") is not None:
        # pip asks the archive for its metadata; what is here will do for that.
        command.append("--no-build-isolation")
    command += ["--dest", str(into), "--requirement", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not (into / ARCHIVE).is_file():
        raise BuildError(
            f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
            f"cannot fetch hiredis {VERSION}; without network give the file {ARCHIVE} "
            "with OFFLOOP_HIREDIS_SDIST=FILE"
        )
    return into / ARCHIVE


def _put(source: Path, target: Path) -> None:
    """Copy so that target is never seen half written."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.copyfile(source, part)
    part.replace(target)


def archive(folder: Path) -> Path:
    """The checked archive: the given one, a kept one, or a fresh download in folder."""
    given = os.environ.get("OFFLOOP_HIREDIS_SDIST")
    if given:
        if not Path(given).is_file():
            raise BuildError(f"OFFLOOP_HIREDIS_SDIST={given}: there is no such file")
        if not _is_right(Path(given)):
            raise BuildError(f"OFFLOOP_HIREDIS_SDIST={given}: its SHA-256 is not {SHA256}")
        return Path(given)
    kept = folder / ARCHIVE
    if _is_right(kept):
        return kept
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    shared = Path(home) / "offloop" / ARCHIVE
    if _is_right(shared):
        _put(shared, kept)
    else:
        print(f"offloop: fetching hiredis {VERSION}", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            _put(_download(Path(scratch)), kept)
        with contextlib.suppress(OSError):  # a read-only home only costs the next download
            _put(kept, shared)
    if not _is_right(kept):
        raise BuildError(f"{kept}: its SHA-256 is not {SHA256}")
    return kept


def extract(source: Path, folder: Path) -> None:
    """Make folder hold the archive's C files, exactly; what is right stays untouched."""
    folder.mkdir(parents=True, exist_ok=True)
    names = set()
    with tarfile.open(source) as tar:
        for member in tar:
            directory, _, name = member.name.rpartition("/")
            if f"{directory}/" != INSIDE or not member.isfile():
                continue
            if not name.endswith((".c", ".h")):
                continue
            stream = tar.extractfile(member)
            assert stream is not None
            content = stream.read()
            names.add(name)
            path = folder / name
            if not path.is_file() or path.read_bytes() != content:
                path.write_bytes(content)
    missing = [name for name in SOURCES if f"{name}.c" not in names]
    if missing:
        raise BuildError(f"{source} has no {INSIDE}{missing[0]}.c")


def pinned(build: Path, cc: Sequence[str], sanitize: Sequence[str] = ()) -> Hiredis:
    """Build the pinned hiredis under ``build/hiredis-<version>`` and say how to use it."""
    folder = build / f"hiredis-{VERSION}"
    with locked(folder):
        extract(archive(folder), folder / "include" / "hiredis")
        key = "-".join([Path(cc[-1]).name, *sanitize])
        command = (*cc, "-std=gnu11", "-O2", "-g", "-fPIC", "-fvisibility=hidden")
        command += ("-DNDEBUG", *sanitizer_flags(sanitize))
        units = [
            Unit(folder / "include/hiredis" / f"{name}.c", folder / key / f"{name}.o", command)
            for name in SOURCES
        ]
        compile_units(units)
        objects = [unit.object for unit in units]
        library = folder / key / "libhiredis.a"
        link(library, objects, ["ar", "rcsD", str(library), *map(str, objects)])
    return Hiredis(
        version="1.5.0",
        cflags=("-isystem", str(folder / "include")),
        archives=(library,),
        libs=("-lssl", "-lcrypto"),
    )


def _pkg_config(*arguments: str) -> str:
    program = os.environ.get("PKG_CONFIG", "pkg-config")
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise BuildError(
            f"OFFLOOP_SYSTEM_HIREDIS=1 needs {program} to find hiredis, and it is not here"
        ) from error
    if done.returncode != 0:
        raise BuildError(
            f"OFFLOOP_SYSTEM_HIREDIS=1: {done.stderr.strip()}\n"
            "install the system's hiredis 1.0 or newer with its TLS part (hiredis_ssl), "
            "or leave OFFLOOP_SYSTEM_HIREDIS unset to build the pinned one"
        )
    return done.stdout.strip()


def system() -> Hiredis:
    """The system's hiredis, if it is new enough."""
    version = _pkg_config("--modversion", "hiredis")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < OLDEST_SYSTEM:
        raise BuildError(
            f"OFFLOOP_SYSTEM_HIREDIS=1: the system's hiredis is {version}, and offloop needs "
            "1.0 or newer (RESP3, TLS). Leave OFFLOOP_SYSTEM_HIREDIS unset to build the "
            "pinned one."
        )
    names = ("hiredis", "hiredis_ssl")
    return Hiredis(
        version=version,
        cflags=tuple(shlex.split(_pkg_config("--cflags", *names))),
        archives=(),
        libs=(*shlex.split(_pkg_config("--libs", *names)), "-lssl", "-lcrypto"),
    )


def provide(build: Path, cc: Sequence[str], sanitize: Sequence[str] = ()) -> Hiredis:
    """hiredis as the environment asks for it: the pinned one or the system's."""
    if os.environ.get("OFFLOOP_SYSTEM_HIREDIS", "0") not in ("", "0"):
        return system()
    return pinned(build, cc, sanitize)


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the pinned hiredis as a static library.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--sanitize", default="", metavar="NAMES")
    parser.add_argument("--cc", default=os.environ.get("CC", "gcc"))
    options = parser.parse_args()
    try:
        built = pinned(ROOT / "build", shlex.split(options.cc), sanitizers_of(options.sanitize))
        include = options.out / "include" / "hiredis"
        include.mkdir(parents=True, exist_ok=True)
        for header in Path(built.cflags[1]).glob("hiredis/*.h"):
            _put(header, include / header.name)
        _put(built.archives[0], options.out / "libhiredis.a")
    except BuildError as error:
        print(f"offloop: {error}", file=sys.stderr)
        return 1
    print(f"hiredis {built.version}: {options.out}/libhiredis.a")
    return 0


if __name__ == "__main__":
    sys.exit(main())
