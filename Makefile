# Every target makes its own environment ready first: .venv, with the versions of constraints.txt.
#
#   make PYTHON=/path/to/python3.12 demo     another interpreter (3.11 to 3.13)
#   make VENV=/tmp/other test                another place for the environment
#   make demo RUN=runs/mine ARGS="seed=1"    another run folder, more settings

VENV ?= .venv
RUN ?= runs/demo
ARGS ?=
PYTHON ?=
BIN := $(VENV)/bin

# A process of tests for each core, as far as memory goes: one may hold a gigabyte.
TESTS := -n auto --maxprocesses 8 --dist worksteal --durations=40 --durations-min=5

export PYTHON
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo reproduce test test-gpu gpu-report test-slow fuzz lint doctor clean

help:  ## this list
	@awk -F ':.*##' '/^[a-z-]+:.*##/ { printf "  make %-11s%s\n", $$1, $$2 }' Makefile

setup:  ## only make the environment ready (the others do it themselves)
	@sh scripts/bootstrap.sh "$(VENV)"

demo: setup  ## train on Pendulum from pixels, evaluate, write runs/demo (minutes on 2 cores)
	"$(BIN)/python" scripts/train.py run=$(RUN) $(ARGS)
	@echo; echo "Made by this run:"
	@find $(RUN) -maxdepth 2 \( -name summary.json -o -name '*.mp4' -o -name '*.png' \) | sort
	@echo; echo "Curves: $(BIN)/tensorboard --logdir $(RUN)"

reproduce: setup  ## the claims that fit in 30 minutes: run, compared, pass or FAIL
	"$(BIN)/python" scripts/reproduce.py quick $(ARGS)

test: lint  ## lint, types, layers and the tests (five to twelve minutes on 2 cores)
	"$(BIN)/python" -m pytest $(TESTS) $(ARGS)

test-gpu: setup  ## the tests that need a CUDA GPU
	"$(BIN)/python" -m pytest -m gpu $(ARGS)

gpu-report: setup  ## updates, loop, precision and tests on a GPU: runs/gpu-report (8 minutes)
	"$(BIN)/python" scripts/gpu_report.py $(ARGS)

test-slow: setup  ## the tests marked slow, learning included
	"$(BIN)/python" -m pytest -m slow --timeout 3600 $(ARGS)

fuzz: setup  ## more than 10,000 random inputs of every kind, new ones each time (about ten minutes)
	FUZZ=full FUZZ_LEAST=1 "$(BIN)/python" -m pytest tests/fuzz --timeout 1800 $(TESTS) $(ARGS)

lint: setup  ## ruff, mypy and the layer contract
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"
	"$(BIN)/lint-imports" --no-logo

doctor: setup  ## versions, devices, rendering, disk and memory, and what to do about each
	"$(BIN)/python" scripts/doctor.py $(ARGS)

clean:  ## remove caches and build output; environments and runs stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find worldmodel agents scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +
