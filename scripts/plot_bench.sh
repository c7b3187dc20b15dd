#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# plot_bench.sh <summary.json> [<folder>]
#
# Draws a run of bench.sh into docs/images, or the folder: bench_peers.svg has the ratios to other
# libraries by number of experts, bench_features.svg what each feature costs. The data stay beside the
# summary.
set -euo pipefail

if [[ $# -lt 1 || $# -gt 2 ]]; then
  echo "usage: plot_bench.sh <summary.json> [<folder>]" >&2
  exit 2
fi
scripts=$(dirname "${BASH_SOURCE[0]}")
summary=$1
out=${2:-$scripts/../docs/images}
if [[ ! -r $summary ]]; then
  echo "plot_bench.sh: cannot read $summary; scripts/bench.sh writes it" >&2
  exit 1
fi
data=$(dirname "$summary")

# The value of a key; ? if it was not measured.
value() {
  awk -v key="\"$1\":" '$1 == key && $2 !~ /^null/ { sub(/,$/, "", $2); found = $2 }
    END { print (found == "" ? "?" : found) }' "$summary"
}

# A curve for each key: E and the value, then the blank lines that gnuplot counts.
peer_curves() {
  for key in gemm_vs_openblas gemm_vs_onednn gemm_vs_eigen router_vs_torch backward_vs_torch \
    select_vs_partial_sort select_vs_k_scans select_vs_torch softmax_before_vs_partial_sort; do
    for experts in 64 128 256; do
      echo "$experts $(value "${key}_E$experts")"
    done
    printf '\n\n'
  done
}

# A line for each feature: its name and the values of E = 64, 128 and 256.
feature_lines() {
  while IFS='|' read -r key name; do
    echo "\"$name\" $(value "${key}_E64") $(value "${key}_E128") $(value "${key}_E256")"
  done << 'FEATURES'
complete_off_over_router_select|complete router, all off
eliminate_over_select|elimination
penalty_over_select|penalty
bias_over_select|expert bias
z_loss_over_select|z-loss
batch_loss_over_select|batch loss
capacity_over_select|capacity factor 1
softmax_before_over_select|softmax before top-k
sigmoid_over_select|sigmoid, renormalised
groups_over_select|8 groups, 4 per token
deepseek_over_select|sigmoid, bias and groups
FEATURES
}

peer_curves > "$data/peers.dat"
feature_lines > "$data/features.dat"
gnuplot -e "data='$data'; out='$out'" "$scripts/plot_bench.gp"
echo "drawn: $out/bench_peers.svg $out/bench_features.svg"
