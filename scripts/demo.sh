#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# demo.sh [<train_moe option>...]
# demo.sh --c [<train_c option>...]
#
# Trains small mixture-of-experts models with and without competition and draws the comparison.
# Options are passed on to train_moe, after those given here; the plots stay in build/demo.
# With --c it is the trainer in C that runs: with the options given, or else dense, with experts that
# do not compete, and with two kinds of competition.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

build=build/release
out=build/demo
packages=demo
program=train_moe
if [[ ${1:-} == --c ]]; then
  shift
  packages=test
  program=train_c
fi

echo "== packages"
scripts/install_deps.sh "$packages"
echo "== build $program in $build"
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGATEPRO_BUILD_BENCHMARKS=OFF
cmake --build "$build" --parallel "$(nproc)" --target "$program"
if [[ $program == train_c ]]; then
  if [[ $# -gt 0 ]]; then
    runs=("$*")
  else
    runs=(--dense "--lambda 0" "--lambda 0.5" --eliminate)
  fi
  for options in "${runs[@]}"; do
    echo "== train_c $options"
    read -ra words <<< "$options"
    "$build/examples/c_api/train_c" "${words[@]}"
  done
  exit
fi
echo "== train"
"$build/examples/train_moe/train_moe" --arms off,published,eliminate --seeds 3 --out "$out" "$@"
echo "== plots"
find "$out" -type f \( -name '*.png' -o -name '*.svg' \) -print | sort
