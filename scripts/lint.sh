#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# lint.sh
#
# Checks what the compilers do not: that headers stand on their floors, that public declarations are
# documented, that files are formatted, and that clang-tidy finds nothing in headers and examples.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

status=0

echo "== floors"
scripts/check_floors.sh || status=1

echo "== documentation"
mkdir -p build
doxygen docs/Doxyfile || status=1

echo "== format"
git ls-files '*.hpp' '*.inl' '*.cpp' '*.cu' '*.h' '*.c' | xargs clang-format --dry-run --Werror || status=1

echo "== clang-tidy"
read -ra eigen <<< "$(pkg-config --cflags-only-I eigen3)"
flags=(-std=c++17 -DGATEPRO_EXTERN_KERNELS -Iinclude -Iexamples -Iexamples/train_moe
  "${eigen[@]/#-I/-isystem}")
find examples tests/lint -maxdepth 1 -name '*.cpp' -print0 |
  xargs -0 -P "$(nproc)" -I '{}' clang-tidy --quiet '{}' -- "${flags[@]}" || status=1
# Of the programs in folders, those that take seconds: the C interface, and a study's report with all
# that draws. The others take a minute each. Text is made as it reads best.
printf '%s\0' examples/c_api/gatepro_c.cpp examples/study/report.cpp |
  xargs -0 -P "$(nproc)" -I '{}' clang-tidy --quiet '{}' \
    --header-filter='(include/gatepro|examples)/.*\.hpp' \
    --checks='-clang-analyzer-*,-performance-inefficient-*' -- "${flags[@]}" || status=1

exit $status
