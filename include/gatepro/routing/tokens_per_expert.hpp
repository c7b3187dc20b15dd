// SPDX-License-Identifier: MIT
// Stage: how many tokens each expert was selected for.
#ifndef GATEPRO_ROUTING_TOKENS_PER_EXPERT_HPP
#define GATEPRO_ROUTING_TOKENS_PER_EXPERT_HPP

#include <cstdint>

#include "gatepro/core/choices.hpp"
#include "gatepro/core/overlap.hpp"

namespace gatepro {
inline namespace GATEPRO_ABI {

/// tokens_per_expert_E[e] += number of choices of expert e in expert_ids_TK (T x K, any strides, -1
/// for none).
///
/// It adds, so that ranges of tokens can be counted one after the other: zero the counts first.
/// Throws Error for shapes or an id that is neither in [0, E) nor -1, before any write. No
/// allocation.
template <class Id>
void add_tokens_per_expert(StridedView<Id> expert_ids_TK,
                           VectorView<std::int64_t> tokens_per_expert_E) {
  detail::check_id_type<detail::value_t<Id>>();
  const detail::Checks checks("add_tokens_per_expert");
  checks.num_experts(tokens_per_expert_E.size);
  checks.vector("tokens_per_expert_E", tokens_per_expert_E, tokens_per_expert_E.size);
  checks.strided("expert_ids_TK", expert_ids_TK, expert_ids_TK.rows, expert_ids_TK.cols);
  checks.overlaps(detail::output("tokens_per_expert_E", tokens_per_expert_E),
                  detail::input("expert_ids_TK", expert_ids_TK));
  const Choices<Id> choices{expert_ids_TK};
  detail::check_choices(checks, "expert_ids_TK", choices, tokens_per_expert_E.size);
  detail::for_each_choice(choices, false, [&](Index, Index, Index e) { ++tokens_per_expert_E[e]; });
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_ROUTING_TOKENS_PER_EXPERT_HPP
