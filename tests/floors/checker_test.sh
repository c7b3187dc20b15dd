#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# checker_test.sh <check_floors.sh>: the checker accepts a sound tree and names each planted fault.
set -euo pipefail

checker=$1
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT

plant_sound_tree() {
  rm -rf "$tree/include"
  mkdir -p "$tree/include/gatepro/detail"
  cd "$tree/include/gatepro"
  echo '#include <cstddef>' > low.hpp
  printf '#include "../low.hpp"\n// #pragma omp in a comment is no pragma\n' > detail/mid.hpp
  printf '#include <gatepro/low.hpp>\n  #  include "detail/mid.hpp"\n' > top.hpp
  printf '#include <omp.h>\n#pragma omp parallel\n' > openmp.hpp
  printf '0 low.hpp\n1 detail/mid.hpp\n2 top.hpp\n0 openmp.hpp\n' > "$tree/floors.txt"
}

run_checker() { "$checker" "$tree/include" "$tree/floors.txt"; }

expect_fault() {
  local expected=$1 output
  if output=$(run_checker); then
    echo "not noticed: $expected"
    exit 1
  fi
  if [[ $output != *"$expected"* ]]; then
    echo "expected '$expected', got: $output"
    exit 1
  fi
}

plant_sound_tree
run_checker

plant_sound_tree
echo '#include <gatepro/top.hpp>' >> low.hpp
expect_fault 'low.hpp:2: floor 0 includes top.hpp of floor 2'

plant_sound_tree
echo '#include "../top.hpp"' >> detail/mid.hpp
expect_fault 'detail/mid.hpp:3: floor 1 includes top.hpp of floor 2'

plant_sound_tree
sed -i 's/^1 /2 /' "$tree/floors.txt"
expect_fault 'top.hpp:2: floor 2 includes detail/mid.hpp of floor 2'

plant_sound_tree
echo '// new' > unlisted.inl
expect_fault 'unlisted.inl: not listed'

plant_sound_tree
echo '#include <gatepro/absent.hpp>' >> top.hpp
expect_fault 'top.hpp:3: includes absent.hpp, which is not listed'

plant_sound_tree
echo '1 gone.hpp' >> "$tree/floors.txt"
expect_fault 'gone.hpp does not exist'

plant_sound_tree
echo '3 low.hpp' >> "$tree/floors.txt"
expect_fault 'low.hpp is listed twice'

plant_sound_tree
echo 'low.hpp' >> "$tree/floors.txt"
expect_fault 'expected `<floor> <path>`'

plant_sound_tree
echo '#include <omp.h>' >> top.hpp
expect_fault 'top.hpp:3: only openmp.hpp may know OpenMP'

plant_sound_tree
echo '  # pragma omp simd' >> detail/mid.hpp
expect_fault 'detail/mid.hpp:3: only openmp.hpp may know OpenMP'

echo 'checker_test: the sound tree passes and all 10 faults are named'
