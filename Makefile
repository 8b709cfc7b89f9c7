# Two commands for a fresh machine: `make run` and `make test`. Each sets up .venv and needs nothing but Python >= 3.11.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest

.PHONY: run test check format docs distributed-exhaustive faults sanitizer cluster gpu long-sets clean

run: $(VENV)/.run
	$(BIN)/moe-train run recipes/switch/tiny.yaml

test: $(VENV)/.test
	$(PYTEST) --numprocesses 2 --dist loadfile

# What a change must pass before it is committed.
check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) tests/unit

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The site of docs/ with the API reference, in build/site. Dead links, missing anchors and all other warnings are errors
# (not with --quiet, which hides warnings from --strict).
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The long sets, whole.
distributed-exhaustive: $(VENV)/.test
	$(PYTEST) -m distributed_exhaustive --timeout 1200
faults: $(VENV)/.test
	$(PYTEST) -m faults --timeout 1200
sanitizer: $(VENV)/.test
	$(PYTEST) -m sanitizer --timeout 7200
cluster: $(VENV)/.test
	MOE_TRAIN_TABLES=docs $(PYTEST) -m cluster --timeout 1200 --numprocesses 2 --dist loadfile
gpu: $(VENV)/.test
	$(PYTEST) -m gpu --timeout 1200

# One representative of each long set that needs no GPU: what CI runs.
long-sets: $(VENV)/.test
	$(PYTEST) -m distributed_exhaustive --timeout 600 -k representative
	$(PYTEST) -m faults --timeout 600 -k representative
	$(PYTEST) -m sanitizer --timeout 600 -k representative
	$(PYTEST) -m cluster --timeout 600 -k representative

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
$(VENV)/.run: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@
$(VENV)/.test: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@ $(VENV)/.run
$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.test $(VENV)/.run
$(VENV)/.docs: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
