// SPDX-License-Identifier: MIT
// How close the choice of experts is, and how large a penalty has to be to change it.
#ifndef GATEPRO_METRICS_MARGINS_HPP
#define GATEPRO_METRICS_MARGINS_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "gatepro/core/overlap.hpp"
#include "gatepro/metrics/log_bins.hpp"
#include "gatepro/metrics/tally.hpp"
#include "gatepro/routing/active_competition.hpp"

namespace gatepro {

/// The routing that margins are of: plain top-k of the logits, and who would compete.
struct MarginRule {
  Index top_k = 0;                       ///< K: experts per token, 1 <= K <= E.
  TieRule ties = TieRule::nobody_loses;  ///< Who loses among equals.
};

namespace detail {
inline namespace GATEPRO_ABI {

/// Where things stand among the integers of MarginCounts.
struct MarginLayout {
  static constexpr Index tokens = 0;
  static constexpr Index with_margin = 1;
  static constexpr Index to_change = 2;
  static constexpr Index margins = 3;
  static constexpr Index relatives = margins + LogBins::count;
  static constexpr Index lambdas = relatives + LogBins::count;
  static constexpr Index size = lambdas + LogBins::count;
};

/// The lambda that exceeds `rank` of the least lambdas in each bin. The first bin holds exact ties,
/// which any lambda breaks that the logits notice: half of what 99.9 % of the others need, or 1
/// where there are no others.
template <class Count>
double lambda_of_rank(const Count* lambdas_B, double rank) {
  const auto ties = static_cast<double>(lambdas_B[0]);
  if (!(rank > 0 && rank <= ties)) return quantile(lambdas_B, rank);
  double others = 0;
  for (Index b = 1; b < LogBins::count; ++b) others += static_cast<double>(lambdas_B[b]);
  return others > 0 ? quantile(lambdas_B, ties + others / 1000) / 2 : 1;
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// Distributions over tokens of three numbers; count_margins fills them. Tokens of any
/// micro-batches, layers and ranks may be summed.
///
/// * The margin l_(k) - l_(k+1) between the last expert that plain top-k of the logits selects and
///   the first that it does not. A gap that is small everywhere makes routing jump between steps.
/// * The relative margin: the same over the larger magnitude of the two logits. Below the relative
///   step of a format (2^-8 for bfloat16) logits of that format don't tell the two apart.
/// * The least lambda that changes a token's set: the lowest logit of a selected loser, minus the
///   highest of a survivor that is not selected. All losers pay alike, so this is where the first
///   selected loser falls behind a survivor, and with any larger lambda the set stays changed.
///   There is none if no selected expert loses, or no other survives.
///
/// Each is a histogram of bins 6 to 12 % wide. Quantiles and shares take numbers for evenly spread
/// within a bin.
class MarginCounts : public Tally<MarginCounts> {
 public:
  static constexpr const char* name = "MarginCounts";  ///< In messages.

  /// Nothing counted.
  MarginCounts() : Tally(Layout::size) {}

  /// Tokens that were looked at.
  std::int64_t tokens() const { return *at(Layout::tokens); }
  /// Of these, those that have a margin: K < E, and both logits are finite.
  std::int64_t tokens_with_margin() const { return *at(Layout::with_margin); }
  /// Those whose set some lambda changes, as elimination does.
  std::int64_t tokens_to_change() const { return *at(Layout::to_change); }

  /// The margin below which a share `q` of the margins lies, in units of the logits; 0 without any.
  /// Throws Error unless 0 <= q <= 1. Cost of this and the following: some 650 additions.
  double margin(double q) const { return quantile_of(margins(), q, tokens_with_margin()); }
  /// The same of the relative margins.
  double relative_margin(double q) const {
    return quantile_of(relatives(), q, tokens_with_margin());
  }

  /// The lambda that changes the sets of a share of the tokens: infinity if elimination changes
  /// fewer. Where more than that are exact ties, which logits of 16 bits have, it breaks all of
  /// them, and not much else. Throws Error unless 0 <= share <= 1.
  double lambda_for_share(double share) const {
    check_share(share);
    const double rank = share * static_cast<double>(tokens());
    if (rank > static_cast<double>(tokens_to_change())) {
      return std::numeric_limits<double>::infinity();
    }
    return detail::lambda_of_rank(lambdas(), rank);
  }
  /// The share of the tokens whose set a lambda >= 0 changes; 0 without tokens.
  double changed_share(double lambda) const {
    detail::need(lambda >= 0, name, "lambda >= 0", {{"lambda", lambda}});
    return detail::share_of(detail::rank_of(lambdas(), lambda), static_cast<double>(tokens()));
  }
  /// The share that elimination changes: what no lambda exceeds.
  double largest_share() const { return detail::share_of(tokens_to_change(), tokens()); }

  /// The bins: their number, and where each starts; one ends where the next starts, the last
  /// nowhere.
  static constexpr Index bins() { return detail::LogBins::count; }
  /// Where bin `b` starts.
  static double bin_begin(Index b) { return detail::LogBins::begin_of(b); }
  /// The margins in each bin.
  VectorView<const std::int64_t> margin_histogram() const { return {margins(), bins()}; }
  /// The relative margins in each bin.
  VectorView<const std::int64_t> relative_histogram() const { return {relatives(), bins()}; }
  /// The least lambdas in each bin.
  VectorView<const std::int64_t> lambda_histogram() const { return {lambdas(), bins()}; }

 private:
  using Layout = detail::MarginLayout;

  static void check_share(double share) {
    detail::need(share >= 0 && share <= 1, name, "0 <= share <= 1", {{"share", share}});
  }
  static double quantile_of(const std::int64_t* counts_B, double q, std::int64_t tokens) {
    check_share(q);
    return detail::quantile(counts_B, q * static_cast<double>(tokens));
  }
  const std::int64_t* margins() const { return at(Layout::margins); }
  const std::int64_t* relatives() const { return at(Layout::relatives); }
  const std::int64_t* lambdas() const { return at(Layout::lambdas); }
};

}  // namespace GATEPRO_ABI

namespace detail {
inline namespace GATEPRO_ABI {

/// The scratch of one worker.
template <class A>
struct MarginGroup {
  MarginGroup(Arena& arena, Index experts, Index top_k)
      : group(carve_group<A>(arena, experts, (std::min)(top_k + 1, experts))),
        counts(arena.take<std::int64_t>(MarginLayout::size)) {}
  RoutingGroup<A> group;
  std::int64_t* counts;  ///< By MarginLayout.
};

/// Counts the margin of one token.
template <class A>
void count_margin(const RoutingGroup<A>& group, Index lane, Index top_k, std::int64_t* counts) {
  const Index lanes = kernels<A>().lanes;
  const A last = value_of<A>(group.top_keys_KL[(top_k - 1) * lanes + lane]);
  const A next = value_of<A>(group.top_keys_KL[top_k * lanes + lane]);
  if (!is_finite(last) || !is_finite(next)) return;
  const auto last_logit = static_cast<double>(last), next_logit = static_cast<double>(next);
  const double margin = last_logit - next_logit;
  const double magnitude = (std::max)((std::abs)(last_logit), (std::abs)(next_logit));
  ++counts[MarginLayout::with_margin];
  ++counts[MarginLayout::margins + LogBins::bin_of(margin)];
  ++counts[MarginLayout::relatives + LogBins::bin_of(share_of(margin, magnitude))];
}

/// The key of the lowest logit among the losers that a token selected, or NaN's.
template <class A>
typename Order<A>::Key lowest_selected_loser(const RoutingGroup<A>& group, Index lane,
                                             Index top_k) {
  const Index lanes = kernels<A>().lanes;
  for (Index j = top_k; j-- > 0;) {
    const Index e = static_cast<Index>(group.ids_KL[j * lanes + lane]);
    if (group.ranked_EL[e * lanes + lane] == Order<A>::loser) {
      return group.top_keys_KL[j * lanes + lane];
    }
  }
  return Order<A>::nan;
}

/// Counts the least lambdas of the tokens of a group that count. Overwrites ranked_EL, which holds
/// the keys with losers, the other selection and nonfinite_L.
template <class A, class CountsToken>
void count_lambdas(const RoutingGroup<A>& group, Index tokens, Index experts, Index top_k,
                   std::int64_t* counts, const CountsToken& counts_token) {
  using O = Order<A>;
  const Index lanes = kernels<A>().lanes;
  auto* losers_L = group.nonfinite_L;
  for (Index lane = 0; lane < lanes; ++lane) {
    losers_L[lane] = lowest_selected_loser(group, lane, top_k);
    for (Index i = lane; i < top_k * lanes; i += lanes) {
      group.ranked_EL[static_cast<Index>(group.ids_KL[i]) * lanes + lane] = O::nan;
    }
  }
  kernels<A>().top_k(group.ranked_EL, experts, 1, group.other());
  for (Index lane = 0; lane < tokens; ++lane) {
    const A loser = value_of<A>(losers_L[lane]);
    const A survivor = value_of<A>(group.other_keys_KL[lane]);
    if (!counts_token(lane) || !is_finite(loser) || !is_finite(survivor)) continue;
    ++counts[MarginLayout::to_change];
    const double lambda = static_cast<double>(loser) - static_cast<double>(survivor);
    ++counts[MarginLayout::lambdas + LogBins::bin_of(lambda)];
  }
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// Bytes of workspace for count_margins.
template <class A>
std::size_t count_margins_workspace_bytes(Index num_experts, Index top_k, Workers workers = 1) {
  detail::Checks("count_margins").query_experts(num_experts);
  return detail::measure([&](detail::Arena& arena) {
    const auto carve = [&](detail::Arena& a) {
      return detail::MarginGroup<A>(a, num_experts, top_k);
    };
    detail::PerWorker(arena, workers, carve);
  });
}

/// counts += the margins of T tokens.
///
/// logits_TE: T x E, before any penalty. rivals: who competes, or RivalTable() for nobody, which
/// leaves the lambdas out. is_padding_T: T bytes, nonzero for padding, or not given. The experts
/// are those of plain top-k by logit: a bias or a group limit has no say, and score functions,
/// which are monotone, change nothing.
///
/// Throws Error for shapes, top_k, rivals of other experts, a workspace below
/// count_margins_workspace_bytes(E, K, executor.workers()), or a sum beyond int64, before any
/// change. Cost: a selection of K + 1 of the experts and one of 1, 1.4 to 2.5 times that of a plain
/// one. No allocation. Counts do not depend on the executor. Calls with other `counts` may run
/// beside it.
template <class L, class Executor = SerialExecutor>
void count_margins(MatrixView<L> logits_TE, const RivalTable& rivals, const MarginRule& rule,
                   VectorView<const std::uint8_t> is_padding_T, MarginCounts& counts,
                   Workspace workspace, const Executor& executor = {}) {
  using A = detail::value_t<L>;
  detail::check_accumulator<A>();
  const detail::Checks checks("count_margins");
  const Index tokens = logits_TE.rows;
  const Index experts = logits_TE.cols;
  const MatrixView<const A> all_TE = logits_TE;
  checks.num_experts(experts);
  checks.top_k(rule.top_k, experts);
  checks.matrix("logits_TE", logits_TE, tokens, experts);
  checks.optional_vector("is_padding_T", is_padding_T, tokens);
  Competition losers = Competition::eliminate();
  losers.ties = rule.ties;
  if (rivals.num_experts() == 0) losers = Competition::off();
  const auto competition = detail::checked_competition<A>(checks, losers, rivals, experts);
  checks.overlaps(detail::output("workspace", workspace), detail::input("logits_TE", logits_TE),
                  detail::input("is_padding_T", is_padding_T));
  const int workers = checks.workers(executor);
  detail::Arena arena(checks.where(), workspace,
                      count_margins_workspace_bytes<A>(experts, rule.top_k, workers));

  const auto carve = [&](detail::Arena& a) {
    return detail::MarginGroup<A>(a, experts, rule.top_k);
  };
  const detail::PerWorker scratch(arena, workers, carve);
  for (int worker = 0; worker < workers; ++worker) {
    std::fill_n(scratch(worker).counts, detail::MarginLayout::size, std::int64_t{0});
  }
  const int busy =
      detail::useful_workers(executor, workers, {2 * detail::routing_work, tokens, experts});
  detail::for_each_group<A>(tokens, executor, busy, [&](int worker, const auto& range) {
    const auto [group, sums] = scratch(worker);
    detail::load_keys(detail::logit_rows(all_TE, range), range.count, experts, group.keys_EL);
    detail::kernels<A>().top_k(group.keys_EL, experts, (std::min)(rule.top_k + 1, experts),
                               group.top());
    const auto counts_token = [&](Index lane) {
      return !detail::is_masked(is_padding_T, range.first + lane);
    };
    for (Index lane = 0; lane < range.count; ++lane) {
      if (!counts_token(lane)) continue;
      ++sums[detail::MarginLayout::tokens];
      if (rule.top_k < experts) detail::count_margin(group, lane, rule.top_k, sums);
    }
    if (!competition.active) return;
    detail::compete(group, experts, competition);
    detail::count_lambdas(group, range.count, experts, rule.top_k, sums, counts_token);
  });
  std::int64_t* const sums = scratch(0).counts;
  for (int worker = 1; worker < workers; ++worker) {
    for (Index i = 0; i < detail::MarginLayout::size; ++i) sums[i] += scratch(worker).counts[i];
  }
  counts.merge({sums, detail::MarginLayout::size});
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_METRICS_MARGINS_HPP
