# Everything from nothing but python3 and make: each target makes the virtual environment it needs.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow lint docs docs-links study study-check study-unseen clean

demo: .venv/.demo
	$(BIN)/xmafast demo

test: .venv/.dev
	$(BIN)/python -m pytest

test-slow: .venv/.dev
	$(BIN)/python -m pytest -m "slow and not alone"
	$(BIN)/python -m pytest -m "slow and alone" -n 0

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	# mypy does not follow the room mapping of an editable install, so it reads a plain one
	rm -rf .venv/plain build
	$(BIN)/python -m pip install --quiet --no-deps --target .venv/plain .
	cd .venv && MYPYPATH=plain bin/python -m mypy --config-file ../pyproject.toml -p xmafast

# every warning is an error; then each link of what was built is followed, without a network
docs: .venv/.docs
	$(BIN)/python -m sphinx -q -E -W --keep-going -c docs/site -d docs/_build/doctrees docs docs/_build/html
	$(BIN)/python docs/site/check.py docs/_build/html

# asks the addresses that the pages name, so it needs a network
docs-links: .venv/.docs
	$(BIN)/python -m sphinx -q -b linkcheck -c docs/site -d docs/_build/doctrees docs docs/_build/links

# the study of docs/study.md: what is not recorded is run; stills and the other backbone where they are there
STUDY := study-workspace
study: .venv/.demo
	$(BIN)/python benchmarks/study.py --workspace $(STUDY) --stills $(STUDY)/stills --unseen $(STUDY)/unseen

study-check: .venv/.demo
	$(BIN)/python benchmarks/study.py --workspace $(STUDY) --check

study-unseen: .venv/.demo
	$(BIN)/python -m xmafast.demo.pretrain --leave-out-test --stills $(STUDY)/stills --out $(STUDY)/unseen

.venv/.demo: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/.dev: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@ .venv/.demo

.venv/.docs: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@ .venv/.demo

clean:
	rm -rf docs/_build docs/api docs/commands
	rm -rf .venv build dist xmafast.egg-info
