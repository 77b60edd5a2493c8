# `make serve` runs the demo server, `make test` the tests; both set up all they need first.
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 2

.PHONY: serve test test-failed lint format bench benchmarks-doc soak outages clean

serve: .venv/installed
	DEBUG=$${DEBUG-1} exec $(BIN)/python manage.py serve $(ARGS)

test: .venv/installed
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --numprocesses $(JOBS) --dist worksteal $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# What failed beside others, one by one: tests look at the clock, and a machine that is busy proves nothing by it.
test-failed: .venv/installed
	$(BIN)/coverage run -m pytest --last-failed --last-failed-no-failures none --exitfirst $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/installed
	$(BIN)/python -m benchmarks $(ARGS)

benchmarks-doc: .venv/installed
	$(BIN)/python -m benchmarks --profile --json docs/benchmarks/figures.json $(ARGS)
	$(BIN)/python -m benchmarks.report docs/benchmarks/figures.json

soak: .venv/installed
	$(BIN)/python -m benchmarks.soak $(ARGS)

outages: .venv/installed
	$(BIN)/python -m tests.outages $(ARGS)

clean:
	rm -rf .venv .coverage* htmlcov .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	touch $@
