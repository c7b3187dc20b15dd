#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# demo.sh [<train_moe option>...]
# demo.sh --c [<train_c option>...]
# demo.sh --torch [<train_torch option>...]
# demo.sh --python [<train.py option>...]
# demo.sh --mpi [<expert_parallel option>...]
#
# Trains small mixture-of-experts models with and without competition and draws the comparison.
# Options are passed on to train_moe, after those given here; the plots stay in build/demo.
# With --c it is the trainer in C that runs: with the options given, or else dense, with experts that
# do not compete, and with two kinds of competition. With --torch it is the one in LibTorch: with the
# options given, or else without competition, with it, with it from the middle on, and in two parts.
# With --python it is one in Python, with the router of examples/torch/python, and its benchmark.
# With --mpi the experts are spread over 1, 2 and 4 ranks on this machine; what is printed of the first
# step is the same each time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

build=build/release
out=build/demo
packages=demo
program=train_moe
folder=train_moe
runs=()
case ${1:-} in
  --c)
    packages=test
    program=train_c
    folder=c_api
    runs=(--dense "--lambda 0" "--lambda 0.5" --eliminate)
    shift
    ;;
  --torch)
    packages=torch
    program=train_torch
    folder=torch
    runs=("--mode off" "--mode eliminate" "--mode eliminate --on-at 50"
      "--steps 50 --save $out/torch.pt" "--load $out/torch.pt")
    shift
    ;;
  --python)
    packages=python
    program=gatepro_torch_ops
    shift
    ;;
  --mpi)
    packages=mpi
    program=expert_parallel
    folder=expert_parallel
    shift
    ;;
esac

echo "== packages"
scripts/install_deps.sh "$packages"
echo "== build $program in $build"
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGATEPRO_BUILD_BENCHMARKS=OFF
cmake --build "$build" --parallel "$(nproc)" --target "$program"
mkdir -p "$out"
if [[ $program == gatepro_torch_ops ]]; then
  export GATEPRO_TORCH_OPS=$build/examples/torch/libgatepro_torch_ops.so
  echo "== train.py $*"
  /usr/bin/python3 examples/torch/python/train.py "$@"
  [[ $# -gt 0 ]] || /usr/bin/python3 examples/torch/python/benchmark.py
  exit
fi
if [[ $program == expert_parallel ]]; then
  # For root, and for more ranks than cores.
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_mpi_yield_when_idle=1 OMP_NUM_THREADS=1
  for ranks in 1 2 4; do
    echo "== $program on $ranks ranks"
    mpirun --bind-to none -np "$ranks" "$build/examples/$folder/$program" "$@"
  done
  exit
fi
if [[ $program != train_moe && $# -gt 0 ]]; then
  "$build/examples/$folder/$program" "$@"
  exit
fi
if [[ $program != train_moe ]]; then
  for options in "${runs[@]}"; do
    echo "== $program $options"
    read -ra words <<< "$options"
    "$build/examples/$folder/$program" "${words[@]}"
  done
  exit
fi
echo "== train"
"$build/examples/$folder/$program" --arms off,published,eliminate --seeds 3 --out "$out" "$@"
echo "== plots"
find "$out" -type f \( -name '*.png' -o -name '*.svg' \) -print | sort
