// SPDX-License-Identifier: MIT
// The load-balancing losses and their gradients: against the definition, finite differences, known
// values, and themselves cut up.
#include <gatepro/balance/load_balancing_loss.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "support/bits.hpp"
#include "support/conversions.hpp"
#include "support/errors.hpp"
#include "support/executors.hpp"
#include "support/ids.hpp"
#include "support/inputs.hpp"
#include "support/losses.hpp"
#include "support/memory.hpp"
#include "support/reference/losses.hpp"
#include "support/reference/scores.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::BalanceCounts;
using gatepro::Index;
using gatepro::LossWeight;
using gatepro::MatrixView;
using gatepro::RowMatrix;
using gatepro::ScoreFunction;
using gatepro::StridedView;
using losses::Counts;
using losses::Mask;
using Ids = RowMatrix<std::int32_t>;

/// The whole batch with its own counts.
template <class A, class Executor = gatepro::SerialExecutor>
losses::Loss<A> batch_loss(const RowMatrix<A>& logits_TE, const Ids& ids_TK, ScoreFunction function,
                           const LossWeight& weight, const Mask& mask = {},
                           const Executor& executor = {}) {
  const Counts counts = losses::count(ids_TK, logits_TE.cols(), mask);
  const std::int64_t tokens = mask.empty() ? logits_TE.rows() : losses::valid(mask);
  return losses::balance(logits_TE, function, ids_TK.cols(), {counts, tokens}, weight, mask,
                         executor);
}

/// Borders of sequences of random lengths, some of them 0.
Counts random_borders(Index tokens, Index sequences, std::uint64_t seed) {
  Counts borders{0, tokens};
  for (Index s = 1; s < sequences; ++s) {
    borders.push_back(data::random_below(tokens + 1, seed, static_cast<std::uint64_t>(s)));
  }
  std::sort(borders.begin(), borders.end());
  return borders;
}

template <class A>
class BalanceLossTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(BalanceLossTest, Scalars, TypeNames);

TYPED_TEST(BalanceLossTest, MatchesTheDefinition) {
  using A = TypeParam;
  for (const ScoreFunction function : data::score_functions) {
    for (Index experts : {1, 2, 7, 16, 40}) {
      for (Index tokens : {1, 5, 300}) {
        for (double scale : {0.1, 4.0, 30.0}) {
          SCOPED_TRACE(testing::Message() << static_cast<int>(function) << " " << experts << " "
                                          << tokens << " " << scale);
          const Index top_k = std::min<Index>(experts, 3);
          const RowMatrix<A> logits_TE =
              data::random_matrix<A>(tokens, experts, 1) * static_cast<A>(scale);
          const auto reference_TE = data::to_reference(logits_TE);
          const Ids ids_TK = data::random_ids<std::int32_t>(tokens, experts, top_k, 2);
          const Mask mask = data::random_mask(tokens, 3);
          const Counts counts = losses::count(ids_TK, experts);
          const auto n = static_cast<double>(tokens), k = static_cast<double>(top_k);
          losses::expect_close(
              losses::balance(logits_TE, function, top_k, {counts, tokens}, {0.01}),
              reference::balance_loss(reference_TE, function, 0.01, k, counts, n, n), 100 + scale);
          losses::expect_close(
              losses::balance(logits_TE, function, top_k, {counts, tokens + 9}, {0.01, 777}, mask),
              reference::balance_loss(reference_TE, function, 0.01, k, counts, n + 9, 777, mask),
              100 + scale);
        }
      }
    }
  }
}

TEST(BalanceLoss, GradientAgreesWithFiniteDifferences) {
  for (const ScoreFunction function : data::score_functions) {
    for (Index experts : {2, 5, 9}) {
      const RowMatrix<double> logits_TE = data::random_matrix<double>(4, experts, 4) * 2;
      const Ids ids_TK = data::random_ids<std::int32_t>(4, experts, 2, 5);
      Counts counts(static_cast<std::size_t>(experts), 0);
      counts[0] = 4;
      counts[1] = 3;
      losses::expect_finite_differences(logits_TE, [&](const RowMatrix<double>& moved_TE) {
        return losses::balance(moved_TE, function, 2, {counts, 4}, {1.0});
      });
    }
  }
}

TEST(BalanceLoss, GradientPerSequenceAgreesWithFiniteDifferences) {
  for (const ScoreFunction function : data::score_functions) {
    const RowMatrix<double> logits_TE = data::random_matrix<double>(9, 5, 6) * 2;
    const Ids ids_TK = data::random_ids<std::int32_t>(9, 5, 2, 7);
    losses::expect_finite_differences(logits_TE, [&](const RowMatrix<double>& moved_TE) {
      return losses::per_sequence(moved_TE, ids_TK, {0, 2, 2, 6, 9}, function, {1.0});
    });
  }
}

// Equal loads give c. All on the same K experts, with scores to match, give c E / K.
TYPED_TEST(BalanceLossTest, EqualLoadsGiveTheCoefficient) {
  using A = TypeParam;
  const double eps = static_cast<double>(std::numeric_limits<A>::epsilon());
  for (const ScoreFunction function : data::score_functions) {
    for (Index top_k : {1, 2, 4}) {
      const RowMatrix<A> logits_TE = data::random_matrix<A>(48, 8, 8) * A(3);
      const Counts even(8, 48 * top_k / 8);
      const auto got = losses::balance(logits_TE, function, top_k, {even, 48}, {0.25});
      EXPECT_NEAR(got.value, 0.25, 8 * eps);
      EXPECT_LE(static_cast<double>(got.dlogits_TE.cwiseAbs().maxCoeff()), eps);

      RowMatrix<A> collapsed_TE = RowMatrix<A>::Constant(48, 8, A(-160));
      collapsed_TE.leftCols(top_k).setConstant(A(60));
      Counts collapsed(8, 0);
      std::fill_n(collapsed.begin(), top_k, std::int64_t{48});
      EXPECT_NEAR(losses::balance(collapsed_TE, function, top_k, {collapsed, 48}, {0.25}).value,
                  0.25 * 8 / static_cast<double>(top_k), 64 * eps);
    }
  }
}

// Where tokens make different numbers of choices, K is their mean: equal loads give c all the same.
TYPED_TEST(BalanceLossTest, TheMeanNumberOfChoicesStandsForAKThatVaries) {
  using A = TypeParam;
  const Index tokens = 60, experts = 7, top_k = 4;
  const RowMatrix<A> logits_TE = data::random_matrix<A>(tokens, experts, 30) * A(2);
  const auto reference_TE = data::to_reference(logits_TE);
  const Mask mask = data::random_mask(tokens, 31);
  const Counts begin{0, 17, 17, 44, tokens};
  Ids ids_TK = data::random_ids<std::int32_t>(tokens, experts, top_k, 32);
  for (Index t = 0; t < tokens; ++t) {
    for (Index j = t % (top_k + 1); j < top_k; ++j) ids_TK(t, j) = -1;
  }
  const Counts counts = losses::count(ids_TK, experts, mask);
  const auto valid = losses::valid(mask);
  const auto n = static_cast<double>(valid);
  const auto made =
      static_cast<double>(std::accumulate(counts.begin(), counts.end(), std::int64_t{0}));
  for (const ScoreFunction function : data::score_functions) {
    const auto run = [&](const Counts& counts_E, std::int64_t of) {
      return losses::on_zeros(logits_TE, [&](const auto& dlogits) {
        auto memory =
            data::scratch(gatepro::load_balancing_loss_workspace_bytes<A>(tokens, experts));
        return gatepro::load_balancing_loss(
            gatepro::LossLogits{gatepro::view(logits_TE), data::optional(mask), dlogits},
            {counts_E, of}, {function, top_k, /*k_varies=*/true}, {0.25}, memory);
      });
    };
    const auto want =
        reference::balance_loss(reference_TE, function, 0.25, made / n, counts, n, n, mask);
    losses::expect_close(run(counts, valid), want, 100);
    const double eps = static_cast<double>(std::numeric_limits<A>::epsilon());
    const Counts even(7, 11);
    EXPECT_NEAR(run(even, valid).value, 0.25, 8 * eps);
    EXPECT_EQ(run(Counts(7, 0), valid).value, 0);
    std::vector<double> share_sums_E(7, n / 7);
    EXPECT_NEAR(gatepro::load_balancing_loss_value(share_sums_E, {even, valid}, top_k, {0.25},
                                                   /*k_varies=*/true),
                0.25, 1e-14);

    const auto sequences = losses::on_zeros(logits_TE, [&](const auto& dlogits) {
      auto memory = data::scratch(
          gatepro::sequence_load_balancing_loss_workspace_bytes<A>(tokens, experts, 4));
      return gatepro::sequence_load_balancing_loss(
          gatepro::LossLogits{gatepro::view(logits_TE), data::optional(mask), dlogits},
          gatepro::SequenceChoices{gatepro::strided_view(ids_TK), begin, /*k_varies=*/true},
          function, {0.25}, memory);
    });
    losses::expect_close(sequences,
                         reference::sequence_balance_loss(reference_TE, data::to_ids(ids_TK), begin,
                                                          function, 0.25, mask, /*k_varies=*/true),
                         100);
  }
}

TYPED_TEST(BalanceLossTest, BothSoftmaxesAreOne) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = data::random_matrix<A>(30, 6, 9);
  const Ids ids_TK = data::random_ids<std::int32_t>(30, 6, 2, 10);
  losses::expect_same_bits(batch_loss(logits_TE, ids_TK, ScoreFunction::softmax_after_top_k, {1}),
                           batch_loss(logits_TE, ids_TK, ScoreFunction::softmax_before_top_k, {1}));
}

// Down to -inf and up to where sigmoids are 1, small scores keep their share and their slope.
TYPED_TEST(BalanceLossTest, ExtremeLogitsStayAccurate) {
  using A = TypeParam;
  RowMatrix<A> logits_TE(6, 3);
  logits_TE << -30, -31, -29.5,  //
      20, 25, 80,                //
      -35, 0, 35,                //
      -20, -20, -20,             //
      0, 0, 0,                   //
      -37, -36, 10;
  const Counts counts{6, 4, 2};
  for (const ScoreFunction function : data::score_functions) {
    SCOPED_TRACE(static_cast<int>(function));
    losses::expect_close(
        losses::balance(logits_TE, function, 2, {counts, 6}, {1}),
        reference::balance_loss(data::to_reference(logits_TE), function, 1, 2, counts, 6, 6), 200);
  }
  // Scores of -inf are 0, and so is their gradient.
  const A inf = data::infinity<A>();
  RowMatrix<A> dead_TE = logits_TE;
  dead_TE.col(1).setConstant(-inf);
  for (const ScoreFunction function : data::score_functions) {
    const auto got = losses::balance(dead_TE, function, 2, {counts, 6}, {1});
    EXPECT_TRUE(std::isfinite(got.value));
    EXPECT_TRUE(got.dlogits_TE.col(1).isZero(0)) << static_cast<int>(function);
    EXPECT_TRUE(got.dlogits_TE.allFinite());
  }
  const RowMatrix<A> all_dead_TE = RowMatrix<A>::Constant(2, 3, -inf);
  for (const ScoreFunction function : data::score_functions) {
    const auto got = losses::balance(all_dead_TE, function, 2, {counts, 6}, {1});
    EXPECT_TRUE(std::isnan(got.value));
    EXPECT_TRUE(got.dlogits_TE.array().isNaN().all());
  }
}

/// log(score) and its slope: in long double, which holds the scores of these tests.
std::pair<long double, long double> log_score(ScoreFunction function, long double x) {
  const auto sigmoid = [](long double v) { return 1 / (1 + std::exp(-v)); };
  if (function == ScoreFunction::sigmoid) return {std::log(sigmoid(x)), sigmoid(-x)};
  if (function != ScoreFunction::sqrt_softplus) return {x, 1};
  const long double softplus = std::max(x, 0.0L) + std::log1p(std::exp(-std::abs(x)));
  return {std::log(softplus) / 2, sigmoid(x) / (2 * softplus)};
}

// Closed forms in long double: saturated scores and such as are no numbers of A keep their digits.
TYPED_TEST(BalanceLossTest, DigitsDoNotDependOnTheSizeOfTheLogits) {
  using A = TypeParam;
  const Index experts = 6;
  const Counts counts{4, 0, 1, 3, 2, 0};
  const double eps = static_cast<double>(std::numeric_limits<A>::epsilon());
  for (const ScoreFunction function : data::score_functions) {
    for (A centre : {A(0), A(10), A(14), A(16), A(80), A(-50), A(-110), A(-900), A(-4000)}) {
      SCOPED_TRACE(testing::Message() << static_cast<int>(function) << " " << centre);
      RowMatrix<A> logits_TE = data::random_matrix<A>(21, experts, 6);
      logits_TE.array() += centre;
      const auto got = losses::balance(logits_TE, function, 2, {counts, 5}, {1, 1});
      for (Index t = 0; t < logits_TE.rows(); ++t) {
        long double sum = 0, mean = 0;
        const auto part = [&](Index e) {
          return log_score(function, static_cast<long double>(logits_TE(t, e)));
        };
        const auto price = [&](Index e) {
          return static_cast<long double>(counts[static_cast<std::size_t>(e)]) * experts / 10;
        };
        const auto score = [&](Index e) { return std::exp(part(e).first - part(0).first); };
        for (Index e = 0; e < experts; ++e) sum += score(e);
        for (Index e = 0; e < experts; ++e) mean += score(e) / sum * price(e);
        for (Index e = 0; e < experts; ++e) {
          const double slope = static_cast<double>(score(e) / sum * part(e).second);
          const double want = slope * static_cast<double>(price(e) - mean);
          ASSERT_NEAR(static_cast<double>(got.dlogits_TE(t, e)), want, 50 * eps * slope);
        }
      }
    }
  }
}

TYPED_TEST(BalanceLossTest, NonfiniteTokensSpoilTheirOwnGradientOnly) {
  using A = TypeParam;
  const A inf = data::infinity<A>();
  const RowMatrix<A> good_TE = data::random_matrix<A>(40, 4, 11);
  RowMatrix<A> logits_TE = good_TE;
  logits_TE(3, 1) = data::marked_nan<A>();
  logits_TE(17, 2) = inf;
  logits_TE.row(18).setConstant(-inf);
  const Counts counts{40, 20, 10, 10};
  for (const ScoreFunction function : data::score_functions) {
    const auto want = losses::balance(good_TE, function, 2, {counts, 40}, {1});
    const auto got = losses::balance(logits_TE, function, 2, {counts, 40}, {1});
    EXPECT_TRUE(std::isnan(got.value));
    for (Index t = 0; t < 40; ++t) {
      if (t == 3 || t == 17 || t == 18) {
        EXPECT_TRUE(got.dlogits_TE.row(t).array().isNaN().all()) << t;
      } else {
        EXPECT_TRUE(data::same_bits(RowMatrix<A>(got.dlogits_TE.row(t)),
                                    RowMatrix<A>(want.dlogits_TE.row(t))));
      }
    }
  }
}

TYPED_TEST(BalanceLossTest, MaskedTokensDoNothing) {
  using A = TypeParam;
  for (const ScoreFunction function : data::score_functions) {
    for (Index tokens : {1, 40, 700}) {
      const Mask mask = data::random_mask(tokens, 12);
      RowMatrix<A> logits_TE = data::random_matrix<A>(tokens, 6, 13);
      const Ids ids_TK = data::random_ids<std::int32_t>(tokens, 6, 2, 14);
      const RowMatrix<A> valid_TE = losses::valid_rows(logits_TE, mask);
      const Ids valid_TK = losses::valid_rows(ids_TK, mask);
      for (Index t = 0; t < tokens; ++t) {
        if (mask[static_cast<std::size_t>(t)] != 0) {
          logits_TE.row(t).setConstant(data::marked_nan<A>());
        }
      }
      const auto expect_same = [&](const losses::Loss<A>& got, const losses::Loss<A>& want) {
        losses::expect_same_value(got.value, want.value);
        EXPECT_TRUE(data::same_bits(losses::valid_rows(got.dlogits_TE, mask), want.dlogits_TE));
        for (Index t = 0; t < tokens; ++t) {
          if (mask[static_cast<std::size_t>(t)] != 0) {
            EXPECT_TRUE(got.dlogits_TE.row(t).isZero(0));
          }
        }
      };
      expect_same(batch_loss(logits_TE, ids_TK, function, {0.1}, mask),
                  batch_loss(valid_TE, valid_TK, function, {0.1}));

      // Sequences of 7 tokens; the last may be shorter. The counts skip masked tokens themselves.
      Counts begin, valid_begin;
      for (Index t = 0; t < tokens; t += 7) begin.push_back(t);
      begin.push_back(tokens);
      for (const std::int64_t border : begin) {
        valid_begin.push_back(static_cast<std::int64_t>(
            reference::valid_tokens(mask, 0, static_cast<std::size_t>(border))));
      }
      expect_same(losses::per_sequence(logits_TE, ids_TK, begin, function, {0.1}, mask),
                  losses::per_sequence(valid_TE, valid_TK, valid_begin, function, {0.1}));
    }
  }
}

TYPED_TEST(BalanceLossTest, ExecutorsAndMicroBatchesGiveTheSameBits) {
  using A = TypeParam;
  const Index tokens = 256 * 3 + 7;
  const RowMatrix<A> logits_TE = data::random_matrix<A>(tokens, 19, 15);
  const Ids ids_TK = data::random_ids<std::int32_t>(tokens, 19, 3, 16);
  const Counts counts = losses::count(ids_TK, 19), begin = random_borders(tokens, 30, 17);
  for (const ScoreFunction function : data::score_functions) {
    const BalanceCounts all{counts, tokens};
    const LossWeight weight{1e-2, tokens};
    const auto want = losses::balance(logits_TE, function, 3, all, weight);
    const auto sequences = losses::per_sequence(logits_TE, ids_TK, begin, function, {1});
    const auto expect_same = [&](const auto& executor) {
      losses::expect_same_bits(losses::balance(logits_TE, function, 3, all, weight, {}, executor),
                               want);
      losses::expect_same_bits(
          losses::per_sequence(logits_TE, ids_TK, begin, function, {1}, {}, executor), sequences);
    };
    expect_same(ThreadExecutor(3));
    expect_same(LastWorkerFirst(4));
    double value = 0;
    for (Index first = 0; first < tokens; first += 61) {
      const Index count = std::min<Index>(61, tokens - first);
      const RowMatrix<A> part_TE = logits_TE.middleRows(first, count);
      const auto part = losses::balance(part_TE, function, 3, all, weight);
      value += part.value;
      EXPECT_TRUE(
          data::same_bits(part.dlogits_TE, RowMatrix<A>(want.dlogits_TE.middleRows(first, count))));
    }
    losses::expect_same_value(value, want.value);
  }
}

TYPED_TEST(BalanceLossTest, SequencesMatchTheDefinition) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = data::random_matrix<A>(300, 11, 18) * A(3);
  const Ids ids_TK = data::random_ids<std::int32_t>(300, 11, 2, 19);
  const auto reference_TE = data::to_reference(logits_TE);
  const reference::Ids ids = data::to_ids(ids_TK);
  for (const ScoreFunction function : data::score_functions) {
    for (Index sequences : {1, 2, 9, 200}) {
      const Counts begin = random_borders(300, sequences, 20);
      const Mask none, some = data::random_mask(300, 21);
      for (const Mask& mask : {none, some}) {
        SCOPED_TRACE(testing::Message() << static_cast<int>(function) << " " << sequences);
        losses::expect_close(
            losses::per_sequence(logits_TE, ids_TK, begin, function, {0.01}, mask),
            reference::sequence_balance_loss(reference_TE, ids, begin, function, 0.01, mask), 200);
      }
    }
  }
}

TYPED_TEST(BalanceLossTest, OneSequenceIsTheBatch) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = data::random_matrix<A>(77, 9, 22);
  const Ids ids_TK = data::random_ids<std::int32_t>(77, 9, 2, 23);
  for (const ScoreFunction function : data::score_functions) {
    losses::expect_same_bits(
        losses::per_sequence(logits_TE, ids_TK, {0, 77}, function, {0.01, 0, 8}),
        batch_loss(logits_TE, ids_TK, function, {0.01, 0, 8}));
  }
}

// Megatron-LM reshapes [S, B] to S tokens with B * E experts, and divides by B: the same for
// sequences of equal length.
TYPED_TEST(BalanceLossTest, EqualLengthsGiveMegatronsLoss) {
  using A = TypeParam;
  const Index sequences = 5, length = 24, experts = 8, top_k = 2;
  const RowMatrix<A> logits_TE = data::random_matrix<A>(sequences * length, experts, 24);
  const Ids ids_TK = data::random_ids<std::int32_t>(sequences * length, experts, top_k, 25);
  Counts begin;
  for (Index s = 0; s <= sequences; ++s) begin.push_back(s * length);
  const reference::Ids ids = data::to_ids(ids_TK);
  for (const ScoreFunction function : data::score_functions) {
    reference::Matrix scores_TE;
    for (const reference::Row& logits : data::to_reference(logits_TE)) {
      scores_TE.push_back(reference::normalised_scores(logits, function).scores);
    }
    double sum = 0;
    for (Index s = 0; s < sequences; ++s) {
      const Counts counts = reference::count(ids, 8, {}, static_cast<std::size_t>(s * length),
                                             static_cast<std::size_t>((s + 1) * length));
      for (Index e = 0; e < experts; ++e) {
        for (Index t = s * length; t < (s + 1) * length; ++t) {
          sum +=
              static_cast<double>(counts[static_cast<std::size_t>(e)]) * data::at(scores_TE, t, e);
        }
      }
    }
    const double megatron = 0.01 * static_cast<double>(experts) * sum /
                            static_cast<double>(top_k * length * length * sequences);
    const double eps = static_cast<double>(std::numeric_limits<A>::epsilon());
    EXPECT_NEAR(losses::per_sequence(logits_TE, ids_TK, begin, function, {0.01}).value, megatron,
                20 * eps * megatron);
  }
}

// A sequence that ranks share: each calls for its part, with the counts of all.
TYPED_TEST(BalanceLossTest, ASequenceMayBeCutByReducedCounts) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = data::random_matrix<A>(60, 7, 26);
  const Ids ids_TK = data::random_ids<std::int32_t>(60, 7, 2, 27);
  const auto whole = losses::per_sequence(logits_TE, ids_TK, {0, 40, 60},
                                          ScoreFunction::softmax_before_top_k, {0.5});
  const Counts counts = losses::count(Ids(ids_TK.topRows(40)), 7);
  for (Index first : {0, 20}) {
    const RowMatrix<A> part_TE = logits_TE.middleRows(first, 20);
    const auto part = losses::balance(part_TE, ScoreFunction::softmax_before_top_k, 2, {counts, 40},
                                      {0.5, 40 * 2});
    EXPECT_TRUE(
        data::same_bits(part.dlogits_TE, RowMatrix<A>(whole.dlogits_TE.middleRows(first, 20))));
  }
}

TYPED_TEST(BalanceLossTest, AddsToAnyView) {
  using A = TypeParam;
  data::GuardedMatrix<A> logits_TE(data::random_matrix<A>(70, 9, 28), 3);
  const RowMatrix<A> start_TE = data::random_matrix<A>(70, 9, 29);
  const Ids ids_TK = data::random_ids<std::int32_t>(70, 9, 2, 30);
  const Eigen::Matrix<std::int64_t, Eigen::Dynamic, Eigen::Dynamic> planes =
      ids_TK.cast<std::int64_t>();
  const Counts counts = losses::count(ids_TK, 9), begin{0, 11, 70};
  const MatrixView<const A> logits = logits_TE.view();
  auto memory =
      data::scratch(std::max(gatepro::load_balancing_loss_workspace_bytes<A>(70, 9),
                             gatepro::sequence_load_balancing_loss_workspace_bytes<A>(70, 9, 2)));
  const ScoreFunction sigmoid = ScoreFunction::sigmoid;
  for (const bool per_sequence : {false, true}) {
    data::GuardedMatrix<A> dlogits_TE(start_TE, 5);
    const auto run = [&](const MatrixView<A>& dlogits) {
      if (!per_sequence) {
        return gatepro::load_balancing_loss(gatepro::LossLogits{logits, {}, dlogits}, {counts, 70},
                                            {sigmoid, 2}, {2.0}, memory);
      }
      return gatepro::sequence_load_balancing_loss(
          gatepro::LossLogits{logits, {}, dlogits},
          gatepro::SequenceChoices{gatepro::strided_view(planes), begin}, sigmoid, {2.0}, memory);
    };
    const auto want = per_sequence
                          ? losses::per_sequence(logits_TE.values(), ids_TK, begin, sigmoid, {2.0})
                          : batch_loss(logits_TE.values(), ids_TK, sigmoid, {2.0});
    EXPECT_EQ(run(dlogits_TE.view()), want.value);
    EXPECT_TRUE(dlogits_TE.intact());
    EXPECT_TRUE(data::same_bits(dlogits_TE.values(), RowMatrix<A>(start_TE + want.dlogits_TE)));
    EXPECT_EQ(run({}), want.value);
  }
}

TYPED_TEST(BalanceLossTest, TheGradientIsScaledAndTheValueIsNot) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = data::random_matrix<A>(20, 5, 31);
  const Ids ids_TK = data::random_ids<std::int32_t>(20, 5, 2, 32);
  for (const ScoreFunction function : data::score_functions) {
    const auto plain = batch_loss(logits_TE, ids_TK, function, {1e-3});
    const auto scaled = batch_loss(logits_TE, ids_TK, function, {1e-3, 0, 1024});
    EXPECT_EQ(scaled.value, plain.value);
    EXPECT_TRUE(data::same_bits(scaled.dlogits_TE, RowMatrix<A>(plain.dlogits_TE * A(1024))));
  }
}

TYPED_TEST(BalanceLossTest, NothingToDo) {
  using A = TypeParam;
  const RowMatrix<A> none(0, 4), bad_TE = RowMatrix<A>::Constant(3, 4, data::marked_nan<A>());
  const Counts zero(4, 0), some{3, 2, 1, 0};
  const Ids no_ids(0, 2), ids_TK = data::random_ids<std::int32_t>(3, 4, 2, 33);
  const Mask all(3, 1);
  const auto softmax = ScoreFunction::softmax_before_top_k;
  EXPECT_EQ(losses::balance(none, softmax, 2, {zero, 0}, {1}).value, 0);
  EXPECT_EQ(losses::balance(none, softmax, 2, {some, 3}, {1, 3}).value, 0);
  EXPECT_EQ(losses::per_sequence(none, no_ids, {0}, softmax, {1}).value, 0);
  EXPECT_EQ(losses::per_sequence(none, no_ids, {0, 0, 0}, softmax, {1}).value, 0);
  for (const auto& got : {losses::balance(bad_TE, softmax, 2, {some, 3}, {1}, all),
                          losses::balance(bad_TE, softmax, 2, {some, 3}, {1, 3}, all),
                          losses::balance(bad_TE, softmax, 2, {some, 3}, {0}),
                          losses::balance(bad_TE, softmax, 2, {zero, 0}, {1}),
                          losses::per_sequence(bad_TE, ids_TK, {0, 1, 3}, softmax, {1}, all),
                          losses::per_sequence(bad_TE, ids_TK, {0, 1, 3}, softmax, {0})}) {
    EXPECT_EQ(got.value, 0);
    EXPECT_TRUE(got.dlogits_TE.isZero(0));
  }
}

TYPED_TEST(BalanceLossTest, BadInput) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = RowMatrix<A>::Zero(3, 4);
  RowMatrix<A> dlogits_TE = RowMatrix<A>::Zero(3, 4), wide_TE = RowMatrix<A>::Zero(3, 5);
  const Mask short_mask(2, 0), mask(3, 0);
  const Counts good{3, 2, 1, 0}, five(5, 0), negative{3, 3, 0, -1}, large{4, 2, 0, 0},
      many{3, 3, 1, 0};
  auto memory = data::scratch(gatepro::load_balancing_loss_workspace_bytes<A>(3, 4));
  const auto call = [&](Index top_k, const BalanceCounts& counts, const LossWeight& weight,
                        const Mask& padding, RowMatrix<A>& gradient, std::size_t less) {
    return gatepro::load_balancing_loss(
        gatepro::LossLogits{gatepro::view(logits_TE), padding, gradient}, counts,
        {ScoreFunction::sigmoid, top_k}, weight, {memory.data(), memory.size() - less});
  };
  const char* where = "load_balancing_loss";
  const auto expect_bad = [&](Index top_k, const BalanceCounts& counts, const LossWeight& weight,
                              std::initializer_list<const char*> parts) {
    expect_error([&] { call(top_k, counts, weight, mask, dlogits_TE, 0); }, parts);
  };
  expect_bad(0, {good, 3}, {1}, {where, "1 <= top_k", "top_k=0"});
  expect_bad(5, {good, 3}, {1}, {where, "top_k <= num_experts", "top_k=5"});
  expect_bad(2, {five, 3}, {1}, {where, "tokens_per_expert_E", "size=5"});
  expect_bad(2, {negative, 3}, {1}, {where, "counts >= 0", "count=-1", "position=3"});
  expect_bad(2, {large, 3}, {1}, {where, "none above", "count=4", "tokens=3"});
  expect_bad(2, {many, 3}, {1}, {where, "at most top_k choices", "choices=7", "tokens=3"});
  expect_bad(2, {good, -3}, {1}, {where, "tokens >= 0", "tokens=-3"});
  expect_bad(2, {good, 3}, {-1}, {where, "coefficient finite and >= 0"});
  expect_bad(2, {good, 3}, {1, -5}, {where, "mean_over >= 0"});
  expect_bad(2, {good, 3}, {1, 0, HUGE_VAL}, {where, "gradient_scale finite"});
  const BalanceCounts fine{good, 3};
  expect_error([&] { call(2, fine, {1}, short_mask, dlogits_TE, 0); }, {"is_padding_T", "size=2"});
  expect_error([&] { call(2, fine, {1}, mask, wide_TE, 0); }, {"dlogits_TE", "cols=5"});
  expect_error([&] { call(2, fine, {1}, mask, dlogits_TE, 65); }, {where, "workspace"});
  EXPECT_TRUE(dlogits_TE.isZero(0));
  EXPECT_NO_THROW(call(2, fine, {1}, mask, dlogits_TE, 0));
}

TYPED_TEST(BalanceLossTest, BadSequences) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = RowMatrix<A>::Zero(3, 4);
  RowMatrix<A> dlogits_TE = RowMatrix<A>::Zero(3, 4);
  const Ids good_TK = data::random_ids<std::int32_t>(3, 4, 2, 34);
  auto memory = data::scratch(gatepro::sequence_load_balancing_loss_workspace_bytes<A>(3, 4, 2));
  const auto call = [&](const Ids& ids_TK, const Counts& begin, std::size_t less) {
    return gatepro::sequence_load_balancing_loss(
        gatepro::LossLogits{gatepro::view(logits_TE), {}, gatepro::view(dlogits_TE)},
        gatepro::SequenceChoices{gatepro::strided_view(ids_TK), begin}, ScoreFunction::sigmoid,
        {1.0}, {memory.data(), memory.size() - less});
  };
  const char* where = "sequence_load_balancing_loss";
  Ids bad_TK = good_TK;
  bad_TK(2, 1) = 4;
  expect_error([&] { call(bad_TK, {0, 1, 3}, 0); }, {where, "expert_ids_TK", "id=4", "row=2"});
  bad_TK(2, 1) = -2;
  expect_error([&] { call(bad_TK, {0, 1, 3}, 0); }, {where, "expert_ids_TK", "id=-2"});
  expect_error([&] { call(Ids(2, 2), {0, 1, 3}, 0); }, {where, "expert_ids_TK", "rows=2"});
  expect_error([&] { call(Ids(3, 5), {0, 1, 3}, 0); }, {where, "top_k=5"});
  expect_error([&] { call(good_TK, {}, 0); }, {where, "sequence_begin_S1", "size=0"});
  expect_error([&] { call(good_TK, {0, 1, 2}, 0); }, {where, "last=2", "tokens=3"});
  expect_error([&] { call(good_TK, {1, 1, 3}, 0); }, {where, "first=1"});
  expect_error([&] { call(good_TK, {0, 4, 3}, 0); }, {where, "never falls", "before=4", "here=3"});
  expect_error([&] { call(good_TK, {0, -1, 3}, 0); }, {where, "never falls", "here=-1"});
  expect_error([&] { call(good_TK, {0, 1, 3}, 65); }, {where, "workspace"});
  EXPECT_TRUE(dlogits_TE.isZero(0));
  EXPECT_NO_THROW(call(good_TK, {0, 1, 3}, 0));
}

}  // namespace
