// SPDX-License-Identifier: MIT
// GATEPRO_ISA names no instruction set: an Error from every function that has an executor or uses
// kernels, whatever is called first, and not the end of the process.
#include <gatepro/gatepro.hpp>
#include <gatepro/setup.hpp>

#include <gtest/gtest.h>

#include <cstdlib>
#include <vector>

#include "support/errors.hpp"

namespace {

using namespace gatepro;

constexpr Index T = 2, H = 3, E = 4, K = 2, N = T * K;

/// Valid arguments of all stages.
struct Arguments {
  RowMatrix<float> x_TH = RowMatrix<float>::Random(T, H), out_TH = x_TH;
  RowMatrix<float> w_EH = RowMatrix<float>::Random(E, H), out_EH = w_EH;
  RowMatrix<float> logits_TE = RowMatrix<float>::Random(T, E), out_TE = logits_TE;
  RowMatrix<float> a_TK = RowMatrix<float>::Constant(T, K, 0.5F), b_TK = a_TK, c_TK = a_TK;
  RowMatrix<float> rows_NH = RowMatrix<float>::Random(N, H), out_NH = rows_NH;
  RowMatrix<float> similarity_EE = RowMatrix<float>::Zero(E, E);
  RowMatrix<std::int32_t> ids_TK = (RowMatrix<std::int32_t>(T, K) << 0, 1, 2, 3).finished();
  RowMatrix<std::int32_t> row_TK = ids_TK, partners_E1 = RowMatrix<std::int32_t>::Zero(E, 1);
  RowMatrix<std::uint8_t> bytes_TK = RowMatrix<std::uint8_t>::Zero(T, K), more_TK = bytes_TK;
  RowMatrix<std::uint8_t> loser_TE = RowMatrix<std::uint8_t>::Zero(T, E);
  std::vector<std::int32_t> token_N = {0, 0, 1, 1}, choice_N = {0, 1, 2, 3};
  std::vector<float> floats_E = {1, 2, 3, 4};
  std::vector<std::int64_t> counts_E = {1, 1, 1, 1}, begin_S1 = {0, T};
  std::vector<std::byte> memory = std::vector<std::byte>(1 << 20);
  RivalTable rivals = RivalTable(view(partners_E1), false);
  SelectionRule rule{K, {ScoreFunction::sigmoid, true, 1}, {}, Competition::off()};
  NoiseKey noise{};
};

template <class Call>
void expect_refused(const char* what, const Call& call) {
  SCOPED_TRACE(what);
  expect_error(call, {"GATEPRO_ISA", "portable, avx2, avx512", "nonsense"});
}

#define EXPECT_REFUSED(...) expect_refused(#__VA_ARGS__, [&] { __VA_ARGS__; })

template <class T>
VectorView<T> all(std::vector<T>& values) {
  return {values.data(), static_cast<Index>(values.size())};
}

class UnknownInstructionSet : public testing::Test, public Arguments {
 protected:
  static void SetUpTestSuite() { setenv("GATEPRO_ISA", "nonsense", 1); }
};

TEST_F(UnknownInstructionSet, IsRefusedByStages) {
  EXPECT_REFUSED(instruction_set());
  EXPECT_REFUSED(gate_logits(view(x_TH), view(w_EH), view(out_TE), memory));
  EXPECT_REFUSED(cosine_similarity(view(w_EH), view(similarity_EE), memory));
  EXPECT_REFUSED(find_partners(view(w_EH), Pairing{}, {view(partners_E1)}, memory));
  EXPECT_REFUSED(orthogonality_loss(view(w_EH), {}, {}, view(out_EH), memory));
  EXPECT_REFUSED(orthogonal_weights(1, 1.0, view(out_EH), memory));
  EXPECT_REFUSED(apply_competition(view(logits_TE), rivals, Competition::penalty(1), view(out_TE),
                                   {}, memory));
  EXPECT_REFUSED(
      select_top_k(view(logits_TE), {}, strided_view(ids_TK), strided_view(a_TK), memory));
  EXPECT_REFUSED(softmax_selected(strided_view(a_TK), strided_view(b_TK), memory));
  const RoutingView<float> routed{ids_TK, a_TK};
  const RecordedChoices<std::int32_t> chosen{ids_TK, bytes_TK};
  EXPECT_REFUSED(route_logits({logits_TE}, rivals, rule, routed, memory));
  RoutingView<float> weighed;
  weighed.weights_TK = a_TK;
  EXPECT_REFUSED(weigh_choices({logits_TE}, rivals, rule, chosen, weighed, memory));
  RoutingView<float> limited{ids_TK, a_TK};
  limited.scores_TK = b_TK;
  EXPECT_REFUSED(keep_fewer_choices<float>({logits_TE}, rule, {}, {}, limited, memory));
  EXPECT_REFUSED(gate_backward_tokens(Choices{strided_view(ids_TK)}, {strided_view(a_TK)},
                                      view(w_EH), view(out_TH), memory));
  EXPECT_REFUSED(gate_backward_weights(Choices{strided_view(ids_TK)}, {strided_view(a_TK)},
                                       view(x_TH), view(out_EH), memory));
  EXPECT_REFUSED(
      gate_backward_bias(Choices{strided_view(ids_TK)}, {strided_view(a_TK)}, all(floats_E)));
  EXPECT_REFUSED(gate_backward_bias(view(logits_TE), all(floats_E)));
  EXPECT_REFUSED(
      gate_logits(view(x_TH), BiasedWeights<float>{w_EH, floats_E}, view(out_TE), memory));
  EXPECT_REFUSED(soft_cap_logits(1, view(out_TE)));
  EXPECT_REFUSED(soft_cap_backward(1, view(logits_TE), view(out_TE)));
  EXPECT_REFUSED(
      soft_cap_backward(1, view(logits_TE), Choices{strided_view(ids_TK)}, strided_view(a_TK)));
  EXPECT_REFUSED(
      merge_logit_gradients(Choices{strided_view(ids_TK)}, {strided_view(a_TK)}, view(out_TE)));
  EXPECT_REFUSED(
      route_logits_backward<float>({logits_TE}, rivals, rule, chosen, {a_TK, b_TK, c_TK}, memory));
}

TEST_F(UnknownInstructionSet, IsRefusedByLosses) {
  const ScoreFunction softmax = ScoreFunction::softmax_before_top_k;
  const VectorView<const std::int64_t> counts = all(counts_E);
  const BalanceCounts load{counts, T, 1};
  EXPECT_REFUSED(load_balancing_loss(LossLogits{view(logits_TE), {}, view(out_TE)}, load,
                                     {softmax, K}, {1}, memory));
  EXPECT_REFUSED(sequence_load_balancing_loss(LossLogits{view(logits_TE), {}, view(out_TE)},
                                              SequenceChoices{strided_view(ids_TK), all(begin_S1)},
                                              softmax, {1}, memory));
  EXPECT_REFUSED(z_loss(LossLogits{view(logits_TE), {}, view(out_TE)}, {1}, memory));
  EXPECT_REFUSED(count_unpenalised(view(logits_TE), softmax, K, {}, all(counts_E), memory));
  QuantileRule quantiles;
  quantiles.bins = 2;
  RowMatrix<std::int64_t> counts_EB = RowMatrix<std::int64_t>::Zero(E, 3);
  EXPECT_REFUSED(
      count_needed_bias(view(logits_TE), all(floats_E), {}, 1, quantiles, view(counts_EB), memory));
  MarginCounts margins;
  EXPECT_REFUSED(count_margins(view(logits_TE), rivals, {K}, {}, margins, memory));
}

TEST_F(UnknownInstructionSet, IsRefusedByTheWayToTheExperts) {
  EXPECT_REFUSED(drop_over_capacity(
      Choices{strided_view(ids_TK)}, {1, DropPolicy::position},
      KeptRouting{strided_view(a_TK), strided_view(bytes_TK), all(counts_E)}, memory));
  EXPECT_REFUSED(permute<float>(all(token_N), view(x_TH), view(out_NH)));
  EXPECT_REFUSED(permute_scaled(all(choice_N), strided_view(a_TK), view(x_TH), view(out_NH)));
  EXPECT_REFUSED(permute_scaled_backward_weights(strided_view(row_TK), view(x_TH), view(rows_NH),
                                                 strided_view(b_TK)));
  EXPECT_REFUSED(
      dense_routing(Choices{strided_view(ids_TK)}, E, a_TK, DenseRouting<float>{out_TE}));
  EXPECT_REFUSED(permute_backward(strided_view(row_TK), view(rows_NH), view(out_TH)));
  EXPECT_REFUSED(combine(strided_view(row_TK), strided_view(a_TK), view(rows_NH), view(out_TH)));
  EXPECT_REFUSED(
      combine_backward_rows(all(choice_N), strided_view(a_TK), view(x_TH), view(out_NH)));
  EXPECT_REFUSED(combine_backward_weights(strided_view(row_TK), view(rows_NH), view(x_TH),
                                          strided_view(b_TK)));
}

TEST_F(UnknownInstructionSet, IsRefusedByNoise) {
  EXPECT_REFUSED(jitter_tokens(view(x_TH), 0.1, noise, view(out_TH)));
  EXPECT_REFUSED(jitter_backward(view(x_TH), 0.1, noise, view(out_TH)));
  EXPECT_REFUSED(add_logit_noise(0.1, noise, view(out_TE)));
  EXPECT_REFUSED(random_logits(noise, view(out_TE)));
}

TEST_F(UnknownInstructionSet, IsRefusedByRouters) {
  EXPECT_REFUSED(Router<float>({H, E, K}).refresh(w_EH, 0));
  EXPECT_REFUSED(RoutingBuffers(Router<float>({H, E, K}), T));
  EXPECT_REFUSED(CompleteRouter<float>(CompleteConfig{{H, E, K}}).refresh(w_EH, 0));
  EXPECT_REFUSED(RoutingBuffers(CompleteRouter<float>(CompleteConfig{{H, E, K}}), T));
}

}  // namespace
