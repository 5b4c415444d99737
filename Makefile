# The whole loop: make run, make test, make check; at length: make chaos, make bench. Each makes its own environment where there is none.
PYTHON ?= python3
VENV ?= .venv
TEST_PROCESSES ?= 2
BIN := $(VENV)/bin

.PHONY: run test check chaos bench deploy-check clean

run: $(VENV)/run.stamp
	$(BIN)/pipeline run jobs/score.yaml

# Whole files side by side, since the tests of a file share one Ray. A single file: python -m pytest tests/….
test: $(VENV)/test.stamp
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

check: $(VENV)/check.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

chaos: $(VENV)/test.stamp
	PIPELINE_CHAOS=200 PIPELINE_KILLS=20 $(BIN)/python -m pytest -s tests/chaos tests/pipeline/test_killed_driver.py tests/pipeline/test_killed_rounds.py
	PIPELINE_FUZZ=1000 $(BIN)/python -m pytest -s tests/pipeline/test_fuzz_jobs.py tests/pipeline/test_fuzz_parquet.py

bench: $(VENV)/bench.stamp
	$(BIN)/python -m benchmarks.score
	$(BIN)/python -m benchmarks.heads
	$(BIN)/python -m benchmarks.generate

deploy-check: $(VENV)/test.stamp
	$(BIN)/python -m pytest -rs tests/test_deploy.py

clean:
	rm -rf $(VENV) out build

$(VENV)/run.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/%.stamp: $(VENV)/run.stamp
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$*]'
	touch $@
