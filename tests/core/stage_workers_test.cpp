// SPDX-License-Identifier: MIT
// Every stage that takes an executor leaves workers idle that would get too little work, with the
// same bits.
#include <gatepro/gatepro.hpp>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "support/executors.hpp"
#include "support/inputs.hpp"

namespace {

using data::random_matrix;
using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::ScoreFunction;
using gatepro::strided_view;
using gatepro::view;
using Ids = gatepro::StridedView<const std::int32_t>;
using Bytes = std::vector<unsigned char>;

// Blocks enough for seven workers in any stage.
constexpr Index tokens = 2048, hidden = 24, experts = 8, top_k = 2, rows = tokens * top_k;

/// The inputs of all stages.
struct Batch {
  RowMatrix<float> x_TH = random_matrix<float>(tokens, hidden, 1);
  RowMatrix<float> w_EH = random_matrix<float>(experts, hidden, 2);
  RowMatrix<float> logits_TE = random_matrix<float>(tokens, experts, 3);
  RowMatrix<float> dweights_TK = random_matrix<float>(tokens, top_k, 4);
  RowMatrix<float> rows_NH = random_matrix<float>(rows, hidden, 5);
  RowMatrix<float> weights_TK = random_matrix<float>(tokens, top_k, 6);
  RowMatrix<float> scores_TK{tokens, top_k};
  RowMatrix<std::int32_t> ids_TK{tokens, top_k};
  RowMatrix<std::int32_t> row_TK{tokens, top_k};
  std::vector<std::int32_t> choice_of_row_N = std::vector<std::int32_t>(rows);
  std::vector<std::int32_t> token_of_row_N = std::vector<std::int32_t>(rows);
  std::vector<std::int64_t> counts_E = std::vector<std::int64_t>(experts);
  std::vector<std::int64_t> begin_S1;
  std::vector<std::byte> memory = std::vector<std::byte>(1 << 20);

  Batch() {
    gatepro::RoutingView<float> out{strided_view(ids_TK), strided_view(scores_TK), counts_E};
    out.scores_TK = strided_view(scores_TK);
    out.weights_TK = strided_view(weights_TK);
    gatepro::route_logits<float>({view(logits_TE)}, {}, rule(ScoreFunction::sigmoid), out, memory);
    gatepro::DispatchPlan<> plan;
    plan.choice_of_row_N = choice_of_row_N;
    plan.token_of_row_N = token_of_row_N;
    plan.row_TK = strided_view(row_TK);
    gatepro::plan_dispatch(gatepro::Choices{Ids(strided_view(ids_TK))}, experts, {}, plan, memory);
    for (Index t = 0; t <= tokens; t += tokens / 16) begin_S1.push_back(t);
  }

  static gatepro::SelectionRule rule(ScoreFunction function) {
    gatepro::SelectionRule rule;
    rule.top_k = top_k;
    rule.scores.function = function;
    rule.competition = gatepro::Competition::off();
    return rule;
  }
};

template <class T>
Bytes bytes_of(const T* first, Index count) {
  Bytes bytes(static_cast<std::size_t>(count) * sizeof(T));
  std::memcpy(bytes.data(), first, bytes.size());
  return bytes;
}

template <class M>
Bytes bytes_of(const M& matrix) {
  return bytes_of(matrix.data(), matrix.size());
}

RowMatrix<float> zeros(Index matrix_rows, Index cols) {
  return RowMatrix<float>::Zero(matrix_rows, cols);
}

/// `run(batch, executor)` returns what the stage writes.
template <class Run>
void expect_as_many_as_pay(const std::string& stage, const Run& run) {
  SCOPED_TRACE(stage);
  Batch batch;
  const Bytes want = run(batch, gatepro::SerialExecutor{});
  int most = 0;
  EXPECT_EQ(run(batch, NotingExecutor{1e9, &most}), want);
  EXPECT_EQ(most, 1);
  EXPECT_EQ(run(batch, NotingExecutor{1, &most}), want);
  EXPECT_EQ(most, 7);
}

TEST(StageWorkers, OrthogonalityLoss) {
  for (const bool only_partners : {false, true}) {
    expect_as_many_as_pay("orthogonality_loss", [&](Batch&, const auto& executor) {
      const RowMatrix<float> w = random_matrix<float>(400, hidden, 7);
      const RowMatrix<std::int32_t> partners = RowMatrix<std::int32_t>::Zero(400, 1);
      RowMatrix<float> out = zeros(400, hidden);
      gatepro::OrthogonalityRule rule;
      rule.coefficient = 1;
      rule.only_partners = only_partners;
      std::vector<std::byte> memory(
          gatepro::orthogonality_loss_workspace_bytes<float>(400, hidden, 1, executor));
      gatepro::orthogonality_loss(view(w), strided_view(partners), rule, view(out), memory,
                                  executor);
      return bytes_of(out);
    });
  }
}

TEST(StageWorkers, Dispatch) {
  expect_as_many_as_pay("permute", [](Batch& in, const auto& executor) {
    RowMatrix<float> out(rows, hidden);
    gatepro::permute(gatepro::VectorView<const std::int32_t>(in.token_of_row_N), in.x_TH, view(out),
                     executor);
    return bytes_of(out);
  });
  expect_as_many_as_pay("permute_backward", [](Batch& in, const auto& executor) {
    RowMatrix<float> out = zeros(tokens, hidden);
    gatepro::permute_backward(Ids(strided_view(in.row_TK)), in.rows_NH, view(out), executor);
    return bytes_of(out);
  });
  expect_as_many_as_pay("combine", [](Batch& in, const auto& executor) {
    RowMatrix<float> out = zeros(tokens, hidden);
    gatepro::combine(Ids(strided_view(in.row_TK)), in.weights_TK, view(in.rows_NH), view(out),
                     executor);
    return bytes_of(out);
  });
  expect_as_many_as_pay("combine_backward_rows", [](Batch& in, const auto& executor) {
    RowMatrix<float> out = zeros(rows, hidden);
    gatepro::combine_backward_rows(gatepro::VectorView<const std::int32_t>(in.choice_of_row_N),
                                   in.weights_TK, in.x_TH, view(out), executor);
    return bytes_of(out);
  });
  expect_as_many_as_pay("combine_backward_weights", [](Batch& in, const auto& executor) {
    RowMatrix<float> out = zeros(tokens, top_k);
    gatepro::combine_backward_weights(Ids(strided_view(in.row_TK)), view(in.rows_NH), in.x_TH,
                                      strided_view(out), executor);
    return bytes_of(out);
  });
  expect_as_many_as_pay("permute_scaled", [](Batch& in, const auto& executor) {
    RowMatrix<float> out(rows, hidden);
    gatepro::permute_scaled(gatepro::VectorView<const std::int32_t>(in.choice_of_row_N),
                            in.weights_TK, in.x_TH, view(out), executor);
    return bytes_of(out);
  });
  expect_as_many_as_pay("permute_scaled_backward_weights", [](Batch& in, const auto& executor) {
    RowMatrix<float> out = zeros(tokens, top_k);
    gatepro::permute_scaled_backward_weights(Ids(strided_view(in.row_TK)), view(in.x_TH),
                                             in.rows_NH, strided_view(out), executor);
    return bytes_of(out);
  });
  expect_as_many_as_pay("dense_routing", [](Batch& in, const auto& executor) {
    RowMatrix<float> out(tokens, experts);
    gatepro::dense_routing(gatepro::Choices{Ids(strided_view(in.ids_TK))}, experts, in.weights_TK,
                           gatepro::DenseRouting<float>{out}, executor);
    return bytes_of(out);
  });
  expect_as_many_as_pay("drop_over_capacity", [](Batch& in, const auto& executor) {
    RowMatrix<float> out = in.weights_TK;
    RowMatrix<std::uint8_t> kept(tokens, top_k);
    gatepro::drop_over_capacity(
        gatepro::Choices{Ids(strided_view(in.ids_TK))}, {tokens / experts},
        gatepro::KeptRouting<float>{strided_view(out), strided_view(kept), in.counts_E}, in.memory,
        executor);
    return bytes_of(out);
  });
}

template <class Loss>
void expect_loss_as_many_as_pay(const std::string& stage, const Loss& loss) {
  for (const bool gradient : {false, true}) {
    expect_as_many_as_pay(stage, [&](Batch& in, const auto& executor) {
      RowMatrix<float> dlogits = zeros(tokens, experts);
      gatepro::LossLogits<float> logits{view(in.logits_TE)};
      if (gradient) logits.dlogits_TE = view(dlogits);
      const double value = loss(in, logits, executor);
      Bytes bytes = bytes_of(dlogits);
      for (const unsigned char byte : bytes_of(&value, 1)) bytes.push_back(byte);
      return bytes;
    });
  }
}

TEST(StageWorkers, Losses) {
  constexpr auto function = ScoreFunction::softmax_before_top_k;
  expect_loss_as_many_as_pay("z_loss", [](Batch& in, const auto& logits, const auto& executor) {
    return gatepro::z_loss(logits, {1}, in.memory, executor);
  });
  expect_loss_as_many_as_pay(
      "load_balancing_loss", [&](Batch& in, const auto& logits, const auto& executor) {
        return gatepro::load_balancing_loss(logits, {in.counts_E, tokens}, {function, top_k}, {1},
                                            in.memory, executor);
      });
  expect_loss_as_many_as_pay(
      "sequence_load_balancing_loss", [&](Batch& in, const auto& logits, const auto& executor) {
        return gatepro::sequence_load_balancing_loss(
            logits, gatepro::SequenceChoices{Ids(strided_view(in.ids_TK)), in.begin_S1}, function,
            {1}, in.memory, executor);
      });
}

TEST(StageWorkers, SoftCap) {
  expect_as_many_as_pay("soft_cap_logits", [](Batch& in, const auto& executor) {
    RowMatrix<float> out = in.logits_TE;
    gatepro::soft_cap_logits(1, view(out), executor);
    return bytes_of(out);
  });
  expect_as_many_as_pay("soft_cap_backward of all", [](Batch& in, const auto& executor) {
    RowMatrix<float> out = in.logits_TE;
    gatepro::soft_cap_backward(2, view(in.logits_TE), view(out), executor);
    return bytes_of(out);
  });
  expect_as_many_as_pay("soft_cap_backward of the selected", [](Batch& in, const auto& executor) {
    RowMatrix<float> out = in.weights_TK;
    gatepro::soft_cap_backward(2, view(in.logits_TE),
                               gatepro::Choices{Ids(strided_view(in.ids_TK))}, strided_view(out),
                               executor);
    return bytes_of(out);
  });
}

TEST(StageWorkers, Noise) {
  expect_as_many_as_pay("jitter_tokens", [](Batch& in, const auto& executor) {
    RowMatrix<float> out(tokens, hidden);
    gatepro::jitter_tokens(in.x_TH, 0.1, {}, view(out), executor);
    return bytes_of(out);
  });
  expect_as_many_as_pay("jitter_backward", [](Batch& in, const auto& executor) {
    RowMatrix<float> out = zeros(tokens, hidden);
    gatepro::jitter_backward(in.x_TH, 0.1, {}, view(out), executor);
    return bytes_of(out);
  });
  expect_as_many_as_pay("add_logit_noise", [](Batch& in, const auto& executor) {
    RowMatrix<float> out = in.logits_TE;
    gatepro::add_logit_noise(0.1, {}, view(out), executor);
    return bytes_of(out);
  });
  expect_as_many_as_pay("random_logits", [](Batch&, const auto& executor) {
    RowMatrix<float> out(tokens, experts);
    gatepro::random_logits({}, view(out), executor);
    return bytes_of(out);
  });
}

TEST(StageWorkers, GradientOfLogits) {
  for (const bool dense : {false, true}) {
    expect_as_many_as_pay("merge_logit_gradients", [&](Batch& in, const auto& executor) {
      RowMatrix<float> out = zeros(tokens, experts);
      gatepro::LogitGradients<float> gradients{strided_view(in.dweights_TK)};
      if (dense) gradients.dlogits_TE = view(in.logits_TE);
      gatepro::merge_logit_gradients(gatepro::Choices{Ids(strided_view(in.ids_TK))}, gradients,
                                     view(out), executor);
      return bytes_of(out);
    });
  }
}

TEST(StageWorkers, Routing) {
  expect_as_many_as_pay("apply_competition", [](Batch& in, const auto& executor) {
    RowMatrix<float> out(tokens, experts);
    gatepro::apply_competition(in.logits_TE, {}, gatepro::Competition::off(), view(out), {},
                               in.memory, executor);
    return bytes_of(out);
  });
  expect_as_many_as_pay("select_top_k", [](Batch& in, const auto& executor) {
    RowMatrix<std::int32_t> ids(tokens, top_k);
    RowMatrix<float> out(tokens, top_k);
    gatepro::select_top_k(in.logits_TE, {}, strided_view(ids), strided_view(out), in.memory,
                          executor);
    return bytes_of(ids);
  });
  expect_as_many_as_pay("softmax_selected", [](Batch& in, const auto& executor) {
    RowMatrix<float> out(tokens, top_k);
    gatepro::softmax_selected(in.weights_TK, strided_view(out), in.memory, executor);
    return bytes_of(out);
  });
  for (const auto function : {ScoreFunction::softmax_after_top_k, ScoreFunction::sigmoid}) {
    expect_as_many_as_pay("route_logits_backward", [&](Batch& in, const auto& executor) {
      RowMatrix<float> out(tokens, top_k);
      gatepro::route_logits_backward<float>(
          {view(in.logits_TE)}, {}, Batch::rule(function),
          gatepro::RecordedChoices<std::int32_t>{strided_view(in.ids_TK)},
          {in.scores_TK, in.dweights_TK, strided_view(out)}, in.memory, executor);
      return bytes_of(out);
    });
  }
}

}  // namespace
