# Two commands do everything: `make demo` and `make test`. Both build .venv when it is missing or stale.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint install docs weights bench clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "rcprobe needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install
	@$(BIN)/rcprobe demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# the site, into docs/_build; any warning fails it. `make test` builds it too (tests/test_docs.py)
docs: install
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build

# real weights for tests and benchmarks, some 190 MB, once; without them `make test` skips what needs them
weights: install
	@$(BIN)/python tests/weights.py

# OUT=file.json keeps the ratios; `pip install -e .[bench]` adds the neighbours
bench: install
	$(BIN)/python tests/benchmarks/bench.py $(if $(OUT),--out $(OUT))

clean:
	rm -rf $(VENV) .weights build dist docs/_build
