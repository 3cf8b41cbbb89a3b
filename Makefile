# Every target does its own set-up: the first call makes .venv, later calls reuse it.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
STAMP := $(VENV)/.ready
PEERS := .venv-peers
WITH_GPU := PYTHONPATH=$(CURDIR)/tests/pretend_gpu/site
TEST_GPU := $(WITH_GPU) $(RUN)/pytest -q -n 2 -m gpu tests/gpu tests/multiprocess
BENCHMARKS := two_cores emulated overlap overhead split checkpoint gpu

.PHONY: demo test test-gpu test-all check lint types mutants setup peers bench clean

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
	$(TEST_GPU)

test-gpu: $(STAMP)  # what needs GPUs, on pretend ones
	$(WITH_GPU) $(RUN)/python -c 'import torch; assert torch.cuda.is_available(), "no GPU, and no g++"'
	$(TEST_GPU)

test-all: $(STAMP)  # also the long matrices, and examples of properties that no run tried before
	HYPOTHESIS=explore $(RUN)/pytest -q -n 2
	$(TEST_GPU)

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

peers: $(PEERS)/.ready

$(PEERS)/.ready: constraints.txt  # DeepSpeed, in an environment of its own; its operators are for GPUs
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --constraint constraints.txt torch numpy setuptools wheel
	DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $(PEERS)/bin/pip install --quiet --constraint constraints.txt \
		--no-build-isolation deepspeed==0.19.8
	touch $@

bench: $(STAMP) $(PEERS)/.ready  # all that is measured against others, on an otherwise idle machine: an hour and a quarter
	$(RUN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	for name in $(BENCHMARKS); do \
		$(RUN)/python benchmarks/$$name/run.py --json benchmarks/$$name/results.json \
			--plot benchmarks/$$name > benchmarks/$$name/results.md || exit 1; done

clean:
	rm -rf $(VENV) $(PEERS) .mypy_cache .ruff_cache .pytest_cache .hypothesis
