"""redis-py's own tests of redis.asyncio: fetched, unpacked, and with the import swapped.

The tests are in redis-py's source distribution: one pinned version, its hash checked
at every use. Only ``tests/`` and ``pyproject.toml`` are unpacked, because pytest would
test a ``redis/`` that lies beside them. They are unpacked twice, under ``build/upstream``
and never anywhere else:

    redis/      as they are: what passes there is what has to pass
    offloop/    the same with the import changed, as a program changes it

Environment:
    OFFLOOP_REDIS_SDIST=FILE    the archive, for a machine without network
"""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

VERSION = "8.1.0"
SHA256 = "6e1a19beef9225c83efd689c7e6b7da2d5215b1f42cd13b7fc3714d0a09c7b25"
ARCHIVE = f"redis-{VERSION}.tar.gz"
INSIDE = f"redis-{VERSION}/"

# What is tested and what takes its place.
TESTED = "redis.asyncio"
SWAPPED = "offloop.redis"

# Files whose import is swapped; the others serve redis-py's blocking client too.
ASYNC_TESTS = "tests/test_asyncio"

# Not here: they need a fault injector and a managed cluster.
LEFT_OUT = ("tests/test_asyncio/test_scenario",)

SIDES = ("redis", "offloop")


class SuiteError(Exception):
    """The suite cannot be had, or is not what this file knows."""


def _is_right(archive: Path) -> bool:
    return archive.is_file() and hashlib.sha256(archive.read_bytes()).hexdigest() == SHA256


def _archive(folder: Path) -> Path:
    given = os.environ.get("OFFLOOP_REDIS_SDIST")
    if given:
        if not _is_right(Path(given)):
            raise SuiteError(f"OFFLOOP_REDIS_SDIST={given}: not a file with SHA-256 {SHA256}")
        return Path(given)
    kept = folder / ARCHIVE
    if _is_right(kept):
        return kept
    print(f"offloop: fetching the tests of redis {VERSION}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch) / "wanted.txt"
        wanted.write_text(f"redis=={VERSION} --hash=sha256:{SHA256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-binary", "redis", "--require-hashes"]
        command += ["--dest", scratch, "--requirement", str(wanted)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        fetched = Path(scratch) / ARCHIVE
        if done.returncode != 0 or not _is_right(fetched):
            raise SuiteError(f"cannot fetch {ARCHIVE}:\n{done.stdout}{done.stderr}")
        shutil.copyfile(fetched, kept)
    return kept


@dataclass(frozen=True)
class _Edit:
    """Text to put in place of columns of a line."""

    line: int  # from 1, as ast counts
    begin: int
    end: int
    text: str


def _swap_import(node: ast.Import) -> list[_Edit]:
    edits = []
    for alias in node.names:
        if alias.name != TESTED and not alias.name.startswith(f"{TESTED}."):
            continue
        text = alias.name.replace(TESTED, SWAPPED, 1)
        if alias.asname is None:
            text += ", redis"  # the plain form binds this name as well
        end = alias.col_offset + len(alias.name)
        edits.append(_Edit(alias.lineno, alias.col_offset, end, text))
    return edits


def swap(source: str) -> str:
    """The source of a test module with its imports of redis.asyncio changed.

    Import statements are changed, and ``redis.asyncio.X`` in expressions, which is an
    import in the form that the statement ``import redis`` allows. Strings are not: what
    names redis-py's internals there (a target of mock.patch) goes on naming them.
    Every line stays where it is.
    """
    edits: list[_Edit] = []
    needs_import = False
    plain: ast.Import | None = None
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            edits += _swap_import(node)
            if plain is None and any(alias.name == "redis" for alias in node.names):
                plain = node
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module == TESTED or module.startswith(f"{TESTED}."):
                begin = node.col_offset + len("from ")
                end = begin + len(TESTED)
                edits.append(_Edit(node.lineno, begin, end, SWAPPED))
        elif (
            isinstance(node, ast.Attribute)
            and node.attr == "asyncio"
            and isinstance(node.value, ast.Name)
            and node.value.id == "redis"
        ):
            edits.append(
                _Edit(node.lineno, node.col_offset, node.col_offset + len(TESTED), SWAPPED)
            )
            needs_import = True
    if needs_import and plain is not None:
        alias = next(alias for alias in plain.names if alias.name == "redis")
        end = alias.col_offset + len("redis")
        edits.append(_Edit(alias.lineno, alias.col_offset, end, f"redis, {SWAPPED}"))
    lines = source.splitlines(keepends=True)
    for edit in sorted(edits, key=lambda edit: (edit.line, edit.begin), reverse=True):
        line = lines[edit.line - 1]
        if line[edit.begin : edit.end] not in (TESTED, "redis") and not line[
            edit.begin : edit.end
        ].startswith(TESTED):
            raise SuiteError(f"line {edit.line} is not as its syntax tree says: {line!r}")
        lines[edit.line - 1] = line[: edit.begin] + edit.text + line[edit.end :]
    return "".join(lines)


def _unpack(archive: Path, tree: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.removeprefix(INSIDE)
            if not member.isfile() or not (name.startswith("tests/") or name == "pyproject.toml"):
                continue
            target = tree / name
            if not target.resolve().is_relative_to(tree.resolve()):
                raise SuiteError(f"{archive}: {member.name} leads out of its folder")
            stream = tar.extractfile(member)
            assert stream is not None
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(stream.read())


def _openssl(*arguments: str, folder: Path) -> None:
    done = subprocess.run(
        ["openssl", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SuiteError(f"openssl {' '.join(arguments)}: {done.stderr}")


def _certificates(folder: Path) -> None:
    """What redis-py's tests of TLS look for: an authority, a server and two clients."""
    folder.mkdir(parents=True, exist_ok=True)
    key = ("-newkey", "rsa:2048", "-nodes")
    _openssl(
        "req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-days", "3650",
        "-subj", "/CN=Test authority", folder=folder,
    )  # fmt: skip
    for name, subject in (("redis", "localhost"), ("client", "client"), ("test_user", "test_user")):
        (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        _openssl(
            "req", *key, "-keyout", f"{name}.key", "-out", "request", "-subj", f"/CN={subject}",
            folder=folder,
        )  # fmt: skip
        _openssl(
            "x509", "-req", "-in", "request", "-CA", "ca.crt", "-CAkey", "ca.key",
            "-CAcreateserial", "-out", f"{name}.crt", "-days", "3650", "-extfile", "names",
            folder=folder,
        )  # fmt: skip


def certificates(tree: Path) -> Path:
    """Where the suite in tree looks for certificates."""
    return tree / "dockers" / "standalone" / "tls"


def prepare(folder: Path) -> dict[str, Path]:
    """Both trees, made anew if the archive or this file has changed; side to its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    trees = {side: folder / side for side in SIDES}
    stamp = folder / "stamp"
    key = SHA256 + hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == key:
        return trees
    archive = _archive(folder)
    for side, tree in trees.items():
        shutil.rmtree(tree, ignore_errors=True)
        _unpack(archive, tree)
        if side == "offloop":
            for path in sorted((tree / ASYNC_TESTS).rglob("*.py")):
                path.write_text(swap(path.read_text()))
        _certificates(certificates(tree))
    stamp.write_text(key)
    return trees
