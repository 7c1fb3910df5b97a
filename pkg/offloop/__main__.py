"""``python -m offloop``: the command line, which needs the extra ``bench``."""

from __future__ import annotations

import sys

_EXTRA = {"rich", "matplotlib"}
_FAILED = 2


def _missing(error: ModuleNotFoundError) -> int:
    """Say what to install; ``error`` goes on if it is about another module."""
    name = (error.name or "").partition(".")[0]
    if name not in _EXTRA:
        raise error
    print(f"offloop bench: {name} is not installed: pip install 'offloop[bench]'", file=sys.stderr)
    return _FAILED


def main() -> int:
    """Run the command line; returns the exit status."""
    try:
        return cli.main()
    except ModuleNotFoundError as error:
        return _missing(error)


if __name__ == "__main__":
    try:
        from .bench import cli
    except ModuleNotFoundError as error:
        sys.exit(_missing(error))
    sys.exit(main())
