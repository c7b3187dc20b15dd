// SPDX-License-Identifier: MIT
// Mistakes that users of other routers reported about auxiliary losses and balancing, one test
// each.
#include <gatepro/balance/expert_bias.hpp>
#include <gatepro/balance/load_balancing_loss.hpp>
#include <gatepro/balance/z_loss.hpp>
#include <gatepro/dispatch/capacity.hpp>
#include <gatepro/router/router.hpp>
#include <gatepro/routing/tokens_per_expert.hpp>
#include <gatepro/routing/top_k.hpp>

#include <algorithm>
#include <vector>

#include "support/bits.hpp"
#include "support/conversions.hpp"
#include "support/errors.hpp"
#include "support/inputs.hpp"
#include "support/losses.hpp"
#include "support/memory.hpp"
#include "support/ranks.hpp"
#include "support/reference/losses.hpp"

namespace {

using gatepro::BalanceAccumulator;
using gatepro::Index;
using gatepro::NoReduce;
using gatepro::RowMatrix;
using gatepro::ScoreFunction;
using losses::Counts;
using losses::Mask;
using Ids = RowMatrix<std::int32_t>;
using Logits = RowMatrix<float>;

constexpr Index experts = 8;
constexpr Index top_k = 2;

/// The top k of the logits.
Ids select(const Logits& logits_TE, Index k = top_k) {
  Ids ids_TK(logits_TE.rows(), k);
  Logits selected_TK(logits_TE.rows(), k);
  auto memory = data::scratch(gatepro::select_top_k_workspace_bytes<float>(logits_TE.cols(), k));
  gatepro::select_top_k(gatepro::view(logits_TE), {}, gatepro::strided_view(ids_TK),
                        gatepro::strided_view(selected_TK), memory);
  return ids_TK;
}

/// Logits that prefer the first experts.
Logits uneven_logits(Index tokens, std::uint64_t seed) {
  Logits logits_TE = data::random_matrix<float>(tokens, experts, seed);
  for (Index e = 0; e < experts; ++e) {
    logits_TE.col(e).array() += 0.3F * static_cast<float>(experts - e);
  }
  return logits_TE;
}

/// All losses that a batch may have, added to the same gradient.
void add_losses(const Logits& logits_TE, const gatepro::BalanceCounts& counts,
                std::int64_t mean_over, const Mask& mask, Logits& dlogits_TE) {
  auto memory = data::scratch(
      std::max(gatepro::load_balancing_loss_workspace_bytes<float>(logits_TE.rows(), experts),
               gatepro::z_loss_workspace_bytes<float>(logits_TE.rows(), experts)));
  const auto logits = gatepro::view(logits_TE);
  for (const ScoreFunction function : data::score_functions) {
    gatepro::load_balancing_loss(gatepro::LossLogits{logits, data::optional(mask), dlogits_TE},
                                 counts, {function, top_k}, {1e-2, mean_over, 128}, memory);
  }
  gatepro::z_loss(gatepro::LossLogits{logits, data::optional(mask), dlogits_TE},
                  {1e-3, mean_over, 128}, memory);
}

// NVIDIA/Megatron-LM 5047 and 1652: the gradient depended on the number of ranks.
TEST(Regression, AuxLossGradientDoesNotDependOnShardCount) {
  const Index tokens = 48;
  const Logits logits_TE = uneven_logits(tokens, 1);
  const Ids ids_TK = select(logits_TE);
  const Counts counts = losses::count(ids_TK, experts);
  Logits want_TE = Logits::Zero(tokens, experts);
  add_losses(logits_TE, {counts, tokens}, tokens, {}, want_TE);
  EXPECT_GT(want_TE.cwiseAbs().maxCoeff(), 0.F);

  for (const int ranks : {1, 2, 3, 8}) {
    const Index share = tokens / ranks;
    Logits got_TE = Logits::Zero(tokens, experts);
    run_ranks(ranks, [&](int rank, const auto& reduce) {
      const Logits mine_TE = logits_TE.middleRows(rank * share, share);
      const Counts my_counts = losses::count(Ids(ids_TK.middleRows(rank * share, share)), experts);
      BalanceAccumulator sums(experts);
      sums.add({my_counts, share}, reduce);
      Logits my_gradient_TE = Logits::Zero(share, experts);
      add_losses(mine_TE, sums.latest(), sums.latest().tokens, {}, my_gradient_TE);
      got_TE.middleRows(rank * share, share) = my_gradient_TE;
    });
    EXPECT_TRUE(data::same_bits(got_TE, want_TE)) << ranks;
  }
}

// The same for micro-batches whose counts are known, equal or not.
TEST(Regression, AuxLossGradientDoesNotDependOnMicroBatchSplit) {
  const Index tokens = 50;
  const Logits logits_TE = uneven_logits(tokens, 2);
  const Counts counts = losses::count(select(logits_TE), experts);
  Logits want_TE = Logits::Zero(tokens, experts);
  add_losses(logits_TE, {counts, tokens}, tokens, {}, want_TE);
  for (const std::vector<Index>& cuts : {std::vector<Index>{0, 25, 50}, {0, 1, 37, 40, 50}}) {
    Logits got_TE(tokens, experts);
    for (std::size_t i = 0; i + 1 < cuts.size(); ++i) {
      const Index count = cuts[i + 1] - cuts[i];
      Logits part_TE = Logits::Zero(count, experts);
      add_losses(logits_TE.middleRows(cuts[i], count), {counts, tokens}, tokens, {}, part_TE);
      got_TE.middleRows(cuts[i], count) = part_TE;
    }
    EXPECT_TRUE(data::same_bits(got_TE, want_TE));
  }
}

// NVIDIA/Megatron-LM 5798: the gradient of the loss per sequence carried a factor 1 / (sequences of
// the micro-batch), unseen because the value was logged before it.
TEST(Regression, SequenceLossGradientDoesNotDependOnMicroBatchSize) {
  const Index sequences = 8, length = 12, tokens = sequences * length;
  const Logits logits_TE = uneven_logits(tokens, 3);
  const Ids ids_TK = select(logits_TE);
  for (const ScoreFunction function : data::score_functions) {
    losses::Loss<float> want;
    for (Index size : {8, 4, 2, 1}) {
      losses::Loss<float> got{0, Logits(tokens, experts)};
      Counts begin;
      for (Index s = 0; s <= size; ++s) begin.push_back(s * length);
      for (Index first = 0; first < tokens; first += size * length) {
        const auto part = losses::per_sequence(Logits(logits_TE.middleRows(first, size * length)),
                                               Ids(ids_TK.middleRows(first, size * length)), begin,
                                               function, {1e-2, sequences, 64});
        got.value += part.value;
        got.dlogits_TE.middleRows(first, size * length) = part.dlogits_TE;
      }
      if (size == sequences) want = got;
      losses::expect_same_value(got.value, want.value);
      EXPECT_TRUE(data::same_bits(got.dlogits_TE, want.dlogits_TE)) << size;
    }
  }
}

// Ragged sequences that are all in balance have the coefficient as their loss. With the mean length
// in place of each one's own, lengths of 4 and 2 would give 10/9 of it.
TEST(Regression, RaggedSequencesInBalanceGiveTheCoefficient) {
  const Index tokens = 4 + 2 + 8;
  const RowMatrix<double> logits_TE = data::random_matrix<double>(tokens, 2, 4);
  Ids ids_TK(tokens, 1);
  for (Index t = 0; t < tokens; ++t) ids_TK(t, 0) = static_cast<std::int32_t>(t % 2);
  for (const ScoreFunction function : data::score_functions) {
    const auto got = losses::per_sequence(logits_TE, ids_TK, {0, 4, 6, 14}, function, {0.01});
    EXPECT_NEAR(got.value, 0.01, 1e-16);
    EXPECT_LE(got.dlogits_TE.cwiseAbs().maxCoeff(), 1e-17);
  }
}

// A sequence's loss and gradient are its own, whatever it is packed with.
TEST(Regression, PackingDoesNotChangeASequence) {
  const Logits logits_TE = uneven_logits(30, 5);
  const Ids ids_TK = select(logits_TE);
  const Counts begin{0, 7, 7, 19, 30};
  for (const ScoreFunction function : data::score_functions) {
    const auto packed = losses::per_sequence(logits_TE, ids_TK, begin, function, {1, 3});
    double sum = 0;
    for (std::size_t s = 0; s + 1 < begin.size(); ++s) {
      const Index first = begin[s], count = begin[s + 1] - first;
      const auto alone =
          losses::per_sequence(Logits(logits_TE.middleRows(first, count)),
                               Ids(ids_TK.middleRows(first, count)), {0, count}, function, {1, 3});
      EXPECT_TRUE(
          data::same_bits(Logits(packed.dlogits_TE.middleRows(first, count)), alone.dlogits_TE));
      sum += alone.value;
    }
    losses::expect_same_value(packed.value, sum);
  }
}

// NVIDIA/Megatron-LM 7213: accumulated counts were divided by the tokens of the current
// micro-batch.
TEST(Regression, GlobalLossDividesAccumulatedCountsByAccumulatedTokens) {
  const std::vector<Index> sizes{40, 8, 16};
  const std::int64_t step_tokens = 64;
  BalanceAccumulator sums(experts);
  double even_value = 0, value = 0, want_value = 0;
  Counts accumulated(experts, 0);
  std::int64_t tokens = 0;
  for (const Index size : sizes) {
    const Logits logits_TE = uneven_logits(size, 6 + static_cast<std::uint64_t>(size));
    // In balance: micro-batches of any size give the coefficient, each by its tokens.
    const Counts even(experts, size * top_k / experts);
    sums.add({even, size});
    even_value +=
        losses::balance(logits_TE, ScoreFunction::sigmoid, top_k, sums.total(), {0.01, step_tokens})
            .value;
  }
  EXPECT_NEAR(even_value, 0.01, 1e-8);

  sums.reset();
  for (const Index size : sizes) {
    const Logits logits_TE = uneven_logits(size, 6 + static_cast<std::uint64_t>(size));
    const Counts counts = losses::count(select(logits_TE), experts);
    for (std::size_t e = 0; e < counts.size(); ++e) accumulated[e] += counts[e];
    tokens += size;
    sums.add({counts, size});
    value +=
        losses::balance(logits_TE, ScoreFunction::sigmoid, top_k, sums.total(), {0.01, step_tokens})
            .value;
    want_value += reference::balance_loss(data::to_reference(logits_TE), ScoreFunction::sigmoid,
                                          0.01, top_k, accumulated, static_cast<double>(tokens),
                                          static_cast<double>(step_tokens))
                      .value;
    // Accumulated counts that come with the tokens of one micro-batch are refused.
    const gatepro::BalanceCounts mixed{sums.total().tokens_per_expert_E, size};
    if (tokens == size) continue;
    expect_error([&] { losses::balance(logits_TE, ScoreFunction::sigmoid, top_k, mixed, {0.01}); },
                 {"load_balancing_loss", "counts", "tokens="});
  }
  EXPECT_NEAR(value, want_value, 1e-7);
}

// NVIDIA/Megatron-LM 1513: counts after a capacity limit hide the imbalance that causes the drops.
TEST(Regression, CapacityDoesNotHideImbalanceFromTheLoss) {
  const Index tokens = 64;
  Logits logits_TE = uneven_logits(tokens, 7);
  logits_TE.leftCols(2).array() += 9.F;
  const Ids ids_TK = select(logits_TE);
  Counts dispatched(experts, 0);
  gatepro::add_tokens_per_expert(gatepro::strided_view(ids_TK),
                                 gatepro::VectorView<std::int64_t>(dispatched));
  Logits weights_TK = Logits::Constant(tokens, top_k, 0.5F);
  RowMatrix<std::uint8_t> kept_TK(tokens, top_k);
  Counts kept(experts, 0);
  const gatepro::DropPolicy policy = gatepro::DropPolicy::position;
  auto memory = data::scratch(
      gatepro::drop_over_capacity_workspace_bytes<float>(tokens, experts, top_k, policy));
  gatepro::drop_over_capacity(
      gatepro::Choices{gatepro::strided_view(ids_TK)}, {16, policy},
      gatepro::KeptRouting{gatepro::strided_view(weights_TK), gatepro::strided_view(kept_TK),
                           gatepro::VectorView<std::int64_t>(kept)},
      memory);
  const auto loss = [&](const Counts& counts) {
    return losses::balance(logits_TE, ScoreFunction::softmax_before_top_k, top_k, {counts, tokens},
                           {1})
        .value;
  };
  // The ids are those before the drop, so the counts of the dispatch are.
  EXPECT_EQ(dispatched, losses::count(ids_TK, experts));
  EXPECT_NEAR(loss(dispatched), 4, 0.1);  // E / K: collapse
  EXPECT_LT(loss(kept), 1.1);
}

// NVIDIA/Megatron-LM 7081 and 1482: counts in bfloat16, whose spacing at 40840 is 256, turned the
// sign of the bias update.
TEST(Regression, CountsAreNeverRounded) {
  const Counts counts{40840, 40841, 40839, 40840};
  gatepro::ExpertBias<float> bias(4);
  bias.accumulate(counts);
  bias.step(NoReduce(), 1e-3);
  EXPECT_EQ(bias.values()[0], 0);
  EXPECT_LT(bias.values()[1], 0);
  EXPECT_GT(bias.values()[2], 0);
  EXPECT_EQ(bias.values()[3], 0);
  // Nor in micro-batches, where single tokens would be lost against the sum.
  gatepro::ExpertBias<float> slow(2);
  const Counts start{std::int64_t{1} << 30, std::int64_t{1} << 30}, one{1, 0};
  slow.accumulate(start);
  slow.accumulate(one);
  slow.step(NoReduce(), 1e-3);
  EXPECT_LT(slow.values()[0], 0);
  EXPECT_GT(slow.values()[1], 0);
}

// NVIDIA/Megatron-LM 1984 and 2121, pytorch/torchtitan 4594, huggingface/transformers 28505:
// padding counted in losses and bias.
TEST(Regression, PaddingCountsNowhere) {
  const Index tokens = 60;
  const Mask mask = data::random_mask(tokens, 8);
  Logits logits_TE = uneven_logits(tokens, 9);
  const Ids ids_TK = select(logits_TE);
  const Logits valid_TE = losses::valid_rows(logits_TE, mask);
  const Ids valid_TK = losses::valid_rows(ids_TK, mask);
  const Counts counts = losses::count(ids_TK, experts, mask);
  ASSERT_EQ(counts, losses::count(valid_TK, experts));
  for (Index t = 0; t < tokens; ++t) {
    if (mask[static_cast<std::size_t>(t)] != 0) logits_TE.row(t).setConstant(-3e38F);
  }
  Logits want_TE = Logits::Zero(valid_TE.rows(), experts);
  add_losses(valid_TE, {counts, losses::valid(mask)}, 0, {}, want_TE);
  Logits got_TE = Logits::Zero(tokens, experts);
  add_losses(logits_TE, {counts, losses::valid(mask)}, 0, mask, got_TE);
  EXPECT_TRUE(data::same_bits(losses::valid_rows(got_TE, mask), want_TE));
  for (Index t = 0; t < tokens; ++t) {
    if (mask[static_cast<std::size_t>(t)] != 0) {
      EXPECT_TRUE(got_TE.row(t).isZero(0));
    }
  }
}

// huggingface/transformers 43775: without 1 / k the loss in balance is k times the coefficient.
TEST(Regression, LossInBalanceIsTheCoefficientForEveryK) {
  for (Index k = 1; k <= experts; ++k) {
    const RowMatrix<double> logits_TE = data::random_matrix<double>(experts, experts, 10);
    const Counts even(experts, k);
    for (const ScoreFunction function : data::score_functions) {
      EXPECT_NEAR(losses::balance(logits_TE, function, k, {even, experts}, {0.01}).value, 0.01,
                  1e-16);
    }
  }
}

// huggingface/transformers 45120: a softmax of a softmax. The loss takes logits, and scores them
// once: adding a constant to them changes nothing, which no second softmax would survive.
TEST(Regression, LossScoresLogitsOnce) {
  const RowMatrix<double> logits_TE = data::random_matrix<double>(20, experts, 11) * 4;
  const RowMatrix<double> moved_TE = (logits_TE.array() + 3).matrix();
  const Counts counts{20, 10, 5, 5, 0, 0, 0, 0};
  const auto loss = [&](const RowMatrix<double>& l) {
    return losses::balance(l, ScoreFunction::softmax_before_top_k, top_k, {counts, 20}, {1});
  };
  EXPECT_NEAR(loss(logits_TE).value, loss(moved_TE).value, 1e-14);
  losses::expect_close(
      loss(logits_TE),
      reference::balance_loss(data::to_reference(logits_TE), ScoreFunction::softmax_before_top_k, 1,
                              top_k, counts, 20, 20),
      50);
}

// NVIDIA/Megatron-LM 894: with one expert per token and softmax after top-k, weights are constant
// and only the losses teach the router.
TEST(Regression, TopOneRouterLearnsFromTheLosses) {
  const Index tokens = 40, hidden = 5;
  gatepro::RouterConfig config{hidden, experts, 1};
  config.competition = gatepro::Competition::off();
  const gatepro::Router<float> router(config);
  gatepro::RoutingBuffers<gatepro::Router<float>> buffers(router,
                                                          gatepro::BufferShape{tokens, 1, 1, true});
  const Logits x_TH = data::random_matrix<float>(tokens, hidden, 12);
  const Logits w_EH = data::random_matrix<float>(experts, hidden, 13);
  router.forward(x_TH, w_EH, buffers);

  Logits dlogits_TE = Logits::Zero(tokens, experts);
  auto memory = data::scratch(gatepro::load_balancing_loss_workspace_bytes<float>(tokens, experts));
  gatepro::load_balancing_loss(gatepro::LossLogits{buffers.logits_TE(), {}, dlogits_TE},
                               {buffers.tokens_per_expert_E(), tokens},
                               {ScoreFunction::softmax_after_top_k, 1}, {1e-2}, memory);
  const Logits dweights_TK = data::random_matrix<float>(tokens, 1, 14);
  Logits dx_TH = Logits::Zero(tokens, hidden), dw_EH = Logits::Zero(experts, hidden);
  router.backward(x_TH, w_EH, buffers, {dweights_TK, dlogits_TE}, {dx_TH, dw_EH});
  EXPECT_GT(dw_EH.cwiseAbs().maxCoeff(), 1e-6F);
  const RowMatrix<double> want_EH = dlogits_TE.cast<double>().transpose() * x_TH.cast<double>();
  EXPECT_LE((dw_EH.cast<double>() - want_EH).cwiseAbs().maxCoeff(), 1e-8);
}

// A forward that is recomputed gives the gradient again, and counts nothing twice: only `add` and
// `accumulate` count, and neither belongs to a loss.
TEST(Regression, RecomputationGivesTheSameGradientAndCountsNothing) {
  const Logits logits_TE = uneven_logits(33, 15);
  const Ids ids_TK = select(logits_TE);
  const Counts counts = losses::count(ids_TK, experts);
  BalanceAccumulator sums(experts);
  sums.add({counts, 33});
  Logits first_TE = Logits::Zero(33, experts), again_TE = first_TE;
  add_losses(logits_TE, sums.total(), 33, {}, first_TE);
  ASSERT_TRUE(data::same_bits(select(logits_TE), ids_TK));
  add_losses(logits_TE, sums.total(), 33, {}, again_TE);
  EXPECT_TRUE(data::same_bits(first_TE, again_TE));
  EXPECT_EQ(sums.total().tokens, 33);
}

// Losses add: together they leave what each leaves alone, one after the other.
TEST(Regression, SeveralLossesAddUp) {
  const Logits logits_TE = uneven_logits(21, 16);
  const Ids ids_TK = select(logits_TE);
  const Counts counts = losses::count(ids_TK, experts);
  Logits together_TE = Logits::Zero(21, experts), sum_TE = together_TE;
  add_losses(logits_TE, {counts, 21}, 0, {}, together_TE);
  for (const ScoreFunction function : data::score_functions) {
    sum_TE += losses::balance(logits_TE, function, top_k, {counts, 21}, {1e-2, 0, 128}).dlogits_TE;
  }
  sum_TE += losses::z_loss(logits_TE, {1e-3, 0, 128}).dlogits_TE;
  EXPECT_TRUE(data::same_bits(together_TE, sum_TE));
}

}  // namespace
