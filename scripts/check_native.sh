#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The kernel tests with the native library under the address and undefined-behaviour sanitizers, in a copy of the tree.
# Usage: scripts/check_native.sh PYTHON
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(command -v "$1")
# Not resolved further: a venv's python is a link, and its place tells it which packages it has.
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
tree=build/sanitize/tree
rm -rf "$tree"
mkdir -p "$tree"
cp -r native ziggurat tests pyproject.toml "$tree"
rm -rf "$tree"/ziggurat/kernels/_native*.so "$tree"/native/CMake{Files,Cache.txt}
cmake -S "$tree/native" -B "$tree/build" -G Ninja -DZIGGURAT_SANITIZE=ON -DZIGGURAT_INPLACE=ON -DPython_EXECUTABLE="$python" >/dev/null
cmake --build "$tree/build"
cd "$tree"
# Python itself is not instrumented: the sanitizer's runtime has to be there first, and what the interpreter keeps is no leak.
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \
  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 PYTHONPATH=$PWD \
  "$python" -m pytest tests/unit/kernels -k "not torch"
