PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SEEDS ?= 0 1 2
# Processes that share the test files; each test has one thread, several start processes of their own.
TEST_PROCESSES ?= 2

# Bytecode is kept, whatever the shell says: else every process of a test recompiles torch and DeepSpeed.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: env env-dev demo compare test test-cluster fuzz check clean

# One environment, made again when the requirements change: what training needs, and on top of it what tests need.
# Without --no-compile pip compiles every module of it, which takes longer than installing them.
env: $(VENV)/.ready
env-dev: $(VENV)/.ready-dev

$(VENV)/.ready: setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e ".[report]"
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e ".[dev]"
	touch $@

demo: env
	$(BIN)/python -m engine.demo --seeds $(SEEDS)

# Every objective on the demo's world at equal processor minutes: about an hour on two cores, done again where it stopped.
compare: env
	$(BIN)/python benchmarks/objectives.py --out runs/objectives --write docs/objectives.md

test: env-dev
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m "not cluster" -n $(TEST_PROCESSES) --dist loadfile

# Brings up a SLURM of its own on this machine (as root it installs Debian's packages) and takes it down again.
test-cluster: env-dev
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m cluster -rs --timeout 1200

# Thousands of damaged files of every format that is read; minutes. The suite has a short form.
fuzz: env-dev
	cd tests && PYTHONPATH=..:. OMP_NUM_THREADS=1 $(abspath $(BIN))/python -m fuzz.run --inputs 2000

check: env-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf runs data $(VENV)
