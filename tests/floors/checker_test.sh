#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# checker_test.sh <check_floors.sh>: the checker accepts a sound tree and names each planted fault.
set -euo pipefail

checker=$1
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT

plant_sound_tree() {
  rm -rf "$tree/include"
  mkdir -p "$tree/include/gatepro"/{ground,left,right}
  cd "$tree/include/gatepro"
  echo '#include <cstddef>' > ground/stone.hpp
  printf '#include "gatepro/ground/stone.hpp"\n// #pragma omp in a comment is no pragma\n' > left/door.hpp
  printf '  #  include "gatepro/left/door.hpp"\n#include <gatepro/ground/stone.hpp>\n' > left/wall.hpp
  echo '#include "gatepro/ground/stone.hpp"' > right/wall.inl
  printf '#include "gatepro/left/wall.hpp"\n#include "gatepro/right/wall.inl"\n' > page.hpp
  printf '#include <omp.h>\n#pragma omp parallel\n' > openmp.hpp
  printf '#include <ATen/Parallel.h>\n' > torch.hpp
  printf 'ground\nleft right\n' > "$tree/floors.txt"
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
echo '#include <gatepro/left/door.hpp>' >> ground/stone.hpp
expect_fault 'ground/stone.hpp:2: ground includes left/door.hpp, which is not on a floor below'

plant_sound_tree
echo '#include "gatepro/left/door.hpp"' >> right/wall.inl
expect_fault 'right/wall.inl:2: right includes left/door.hpp, which is not on a floor below'

plant_sound_tree
echo '#include "gatepro/left/wall.hpp"' >> left/door.hpp
expect_fault 'in a circle'

plant_sound_tree
echo '#include "gatepro/page.hpp"' >> left/wall.hpp
expect_fault 'left/wall.hpp:3: includes the page page.hpp'

plant_sound_tree
mkdir attic && echo '// new' > attic/new.hpp
expect_fault 'attic/new.hpp: folder attic is not in'

plant_sound_tree
echo '#include <gatepro/left/absent.hpp>' >> page.hpp
expect_fault 'page.hpp:3: includes left/absent.hpp, which does not exist'

plant_sound_tree
echo '#include "door.hpp"' >> left/wall.hpp
expect_fault 'left/wall.hpp:3: include "door.hpp" as "gatepro/..."'

plant_sound_tree
echo 'cellar' >> "$tree/floors.txt"
expect_fault 'folder cellar has no header'

plant_sound_tree
echo 'left' >> "$tree/floors.txt"
expect_fault 'left stands twice'

plant_sound_tree
echo '#include <omp.h>' >> page.hpp
expect_fault 'page.hpp:3: only openmp.hpp may know OpenMP'

plant_sound_tree
echo '  # pragma omp simd' >> left/door.hpp
expect_fault 'left/door.hpp:3: only openmp.hpp may know OpenMP'

plant_sound_tree
echo '#include <c10/core/Device.h>' >> right/wall.inl
expect_fault 'right/wall.inl:2: only torch.hpp may know LibTorch'

echo 'checker_test: the sound tree passes and all 12 faults are named'
