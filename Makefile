# The entry points; `make` alone lists them. Everything is installed by tools/setup.

SHELL := /bin/bash
PY := .venv/bin/python
PYTEST := $(PY) -m pytest

.DEFAULT_GOAL := help
.PHONY: help demo test check lint format model mutants sim soak setup setup-demo kernel hosts lock clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: setup-demo  ## watch a snapshot being taken under two writing hosts (installs what it needs)
	@$(PY) -m demo

test: setup lint kernel hosts  ## everything (installs what it needs; some 31 minutes on two cores)
	$(PYTEST) --durations=15

check: setup lint  ## lint, types, layers, unit and property tests: under a minute
	$(PYTEST) -q tests/unit tests/property

sim: setup  ## 2,000 simulated histories of a whole cluster (SEEDS=A-B plays others)
	$(PY) -m tests.sim --keep-going --seeds $(or $(SEEDS),0-1999)

soak: setup  ## simulated histories for MINUTES (10) on every core, from seed SEEDS (100000) on
	@$(PY) -m tests.sim.soak --minutes $(or $(MINUTES),10) --from $(or $(SEEDS),100000)

mutants: setup  ## plant every seeded bug; each must be caught (some four minutes)
	@$(PY) -m tests.mutants

model: setup  ## search the model of the protocol with SPIN: every scenario, mutation and probe, some four minutes
	$(PY) -m model.check

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo

format: setup  ## put the sources into the one format
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

setup:  ## install Debian packages and .venv, once
	@tools/setup test

setup-demo:
	@tools/setup demo

kernel: setup  # a distribution kernel for the tests, cached outside the clone
	@if [ -e tests/kernel/support/build.py ]; then $(PY) -m tests.kernel.support.build; fi

hosts: setup  # a root file system for the tests' hosts, cached outside the clone
	@if [ -e tests/hosts/build.py ]; then $(PY) -m tests.hosts.build; fi

lock: setup  ## renew requirements/*.txt: the newest versions that pyproject.toml allows
	tools/lock

clean:  ## remove .venv and all that was generated (Debian packages and the kernel's cache stay)
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
