#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# check_floors.sh [<include folder> <floors file>]
#
# A folder of include/gatepro is a floor; the floors file has a line for each, from the ground up.
# Folders of one line stand side by side and do not know each other. A header may include its own
# folder, without circles, and the floors below. Pages, the headers outside folders, stand on top:
# no header of a folder includes one. Only openmp.hpp may know OpenMP, and only torch.hpp LibTorch.
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

edges=$(mktemp)
trap 'rm -f "$edges"' EXIT
status=0

awk -v floors="$floors" -v edges="$edges" '
  function complain(text) { print text; faults++ }

  function folder(path) { return path ~ /\// ? substr(path, 1, index(path, "/") - 1) : "" }

  FILENAME == floors {
    for (i = 1; i <= NF; ++i) {
      if ($i in floor) complain(floors ":" FNR ": " $i " stands twice")
      floor[$i] = FNR
    }
    next
  }

  FNR == 1 {
    exists[FILENAME] = 1
    own = folder(FILENAME)
    if (own != "") used[own] = 1
    if (own != "" && !(own in floor)) complain(FILENAME ": folder " own " is not in " floors)
  }

  /^[ \t]*#[ \t]*pragma[ \t]+omp/ || /_Pragma[ \t]*\([ \t]*"omp/ || /^[ \t]*#[ \t]*include[ \t]*<omp\.h>/ {
    if (FILENAME != "openmp.hpp") complain(FILENAME ":" FNR ": only openmp.hpp may know OpenMP")
  }
  /^[ \t]*#[ \t]*include[ \t]*<(ATen|c10|torch)\// {
    if (FILENAME != "torch.hpp") complain(FILENAME ":" FNR ": only torch.hpp may know LibTorch")
  }

  /^[ \t]*#[ \t]*include[ \t]*["<]/ {
    quoted = $0 ~ /include[ \t]*"/
    target = $0
    sub(/^[^"<]*["<]/, "", target)
    sub(/[">].*$/, "", target)
    if (target !~ /^gatepro\//) {
      if (quoted) complain(FILENAME ":" FNR ": include \"" target "\" as \"gatepro/...\"")
      next
    }
    sub(/^gatepro\//, "", target)
    wanted[target] = FILENAME ":" FNR
    print FILENAME, target > edges
    if (own == "") next
    other = folder(target)
    if (other == "") complain(FILENAME ":" FNR ": includes the page " target)
    else if (other != own && floor[other] >= floor[own])
      complain(FILENAME ":" FNR ": " own " includes " target ", which is not on a floor below")
  }

  END {
    for (file in wanted)
      if (!(file in exists)) complain(wanted[file] ": includes " file ", which does not exist")
    for (name in floor) if (!(name in used)) complain(floors ": folder " name " has no header")
    if (faults) { print "check_floors: " faults " fault(s)"; exit 1 }
  }
' "$floors" "${files[@]}" || status=1

if ! circle=$(tsort "$edges" 2>&1 > /dev/null); then
  printf 'check_floors: headers include each other in a circle\n%s\n' "$circle"
  status=1
fi
[[ $status -ne 0 ]] || echo "check_floors: ${#files[@]} files stand on their floors"
exit $status
