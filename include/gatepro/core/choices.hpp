// SPDX-License-Identifier: MIT
// The (token, choice) pairs of a routing: which of them count, in which order, and per expert.
#ifndef GATEPRO_CORE_CHOICES_HPP
#define GATEPRO_CORE_CHOICES_HPP

#include <algorithm>
#include <cstdint>
#include <limits>

#include "gatepro/core/checks.hpp"

namespace gatepro {

/// The choices of a routing: (token, choice) pairs. Those without an expert, those of masked
/// tokens, whose ids may be anything, and those that were dropped do not count.
template <class Id>
struct Choices {
  StridedView<Id> expert_ids_TK{};  ///< T x K: -1 for none, which is the largest of unsigned types.
  VectorView<const std::uint8_t> is_padding_T{};  ///< T, or not given; nonzero masks a token.
  StridedView<const std::uint8_t> kept_TK{};      ///< T x K, or not given; zero drops a choice.
};
/// `Choices{ids, mask, kept}` knows the type of the ids.
template <class Id>
Choices(StridedView<Id>, VectorView<const std::uint8_t> = {}, StridedView<const std::uint8_t> = {})
    -> Choices<Id>;
/// The same for a row-major view.
template <class Id>
Choices(MatrixView<Id>, VectorView<const std::uint8_t> = {}, StridedView<const std::uint8_t> = {})
    -> Choices<Id>;

namespace detail {
inline namespace GATEPRO_ABI {

inline bool is_masked(const VectorView<const std::uint8_t>& is_padding_T, Index t) {
  return is_padding_T.given() && is_padding_T[t] != 0;
}

/// True unless the id, or row of a plan, says "none": -1, or the largest value of an unsigned type.
template <class Id>
bool is_some(Id id) {
  return id != static_cast<value_t<Id>>(-1);
}

template <class Id>
bool counts(const Choices<Id>& choices, Index t, Index j) {
  return !is_masked(choices.is_padding_T, t) && is_some(choices.expert_ids_TK(t, j)) &&
         (!choices.kept_TK.given() || choices.kept_TK(t, j) != 0);
}

/// The choices before any of them was dropped.
template <class Id>
Choices<Id> before_drops(const Choices<Id>& choices) {
  return {choices.expert_ids_TK, choices.is_padding_T};
}

/// The choices of `count` tokens from `first`.
template <class Id>
Choices<Id> middle_choices(const Choices<Id>& choices, Index first, Index count) {
  const auto& is_padding_T = choices.is_padding_T;
  Choices<Id> middle{choices.expert_ids_TK.middle_rows(first, count),
                     {},
                     choices.kept_TK.middle_rows(first, count)};
  if (is_padding_T.given()) middle.is_padding_T = {is_padding_T.data + first, count};
  return middle;
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
template <class Id, class Count>
void count_choices(const Choices<Id>& choices, Index experts, Count* count_E) {
  std::fill_n(count_E, experts, Count{0});
  for_each_choice(choices, false, [&](Index, Index, Index e) { ++count_E[e]; });
}

/// Views of the right shapes.
template <class Id>
void check_choice_views(const Checks& checks, const Choices<Id>& choices, Index tokens,
                        Index top_k) {
  check_id_type<value_t<Id>>();
  checks.strided("expert_ids_TK", choices.expert_ids_TK, tokens, top_k);
  checks.optional_strided("kept_TK", choices.kept_TK, tokens, top_k);
  checks.optional_vector("is_padding_T", choices.is_padding_T, tokens);
}

/// Every id that the caller supplies is in range, or none.
template <class Id>
void check_choices(const Checks& checks, const char* name, const Choices<Id>& choices,
                   Index experts) {
  const StridedView<Id>& ids_TK = choices.expert_ids_TK;
  for (Index t = 0; t < ids_TK.rows; ++t) {
    if (is_masked(choices.is_padding_T, t)) continue;
    for (Index j = 0; j < ids_TK.cols; ++j) {
      const auto id = ids_TK(t, j);
      const bool in_range =
          !is_some(id) || static_cast<std::uint64_t>(id) < static_cast<std::uint64_t>(experts);
      if (!in_range) {
        checks.refuse(name, "every id in [0, num_experts), or -1 for none",
                      {{"id", id}, {"row", t}, {"column", j}, {"num_experts", experts}});
      }
    }
  }
}

/// The same, and no token holds an expert twice. `last_token_E` is scratch.
template <class Id>
void check_distinct_choices(const Checks& checks, const char* name, const Choices<Id>& choices,
                            Index experts, Index* last_token_E) {
  check_choices(checks, name, choices, experts);
  std::fill_n(last_token_E, experts, Index{-1});
  for_each_choice(before_drops(choices), false, [&](Index t, Index j, Index e) {
    if (last_token_E[e] == t) {
      checks.refuse(name, "distinct ids in each row", {{"id", e}, {"row", t}, {"column", j}});
    }
    last_token_E[e] = t;
  });
}

/// The least multiple of `alignment` that is not below `size`.
inline Index align_up(const Checks& checks, const char* rule, Index size, Index alignment) {
  const Index missing = (alignment - size % alignment) % alignment;
  checks.need(missing <= (std::numeric_limits<Index>::max)() - size, rule,
              {{"size", size}, {"alignment", alignment}});
  return size + missing;
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_CORE_CHOICES_HPP
