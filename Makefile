# Everything from nothing but python3 and make: each target makes the virtual environment it needs.
PYTHON ?= python3
BIN := .venv/bin
# what meets torch, triton, open_clip, numpy, h5py, the decoders, typer and starlette; not how well a compiler does
CORE := $(filter-out tests/kernels/test_compiled_% tests/kernels/test_gpu_%,$(wildcard tests/kernels/test_*.py)) \
	$(patsubst %,tests/library/test_%.py,backbone towers methods retriever headers training resume distributed evaluation search) \
	$(patsubst %,tests/library/test_%.py,cache codec decode features index) \
	tests/cli/test_cli.py tests/cli/test_train_cli.py tests/serve/test_serve_api.py tests/test_package.py tests/test_dependencies.py

.PHONY: demo test test-slow test-oldest coverage lint types docs docs-links study study-check study-unseen clean

demo: .venv/.demo
	$(BIN)/xmafast demo

test: .venv/.dev
	$(BIN)/python -m pytest

test-slow: .venv/.dev
	$(BIN)/python -m pytest -m "slow and not alone"
	$(BIN)/python -m pytest -m "slow and alone" -n 0

# the core of the tests with the lowest versions that pyproject.toml allows, in an environment of its own; Python 3.10 to 3.12
test-oldest: .venv/oldest/.done
	OMP_NUM_THREADS=1 .venv/oldest/bin/python -m pytest $(CORE)

# lines that plain `make test` leaves out; the lowest share is in pyproject.toml
coverage: .venv/.dev
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered --cov-report=html:.venv/coverage $(TESTS)

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory types

types: .venv/.dev
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

.venv/oldest/.done: pyproject.toml requirements/oldest.txt
	$(PYTHON) -m venv .venv/oldest
	.venv/oldest/bin/python -m pip install --quiet --constraint requirements/oldest.txt --editable ".[test]"
	touch $@

clean:
	rm -rf docs/_build docs/api docs/commands
	rm -rf .venv build dist xmafast.egg-info
