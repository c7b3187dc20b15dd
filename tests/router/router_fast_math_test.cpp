// SPDX-License-Identifier: MIT
// Built with -Ofast: no NaN, no infinity and no denormal exists for the compiler. Ids stay valid
// and in order, the rules for NaN weights hold, and the numbers are right to 1e-5.
//
// Special values are made and recognised by their bits: std::isnan is constant here.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "support/bits.hpp"
#include "support/conversions.hpp"
#include "support/ids.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/reference/gate.hpp"
#include "support/reference/partners.hpp"
#include "support/reference/routing.hpp"

#if !defined(__FAST_MATH__)
#error "this test is about -Ofast"
#endif

namespace {

using gatepro::Competition;
using gatepro::Index;
using gatepro::RowMatrix;

constexpr std::uint32_t nan_bits = 0x7fc00000;
constexpr std::uint32_t minus_nan_bits = 0xffc00001;
constexpr std::uint32_t inf_bits = 0x7f800000;
constexpr std::uint32_t minus_inf_bits = 0xff800000;

void set_bits(float& value, std::uint32_t bits) { std::memcpy(&value, &bits, sizeof bits); }

/// A number's place in the order; every NaN is below -inf.
std::int64_t rank_of(const float& value) {
  const std::int64_t magnitude = data::bits_of(value) & 0x7fffffffU;
  if (magnitude > inf_bits) return -std::int64_t{inf_bits} - 1;
  return data::bits_of(value) >> 31 == 0 ? magnitude : -magnitude;
}

class FastMath : public testing::TestWithParam<Competition> {
 public:
  static constexpr Index tokens = 203, hidden = 24, experts = 11, top_k = 4;

  FastMath() : router_(config()) { router_.refresh(w_, 0); }

  static gatepro::RouterConfig config() {
    gatepro::RouterConfig result{hidden, experts, top_k};
    result.competition = GetParam();
    return result;
  }

  gatepro::RoutingReport forward() {
    auto out = buffers_.view();
    out.logits_TE = logits_;
    out.statistics = &statistics_;
    return router_.forward(x_, w_, out, buffers_.workspace());
  }

  float logit(Index t, Index e) const { return logits_(t, e); }
  bool loses(Index t, Index e) const {
    const Index partner = router_.similarity_cache().partners()(e, 0);
    return GetParam().active() && partner != e &&
           rank_of(logits_(t, e)) < rank_of(logits_(t, partner)) && !data::is_nan(logits_(t, e));
  }

  /// Valid ids, and what softmax may give: all of it NaN by the rule, or a distribution.
  void expect_rules(const gatepro::RoutingReport& report) const {
    const bool eliminate = GetParam().mode == gatepro::CompetitionMode::eliminate;
    const auto ids_TK = data::copy<std::int32_t>(buffers_.expert_ids_TK());
    ASSERT_TRUE(data::valid_ids(ids_TK, experts));
    Index nonfinite = 0;
    for (Index t = 0; t < tokens; ++t) {
      bool expect_nan = false, any_finite = false;
      float sum = 0;
      for (Index j = 0; j < top_k; ++j) {
        const Index id = ids_TK(t, j);
        const std::int64_t rank = rank_of(logits_(t, id));
        const bool eliminated = eliminate && loses(t, id);
        expect_nan = expect_nan || rank < -std::int64_t{inf_bits} || rank == inf_bits;
        any_finite = any_finite || (rank > -std::int64_t{inf_bits} && !eliminated);
      }
      expect_nan = expect_nan || !any_finite;
      nonfinite += expect_nan ? 1 : 0;
      for (Index j = 0; j < top_k; ++j) {
        const float weight = buffers_.weights_TK()(t, j);
        ASSERT_EQ(data::is_nan(weight), expect_nan) << t;
        if (!expect_nan) sum += weight;
      }
      if (!expect_nan) {
        ASSERT_NEAR(sum, 1, 1e-5F) << t;
      }
    }
    EXPECT_EQ(report.nonfinite_rows, nonfinite);
  }

  /// In the modes that do not change logits, the selection is in order of logit, then id.
  void expect_order() const {
    if (GetParam().active()) return;
    for (Index t = 0; t < tokens; ++t) {
      for (Index j = 0; j + 1 < top_k; ++j) {
        const Index a = buffers_.expert_ids_TK()(t, j);
        const Index b = buffers_.expert_ids_TK()(t, j + 1);
        const std::int64_t rank_a = rank_of(logits_(t, a)), rank_b = rank_of(logits_(t, b));
        ASSERT_TRUE(rank_a > rank_b || (rank_a == rank_b && a < b)) << t;
      }
    }
  }

  gatepro::Router<float> router_;
  RowMatrix<float> x_ = data::random_matrix<float>(tokens, hidden, 1);
  RowMatrix<float> w_ = data::random_matrix<float>(experts, hidden, 2);
  RowMatrix<float> logits_{tokens, experts};
  gatepro::PenaltyStatistics statistics_;
  gatepro::RoutingBuffers<gatepro::Router<float>> buffers_{router_, tokens};
};

TEST_P(FastMath, OrdinaryInput) {
  const auto report = forward();
  EXPECT_EQ(report.nonfinite_rows, 0);
  expect_rules(report);
  expect_order();
  const reference::Matrix x = data::to_reference(x_), w = data::to_reference(w_);
  const reference::Matrix logits = reference::gate_logits(x, w);
  const reference::Ids rivals =
      reference::rivals(reference::pair_partners(reference::cosine_similarity(w), {}), false);
  for (Index t = 0; t < tokens; ++t) {
    const auto expected = reference::route(logits[static_cast<std::size_t>(t)], rivals, GetParam(),
                                           top_k, [](double v) { return v; });
    for (Index e = 0; e < experts; ++e) {
      ASSERT_NEAR(logits_(t, e), data::at(logits, t, e), 1e-5);
    }
    for (Index j = 0; j < top_k; ++j) {
      ASSERT_EQ(buffers_.expert_ids_TK()(t, j), expected.ids[static_cast<std::size_t>(j)]) << t;
      ASSERT_NEAR(buffers_.weights_TK()(t, j), expected.weights[static_cast<std::size_t>(j)], 1e-5);
    }
  }

  RowMatrix<float> dweights(tokens, top_k);
  for (Index i = 0; i < dweights.size(); ++i) dweights.data()[i] = static_cast<float>(i % 7) - 3;
  RowMatrix<float> dx = RowMatrix<float>::Zero(tokens, hidden);
  RowMatrix<float> dw = RowMatrix<float>::Zero(experts, hidden);
  router_.backward(x_, w_, buffers_, {dweights}, {dx, dw});
  const auto ids_TK = data::copy<std::int32_t>(buffers_.expert_ids_TK());
  const auto weights_TK = data::copy<float>(buffers_.weights_TK());
  const auto gradients = reference::backward(
      x, w, data::to_ids(ids_TK), data::to_reference(weights_TK), data::to_reference(dweights), {});
  for (Index h = 0; h < hidden; ++h) {
    for (Index t = 0; t < tokens; ++t) {
      ASSERT_NEAR(dx(t, h), data::at(gradients.dx_TH, t, h), 1e-5);
    }
    for (Index e = 0; e < experts; ++e) {
      ASSERT_NEAR(dw(e, h), data::at(gradients.dw_EH, e, h), 1e-4);
    }
  }
}

TEST_P(FastMath, NaNInput) {
  for (Index t = 0; t < tokens; t += 3) set_bits(x_(t, t % hidden), nan_bits);
  for (Index t = 1; t < tokens; t += 9) set_bits(x_(t, t % hidden), minus_nan_bits);
  for (Index t = 2; t < tokens; t += 9) set_bits(x_(t, t % hidden), inf_bits);
  const auto report = forward();
  EXPECT_GT(report.nonfinite_rows, tokens / 3);
  EXPECT_LT(report.nonfinite_rows, tokens);
  expect_rules(report);
}

TEST_P(FastMath, NaNInARowOfW) {
  set_bits(w_(4, 2), nan_bits);
  set_bits(w_(7, 0), minus_inf_bits);
  router_.refresh_now(w_, 1);
  EXPECT_EQ(router_.similarity_cache().report().nonfinite_rows, 2);
  EXPECT_EQ(router_.similarity_cache().partners()(4, 0), 4);
  EXPECT_EQ(router_.similarity_cache().partners()(7, 0), 7);
  for (Index e = 0; e < experts; ++e) {
    if (e == 4 || e == 7) continue;
    const Index partner = router_.similarity_cache().partners()(e, 0);
    EXPECT_TRUE(partner != 4 && partner != 7) << e;
  }
  expect_rules(forward());
}

TEST_P(FastMath, SpecialLogits) {
  const std::uint32_t patterns[] = {
      nan_bits,   inf_bits,   minus_inf_bits, 0, 0x80000000, 1,         0x80000001,
      0x00400000, 0x3f800000, minus_nan_bits, 2, 0x7f7fffff, 0xff7fffff};
  std::uint32_t state = 7;
  for (Index i = 0; i < logits_.size(); ++i) {
    state = state * 1664525 + 1013904223;
    const std::uint32_t draw = (state >> 8) % 40;
    // Mostly what may stand in an ordinary row, so that not all rows are NaN; but every fourth row
    // has too few numbers for K choices.
    std::uint32_t bits = patterns[draw < 13 ? draw : 2 + draw % 7];
    if (i / experts % 4 == 0 && draw > 8) bits = nan_bits;
    set_bits(logits_.data()[i], bits);
  }
  auto out = buffers_.view();
  const auto report = router_.forward_logits(logits_, out, buffers_.workspace());
  EXPECT_GT(report.nonfinite_rows, 0);
  EXPECT_LT(report.nonfinite_rows, tokens);
  expect_rules(report);
  expect_order();
}

// Off is off, and a lambda that is no number is refused.
TEST_P(FastMath, BadLambda) {
  float lambda = 0;
  for (std::uint32_t bits : {nan_bits, inf_bits, minus_inf_bits, 0xbf800000U}) {
    set_bits(lambda, bits);
    // The widening is done bit by bit: the compiler may assume that lambda is a number.
    double wide;
    const std::uint64_t wide_bits =
        (std::uint64_t{bits & 0x80000000U} << 32) |
        (bits == 0xbf800000U ? 0x3ff0000000000000U : 0x7ff0000000000000U) |
        (std::uint64_t{bits & 0x007fffffU} << 29);
    std::memcpy(&wide, &wide_bits, sizeof wide);
    EXPECT_THROW(router_.set_competition(Competition::penalty(wide)), gatepro::Error);
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, FastMath,
                         testing::Values(Competition::off(), Competition::penalty(0.25),
                                         Competition::eliminate()));

}  // namespace
