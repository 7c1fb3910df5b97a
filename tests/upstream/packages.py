"""Redis servers out of Debian's packages, unpacked into a folder and not installed.

apt keeps a state of its own here (lists, cache, sources), so neither the machine's
sources nor its packages are touched. A server from another Debian release runs with
that release's C library and loader, which are unpacked beside it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_LIBRARIES = (
    "libc6", "libatomic1", "libgcc-s1", "libstdc++6", "libjemalloc2", "liblzf1", "libsystemd0",
    "libcap2", "libzstd1", "zlib1g",
)  # fmt: skip


class PackageError(Exception):
    """A server cannot be had."""


@dataclass(frozen=True)
class Source:
    """Where a server comes from: its packages and their release, and that of its libraries."""

    release: str
    packages: tuple[str, ...]
    program: str
    libraries_release: str
    libraries: tuple[str, ...]


SOURCES = {
    "valkey": Source(
        "bookworm-backports",
        ("valkey-server", "valkey-tools"),
        "valkey-server",
        "bookworm",
        (*_LIBRARIES, "libssl3", "libgcrypt20", "libgpg-error0", "liblzma5", "liblz4-1"),
    ),
    "8.0": Source(
        "trixie",
        ("redis-server", "redis-tools"),
        "redis-server",
        "trixie",
        (*_LIBRARIES, "libssl3t64"),
    ),
    "8.6": Source(
        "experimental",
        ("redis-server", "redis-tools"),
        "redis-server",
        "sid",
        (*_LIBRARIES, "libssl3t64"),
    ),
}


def _apt(state: Path, *command: str, cwd: Path) -> None:
    options = {
        "Dir::Etc::SourceList": state / "sources.list",
        "Dir::Etc::SourceParts": state / "parts",
        "Dir::State::Lists": state / "lists",
        "Dir::Cache": state / "cache",
        "APT::Sandbox::User": "root",
    }
    argv = [command[0], "-q"]
    for name, value in options.items():
        argv += ["-o", f"{name}={value}"]
    argv += command[1:]
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PackageError(f"{' '.join(command)}: {done.stdout}{done.stderr}")


def _update(state: Path, source: Source) -> None:
    for name in ("lists/partial", "cache/archives/partial", "parts"):
        (state / name).mkdir(parents=True, exist_ok=True)
    releases = {source.release, source.libraries_release}
    (state / "sources.list").write_text(
        "".join(f"deb [signed-by={KEYRING}] {MIRROR} {name} main\n" for name in sorted(releases))
    )
    _apt(state, "apt-get", "update", cwd=state)


def _loader(root: Path) -> Path:
    for place in ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib64", "lib64"):
        found = root / place / "ld-linux-x86-64.so.2"
        if found.is_file():
            return found
    raise PackageError(f"{root} has no loader: only amd64 is supported")


def command_of(root: Path, program: str) -> list[str]:
    """How to start an unpacked server: its own loader, with its own libraries."""
    loader = _loader(root)
    folders = [root / "usr/lib/x86_64-linux-gnu", root / "lib/x86_64-linux-gnu"]
    path = ":".join(str(folder) for folder in folders)
    return [str(loader), "--library-path", path, str(root / "usr/bin" / program)]


def provide(name: str, folder: Path) -> list[str]:
    """The command that starts the server of that name: ``system`` or one of SOURCES.

    Args:
        name: ``system`` is the redis-server that is installed.
        folder: where packages are kept and unpacked.

    Raises:
        PackageError: there is none, or it cannot be fetched.
    """
    if name == "system":
        found = os.environ.get("REDIS_SERVER") or shutil.which("redis-server")
        if found is None:
            raise PackageError("no redis-server found: apt install redis-server")
        return [found]
    source = SOURCES[name]
    root = folder / name
    if not (root / "complete").is_file():
        print(f"offloop: fetching the server {name} from Debian {source.release}", flush=True)
        shutil.rmtree(root, ignore_errors=True)
        state, debs = root / "apt", root / "debs"
        debs.mkdir(parents=True)
        _update(state, source)
        wanted = [f"{package}/{source.release}" for package in source.packages]
        wanted += [f"{package}/{source.libraries_release}" for package in source.libraries]
        _apt(state, "apt-get", "download", *wanted, cwd=debs)
        for deb in sorted(debs.glob("*.deb")):
            subprocess.run(["dpkg", "-x", str(deb), str(root)], check=True)
        shutil.rmtree(debs)
        shutil.rmtree(state)
        (root / "complete").touch()
    return command_of(root, source.program)
