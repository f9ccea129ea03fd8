# make demo | test | test-faults | soak | check | audit | bench-*: each sets up .venv first. PYTHON picks the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests wait a lot for Ray. Each file stays in one process, so that what its tests share is made once.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-fast test-faults soak check audit bench-head bench-train bench-sweep bench-scale bench-lanes bench-generate bench-regret setup clean

demo: setup
	$(BIN)/raysft demo

# All but what takes minutes to kill, fill or cut off: that is test-faults.
test: setup check
	$(PYTEST) -m "not gpu and not (slow and faults)"

test-fast: setup
	$(PYTEST) -m "not slow and not faults and not gpu and not browser"

test-faults: setup
	$(PYTEST) -m "faults and not gpu and not browser"

# Kills sweeps at random for as long as it is given, and counts the harm. ARGS: --kills, --hours, --subjects, ...
soak: setup
	PYTHONPATH=. $(BIN)/python tests/faults/soak.py $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive raysft

# ARGS: flags of pip-audit, e.g. --ignore-vuln ID.
audit: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[audit]'
	$(BIN)/python .ci/audit.py $(ARGS)

# The constraints keep what it compares with from changing any version. ARGS: flags of the script, e.g. --repeats 9.
bench-head bench-train: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python tests/benchmarks/$(subst -,_,$@).py $(ARGS)

bench-sweep bench-scale bench-lanes bench-generate bench-regret: setup
	$(BIN)/python tests/benchmarks/$(subst -,_,$@).py $(ARGS)

setup: $(VENV)/.ready

# torch comes first and alone, so that a CPU build is taken where one is at hand.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "raysft needs Python 3.11 or newer; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
