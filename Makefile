# Everything a user or CI runs. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# Tests run in half as many processes again as there are processors, since some of them wait for clocks and for others;
# six at most: mounted tests beside more would wait for each other.
WORKERS := --numprocesses=$(shell echo $$(($$(nproc) * 3 / 2))) --maxprocesses=6 --dist=worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-full test-crash test-teeth container lint types floors circles layers check bench clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## install what is missing: Debian packages (as root) and a virtual environment

$(STAMP): pyproject.toml setup.py scripts/setup daxfs/direct/daxfs.h $(wildcard daxfs/direct/preload/*.[ch])
	@scripts/setup $(PYTHON) $(VENV)
	@touch $@

demo: setup ## the main job: a pool in /dev/shm, mounted, fio against it and against fuse2fs, e2fsck
	@$(BIN)/python scripts/demo.py

test: setup ## run all tests but the long sweeps
	@$(BIN)/python -m pytest -m "not full" $(WORKERS) $(PYTEST)

test-full: setup ## run all tests, the long sweeps too
	@$(BIN)/python -m pytest --timeout=3600 --crash-images=400 $(WORKERS) $(PYTEST)

test-crash: setup ## power cuts of all single operations and pairs of operations, on every processor; some 40 minutes
	@cd tests && ../$(BIN)/python -m explorer.explore $(EXPLORE)

test-teeth: setup ## apply known faults one by one: the tests must catch each; TEETH="part of a name" for some
	@cd tests && ../$(BIN)/python -m teeth $(TEETH)

container: ## the mounted tests and fio in a privileged container, or where no engine runs in a debootstrap root
	@scripts/container/run

lint: setup ## ruff: rules and formatting
	@$(BIN)/ruff check daxfs tests scripts setup.py
	@$(BIN)/ruff format --check daxfs tests scripts setup.py

types: setup ## mypy --strict
	@$(BIN)/mypy

floors: setup ## import-linter: a module imports only from floors below its own
	@$(BIN)/lint-imports

circles: setup ## no modules import each other, by however many steps, not for type checking either
	@$(BIN)/python scripts/circles.py

layers: setup ## the preload library's C files include only what is below them
	@$(BIN)/python scripts/c_layers.py

check: lint types floors circles layers ## lint, types, floors, circles and layers

bench: setup ## figures of docs/BENCHMARKS.md: beside fuse2fs and a null server, and by itself; some 15 minutes
	@$(BIN)/python scripts/bench.py

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis
