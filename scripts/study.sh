#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# study.sh [--short] [--jobs N] [--question ID]... [--text PATH] [--time-limit SECONDS]
#          [--out FOLDER]
#
# Trains the grid of small models that docs/evidence.md rests on, and writes a report like it:
# FOLDER/evidence.md and FOLDER/study/report.html, from FOLDER/data/runs.csv. Full it takes one to
# two hours on two cores, with --short ten minutes. A study that was interrupted goes on where it ended.
# --jobs: runs side by side, one thread each (all cores); no result depends on it. FOLDER: build/study.
#
# A study is finished with the text and on the processor that began it. Another text is refused.
# Another processor is not: it gives other last digits and so, trainings being chaotic, other runs,
# which would be paired with those that are there.
#
# To write the report of the repository anew from its own data: build/release/examples/study/study report
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

build=build/release
out=build/study
options=(--jobs "$(nproc)")
while [[ $# -gt 0 ]]; do
  case $1 in
    --short) options+=("$1") ;;
    --out | --jobs | --question | --time-limit | --text)
      if [[ $# -lt 2 ]]; then
        echo "study.sh: $1 needs a value" >&2
        exit 2
      fi
      if [[ $1 == --out ]]; then out=$2; else options+=("$1" "$2"); fi
      shift
      ;;
    *)
      sed -n '4,16s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
      exit 2
      ;;
  esac
  shift
done

echo "== packages"
scripts/install_deps.sh test
echo "== build study in $build"
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGATEPRO_BUILD_BENCHMARKS=OFF
cmake --build "$build" --parallel "$(nproc)" --target study
echo "== train"
status=0
"$build/examples/study/study" run --out "$out/data" "${options[@]}" || status=$?
[[ $status -eq 0 || $status -eq 130 ]] || exit "$status"
echo "== report"
"$build/examples/study/study" report --data "$out/data" --docs "$out"
exit "$status"
