# make demo: install, then search and export on real data.  make test: the whole suite, two cores, no GPU.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A folder of its own each time: an earlier demo is not thrown away.
STAMP := $(shell date +%Y%m%d-%H%M%S)
DEMO ?= runs/demo-$(STAMP)
# One thread a process: trials share the cores, and one thread makes training repeatable.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1

.PHONY: demo test test-slow test-cluster test-soak check install bench docs clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "prunefront needs Python >= 3.11, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[digits]'
	touch $@

# What tests, checks and the pages need beside: who only uses it waits for none of that.
$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/prunefront search examples/digits.yaml --name $(notdir $(DEMO)) --storage $(dir $(DEMO))
	$(BIN)/prunefront export $(DEMO) --speedup 2 --out $(DEMO)-export

# One process a core; a file stays in one process, so that its Ray cluster is started once.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

# One real Ray cluster of several nodes, and what can fail in it; -s shows how long each failure took to mend.
test-cluster: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow -s tests/cluster

test-soak: $(VENV)/.dev
	$(BIN)/python -m pytest -m soak -s --timeout 5400

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python benchmarks/step_overhead.py

# The pages of docs/ as a site in site/; a broken link or anchor ends it.
docs: $(VENV)/.dev
	$(BIN)/python docs/generate_job_reference.py --check
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
