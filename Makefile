PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check bench clean

.venv/demo.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/dev.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ .venv/demo.stamp

demo: .venv/demo.stamp     ## install, score the demo backbone on the built-in tasks, print a leaderboard
	$(BIN)/vitbench run
	$(BIN)/vitbench leaderboard

test: .venv/dev.stamp      ## install the test extra and run every test
	$(BIN)/pytest -n 2

check: .venv/dev.stamp     ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/dev.stamp     ## every speed claim of docs/performance.md, each against a peer in the same run
	$(BIN)/python bench/run_all.py

clean:
	rm -rf .venv build dist
