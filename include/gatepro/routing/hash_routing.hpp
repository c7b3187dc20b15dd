// SPDX-License-Identifier: MIT
// Stage: experts by the id of the token in the vocabulary, from a table (Hash Layers, Roller et al.
// 2021, arXiv 2106.04426).
#ifndef GATEPRO_ROUTING_HASH_ROUTING_HPP
#define GATEPRO_ROUTING_HASH_ROUTING_HPP

#include <cstdint>
#include <vector>

#include "gatepro/core/choices.hpp"

namespace gatepro {
inline namespace GATEPRO_ABI {

/// The experts of each token of a vocabulary: V x K ids, checked once. It owns them. Reading is
/// thread-safe.
class HashTable {
 public:
  /// Copies expert_ids_VK: V x K ids in [0, num_experts), distinct in each row; -1 for none. Throws
  /// Error for shapes and ids. Allocates.
  HashTable(Index num_experts, StridedView<const std::int32_t> expert_ids_VK)
      : num_experts_(num_experts), top_k_(expert_ids_VK.cols) {
    const detail::Checks checks("HashTable");
    checks.num_experts(num_experts);
    checks.top_k(top_k_, num_experts);
    checks.strided("expert_ids_VK", expert_ids_VK, expert_ids_VK.rows, top_k_);
    std::vector<Index> last_row_E(static_cast<std::size_t>(num_experts));
    detail::check_distinct_choices(checks, "expert_ids_VK", Choices{expert_ids_VK}, num_experts,
                                   last_row_E.data());
    ids_.resize(static_cast<std::size_t>(
        checks.product("V * K within the address space", expert_ids_VK.rows, top_k_)));
    auto id = ids_.begin();
    for (Index v = 0; v < expert_ids_VK.rows; ++v) {
      for (Index j = 0; j < top_k_; ++j) *id++ = expert_ids_VK(v, j);
    }
  }

  /// V: tokens have ids from 0 to V - 1.
  Index vocabulary() const { return static_cast<Index>(ids_.size()) / top_k_; }
  /// E.
  Index num_experts() const { return num_experts_; }
  /// K.
  Index top_k() const { return top_k_; }
  /// The ids, V x K.
  MatrixView<const std::int32_t> expert_ids() const {
    return {detail::elements(ids_.data(), static_cast<Index>(ids_.size())), vocabulary(), top_k_};
  }

 private:
  Index num_experts_;
  Index top_k_;
  std::vector<std::int32_t> ids_;
};

}  // namespace GATEPRO_ABI

namespace detail {
inline namespace GATEPRO_ABI {

/// Ids of tokens that are not padding stand in the table.
inline void check_token_ids(const Checks& checks, const HashTable& table,
                            const VectorView<const std::int64_t>& token_ids_T,
                            const VectorView<const std::uint8_t>& is_padding_T, Index tokens) {
  checks.vector("token_ids_T", token_ids_T, tokens);
  for (Index t = 0; t < tokens; ++t) {
    const std::int64_t id = token_ids_T[t];
    if (is_masked(is_padding_T, t) || (id >= 0 && id < table.vocabulary())) continue;
    checks.refuse("token_ids_T", "every id in [0, vocabulary) of the hash table",
                  {{"id", id}, {"token", t}, {"vocabulary", table.vocabulary()}});
  }
}

/// hash_ids on checked arguments.
template <class Id>
void load_hash_ids(const HashTable& table, const VectorView<const std::int64_t>& token_ids_T,
                   const VectorView<const std::uint8_t>& is_padding_T,
                   const StridedView<Id>& expert_ids_TK) {
  const MatrixView<const std::int32_t> ids_VK = table.expert_ids();
  for (Index t = 0; t < expert_ids_TK.rows; ++t) {
    const bool padding = is_masked(is_padding_T, t);
    for (Index j = 0; j < expert_ids_TK.cols; ++j) {
      const std::int32_t id = padding ? -1 : ids_VK(index_of(token_ids_T[t]), j);
      expert_ids_TK(t, j) = static_cast<Id>(id);
    }
  }
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// expert_ids_TK(t, j) = what the table has for the token with id token_ids_T[t]; -1 for padding.
///
/// weigh_choices turns these ids and the logits into weights, renormalised or not, as torchtitan,
/// Megatron-LM and DeepSeek-V4 do. token_ids_T: T ids in [0, V); those of padding may be anything.
/// is_padding_T: T, nonzero for padding, or not given. expert_ids_TK: T x K, overwritten; any
/// strides. Throws Error for shapes and ids, before any write. No allocation. Thread-safe.
template <class Id>
void hash_ids(const HashTable& table, VectorView<const std::int64_t> token_ids_T,
              VectorView<const std::uint8_t> is_padding_T, StridedView<Id> expert_ids_TK) {
  detail::check_id_type<Id>();
  const detail::Checks checks("hash_ids");
  const Index tokens = expert_ids_TK.rows;
  checks.optional_vector("is_padding_T", is_padding_T, tokens);
  detail::check_token_ids(checks, table, token_ids_T, is_padding_T, tokens);
  checks.strided("expert_ids_TK", expert_ids_TK, tokens, table.top_k());
  checks.overlaps(
      detail::output("expert_ids_TK", expert_ids_TK), detail::input("token_ids_T", token_ids_T),
      detail::input("is_padding_T", is_padding_T), detail::input("table", table.expert_ids()));
  detail::load_hash_ids(table, token_ids_T, is_padding_T, expert_ids_TK);
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_ROUTING_HASH_ROUTING_HPP
