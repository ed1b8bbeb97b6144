# What a newcomer types. `make` alone explains itself.
#
#   PYTHON=/path/to/python3.12   the interpreter for .venv (default: the first of 3.11 or newer)
#   ARGS="-k broker"             more arguments for pytest
#   ROWS="jobs mpi"              what `make bench` measures: rows or levels (default: see its help)
#   TAPS=DIRECTORY               a source tree of TaPS, for ROWS=taps
#   BUSY=yes                     measure although others use the machine
#   JOBS=0                       processes that run the tests (default: two for each core, at most 8)

PYTHON ?=
ARGS ?=
ROWS ?=
BUSY ?=
TAPS ?=
# Most of a test's time is waiting: for programs, for timeouts, for the end of either.
JOBS ?= $(shell cores=$$(nproc); echo $$((cores < 4 ? 2 * cores : 8)))
VENV := .venv
# With the package and what it runs with; then with test and lint tools, too.
RUN_STAMP := $(VENV)/.installed-to-run
STAMP := $(VENV)/.installed
BIN := $(VENV)/bin
FUZZ := .venv-fuzz
FUZZ_STAMP := $(FUZZ)/.installed
# For each target of `make fuzz`; which ones (default: all).
SECONDS ?= 60
TARGETS ?=
OFFICIAL := .venv-official
OFFICIAL_STAMP := $(OFFICIAL)/.installed
PLUGIN := .venv-plugin
PLUGIN_STAMP := $(PLUGIN)/.installed
PEERS := .venv-peers
PEERS_STAMP := $(PEERS)/.installed
DOCS := .venv-docs
DOCS_STAMP := $(DOCS)/.installed
RELEASE := .venv-release
RELEASE_STAMP := $(RELEASE)/.installed
TAPS_VENV := .venv-taps
TAPS_STAMP := $(TAPS_VENV)/.installed

# Else each of the many programs that the tests start would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help venv official system demo test check faults fuzz bench bench-quick docs man dist clean

help: ## Show this.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP) ## Create .venv with the package, its test and lint tools.

$(RUN_STAMP): pyproject.toml tools/make-venv
	@PYTHON="$(PYTHON)" tools/make-venv $(VENV) --editable '.[all]'
	@touch $(RUN_STAMP)

# Without PYTHON: the environment is there, and not to be created anew.
$(STAMP): $(RUN_STAMP)
	@PYTHON= tools/make-venv $(VENV) --group test --group lint
	@# For docs/integrations.md. Without what it needs, which is there: it excludes the latest pyzmq.
	@PYTHON= tools/make-venv $(VENV) --no-deps executorlib==1.11.0
	@touch $(STAMP)

official: $(OFFICIAL_STAMP) $(PLUGIN_STAMP) ## Create .venv-official and .venv-plugin: the official Globus Compute packages, for the tests.

$(OFFICIAL_STAMP): tools/make-official-venv | $(STAMP)
	@tools/make-official-venv $(OFFICIAL) $(BIN)/python
	@touch $(OFFICIAL_STAMP)

# The same, with this project beside them.
$(PLUGIN_STAMP): tools/make-official-venv pyproject.toml | $(STAMP)
	@tools/make-official-venv $(PLUGIN) $(BIN)/python --editable '.[flux]'
	@touch $(PLUGIN_STAMP)

system: $(RUN_STAMP) ## Install RabbitMQ from the distribution if it's missing (needs root).
	@tools/install-rabbitmq $(BIN)/python

demo: system ## Bring up a stack, run the examples on it, take it down.
	@$(BIN)/python examples/demo.py

test: venv ## Run the tests.
	@$(MAKE) --no-print-directory --jobs --output-sync official system
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --durations=10 $(ARGS)

check: venv ## Lint, check the format, the types, who imports whom, sizes, and the blocks of the pages.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks tests/typing_cases
	$(BIN)/lint-imports --no-cache --no-logo pyproject.toml
	$(BIN)/python tests/page_blocks.py
	$(BIN)/python tools/check-sizes

$(FUZZ_STAMP): pyproject.toml tools/make-venv
	@PYTHON="$(PYTHON)" tools/make-venv $(FUZZ) --editable '.[all]' --group test --group fuzz
	@touch $(FUZZ_STAMP)

faults: venv system ## Run a mixed load under random faults, and account for each task (ARGS="--seed 1").
	$(BIN)/python tests/faults/harness.py $(ARGS)

fuzz: $(FUZZ_STAMP) ## Look for inputs that break a decoder or the service, SECONDS=60 for each.
	@$(FUZZ)/bin/python tools/fuzz --seconds $(SECONDS) $(TARGETS)

$(PEERS_STAMP): tools/make-peers-venv | $(STAMP)
	@tools/make-peers-venv $(PEERS) $(BIN)/python
	@touch $(PEERS_STAMP)

$(TAPS_STAMP): tools/make-taps-venv pyproject.toml | $(STAMP)
	@tools/make-taps-venv $(TAPS_VENV) $(BIN)/python $(TAPS)
	@touch $(TAPS_STAMP)

bench: venv system $(PEERS_STAMP) $(if $(TAPS),$(TAPS_STAMP)) ## Measure this project against its peers; writes docs/performance.md (about an hour).
	$(BIN)/python benchmarks/bench.py --docs $(if $(BUSY),--busy) $(ROWS)

bench-quick: venv system $(PEERS_STAMP) $(if $(TAPS),$(TAPS_STAMP)) ## The same rows roughly, in less than three minutes; writes .bench only.
	$(BIN)/python benchmarks/bench.py --quick $(if $(BUSY),--busy) $(ROWS)

$(DOCS_STAMP): pyproject.toml tools/make-venv
	@PYTHON="$(PYTHON)" tools/make-venv $(DOCS) --editable '.[all]' --group docs
	@touch $(DOCS_STAMP)

docs: $(DOCS_STAMP) ## Build the documentation site into .site/html, and check its links.
	@$(DOCS)/bin/python tools/make-docs

$(RELEASE_STAMP): pyproject.toml tools/make-venv
	@PYTHON="$(PYTHON)" tools/make-venv $(RELEASE) --group release
	@touch $(RELEASE_STAMP)

dist: $(RELEASE_STAMP) ## Build sdist and wheel into dist/, check both, and install each in an environment of its own.
	@tools/make-dist $(RELEASE)/bin/python

man: venv ## Write the man page again from the commands' help.
	$(BIN)/python tools/make-man

clean: ## Remove what make created, .venv included.
	rm -rf $(VENV) $(DOCS) $(RELEASE) .site $(OFFICIAL) $(PLUGIN) $(PEERS) $(TAPS_VENV) $(FUZZ) .fuzz .bench build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
