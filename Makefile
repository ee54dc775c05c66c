# make run    the main scenario, from a fresh checkout
# make test   lint and the whole suite; it brings its own Docker engine where it can
#
# make bench  labctl beside others that do the same: docs/architecture.md
# make mutants  whether unit tests notice when what decides is wrong: tests/mutants.py
# make soak   what labctl bears, for as long as you like: tests/soak.py
# make servers  the lessons of scenarios/servers, against real servers
# make clients  those of scenarios/clients and scenarios/proxies, against real clients and proxies
#
# The coverage of a whole run is measured, and has a floor (pyproject.toml); with ARGS it is not.
#
# ARGS is passed on: make run ARGS='--backend netns', make test ARGS='-k fin_wait -n 0'.
# PYTHON chooses the interpreter that the virtual environment is made with.

VENV := .venv
PY := $(VENV)/bin/python
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
ARGS ?=

.PHONY: run test lint bench mutants servers clients soak clean
.NOTPARALLEL:

run: $(VENV)/.installed
	@$(VENV)/bin/labctl run scenarios/fin_wait_2.yaml $(ARGS)

test: lint
	@$(PY) tests/engine.py $(PY) -m pytest -n 5 --dist loadgroup $(or $(ARGS),--cov --cov-report=)

lint: $(VENV)/.installed-dev
	@$(PY) -m ruff check --quiet --output-format concise .
	@$(PY) -m ruff format --quiet --check --output-format concise .
	@$(PY) -m mypy --no-error-summary

bench: $(VENV)/.installed-dev
	@$(PY) tests/bench.py $(ARGS)

mutants: $(VENV)/.installed-dev
	@$(PY) -m tests.mutants $(ARGS)

servers: $(VENV)/.installed-dev
	@$(PY) -m tests.servers $(ARGS)

clients: $(VENV)/.installed-dev
	@$(PY) -m tests.clients $(ARGS)

soak: $(VENV)/.installed-dev
	@$(PY) tests/engine.py $(PY) -m tests.soak $(ARGS)

clean:
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache .mutants.json .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml
	$(call install,.)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml
	$(call install,.[dev])
	@touch $(VENV)/.installed $@

# A virtual environment that was left half made, or whose Python has gone, is made anew.
define install
@echo "installing into $(VENV)" >&2
@$(PY) -m pip --version >/dev/null 2>&1 || { \
	test -n "$(PYTHON)" || { \
		echo "labctl needs Python 3.11 or later: install it, or make PYTHON=/path/to/it" >&2; exit 1; }; \
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
		version=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
		echo "$(PYTHON) can't make virtual environments: apt-get install python$$version-venv" >&2; exit 1; }; \
	$(PYTHON) -m venv --clear $(VENV); }
@$(PY) -m pip install -qq --disable-pip-version-check --editable '$(1)'
endef
