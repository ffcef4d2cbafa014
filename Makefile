# Each target but those of GPUs sets up .venv on its own; nothing but python3 (3.11 or newer), pip and make is needed beforehand.
PYTHON ?= python3
BIN := .venv/bin
# Python compiles what is imported, when it first is, and keeps it; to compile all of PyTorch here takes half a minute.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --build-constraint constraints.txt

KERNELS := CMakeLists.txt $(wildcard src/dropkit/kernels/native/*.cpp src/dropkit/kernels/native/*.h)

.DEFAULT_GOAL := help
.PHONY: help study test test-slow native-arm sanitize workers triton examples exhaustive stats lint format docs bench \
	bench-gpu test-gpu clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

study: .venv/.study ## Ask of real data whether dropout helps (ARGS="churn --seed 1" passes arguments on)
	$(BIN)/dropkit study $(ARGS)

# Threads that spin while they wait take the cores from those that work; on a busy machine tests then crawl.
test test-slow: export OMP_WAIT_POLICY = PASSIVE
# Workers share the tests, a file at a time; each takes more than half a gigabyte of memory.
WORKERS := --numprocesses auto --maxprocesses 4 --dist loadfile
# So that no worker waits for one that has begun with minutes of work when all else was done. Each path is named once:
# pytest drops one that lies in another, and the order with it.
FIRST := tests/test_install.py tests/sites tests/contract
LONGEST_FIRST := --no-loadscope-reorder $(FIRST) \
	$(filter-out $(FIRST) %__pycache__,$(wildcard tests/*)) src docs README.md

test: .venv/.dev ## Run the fast tests, with the examples of docstrings, README and docs
	$(BIN)/python -m pytest $(WORKERS) -m "not slow" $(ARGS)

test-slow: .venv/.dev ## Run the slow tests
	$(BIN)/python -m pytest $(WORKERS) -m "slow and not exhaustive" $(or $(ARGS),$(LONGEST_FIRST))

native-arm: .venv/.dev ## Compare the NEON kernels with the mask definition, under emulation
	$(BIN)/python -m pytest -m exhaustive -k emulation

sanitize: .venv/.dev ## Compare this processor's kernels with it, under sanitizers
	$(BIN)/python -m pytest -m exhaustive -k sanitizer

examples: .venv/.dev ## Compare what the longest examples print with the docs
	$(BIN)/python -m pytest -m exhaustive tests/test_examples.py

workers: .venv/.dev ## Run the longest tests of masks on many workers
	$(BIN)/python -m pytest $(WORKERS) -m "slow and exhaustive" tests/sites

# By Triton's interpreter instead of the kernels of CPUs, whose own ways other tests tell of.
ON_TRITON := tests/contract/test_contract.py $(addprefix tests/functional/test_,addresses.py alpha.py attention_jagged.py \
	checkpoint.py concrete.py inputs.py masks.py nested.py torch_function.py transforms.py zoneout.py)

triton: .venv/.dev ## Run all tests of Triton's kernels, in its interpreter where there is no GPU
	$(BIN)/python -m pytest $(WORKERS) -k triton tests/kernels tests/functional
	$(BIN)/python -m pytest $(WORKERS) -p tests.helpers.on_triton -m "not slow" $(ON_TRITON)

exhaustive: .venv/.dev ## Run everything that takes many minutes, all of the above included
	$(BIN)/python -m pytest $(WORKERS) -m exhaustive

stats: .venv/.dev ## Run a battery of statistical tests on masks (ARGS="--bits 28 --seeds 2" for longer ones)
	$(BIN)/python -m tests.statistics.battery $(ARGS)

lint: .venv/.dev ## Check style, format, types and import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2
	$(BIN)/lint-imports

format: .venv/.dev ## Format the code and repair what ruff can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/.dev ## Write the pages of the variants, and build the documentation into site/
	$(BIN)/python tools/variant_pages.py
	PYTHONPATH=tools $(BIN)/zensical build --strict --clean

bench: .venv/.dev ## Run every benchmark of CPUs
	@for script in $(filter-out benchmarks/gpu%,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

# A machine with a GPU has a PyTorch that fits it, which .venv might not: both run by $(PYTHON), and install nothing.
# Files with such tests need no package but these; others, which would be collected in vain, need many.
HAS_TORCH = @$(PYTHON) -c 'import importlib.util, sys; importlib.util.find_spec("torch") or sys.exit( \
	f"{sys.executable} has no PyTorch; name a Python that has one for CUDA: make $@ PYTHON=...")'

bench-gpu: ## Run the benchmark of GPUs by $(PYTHON), which needs PyTorch for CUDA (ARGS="--rehearse" needs no GPU)
	$(HAS_TORCH)
	PYTHONPATH=src $(PYTHON) benchmarks/gpu.py $(ARGS)

test-gpu: ## Run the tests that need a GPU by $(PYTHON), which needs PyTorch for CUDA, pytest and hypothesis
	$(HAS_TORCH)
	PYTHONPATH=src $(PYTHON) -m pytest -m gpu $(ARGS) $$(grep --recursive --files-with-matches --include 'test_*.py' mark.gpu tests)

clean: ## Remove the environment and everything that was built
	rm -rf .venv build dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

.venv/.pip: constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("dropkit needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade pip
	@touch $@

.venv/.study: .venv/.pip pyproject.toml $(KERNELS)
	@echo "Building dropkit's kernels; installing PyTorch and the study's packages into .venv: a minute or more."
	$(PIP) --editable '.[study]'
	@touch $@

.venv/.dev: .venv/.pip pyproject.toml $(KERNELS)
	@echo "Building dropkit's kernels; installing PyTorch and the development tools into .venv: a minute or more."
	$(PIP) --editable '.[study]' --group dev
	@touch $@
