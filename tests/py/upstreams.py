"""Other projects' tests, as tests/upstream fetches them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import offloop

#: Where offloop's package is, for a process that runs elsewhere.
PACKAGES = Path(offloop.__file__).resolve().parent.parent
UPSTREAM = Path(__file__).resolve().parent.parent / "upstream"


def distributions() -> ModuleType:
    """tests/upstream/distribution.py, which is on no path."""
    path = UPSTREAM / "distribution.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
