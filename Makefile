# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
PARALLEL = --numprocesses auto --maxprocesses 4 --dist loadgroup
PIP_INSTALL = .venv/bin/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo test coverage slow slow-part check docs bench soak format

demo: .venv/demo
	.venv/bin/confide simulate demo --out runs/demo --overwrite

test: .venv/dev
	.venv/bin/python -m pytest -m "not slow" $(PARALLEL)

# the same, traced: takes about twice as long
coverage: .venv/dev
	.venv/bin/python -m pytest -m "not slow" $(PARALLEL) --cov --cov-report=term:skip-covered --cov-fail-under=90

slow: .venv/dev
	.venv/bin/python -m pytest -m slow $(PARALLEL)

# a third of the slow tests by the day of the year, in an order of that day, for twelve minutes
slow-part: .venv/dev
	.venv/bin/python -m pytest -m slow --part $$(date -u +%j)/3 --minutes 12 -rs $(PARALLEL)

check: .venv/dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/pyright

format: .venv/dev
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

docs: .venv/docs
	.venv/bin/python -m mkdocs build --strict

bench: .venv/dev
	.venv/bin/python -m benchmarks.run
	.venv/bin/python -m benchmarks.ledger
	.venv/bin/python -m benchmarks.audit
	.venv/bin/python -m benchmarks.secagg
	.venv/bin/python -m benchmarks.accuracy
	.venv/bin/python -m benchmarks.deployment latency accuracy
	.venv/bin/python -m benchmarks.robustness aggregators

soak: .venv/dev
	.venv/bin/python -m benchmarks.deployment network soak

.venv/base:
	$(PYTHON) -m venv .venv
	touch $@

.venv/demo: .venv/base pyproject.toml constraints.txt
	$(PIP_INSTALL) --editable '.[demo]'
	touch $@

.venv/dev: .venv/base pyproject.toml constraints.txt
	$(PIP_INSTALL) --editable '.[dev]'
	ln -sfn '$(CURDIR)' .venv/confide  # pyright reads no import hooks
	touch $@

.venv/docs: .venv/base pyproject.toml constraints.txt
	$(PIP_INSTALL) --editable '.[docs]'
	mkdir -p .venv/source/confide  # mkdocstrings looks for a folder of the package's name, and reads all of it
	for part in __init__.py cli common client server simulations; do ln -sfn "$(CURDIR)/$$part" .venv/source/confide/$$part; done
	touch $@
