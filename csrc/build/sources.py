"""What the C tree is made of: its layers, their files, what each may include."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
LAYERS = ("runtime", "redis", "python")
# What a layer may include: itself and those above it.
VISIBLE = {"runtime": ("runtime",), "redis": ("runtime", "redis"), "python": LAYERS}
QUEUE = "rt_queue.c"  # the one file that includes Concurrency Kit


def switch(name: str) -> bool:
    """Whether an environment switch such as OFFLOOP_DEBUG is on."""
    return os.environ.get(name, "0") not in ("", "0")


def layer_sources(layer: str) -> list[Path]:
    """The C files of one layer, in a fixed order."""
    return sorted((ROOT / "csrc" / layer).glob("*.c"))


def layer_includes(layer: str) -> list[str]:
    """-I options: the layer sees itself and the layers above it."""
    return [f"-I{ROOT / 'csrc' / name}" for name in VISIBLE[layer]]
