// SPDX-License-Identifier: MIT
// The score kernels of every instruction set that this machine has, called directly.
#include <gatepro/kernels/dispatch.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

#include "support/bits.hpp"
#include "support/inputs.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::ScoreFunction;
using gatepro::detail::Isa;
using gatepro::detail::Kernels;
using gatepro::detail::kernels_for;
using gatepro::detail::key_of;
using gatepro::detail::Order;
using gatepro::detail::ScoreKernels;

template <class A>
using KeyOf = typename Order<A>::Key;
using Exact = long double;

bool is_softmax(ScoreFunction function) {
  return function == ScoreFunction::softmax_after_top_k ||
         function == ScoreFunction::softmax_before_top_k;
}

Exact exact_score(ScoreFunction function, Exact x) {
  if (function == ScoreFunction::sigmoid) {
    return x >= 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x));
  }
  return std::sqrt(std::max(x, 0.0L) + std::log1p(std::exp(-std::abs(x))));
}

template <class A>
struct Scores {
  RowMatrix<A> scores_TE;
  RowMatrix<A> log_sum_exps_T1;
};

/// The kernel on the keys of T tokens, E experts each. Memory is exactly as large as promised.
template <class A>
Scores<A> scores_of_keys(Isa isa, const RowMatrix<KeyOf<A>>& keys_TE, ScoreFunction function) {
  const Index lanes = kernels_for<Kernels<A>>(isa).lanes, tokens = keys_TE.rows(),
              experts = keys_TE.cols();
  Scores<A> result{RowMatrix<A>(tokens, experts), RowMatrix<A>(tokens, 1)};
  RowMatrix<KeyOf<A>> keys_EL(experts, lanes);
  RowMatrix<A> scores_EL(experts, lanes), log_sum_exp_L(1, lanes);
  for (Index first = 0; first < tokens; first += lanes) {
    for (Index lane = 0; lane < lanes; ++lane) {
      keys_EL.col(lane) = keys_TE.row(std::min(first + lane, tokens - 1)).transpose();
    }
    const auto& kernels = kernels_for<ScoreKernels<A>>(isa);
    kernels.scores(keys_EL.data(), experts, function, scores_EL.data());
    kernels.shares(keys_EL.data(), experts, ScoreFunction::softmax_before_top_k, nullptr, nullptr,
                   log_sum_exp_L.data());
    for (Index lane = 0; lane < lanes && first + lane < tokens; ++lane) {
      result.scores_TE.row(first + lane) = scores_EL.col(lane).transpose();
      result.log_sum_exps_T1(first + lane) = log_sum_exp_L(lane);
    }
  }
  return result;
}

template <class A>
RowMatrix<KeyOf<A>> keys_of(const RowMatrix<A>& logits_TE) {
  RowMatrix<KeyOf<A>> keys_TE(logits_TE.rows(), logits_TE.cols());
  for (Index i = 0; i < keys_TE.size(); ++i) keys_TE.data()[i] = key_of(logits_TE.data()[i]);
  return keys_TE;
}

template <class A>
Scores<A> scores(Isa isa, const RowMatrix<A>& logits_TE, ScoreFunction function) {
  return scores_of_keys<A>(isa, keys_of(logits_TE), function);
}

template <class Body>
void for_each_isa(const Body& body) {
  for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
    if (isa > gatepro::detail::best_isa()) continue;
    SCOPED_TRACE(gatepro::detail::name_of(isa));
    body(isa);
  }
}

template <class A>
class ScoreKernelsTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(ScoreKernelsTest, Scalars, TypeNames);

/// One logit per row, of every size, dense around 0 and where a score saturates or underflows.
template <class A>
RowMatrix<A> logits_of_every_size() {
  std::vector<A> x{A(0), A(-0.0), std::numeric_limits<A>::denorm_min(),
                   std::numeric_limits<A>::min(), std::numeric_limits<A>::max()};
  const double widest = sizeof(A) == 4 ? 110 : 760;
  for (std::uint64_t i = 0; i < 20000; ++i) {
    const double u = std::abs(data::random_uniform(2, i));
    x.push_back(static_cast<A>(widest * u));
    x.push_back(static_cast<A>(40 * u));
    x.push_back(static_cast<A>(2 * u));
    x.push_back(static_cast<A>(std::exp(-40 * u)));
  }
  RowMatrix<A> logits_TE(static_cast<Index>(2 * x.size()), 1);
  for (std::size_t i = 0; i < x.size(); ++i) {
    logits_TE(static_cast<Index>(2 * i)) = x[i];
    logits_TE(static_cast<Index>(2 * i + 1)) = -x[i];
  }
  return logits_TE;
}

TYPED_TEST(ScoreKernelsTest, SigmoidAndSqrtSoftplusAreWithinFourUlp) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = logits_of_every_size<A>();
  for (ScoreFunction function : {ScoreFunction::sigmoid, ScoreFunction::sqrt_softplus}) {
    for_each_isa([&](Isa isa) {
      const Scores<A> got = scores(isa, logits_TE, function);
      double worst = 0;
      for (Index t = 0; t < logits_TE.rows(); ++t) {
        const Exact want = exact_score(function, static_cast<Exact>(logits_TE(t)));
        worst = std::max(worst, want == 0 ? static_cast<double>(std::abs(got.scores_TE(t)))
                                          : data::ulps(got.scores_TE(t), want));
      }
      EXPECT_LE(worst, 4);
      this->RecordProperty("worst_ulp", std::to_string(worst));
    });
  }
}

/// d score / d logit, and d log(score) / d logit.
Exact exact_slope(ScoreFunction function, Exact x) {
  const Exact sigmoid = exact_score(ScoreFunction::sigmoid, x);
  if (function == ScoreFunction::sigmoid) return sigmoid * exact_score(function, -x);
  return sigmoid / (2 * exact_score(function, x));
}
Exact exact_log_slope(ScoreFunction function, Exact x) {
  if (function == ScoreFunction::sigmoid) return exact_score(function, -x);
  const Exact score = exact_score(function, x);
  return x < -5000 ? 0.5L : exact_score(ScoreFunction::sigmoid, x) / (2 * score * score);
}

/// What one expert per token gets, and a share of the second where it has a rival of the same
/// logit.
template <class A>
struct Slopes {
  RowMatrix<A> slopes_TE, shares_TE, share_slopes_TE;
};
template <class A>
Slopes<A> slopes(Isa isa, const RowMatrix<A>& logits_TE, ScoreFunction function) {
  const Index lanes = kernels_for<Kernels<A>>(isa).lanes, tokens = logits_TE.rows();
  const Index experts = logits_TE.cols();
  Slopes<A> result{RowMatrix<A>(tokens, experts), RowMatrix<A>(tokens, experts),
                   RowMatrix<A>(tokens, experts)};
  RowMatrix<KeyOf<A>> keys_EL(experts, lanes);
  RowMatrix<A> slopes_EL(experts, lanes), shares_EL(experts, lanes),
      share_slopes_EL(experts, lanes);
  const RowMatrix<KeyOf<A>> keys_TE = keys_of(logits_TE);
  const auto& kernels = kernels_for<ScoreKernels<A>>(isa);
  for (Index first = 0; first < tokens; first += lanes) {
    for (Index lane = 0; lane < lanes; ++lane) {
      keys_EL.col(lane) = keys_TE.row(std::min(first + lane, tokens - 1)).transpose();
    }
    if (!is_softmax(function)) kernels.slopes(keys_EL.data(), experts, function, slopes_EL.data());
    kernels.shares(keys_EL.data(), experts, function, shares_EL.data(), share_slopes_EL.data(),
                   nullptr);
    for (Index lane = 0; lane < lanes && first + lane < tokens; ++lane) {
      result.slopes_TE.row(first + lane) = slopes_EL.col(lane).transpose();
      result.shares_TE.row(first + lane) = shares_EL.col(lane).transpose();
      result.share_slopes_TE.row(first + lane) = share_slopes_EL.col(lane).transpose();
    }
  }
  return result;
}

// From -max to max, and where the result is denormal.
TYPED_TEST(ScoreKernelsTest, SlopesAreWithinSixUlp) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = logits_of_every_size<A>();
  for (ScoreFunction function : {ScoreFunction::sigmoid, ScoreFunction::sqrt_softplus}) {
    for_each_isa([&](Isa isa) {
      const Slopes<A> got = slopes(isa, logits_TE, function);
      double worst = 0, worst_of_log = 0;
      for (Index t = 0; t < logits_TE.rows(); ++t) {
        const auto x = static_cast<Exact>(logits_TE(t));
        ASSERT_EQ(got.shares_TE(t), 1) << logits_TE(t);
        worst_of_log = std::max(worst_of_log,
                                data::ulps(got.share_slopes_TE(t), exact_log_slope(function, x)));
        // Far below, sigmoid over score is 0 / 0 even in long double.
        if (function == ScoreFunction::sqrt_softplus && x < -5000) {
          ASSERT_EQ(got.slopes_TE(t), 0);
          continue;
        }
        worst = std::max(worst, data::ulps(got.slopes_TE(t), exact_slope(function, x)));
      }
      EXPECT_LE(worst, 6);
      EXPECT_LE(worst_of_log, 6);
      this->RecordProperty("worst_ulp", std::to_string(worst));
      this->RecordProperty("worst_ulp_of_log", std::to_string(worst_of_log));
    });
  }
}

/// log(score), which underflows nowhere.
Exact exact_log_score(ScoreFunction function, Exact x) {
  if (is_softmax(function)) return x;
  if (x < -5000) return function == ScoreFunction::sigmoid ? x : x / 2;
  return std::log(exact_score(function, x));
}

// Rows far below 0 and far above, whose scores are no numbers of A, and rows of any size.
TYPED_TEST(ScoreKernelsTest, SharesAreExactForAnyFiniteLogits) {
  using A = TypeParam;
  const double eps = static_cast<double>(std::numeric_limits<A>::epsilon());
  const A large = std::numeric_limits<A>::max() / 2;
  const Index experts = 9;
  for (A centre : {A(0), A(-5), A(-50), A(-110), A(-900), A(-1e5), A(50), A(3e4), large, -large}) {
    for (double width : {0.0, 1.0, 12.0}) {
      RowMatrix<A> logits_TE = data::random_matrix<A>(33, experts, 5) * static_cast<A>(width);
      logits_TE.array() += centre;
      for_each_isa([&](Isa isa) {
        for (ScoreFunction function : data::score_functions) {
          const Slopes<A> got = slopes(isa, logits_TE, function);
          for (Index t = 0; t < logits_TE.rows(); ++t) {
            const Exact top =
                exact_log_score(function, static_cast<Exact>(logits_TE.row(t).maxCoeff()));
            Exact sum = 0;
            for (Index e = 0; e < experts; ++e) {
              sum += std::exp(exact_log_score(function, static_cast<Exact>(logits_TE(t, e))) - top);
            }
            for (Index e = 0; e < experts; ++e) {
              const auto x = static_cast<Exact>(logits_TE(t, e));
              const Exact want = std::exp(exact_log_score(function, x) - top) / sum;
              const double bound = (16 + 2 * width) * eps;
              const Exact share = static_cast<Exact>(got.shares_TE(t, e));
              ASSERT_LE(static_cast<double>(std::abs(share / want - 1)), bound) << x;
              if (is_softmax(function)) continue;
              const Exact slope = want * exact_log_slope(function, x);
              ASSERT_LE(data::ulps(got.share_slopes_TE(t, e), slope), 2 * bound / eps) << x;
            }
          }
        }
      });
    }
  }
}

// Lanes whose scores are relative to their largest do not change their neighbours' bits.
TYPED_TEST(ScoreKernelsTest, SharesOfALaneStandAlone) {
  using A = TypeParam;
  RowMatrix<A> logits_TE = data::special_matrix<A>(67, 5, 4, 8);
  for (Index t = 0; t < 67; t += 3) logits_TE.row(t).array() -= A(60);
  for_each_isa([&](Isa isa) {
    for (ScoreFunction function : data::score_functions) {
      const Slopes<A> all = slopes(isa, logits_TE, function);
      for (Index t = 0; t < 67; ++t) {
        const RowMatrix<A> row = logits_TE.row(t), in_batch = all.shares_TE.row(t);
        const Slopes<A> alone = slopes(isa, row, function);
        ASSERT_TRUE(data::same_bits(alone.shares_TE, in_batch)) << t;
        if (is_softmax(function)) continue;
        const RowMatrix<A> slopes_in_batch = all.share_slopes_TE.row(t);
        ASSERT_TRUE(data::same_bits(alone.share_slopes_TE, slopes_in_batch)) << t;
      }
    }
  });
}

TYPED_TEST(ScoreKernelsTest, ExactValues) {
  using A = TypeParam;
  const A inf = data::infinity<A>(), large = std::numeric_limits<A>::max();
  RowMatrix<A> logits_TE(1, 6), sigmoids_TE(1, 6), roots_TE(1, 6);
  logits_TE << 0, -inf, inf, large, -large, 100;
  sigmoids_TE << A(0.5), 0, 1, 1, 0, 1;
  roots_TE << std::sqrt(std::log(A(2))), 0, inf, std::sqrt(large), 0, 10;
  for_each_isa([&](Isa isa) {
    RowMatrix<A> got_TE = scores(isa, logits_TE, ScoreFunction::sigmoid).scores_TE;
    got_TE(5) = got_TE(5) >= 1 - std::numeric_limits<A>::epsilon() ? A(1) : got_TE(5);
    EXPECT_TRUE(data::same_bits(got_TE, sigmoids_TE));
    got_TE = scores(isa, logits_TE, ScoreFunction::sqrt_softplus).scores_TE;
    EXPECT_LE(data::ulps(got_TE(0), static_cast<Exact>(roots_TE(0))), 2);
    got_TE(0) = roots_TE(0);
    EXPECT_TRUE(data::same_bits(got_TE, roots_TE));
  });
}

TYPED_TEST(ScoreKernelsTest, SoftmaxesAndLogSumExpsOfRows) {
  using A = TypeParam;
  const double eps = static_cast<double>(std::numeric_limits<A>::epsilon());
  for (Index experts : {1, 2, 7, 64, 300}) {
    for (double scale : {1e-3, 1.0, 30.0}) {
      const RowMatrix<A> logits_TE = data::random_matrix<A>(37, experts, 3) * static_cast<A>(scale);
      for_each_isa([&](Isa isa) {
        for (ScoreFunction function : data::score_functions) {
          const Scores<A> got = scores(isa, logits_TE, function);
          for (Index t = 0; t < logits_TE.rows(); ++t) {
            const Exact top = static_cast<Exact>(logits_TE.row(t).maxCoeff());
            Exact sum_of_exps = 0;
            for (Index e = 0; e < experts; ++e) {
              sum_of_exps += std::exp(static_cast<Exact>(logits_TE(t, e)) - top);
            }
            const double adding = static_cast<double>(experts) * eps;
            ASSERT_NEAR(static_cast<double>(got.log_sum_exps_T1(t)),
                        static_cast<double>(top + std::log(sum_of_exps)),
                        (4 + 3 * scale) * eps + adding);
            if (!is_softmax(function)) continue;
            for (Index e = 0; e < experts; ++e) {
              const Exact want = std::exp(static_cast<Exact>(logits_TE(t, e)) - top) / sum_of_exps;
              const Exact error = static_cast<Exact>(got.scores_TE(t, e)) / want - 1;
              ASSERT_LE(static_cast<double>(std::abs(error)), (4 + scale) * eps + adding);
            }
          }
        }
      });
    }
  }
}

// Powers of two and their neighbours, where the logarithm changes from one power to the next.
TYPED_TEST(ScoreKernelsTest, LogSumExpOfEqualLogits) {
  using A = TypeParam;
  for (Index experts : {1, 2, 3, 4, 5, 127, 128, 129}) {
    const RowMatrix<A> logits_TE = RowMatrix<A>::Zero(1, experts);
    const Exact want = std::log(static_cast<Exact>(experts));
    for_each_isa([&](Isa isa) {
      const A got = scores(isa, logits_TE, ScoreFunction::softmax_before_top_k).log_sum_exps_T1(0);
      if (experts == 1) {
        EXPECT_EQ(got, 0);
      } else {
        EXPECT_LE(data::ulps(got, want), 3) << experts;
      }
    });
  }
}

TYPED_TEST(ScoreKernelsTest, NonfiniteLanes) {
  using A = TypeParam;
  const A inf = data::infinity<A>(), nan = data::marked_nan<A>();
  RowMatrix<A> logits_TE(6, 3);
  logits_TE << 1, 1, -inf,  //
      nan, 1, 1,            //
      inf, 1, 1,            //
      -inf, -inf, -inf,     //
      -inf, nan, -inf,      //
      nan, nan, nan;
  const A bad = std::numeric_limits<A>::quiet_NaN();
  const A half = A(0.5);
  RowMatrix<A> softmaxes_TE(6, 3);
  softmaxes_TE << half, half, 0, bad, half, half, bad, bad, bad, bad, bad, bad, bad, bad, bad, bad,
      bad, bad;
  for_each_isa([&](Isa isa) {
    for (ScoreFunction function : data::score_functions) {
      const Scores<A> got = scores(isa, logits_TE, function);
      for (Index t = 0; t < 6; ++t) EXPECT_EQ(std::isnan(got.log_sum_exps_T1(t)), t != 0) << t;
      if (is_softmax(function)) {
        EXPECT_TRUE(data::same_bits(got.scores_TE, softmaxes_TE));
        continue;
      }
      for (Index t = 0; t < 6; ++t) {
        for (Index e = 0; e < 3; ++e) {
          EXPECT_EQ(std::isnan(got.scores_TE(t, e)), std::isnan(logits_TE(t, e)));
          if (logits_TE(t, e) == -inf) {
            EXPECT_EQ(got.scores_TE(t, e), 0);
          }
        }
      }
    }
  });
}

// A loser scores 0 and takes no part in the softmax of the others.
TYPED_TEST(ScoreKernelsTest, LosersScoreZero) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = data::random_matrix<A>(40, 6, 9);
  RowMatrix<KeyOf<A>> keys_TE = keys_of(logits_TE);
  RowMatrix<A> without_TE = logits_TE;
  for (Index t = 0; t < 40; ++t) {
    keys_TE(t, t % 6) = Order<A>::loser;
    without_TE(t, t % 6) = -data::infinity<A>();
  }
  for_each_isa([&](Isa isa) {
    for (ScoreFunction function : data::score_functions) {
      const Scores<A> got = scores_of_keys<A>(isa, keys_TE, function);
      const Scores<A> want = scores(isa, without_TE, function);
      EXPECT_TRUE(data::same_bits(got.scores_TE, want.scores_TE));
      EXPECT_TRUE(data::same_bits(got.log_sum_exps_T1, want.log_sum_exps_T1));
      for (Index t = 0; t < 40; ++t) EXPECT_EQ(got.scores_TE(t, t % 6), 0);
    }
  });
}

// A lane sees none of its neighbours.
TYPED_TEST(ScoreKernelsTest, LanesAreIndependent) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = data::special_matrix<A>(67, 5, 4, 8);
  for_each_isa([&](Isa isa) {
    for (ScoreFunction function : data::score_functions) {
      const Scores<A> all = scores(isa, logits_TE, function);
      for (Index t = 0; t < 67; ++t) {
        const RowMatrix<A> row = logits_TE.row(t);
        const Scores<A> alone = scores(isa, row, function);
        const RowMatrix<A> in_batch = all.scores_TE.row(t);
        ASSERT_TRUE(data::same_bits(alone.scores_TE, in_batch)) << t;
        ASSERT_EQ(data::bits_of(alone.log_sum_exps_T1(0)), data::bits_of(all.log_sum_exps_T1(t)));
      }
    }
  });
}

// The nearest multiple, of two the one further from 0; numbers that no multiple lies beside, and
// what is no number, stay.
TYPED_TEST(ScoreKernelsTest, ChoiceKeysAreThoseOfTheNearestMultiple) {
  using A = TypeParam;
  const std::vector<A> specials = data::special_values<A>();
  for (double step : {0x1p-100, 0x1p-14, 0.25, 1.0, 0x1p100}) {
    std::vector<A> scores = specials;
    for (std::uint64_t i = 0; i < 4000; ++i) {
      const double steps = data::random_uniform(6, i) * std::ldexp(1.0, static_cast<int>(i % 60));
      scores.push_back(static_cast<A>(steps * step));
      scores.push_back(static_cast<A>((std::floor(steps) + 0.5) * step));
    }
    for_each_isa([&](Isa isa) {
      const auto& kernels = kernels_for<ScoreKernels<A>>(isa);
      const Index lanes = kernels_for<Kernels<A>>(isa).lanes;
      const std::vector<A> zeros(static_cast<std::size_t>(lanes), A(0));
      RowMatrix<KeyOf<A>> ranked_L(1, lanes), choice_L(1, lanes), by_logit_L(1, lanes);
      RowMatrix<A> scores_L(1, lanes);
      for (std::size_t first = 0; first < scores.size(); first += zeros.size()) {
        for (Index lane = 0; lane < lanes; ++lane) {
          const std::size_t i = std::min(first + static_cast<std::size_t>(lane), scores.size() - 1);
          scores_L(lane) = scores[i];
          by_logit_L(lane) = key_of(scores[i]);
        }
        ranked_L.setZero();
        kernels.choice_keys(ranked_L.data(), 1, scores_L.data(), static_cast<A>(step), nullptr,
                            choice_L.data());
        kernels.choice_keys(by_logit_L.data(), 1, nullptr, static_cast<A>(step), nullptr,
                            by_logit_L.data());
        for (Index lane = 0; lane < lanes; ++lane) {
          const Exact score = static_cast<Exact>(scores_L(lane));
          const bool finite = std::isfinite(scores_L(lane));
          const Exact want = finite ? std::round(score / step) * step : score;
          ASSERT_EQ(choice_L(lane), key_of(static_cast<A>(want))) << scores_L(lane) << ", " << step;
          ASSERT_EQ(by_logit_L(lane), choice_L(lane));
        }
      }
    });
  }
}

/// Keys of one group, a token per lane.
template <class A>
RowMatrix<KeyOf<A>> lanes_of(const RowMatrix<A>& logits_LE) {
  return keys_of(logits_LE).transpose();
}

TYPED_TEST(ScoreKernelsTest, SharesAndLogSumExpDoNotSeeEachOther) {
  using A = TypeParam;
  for_each_isa([&](Isa isa) {
    const auto& kernels = kernels_for<ScoreKernels<A>>(isa);
    const Index lanes = kernels_for<Kernels<A>>(isa).lanes;
    for (Index experts : {1, 3, 8, 33}) {
      const auto keys_EL = lanes_of<A>(data::special_matrix<A>(lanes, experts, 5, 9));
      RowMatrix<A> both_EL(experts, lanes), shares_EL(experts, lanes), both_L(1, lanes),
          log_sum_exp_L(1, lanes);
      const auto function = ScoreFunction::softmax_before_top_k;
      kernels.shares(keys_EL.data(), experts, function, both_EL.data(), nullptr, both_L.data());
      kernels.shares(keys_EL.data(), experts, function, shares_EL.data(), nullptr, nullptr);
      kernels.shares(keys_EL.data(), experts, function, nullptr, nullptr, log_sum_exp_L.data());
      EXPECT_TRUE(data::same_bits(both_EL, shares_EL));
      EXPECT_TRUE(data::same_bits(both_L, log_sum_exp_L));
    }
  });
}

// Whole units to the nearest, in the lanes that count; the most groups there may be do not
// overflow.
TYPED_TEST(ScoreKernelsTest, AddSharesRoundsToUnits) {
  using A = TypeParam;
  using gatepro::detail::share_bits_v;
  for_each_isa([&](Isa isa) {
    const auto& kernels = kernels_for<ScoreKernels<A>>(isa);
    const Index lanes = kernels_for<Kernels<A>>(isa).lanes, experts = 5;
    RowMatrix<A> shares_EL = data::random_matrix<A>(experts, lanes, 3).cwiseAbs();
    shares_EL = shares_EL.cwiseMin(A(1));
    shares_EL.row(0).setConstant(A(1));
    shares_EL(1, 0) = A(0);
    shares_EL(2, 0) = std::numeric_limits<A>::denorm_min();
    shares_EL(3, 0) = std::ldexp(A(1), -share_bits_v<A> - 1);  // half a unit
    RowMatrix<KeyOf<A>> counted_L(1, lanes), totals_EL = RowMatrix<KeyOf<A>>::Zero(experts, lanes);
    for (Index lane = 0; lane < lanes; ++lane) counted_L(lane) = lane % 3 == 1 ? 0 : -1;
    const Index most = gatepro::detail::most_groups_per_total;
    for (Index i = 0; i < most; ++i) {
      ASSERT_TRUE(
          kernels.add_shares(shares_EL.data(), experts, counted_L.data(), totals_EL.data()));
    }
    for (Index e = 0; e < experts; ++e) {
      for (Index lane = 0; lane < lanes; ++lane) {
        const Exact units = std::ldexp(static_cast<Exact>(shares_EL(e, lane)), share_bits_v<A>);
        const Exact counts = counted_L(lane) != 0 ? 1 : 0;
        EXPECT_LE(std::abs(static_cast<Exact>(totals_EL(e, lane)) / most - counts * units), 0.5L);
        EXPECT_GE(totals_EL(e, lane), 0);
      }
    }
  });
}

// A token without shares spoils only what counts it.
TYPED_TEST(ScoreKernelsTest, AddSharesTellsOfTokensWithoutShares) {
  using A = TypeParam;
  for_each_isa([&](Isa isa) {
    const auto& kernels = kernels_for<ScoreKernels<A>>(isa);
    const Index lanes = kernels_for<Kernels<A>>(isa).lanes, experts = 3;
    for (Index bad = 0; bad < lanes; ++bad) {
      RowMatrix<A> shares_EL = RowMatrix<A>::Constant(experts, lanes, A(0.25));
      shares_EL.col(bad).setConstant(data::marked_nan<A>());
      RowMatrix<KeyOf<A>> counted_L = RowMatrix<KeyOf<A>>::Constant(1, lanes, -1),
                          totals_EL = RowMatrix<KeyOf<A>>::Zero(experts, lanes), want_EL;
      EXPECT_FALSE(
          kernels.add_shares(shares_EL.data(), experts, counted_L.data(), totals_EL.data()));
      want_EL = RowMatrix<KeyOf<A>>::Constant(
          experts, lanes, KeyOf<A>(1) << (gatepro::detail::share_bits_v<A> - 2));
      want_EL.col(bad).setZero();
      EXPECT_EQ(totals_EL, want_EL);
      counted_L(bad) = 0;
      EXPECT_TRUE(
          kernels.add_shares(shares_EL.data(), experts, counted_L.data(), totals_EL.data()));
      EXPECT_EQ(totals_EL, 2 * want_EL);
    }
  });
}

}  // namespace
