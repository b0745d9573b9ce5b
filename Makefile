# One way to run everything. `make demo` and `make test` need only Python 3.11+, a compiler and the
# package registries; both share one set-up in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TORCH := torch==2.13.0
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-verl bench lint format docs docs-serve readme clean

help:
	@echo "make demo   set up, then run typical sampling on a real language model: claims and an HTML report"
	@echo "make test   set up, then run the tests"
	@echo "make test-verl  compare with verl's own losses (verl is installed beside, not into, .venv)"
	@echo "make lint   ruff, mypy, import-linter and the generated parts of README and docs"
	@echo "make bench  measures against named peers: ratios, docs/benchmarks.md"
	@echo "make docs   build the documentation into site/"

# PyTorch goes first: asked for on its own, pip takes the build that fits this machine, and nothing
# later replaces it.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Szilard needs Python 3.11 or newer; set PYTHON=/path/to/python")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/szilard run typical-sampling --preset quick --workers $(WORKERS)

test: $(INSTALLED)
	$(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal

test-slow: $(INSTALLED)
	$(BIN)/pytest -m slow

$(VENV)/verl/.installed: $(INSTALLED) tests/integrations/verl-requirements.txt
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target $(VENV)/verl --requirement tests/integrations/verl-requirements.txt
	touch $@

test-verl: $(VENV)/verl/.installed
	PYTHONPATH=$(VENV)/verl $(BIN)/pytest tests/integrations/test_verl.py

bench: $(INSTALLED)
	$(BIN)/python benchmarks/run.py $(FAMILIES)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

readme: $(INSTALLED)
	$(BIN)/python docs/generate.py

docs: readme
	$(BIN)/mkdocs build --strict

docs-serve: readme
	$(BIN)/mkdocs serve

clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
