// SPDX-License-Identifier: MIT
// The code of docs/guide.md and docs/metrics.md, to the letter (the tests readme.* compare), in a
// trainer that is as small as can be: it compiles, and no call refuses its arguments.
#include <gatepro/diagnosis.hpp>
#include <gatepro/gatepro.hpp>
#include <gatepro/openmp.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iostream>
#include <string>
#include <vector>

namespace {

using gatepro::Index;
using Matrix = gatepro::RowMatrix<float>;

/// What the guide takes from a trainer.
class Guide : public testing::Test {
 protected:
  const Index hidden_size = 32, num_experts = 16, top_k = 8, max_tokens = 24, tokens = 24, step = 0;
  const Matrix x_TH = Matrix::Random(tokens, hidden_size);
  const Matrix w_EH = Matrix::Random(num_experts, hidden_size);
  const Matrix dweights_TK = Matrix::Random(tokens, top_k);
  Matrix dx_TH = Matrix::Zero(tokens, hidden_size), dw_EH = Matrix::Zero(num_experts, hidden_size);
  const std::vector<std::uint8_t> is_padding_T = std::vector<std::uint8_t>(size_of(tokens), 0);
  const gatepro::NoReduce reduce{};

  static std::size_t size_of(Index rows, Index cols = 1) {
    return static_cast<std::size_t>(rows * cols);
  }
};

/// MPI of one rank. A datatype is the bytes of its element.
using MPI_Datatype = std::size_t;
using MPI_Comm = int;
constexpr MPI_Datatype MPI_INT64_T = sizeof(std::int64_t);

void MPI_Alltoall(const void* from, int count, MPI_Datatype type, void* to, int, MPI_Datatype,
                  MPI_Comm) {
  std::memcpy(to, from, static_cast<std::size_t>(count) * type);
}

void MPI_Alltoallv(const void* from, const int* counts, const int*, MPI_Datatype type, void* to,
                   const int*, const int*, MPI_Datatype, MPI_Comm) {
  std::memcpy(to, from, static_cast<std::size_t>(counts[0]) * type);
}

TEST_F(Guide, OneTrainingStep) {
  // clang-format off
gatepro::RouterConfig config{hidden_size, num_experts, top_k};
config.competition = gatepro::Competition::eliminate();        // default: penalty(1e-4)
config.refresh = gatepro::RefreshSchedule::every(10);          // default: every step
gatepro::Router<float> router(config);
gatepro::RoutingBuffers buffers(router, max_tokens);           // allocates once

router.refresh(w_EH, step);                                    // partners, if due
router.forward(x_TH, w_EH, buffers);                           // ids, weights, counts
// ... experts, combine, loss; dweights_TK = d loss / d weights ...
router.backward(x_TH, w_EH, buffers, {dweights_TK}, {dx_TH, dw_EH});   // adds to dx and dw
  // clang-format on
  EXPECT_GT(dw_EH.norm(), 0);
  EXPECT_GT(dx_TH.norm(), 0);
}

TEST_F(Guide, WithoutTheHelper) {
  gatepro::Router<float, float, std::int64_t> router({hidden_size, num_experts, top_k});
  router.refresh(w_EH, step);
  std::vector<std::int64_t> all_ids(size_of(tokens, top_k)), all_counts(size_of(num_experts));
  std::vector<float> all_weights(all_ids.size()), all_logits(size_of(tokens, num_experts));
  std::vector<std::byte> memory(router.forward_workspace_bytes());
  std::int64_t *const ids = all_ids.data(), *const counts = all_counts.data();
  float *const weights = all_weights.data(), *const logits = all_logits.data();
  const float *const x = x_TH.data(), *const w = w_EH.data();
  std::byte* const scratch = memory.data();
  // clang-format off
gatepro::RoutingView<float, std::int64_t> out;
out.expert_ids_TK = {ids, tokens, top_k};                      // or with both strides
out.weights_TK = {weights, tokens, top_k};
out.tokens_per_expert_E = {counts, num_experts};               // optional
out.logits_TE = {logits, tokens, num_experts};                 // optional
router.forward({x, tokens, hidden_size}, {w, num_experts, hidden_size}, out,
               {scratch, router.forward_workspace_bytes()});
  // clang-format on
  EXPECT_EQ(std::count(all_weights.begin(), all_weights.end(), 0.0F), 0);
}

TEST_F(Guide, AnArenaOfYours) {
  const gatepro::Router<float> router({hidden_size, num_experts, top_k});
  const gatepro::SerialExecutor executor;
  struct {
    std::vector<std::byte> memory;
    void* allocate(std::size_t bytes) {
      memory.resize(bytes);
      return memory.data();
    }
  } arena;
  // clang-format off
const gatepro::BufferShape shape{tokens, executor};            // or a number of workers
void* kept = arena.allocate(router.outputs_bytes(shape));      // any alignment, any content
auto out = router.outputs(shape, {kept, router.outputs_bytes(shape)});
  // clang-format on
  EXPECT_EQ(out.expert_ids_TK.rows, tokens);
}

TEST_F(Guide, ALearnedBias) {
  gatepro::Router<float> router({hidden_size, num_experts, top_k});
  gatepro::RoutingBuffers buffers(router, max_tokens);
  router.refresh(w_EH, step);
  const std::vector<float> c_E(size_of(num_experts), 0.5F);
  std::vector<float> dc_E(c_E.size(), 0);
  // clang-format off
router.forward(x_TH, gatepro::BiasedWeights<float>{w_EH, c_E}, buffers);   // or PackedWeights of it
gatepro::GateGradients<float> gradients{dx_TH, dw_EH};
gradients.dbias_E = dc_E;                                      // added to
router.backward(x_TH, w_EH, buffers, {dweights_TK}, gradients);
  // clang-format on
  EXPECT_NE(dc_E, std::vector<float>(c_E.size(), 0));
}

TEST_F(Guide, Threads) {
  gatepro::Router<float> router({hidden_size, num_experts, top_k});
  router.refresh(w_EH, step);
// clang-format off
#include <gatepro/openmp.hpp>
const gatepro::OpenMPExecutor executor;
gatepro::RoutingBuffers buffers(router, max_tokens, executor);    // scratch for all its workers
router.forward(x_TH, w_EH, buffers, executor);
  // clang-format on
  EXPECT_EQ(buffers.tokens_per_expert_E().size, num_experts);
}

TEST_F(Guide, ExpertsOnSeveralRanks) {
  constexpr int E = 16, R = 1;
  constexpr MPI_Comm comm = 0;
  gatepro::Router<float, float, std::int64_t> router({hidden_size, num_experts, top_k});
  gatepro::RoutingBuffers buffers(router, max_tokens);
  router.refresh(w_EH, step);
  router.forward(x_TH, w_EH, buffers);
  const gatepro::Choices<const std::int64_t> choices{buffers.expert_ids_TK()};
  const auto num_rows = size_of(tokens, top_k);
  std::vector<std::int64_t> all_counts(E), all_received_counts(E), tokens_of(num_rows),
      tokens_here(num_rows), rows_here(num_rows);
  std::int64_t *const counts_E = all_counts.data(), *const counts_SE = all_received_counts.data();
  std::vector<int> send_counts(R), send_displacements(R), receive_counts(R),
      receive_displacements(R);
  std::vector<std::byte> scratch(std::max(gatepro::plan_dispatch_workspace_bytes(E),
                                          gatepro::plan_regroup_workspace_bytes(E)));
  gatepro::DispatchPlan<std::int64_t> plan, here;
  plan.tokens_per_expert_E = all_counts;
  plan.token_of_row_N = tokens_of;
  here.token_of_row_N = tokens_here;
  const Matrix rows_NH = Matrix::Random(tokens * top_k, hidden_size);
  Matrix all_received_NH(tokens * top_k, hidden_size), all_by_expert_NH = all_received_NH;
  const auto received_NH = gatepro::view(all_received_NH),
             by_expert_NH = gatepro::view(all_by_expert_NH);
  const float* const rows = rows_NH.data();
  float* const received = all_received_NH.data();
  const MPI_Datatype row_type = sizeof(float) * size_of(hidden_size);
  // clang-format off
gatepro::plan_dispatch(choices, E, {}, plan, scratch);         // its counts are E int64: R times E / R
MPI_Alltoall(counts_E, E / R, MPI_INT64_T, counts_SE, E / R, MPI_INT64_T, comm);

const gatepro::MatrixView<const std::int64_t> to_RE(counts_E, R, E / R), from_SE(counts_SE, R, E / R);
gatepro::exchange_counts(to_RE, 1, {send_counts, send_displacements});     // std::vector<int> of R each
gatepro::exchange_counts(from_SE, 1, {receive_counts, receive_displacements});
MPI_Alltoallv(rows, send_counts.data(), send_displacements.data(), row_type,    // MPI_Type_contiguous
              received, receive_counts.data(), receive_displacements.data(), row_type, comm);

gatepro::plan_regroup(from_SE, {}, here, scratch);             // rows stand as [source][expert]
gatepro::permute(here.token_of_row_N, received_NH, by_expert_NH);   // the experts' input
// ... experts ..., back: permute by here.row_TK as a list, Alltoallv the other way, combine
  // clang-format on
  EXPECT_TRUE(all_by_expert_NH == rows_NH);
}

TEST_F(Guide, AuxiliaryLosses) {
  gatepro::Router<float> router({hidden_size, num_experts, top_k});
  gatepro::BufferShape shape{max_tokens};
  shape.keep_logits = true;
  gatepro::RoutingBuffers buffers(router, shape);
  router.refresh(w_EH, step);
  router.forward(x_TH, w_EH, buffers);
  Matrix dlogits_TE = Matrix::Zero(tokens, num_experts);
  const double loss_scale = 1;
  std::vector<std::byte> workspace(
      std::max(gatepro::load_balancing_loss_workspace_bytes<float>(tokens, num_experts),
               gatepro::z_loss_workspace_bytes<float>(tokens, num_experts)));
  // clang-format off
gatepro::BalanceAccumulator loads(num_experts);
loads.add({buffers.tokens_per_expert_E(), tokens}, reduce);    // sums over ranks
const auto batch = loads.latest();
const gatepro::LossLogits logits{buffers.logits_TE(), is_padding_T, dlogits_TE};
const gatepro::BalanceRule rule{gatepro::ScoreFunction::softmax_after_top_k, top_k};
gatepro::load_balancing_loss(logits, batch, rule, {1e-2, batch.tokens, loss_scale}, workspace);
gatepro::z_loss(logits, {1e-3, batch.tokens, loss_scale}, workspace);
  // clang-format on
  EXPECT_GT(dlogits_TE.norm(), 0);
}

TEST_F(Guide, ALossOnW) {
  gatepro::Router<float> router({hidden_size, num_experts, top_k});
  // clang-format off
gatepro::OrthogonalityRule apart;
apart.kind = gatepro::OrthogonalityKind::simbal;               // or frobenius, as ERNIE 4.5 has it
apart.coefficient = 0.1;
const auto report = router.refresh_with_loss(w_EH, step, apart, dw_EH);
  // clang-format on
  EXPECT_GT(report.loss, 0);
  EXPECT_GT(dw_EH.norm(), 0);
}

TEST_F(Guide, QuantileBalancing) {
  const Matrix scores_TE = (0.5F * Matrix::Random(tokens, num_experts).array() + 0.5F).matrix();
  gatepro::ExpertBias<float> bias(num_experts);
  std::vector<std::byte> workspace(gatepro::count_needed_bias_workspace_bytes<float>(
      num_experts, top_k, gatepro::QuantileRule{}));
  // clang-format off
gatepro::QuantileRule rule;                                    // 1000 bins, no memory
gatepro::QuantileCounts<float> quantiles(num_experts, rule);
// each micro-batch, with scores of [0, 1] and the bias that chose by them
const auto choices = gatepro::count_needed_bias(gatepro::view(scores_TE), bias.values(), is_padding_T,
                                                top_k, rule, quantiles.next(), workspace);
quantiles.commit(choices);
// each optimizer step
quantiles.step(reduce, bias);                                  // an ExpertBias<float>
  // clang-format on
  EXPECT_TRUE(std::any_of(bias.values().data, bias.values().data + num_experts,
                          [](float value) { return value != 0; }));
}

TEST_F(Guide, TheCompleteRouter) {
  // clang-format off
gatepro::CompleteConfig config{{hidden_size, num_experts, top_k}};
config.scores = {gatepro::ScoreFunction::sigmoid, /*renormalise=*/true, /*scale=*/2.5};
config.groups = {/*num_groups=*/8, /*groups_per_token=*/4, gatepro::GroupScore::top_2};
config.bias.enabled = true;
config.losses.z = 1e-3;
gatepro::CompleteRouter<float> router(config);
gatepro::RoutingBuffers buffers(router, max_tokens);
router.refresh(w_EH, step);                                    // partners, if due

gatepro::ForwardInputs<> in;
in.is_padding_T = is_padding_T;                                // nonzero = padding
router.forward(x_TH, w_EH, in, buffers, reduce);               // counts go through your reduction
router.backward(x_TH, w_EH, in, buffers, {dweights_TK}, {dx_TH, dw_EH});
router.end_step(reduce);                                       // once per optimizer step
  // clang-format on
  EXPECT_GT(dw_EH.norm(), 0);
}

TEST_F(Guide, HashRouting) {
  gatepro::CompleteRouter<float> router(gatepro::CompleteConfig{{hidden_size, num_experts, top_k}});
  gatepro::RoutingBuffers buffers(router, max_tokens);
  gatepro::ForwardInputs<> in;
  const gatepro::RowMatrix<std::int32_t> expert_ids_VK = Eigen::RowVectorXi::LinSpaced(8, 3, 10);
  const std::vector<std::int64_t> token_ids_T(size_of(tokens), 0);
  // clang-format off
const gatepro::HashTable table(num_experts, expert_ids_VK);    // int32, a row per token of the vocabulary
in.hash = &table;
in.token_ids_T = token_ids_T;                                  // int64; logits only weigh
  // clang-format on
  router.refresh(w_EH, step);
  router.forward(x_TH, w_EH, in, buffers);
  EXPECT_EQ(buffers.expert_ids_TK()(0, 0), 3);
}

TEST_F(Guide, FewerChoicesThanK) {
  gatepro::CompleteConfig config{{hidden_size, num_experts, top_k}};
  gatepro::ForwardInputs<> in;
  const std::vector<std::int64_t> sequence_begin_S1{0, tokens};
  // clang-format off
config.top_k = 8;                                              // the most choices of a token
config.fewer = gatepro::FewerChoices{/*top_p=*/0.7};           // as many as scores of 0.7 take
config.fewer = gatepro::FewerChoices{1, /*budget=*/4, /*least=*/1};  // 4 on average over each sequence
in.sequence_begin_S1 = sequence_begin_S1;                      // a budget needs to know them
  // clang-format on
  gatepro::CompleteRouter<float> router(config);
  gatepro::RoutingBuffers buffers(router, max_tokens);
  router.refresh(w_EH, step);
  EXPECT_EQ(router.forward(x_TH, w_EH, in, buffers).choices, 4 * tokens);
}

TEST_F(Guide, IsThePenaltyDoingAnything) {
  gatepro::Router<float> router({hidden_size, num_experts, top_k});
  gatepro::RoutingBuffers buffers(router, max_tokens);
  router.refresh(w_EH, step);
  // clang-format off
gatepro::PenaltyStatistics statistics;
auto out = buffers.view();
out.statistics = &statistics;
router.forward(x_TH, w_EH, out, buffers.workspace());
// statistics.changed_rate(), .penalties_lost_in_rounding, .coactivation_rate(), ...
  // clang-format on
  EXPECT_EQ(statistics.tokens, tokens);
  EXPECT_GE(statistics.changed_rate() + statistics.coactivation_rate(), 0);
  EXPECT_GE(statistics.penalties_lost_in_rounding, 0);
}

TEST_F(Guide, Metrics) {
  gatepro::Router<float> router({hidden_size, num_experts, top_k});
  gatepro::RoutingBuffers buffers(router, max_tokens);
  gatepro::PenaltyStatistics statistics;
  auto out = buffers.view();
  out.statistics = &statistics;
  router.refresh(w_EH, step);
  router.forward(x_TH, w_EH, out, buffers.workspace());
  std::vector<std::int64_t> sorted_E(size_of(num_experts));
  const double loss = 1;
  testing::internal::CaptureStdout();
  // clang-format off
gatepro::RunHistory history;
history.competition = router.config().competition;
// each step, or every tenth; what is not measured is left out, and what needs it not looked for
const auto& cache = router.similarity_cache();
gatepro::LayerSnapshot layer;
const auto loads = gatepro::load_metrics(buffers.tokens_per_expert_E(), sorted_E);
layer.inactive_share = loads.inactive_share;
layer.chance_inactive_share = loads.chance_inactive_share;
layer.changed_share = gatepro::penalty_shares(statistics, num_experts).changed;
layer.partner_similarity = gatepro::partner_similarity(cache.similarity(), cache.partners()).mean;
gatepro::StepSnapshot snapshot;
snapshot.step = step + 1;                                      // counted from 1
snapshot.loss = loss;
snapshot.layers = {layer};                                     // of all layers, in one order
history.steps.push_back(snapshot);
// at the end; diagnose(history, &without) compares with the same run without competition
std::cout << gatepro::describe(gatepro::diagnose(history));
  // clang-format on
  EXPECT_NE(testing::internal::GetCapturedStdout().find("lambda without effect"),
            std::string::npos);
}

}  // namespace
