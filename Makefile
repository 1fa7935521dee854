# falcon_fast: the commands of everyday work. `make` alone lists them.
#
# Everything is installed into .venv; a stamp file says what was installed for which sources, so a
# second call starts at once. Python files are used where they stand; only the native core is built.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
NODE   := .cache/node

# The native core is rebuilt when one of these changes.
NATIVE := pyproject.toml setup.py \
          $(wildcard falcon_fast/*.pyx falcon_fast/*.pxd falcon_fast/*.pxi falcon_fast/*.h)

# Tools that the tests start by their bare names (wscat) come from here first.
export PATH := $(CURDIR)/$(BIN):$(CURDIR)/$(NODE)/node_modules/.bin:$(PATH)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run cluster test check format bench bench-micro instructions wheel coverage node-tools \
        clean

help:
	@echo 'make run         start a server with demo users; prints what to paste into a client'
	@echo 'make cluster     start two nodes and a Redis on this machine, with tokens for each'
	@echo 'make test        run all tests'
	@echo 'make check       formatting, lint, types, import direction, wheel contents, code in docs'
	@echo 'make format      let ruff format and mend what it can'
	@echo 'make bench       run the benchmarks on real sockets'
	@echo 'make bench-micro run the benchmarks of single functions'
	@echo 'make instructions  compare the core with its baseline of instruction counts'
	@echo 'make wheel       build the sdist, the wheel from it, and try the wheel in a fresh venv'
	@echo 'make coverage    run the tests with line tracing in the native core'
	@echo 'make node-tools  install wscat and ws for the tests with clients on Node'
	@echo 'make clean       remove everything that make has made'

run: $(VENV)/.installed
	$(BIN)/falcon-fast serve --dev

# Needs redis-server, or a REDIS_URL.
cluster: $(VENV)/.installed
	$(BIN)/falcon-fast cluster

test: $(VENV)/.tools $(VENV)/.installed
	$(BIN)/python -m pytest

check: $(VENV)/.tools $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/unit/test_import_direction.py tests/unit/test_docs_code.py \
	    tests/packaging

format: $(VENV)/.tools
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.tools $(VENV)/.installed
	set -e; for scenario in density fanout echo upgrades admin broadcast rooms idle storm large \
	        stalled presence deflate groups; do \
	    $(BIN)/python -m benchmarks run $$scenario; done

bench-micro: $(VENV)/.tools $(VENV)/.installed
	$(BIN)/python -m benchmarks micro

# Needs valgrind. Other interpreters and compilers than the baseline's are reported, not judged.
instructions: $(VENV)/.tools $(VENV)/.installed
	$(BIN)/python -m benchmarks instructions

# The wheel is built from the sdist, never from the tree: only so is it known that the sdist is whole.
wheel: $(VENV)/.tools
	rm -rf dist build/wheel-venv
	$(BIN)/python -m build --outdir dist .
	$(PYTHON) -m venv build/wheel-venv
	build/wheel-venv/bin/python -m pip install --quiet --upgrade pip
	build/wheel-venv/bin/python -m pip install --quiet dist/*.whl 'websockets>=17.4'
	cd build/wheel-venv && bin/python -I -W error $(CURDIR)/tests/packaging/smoke.py
	@ls -l dist

# The traced core is slow: the stamp goes first, so whatever happens the next call builds the fast one.
coverage: $(VENV)/.tools $(VENV)/.installed
	rm -f $(VENV)/.installed .coverage .coverage.*
	FALCON_BUILD_TRACE=1 $(BIN)/python -m pip install --quiet --no-deps --editable .
	$(BIN)/coverage run -m pytest -m 'not packaging and not slow'; status=$$?; \
	    $(BIN)/coverage combine --quiet; $(BIN)/coverage report; \
	    rm -f falcon_fast/_core.c falcon_fast/_core.*.so; exit $$status

node-tools: $(NODE)/.installed

$(NODE)/.installed: Makefile
	mkdir -p $(NODE)
	npm install --prefix $(NODE) --no-audit --no-fund --loglevel=error wscat@6 ws@8
	@touch $@

# The build leaves its C file under build/, so a broken build never looks like a finished one.
$(VENV)/.installed: $(NATIVE) $(VENV)/.created
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.tools: pyproject.toml $(VENV)/.created
	$(BIN)/python -m pip install --quiet --group test --group dev
	@touch $@

# Groups of dependencies need pip 25.1.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    "falcon_fast needs Python 3.11 or newer, this is " + sys.version.split()[0] + \
	    "; name another one, for example: make run PYTHON=python3.12" or 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@touch $@

clean:
	rm -rf $(VENV) .cache build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -rf benchmarks/.build falcon_fast.egg-info htmlcov .coverage .coverage.*
	rm -f falcon_fast/_core.c falcon_fast/_core.*.so
	find admin benchmarks falcon_fast tests -name __pycache__ -type d -prune -exec rm -rf {} +
