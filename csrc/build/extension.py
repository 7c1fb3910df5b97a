"""The setuptools command that builds offloop._core.

One extension from every ``csrc/{runtime,redis,python}/*.c``, with hiredis and
Concurrency Kit linked in statically; OpenSSL is the only library it needs
beside libc. Environment (read at build time, never at run time):

    CC                        gcc (default) or clang
    OFFLOOP_WERROR=1          warnings are errors
    OFFLOOP_DEBUG=1           the runtime's own assertions (RT_DEBUG)
    OFFLOOP_SANITIZE=NAMES    address, undefined, thread
    OFFLOOP_SYSTEM_HIREDIS=1, OFFLOOP_HIREDIS_SDIST=FILE: see hiredis.py
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext

from csrc.build import hiredis
from csrc.build.compile import (
    BuildError,
    Unit,
    compile_units,
    link,
    locked,
    sanitizer_flags,
    sanitizers_of,
)
from csrc.build.sources import LAYERS, QUEUE, ROOT, layer_includes, layer_sources, switch

FLAGS = ("-std=gnu11", "-D_GNU_SOURCE=1", "-O2", "-g", "-fPIC", "-fvisibility=hidden")
WARNINGS = ("-Wall", "-Wextra", "-Wshadow")


def core_extension() -> Extension:
    """The one extension, as setup() wants it."""
    sources = [path for layer in LAYERS for path in layer_sources(layer)]
    return Extension("offloop._core", [str(path.relative_to(ROOT)) for path in sources])


def missing_headers(cc: Sequence[str]) -> str:
    """What to install, as a text to add to an error, or nothing."""
    wanted = {
        "openssl/ssl.h": "OpenSSL's headers (Debian: libssl-dev)",
        "ck_ec.h": "Concurrency Kit's headers (Debian: libck-dev)",
    }
    text = ""
    for header, package in wanted.items():
        command = [*cc, "-E", "-x", "c", "-"]
        source = f"#include <{header}>\n"
        if subprocess.run(command, input=source.encode(), capture_output=True).returncode != 0:
            text += f"\nmissing: {package}"
    return text


def put(source: Path, target: Path) -> None:
    """Copy source over target unless it is the same already.

    The old file is replaced, never overwritten: a running program has it mapped.
    """
    if target.is_file() and target.read_bytes() == source.read_bytes():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.copy(source, part)
    part.replace(target)


class BuildCore(build_ext):
    """build_ext with objects that are remade only when needed, several at a time."""

    def run(self) -> None:
        if self.inplace and os.environ.get("OFFLOOP_SANITIZE"):
            raise SystemExit(
                "offloop: a sanitizer build does not go into the source tree, where every import "
                "would find it: use 'build --build-lib DIR' or 'make asan'"
            )
        super().run()

    def build_extension(self, ext: Extension) -> None:
        cc = shlex.split(os.environ.get("CC", "")) or list(self.compiler.compiler_so[:1])
        try:
            # Not self.build_temp: an editable install gets a new one each time.
            name = f"temp.{self.plat_name}-{sys.implementation.cache_tag}"
            with locked(ROOT / "build" / name) as folder:
                self.build_core(ext, cc, folder)
        except BuildError as error:
            print(f"offloop: {error}{missing_headers(cc)}", file=sys.stderr)
            raise SystemExit(1) from None

    def copy_extensions_to_source(self) -> None:
        folder = self.get_finalized_command("build_py").get_package_dir("offloop")
        for ext in self.extensions:
            built = Path(self.build_lib) / self.get_ext_filename(ext.name)
            put(built, ROOT / folder / built.name)

    def build_core(self, ext: Extension, cc: list[str], build: Path) -> None:
        """Compile what changed, link, and put the result where setuptools looks for it."""
        sanitize = sanitizers_of(os.environ.get("OFFLOOP_SANITIZE", ""))
        library = hiredis.provide(ROOT / "build", cc, sanitize)
        switches = [name for name in ("DEBUG", "WERROR") if switch(f"OFFLOOP_{name}")]
        folder = build / "-".join([Path(cc[-1]).name, *map(str.lower, switches), *sanitize])
        units = self.units(folder, library, sanitize)
        made = compile_units(units)
        inputs = [*(unit.object for unit in units), *library.archives]
        linked = folder / Path(self.get_ext_filename(ext.name)).name
        command = [*self.compiler.linker_so, *map(str, inputs), *library.libs]
        # hiredis and CK are nobody else's business: their symbols stay inside.
        command += ["-l:libck.a", "-Wl,--exclude-libs,ALL", "-pthread"]
        command += [flag for flag in sanitizer_flags(sanitize) if flag.startswith("-fsanitize")]
        if sanitize and "clang" in Path(cc[-1]).name:
            command.append("-shared-libsan")
        link(linked, inputs, [*command, "-o", str(linked)])
        put(linked, Path(self.get_ext_fullpath(ext.name)).absolute())
        print(f"offloop: {made} of {len(units)} C files compiled with {shlex.join(cc)}")

    def units(self, folder: Path, library: hiredis.Hiredis, sanitize: Sequence[str]) -> list[Unit]:
        """How each C file is compiled, and to which object in folder."""
        options = [*self.compiler.compiler_so, *FLAGS, *WARNINGS]
        options += ["-DRT_DEBUG=1", "-UNDEBUG"] if switch("OFFLOOP_DEBUG") else []
        options += ["-Werror"] if switch("OFFLOOP_WERROR") else []
        python = [f"-I{path}" for path in self.compiler.include_dirs]
        units = []
        for layer in LAYERS:
            command = [*options, *layer_includes(layer)]
            command += [] if layer == "runtime" else library.cflags
            command += python if layer == "python" else []
            for source in layer_sources(layer):
                flags = sanitizer_flags(sanitize, queue=source.name == QUEUE)
                target = folder / layer / f"{source.stem}.o"
                units.append(Unit(source, target, (*command, *flags)))
        return units
