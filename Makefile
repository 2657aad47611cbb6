# Every target works from nothing: it makes the virtual environment, installs, runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BENCHES := cli simulate coordinator checkpoint_local checkpoint_s3 reshard restore_tiers plan recover torch_dcp
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench

.PHONY: demo test longer check bench s3 clean

demo: $(STAMP)
	$(BIN)/behemoth run manifests/examples/tiny-moe.yaml

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

longer: $(STAMP)
	$(BIN)/python -m pytest -m longer

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(BENCH_STAMP)
	for name in $(BENCHES); do echo "== $$name"; $(BIN)/python tests/bench/$$name.py --quick || exit 1; done

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"behemoth: expected Python >= 3.11, got {sys.version.split()[0]}; name one with: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade "pip>=24"
	$(BIN)/python -m pip install --editable ".[torch,test]"
	touch $@

$(BENCH_STAMP): $(STAMP)
	$(BIN)/python -m pip install --editable ".[bench]"
	touch $@

s3: $(STAMP)
	PATH="$(abspath $(BIN)):$$PATH" PYTHONPATH=tests $(BIN)/python -m servers.s3_server "$${SHELL:-sh}"

clean:
	rm -rf $(VENV) runs
