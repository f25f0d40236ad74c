# `make help` lists the targets.
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

# The first of these that is new enough and can make a virtual environment.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

.PHONY: help setup demo test test-quick test-system test-valkey coverage lint format lock compose-test chaos chaos-quick soak bench bench-quick clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(READY) ## make the virtual environment

$(READY): requirements.txt requirements-client.txt requirements-dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer with venv is needed (on Debian: apt install python3-venv)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[server,dev]'
	@$(BIN)/python -c 'from qtask.run.server_binary import find_server; find_server()'
	@touch $(READY)

demo: $(READY) ## show QTask at work, on a temporary Redis
	@$(BIN)/qtask demo

# Most tests wait for real processes, so more run at once than there are cores. The tests of a file share processes.
test: lint ## check and test everything, in under five minutes
	$(BIN)/python -m pytest -n 4 --dist loadfile -m "not slow"

test-quick: $(READY) ## run the tests that need no server, in seconds
	$(BIN)/python -m pytest -n 2 tests/unit

# Test files that depend on the server, for Valkey. `make test` uses the newest server on the PATH.
ON_VALKEY := up embedded data_folder durability places fault_points leases scheduler idempotency tasks dead \
	rq_tools sentinel flows

test-system: $(READY) ## run the slow tests: signals, full disks, rights, health checks, installing the client
	$(BIN)/python -m pytest -n 4 --dist loadfile -m slow

test-valkey: $(READY) ## run the tests that depend on the server, on the Valkey that is installed with QTask
	QTASK_TEST_SERVER=valkey $(BIN)/python -m pytest -n 4 --dist loadfile -m "not slow" $(wildcard $(ON_VALKEY:%=tests/*/test_%.py))
	QTASK_TEST_SERVER=valkey $(BIN)/python -m pytest tests/acceptance/test_full_disk.py

# Measuring coverage is slow, so tests get more time. The report is printed even if a test fails.
coverage: $(READY) ## run `make test` with coverage, including the processes that tests start
	rm -f .coverage .coverage.*
	@status=0; $(BIN)/coverage run -m pytest -n 4 --dist loadfile -m "not slow" --timeout 180 || status=$$?; \
	$(BIN)/coverage combine --quiet && $(BIN)/coverage report; exit $$status

lint: $(READY) ## check style, types, and imports between rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## fix the style
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# For the image: Linux and the Python of the Dockerfile. Every file of a version has its hash, for all processors.
LOCK_HEAD := \# Exact versions and hashes of what the image installs (requirements.txt on Linux, Python 3.13). Written by `make lock`.

lock: $(READY) ## write requirements.lock with the newest versions that requirements.txt allows
	$(BIN)/uv pip compile requirements.txt --quiet --upgrade --generate-hashes --python-version 3.13 \
		--python-platform linux --no-config --no-header --no-annotate --native-tls --output-file requirements.lock
	@sed -i '1i $(LOCK_HEAD)' requirements.lock

compose-test: $(READY) ## test docker-compose.yml (needs docker and docker-compose)
	@docker info >/dev/null 2>&1 || { echo "a running Docker engine is needed (on Debian: apt install docker.io)"; exit 1; }
	@docker-compose version >/dev/null 2>&1 || { echo "docker-compose is needed (on Debian: apt install docker-compose)"; exit 1; }
	$(BIN)/python -m pytest tests/compose --timeout 900

chaos: $(READY) ## kill processes at random for ten minutes under 50,000 tasks, then check and print the ledger
	$(BIN)/python -m tests.chaos.run

chaos-quick: $(READY) ## the same with 4,000 tasks in one minute and a fixed seed
	$(BIN)/python -m pytest tests/chaos
	$(BIN)/python -m tests.chaos.run --seed 13 --seconds 35 --tasks 4000

soak: $(READY) ## measure the memory of every process for ten minutes at 2,000 tasks/s
	$(BIN)/python -m tests.soak.run

bench: $(READY) ## measure QTask and its peers, in one hour; writes benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks.run

bench-quick: $(READY) ## measure QTask alone, in two minutes
	$(BIN)/python -m benchmarks.run --form quick

clean: ## remove the files that other targets created
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.* htmlcov build *.egg-info
