#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# check_floors.sh [<include folder> <floors file>]
#
# Headers stand on floors: a file may include only files of a lower floor. Each line of the floors
# file is `<floor> <path below gatepro/>`; every file there must be listed. Only openmp.hpp may know
# OpenMP.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
include=${1:-$root/include}
floors=${2:-$root/scripts/floors.txt}

cd "$include/gatepro"
mapfile -t files < <(find . -type f \( -name '*.hpp' -o -name '*.inl' \) -printf '%P\n' | sort)
if [[ ${#files[@]} -eq 0 ]]; then
  echo "check_floors: no header under $include/gatepro" >&2
  exit 1
fi

awk -v floors="$floors" '
  function complain(text) { print text; faults++ }

  function in_library(path) { return path ~ /^gatepro\// }

  # The path below gatepro/ of a quoted include, which counts from the including file.
  function resolve(from, path) {
    if (in_library(path)) return substr(path, 9)
    if (from ~ /\//) { sub(/[^\/]*$/, "", from); path = from path }
    while (sub(/(^|\/)\.\//, "/", path) || sub(/[^\/]+\/\.\.\//, "", path)) {}
    sub(/^\//, "", path)
    return path
  }

  FILENAME == floors {
    if (NF != 2 || $1 !~ /^-?[0-9]+$/) complain(floors ":" FNR ": expected `<floor> <path>`")
    else if ($2 in floor) complain(floors ":" FNR ": " $2 " is listed twice")
    else floor[$2] = $1 + 0
    next
  }

  FNR == 1 {
    seen[FILENAME] = 1
    if (!(FILENAME in floor)) complain(FILENAME ": not listed in " floors)
  }

  /^[ \t]*#[ \t]*pragma[ \t]+omp/ || /_Pragma[ \t]*\([ \t]*"omp/ || /^[ \t]*#[ \t]*include[ \t]*<omp\.h>/ {
    if (FILENAME != "openmp.hpp") complain(FILENAME ":" FNR ": only openmp.hpp may know OpenMP")
  }

  /^[ \t]*#[ \t]*include[ \t]*["<]/ {
    quoted = $0 ~ /include[ \t]*"/
    target = $0
    sub(/^[^"<]*["<]/, "", target)
    sub(/[">].*$/, "", target)
    if (!quoted && !in_library(target)) next
    target = resolve(FILENAME, target)
    if (!(target in floor)) complain(FILENAME ":" FNR ": includes " target ", which is not listed")
    else if (FILENAME in floor && floor[target] >= floor[FILENAME])
      complain(FILENAME ":" FNR ": floor " floor[FILENAME] " includes " target " of floor " \
               floor[target] ", which is not lower")
  }

  END {
    for (file in floor) if (!(file in seen)) complain(floors ": " file " does not exist or is empty")
    if (faults) { print "check_floors: " faults " fault(s)"; exit 1 }
    print "check_floors: " ARGC - 2 " files stand on their floors"
  }
' "$floors" "${files[@]}"
