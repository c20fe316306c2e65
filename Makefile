PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
CLIPS ?= data/demo

.PHONY: env demo test test-cluster check clean

env: $(VENV)/.ready

# One environment for everything; made again when the requirements change.
$(VENV)/.ready: setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@

demo: env
	$(BIN)/python -m engine.demo

test: env
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf runs data $(VENV)
