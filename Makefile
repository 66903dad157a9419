# Every target makes .venv if it is missing. PYTHON chooses the interpreter it is made from (3.11 or newer).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Two processes: most of the time of a test is compilation, which uses one core.
PYTEST_ARGS ?= --numprocesses 2 --dist loadfile
PYTEST_EXTRA ?=
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help quickstart test test-slow test-zoo test-docs mutants fuzz lint types format docs docs-serve bench peers build \
	hooks clean

help:
	@echo "make quickstart   train a small model on MNIST digits and leave pictures in outputs/"
	@echo "make test         run the tests (more of them: make test-slow; the code of the documentation: make test-docs)"
	@echo "make test-zoo     run every sampler and objective on models whose posteriors are known"
	@echo "make mutants      put faults into copies of the package, and see that the tests notice each (minutes)"
	@echo "make fuzz         try random priors and samples for ten minutes (FUZZ_SECONDS=600)"
	@echo "make lint         ruff check and ruff format --check   (make format repairs)"
	@echo "make types        the type check, by mypy"
	@echo "make hooks        run ruff and the checks of files at every commit of this checkout, by pre-commit"
	@echo "make docs         run every example and build the documentation into site/"
	@echo "make bench        print the benchmarks"
	@echo "make peers        KAEM beside VAEs, a latent EBM and a diffusion model, in hours; goes on where it was stopped"
	@echo "                  (make peers QUICK=1: digits alone, seconds of training)"
	@echo "make build        build the wheel and the source distribution into dist/   (RELEASE=v1.2.3 checks their version)"
	@echo "make clean        remove the environments, caches and outputs"

# A stamp per set of extras, so that the quickstart does not wait for what only the documentation needs.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "numpyro_kaem needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 1; }
	@echo "==> making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/installed-%: pyproject.toml | $(BIN)/python
	@echo "==> installing numpyro_kaem[$*] into $(VENV) (a minute or two the first time)"
	@$(PIP) --editable '.[$*]'
	@touch $@

quickstart: $(VENV)/installed-examples
	@$(BIN)/python examples/quickstart.py

test: $(VENV)/installed-examples,test
	@$(BIN)/python -m pytest $(PYTEST_ARGS) $(PYTEST_EXTRA)

test-slow: $(VENV)/installed-examples,test
	@$(BIN)/python -m pytest -m slow $(PYTEST_ARGS) $(PYTEST_EXTRA)

test-zoo: $(VENV)/installed-examples,test
	@$(BIN)/python -m pytest -m zoo $(patsubst loadfile,load,$(PYTEST_ARGS))

test-docs: $(VENV)/installed-examples,test
	@$(BIN)/python -m pytest -m docs $(patsubst loadfile,load,$(PYTEST_ARGS)) tests/test_docs.py

mutants: $(VENV)/installed-examples,test
	@$(BIN)/python tests/mutants.py

fuzz: $(VENV)/installed-examples,test
	@$(BIN)/python tests/fuzz_priors.py

lint: $(VENV)/installed-examples,test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/installed-examples,test
	@$(BIN)/python -m mypy

hooks: $(VENV)/installed-dev
	@$(BIN)/pre-commit install

format: $(VENV)/installed-examples,test
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(VENV)/installed-examples,docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

docs-serve: $(VENV)/installed-examples,docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

bench: $(VENV)/installed-examples,test
	@$(BIN)/python -m benchmarks

peers: $(VENV)/installed-examples,peers
	@$(BIN)/python -m benchmarks.peers $(if $(QUICK),--quick)

# What a release is built by; RELEASE is its tag.
build: $(VENV)/installed-dev
	@if [ -n "$$RELEASE" ]; then \
		version=$$($(BIN)/python -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["version"])'); \
		[ "$$RELEASE" = "v$$version" ] || \
			{ echo "the tag is $$RELEASE but the version of pyproject.toml is $$version"; exit 1; }; \
	fi
	@rm -rf dist
	@$(BIN)/python -m build
	@$(BIN)/python -m twine check --strict dist/*

clean:
	rm -rf $(VENV) .venv-newest .cache .hypothesis .pytest_cache .ruff_cache build dist site outputs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
