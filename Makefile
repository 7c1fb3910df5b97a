# offloop: everything from a fresh clone. `make help` names the targets.
#
# Each target first makes sure of what it needs: system packages by .ci/system.sh
# (apt as root; otherwise it prints the command and stops), Python packages into
# .venv by .ci/venv.sh. Both look before they act, so the second time is fast.
#
# PYTHON=python3.12 chooses the interpreter for a new .venv; ARGS=... is handed
# to the demo, the benchmark or pytest.

SHELL = /bin/sh
PYTHON ?= python3
VENV = .venv
PY = $(VENV)/bin/python
ARGS =

export PYTHON

.DEFAULT_GOAL = help
.PHONY: help demo build test upstream bench lint asan tsan clean

help:
	@echo 'make demo    build, start a private redis-server, compare offloop with redis-py'
	@echo 'make test    the C tests, the Python tests, and those on other Pythons found here'
	@echo 'make upstream  redis-py'\''s own asyncio tests, with only their import swapped'
	@echo 'make build   build the extension into .venv and this tree'
	@echo 'make bench   the full comparison (ARGS="--help" for its options)'
	@echo 'make lint    ruff, mypy, and the C code without a warning from gcc and clang'
	@echo 'make asan    the tests under AddressSanitizer, UBSan and the debug allocator'
	@echo 'make tsan    the C tests and some Python tests under ThreadSanitizer'
	@echo 'make clean   remove everything that make made here'

build:
	@.ci/system.sh build
	@.ci/venv.sh $(VENV)

demo:
	@.ci/system.sh build test
	@.ci/venv.sh $(VENV) bench
	$(PY) -m offloop.bench.demo $(ARGS)

bench:
	@.ci/system.sh build test drivers
	@.ci/venv.sh $(VENV) bench
	$(PY) bench/run.py $(ARGS)

test:
	@.ci/system.sh build test drivers
	@.ci/venv.sh $(VENV) test bench drivers
	$(PY) tests/c/run.py
	$(PY) -m pytest -n 4 --dist loadgroup $(ARGS) tests/py
	@.ci/others.sh $(PY)

upstream:
	@.ci/system.sh build test
	@.ci/venv.sh .venvs/upstream upstream
	.venvs/upstream/bin/python tests/upstream/run.py $(ARGS)

lint:
	@.ci/system.sh build test lint
	@.ci/venv.sh $(VENV) test bench lint
	@.ci/lint.sh $(PY)

asan:
	@.ci/system.sh build test drivers
	@.ci/venv.sh $(VENV) test bench drivers
	@.ci/asan.sh $(PY) $(ARGS)

tsan:
	@.ci/system.sh build test
	@.ci/venv.sh $(VENV) test bench
	@.ci/tsan.sh $(PY) $(ARGS)

clean:
	rm -rf build dist .venv .venvs pkg/*.egg-info pkg/offloop/*.so
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
