// SPDX-License-Identifier: MIT
// Losses that keep the rows of W apart: against the definition, finite differences, rows that are
// hard to handle, and themselves on other executors.
#include <gatepro/partners/similarity_cache.hpp>
#include <gatepro/router/router.hpp>

#include <cmath>
#include <limits>
#include <vector>

#include "support/bits.hpp"
#include "support/conversions.hpp"
#include "support/errors.hpp"
#include "support/executors.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/reference/orthogonality.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::Index;
using gatepro::MatrixView;
using gatepro::OrthogonalityKind;
using gatepro::OrthogonalityReport;
using gatepro::OrthogonalityRule;
using gatepro::RowMatrix;
using gatepro::SerialExecutor;
using gatepro::view;
using Partners = RowMatrix<std::int32_t>;

template <class D>
struct Loss {
  OrthogonalityReport report;
  RowMatrix<D> dw_EH;  // what was added to zeros
};

template <class D, class W, class Executor = SerialExecutor>
Loss<D> loss_of(const RowMatrix<W>& w_EH, const OrthogonalityRule& rule,
                const Partners& partners_EM = {}, const Executor& executor = {}) {
  Loss<D> loss{{}, RowMatrix<D>::Zero(w_EH.rows(), w_EH.cols())};
  auto memory = data::scratch(gatepro::orthogonality_loss_workspace_bytes<D>(
      w_EH.rows(), w_EH.cols(), partners_EM.cols(), executor.workers()));
  loss.report = gatepro::orthogonality_loss(view(w_EH), gatepro::strided_view(partners_EM), rule,
                                            view(loss.dw_EH), memory, executor);
  return loss;
}

/// Partners as a trainer may have them: mutual, one-sided, none.
Partners some_partners(Index experts, Index m) {
  Partners partners_EM(experts, m);
  for (Index i = 0; i < experts; ++i) {
    for (Index p = 0; p < m; ++p) {
      const Index other = (i ^ 1) + p * 3;
      partners_EM(i, p) = static_cast<std::int32_t>(i % 5 == 4 || other >= experts ? i : other);
    }
  }
  return partners_EM;
}

OrthogonalityRule rule_of(OrthogonalityKind kind, Index groups = 1, bool others = false) {
  OrthogonalityRule rule;
  rule.kind = kind;
  rule.coefficient = 0.5;
  rule.groups = groups;
  rule.mean_over_others = others;
  return rule;
}

std::vector<OrthogonalityRule> all_rules() {
  std::vector<OrthogonalityRule> rules;
  for (auto kind : {OrthogonalityKind::frobenius, OrthogonalityKind::simbal}) {
    for (Index groups : {1, 2}) {
      for (bool others : {false, true}) rules.push_back(rule_of(kind, groups, others));
    }
    rules.push_back(rule_of(kind));
    rules.back().only_partners = true;
  }
  return rules;
}

template <class W>
class OrthogonalityLossTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double, gatepro::bfloat16, gatepro::half>;
TYPED_TEST_SUITE(OrthogonalityLossTest, Scalars, TypeNames);

TYPED_TEST(OrthogonalityLossTest, MatchesTheDefinition) {
  using D = gatepro::accumulator_t<TypeParam>;
  const double eps = static_cast<double>(std::numeric_limits<D>::epsilon());
  for (Index experts : {2, 6, 48, 50, 130}) {
    for (const OrthogonalityRule& rule : all_rules()) {
      const auto w_EH = data::random_matrix<TypeParam>(experts, 11, 3);
      const Partners partners_EM = some_partners(experts, 2);
      const double want =
          reference::orthogonality(data::to_reference(w_EH), rule, data::to_ids(partners_EM));
      const double got = loss_of<D>(w_EH, rule, partners_EM).report.loss;
      EXPECT_NEAR(got, want, 40 * eps * (1 + want)) << experts << " " << rule.groups;
    }
  }
}

TEST(OrthogonalityLoss, GradientAgreesWithFiniteDifferences) {
  for (Index experts : {2, 6, 10, 52}) {
    for (OrthogonalityRule rule : all_rules()) {
      const RowMatrix<double> w_EH = data::random_matrix<double>(experts, 7, 4);
      const Partners partners_EM = some_partners(experts, 2);
      const auto got = loss_of<double>(w_EH, rule, partners_EM);
      const RowMatrix<double> along_EH = data::random_matrix<double>(experts, 7, 5);
      for (Index i = 0; i<experts; i += experts> 20 ? 17 : 1) {
        const auto moved = [&](double step) {
          RowMatrix<double> there_EH = w_EH;
          there_EH.row(i) += step * along_EH.row(i);
          return reference::orthogonality(data::to_reference(there_EH), rule,
                                          data::to_ids(partners_EM));
        };
        EXPECT_NEAR(got.dw_EH.row(i).dot(along_EH.row(i)), reference::derivative(moved, 1e-5),
                    1e-8 + 1e-10 * got.report.loss)
            << "E " << experts << ", kind " << static_cast<int>(rule.kind) << ", groups "
            << rule.groups << ", partners " << rule.only_partners;
      }
    }
  }
}

// A gradient through the lengths of rows would have a part along them.
TEST(OrthogonalityLoss, FrobeniusTurnsRowsAndKeepsTheirLength) {
  const RowMatrix<double> w_EH = data::random_matrix<double>(30, 9, 6) * 3;
  const auto got = loss_of<double>(w_EH, rule_of(OrthogonalityKind::frobenius));
  for (Index i = 0; i < 30; ++i) EXPECT_NEAR(got.dw_EH.row(i).dot(w_EH.row(i)), 0, 1e-15);
}

TYPED_TEST(OrthogonalityLossTest, OrthonormalRowsCostNothing) {
  using D = gatepro::accumulator_t<TypeParam>;
  const RowMatrix<TypeParam> w_EH = RowMatrix<TypeParam>::Identity(60, 70);
  for (const OrthogonalityRule& rule : all_rules()) {
    const auto got = loss_of<D>(w_EH, rule, some_partners(60, 1));
    EXPECT_EQ(got.report.loss, 0);
    EXPECT_TRUE(got.dw_EH.isZero(0));
  }
}

// Two copies and two rows across: C has two elements of 1 beside the diagonal.
TEST(OrthogonalityLoss, KnownValues) {
  RowMatrix<double> w_EH(4, 4);
  w_EH << 2, 0, 0, 0, 2, 0, 0, 0, 0, 3, 0, 0, 0, 0, 1, 0;
  OrthogonalityRule rule = rule_of(OrthogonalityKind::frobenius);
  rule.coefficient = 1;
  EXPECT_DOUBLE_EQ(loss_of<double>(w_EH, rule).report.loss, 2.0 / 16);
  rule.mean_over_others = true;
  EXPECT_DOUBLE_EQ(loss_of<double>(w_EH, rule).report.loss, 2.0 / 12);
  rule.groups = 2;
  EXPECT_DOUBLE_EQ(loss_of<double>(w_EH, rule).report.loss, 2.0 / 4);
  rule.groups = 4;  // nobody to compare with
  EXPECT_EQ(loss_of<double>(w_EH, rule).report.loss, 0);
  rule = rule_of(OrthogonalityKind::simbal);
  rule.coefficient = 1;
  EXPECT_DOUBLE_EQ(loss_of<double>(w_EH, rule).report.loss, 2 * 4 + 3 + 3 + 8 + 0);
}

// Only directions count for frobenius.
TYPED_TEST(OrthogonalityLossTest, LengthsOfPowersOfTwoChangeNoBits) {
  using W = TypeParam;
  using D = gatepro::accumulator_t<W>;
  const RowMatrix<W> w_EH = data::random_matrix<W>(50, 12, 7);
  RowMatrix<W> scaled_EH = w_EH;
  if (std::is_same_v<W, gatepro::half>) GTEST_SKIP() << "too small a range";
  const int most = std::is_same_v<W, double> ? 950 : 90;  // far enough to be lifted
  for (Index i = 0; i < 50; ++i) {
    for (int step = 0; step < most; ++step) scaled_EH.row(i) *= W(i % 2 == 0 ? 2.0F : 0.5F);
  }
  const OrthogonalityRule rule = rule_of(OrthogonalityKind::frobenius);
  const auto want = loss_of<D>(w_EH, rule);
  const auto got = loss_of<D>(scaled_EH, rule);
  EXPECT_EQ(got.report.loss, want.report.loss);
  for (Index i = 0; i < 50; ++i) {
    for (Index h = 0; h < 12; ++h) {
      EXPECT_EQ(std::ldexp(got.dw_EH(i, h), i % 2 == 0 ? most : -most), want.dw_EH(i, h));
    }
  }
}

TYPED_TEST(OrthogonalityLossTest, HugeRows) {
  using W = TypeParam;
  using D = gatepro::accumulator_t<W>;
  const W huge = (std::numeric_limits<W>::max)();
  const RowMatrix<W> w_EH = RowMatrix<W>::Constant(50, 16, huge);
  auto got = loss_of<D>(w_EH, rule_of(OrthogonalityKind::frobenius));
  EXPECT_NEAR(got.report.loss, 0.5 * 49 / 50, 1e-6);
  EXPECT_TRUE(got.dw_EH.allFinite());
  got = loss_of<D>(w_EH, rule_of(OrthogonalityKind::simbal));
  if (std::is_same_v<W, double>) {
    EXPECT_EQ(got.report.loss, std::numeric_limits<double>::infinity());
  } else {
    const double want =
        reference::orthogonality(data::to_reference(w_EH), rule_of(OrthogonalityKind::simbal));
    EXPECT_NEAR(got.report.loss, want, 1e-5 * want);
  }
}

/// The gradient of the loss, with or without its pairs in a table of partners.
template <class D, class W>
std::vector<RowMatrix<D>> gradients_of(const RowMatrix<W>& w_EH, OrthogonalityRule rule) {
  const Index experts = w_EH.rows();
  Partners all_others_EM(experts, experts - 1);
  for (Index i = 0; i < experts; ++i) {
    for (Index p = 0; p < experts - 1; ++p) {
      all_others_EM(i, p) = static_cast<std::int32_t>(p + (p >= i ? 1 : 0));
    }
  }
  std::vector<RowMatrix<D>> gradients = {loss_of<D>(w_EH, rule).dw_EH};
  rule.only_partners = true;
  gradients.push_back(loss_of<D>(w_EH, rule, all_others_EM).dw_EH);
  return gradients;
}

// Where the gradient has no number it is infinite, with its sign, and elsewhere it is as exact as
// that of double, but for what the part along a row leaves of its digits.
void expect_as_of_double(const RowMatrix<float>& w_EH, const OrthogonalityRule& rule) {
  constexpr double most = (std::numeric_limits<float>::max)();
  constexpr double least = 4.0 * std::numeric_limits<float>::denorm_min();
  const bool divides = rule.kind == OrthogonalityKind::frobenius;
  const RowMatrix<double> wide_EH = w_EH.cast<double>();
  const auto got = gradients_of<float>(w_EH, rule);
  const auto want = gradients_of<double>(wide_EH, rule);
  for (std::size_t g = 0; g < got.size(); ++g) {
    for (Index i = 0; i < w_EH.rows(); ++i) {
      const double factor = std::abs(rule.coefficient * rule.gradient_scale);
      const double left = divides ? 1e-6 * factor / wide_EH.row(i).norm() : 0;
      for (Index h = 0; h < w_EH.cols(); ++h) {
        const double is = static_cast<double>(got[g](i, h)), should = want[g](i, h);
        if (std::abs(should) <= most) {
          EXPECT_NEAR(is, should, 1e-5 * std::abs(should) + least + left) << i << " " << h;
        } else {
          EXPECT_EQ(is, std::copysign(std::numeric_limits<double>::infinity(), should));
        }
      }
    }
  }
}

TEST(OrthogonalityLoss, GradientsOfTinyRowsAreExactOrInfinite) {
  RowMatrix<float> w_EH(3, 4);
  w_EH << 1, 0.25F, -0.5F, 0, 0.75F, -1, 0, 0.5F, -0.5F, 1, 1, -0.125F;
  for (int exponent : {-100, -120, -124, -126, -127, -130, -140}) {
    const RowMatrix<float> tiny_EH = w_EH * std::ldexp(1.0F, exponent);
    expect_as_of_double(tiny_EH, rule_of(OrthogonalityKind::frobenius));
    expect_as_of_double(tiny_EH, rule_of(OrthogonalityKind::simbal));
  }
}

TEST(OrthogonalityLoss, GradientsOfHugeRowsAreExactOrInfinite) {
  RowMatrix<float> w_EH(5, 4);
  w_EH << 1, 1, 0, 0, 1, 0.5F, 0, 0, 0, 0, 3e38F, 1, 0, 0, 3e38F, 2, 0, 0, -3e38F, 8;
  for (auto kind : {OrthogonalityKind::frobenius, OrthogonalityKind::simbal}) {
    OrthogonalityRule rule = rule_of(kind);
    for (double coefficient : {1e-30, 1e-3, 0.5, 10.0, 1e30}) {
      rule.coefficient = coefficient;
      rule.gradient_scale = 65536;
      expect_as_of_double(w_EH, rule);
      rule.gradient_scale = -1;
      expect_as_of_double(w_EH, rule);
    }
  }
}

// Whose norms leave the range of double.
TEST(OrthogonalityLoss, FrobeniusTakesAllLengthsOfDouble) {
  const RowMatrix<double> w_EH = data::random_matrix<double>(8, 60, 18).cwiseMax(-1).cwiseMin(1);
  OrthogonalityRule rule = rule_of(OrthogonalityKind::frobenius);
  const auto want = gradients_of<double>(w_EH, rule);
  for (int exponent : {1023, -960}) {
    rule.gradient_scale = std::ldexp(1.0, exponent > 0 ? 900 : -900);
    const RowMatrix<double> scaled_EH = w_EH * std::ldexp(1.0, exponent);
    const auto got = gradients_of<double>(scaled_EH, rule);
    const double back = std::ldexp(1.0, exponent > 0 ? exponent - 900 : exponent + 900);
    for (std::size_t g = 0; g < got.size(); ++g) {
      EXPECT_TRUE(data::same_bits(RowMatrix<double>(got[g] * back), want[g])) << exponent;
    }
  }
}

TYPED_TEST(OrthogonalityLossTest, RowsWithoutADirection) {
  using W = TypeParam;
  using D = gatepro::accumulator_t<W>;
  RowMatrix<W> w_EH = data::random_matrix<W>(60, 9, 8);
  w_EH.row(0).setZero();
  w_EH.row(50).setZero();
  w_EH(7, 3) = std::numeric_limits<W>::infinity();
  w_EH(58, 8) = std::numeric_limits<W>::quiet_NaN();
  const Partners partners_EM = some_partners(60, 2);
  for (const OrthogonalityRule& rule : all_rules()) {
    const auto got = loss_of<D>(w_EH, rule, partners_EM);
    const double want =
        reference::orthogonality(data::to_reference(w_EH), rule, data::to_ids(partners_EM));
    EXPECT_NEAR(got.report.loss, want, 1e-5 * (1 + want));
    EXPECT_EQ(got.report.rows.degenerate_rows, 2);
    EXPECT_EQ(got.report.rows.nonfinite_rows, 2);
    EXPECT_TRUE(got.dw_EH.allFinite());
    for (Index i : {0, 50, 7, 58}) EXPECT_TRUE(got.dw_EH.row(i).isZero(0)) << i;
  }
}

TEST(OrthogonalityLoss, WithoutANonFiniteRowItIsTheSame) {
  const RowMatrix<double> fewer_EH = data::random_matrix<double>(9, 6, 19);
  RowMatrix<double> w_EH(10, 6);
  w_EH << fewer_EH, RowMatrix<double>::Constant(1, 6, std::numeric_limits<double>::quiet_NaN());
  for (auto kind : {OrthogonalityKind::frobenius, OrthogonalityKind::simbal}) {
    for (bool others : {false, true}) {
      const OrthogonalityRule rule = rule_of(kind, 1, others);
      EXPECT_DOUBLE_EQ(loss_of<double>(w_EH, rule).report.loss,
                       loss_of<double>(fewer_EH, rule).report.loss);
      const auto got = gradients_of<double>(w_EH, rule);
      const auto want = gradients_of<double>(fewer_EH, rule);
      for (std::size_t g = 0; g < got.size(); ++g) {
        EXPECT_TRUE(got[g].topRows(9).isApprox(want[g], 1e-14));
        EXPECT_TRUE(got[g].row(9).isZero(0));
      }
    }
  }
}

TYPED_TEST(OrthogonalityLossTest, ExecutorsGiveTheSameBits) {
  using D = gatepro::accumulator_t<TypeParam>;
  const auto w_EH = data::random_matrix<TypeParam>(210, 70, 9);
  const Partners partners_EM = some_partners(210, 3);
  for (const OrthogonalityRule& rule : all_rules()) {
    const auto want = loss_of<D>(w_EH, rule, partners_EM);
    const auto expect_same = [&](const Loss<D>& got) {
      EXPECT_EQ(got.report.loss, want.report.loss);
      EXPECT_TRUE(data::same_bits(got.dw_EH, want.dw_EH));
    };
    expect_same(loss_of<D>(w_EH, rule, partners_EM, ThreadExecutor(3)));
    expect_same(loss_of<D>(w_EH, rule, partners_EM, LastWorkerFirst(4)));
  }
}

// Views with gaps, a gradient that is there already, more than one block of depth, and none at all.
TYPED_TEST(OrthogonalityLossTest, AddsToAnyView) {
  using W = TypeParam;
  using D = gatepro::accumulator_t<W>;
  constexpr Index experts = 600, hidden = 20;
  data::GuardedMatrix<W> w_EH(data::random_matrix<W>(experts, hidden, 10), 3);
  const RowMatrix<D> start_EH = data::random_matrix<D>(experts, hidden, 11, 1e-3);
  const MatrixView<const W> weights = w_EH.view();
  for (auto kind : {OrthogonalityKind::frobenius, OrthogonalityKind::simbal}) {
    const OrthogonalityRule rule = rule_of(kind);
    data::GuardedMatrix<D> dw_EH(start_EH, 5);
    auto memory = data::scratch(
        gatepro::orthogonality_loss_workspace_bytes<D>(experts, hidden, 0, SerialExecutor()));
    const auto got = gatepro::orthogonality_loss(weights, {}, rule, dw_EH.view(), memory);
    const auto want = loss_of<D>(w_EH.values(), rule);
    EXPECT_EQ(got.loss, want.report.loss);
    EXPECT_TRUE(dw_EH.intact());
    const double size = static_cast<double>(want.dw_EH.cwiseAbs().maxCoeff());
    EXPECT_LE(static_cast<double>((dw_EH.values() - start_EH - want.dw_EH).cwiseAbs().maxCoeff()),
              1e-5 * (size + 1e-3));
    EXPECT_EQ(gatepro::orthogonality_loss(weights, {}, rule, MatrixView<D>(), memory).loss,
              want.report.loss);
  }
}

// Weights of float with gradients in double, as a router of double tokens has them.
TEST(OrthogonalityLoss, DoubleGradientsOfFloatWeights) {
  const auto w_EH = data::random_matrix<float>(20, 9, 12);
  const RowMatrix<double> wide_EH = w_EH.cast<double>();
  for (const OrthogonalityRule& rule : all_rules()) {
    const auto got = loss_of<double>(w_EH, rule, some_partners(20, 1));
    const auto want = loss_of<double>(wide_EH, rule, some_partners(20, 1));
    EXPECT_EQ(got.report.loss, want.report.loss);
    EXPECT_TRUE(data::same_bits(got.dw_EH, want.dw_EH));
  }
}

TEST(OrthogonalityLoss, TheGradientIsScaledAndTheValueIsNot) {
  const auto w_EH = data::random_matrix<double>(20, 9, 13);
  for (OrthogonalityRule rule : all_rules()) {
    const auto plain = loss_of<double>(w_EH, rule, some_partners(20, 1));
    rule.gradient_scale = 1024;
    const auto scaled = loss_of<double>(w_EH, rule, some_partners(20, 1));
    EXPECT_EQ(scaled.report.loss, plain.report.loss);
    EXPECT_TRUE(data::same_bits(scaled.dw_EH, RowMatrix<double>(plain.dw_EH * 1024)));
    rule.coefficient = 0;
    const auto off = loss_of<double>(w_EH, rule, some_partners(20, 1));
    EXPECT_EQ(off.report.loss, 0);
    EXPECT_TRUE(off.dw_EH.isZero(0));
  }
}

template <class W, class Executor>
void expect_joined(const gatepro::RefreshSchedule& schedule, const Executor& executor) {
  using D = gatepro::accumulator_t<W>;
  const auto w_EH = data::random_matrix<W>(130, 21, 15);
  for (const OrthogonalityRule& rule : all_rules()) {
    gatepro::SimilarityCache<D> alone(130, {2, 0.1, true}, schedule);
    gatepro::SimilarityCache<D> joined = alone;
    alone.refresh(view(w_EH), 5);
    const auto want = loss_of<D>(w_EH, rule, data::copy<std::int32_t>(alone.partners()));
    for (const std::int64_t step : {5, 5, 6}) {
      RowMatrix<D> dw_EH = RowMatrix<D>::Zero(130, 21);
      const auto got = joined.refresh_with_loss(view(w_EH), step, rule, view(dw_EH), executor);
      EXPECT_EQ(joined.last_refresh_step(), step);
      EXPECT_EQ(got.loss, want.report.loss);
      EXPECT_TRUE(data::same_bits(dw_EH, want.dw_EH));
      EXPECT_EQ(data::copy<std::int32_t>(joined.partners()),
                data::copy<std::int32_t>(alone.partners()));
      EXPECT_EQ(joined.similarity().given(), alone.similarity().given());
      if (!alone.similarity().given()) continue;
      EXPECT_TRUE(
          data::same_bits(data::copy<D>(joined.similarity()), data::copy<D>(alone.similarity())));
    }
    const auto value = joined.refresh_with_loss(view(w_EH), 7, rule, MatrixView<D>(), executor);
    EXPECT_EQ(value.loss, want.report.loss);
  }
}

// Whether the two share a pass or not.
TYPED_TEST(OrthogonalityLossTest, RefreshWithLossIsOneAfterTheOther) {
  const auto every_step = gatepro::RefreshSchedule::every_step();
  expect_joined<TypeParam>(every_step, SerialExecutor());
  expect_joined<TypeParam>(every_step, ThreadExecutor(3));
  expect_joined<TypeParam>(every_step.lazily(), LastWorkerFirst(2));
}

TEST(OrthogonalityLoss, OfARouter) {
  gatepro::Router<double, float> router({9, 20, 2});
  const auto w_EH = data::random_matrix<float>(20, 9, 16);
  RowMatrix<double> dw_EH = RowMatrix<double>::Zero(20, 9);
  const OrthogonalityRule rule = rule_of(OrthogonalityKind::simbal);
  const auto got = router.refresh_with_loss(w_EH, 3, rule, dw_EH);
  const auto want = loss_of<double>(w_EH, rule);
  EXPECT_EQ(got.loss, want.report.loss);
  EXPECT_TRUE(data::same_bits(dw_EH, want.dw_EH));
  EXPECT_EQ(router.similarity_cache().last_refresh_step(), 3);
}

TEST(OrthogonalityLoss, ARefusedOneRefreshesNothing) {
  gatepro::Router<float> router({9, 20, 2});
  const auto w_EH = data::random_matrix<float>(20, 9, 17);
  RowMatrix<float> dw_EH(20, 9), narrow_EH(20, 8);
  expect_error([&] { router.refresh_with_loss(w_EH, 1, {}, narrow_EH); }, {"dw_EH"});
  expect_error(
      [&] { router.refresh_with_loss(w_EH, 1, rule_of(OrthogonalityKind::simbal, 3), dw_EH); },
      {"groups"});
  RowMatrix<float> one_EH = w_EH;
  expect_error([&] { router.refresh_with_loss(one_EH, 1, {}, one_EH); }, {"dw_EH", "w_EH"});
  EXPECT_FALSE(router.similarity_cache().has_partners());
  OrthogonalityRule rule = rule_of(OrthogonalityKind::simbal);
  rule.only_partners = true;
  router.set_refresh_schedule(gatepro::RefreshSchedule::on_demand());
  expect_error([&] { router.refresh_with_loss(w_EH, 1, rule, dw_EH); }, {"partners_EM"});
}

TEST(OrthogonalityLoss, BadInputIsRefused) {
  const auto w_EH = data::random_matrix<float>(6, 4, 14);
  const auto refused = [&](const OrthogonalityRule& rule, std::initializer_list<const char*> parts,
                           const Partners& partners_EM = Partners::Zero(6, 1)) {
    expect_error([&] { loss_of<float>(w_EH, rule, partners_EM); }, parts);
  };
  OrthogonalityRule rule = rule_of(OrthogonalityKind::simbal);
  rule.coefficient = -1;
  refused(rule, {"orthogonality_loss", "coefficient", "-1"});
  rule = rule_of(OrthogonalityKind::simbal);
  rule.gradient_scale = std::numeric_limits<double>::infinity();
  refused(rule, {"gradient_scale"});
  refused(rule_of(OrthogonalityKind::frobenius, 4), {"groups", "4", "6"});
  refused(rule_of(OrthogonalityKind::frobenius, 0), {"groups"});
  rule = rule_of(OrthogonalityKind::frobenius, 2);
  rule.only_partners = true;
  refused(rule, {"groups = 1"});
  rule.groups = 1;
  refused(rule, {"partners_EM", "6"}, Partners::Constant(6, 1, 6));
  refused(rule, {"partners_EM"}, Partners::Zero(5, 1));
  auto memory = data::scratch(8);
  RowMatrix<float> dw_EH(6, 3);
  expect_error(
      [&] {
        gatepro::orthogonality_loss(view(w_EH), {}, rule_of(OrthogonalityKind::simbal), view(dw_EH),
                                    memory);
      },
      {"dw_EH"});
  expect_error(
      [&] {
        gatepro::orthogonality_loss(view(w_EH), {}, rule_of(OrthogonalityKind::simbal),
                                    MatrixView<float>(), memory);
      },
      {"workspace"});
}

}  // namespace
