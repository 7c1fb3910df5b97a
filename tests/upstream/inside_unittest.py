"""Run unittest tests of a folder and print how each ended, as JSON.

python inside_unittest.py FOLDER MODULE
"""

from __future__ import annotations

import json
import sys
import unittest
import warnings
from typing import Any


class Result(unittest.TestResult):
    """Keeps each test's outcome by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: dict[str, str] = {}

    def addSuccess(self, test: unittest.TestCase) -> None:
        super().addSuccess(test)
        self.outcomes.setdefault(test._testMethodName, "passed")

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        super().addError(test, err)
        self._failed(test, self.errors[-1][1])

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addFailure(test, err)
        self._failed(test, self.failures[-1][1])

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._failed(test, str(err[1]))

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        self._end(test, f"skipped: {reason}")

    def _failed(self, test: unittest.TestCase, text: str) -> None:
        self._end(test, f"failed: {text}")

    def _end(self, test: unittest.TestCase, outcome: str) -> None:
        self.outcomes[getattr(test, "_testMethodName", str(test))] = outcome


def main() -> None:
    """Run them."""
    folder, module = sys.argv[1:]
    sys.path.insert(0, folder)
    warnings.simplefilter("default")
    result = Result()
    unittest.defaultTestLoader.loadTestsFromName(module).run(result)
    print("\n" + json.dumps(result.outcomes))


if __name__ == "__main__":
    main()
