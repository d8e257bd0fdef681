# The face of the project. `make help` lists every target.
#
#   VENV=off PYTHON=python   use an environment of your own instead of .venv
#   UPSTREAM=mini SEEDS=1 STYLE=mae STEPS=900 DATA=/path ARGS='…'   what demo and compare-NAME run

PYTHON   ?= python3
VENV     ?= .venv
JOBS     ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)
UPSTREAM ?= mini
SEEDS    ?= 1
GPUS     ?= 8
GPU_MEM  ?= 24
ARGS     ?=
NAMES    := $(notdir $(patsubst %/,%,$(wildcard patches/*/)))

ifeq ($(VENV),off)
  PY    := $(PYTHON)
  TOOLS := environment
  DEV   := environment
else
  PY    := $(VENV)/bin/python
  TOOLS := $(VENV)/.tools
  DEV   := $(VENV)/.dev
endif
MTO     := $(PY) -m mto_tools.cli
COMPARE := $(if $(DATA),--data $(DATA)) $(if $(STYLE),--style $(STYLE)) $(if $(STEPS),--steps $(STEPS))

.DEFAULT_GOAL := help
.PHONY: help install environment demo test lint format typecheck status doctor lint-patches bench clean

help:  ## list every target
	@printf 'usage: make TARGET\n\n'
	@sed -nE 's/^([a-zA-Z%_-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) \
	  | sed 's/%/NAME/' | awk -F '\t' '{ printf "  %-16s %s\n", $$1, $$2 }'
	@printf '\nNAME is one of: %s\n' '$(NAMES)'

install: $(TOOLS)  ## create .venv with what the tools need (other targets do it when needed)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.tools: pyproject.toml | $(VENV)/bin/python
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[tools]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[tools,recipes,deepspeed,dev]'
	@touch $@ $(VENV)/.tools

environment:
	@$(PY) -c 'import mto_core, mto_tools' 2>/dev/null || { \
	  echo "error: $(PY) cannot import mto_core and mto_tools" >&2; \
	  echo "hint:  $(PY) -m pip install -e '.[tools]'   (add --no-deps to keep your torch)" >&2; exit 3; }

demo: $(TOOLS)  ## baseline against MTO on real images, then the report's path (SEEDS=3 for a spread)
	@$(MTO) compare $(UPSTREAM) --seeds $(SEEDS) $(COMPARE) $(ARGS)

test: $(DEV) lint typecheck  ## everything CI runs: ruff, mypy, doctests, the test suite
	$(PY) -m pytest -q --doctest-modules mto_core
	$(PY) -m pytest -n $(JOBS) --maxprocesses 8 $(or $(ARGS),tests)

lint: $(DEV)  ## ruff
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(DEV)  ## let ruff rewrite what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

typecheck: $(DEV)  ## mypy, strict for mto_core
	$(PY) -m mypy --strict mto_core

status: $(TOOLS)  ## one word per upstream
	@$(MTO) status $(ARGS)

doctor: $(TOOLS)  ## git, sources, disk, torch: what is ready and what is missing
	@$(MTO) doctor $(ARGS)

lint-patches: $(TOOLS)  ## prove the patch series additive-only, zero-context and locked
	@$(MTO) lint $(ARGS)

apply-%: $(TOOLS)  ## clone NAME if needed and apply its series
	@$(MTO) apply $* $(ARGS)

revert-%: $(TOOLS)  ## back to the untouched upstream
	@$(MTO) revert $* $(ARGS)

diff-%: $(TOOLS)  ## what the series inserts into NAME
	@$(MTO) diff $* $(ARGS)

verify-%: $(TOOLS)  ## rebuild NAME's series and compare every object with the lock
	@$(MTO) verify $* $(ARGS)

export-%: $(TOOLS)  ## rewrite series and lock from the edited checkout of NAME
	@$(MTO) export $* $(ARGS)

upgrade-%: $(TOOLS)  ## rehearse the series on a newer upstream (TO=REF)
	@$(MTO) upgrade $* $(if $(TO),--to $(TO)) $(ARGS)

compare-%: $(TOOLS)  ## baseline against MTO side by side for NAME
	@$(MTO) compare $* --seeds $(SEEDS) $(COMPARE) $(ARGS)

smoke-%: $(TOOLS)  ## NAME on a few digits: baseline, MTO off, on, resume (CPU=1: no GPU)
	@$(MTO) smoke $* $(if $(CPU),--cpu) $(ARGS)

plan-%: $(TOOLS)  ## NAME on your GPUs by DeepSpeed: configuration and command (GPUS=8 GPU_MEM=24)
	@$(MTO) plan $* --gpus $(GPUS) --gpu-mem $(GPU_MEM) $(ARGS)

bench: $(TOOLS)  ## speed and memory of the losses, each against its baseline
	$(PY) benchmarks/row_entropy.py $(ARGS)
	$(PY) benchmarks/overhead.py $(ARGS)

clean:  ## remove caches and build products; clones, data and reports stay
	rm -rf build ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find mto_core tools tests benchmarks upstream/embedded -name __pycache__ -prune -exec rm -rf {} +
