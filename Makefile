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
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m "not cluster"

# Brings up a SLURM of its own on this machine (as root it installs Debian's packages) and takes it down again.
test-cluster: env
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m cluster --timeout 600

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf runs data $(VENV)
