# `make demo` and `make test` are all a fresh machine needs; each sets up .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all check

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/python jobs/train.py --config tests/demo.yaml
	$(BIN)/python -m tests.demo

test: .venv/installed
	$(BIN)/python -m pytest -m 'not slow' --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-all: .venv/installed
	$(BIN)/python -m pytest

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
