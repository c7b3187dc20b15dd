// SPDX-License-Identifier: MIT
// What was moved from is empty: each call that would work with it is refused, until it is assigned.
#include <gatepro/diagnosis.hpp>
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/errors.hpp"
#include "support/inputs.hpp"

namespace {

using data::random_matrix;
using gatepro::Competition;
using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::strided_view;
using gatepro::view;
using gatepro::Workspace;

constexpr Index T = 9, H = 5, E = 6, K = 2;

/// Each of `calls` with an object that was moved from is refused; with one that was assigned, none
/// is.
template <class Object, class... Calls>
void expect_empty(const Object& original, const char* rule, const Calls&... calls) {
  static_assert(std::is_nothrow_move_constructible_v<Object>);
  Object object = original;
  Object other = std::move(object);
  // NOLINTBEGIN(bugprone-use-after-move)
  int number = 0;
  const auto expect_refused = [&](const auto& call) {
    SCOPED_TRACE(::testing::Message() << "call " << number++);
    expect_error([&] { call(object); }, {rule});
  };
  (expect_refused(calls), ...);
  const Object copied = object;
  object = original;
  (calls(object), ...);
  object = copied;
  (expect_refused(calls), ...);
  // NOLINTEND(bugprone-use-after-move)
  object = std::move(other);
  (calls(object), ...);
}

/// What calls take and write.
struct Data {
  RowMatrix<float> x_TH = random_matrix<float>(T, H, 1);
  RowMatrix<float> w_EH = random_matrix<float>(E, H, 2);
  RowMatrix<float> logits_TE = random_matrix<float>(T, E, 3);
  RowMatrix<float> dweights_TK = random_matrix<float>(T, K, 4);
  RowMatrix<float> dx_TH = RowMatrix<float>::Zero(T, H), dw_EH = RowMatrix<float>::Zero(E, H);
  RowMatrix<float> dlogits_TE = RowMatrix<float>::Zero(T, E);
  RowMatrix<std::int32_t> partners_E1 = RowMatrix<std::int32_t>::Zero(E, 1);
  std::vector<std::byte> memory = std::vector<std::byte>(1 << 21), outputs = memory;
  std::vector<float> bias_E = std::vector<float>(E);
  gatepro::BufferShape shape{T, 1, 1, true};
};

// Off, so that no lack of partners hides that there is no router.
TEST(MovedFrom, Router) {
  Data d;
  using R = gatepro::Router<float>;
  gatepro::RouterConfig config{H, E, K};
  config.competition = Competition::off();
  const R original(config);
  const auto out = original.outputs(d.shape, d.outputs);
  auto only_ids = out;
  only_ids.logits_TE = {};
  gatepro::RoutingBuffers<R> buffers(original, T);
  const gatepro::RoutedChoices<float, std::int32_t> routed{out.expert_ids_TK, out.weights_TK};
  const gatepro::PackedWeights<float> packed(view(d.w_EH));
  original.forward(d.x_TH, d.w_EH, out, d.memory);
  expect_empty(
      original, "gatepro::Router: need a router that was not moved from",
      [&](R& r) { r.forward(d.x_TH, d.w_EH, out, d.memory); },
      [&](R& r) { r.forward(d.x_TH, packed, out, d.memory); },
      [&](R& r) { r.forward(d.x_TH, d.w_EH, buffers); },
      [&](R& r) { r.forward_logits(view(d.logits_TE), only_ids, d.memory); },
      [&](R& r) {
        r.backward(d.x_TH, d.w_EH, routed, {d.dweights_TK, {}}, {d.dx_TH, d.dw_EH}, d.memory);
      },
      [&](R& r) {
        r.backward_logits(routed, {d.dweights_TK, {}}, view(d.dlogits_TE), d.memory);
      },
      [&](R& r) { (void)r.outputs(d.shape, d.outputs); },
      [&](R& r) { (void)r.outputs_bytes(d.shape); },
      [&](R& r) { (void)r.workspace_bytes(d.shape); },
      [&](R& r) { (void)r.forward_workspace_bytes(); },
      [&](R& r) { (void)r.backward_workspace_bytes(T); },
      [&](R& r) { (void)r.backward_logits_workspace_bytes(T); },
      [&](R& r) { gatepro::RoutingBuffers<R>(r, T); }, [&](R& r) { (void)r.config(); },
      [&](R& r) { (void)r.gate_arithmetic(); }, [&](R& r) { (void)r.similarity_cache(); },
      [&](R& r) { r.set_competition(Competition::off()); },
      [&](R& r) { r.set_refresh_schedule(gatepro::RefreshSchedule::every(3)); },
      [&](R& r) { r.refresh(view(d.w_EH), 1); }, [&](R& r) { r.refresh_now(view(d.w_EH), 1); },
      [&](R& r) { r.refresh_with_loss(view(d.w_EH), 1, {}, view(d.dw_EH)); },
      [&](R& r) { r.set_partners(strided_view(d.partners_E1), 1); });
}

TEST(MovedFrom, CompleteRouter) {
  Data d;
  using R = gatepro::CompleteRouter<float>;
  gatepro::CompleteConfig config;
  config.hidden_size = H;
  config.num_experts = E;
  config.top_k = K;
  config.competition = Competition::off();
  config.adaptive_lambda.share = 0.1;
  for (const bool quantile : {false, true}) {
    config.quantile.enabled = quantile;
    config.bias.enabled = !quantile;
    const R original(config);
    const auto out = original.outputs(d.shape, d.outputs);
    gatepro::RoutingBuffers<R> buffers(original, d.shape);
    const gatepro::PackedWeights<float> packed(view(d.w_EH));
    gatepro::BackwardInputs<float> incoming;
    incoming.dweights_TK = d.dweights_TK;
    const gatepro::RouterState state = original.state();
    expect_empty(
        original, "gatepro::Router: need a router that was not moved from",
        [&](R& r) { r.forward(d.x_TH, d.w_EH, {}, out, d.memory); },
        [&](R& r) { r.forward(d.x_TH, packed, {}, out, d.memory); },
        [&](R& r) { r.forward(d.x_TH, d.w_EH, {}, buffers); },
        [&](R& r) {
          r.backward(d.x_TH, d.w_EH, {}, buffers, incoming, {d.dx_TH, d.dw_EH});
        },
        [&](R& r) {
          r.backward_logits({{}, buffers.view(), buffers.report()}, incoming, view(d.dlogits_TE),
                            d.memory);
        },
        [&](R& r) { r.forward_logits({}, out, d.memory); },
        [&](R& r) { (void)r.outputs(d.shape, d.outputs); },
        [&](R& r) { (void)r.outputs_bytes(d.shape); },
        [&](R& r) { (void)r.workspace_bytes(d.shape); },
        [&](R& r) { gatepro::RoutingBuffers<R>(r, T); }, [&](R& r) { (void)r.config(); },
        [&](R& r) { (void)r.gate_arithmetic(); }, [&](R& r) { (void)r.similarity_cache(); },
        [&](R& r) { (void)r.bias(); }, [&](R& r) { (void)r.correction_bias(); },
        [&](R& r) { (void)r.balance(); }, [&](R& r) { r.set_correction_bias({}); },
        [&](R& r) { r.set_correction_bias(d.bias_E); },
        [&](R& r) { r.set_competition(Competition::off()); }, [&](R& r) { r.end_step(); },
        [&](R& r) { (void)r.state(); }, [&](R& r) { r.restore(state); },
        [&](R& r) { r.set_refresh_schedule(gatepro::RefreshSchedule::every(3)); },
        [&](R& r) { r.refresh(view(d.w_EH), 1); }, [&](R& r) { r.refresh_now(view(d.w_EH), 1); },
        [&](R& r) { r.refresh_with_loss(view(d.w_EH), 1, {}, view(d.dw_EH)); },
        [&](R& r) { r.set_partners(strided_view(d.partners_E1), 1); });
  }
}

TEST(MovedFrom, RoutingBuffers) {
  Data d;
  const gatepro::Router<float> router({H, E, K});
  using B = gatepro::RoutingBuffers<gatepro::Router<float>>;
  expect_empty(
      B(router, T), "gatepro::RoutingBuffers: need buffers that were not moved from",
      [&](B& b) { (void)b.view(); }, [&](B& b) { (void)b.workspace(); }, [&](B& b) { b.resize(3); },
      [&](B& b) { b.set_report({}); }, [&](B& b) { (void)b.expert_ids_TK(); });
}

TEST(MovedFrom, SimilarityCache) {
  Data d;
  using Cache = gatepro::SimilarityCache<float>;
  Cache refreshed(E, {}, {});
  refreshed.refresh_now(view(d.w_EH), 0);
  const auto none_EH = RowMatrix<float>(0, H);
  expect_empty(
      refreshed, "gatepro::SimilarityCache: need a cache that was not moved from",
      [&](Cache& c) { (void)c.mean_pairwise_similarity(); },
      [&](Cache& c) { (void)c.mean_partner_similarity(); }, [&](Cache& c) { (void)c.is_due(1); },
      [&](Cache& c) { c.refresh(view(d.w_EH), 1); },
      [&](Cache& c) { c.refresh_now(view(d.w_EH), 1); },
      [&](Cache& c) { c.refresh_with_loss(view(d.w_EH), 1, {}, view(d.dw_EH)); },
      [&](Cache& c) { c.set_schedule(gatepro::RefreshSchedule::every(3)); });
  Cache other = std::move(refreshed);
  // NOLINTBEGIN(bugprone-use-after-move)
  expect_error([&] { refreshed.set_partners(strided_view(d.partners_E1), 1); }, {"not moved from"});
  expect_error([&] { refreshed.refresh_now(view(none_EH), 1); }, {"not moved from"});
  EXPECT_FALSE(refreshed.has_partners());
  EXPECT_FALSE(refreshed.partners().given());
  EXPECT_FALSE(refreshed.similarity().given());
  EXPECT_EQ(refreshed.similarity().rows, 0);
  EXPECT_EQ(refreshed.rivals().fingerprint(), 0U);
  // NOLINTEND(bugprone-use-after-move)
  EXPECT_TRUE(other.similarity().given());
}

TEST(MovedFrom, Balance) {
  const std::vector<std::int64_t> counts_E(E, 1), none;
  const std::vector<float> bias_E(E), no_bias;
  using gatepro::NoReduce;
  using Bias = gatepro::ExpertBias<float>;
  const char* rule = "was not moved from";
  expect_empty(
      Bias(E), rule, [&](Bias& b) { b.accumulate(counts_E); },
      [&](Bias& b) { b.step(NoReduce(), 1); }, [&](Bias& b) { b.zero(); },
      [&](Bias& b) { b.restore(bias_E, counts_E); });
  Bias bias(E);
  const Bias moved_bias = std::move(bias);
  // NOLINTBEGIN(bugprone-use-after-move)
  expect_error([&] { bias.accumulate(none); }, {rule});
  expect_error([&] { bias.restore(no_bias, none); }, {rule});
  EXPECT_EQ(bias.values().size + bias.counts().size + bias.num_experts(), 0);
  // NOLINTEND(bugprone-use-after-move)

  gatepro::QuantileRule quantile;
  quantile.bins = 4;
  using Quantiles = gatepro::QuantileCounts<float>;
  Quantiles quantiles(E, quantile);
  const RowMatrix<std::int64_t> counts_EB = RowMatrix<std::int64_t>::Zero(E, 5), none_EB(0, 5);
  Bias stepped(E);
  const char* whole = "counts of experts, not moved from";
  expect_empty(
      quantiles, whole, [&](Quantiles& q) { (void)q.next(); },
      [&](Quantiles& q) { q.step(NoReduce(), stepped); },
      [&](Quantiles& q) { q.restore(view(counts_EB), 0); });
  const Quantiles moved_quantiles = std::move(quantiles);
  Quantiles of_nobody;
  for (Quantiles* q : {&quantiles, &of_nobody}) {  // NOLINT(bugprone-use-after-move)
    q->commit(3);
    EXPECT_EQ(q->choices(), 0);
    EXPECT_EQ(q->counts().rows, 0);
    expect_error([&] { q->restore(view(none_EB), 0); }, {whole});
  }
}

TEST(MovedFrom, Metrics) {
  const std::vector<std::int64_t> counts_E(E, 1), none;
  const RowMatrix<std::int32_t> ids_TK = RowMatrix<std::int32_t>::Zero(T, 1);
  const RowMatrix<float> logits_TE = random_matrix<float>(T, E, 3);
  const auto partners_E1 = RowMatrix<std::int32_t>(RowMatrix<std::int32_t>::Zero(E, 1));
  RowMatrix<double> lift_EE = RowMatrix<double>::Zero(E, E);
  std::vector<std::byte> memory(1 << 20);
  std::vector<gatepro::CoactivatedPair> pairs(3);
  const char* rule = "counts that were not moved from";
  const auto expect_empty_tally = [&](const auto& tally, const auto&... calls) {
    using Tally = std::decay_t<decltype(tally)>;
    expect_empty(
        tally, rule, [](Tally& c) { c.reset(); },
        [](Tally& c) { c.all_reduce(gatepro::NoReduce()); }, [&](Tally& c) { c.merge(tally); },
        [&](Tally& c) { c.restore(tally.counts()); }, calls...);
    Tally counts = tally;
    const Tally other = std::move(counts);
    // NOLINTBEGIN(bugprone-use-after-move)
    EXPECT_EQ(counts.counts().size, 0);
    expect_error([&] { counts.restore(none); }, {rule});
    expect_error([&] { counts.merge(none); }, {rule});
    // NOLINTEND(bugprone-use-after-move)
  };
  using gatepro::Coactivation;
  using gatepro::LoadCounts;
  using gatepro::MarginCounts;
  expect_empty_tally(
      LoadCounts(E), [&](LoadCounts& c) { c.add(counts_E); },
      [](LoadCounts& c) { (void)c.tokens_per_expert(); }, [](LoadCounts& c) { (void)c.metrics(); },
      [](LoadCounts& c) { (void)c.micro_batch_max_violation(); },
      [](LoadCounts& c) { (void)c.num_experts(); });
  expect_empty_tally(
      Coactivation(E),
      [&](Coactivation& c) { c.add(gatepro::Choices<const std::int32_t>{strided_view(ids_TK)}); },
      [](Coactivation& c) { (void)c.num_experts(); }, [](Coactivation& c) { (void)c.choices(); },
      [](Coactivation& c) { (void)c.counts_EE(); }, [](Coactivation& c) { (void)c.load(0); },
      [](Coactivation& c) { (void)c.lift(0, 1); }, [&](Coactivation& c) { c.lifts(view(lift_EE)); },
      [&](Coactivation& c) { (void)c.top_pairs(pairs); },
      [&](Coactivation& c) { (void)c.partner_rate(strided_view(partners_E1)); },
      [&](Coactivation& c) { (void)c.partner_lift(strided_view(partners_E1)); });
  expect_empty_tally(
      MarginCounts(), [](MarginCounts& c) { (void)c.tokens(); },
      [](MarginCounts& c) { (void)c.margin(0.5); },
      [](MarginCounts& c) { (void)c.lambda_for_share(0.5); },
      [](MarginCounts& c) { (void)c.changed_share(0.5); },
      [](MarginCounts& c) { (void)c.margin_histogram(); },
      [&](MarginCounts& c) {
        gatepro::count_margins(view(logits_TE), gatepro::RivalTable(), {K}, {}, c, memory);
      });

  using Estimate = gatepro::LambdaEstimate;
  const Estimate estimate(gatepro::AdaptiveLambda{0.1, 4});
  expect_empty(
      estimate, "not moved from", [](Estimate& e) { e.step(); }, [](Estimate& e) { e.commit(); },
      [&](Estimate& e) { e.observe(view(logits_TE), gatepro::RivalTable(), {K}, {}, memory); },
      [&](Estimate& e) { e.restore(estimate.estimate(), estimate.counts()); });
}

TEST(MovedFrom, RivalTable) {
  const RowMatrix<std::int32_t> partners_E1 = RowMatrix<std::int32_t>::Zero(E, 1);
  gatepro::RivalTable table(strided_view(partners_E1), false);
  const gatepro::RivalTable other = std::move(table);
  // NOLINTBEGIN(bugprone-use-after-move)
  EXPECT_EQ(table.num_experts(), 0);
  EXPECT_EQ(table.fingerprint(), gatepro::RivalTable().fingerprint());
  // NOLINTEND(bugprone-use-after-move)
  EXPECT_NE(other.fingerprint(), 0U);
}

}  // namespace
