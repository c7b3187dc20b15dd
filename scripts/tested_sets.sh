#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# tested_sets.sh <log of ctest>...
#
# One line about the tests that have an entry per instruction set: how many ran on each, and how
# many were skipped because the CPU lacks it.
set -euo pipefail

awk '
  $2 == "Test" && $4 ~ /\.(portable|neon|avx2|avx512)$/ {
    set = $4
    sub(/.*\./, "", set)
    if (/\*\*\*Skipped/) skipped[set]++
    else ran[set]++
  }
  END {
    count = split("portable neon avx2 avx512", sets, " ")
    line = "instruction sets tested:"
    for (i = 1; i <= count; ++i) {
      set = sets[i]
      if (!(set in ran) && !(set in skipped)) continue
      line = line sprintf(" %s (%d ran, %d skipped)", set, ran[set], skipped[set])
    }
    print line
  }
' "$@"
