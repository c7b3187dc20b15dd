// SPDX-License-Identifier: MIT
// The (token, choice) pairs of a routing: which of them count, in which order, and per expert.
#ifndef GATEPRO_DETAIL_CHOICES_HPP
#define GATEPRO_DETAIL_CHOICES_HPP

#include <algorithm>
#include <cstdint>
#include <limits>

#include "gatepro/detail/checks.hpp"

namespace gatepro {
namespace detail {

/// A routing's choices, less those that were dropped and those of masked tokens.
template <class Id>
struct Choices {
  StridedView<Id> expert_ids_TK;
  VectorView<const std::uint8_t> is_padding_T{};  ///< Optional; nonzero masks a token.
  StridedView<const std::uint8_t> kept_TK{};      ///< Optional; zero drops a choice.
};

inline namespace GATEPRO_ABI {

inline bool is_masked(const VectorView<const std::uint8_t>& is_padding_T, Index t) {
  return is_padding_T.given() && is_padding_T[t] != 0;
}

template <class Id>
bool counts(const Choices<Id>& choices, Index t, Index j) {
  return !is_masked(choices.is_padding_T, t) &&
         (!choices.kept_TK.given() || choices.kept_TK(t, j) != 0);
}

/// Calls `visit(t, j, e)` for each choice that counts: token after token, or all first choices
/// before all second ones.
template <class Id, class Visit>
void for_each_choice(const Choices<Id>& choices, bool choice_major, const Visit& visit) {
  const Index tokens = choices.expert_ids_TK.rows;
  const Index top_k = choices.expert_ids_TK.cols;
  const Index outer = choice_major ? top_k : tokens;
  const Index inner = choice_major ? tokens : top_k;
  for (Index a = 0; a < outer; ++a) {
    for (Index b = 0; b < inner; ++b) {
      const Index t = choice_major ? b : a;
      const Index j = choice_major ? a : b;
      if (counts(choices, t, j)) visit(t, j, static_cast<Index>(choices.expert_ids_TK(t, j)));
    }
  }
}

/// count_E[e] = choices of expert e that count.
template <class Id>
void count_choices(const Choices<Id>& choices, Index experts, Index* count_E) {
  std::fill_n(count_E, experts, Index{0});
  for_each_choice(choices, false, [&](Index, Index, Index e) { ++count_E[e]; });
}

/// No token holds an expert twice. The ids are in range; `last_token_E` is scratch.
template <class Id>
void check_distinct_ids(const char* where, const char* name, const StridedView<Id>& ids,
                        Index experts, Index* last_token_E) {
  std::fill_n(last_token_E, experts, Index{-1});
  for (Index t = 0; t < ids.rows; ++t) {
    for (Index j = 0; j < ids.cols; ++j) {
      Index& last_token = last_token_E[static_cast<Index>(ids(t, j))];
      if (last_token == t) {
        fail_view(where, name, "distinct ids in each row",
                  {{"id", ids(t, j)}, {"row", t}, {"column", j}});
      }
      last_token = t;
    }
  }
}

/// The least multiple of `alignment` that is not below `size`.
inline Index align_up(const char* where, const char* rule, Index size, Index alignment) {
  const Index missing = (alignment - size % alignment) % alignment;
  need(missing <= (std::numeric_limits<Index>::max)() - size, where, rule,
       {{"size", size}, {"alignment", alignment}});
  return size + missing;
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_DETAIL_CHOICES_HPP
