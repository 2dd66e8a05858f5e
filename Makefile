# make demo   set up, convert the shipped checkpoints, prove them, print the tables
# make test   set up, then lint, types and tests
# make check  lint, types, and the tests that are quick and start no process
# make lock   write requirements/*.lock anew
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
TOOLS := .venv/ready-to-test
# modules are compiled when they are imported: most of those that come along never are
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint converter/constraints.txt

# Imports of torch and transformers take twice as long where nothing keeps what they were compiled to, and
# every process that proves something imports them.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check lint types types-of-tests lock clean

demo: $(READY)
	$(BIN)/qatconvert gemma4-demo --target gguf --target onnx --target litert --baseline naive-q4_0 \
		--output out/gemma4-demo --force
	$(BIN)/qatconvert gemma4-demo-mobile --target all --output out/gemma4-demo-mobile --force

# files of tests side by side in two processes, as many as there are cores on a small machine; slow ones first
SIDE_BY_SIDE := --numprocesses 2 --dist loadfile --no-loadscope-reorder
test: lint
	$(BIN)/pytest $(SIDE_BY_SIDE) --durations 25

check: lint
	$(BIN)/pytest $(SIDE_BY_SIDE) -m 'not slow' --no-processes

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory --jobs 2 --output-sync types types-of-tests

types:
	$(BIN)/mypy

types-of-tests:
	$(BIN)/mypy --config-file tests/mypy.ini --cache-dir .mypy_cache/tests

# torch goes first and pinned: an unpinned one brings gigabytes of CUDA libraries.
$(READY): pyproject.toml converter/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) torch
	$(INSTALL) --editable '.[all]'
	touch $@

$(TOOLS): $(READY)
	$(INSTALL) --editable '.[dev]'
	touch $@

lock: $(TOOLS)
	$(BIN)/python requirements/lock.py

clean:
	rm -rf .venv out build *.egg-info
