// SPDX-License-Identifier: MIT
// Stage: the partners of each expert straight from the router's weights (GatePro eq. 5-6).
#ifndef GATEPRO_PARTNERS_SEARCH_HPP
#define GATEPRO_PARTNERS_SEARCH_HPP

#include <algorithm>
#include <cstdint>

#include "gatepro/core/checks.hpp"
#include "gatepro/partners/cosine_similarity.hpp"
#include "gatepro/partners/pairing.hpp"

namespace gatepro {

/// Where find_partners writes.
template <class A>
struct PartnerTables {
  /// E x m with m = Pairing::partners_per_expert: see pair_partners.
  MatrixView<std::int32_t> partners_EM{};
  MatrixView<A> similarity_EE{};  ///< E x E, or not given: what cosine_similarity writes.
};

namespace detail {
inline namespace GATEPRO_ABI {

/// The best m partners so far of each expert, in any order of arrival.
template <class A>
class PartnerLists {
 public:
  using Key = typename Order<A>::Key;

  PartnerLists(Arena& arena, Index experts, Index m)
      : enough_E_(arena.take<Key>(experts)),
        keys_EM_(arena.take<Key>(experts, m), experts, m),
        ids_EM_(arena.take<std::int32_t>(experts, m), experts, m) {}

  /// "None" everywhere: the expert itself, with a key that every candidate beats.
  void clear(Key least) const {
    for (Index i = 0; i < ids_EM_.rows; ++i) {
      enough_E_[i] = least;
      std::fill_n(keys_EM_.row(i), keys_EM_.cols, Order<A>::empty);
      std::fill_n(ids_EM_.row(i), ids_EM_.cols, static_cast<std::int32_t>(i));
    }
  }

  /// False if a similarity of this key makes no partner of i.
  bool may_enter(Index i, Key key) const { return key >= enough_E_[i]; }

  /// Gives expert j, whose similarity may enter, a place among the partners of i, unless all of
  /// them have the same one and lower ids.
  void enter(Index i, Key key, Index j) const {
    Key* keys = keys_EM_.row(i);
    std::int32_t* ids = ids_EM_.row(i);
    const Index m = ids_EM_.cols;
    const auto key_at = [keys](Index place) { return keys[place]; };
    const Index at = place_among_partners(key, j, ids, m, key_at);
    if (at == m) return;
    std::copy_backward(keys + at, keys + m - 1, keys + m);
    std::copy_backward(ids + at, ids + m - 1, ids + m);
    keys[at] = key;
    ids[at] = static_cast<std::int32_t>(j);
    enough_E_[i] = (std::max)(enough_E_[i], keys[m - 1]);
  }

  /// Takes over what another worker found.
  void merge(const PartnerLists& other) const {
    for (Index i = 0; i < ids_EM_.rows; ++i) {
      for (Index place = 0; place < ids_EM_.cols; ++place) {
        if (other.ids_EM_(i, place) == i) break;
        enter(i, other.keys_EM_(i, place), other.ids_EM_(i, place));
      }
    }
  }

  MatrixView<std::int32_t> ids() const { return ids_EM_; }

 private:
  Key* enough_E_;  // the key of the last of m partners, or the least that makes one
  MatrixView<Key> keys_EM_;
  MatrixView<std::int32_t> ids_EM_;
};

/// Offers the two experts of each pair of a tile to each other.
template <class A>
void enter_pairs(const CosineTile<A>& tile, Index experts, const PartnerLists<A>& lists) {
  for (Index i = tile.first_expert; i < tile.end_expert(); ++i) {
    for (Index j = i + 1; j < experts; ++j) {
      const auto key = key_of(tile(i, j));
      if (lists.may_enter(i, key)) lists.enter(i, key, j);
      if (lists.may_enter(j, key)) lists.enter(j, key, i);
    }
  }
}

template <class A>
struct CarveLists {
  Index experts;
  Index m;
  PartnerLists<A> operator()(Arena& arena) const { return PartnerLists<A>(arena, experts, m); }
};

/// The search, on checked arguments. `use(worker, tile)` gets each tile of S, `rows` are filled.
/// partners_EM is written last.
template <class W, class A, class Executor, class Use>
SimilarityReport find_partners_with(const MatrixView<const W>& w_EH, const Pairing& pairing,
                                    const MatrixView<std::int32_t>& partners_EM,
                                    const CosineRows<A>& rows, Arena& arena,
                                    const Executor& executor, int workers, const Use& use,
                                    CosinePairs pairs = CosinePairs::once) {
  const Index experts = w_EH.rows;
  const Index m = pairing.partners_per_expert;
  const auto least = least_partner_key<A>(pairing);
  const PerWorker lists(arena, workers, CarveLists<A>{experts, m});
  for (int worker = 0; worker < workers; ++worker) lists(worker).clear(least);
  for_each_cosine_tile<W>(
      w_EH, rows, arena, executor, workers,
      [&](int worker, const CosineTile<A>& tile) {
        use(worker, tile);
        enter_pairs(tile, experts, lists(worker));
      },
      pairs);
  for (int worker = 1; worker < workers; ++worker) lists(0).merge(lists(worker));
  const auto ids_EM = lists(0).ids();
  for (Index i = 0; i < experts; ++i) std::copy_n(ids_EM.row(i), m, partners_EM.row(i));
  return similarity_report(rows);
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// Bytes of workspace for find_partners of E x H weights and m partners per expert.
template <class W>
std::size_t find_partners_workspace_bytes(Index num_experts, Index hidden_size, Index m,
                                          Workers workers = 1) {
  detail::Checks("find_partners").query_experts(num_experts);
  using A = accumulator_t<W>;
  return detail::measure([&](detail::Arena& arena) {
    detail::PerWorker(arena, workers, detail::CarveLists<A>{num_experts, m});
    const std::size_t rows =
        cosine_similarity_workspace_bytes<W>(num_experts, hidden_size, workers);
    arena.take<std::byte>(static_cast<Index>(rows));
  });
}

/// The partners that pair_partners finds in the S of cosine_similarity, found while a tile of S is
/// in cache; S itself is written only if asked for.
///
/// w_EH: E x H router weights. `out` is overwritten.
///
/// Throws Error on settings, shapes, strides, nulls or a workspace that do not fit, before any
/// write. Cost: about E^2 H operations and some E^2 comparisons, no allocation. Results do not
/// depend on the executor, nor on whether S is written.
template <class W, class Executor = SerialExecutor>
SimilarityReport find_partners(MatrixView<W> w_EH, const Pairing& pairing,
                               const PartnerTables<accumulator_t<detail::value_t<W>>>& out,
                               Workspace workspace, const Executor& executor = {}) {
  using Weight = detail::value_t<W>;
  using A = accumulator_t<Weight>;
  const detail::Checks checks("find_partners");
  const Index experts = w_EH.rows;
  const Index m = pairing.partners_per_expert;
  detail::check_similarity_weights(checks, w_EH);
  detail::check_pairing(checks, pairing, experts);
  checks.matrix("partners_EM", out.partners_EM, experts, m);
  checks.optional_matrix("similarity_EE", out.similarity_EE, experts, experts);
  checks.overlaps(detail::output("partners_EM", out.partners_EM),
                  detail::output("similarity_EE", out.similarity_EE),
                  detail::output("workspace", workspace), detail::input("w_EH", w_EH));
  const int workers = checks.workers(executor);
  detail::Arena arena(checks.where(), workspace,
                      find_partners_workspace_bytes<Weight>(experts, w_EH.cols, m, workers));

  const auto rows = detail::carve_cosine_rows<A>(arena, experts, w_EH.cols);
  return detail::find_partners_with<Weight>(MatrixView<const Weight>(w_EH), pairing,
                                            out.partners_EM, rows, arena, executor, workers,
                                            detail::TileStore<A>{out.similarity_EE});
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_PARTNERS_SEARCH_HPP
