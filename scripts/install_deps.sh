#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# install_deps.sh <set>...
#
# Installs the Debian or Ubuntu packages of the named sets that are still missing:
#   core   build with the library      test   core, and what the tests need
#   demo   test, and train_moe         ci     everything that .ci/run needs
#   torch  test, and LibTorch          mpi    test, and Open MPI
#   python torch, and its Python
#   arm    test, and what builds and runs tests for 64-bit ARM
#   bench  core, Google Benchmark and the libraries that the benchmarks compare with
set -euo pipefail

core=(g++ cmake ninja-build libeigen3-dev)
test=("${core[@]}" libgtest-dev libcli11-dev nlohmann-json3-dev pkg-config)
demo=("${test[@]}" gnuplot-nox librsvg2-bin)
torch=("${test[@]}" libtorch-dev)
python=("${torch[@]}" python3-torch python3-dev python3-setuptools)
mpi=("${test[@]}" libopenmpi-dev openmpi-bin)
arm=("${test[@]}" googletest g++-aarch64-linux-gnu qemu-user-static)
ci=("${test[@]}" "${demo[@]}" "${arm[@]}" git clang clang-format clang-tidy libclang-rt-dev
    libomp-dev llvm doxygen libbenchmark-dev libxml2-utils python3-numpy)
bench=("${core[@]}" libbenchmark-dev nlohmann-json3-dev libopenblas-dev libdnnl-dev libtorch-dev
       gnuplot-nox)

wanted=()
for set in "$@"; do
  case $set in
    core | test | demo | torch | python | mpi | arm | ci | bench)
      declare -n packages=$set
      wanted+=("${packages[@]}")
      ;;
    *)
      echo "install_deps: unknown set '$set'; choose from core, test, demo, torch, python, mpi, arm, ci, bench" >&2
      exit 2
      ;;
  esac
done
if [[ ${#wanted[@]} -eq 0 ]]; then
  echo "usage: install_deps.sh core|test|demo|torch|python|mpi|arm|ci|bench..." >&2
  exit 2
fi

if ! command -v apt-get > /dev/null; then
  echo "install_deps: no apt-get here, so nothing is checked. Needed, by their Debian names:" \
    "${wanted[*]}" >&2
  exit 0
fi

is_installed() {
  [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2> /dev/null) == installed ]]
}

missing=()
for package in $(printf '%s\n' "${wanted[@]}" | sort -u); do
  is_installed "$package" || missing+=("$package")
done
if [[ ${#missing[@]} -eq 0 ]]; then
  echo "install_deps: all packages of '$*' are in place"
  exit 0
fi

as_root=()
if [[ $EUID -ne 0 ]]; then
  if ! command -v sudo > /dev/null; then
    echo "install_deps: neither root nor sudo; ask someone who is to run" >&2
    echo "  apt-get install ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
  [[ -t 0 ]] || as_root+=(--non-interactive)
fi

apt_get() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@"
}

echo "install_deps: installing ${missing[*]}"
if ! { apt_get update && apt_get install --yes --no-install-recommends "${missing[@]}"; }; then
  echo "install_deps: could not install ${missing[*]}" >&2
  exit 1
fi
