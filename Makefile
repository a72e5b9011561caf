# Python 3.11 or newer; python3.11 if it is there.
PYTHON ?= $(shell for python in python3.11 python3; do \
	$$python -c '' 2> /dev/null && echo $$python && break; done)
# Another torch than the locked one, and an index that has it: make install TORCH_INDEX=...
TORCH ?=
TORCH_INDEX ?=
export TORCH TORCH_INDEX

VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/py311.txt
INSTALLED := $(VENV)/.installed

.PHONY: help
help: ## list the targets
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

.PHONY: install
install: $(INSTALLED) ## build .venv, once

$(INSTALLED): setup.py $(LOCK) scripts/install.sh
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo \
		"$(PYTHON) is not Python 3.11 or newer: name one with PYTHON=..., or see make test-py310" >&2; exit 1; }
	@scripts/install.sh "$(PYTHON)" $(VENV) $(LOCK)

.PHONY: demo
demo: install ## speak, train, translate, score: results in demo_out
	@$(BIN)/python examples/demo/run.py --out demo_out

.PHONY: check
check: install ## formatting, lint, types
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/mypy

.PHONY: test
test: check ## check, then run the tests
	@$(BIN)/python -m pytest

.PHONY: bench
bench: install ## measure speed and memory beside fairseq's own models: bench_out/results.md
	@$(BIN)/python -m benchmarks --out bench_out

.PHONY: test-py310
test-py310: ## run the tests on Python 3.10 with fairseq 0.12.2, in .venv310
	@scripts/install_fairseq_0_12_2.sh --test

.PHONY: clean
clean: ## remove what make made, the environments too
	rm -rf $(VENV) .venv310 demo_out bench_out build *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
