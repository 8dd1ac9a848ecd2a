# All commands for users and CI. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# Tests run in two processes per processor, since some of their time they wait for clocks, disks and other processes; six
# at most, since more mounted tests at once would wait for each other.
WORKERS := --numprocesses=$(shell echo $$(($$(nproc) * 2))) --maxprocesses=6 --dist=worksteal

# Tests start thousands of interpreters. Each would compile all modules anew if it could not keep what it compiled.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup compiled demo test test-pure test-full test-pmem test-crash test-teeth compare-damaged fuzz container lint types layers circles c-layers check bench clean

help: ## list all targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## install missing Debian packages (as root) and the virtual environment

$(STAMP): pyproject.toml setup.py scripts/setup daxfs/direct/daxfs.h $(wildcard daxfs/direct/preload/*.[ch]) daxfs/pmem/guard.c
	@scripts/setup $(PYTHON) $(VENV)
	@touch $@

compiled: setup ## compile the core again where its sources have changed; until then they run interpreted
	@$(BIN)/python scripts/compile_core.py

demo: setup ## run the demo: a pool in /dev/shm, mounted, fio on it and on fuse2fs, e2fsck
	@$(BIN)/python scripts/demo.py

test: compiled ## run all tests except the long sweeps
	@$(BIN)/python -m pytest -m "not full" $(WORKERS) $(PYTEST)

test-pure: setup ## run the tests of formats, journal and structures on the interpreted core
	@DAXFS_PURE=1 $(BIN)/python -m pytest -m "not full" $(WORKERS) tests/ext4 tests/journal tests/structures $(PYTEST)

test-full: setup ## run all tests, including the long sweeps
	@$(BIN)/python -m pytest --timeout=3600 --crash-images=400 $(WORKERS) $(PYTEST)

test-pmem: setup ## run tests/devices on emulated NVDIMMs in a QEMU guest, within 20 minutes; PMEM="arguments of pytest"
	@cd scripts && ../$(BIN)/python -m guest $(PMEM)

test-crash: setup ## explore power cuts of all single operations and pairs, on all processors; some 40 minutes
	@cd tests && ../$(BIN)/python -m explorer.explore $(EXPLORE)

compare-damaged: setup ## compare what daxfs and the kernel read of damaged images, as root; IMAGES=directory of NAME/image.gz
	@test -d "$(IMAGES)" || { echo "give IMAGES=DIRECTORY, for example the tests of e2fsprogs' sources"; exit 2; }
	@cd tests && ../$(BIN)/python -m damaged $(IMAGES)

fuzz: setup ## damage images behind right checksums and use them, 10,000 trials of each format; FUZZ="arguments of python -m fuzz"
	@cd tests && ../$(BIN)/python -m fuzz $(FUZZ)

test-teeth: setup ## apply known faults one by one, which the tests must catch; TEETH="part of a name" selects
	@cd tests && ../$(BIN)/python -m teeth $(TEETH)

container: ## run the mounted tests and fio in a privileged container, or without an engine in a debootstrap root
	@scripts/container/run

lint: setup ## check rules and formatting with ruff
	@$(BIN)/ruff check daxfs tests scripts setup.py
	@$(BIN)/ruff format --check daxfs tests scripts setup.py

types: setup ## check types with mypy --strict
	@$(BIN)/mypy

layers: setup ## check with import-linter that a module imports only from layers below its own
	@$(BIN)/lint-imports

circles: setup ## check that there are no import circles, including imports for type checking
	@$(BIN)/python scripts/circles.py

c-layers: setup ## check that the preload library's C files include only headers of layers below their own
	@$(BIN)/python scripts/c_layers.py

check: lint types layers circles c-layers ## run lint, types, layers, circles and c-layers

bench: setup ## measure the figures of docs/BENCHMARKS.md; some 15 minutes
	@$(BIN)/python scripts/bench.py

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis
