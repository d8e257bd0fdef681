# The face of the project. `make help` lists every target.
#
#   VENV=off PYTHON=python   use an environment of your own instead of .venv
#   UPSTREAM=mini SEEDS=1 STYLE=mae STEPS=900 DATA=/path ARGS='…'   what demo and compare-NAME run

PYTHON   ?= python3
VENV     ?= .venv
JOBS     ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)
UPSTREAM ?= mini
SEEDS    ?= 1
evidence: SEEDS = 5
GPUS     ?= 8
GPU_MEM  ?= 24
ARGS     ?=
NAMES    := $(notdir $(patsubst %/,%,$(wildcard patches/*/)))

ifeq ($(VENV),off)
  PY    := $(PYTHON)
  TOOLS := environment
  PHOTOS := environment
  RECIPES := environment
  DEEPSPEED := environment
  DEV   := environment
  # The clone in which make stands wins over one that is installed.
  export PYTHONPATH := $(CURDIR):$(CURDIR)/tools$(if $(PYTHONPATH),:$(PYTHONPATH))
else
  PY    := $(VENV)/bin/python
  TOOLS := $(VENV)/.tools
  PHOTOS := $(VENV)/.photos
  RECIPES := $(VENV)/.recipes
  DEEPSPEED := $(VENV)/.deepspeed
  DEV   := $(VENV)/.dev
endif
comma   := ,
MTO     := $(PY) -m mto_tools.cli
PIP     := -m pip install --quiet --disable-pip-version-check
COMPARE := $(if $(DATA),--data $(DATA)) $(if $(STYLE),--style $(STYLE)) $(if $(STEPS),--steps $(STEPS))

.DEFAULT_GOAL := help
.PHONY: help install environment demo evidence test test-floor lint format typecheck status doctor lint-patches bench clean

help:  ## list every target
	@printf 'usage: make TARGET\n\n'
	@sed -nE 's/^([a-zA-Z%_-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) \
	  | sed 's/%/NAME/' | awk -F '\t' '{ printf "  %-16s %s\n", $$1, $$2 }'
	@printf '\nNAME is one of: %s\n' '$(NAMES)'

install: $(RECIPES)  ## create .venv with what the recipes need (other targets do it when needed)

# Of two makes at once, the second waits, and finds the work done.
ALONE = mkdir -p $(VENV) && $(PYTHON) -c 'import fcntl, subprocess, sys; \
  lock = open(sys.argv[1], "w"); fcntl.flock(lock, fcntl.LOCK_EX); \
  sys.exit(subprocess.call(["sh", "-c", sys.argv[2]]))' $(VENV)/.lock

$(VENV)/bin/python:
	@$(ALONE) 'test -x $@ || $(PYTHON) -m venv $(VENV)'

# A set of extras has a stamp; installing it stamps its parts too.
$(VENV)/.tools: EXTRAS = tools
$(VENV)/.photos: EXTRAS = tools,photos
$(VENV)/.recipes: EXTRAS = tools,recipes
$(VENV)/.deepspeed: EXTRAS = tools,recipes,deepspeed
$(VENV)/.dev: EXTRAS = tools,recipes,deepspeed,slurm,dev
$(VENV)/.tools $(VENV)/.photos $(VENV)/.recipes $(VENV)/.deepspeed $(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	@$(ALONE) 'test $@ -nt pyproject.toml || { $(PY) $(PIP) -e ".[$(EXTRAS)]" && \
	  touch $(addprefix $(VENV)/.,$(subst $(comma), ,$(EXTRAS))); }'

environment:
	@$(PY) -c 'import mto_core, mto_tools.patchset.cli' 2>/dev/null || { \
	  echo "error: $(PY) lacks packages that mto needs" >&2; \
	  echo "hint:  $(PY) -m pip install -e '.[tools,recipes]'   (it keeps a torch that is new enough)" >&2; \
	  exit 3; }

demo: $(if $(filter mini,$(UPSTREAM)),$(PHOTOS),$(RECIPES))  ## baseline against MTO on photographs, then the report's path (SEEDS=3 for a spread)
	@$(MTO) compare $(UPSTREAM) --seeds $(SEEDS) $(COMPARE) $(ARGS)

evidence: $(PHOTOS)  ## docs/evidence.md from its studies; goes on where it was (SEEDS=5 STEPS=600 ARGS='--arms baseline default')
	@$(PY) docs/evidence/evidence.py --seeds $(SEEDS) $(if $(STEPS),--steps $(STEPS)) $(ARGS)

test: $(DEV) lint typecheck  ## everything CI runs: ruff, mypy, doctests, the test suite (ARGS=PATH for a part)
	$(PY) -m pytest -q --doctest-modules mto_core
	$(PY) -m pytest -n $(JOBS) --maxprocesses 8 --dist loadfile $(or $(ARGS),tests)

test-floor:  ## mto_core, mini and compat on the oldest versions that pyproject names
	$(PYTHON) -m venv .venv-floor
	grep -oE '"[a-z0-9-]+>=[0-9.]+"' pyproject.toml | grep -v hatchling | sed 's/"//g; s/>=/==/' > .venv-floor/floor.txt
	.venv-floor/bin/python $(PIP) -c .venv-floor/floor.txt -e '.[tools,recipes,slurm,dev]'
	.venv-floor/bin/python -m pytest -n $(JOBS) --maxprocesses 8 --dist loadfile $(or $(ARGS),tests/mto_core tests/mini tests/compat)

lint: $(DEV)  ## ruff
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(DEV)  ## let ruff rewrite what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

typecheck: $(DEV)  ## mypy, strict for mto_core
	$(PY) -m mypy --strict mto_core
	$(PY) -m mypy tools/mto_tools

status: $(TOOLS)  ## one word per upstream
	@$(MTO) status $(ARGS)

doctor: $(TOOLS)  ## git, sources, disk, torch: what is ready and what is missing
	@$(MTO) doctor $(ARGS)

lint-patches: $(TOOLS)  ## prove the patch series additive-only, zero-context and locked
	@$(MTO) lint $(ARGS)

apply-%: $(RECIPES)  ## clone NAME if needed and apply its series
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

compare-%: $(RECIPES)  ## baseline against MTO side by side for NAME
	@$(MTO) compare $* --seeds $(SEEDS) $(COMPARE) $(ARGS)

smoke-%: $(RECIPES)  ## NAME on a few digits: baseline, MTO off, on, resume (CPU=1: no GPU)
	@$(MTO) smoke $* $(if $(CPU),--cpu) $(ARGS)

plan-%: $(DEEPSPEED)  ## NAME on your GPUs by DeepSpeed: configuration and command (GPUS=8 GPU_MEM=24)
	@$(MTO) plan $* --gpus $(GPUS) --gpu-mem $(GPU_MEM) $(ARGS)

bench: $(TOOLS)  ## speed and memory of the losses, each against its baseline
	$(PY) benchmarks/overhead.py $(ARGS)

clean:  ## remove caches and build products; clones, data and reports stay
	rm -rf build ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find mto_core tools tests benchmarks upstream/embedded -name __pycache__ -prune -exec rm -rf {} +
