# make demo   set everything up and compress a real network end to end
# make serve  leave the service running on http://127.0.0.1:8000
# make test   set everything up and run the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo serve test lint setup clean
.DEFAULT_GOAL := help

help:
	@sed -n '1,3s/^# //p' Makefile

$(STAMP): pyproject.toml client/pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Pennyweight needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Setting up $(VENV): a few minutes the first time (PyTorch is large)."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[engine,test,demo]' --editable ./client
	@touch $@

setup: $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m examples.demo

serve: $(STAMP)
	$(BIN)/pennyweightd serve

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

# A thread each, so that as many tests run at a time as there are cores. What starts processes of the service comes after the
# rest, two files at a time: such a test has several processes of its own.
ALONE := tests/api tests/attacks tests/core tests/encoding
PARALLEL := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

test: lint
	$(PARALLEL) --numprocesses=logical --maxprocesses=4 $(ALONE)
	$(PARALLEL) --numprocesses=2 --dist=loadfile --no-loadscope-reorder $(ALONE:%=--ignore=%)

clean:
	rm -rf $(VENV)
