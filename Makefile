# `make demo` and `make test` need nothing but Python 3.11 or newer: each makes .venv and installs what it uses.
VENV   := .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
RUNS   := $(VENV)/.runs
INSTALLED := $(VENV)/.installed
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-all lab-slurm lab-aws runs-on-slurm check bench clean

demo: $(RUNS)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python examples/quickstart/demo.py

test: $(INSTALLED)
	@$(BIN)/python -m pytest $(PYTEST)

# Real engines without a cloud, as root: a Slurm, and an EC2 API with hosts behind it (tests/labs/README.md).
LAB    := $(BIN)/python -m pytest -m lab --numprocesses 0

lab-slurm: $(INSTALLED)
	@$(LAB) tests/labs/slurm $(PYTEST)

lab-aws: $(INSTALLED)
	@$(LAB) tests/labs/aws $(PYTEST)

runs-on-slurm: $(INSTALLED)
	@$(LAB) tests/labs/slurm/test_runs_on_slurm.py $(PYTEST)

test-all: lab-aws lab-slurm test

check: $(INSTALLED)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(INSTALLED)
	@$(BIN)/python -m benchmarks

$(RUNS): pyproject.toml constraints.txt
	@echo "installing into $(VENV) (torch is large: a few minutes on the first run)"
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) -e ".[torch]"
	@touch $@

$(INSTALLED): $(RUNS)
	@$(INSTALL) -e ".[torch,dev,s3,sky,postgres]"
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
