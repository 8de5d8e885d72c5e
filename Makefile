# make help

VENV   ?= .venv
PYTHON ?= python3
# The interpreter of the environment. VENV= (empty) uses PYTHON as it is, with what it has installed.
RUN    := $(if $(VENV),$(VENV)/bin/python,$(PYTHON))
STAMP  := $(if $(VENV),$(VENV)/.rift-ready,)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-avx2 lint format bench docs clean

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo "  VENV=DIR picks the environment's folder; VENV= PYTHON=python uses an environment that you have made."

setup: $(STAMP)  ## the environment; instant when it stands

# The package itself is installed in editable form, which brings what requirements.txt names. pip says what it
# does, since it takes minutes: in an environment that is new there is nothing else that it could speak of.
$(VENV)/.rift-ready: requirements.txt pyproject.toml
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV); with torch that is some 6 GB the first time"
	@$(VENV)/bin/python -m pip install --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## all stages on embedded digits: table, figures, W&B offline run
	$(RUN) -m rift experiment=demo

# Each test computes with one thread, so two processes fill two cores; a file's tests stay in one of them.
WORKERS := 2
PARALLEL := -n $(WORKERS) --dist loadfile

test: $(STAMP)  ## the tests, without the slow ones
	$(RUN) -m pytest -m "not slow" $(PARALLEL)

test-all: $(STAMP)  ## the slow tests too
	$(RUN) -m pytest $(PARALLEL)

# What trains, crafts, scans and traces: the parts that other kernels could change.
KERNELS := tests/test_attacks_*.py tests/test_criticality.py tests/test_models_*.py tests/test_runtime_*.py \
           tests/test_stages_*.py tests/test_training_equality.py

test-avx2: $(STAMP)  ## the tests of the computing parts, as on a CPU that has no AVX-512
	ONEDNN_MAX_CPU_ISA=AVX2 $(RUN) -m pytest -m "not slow" $(PARALLEL) $(KERNELS)

lint: $(STAMP)  ## ruff: errors, style, format
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: $(STAMP)  ## ruff: mends style and format
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

bench: $(STAMP)  ## each inner loop against its textbook twin
	$(RUN) scripts/benchmark.py

docs: $(STAMP)  ## the documentation as a site, into outputs/site
	@$(RUN) -c "import material" 2>/dev/null || $(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(RUN) -m mkdocs build --quiet --strict --config-file scripts/mkdocs.yml

clean:  ## removes caches; results and the environment stay
	rm -rf .pytest_cache .ruff_cache build *.egg-info
	find rift tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
