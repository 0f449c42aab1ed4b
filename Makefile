# Each target is a thin line over the command or pytest. `make demo` and `make test` set themselves up.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: install demo test unit lint bench bench-check faults kafka lock schemas clean

install: $(READY)

$(READY): requirements-dev.lock pyproject.toml setup.py models/customers.pyx models/purchases.pyx
	@test -n "$(PYTHON)" || { echo "segmenter needs Python 3.11 or newer; name it: make PYTHON=/path/to/python3"; exit 1; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $(READY)

demo: $(READY)
	$(BIN)/segmenter demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

unit: $(READY)  # without servers
	$(BIN)/python -m pytest tests/unit tests/properties

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml models streams
	$(BIN)/python .ci/audit.py

PEERS := .venv-peers

$(PEERS)/.ready: tests/bench/peers/requirements.lock
	rm -rf $(PEERS)
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	touch $@

bench: $(READY) $(PEERS)/.ready  # an hour and more; BENCH="--only peers" and the like are passed on
	$(BIN)/python -m tests.bench $(BENCH)

bench-check: $(READY)  # has a step of the worker become dearer than what is committed?
	$(BIN)/python -m tests.bench.check

faults: $(READY)  # every fault, some 45 minutes; SEED=7 MINUTES=10 for random ones; FAULTS="--soak" and the like are passed on
	$(BIN)/python -m tests.faults $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES)) $(FAULTS)

kafka: $(READY)  # a real Apache Kafka in the foreground
	$(BIN)/python -m tests.support.real_kafka

lock:  # needs uv; exact versions and hashes, no index
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		pyproject.toml -o requirements.lock
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--extra embedded --extra plot --group dev pyproject.toml -o requirements-dev.lock

schemas: $(READY)
	$(BIN)/segmenter schemas

clean:
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .ruff_cache .pytest_cache
