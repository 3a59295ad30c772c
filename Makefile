# Thin names for commands that anyone can type; the README shows the same commands without make.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: env demo test test-all check bench guard clean

env: .venv/.installed

.venv/.installed: requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.lock
	touch $@

demo: env
	$(BIN)/python -m data.prepare --recipe recipes/demo.yaml
	$(BIN)/deepspeed --num_accelerators 2 pretrain.py
	$(BIN)/python -m training.export runs/demo exports/demo
	$(BIN)/python -m training.gains runs/demo exports/demo
	$(BIN)/python -m training.report runs/demo

# Two tests at a time, those of a file one after another: they share what the file's first test makes. In the order of
# their names, for the files of few tests, which would be left for the end, are among the longest.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: env
	$(PYTEST)

test-all: env
	$(PYTEST) -m "not gpu"

check: env
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy

bench: env
	$(BIN)/python -m benchmarks.ablation
	$(BIN)/python -m benchmarks.kernels
	$(BIN)/python -m benchmarks.planner
	$(BIN)/python -m benchmarks.data
	$(BIN)/python -m benchmarks.step --preset full --profile

# Did a training step become slower than what it is measured beside? Ratios within one run, never times.
guard: env
	$(BIN)/python -m benchmarks.step.guard

# Caches only: runs, stores and the environment are kept.
clean:
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path "./.venv/*" -prune -exec rm -rf {} +
