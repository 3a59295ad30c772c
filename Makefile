# Thin names for commands that anyone can type; the README shows the same commands without make.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: env demo test test-all check bench clean

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

test: env
	$(BIN)/python -m pytest

test-all: env
	$(BIN)/python -m pytest -m "not gpu"

check: env
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy

bench: env
	$(BIN)/python -m benchmarks.ablation

# Caches only: runs, stores and the environment are kept.
clean:
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path "./.venv/*" -prune -exec rm -rf {} +
