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
find examples tests/lint -maxdepth 1 -name '*.cpp' -print0 |
  xargs -0 -P "$(nproc)" -I '{}' clang-tidy --quiet '{}' -- -std=c++17 \
    -DGATEPRO_EXTERN_KERNELS -Iinclude "${eigen[@]/#-I/-isystem}" || status=1

exit $status
