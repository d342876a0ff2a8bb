# Everything a fresh clone needs besides Python >= 3.11: `make train`, `make test`. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV ?= .venv
#: The interpreter that makes the environment; by default the first of these that is >= 3.11 and can make one.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	"$$p" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
#: Overrides for the command, e.g. make train ARGS="loss=ce trainer.max_steps=500"
ARGS ?=
#: What `make eval` scores and `make predict` asks: a run folder, a checkpoint folder or latest.
RUN ?= latest
PYTEST_ARGS ?=
#: More options for pip, e.g. an index with another build of torch.
PIP_ARGS ?=
#: e.g. make sweep SWEEP_ARGS="-cd sweeps -cn phase1_abc sweep.parallel=2", and make sweep SWEEP_ARGS=resume_sweep=latest to go on.
SWEEP_ARGS ?= loss=ce,coordexp,hybrid debug=fast sweep.parallel=2

export PIP_DISABLE_PIP_VERSION_CHECK := 1
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install -qq --progress-bar off $(PIP_ARGS) -c constraints.txt

.PHONY: help setup setup-dev train eval predict sweep bench audit test test-fast lint types clean

help: ## show this list
	@echo "usage: make <target> [ARGS=\"key=value ...\"]"
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'

$(VENV)/.made:
	@if [ -z "$(PYTHON)" ]; then echo "error: no Python >= 3.11 with venv and ensurepip on PATH; name one with make PYTHON=/path/to/python3" >&2; exit 1; fi
	@if ! "$(PYTHON)" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo "error: $(PYTHON) is not a Python >= 3.11 with venv and ensurepip" >&2; exit 1; fi
	@echo "making $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv --clear "$(VENV)"
	@touch $@

$(VENV)/.torch: $(VENV)/.made constraints.txt
	@echo "installing torch (the large one)"
	@$(PIP) torch
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml constraints.txt
	@echo "installing coordvlm and the tested set"
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing the tools of the tests"
	@$(PIP) -e '.[dev]'
	@touch $@

setup: $(VENV)/.installed ## make the virtual environment and install the tested set
setup-dev: $(VENV)/.installed-dev ## the same with the tools of the tests

train: setup ## train, evaluate and report: make train ARGS="loss=hybrid"
	@$(PY) -m coordvlm.train $(ARGS)

eval: setup ## score a run: make eval RUN=latest ARGS="data=shapes"
	@$(PY) -m coordvlm.eval "run=$(RUN)" $(ARGS)

predict: setup ## ask a run about images: make predict RUN=latest ARGS='images=photos/ phrase="a red cup"'
	@$(PY) -m coordvlm.predict "run=$(RUN)" $(ARGS)

sweep: setup ## a small multirun: make sweep SWEEP_ARGS="loss=ce,hybrid seed=0,1 debug=fast"
	@$(PY) -m coordvlm.train --multirun $(SWEEP_ARGS) $(ARGS)

bench: setup ## measure the input pipeline on one core
	@$(PY) -m coordvlm.bench case=input $(ARGS)

audit: setup ## look a data set over: make audit ARGS="data=coco data.root=/data/mine"
	@$(PY) -m coordvlm.audit $(ARGS)

test: setup-dev ## the whole suite, slow tests too: make test PYTEST_ARGS="tests/utils -x"
	@$(PY) -m pytest $(PYTEST_ARGS)

test-fast: setup-dev ## the suite without the slow tests
	@$(PY) -m pytest -m "not slow" $(PYTEST_ARGS)

lint: setup-dev ## ruff and the import rule
	@$(PY) -m ruff check .
	@$(VENV)/bin/lint-imports

types: setup-dev ## mypy
	@$(PY) -m mypy

clean: ## remove the virtual environment, caches and build output; outputs/ stays
	@rm -rf "$(VENV)" build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find coordvlm tests -type d -name __pycache__ -prune -exec rm -rf {} +
