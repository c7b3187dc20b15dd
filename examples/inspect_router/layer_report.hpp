// SPDX-License-Identifier: MIT
// What is to be said about one router. All numbers come from the library.
#ifndef INSPECT_ROUTER_LAYER_REPORT_HPP
#define INSPECT_ROUTER_LAYER_REPORT_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <gatepro/gatepro.hpp>
#include <gatepro/metrics.hpp>
#include <gatepro/spectral_entropy.hpp>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "clusters.hpp"
#include "trace.hpp"
#include "train_moe/random.hpp"

namespace inspect_router {

/// Similarities of a router's rows, and whom each expert would compete with.
struct Likeness {
  RowMatrix<float> similarity_EE;
  std::vector<std::int32_t> partner_E;  ///< The expert itself: it has none.
  std::vector<double> with_partner_E;   ///< NaN without a partner.
  gatepro::SimilarityMetrics pairs, partners;
  gatepro::PartnerGraph graph;
  std::vector<std::int64_t> in_degree_E;
};

/// The spectral entropy of similarities, in nats: ln E if no direction is shared.
inline double spectral_entropy(const Likeness& likeness) {
  return gatepro::spectral_entropy(gatepro::view(likeness.similarity_EE));
}

inline Likeness likeness(const RowMatrix<float>& w_EH) {
  const Index experts = w_EH.rows();
  gatepro::SimilarityCache<float> cache(experts, {}, {});
  cache.refresh_now(gatepro::view(w_EH), 0);
  Likeness result;
  result.similarity_EE = RowMatrix<float>::Map(cache.similarity().data, experts, experts);
  result.pairs = gatepro::pairwise_similarity(cache.similarity());
  result.partners = gatepro::partner_similarity(cache.similarity(), cache.partners());
  result.in_degree_E.resize(static_cast<std::size_t>(experts));
  result.graph = gatepro::partner_graph(cache.partners(), result.in_degree_E);
  for (Index e = 0; e < experts; ++e) {
    const std::int32_t partner = cache.partners()(e, 0);
    result.partner_E.push_back(partner);
    result.with_partner_E.push_back(
        partner == e ? std::nan("") : static_cast<double>(result.similarity_EE(e, partner)));
  }
  return result;
}

/// Routers of the same shape with independent normal weights: what chance alone gives.
struct RandomRouters {
  static constexpr int draws = 8;
  std::vector<double> with_partner;  ///< Of all draws.
  double mean_with_partner = 0, largest = 0, mean_pair = 0;
  double spectral_entropy = 0;  ///< Of the first draw.
};

inline RandomRouters random_routers(Index experts, Index hidden) {
  RandomRouters result;
  for (int draw = 0; draw < RandomRouters::draws; ++draw) {
    train_moe::Random random(static_cast<std::uint64_t>(draw), train_moe::Stream::parameters);
    RowMatrix<float> w_EH(experts, hidden);
    for (Index i = 0; i < w_EH.size(); ++i) w_EH.data()[i] = static_cast<float>(random.normal());
    const Likeness drawn = likeness(w_EH);
    result.with_partner.insert(result.with_partner.end(), drawn.with_partner_E.begin(),
                               drawn.with_partner_E.end());
    if (draw == 0) result.spectral_entropy = spectral_entropy(drawn);
    result.mean_with_partner += drawn.partners.mean / RandomRouters::draws;
    result.mean_pair += drawn.pairs.mean / RandomRouters::draws;
    result.largest = std::max(result.largest, drawn.partners.largest);
  }
  return result;
}

/// What tokens made of a router.
struct RoutingSummary {
  RoutingSummary(Index experts, std::string from) : source(std::move(from)), together(experts) {}

  std::string source;  ///< Where the tokens come from.
  Index tokens = 0, top_k = 0;
  std::vector<std::int64_t> load_E;
  std::vector<double> weight_E;    ///< Sums over the tokens; empty where no weights are known.
  double mean_largest_weight = 0;  ///< Over the tokens; with weights.
  gatepro::LoadMetrics loads;
  gatepro::Coactivation together;
  RowMatrix<double> lift_EE;
  double pairs_per_product = 0;  ///< What lifts are measured against; see expected.

  /// Tokens with both experts, by their two loads alone, in the sense of Coactivation::lift.
  double expected(Index i, Index j) const {
    return pairs_per_product * static_cast<double>(together.load(i)) *
           static_cast<double>(together.load(j));
  }
  double partner_lift = 0, partner_rate = 0;     ///< With weights; else 0.
  std::optional<gatepro::MarginCounts> margins;  ///< With X: what a penalty would change.
};

inline RoutingSummary summarise(gatepro::MatrixView<const std::int32_t> ids_TK, Index experts,
                                const std::string& source) {
  RoutingSummary summary(experts, source);
  summary.tokens = ids_TK.rows;
  summary.top_k = ids_TK.cols;
  summary.together.add(gatepro::Choices{ids_TK});
  for (Index e = 0; e < experts; ++e) summary.load_E.push_back(summary.together.load(e));
  std::vector<std::int64_t> sorted(summary.load_E.size());
  summary.loads = gatepro::load_metrics(summary.load_E, sorted);
  summary.lift_EE.resize(experts, experts);
  summary.together.lifts(summary.lift_EE);
  // The library keeps its scale to itself, but any pair that was seen tells it.
  for (Index i = 0; i < experts && summary.pairs_per_product == 0; ++i) {
    for (Index j = 0; j < i && summary.pairs_per_product == 0; ++j) {
      const auto seen = static_cast<double>(summary.together.counts_EE()(i, j));
      const double product = static_cast<double>(summary.together.load(i)) *
                             static_cast<double>(summary.together.load(j));
      if (seen > 0) summary.pairs_per_product = seen / (summary.lift_EE(i, j) * product);
    }
  }
  return summary;
}

/// What the choices weigh. Without what is not finite.
inline void add_weights(gatepro::MatrixView<const std::int32_t> ids_TK,
                        gatepro::MatrixView<const float> weights_TK, RoutingSummary& summary) {
  summary.weight_E.assign(summary.load_E.size(), 0);
  for (Index t = 0; t < ids_TK.rows; ++t) {
    double largest = 0;
    for (Index k = 0; k < ids_TK.cols; ++k) {
      const auto weight = static_cast<double>(weights_TK(t, k));
      if (ids_TK(t, k) < 0 || !std::isfinite(weight)) continue;
      summary.weight_E[static_cast<std::size_t>(ids_TK(t, k))] += weight;
      largest = std::max(largest, weight);
    }
    summary.mean_largest_weight += largest / static_cast<double>(ids_TK.rows);
  }
}

/// Routes tokens as the published router does, without competition, and counts what one would
/// change.
inline RoutingSummary route(const RowMatrix<float>& x_TH, const RowMatrix<float>& w_EH, Index top_k,
                            const std::string& source) {
  gatepro::RouterConfig config{w_EH.cols(), w_EH.rows(), top_k};
  config.competition = gatepro::Competition::off();
  gatepro::Router<float> router(config);
  router.refresh_now(w_EH, 0);
  gatepro::RoutingBuffers<gatepro::Router<float>> buffers(
      router, gatepro::BufferShape{x_TH.rows(), 1, 1, /*keep_logits=*/true});
  const Index nonfinite = router.forward(x_TH, w_EH, buffers).nonfinite_rows;
  if (nonfinite != 0) {
    throw UserError("--x: the logits of " + std::to_string(nonfinite) + " tokens leave float");
  }
  RoutingSummary summary = summarise(buffers.expert_ids_TK(), w_EH.rows(), source);
  add_weights(buffers.expert_ids_TK(), buffers.weights_TK(), summary);
  if (top_k == w_EH.rows()) return summary;  // nobody is left to be selected instead

  std::vector<std::byte> workspace(
      gatepro::count_margins_workspace_bytes<float>(w_EH.rows(), top_k));
  summary.margins.emplace();
  gatepro::count_margins(buffers.logits_TE(), router.similarity_cache().rivals(), {top_k}, {},
                         *summary.margins, workspace);
  return summary;
}

/// Experts that do nearly the same.
struct RedundantGroup {
  Experts experts;
  double similarity = 0;  ///< Mean over its pairs.
  double load_share = 0;  ///< With tokens.
  double lift = 0;        ///< Observed over expected tokens with two of them; with tokens.
};

struct LayerReport {
  std::string label;                   ///< For readers.
  std::string id;                      ///< For file names and links: letters, digits, '_' and '-'.
  std::optional<std::uint64_t> layer;  ///< What its name says.
  Index experts = 0, hidden = 0;       ///< hidden: 0 without weights.
  std::optional<Likeness> likeness;
  double spectral_entropy = 0;            ///< With weights.
  const RandomRouters* random = nullptr;  ///< With weights.
  Experts order;
  std::vector<RedundantGroup> groups;
  std::optional<RoutingSummary> routing;
};

namespace detail {

inline RedundantGroup describe(const Experts& experts, const LayerReport& report) {
  RedundantGroup group;
  group.experts = experts;
  double pairs = 0, both = 0, expected = 0;
  for (std::size_t a = 0; a < experts.size(); ++a) {
    for (std::size_t b = 0; b < a; ++b) {
      const Index i = experts[a], j = experts[b];
      ++pairs;
      group.similarity += static_cast<double>(report.likeness->similarity_EE(i, j));
      if (!report.routing) continue;
      both += static_cast<double>(report.routing->together.counts_EE()(i, j));
      expected += report.routing->expected(i, j);
    }
  }
  group.similarity /= pairs;
  group.lift = expected > 0 ? both / expected : 0;
  if (report.routing) {
    double own = 0, all = 0;
    for (const Index e : experts) own += static_cast<double>(report.routing->together.load(e));
    for (const std::int64_t load : report.routing->load_E) all += static_cast<double>(load);
    group.load_share = all > 0 ? own / all : 0;
  }
  return group;
}

/// What stands in for similarity where there are no weights: log2 of the lift, within bounds.
inline RowMatrix<double> bounded_log_lift(const RowMatrix<double>& lift_EE) {
  return lift_EE.unaryExpr(
      [](double lift) { return std::clamp(std::log2(std::max(lift, 1e-9)), -6.0, 6.0); });
}

}  // namespace detail

/// Completes a report that has its likeness or its routing: the order of the experts, the groups.
inline void complete(LayerReport& report, double group_at) {
  if (!report.likeness) {
    // Nothing is called redundant on the word of a few tokens.
    const double never = 1e9;
    report.order = cluster(detail::bounded_log_lift(report.routing->lift_EE), never).order;
    return;
  }
  const Clusters clusters = cluster(report.likeness->similarity_EE.cast<double>(), group_at);
  report.order = clusters.order;
  for (const Experts& experts : clusters.groups) {
    report.groups.push_back(detail::describe(experts, report));
  }
  if (!report.routing) return;
  const gatepro::MatrixView<const std::int32_t> partners_EM(report.likeness->partner_E.data(),
                                                            report.experts, 1);
  report.routing->partner_lift = report.routing->together.partner_lift(partners_EM);
  report.routing->partner_rate = report.routing->together.partner_rate(partners_EM);
}

}  // namespace inspect_router

#endif  // INSPECT_ROUTER_LAYER_REPORT_HPP
