# meshlib: every target does its own set-up, on a machine with Python >= 3.11, make and the package registries.
#   make demo [KEEP=1] [JSON=1]   a real mesh on this machine
#   make test                     everything a change must pass, `check` included
#   make check                    ruff, mypy --strict, import-linter, the layout test
#   make faults                   fault tests in full length
#   make bench                    what a call and a route cost, an edit of the policy, and 10,000 processes that poll

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest

.PHONY: demo test check faults bench docs lock clean
.DEFAULT_GOAL := test

$(STAMP): pyproject.toml constraints.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "meshlib needs Python 3.11 or newer; set PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing meshlib and its tools into $(VENV) …" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]' -r requirements-dev.txt
	@touch $@

demo: $(STAMP)
	@$(BIN)/meshlib demo $(if $(KEEP),--keep) $(if $(JSON),--json)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) tests/test_layout.py

test: check
	$(PYTEST) -m "not faults" --ignore=tests/test_layout.py
	$(PYTEST) --doctest-modules meshlib/testing

faults: $(STAMP)
	MESHLIB_FUZZ=10000 $(PYTEST) -m "faults or fuzz" -s

bench: $(STAMP)
	@missed=0; for part in calls grpc_calls routes policy_change pollers; do \
	  echo "benchmarks.$$part"; $(BIN)/python -m benchmarks.$$part || missed=1; done; exit $$missed

docs: $(STAMP)
	$(BIN)/mkdocs build --strict

lock: # write constraints.txt anew, from what a fresh environment resolves to
	rm -rf .lock && $(PYTHON) -m venv .lock
	.lock/bin/python -m pip install --quiet -e '.[all]' -r requirements-dev.txt
	.lock/bin/python -m pip freeze --exclude-editable > constraints.txt
	rm -rf .lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist build site
