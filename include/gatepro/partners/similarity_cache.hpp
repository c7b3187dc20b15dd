// SPDX-License-Identifier: MIT
// Keeps the similarity matrix and the partners of one router, and knows when they are due.
#ifndef GATEPRO_PARTNERS_SIMILARITY_CACHE_HPP
#define GATEPRO_PARTNERS_SIMILARITY_CACHE_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "gatepro/core/emptied.hpp"
#include "gatepro/partners/lazy_search.hpp"
#include "gatepro/partners/orthogonality_loss.hpp"
#include "gatepro/partners/search.hpp"
#include "gatepro/partners/similar_pairs.hpp"

namespace gatepro {
inline namespace GATEPRO_ABI {

/// The similarity S of the router weights and the partners that follow from it (GatePro eq. 5-6),
/// recomputed when a schedule says so. `A` is the type of the similarities.
///
/// Refreshing and set_partners are the only writers: they must not run beside any other call on
/// the same cache. They leave the old state whole if they throw. Const calls may run concurrently.
/// Memory: one E x E matrix once refreshed, if Pairing::keeps_similarity says so or the schedule is
/// lazy, and the scratch of the last refresh, about two matrices E x H. One that was moved from
/// holds nothing, and refuses to work.
template <class A>
class SimilarityCache {
 public:
  /// A cache without partners. Throws Error for pairing settings that E experts do not allow, and
  /// as set_schedule does.
  SimilarityCache(Index num_experts, const Pairing& pairing, const RefreshSchedule& schedule)
      : experts_(num_experts), pairing_(pairing) {
    detail::check_accumulator<A>();
    detail::Checks("SimilarityCache").num_experts(num_experts);
    detail::check_pairing("SimilarityCache", pairing, num_experts);
    set_schedule(schedule);
  }

  /// Changes the schedule from the next question on. Throws Error for an interval below 1, and for
  /// a lazy schedule where Pairing::keep_similarity asks for S.
  void set_schedule(const RefreshSchedule& schedule) {
    check_not_moved_from();
    detail::need(schedule.interval >= 1, "SimilarityCache", "refresh interval >= 1",
                 {{"interval", schedule.interval}});
    detail::need(!schedule.lazy || !pairing_.keep_similarity.value_or(false), "SimilarityCache",
                 "keep_similarity not true if the schedule is lazy, which keeps no current S",
                 {{"keep_similarity", 1}, {"lazy", 1}});
    schedule_ = schedule;
  }
  /// E; 0 once moved from.
  Index num_experts() const { return experts_; }
  /// The schedule.
  const RefreshSchedule& schedule() const { return schedule_; }
  /// The choice of partners.
  const Pairing& pairing() const { return pairing_; }

  /// True once there are partners, from a refresh or from set_partners.
  bool has_partners() const { return state_.rivals.num_experts() != 0; }
  /// The step of the last refresh or set_partners; meaningless before.
  std::int64_t last_refresh_step() const { return last_step_; }
  /// Optimizer steps since then, at `step`, capped to the range of int64; meaningless before.
  std::int64_t age(std::int64_t step) const {
    using Limits = std::numeric_limits<std::int64_t>;
    if (last_step_ < 0 && step > (Limits::max)() + last_step_) return (Limits::max)();
    if (last_step_ > 0 && step < (Limits::min)() + last_step_) return (Limits::min)();
    return step - last_step_;
  }

  /// True if a refresh at `step` would recompute: every n steps, after going back in steps, or, if
  /// frozen, while there are no partners. The same step is due once.
  bool is_due(std::int64_t step) const {
    check_not_moved_from();
    if (schedule_.kind == RefreshSchedule::Kind::on_demand) return false;
    if (!has_partners()) return true;
    if (schedule_.kind == RefreshSchedule::Kind::frozen) return false;
    // Not step - last: the difference of two int64 may overflow.
    return step < last_step_ ||
           static_cast<std::uint64_t>(step) - static_cast<std::uint64_t>(last_step_) >=
               static_cast<std::uint64_t>(schedule_.interval);
  }

  /// Recomputes from w_EH (E x H) if that is due at optimizer step `step`; true if it was. The
  /// shape is checked either way.
  template <class W, class Executor = SerialExecutor>
  bool refresh(MatrixView<W> w_EH, std::int64_t step, const Executor& executor = {}) {
    check_weights(w_EH);
    if (!is_due(step)) return false;
    refresh_now(w_EH, step, executor);
    return true;
  }

  /// Recomputes the partners, and S if it is kept, from w_EH (E x H), whatever the schedule says
  /// but for RefreshSchedule::lazy.
  ///
  /// Throws Error for the shape, and what the executor or the allocator throw. Allocates at first
  /// use, and when H grows. Cost: about E^2 H operations; if lazy, some E H while rows turn little.
  /// Bits do not depend on the executor.
  template <class W, class Executor = SerialExecutor>
  void refresh_now(MatrixView<W> w_EH, std::int64_t step, const Executor& executor = {}) {
    check_weights(w_EH);
    const MatrixView<const detail::value_t<W>> weights_EH(w_EH);
    const int workers = detail::Checks("SimilarityCache").workers(executor);
    if (is_lazy()) {
      const auto partners_EM = spare_partners();
      spare_.found = lazy_.find(weights_EH, pairing_, partners_EM, scratch_, executor, workers);
      spare_.rivals = RivalTable(partners_EM, pairing_.both_sides);
      spare_.has_similarity = false;
    } else {
      find_all(weights_EH, executor, workers);
    }
    adopt_spare(step);
  }

  /// What refresh does, and orthogonality_loss of w_EH, with the partners that then hold where the
  /// rule asks for only_partners. Partners, S and losses are the same to the bit as from one after
  /// the other; the gradient is added to dw_EH (E x H), which may be not given. Call it once a
  /// step, before the forwards: it needs no tokens.
  ///
  /// Throws Error as both do, before anything is written. Allocates as refresh does. Cost: where
  /// both look at all pairs, they share one pass over W, and the loss with its gradient adds up to
  /// two and a half times what the refresh takes; else that of both.
  template <class W, class D, class Executor = SerialExecutor>
  OrthogonalityReport refresh_with_loss(MatrixView<W> w_EH, std::int64_t step,
                                        const OrthogonalityRule& rule, MatrixView<D> dw_EH,
                                        const Executor& executor = {}) {
    const detail::Checks checks("SimilarityCache");
    check_weights(w_EH);
    detail::check_orthogonality_rule(checks, rule, experts_);
    checks.optional_matrix("dw_EH", dw_EH, experts_, w_EH.cols);
    checks.overlaps(detail::output("dw_EH", dw_EH), detail::input("w_EH", w_EH));
    const int workers = checks.workers(executor);
    if constexpr (std::is_same_v<D, A>) {
      const MatrixView<const detail::value_t<W>> weights_EH(w_EH);
      if (is_due(step) && !is_lazy() && rule.active() && !rule.only_partners) {
        const auto report = find_all_with_loss(weights_EH, rule, dw_EH, executor, workers);
        adopt_spare(step);
        return report;
      }
    }
    refresh(w_EH, step, executor);
    const auto memory = scratch_of(orthogonality_loss_workspace_bytes<D>(
        experts_, w_EH.cols, pairing_.partners_per_expert, workers));
    return orthogonality_loss(w_EH, partners(), rule, dw_EH, memory, executor);
  }

  /// Takes partners from outside: another rank, a checkpoint. partners_EM: E x m ids, i itself for
  /// "none". Afterwards S is unknown until the next refresh. Throws Error for the shape or an id
  /// out of range. Allocates. The next refresh is a full one.
  void set_partners(StridedView<const std::int32_t> partners_EM, std::int64_t step) {
    check_not_moved_from();
    detail::Checks("SimilarityCache")
        .strided("partners_EM", partners_EM, experts_, pairing_.partners_per_expert);
    spare_.rivals = RivalTable(partners_EM, pairing_.both_sides);
    spare_.partners.resize(partner_count());
    for (Index i = 0; i < partners_EM.rows; ++i) {
      for (Index m = 0; m < partners_EM.cols; ++m) {
        spare_.partners[static_cast<std::size_t>(i * partners_EM.cols + m)] = partners_EM(i, m);
      }
    }
    spare_.found = {};
    spare_.has_similarity = false;
    lazy_.forget();
    adopt_spare(step);
  }

  /// E x m ids of partners, most similar first, i itself for "none"; not given before a refresh.
  MatrixView<const std::int32_t> partners() const {
    if (!has_partners()) return {};
    return {state_.partners.data(), experts_, pairing_.partners_per_expert};
  }
  /// S, E x E; not given before a refresh, after set_partners, after a refresh under a lazy
  /// schedule, or if it is not kept.
  MatrixView<const A> similarity() const {
    if (!state_.has_similarity) return {};
    return {similarity_.data(), experts_, experts_};
  }
  /// Who competes against whom; empty before a refresh.
  const RivalTable& rivals() const { return state_.rivals; }

  /// Experts whose list of partners the last refresh or set_partners changed, from "none" at first.
  Index partners_changed() const { return partners_changed_; }
  /// Experts for which the last refresh computed similarities: E, unless it was a lazy one. 0 after
  /// set_partners.
  Index rows_recomputed() const { return state_.found.rows_recomputed; }
  /// Their sum over all refreshes.
  std::int64_t total_rows_recomputed() const { return total_rows_recomputed_; }
  /// Zero rows and non-finite rows of W at the last refresh.
  const SimilarityReport& report() const { return state_.found.report; }

  /// Mean of S_ij over all pairs i != j of finite rows; 0 if there is no pair. The paper's average
  /// pairwise similarity. Throws Error if S is unknown: see similarity(). Cost: E^2.
  double mean_pairwise_similarity() const {
    check_similarity();
    return detail::mean_cosine(
        [&](const auto& visit) { detail::for_each_pair(similarity(), visit); });
  }

  /// Mean of S_ij*(i) over the experts that have a partner; 0 if nobody has. Throws Error if S is
  /// unknown: see similarity().
  double mean_partner_similarity() const {
    check_similarity();
    return detail::mean_cosine(
        [&](const auto& visit) { detail::for_each_partner(similarity(), partners(), visit); });
  }

 private:
  /// One consistent result of a refresh.
  struct State {
    std::vector<std::int32_t> partners;
    RivalTable rivals;
    detail::Found found;
    bool has_similarity = false;
  };

  /// Replaces S without a second one: new values go to the triangle i < j, and the old S stands in
  /// the other one until all are there. If that fails, they are taken back.
  class UpperTriangle {
   public:
    explicit UpperTriangle(SimilarityCache& cache) : cache_(cache) {}
    UpperTriangle(const UpperTriangle&) = delete;
    UpperTriangle& operator=(const UpperTriangle&) = delete;
    ~UpperTriangle() { detail::mirror_triangle(cache_.kept(), committed_); }

    void commit() {
      for (Index i = 0; i < cache_.experts_; ++i) {
        cache_.kept()(i, i) = cache_.diagonal_[static_cast<std::size_t>(i)];
      }
      committed_ = true;
    }

   private:
    SimilarityCache& cache_;
    bool committed_ = false;
  };

  void check_not_moved_from() const {
    detail::need(experts_ > 0, "SimilarityCache", "a cache that was not moved from");
  }

  bool is_lazy() const { return schedule_.lazy && detail::LazySearch<A>::pays(experts_); }

  /// Where the next refresh writes partners.
  MatrixView<std::int32_t> spare_partners() {
    spare_.partners.resize(partner_count());
    return {spare_.partners.data(), experts_, pairing_.partners_per_expert};
  }

  Workspace scratch_of(std::size_t bytes) {
    scratch_.resize((std::max)(scratch_.size(), bytes));
    return scratch_;
  }

  template <class W, class Executor>
  void find_all(const MatrixView<const W>& w_EH, const Executor& executor, int workers) {
    const std::size_t needed = find_partners_workspace_bytes<W>(
        experts_, w_EH.cols, pairing_.partners_per_expert, workers);
    detail::Arena arena("SimilarityCache", scratch_of(needed), needed);
    search([&](const MatrixView<std::int32_t>& partners_EM, const detail::TileStore<A>& store) {
      const auto rows = detail::carve_cosine_rows<A>(arena, experts_, w_EH.cols);
      return detail::find_partners_with<W>(w_EH, pairing_, partners_EM, rows, arena, executor,
                                           workers, store);
    });
  }

  /// The same and the loss, both from the same tiles.
  template <class W, class Executor>
  OrthogonalityReport find_all_with_loss(const MatrixView<const W>& w_EH,
                                         const OrthogonalityRule& rule, const MatrixView<A>& dw_EH,
                                         const Executor& executor, int workers) {
    const Index m = pairing_.partners_per_expert;
    const auto carve = [&](detail::Arena& arena) {
      const auto rows = detail::carve_normed_rows<A>(arena, experts_, w_EH.cols);
      return std::pair(rows, detail::OrthogonalityPass<A>(arena, rule, rows, dw_EH, workers));
    };
    const std::size_t needed =
        detail::measure(carve) + find_partners_workspace_bytes<W>(experts_, w_EH.cols, m, workers);
    detail::Arena arena("SimilarityCache", scratch_of(needed), needed);
    const auto [rows, loss] = carve(arena);
    search([&, &rows = rows, &loss = loss](const MatrixView<std::int32_t>& partners_EM,
                                           const detail::TileStore<A>& store) {
      const auto use = [&](int worker, const detail::CosineTile<A>& tile) {
        store(worker, tile);
        loss.take(worker, tile);
      };
      return detail::find_partners_with<W>(w_EH, pairing_, partners_EM, rows, arena, executor,
                                           workers, use, loss.pairs());
    });
    return {loss.value(), spare_.found.report};
  }

  /// A full search, `find(partners_EM, store)`, to the spare state.
  template <class Find>
  void search(const Find& find) {
    const auto partners_EM = spare_partners();
    std::optional<UpperTriangle> upper;
    detail::TileStore<A> store;
    spare_.has_similarity = !schedule_.lazy && pairing_.keeps_similarity(experts_);
    if (spare_.has_similarity) {
      reserve_similarity();
      upper.emplace(*this);
      store = {kept(), diagonal_.data()};
    }
    spare_.found = {find(partners_EM, store), experts_};
    spare_.rivals = RivalTable(partners_EM, pairing_.both_sides);
    if (upper) upper->commit();
  }

  /// Memory for S and for a new diagonal.
  void reserve_similarity() {
    similarity_.resize(static_cast<std::size_t>(detail::checked_product(
        "SimilarityCache", "E * E within the address space", experts_, experts_)));
    diagonal_.resize(static_cast<std::size_t>(experts_));
  }

  MatrixView<A> kept() { return {similarity_.data(), experts_, experts_}; }

  template <class W>
  void check_weights(const MatrixView<W>& w_EH) const {
    static_assert(std::is_same_v<accumulator_t<detail::value_t<W>>, A>,
                  "gatepro: similarities are double if W is, else float");
    check_not_moved_from();
    detail::Checks("SimilarityCache").matrix("w_EH", w_EH, experts_, w_EH.cols);
  }

  void check_similarity() const {
    check_not_moved_from();
    detail::need(similarity().given(), "SimilarityCache",
                 "a similarity that a refresh has kept: see Pairing::keep_similarity");
  }

  std::size_t partner_count() const {
    return static_cast<std::size_t>(experts_ * pairing_.partners_per_expert);
  }

  /// Makes the new state the current one. Nothing here can throw.
  void adopt_spare(std::int64_t step) {
    const Index m = pairing_.partners_per_expert;
    partners_changed_ = 0;
    for (Index i = 0; i < experts_; ++i) {
      const std::int32_t* after = spare_.partners.data() + i * m;
      const auto none = [i](std::int32_t id) { return id == i; };
      const bool same = has_partners()
                            ? std::equal(after, after + m, state_.partners.data() + i * m)
                            : std::all_of(after, after + m, none);
      partners_changed_ += same ? 0 : 1;
    }
    std::swap(state_, spare_);
    total_rows_recomputed_ += rows_recomputed();
    last_step_ = step;
  }

  detail::EmptiedSize experts_;
  Pairing pairing_;
  RefreshSchedule schedule_;
  State state_;
  State spare_;  // where the next refresh writes, so that a failed one changes nothing
  std::vector<A> similarity_;  // S, if state_ has one
  std::vector<A> diagonal_;    // where the next refresh writes that of S
  std::vector<std::byte> scratch_;
  detail::LazySearch<A> lazy_;
  std::int64_t last_step_ = 0;
  std::int64_t total_rows_recomputed_ = 0;
  Index partners_changed_ = 0;
};

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_PARTNERS_SIMILARITY_CACHE_HPP
