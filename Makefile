# make sample: the whole method on a drawn miniature of the benchmarks, from a fresh clone
# make test: the test suite;  make lint, make types: the checks beside it
PYTHON ?= python3
BIN := .venv/bin
OUT ?= sample-run
export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: sample test lint types clean

.venv/installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

sample: .venv/installed
	$(BIN)/python -m pekit.sample --out "$(OUT)/datasets"
	$(BIN)/python -m pekit.sample.run --out "$(OUT)"

test: .venv/installed
	$(BIN)/python -m pytest -n 2

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy

clean:
	rm -rf "$(OUT)"
