#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# bench.sh
#
# Installs what is missing, builds the benchmarks and runs them, in less than 15 minutes on two
# cores. Prints the figures that have bars and writes them to build/bench/summary.json; all other
# measurements go to build/bench/benchmarks.txt. Fails if a figure could not be measured.
#
# BENCH_ROUNDS=<n> shortens the measurement of the figures, at the price of noise.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

build=build/bench

echo "== packages"
scripts/install_deps.sh bench
echo "== configure $build"
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGATEPRO_BUILD_TESTS=OFF \
  -DGATEPRO_BUILD_EXAMPLES=OFF -DGATEPRO_INSTALL=OFF
echo "== build"
cmake --build "$build" --parallel "$(nproc)"

# Peers use one thread. OpenBLAS reads its core when it is loaded, and does not know the newest
# processors.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
if grep -q avx512f /proc/cpuinfo; then
  export OPENBLAS_CORETYPE=SKYLAKEX
fi

echo "== figures, in $build/summary.json"
status=0
"$build/benchmarks/gatepro_summary" "$build/summary.json" || status=$?
echo "== all benchmarks, in $build/benchmarks.txt"
"$build/benchmarks/gatepro_bench" --benchmark_min_time=0.05 > "$build/benchmarks.txt" || status=$?
echo "== done in $SECONDS s"
exit "$status"
