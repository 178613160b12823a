# Two commands are all the set-up there is: `make demo` and `make test`.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
WORKERS ?= 2
READY := .venv/.ready

.PHONY: demo test slow spark check format lint types floors wheel docs bench-download bench-train bench-use clean

demo: $(READY)  ## Draw a toy web and run the quickstart study on it; open demo/report.html afterwards.
	$(BIN)/coyo demo -o demo

# A file's tests stay in one process, since they share what its fixtures make.
test: $(READY)  ## Run the tests; WORKERS=4 for more than two processes, of up to 2 GiB each.
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

slow: $(READY)  ## Run the tests that take minutes: training on real pictures, where they lie beside the checkout.
	$(BIN)/pytest -m slow

spark: $(READY)  ## Run the tests that need Spark, on one machine; Java has to be there.
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,spark]'
	$(BIN)/pytest -m spark

check: lint types floors test  ## All that CI asks of a change.

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

floors: $(READY)
	$(BIN)/lint-imports

format: $(READY)  ## Put the code into shape.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY)  ## Write docs/cli.md from the commands' own help.
	$(BIN)/python docs/make_cli.py

bench-download: $(READY)  ## Time coyo download against plain img2dataset: 50 minutes, 6 GB in /tmp.
	$(BIN)/python benchmarks/download.py --work $${TMPDIR:-/tmp}/coyo-bench-download

bench-train: $(READY)  ## Time coyo train against a plain loop and HF Trainer, on a GPU where there is one.
	$(BIN)/python benchmarks/train.py --work $${TMPDIR:-/tmp}/coyo-bench-train

bench-use: $(READY)  ## Time coyo embed against transformers, and coyo search against a numpy product.
	$(BIN)/python benchmarks/use.py --work $${TMPDIR:-/tmp}/coyo-bench-use
	$(BIN)/python benchmarks/use_search.py $${TMPDIR:-/tmp}/coyo-bench-use/embeddings

wheel: $(READY)  ## Build sdist and wheel, and try the wheel in an empty environment.
	bash .ci/wheel

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache dist demo

# Not compiled ahead: most of what is installed is never imported, and Python compiles the rest by itself.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; none found on PATH." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)
