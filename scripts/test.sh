#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# test.sh [<option of cmake>...]
#
# Installs what is missing, builds tests and examples in build/release, runs all tests. The last line
# says which instruction sets they ran on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The preset "release" spelt out, because presets of this version need CMake 3.25.
build=build/release
jobs=$(nproc)

echo "== packages"
scripts/install_deps.sh test
echo "== configure $build"
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
  -DGATEPRO_BUILD_BENCHMARKS=OFF "$@"
echo "== build with $jobs jobs"
cmake --build "$build" --parallel "$jobs"
echo "== test"
log=$build/test.log
status=0
ctest --test-dir "$build" --parallel "$jobs" --output-on-failure --no-tests=error \
  --no-label-summary | tee "$log" || status=$?
scripts/tested_sets.sh "$log"
exit "$status"
