#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# amalgamate.sh [<file>]
#
# Writes the library as one header, for those who vendor a single file: by default build/gatepro.hpp.
# The file depends on include/gatepro alone. It needs Eigen, as the library does, and holds
#   all that <gatepro/gatepro.hpp> includes
#   <gatepro/openmp.hpp>, where OpenMP is on and has its header
#   <gatepro/instantiate_kernels.hpp>, for units that define GATEPRO_INSTANTIATE_KERNELS
#   any other page, for units that define GATEPRO_<PAGE>
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
file=${1:-$root/build/gatepro.hpp}
mkdir -p "$(dirname "$file")"
file=$(realpath "$file")
export LC_ALL=C

cd "$root/include/gatepro"
# The kernels come last: their users see declarations, as with GATEPRO_EXTERN_KERNELS.
kernels=kernels/targets.hpp

# expand <file>...: the files with what they include of the library in its place, headers once. Files
# named `late` are left for later.
expand() {
  awk -v late="$kernels" -v expanded="$expanded" '
    BEGIN {
      done[late] = ARGV[1] != late
      while ((getline line < expanded) > 0) done[line] = line !~ /\.inl$/
      for (i = 1; i < ARGC; ++i) expand(ARGV[i])
    }
    function complain(text) { print "amalgamate: " text > "/dev/stderr"; exit 1 }
    function expand(name,  line, target, lines, depth) {
      if (done[name]) return
      done[name] = name !~ /\.inl$/
      print name >> expanded
      while ((lines = (getline line < name)) > 0) {
        if (line ~ /^#if/) ++depth
        if (line ~ /^#endif/) --depth
        target = line
        if (sub(/^#include "gatepro\//, "", target)) {
          sub(/".*/, "", target)
          if (depth > 1 && target ~ /\.hpp$/ && !done[target])
            complain(name " includes " target " on a condition, but it would stand here for all")
          expand(target)
        } else if (line !~ /^\/\/ SPDX-License-Identifier/) print line
      }
      close(name)
      if (lines < 0) complain("cannot read " name)
    }' "$@"
}

# optional <condition> <file>
optional() {
  printf '\n#if %s\n' "$1"
  expand "$2"
  printf '#endif  // %s\n' "$1"
}

expanded=$(mktemp)
made=$(mktemp)
trap 'rm -f "$expanded" "$made"' EXIT
version=$(awk '/define GATEPRO_VERSION_/ { v = v s $3; s = "." } END { print v }' core/version.hpp)
{
  echo '// SPDX-License-Identifier: MIT'
  echo "// gatepro $version in one header, made by scripts/amalgamate.sh: edit include/gatepro instead."
  echo '//'
  sed -e 's|^|// |' -e 's| *$||' "$root/LICENSE"
  expand gatepro.hpp
  optional '!defined(GATEPRO_EXTERN_KERNELS) || defined(GATEPRO_INSTANTIATE_KERNELS)' "$kernels"
  optional 'defined(GATEPRO_INSTANTIATE_KERNELS)' instantiate_kernels.hpp
  optional 'defined(_OPENMP) && __has_include(<omp.h>)' openmp.hpp
  for page in *.hpp; do
    grep -qxF "$page" "$expanded" || {
      name=${page%.hpp}
      optional "defined(GATEPRO_${name^^})" "$page"
    }
  done
} > "$made"

missing=$(comm -23 <(find . -name '*.hpp' -printf '%P\n' -o -name '*.inl' -printf '%P\n' | sort) \
  <(sort -u "$expanded"))
if [[ -n $missing ]]; then
  echo "amalgamate: no page includes" $missing >&2
  exit 1
fi
cat "$made" > "$file"
echo "$file"
