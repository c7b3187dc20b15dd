// SPDX-License-Identifier: MIT
// Losses and drops built with -Ofast: the numbers are right to 1e-5, and a token that is not finite
// spoils the value and its own gradient only. Special values are made and recognised by their bits.
#include <gatepro/dispatch/capacity.hpp>

#include <algorithm>
#include <vector>

#include "support/bits.hpp"
#include "support/inputs.hpp"
#include "support/losses.hpp"
#include "support/memory.hpp"

#if !defined(__FAST_MATH__)
#error "this test is about -Ofast"
#endif

namespace {

using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::detail::key_of;

/// 40 finite tokens, and the same with a NaN, a +inf and a row of -inf in 3, 17 and 18.
struct Tokens {
  Tokens() {
    const float inf = data::infinity<float>();
    spoilt_TE(3, 1) = data::marked_nan<float>();
    spoilt_TE(17, 2) = inf;
    spoilt_TE.row(18).setConstant(-inf);
  }
  RowMatrix<float> good_TE = data::random_matrix<float>(40, 4, 11);
  RowMatrix<float> spoilt_TE = good_TE;
  losses::Counts counts{40, 20, 10, 10};
};

/// Row `t` is NaN where `spoilt` says so, else what it was without the bad tokens.
void expect_spoilt_rows(const RowMatrix<float>& got_TE, const RowMatrix<float>& good_TE,
                        const std::vector<Index>& spoilt) {
  for (Index t = 0; t < got_TE.rows(); ++t) {
    const bool bad = std::find(spoilt.begin(), spoilt.end(), t) != spoilt.end();
    for (Index e = 0; e < got_TE.cols(); ++e) {
      if (bad) {
        EXPECT_TRUE(data::is_nan(got_TE(t, e))) << t;
      } else if (t != 17 && t != 18) {
        EXPECT_EQ(key_of(got_TE(t, e)), key_of(good_TE(t, e))) << t;
      }
    }
  }
}

TEST(LossesFastMath, BalanceLoss) {
  const Tokens tokens;
  for (const losses::ScoreFunction function : data::score_functions) {
    const bool sigmoid = function == losses::ScoreFunction::sigmoid;
    const bool softmax = !sigmoid && function != losses::ScoreFunction::sqrt_softplus;
    const auto good = losses::balance(tokens.good_TE, function, 2, {tokens.counts, 40}, {1});
    const auto want = losses::balance(RowMatrix<double>(tokens.good_TE.cast<double>()), function, 2,
                                      {tokens.counts, 40}, {1});
    EXPECT_NEAR(good.value, want.value, 1e-5);
    EXPECT_LT((good.dlogits_TE.cast<double>() - want.dlogits_TE).cwiseAbs().maxCoeff(), 1e-6);
    const auto got = losses::balance(tokens.spoilt_TE, function, 2, {tokens.counts, 40}, {1});
    EXPECT_TRUE(data::is_nan(got.value));
    expect_spoilt_rows(got.dlogits_TE, good.dlogits_TE,
                       softmax ? std::vector<Index>{3, 17, 18} : std::vector<Index>{3});
  }
}

TEST(LossesFastMath, ZLoss) {
  const Tokens tokens;
  const auto good = losses::z_loss(tokens.good_TE, {1});
  const auto want = losses::z_loss(RowMatrix<double>(tokens.good_TE.cast<double>()), {1});
  EXPECT_NEAR(good.value, want.value, 1e-5);
  EXPECT_LT((good.dlogits_TE.cast<double>() - want.dlogits_TE).cwiseAbs().maxCoeff(), 1e-6);
  const auto got = losses::z_loss(tokens.spoilt_TE, {1});
  EXPECT_TRUE(data::is_nan(got.value));
  expect_spoilt_rows(got.dlogits_TE, good.dlogits_TE, {3, 17, 18});
}

/// Which of six choices of one expert are kept.
std::vector<int> kept_of_six(Index capacity) {
  const float nan = data::marked_nan<float>();
  const RowMatrix<std::int32_t> ids_TK = RowMatrix<std::int32_t>::Zero(6, 1);
  RowMatrix<float> weights_TK(6, 1);
  weights_TK << nan, 0.25F, 0.5F, nan, 0.75F, 0.5F;
  RowMatrix<std::uint8_t> kept_TK(6, 1);
  std::vector<std::int64_t> counts_E(2);
  const auto policy = gatepro::DropPolicy::probability;
  auto memory = data::scratch(gatepro::drop_over_capacity_workspace_bytes<float>(6, 2, 1, policy));
  gatepro::drop_over_capacity(gatepro::Choices{gatepro::strided_view(ids_TK)}, {capacity, policy},
                              gatepro::KeptRouting{gatepro::strided_view(weights_TK),
                                                   gatepro::strided_view(kept_TK), counts_E},
                              memory);
  return {kept_TK.data(), kept_TK.data() + 6};
}

TEST(LossesFastMath, CapacityDropsNaNsFirst) {
  EXPECT_EQ(kept_of_six(2), (std::vector<int>{0, 0, 1, 0, 1, 0}));
  EXPECT_EQ(kept_of_six(4), (std::vector<int>{0, 1, 1, 0, 1, 1}));
  EXPECT_EQ(kept_of_six(5), (std::vector<int>{1, 1, 1, 0, 1, 1}));
}

}  // namespace
