# The whole loop: make run, make test, make check. Each makes its own environment where there is none.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: run test check bench clean

run: $(VENV)/run.stamp
	$(BIN)/pipeline run jobs/score.yaml

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest

check: $(VENV)/check.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/bench.stamp
	$(BIN)/python benchmarks/score.py

clean:
	rm -rf $(VENV) out build

$(VENV)/run.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/%.stamp: $(VENV)/run.stamp
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$*]'
	touch $@
