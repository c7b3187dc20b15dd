#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# demo.sh [<train_moe option>...]
#
# Trains small mixture-of-experts models with and without competition and draws the comparison.
# Options are passed on to train_moe, after those given here; the plots stay in build/demo.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

build=build/release
out=build/demo

echo "== packages"
scripts/install_deps.sh demo
echo "== build train_moe in $build"
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGATEPRO_BUILD_BENCHMARKS=OFF
cmake --build "$build" --parallel "$(nproc)" --target train_moe
echo "== train"
"$build/examples/train_moe/train_moe" --arms off,published,eliminate --seeds 3 --out "$out" "$@"
echo "== plots"
find "$out" -type f \( -name '*.png' -o -name '*.svg' \) -print | sort
