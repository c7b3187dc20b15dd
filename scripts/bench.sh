#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# bench.sh [--quick] [--isa <set>]
#
# Installs what is missing, builds the benchmarks and runs them, in less than 15 minutes on two
# cores. Prints the figures that have keys and writes them to build/bench/summary.json; all other
# measurements go to build/bench/benchmarks.txt. Fails if a figure could not be measured.
#
#   --quick      the same table from fewer rounds, in about 2 minutes after the build, and nothing
#                else
#   --isa <set>  holds gatepro to an instruction set, as GATEPRO_ISA=<set> does: avx512, avx2 or
#                portable. The libraries that it is compared with are held to AVX2 along with it.
#
# The names of the files say so: summary_avx2.json, summary_quick.json, summary_avx2_quick.json.
# BENCH_ROUNDS=<n> measures the figures in n rounds at most, at the price of noise.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

refuse() {
  echo "bench.sh: $1" >&2
  echo "usage: bench.sh [--quick] [--isa avx512|avx2|portable]" >&2
  exit 2
}

quick=
isa=${GATEPRO_ISA:-}
while [[ $# -gt 0 ]]; do
  case $1 in
    -h | --help)
      awk 'NR > 3 && !/^#/ { exit } NR > 3 { sub(/^# ?/, ""); print }' scripts/bench.sh
      exit
      ;;
    --quick) quick=yes ;;
    --isa)
      isa=${2:-}
      [[ -n $isa ]] || refuse "--isa needs the name of a set"
      shift
      ;;
    *) refuse "unknown option '$1'" ;;
  esac
  shift
done
case $isa in
  '' | avx512 | avx2 | portable | neon) ;;
  *) refuse "unknown instruction set '$isa'" ;;
esac

build=build/bench
suffix=${isa:+_$isa}${quick:+_quick}
summary=$build/summary$suffix.json
targets=(gatepro_summary gatepro_bench_table)
[[ -n $quick ]] || targets+=(gatepro_bench)

echo "== packages"
scripts/install_deps.sh bench
echo "== configure $build"
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGATEPRO_BUILD_TESTS=OFF \
  -DGATEPRO_BUILD_EXAMPLES=OFF -DGATEPRO_INSTALL=OFF
echo "== build"
cmake --build "$build" --parallel "$(nproc)" --target "${targets[@]}"
built=$SECONDS

# Peers use one thread, and the same instructions. OpenBLAS reads its core when it is loaded, and does
# not know the newest processors.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
if [[ $isa == avx2 ]]; then
  export OPENBLAS_CORETYPE=Haswell ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2
elif grep -q avx512f /proc/cpuinfo; then
  export OPENBLAS_CORETYPE=SKYLAKEX
fi
[[ -z $isa ]] || export GATEPRO_ISA=$isa
[[ -z $quick ]] || export BENCH_ROUNDS=${BENCH_ROUNDS:-7}

echo "== figures, in $summary"
status=0
"$build/benchmarks/gatepro_summary" "$summary" || status=$?
if [[ -z $quick ]]; then
  echo "== all benchmarks, in $build/benchmarks$suffix.txt"
  "$build/benchmarks/gatepro_bench" --benchmark_min_time=0.05 > "$build/benchmarks$suffix.txt" ||
    status=$?
fi
echo "== measured in $((SECONDS - built)) s, after $built s of building"
exit "$status"
