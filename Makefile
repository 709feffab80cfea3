# Everything a developer or CI runs. Plain `make` shows the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

# The first of these that is new enough and can make environments is used.
PYTHON :=
PYTHONS := $(or $(PYTHON),python3.11 python3.12 python3.13 python3)

# Another package index for torch alone, such as one with smaller builds for CPUs only.
TORCH_INDEX :=
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)

.PHONY: help env demo test test-browser bench bench-full builtin-data audit format clean

help: ## Show this help
	@echo 'Usage: make TARGET [VARIABLE=value …]'
	@echo
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1@\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F@ '{ printf "  %-14s %s\n", $$1, $$2 }'
	@echo
	@echo '  PYTHON=python3.12     the Python to use, 3.11 or newer (found by itself: python3.11 first)'
	@echo '  TORCH_INDEX=URL       one more package index for torch, e.g. https://download.pytorch.org/whl/cpu'

env: $(READY) ## Make the environment .venv at the exact versions of constraints.txt

demo: $(READY) ## Run examples/quickstart.yaml into out/quickstart and print its table
	$(BIN)/manytune run examples/quickstart.yaml --out out/quickstart

test: $(READY) ## Check format, lint and types, and run all tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@# mypy works beside the tests, which wait for processes of theirs now and then.
	@# In the order of files: by default those with most tests come first, and at the end one process waits for the slow ones.
	$(BIN)/mypy & mypy=$$!; tests=0; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder || tests=$$?; \
	wait $$mypy || { echo 'mypy has found errors: they are among the lines above.' >&2; exit 1; }; \
	exit $$tests

test-browser: $(READY) ## Run the tests of the report in a real browser; installs Debian's Chromium where it may
	@if ! command -v chromium >/dev/null && [[ -z $${MANYTUNE_CHROMIUM:-} ]]; then \
		if command -v apt-get >/dev/null && [[ $$(id -u) == 0 ]]; then \
			echo 'Installing Chromium by apt-get.'; \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; \
		else \
			echo 'Chromium is not here. Install it (on Debian: apt install chromium), or name one in MANYTUNE_CHROMIUM.' >&2; \
			exit 1; \
		fi; \
	fi
	MANYTUNE_CHROMIUM=$${MANYTUNE_CHROMIUM:-$$(command -v chromium)} OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser

bench: $(READY) ## Speed, memory and start-up beside Trainer, one round (minutes); local GLUE files in MANYTUNE_GLUE_DIR
	$(BIN)/python benchmarks/speed.py compare memory start profile --rounds 1 --out out/speed.json

bench-full: $(READY) ## The same in three rounds, and speed by pack size
	$(BIN)/python benchmarks/speed.py compare growth memory start profile --rounds 3 --out out/speed-full.json

builtin-data: $(READY) ## Generate the rows of the built-in tasks anew: src/manytune/data/builtin.jsonl.gz
	PYTHONPATH=scripts $(BIN)/python -m builtin_data

audit: ## Look up known weaknesses of the pinned versions (needs PyPI's own service)
	@folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	$(firstword $(PYTHONS)) -m venv "$$folder/venv"; \
	"$$folder/venv/bin/python" -m pip --disable-pip-version-check -qq install pip-audit; \
	"$$folder/venv/bin/pip-audit" --requirement constraints.txt --no-deps --disable-pip

format: $(READY) ## Format the code and mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove the environment, caches and builds; results in out/ stay
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests benchmarks scripts -name __pycache__ -prune -exec rm -rf {} +

# The marker is written last, so an install that was cut short is done again. torch comes first and exactly
# pinned: a looser requirement makes pip fetch gigabytes to choose from.
$(READY): constraints.txt pyproject.toml
	@python=; without_venv=; \
	for candidate in $(PYTHONS); do \
		"$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		if "$$candidate" -c 'import ensurepip, venv' 2>/dev/null; then python=$$candidate; break; fi; \
		without_venv=$${without_venv:-$$candidate}; \
	done; \
	if [[ -z $$python && -n $$without_venv ]]; then \
		echo "$$without_venv cannot make environments: its module venv (or ensurepip) is missing." >&2; \
		echo "On Debian and Ubuntu: apt install python3-venv (or python3.12-venv and so on, as its version is)." >&2; \
		exit 1; \
	elif [[ -z $$python ]]; then \
		echo "There is no Python 3.11 or newer among: $(PYTHONS)." >&2; \
		echo "Install one (on Debian and Ubuntu: apt install python3 python3-venv), or say make PYTHON=/path/to/python." >&2; \
		exit 1; \
	fi; \
	python=$$("$$python" -c 'import sys; print(sys._base_executable)') && \
	echo "Making $(VENV) with $$python; this takes a minute or more." && \
	rm -f $@ && "$$python" -m venv --clear $(VENV)
	@$(PIP) install -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(TORCH)
	@$(PIP) install -c constraints.txt hatchling editables
	@$(PIP) install -c constraints.txt --no-build-isolation -e '.[minilm,dev]'
	@touch $@
