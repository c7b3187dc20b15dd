// SPDX-License-Identifier: MIT
#include "support/bars.hpp"

#include <cstdio>

namespace bench {
namespace {

constexpr Bar::Kind least = Bar::Kind::at_least;
constexpr Bar::Kind most = Bar::Kind::at_most;

Bars at_least(double avx2, double avx512) { return {{least, avx2}, {least, avx512}}; }
Bars at_least(double value) { return at_least(value, value); }
Bars at_most(double avx2, double avx512) { return {{most, avx2}, {most, avx512}}; }
Bars at_most(double value) { return at_most(value, value); }
Bars avx512_at_least(double value) { return {{}, {least, value}}; }
Bars within(double low, double high) {
  const Bar bar{Bar::Kind::within, low, high};
  return {bar, bar};
}
Bars reported() { return {}; }

/// Figures with one name and the same bars, but for the size that ends their keys.
struct Family {
  const char* name;
  std::vector<const char*> sizes;  ///< None: the name is the key.
  Bars bars;                       ///< AVX2, AVX-512; one value for both.
};

std::vector<Family> families() {
  const std::vector<const char*> selections{"E64", "E128", "E256"};
  const std::vector<const char*> routers{"E8", "E64", "E128", "E256"};
  const std::vector<const char*> sweep{"E8", "E16", "E16_K8", "E32", "E64", "E128", "E256", "E512"};
  return {
      // The gate
      {"gemm_fraction_of_peak", selections, at_least(0.90, 0.95)},
      {"gemm_vs_openblas", selections, at_least(1.15, 1.12)},
      {"gemm_vs_onednn", {"E8"}, at_least(1.5)},
      {"gemm_vs_onednn", selections, at_least(1.15, 1.03)},
      {"gemm_vs_eigen", routers, at_least(1.5)},
      {"bf16_vs_f32", {"E128"}, at_least(0.95, 0.97)},
      {"bf16_dot_vs_f32", {"E128"}, avx512_at_least(1.6)},
      {"half_vs_f32", {"E128"}, at_least(0.93, 0.95)},
      // The whole router
      {"router_ns", routers, reported()},
      {"router_over_gemm", {"E8"}, at_most(1.12)},
      {"router_over_gemm", selections, at_most(1.02, 1.015)},
      {"router_vs_torch", selections, at_least(1.15)},
      {"penalty_overhead", routers, at_most(1.006, 1.005)},
      {"openmp_2_threads", {"E128"}, at_least(1.8)},
      // Competition
      {"penalty_ns", routers, reported()},
      {"eliminate_ns", routers, reported()},
      {"penalty_over_select", sweep, at_most(1.20)},
      {"eliminate_over_select", sweep, at_most(1.20)},
      {"separate_penalty_vs_naive", {"E64", "E256"}, at_least(10, 20)},
      // The selection
      {"select_ns", selections, reported()},
      {"select_vs_partial_sort", {"E64"}, at_least(18, 30)},
      {"select_vs_partial_sort", {"E128"}, at_least(15, 27)},
      {"select_vs_partial_sort", {"E256"}, at_least(12, 24)},
      {"select_vs_k_scans", selections, reported()},
      {"select_vs_torch", selections, at_least(14)},
      {"select_worst_over_gaussian", {"E64", "E256"}, at_most(3)},
      {"softmax_before_vs_partial_sort", selections, reported()},
      {"deepseek_vs_partial_sort", {"E256"}, reported()},
      // The complete router, one feature at a time
      {"complete_off_over_router_select", selections, at_most(1.15)},
      {"softmax_before_over_select", selections, reported()},
      {"sigmoid_over_select", selections, reported()},
      {"bias_over_select", selections, reported()},
      {"quantile_over_select", selections, reported()},
      {"groups_over_select", selections, reported()},
      {"deepseek_over_select", {"E64", "E128"}, reported()},
      {"deepseek_over_select", {"E256"}, at_most(2.0)},
      {"batch_loss_over_select", {"E64"}, reported()},
      {"batch_loss_over_select", {"E128"}, at_most(1.6)},
      {"batch_loss_over_select", {"E256"}, reported()},
      {"z_loss_over_select", {"E64"}, reported()},
      {"z_loss_over_select", {"E128"}, at_most(1.4)},
      {"z_loss_over_select", {"E256"}, reported()},
      {"capacity_over_select", selections, reported()},
      {"quantised_over_select", selections, reported()},
      {"ascending_ids_over_select", selections, reported()},
      {"soft_cap_over_select", selections, reported()},
      {"top_p_over_select", selections, reported()},
      {"adaptive_lambda_over_select", selections, reported()},
      // The refresh
      {"refresh_over_forward", {"E64"}, at_most(0.025)},
      {"refresh_over_forward", {"E128"}, at_most(0.04)},
      {"refresh_over_forward", {"E256"}, at_most(0.06)},
      {"refresh_vs_eigen", {"E256"}, at_least(1.5)},
      {"lazy_over_full_refresh", {"E256"}, at_most(0.3)},
      {"lazy_fast_over_full_refresh", {"E256"}, at_most(1.1)},
      {"frobenius_over_refresh", selections, reported()},
      {"simbal_over_refresh", selections, reported()},
      {"partner_orthogonality_over_refresh", selections, reported()},
      // The backward
      {"backward_vs_torch", selections, at_least(3)},
      {"backward_vs_dense_openblas", {"E64"}, at_least(2.2, 3)},
      {"backward_vs_dense_openblas", {"E128"}, at_least(4, 5)},
      {"backward_vs_dense_openblas", {"E256"}, at_least(6, 8)},
      {"backward_dense_vs_openblas", selections, at_least(1.0, 1.1)},
      // Compilers and flags
      {"baseline_flags_over_native", {"E128"}, at_most(1.05)},
      {"native_over_baseline_gxx_forward", {}, within(0.93, 1.07)},
      {"native_over_baseline_gxx_backward", {}, within(0.93, 1.07)},
      {"native_over_baseline_clang_forward", {}, within(0.93, 1.07)},
      {"native_over_baseline_clang_backward", {}, within(0.93, 1.07)},
      {"include_over_eigen", {}, at_most(2)},
      {"hello_over_eigen", {}, at_most(2.5)},
  };
}

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4g", value);
  return text;
}

}  // namespace

bool Bar::admits(double figure) const {
  switch (kind) {
    case Kind::at_least:
      return figure >= value;
    case Kind::at_most:
      return figure <= value;
    case Kind::within:
      return figure >= value && figure <= most;
    case Kind::reported:
      break;
  }
  return true;
}

std::string Bar::text() const {
  switch (kind) {
    case Kind::at_least:
      return ">= " + number(value);
    case Kind::at_most:
      return "<= " + number(value);
    case Kind::within:
      return number(value) + " - " + number(most);
    case Kind::reported:
      break;
  }
  return "";
}

Bar Bars::on(const std::string& instruction_set) const {
  if (instruction_set == "avx512") return avx512;
  if (instruction_set == "avx2") return avx2;
  return {};
}

const std::vector<Key>& summary_keys() {
  static const std::vector<Key> keys = [] {
    std::vector<Key> all;
    for (const Family& family : families()) {
      if (family.sizes.empty()) all.push_back({family.name, family.bars});
      for (const std::string size : family.sizes) {
        all.push_back({family.name + ("_" + size), family.bars});
      }
    }
    return all;
  }();
  return keys;
}

}  // namespace bench
