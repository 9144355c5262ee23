# `make demo` and `make test` each work on their own in a fresh clone; both need only Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CPP := $(wildcard custom_ops/runtime/*.cpp custom_ops/runtime/*.h custom_ops/runtime/*.inc custom_ops/kernels/*.cu*)

.PHONY: demo test test-oldest lint format ops clean python

demo: $(VENV)/.installed
	$(BIN)/python examples/lenet_mnist.py

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

# One build of the library serves all versions of ONNX Runtime from this one on.
OLDEST := onnxruntime-gpu==1.24.*
test-oldest: | python
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check '$(OLDEST)' -e '.[dev]'
	$(VENV)-oldest/bin/python -m pytest tests/custom_ops tests/runtime tests/formats

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy deftonnx
	$(BIN)/mypy cli
	$(BIN)/clang-format --dry-run -Werror $(CPP)

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else \
	    "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'

ops: $(VENV)/.installed-kernel-tools
	$(BIN)/python custom_ops/build.py --jobs 2 $(BUILD_FLAGS)

$(VENV)/.installed: setup.cfg pyproject.toml | python
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-dev: setup.cfg pyproject.toml | python
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-kernel-tools: pyproject.toml $(VENV)/.installed
	$(BIN)/python custom_ops/kernel_tools.py > $@.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $@.txt
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-oldest build *.egg-info
