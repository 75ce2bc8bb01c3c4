# `make demo` and `make test` need nothing but Python 3.11 or newer: each makes .venv and installs what it uses.
VENV   := .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test check bench clean

demo: $(INSTALLED)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python examples/quickstart/demo.py

test: $(INSTALLED)
	@$(BIN)/python -m pytest $(PYTEST)

check: $(INSTALLED)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(INSTALLED)
	@$(BIN)/python -m benchmarks

$(INSTALLED): pyproject.toml constraints.txt
	@echo "installing into $(VENV) (torch is large: a few minutes on the first run)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[torch,dev,s3]"
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
