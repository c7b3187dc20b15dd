// SPDX-License-Identifier: MIT
// The checks of a SelectionRule and of an expert bias.
#ifndef GATEPRO_ROUTING_SELECTION_CHECKS_HPP
#define GATEPRO_ROUTING_SELECTION_CHECKS_HPP

#include "gatepro/core/checks.hpp"
#include "gatepro/core/order.hpp"
#include "gatepro/routing/rules.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// How many of a group's best experts its score sums, of a rule for groups that is active.
inline Index experts_per_group_score(const SelectionRule& rule) {
  if (rule.groups.score == GroupScore::top_1) return 1;
  if (rule.groups.score == GroupScore::top_2) return 2;
  if (rule.groups.score == GroupScore::best_n) return rule.groups.best;
  return rule.top_k / rule.groups.groups_per_token;
}

inline void check_group_limit(const Checks& checks, const SelectionRule& rule, Index experts) {
  const GroupLimit& groups = rule.groups;
  checks.need(groups.num_groups >= 1 && groups.num_groups <= experts,
              "1 <= num_groups <= num_experts",
              {{"num_groups", groups.num_groups}, {"num_experts", experts}});
  if (!groups.active()) return;
  checks.need(experts % groups.num_groups == 0, "num_experts a multiple of num_groups",
              {{"num_experts", experts}, {"num_groups", groups.num_groups}});
  checks.need(groups.groups_per_token >= 1 && groups.groups_per_token <= groups.num_groups,
              "1 <= groups_per_token <= num_groups",
              {{"groups_per_token", groups.groups_per_token}, {"num_groups", groups.num_groups}});
  const Index group_size = experts / groups.num_groups;
  checks.need(rule.top_k <= groups.groups_per_token * group_size,
              "top_k <= groups_per_token * num_experts / num_groups",
              {{"top_k", rule.top_k},
               {"groups_per_token", groups.groups_per_token},
               {"num_experts", experts},
               {"num_groups", groups.num_groups}});
  checks.need(groups.score != GroupScore::share_of_top_k || rule.top_k >= groups.groups_per_token,
              "groups_per_token <= top_k to rank groups by share_of_top_k",
              {{"groups_per_token", groups.groups_per_token}, {"top_k", rule.top_k}});
  checks.need(groups.score != GroupScore::top_2 || group_size >= 2,
              "two experts in a group to rank groups by top_2",
              {{"num_experts", experts}, {"num_groups", groups.num_groups}});
  checks.need(groups.score != GroupScore::best_n || (groups.best >= 1 && groups.best <= group_size),
              "1 <= best <= num_experts / num_groups to rank groups by best_n",
              {{"best", groups.best}, {"num_experts", experts}, {"num_groups", groups.num_groups}});
}

inline void check_choice_rule(const Checks& checks, const ChoiceRule& rule) {
  constexpr Order<double>::Key mantissa =
      (Order<double>::Key(1) << Order<double>::mantissa_bits) - 1;
  const auto key = key_of(rule.step);
  const bool is_power = (key & mantissa) == 0 && key >= key_of(0x1p-100) && key <= key_of(0x1p100);
  checks.need(key == 0 || is_power, "a choice step of 0, or a power of two from 2^-100 to 2^100",
              {{"step", rule.step}});
}

/// Everything but the competition, for results in A.
template <class A>
void check_selection(const Checks& checks, const SelectionRule& rule, Index experts) {
  checks.num_experts(experts);
  checks.top_k(rule.top_k, experts);
  check_group_limit(checks, rule, experts);
  check_choice_rule(checks, rule.choice);
  const A scale = static_cast<A>(rule.scores.scale);
  checks.need(is_finite(rule.scores.scale) && is_finite(scale) && key_of(scale) > 0,
              "scale finite and > 0", {{"scale", rule.scores.scale}});
}

template <class B>
constexpr void check_bias_type() {
  static_assert(is_accumulator_v<B>,
                "gatepro: an expert bias is float or double: 16 bits lose its updates");
}

template <class B>
void check_bias_values(const Checks& checks, const char* name, const VectorView<const B>& bias_E) {
  for (Index e = 0; e < bias_E.size; ++e) {
    if (is_finite(bias_E[e])) continue;
    checks.refuse(name, "finite values",
                  {{"value", static_cast<double>(bias_E[e])}, {"expert", e}});
  }
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_ROUTING_SELECTION_CHECKS_HPP
