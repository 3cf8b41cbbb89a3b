# Every target does its own set-up: the first call makes .venv, later calls reuse it.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: demo test test-all check lint types mutants setup clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --constraint constraints.txt torch
	$(RUN)/pip install --quiet --constraint constraints.txt --editable '.[test,dev]'
	$(RUN)/pip install --quiet --constraint constraints.txt --no-deps timm  # asks for torchvision, which needs CUDA
	touch $@

demo: $(STAMP)
	$(RUN)/intandem demo

test: $(STAMP)
	$(RUN)/pytest -q -n 2 -m 'not slow'

test-all: $(STAMP)
	$(RUN)/pytest -q -n 2

lint: $(STAMP)
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/lint-imports

types: $(STAMP)
	$(RUN)/mypy
	$(RUN)/mypy tests/typing/user_script.py

check: lint types test

mutants: $(STAMP)
	$(RUN)/python tests/mutants/run.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
