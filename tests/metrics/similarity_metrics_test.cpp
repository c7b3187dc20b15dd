// SPDX-License-Identifier: MIT
// Similarities of pairs and of partners: means, spreads, angles and histograms.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "support/errors.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/reference/partners.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::Index;
using gatepro::MatrixView;
using gatepro::RowMatrix;
using gatepro::SimilarityMetrics;
using gatepro::StridedView;
using gatepro::VectorView;
using Counts = std::vector<std::int64_t>;

template <class A>
class SimilarityMetricsTest : public ::testing::Test {};
using Types = ::testing::Types<float, double>;
TYPED_TEST_SUITE(SimilarityMetricsTest, Types, TypeNames);

/// The definitions.
SimilarityMetrics reference(const std::vector<double>& cosines) {
  SimilarityMetrics metrics;
  metrics.pairs = static_cast<Index>(cosines.size());
  if (cosines.empty()) return metrics;
  const auto pairs = static_cast<double>(cosines.size());
  metrics.smallest = metrics.largest = cosines[0];
  for (const double c : cosines) {
    metrics.mean += c / pairs;
    metrics.mean_degrees +=
        std::acos(std::max(-1.0, std::min(1.0, c))) / pairs * 180 / std::acos(-1);
    metrics.smallest = std::min(metrics.smallest, c);
    metrics.largest = std::max(metrics.largest, c);
  }
  double squares = 0;
  for (const double c : cosines) squares += (c - metrics.mean) * (c - metrics.mean) / pairs;
  metrics.deviation = std::sqrt(squares);
  return metrics;
}

void expect_near(const SimilarityMetrics& got, const SimilarityMetrics& want) {
  const double tolerance = 1e-12;
  EXPECT_EQ(got.pairs, want.pairs);
  EXPECT_NEAR(got.mean, want.mean, tolerance);
  EXPECT_NEAR(got.deviation, want.deviation, tolerance);
  EXPECT_NEAR(got.smallest, want.smallest, tolerance);
  EXPECT_NEAR(got.largest, want.largest, tolerance);
  EXPECT_NEAR(got.mean_degrees, want.mean_degrees, 1e-9);
}

// Four directions in the plane, at 0, 60, 90 and 180 degrees: angles 60, 90, 180, 30, 120, 90.
TEST(SimilarityMetrics, HandWorkedAngles) {
  const double h = 0.5, r = std::sqrt(0.75);
  RowMatrix<double> s(4, 4);
  s << 1, h, 0, -1, h, 1, r, -h, 0, r, 1, 0, -1, -h, 0, 1;
  const SimilarityMetrics all = gatepro::pairwise_similarity(gatepro::view(s));
  EXPECT_EQ(all.pairs, 6);
  EXPECT_NEAR(all.mean_degrees, 570.0 / 6, 1e-9);
  EXPECT_NEAR(all.mean, (r - 1) / 6, 1e-12);
  EXPECT_EQ(all.smallest, -1);
  EXPECT_NEAR(all.largest, r, 1e-12);
  RowMatrix<std::int32_t> partners(4, 1);
  partners << 1, 2, 1, 3;
  const SimilarityMetrics best = gatepro::partner_similarity(gatepro::view(s), partners);
  EXPECT_EQ(best.pairs, 3);
  EXPECT_NEAR(best.mean_degrees, 120.0 / 3, 1e-9);
  EXPECT_NEAR(best.deviation, std::sqrt(2.0) / 3 * (r - h), 1e-12);
  Counts bins(4);  // [-1, -1/2), [-1/2, 0), [0, 1/2), [1/2, 1]
  gatepro::add_pairwise_histogram(gatepro::view(s), VectorView<std::int64_t>(bins));
  EXPECT_EQ(bins, (Counts{1, 1, 2, 2}));
  gatepro::add_partner_histogram(gatepro::view(s), partners, VectorView<std::int64_t>(bins));
  EXPECT_EQ(bins, (Counts{1, 1, 2, 5}));
}

TYPED_TEST(SimilarityMetricsTest, MatchDefinitionsOnRandomRouters) {
  using A = TypeParam;
  for (const Index experts : {1, 2, 7, 40}) {
    const RowMatrix<A> w = data::random_matrix<A>(experts, 9, 5);
    gatepro::SimilarityCache<A> cache(experts, {}, gatepro::RefreshSchedule::every_step());
    cache.refresh_now(gatepro::view(w), 0);
    const auto s = cache.similarity();
    std::vector<double> pairs, best;
    Counts bins(11, 3), want(11, 3);
    const auto count = [&](double c) {
      ++want[static_cast<std::size_t>(std::min(10.0, std::floor((c + 1) / 2 * 11)))];
    };
    for (Index i = 0; i < experts; ++i) {
      for (Index j = 0; j < i; ++j) pairs.push_back(static_cast<double>(s(i, j)));
      const Index partner = cache.partners()(i, 0);
      if (partner != i) best.push_back(static_cast<double>(s(i, partner)));
    }
    for (const double c : pairs) count(c);
    for (const double c : best) count(c);
    expect_near(gatepro::pairwise_similarity(s), reference(pairs));
    expect_near(gatepro::partner_similarity(s, cache.partners()), reference(best));
    gatepro::add_pairwise_histogram(s, VectorView<std::int64_t>(bins));
    gatepro::add_partner_histogram(s, cache.partners(), VectorView<std::int64_t>(bins));
    EXPECT_EQ(bins, want);
    EXPECT_EQ(gatepro::pairwise_similarity(s).mean, cache.mean_pairwise_similarity());
    EXPECT_EQ(gatepro::partner_similarity(s, cache.partners()).mean,
              cache.mean_partner_similarity());
  }
}

TYPED_TEST(SimilarityMetricsTest, RowsThatAreNotFiniteDoNotCount) {
  using A = TypeParam;
  const A nan = data::marked_nan<A>();
  RowMatrix<A> s(3, 3);
  s << 1, nan, A(0.25), nan, nan, nan, A(0.25), nan, 1;
  EXPECT_EQ(gatepro::pairwise_similarity(gatepro::view(s)).pairs, 1);
  EXPECT_EQ(gatepro::pairwise_similarity(gatepro::view(s)).mean, 0.25);
  RowMatrix<std::int32_t> partners(3, 1);
  partners << 1, 1, 0;
  EXPECT_EQ(gatepro::partner_similarity(gatepro::view(s), partners).pairs, 1);
  Counts bins(2);
  gatepro::add_pairwise_histogram(gatepro::view(s), VectorView<std::int64_t>(bins));
  EXPECT_EQ(bins, (Counts{0, 1}));
  const RowMatrix<A> nothing = RowMatrix<A>::Constant(2, 2, nan);
  expect_near(gatepro::pairwise_similarity(gatepro::view(nothing)), {});
}

// Rounding may take a cosine beyond 1: it is an angle of 0, in the last bin.
TEST(SimilarityMetrics, CosinesBeyondOneByRounding) {
  RowMatrix<float> s(3, 3);
  s << 1, 1.0000002F, -1.0000002F, 1.0000002F, 1, 1, -1.0000002F, 1, 1;
  EXPECT_NEAR(gatepro::pairwise_similarity(gatepro::view(s)).mean_degrees, 60, 1e-9);
  Counts bins(3);
  gatepro::add_pairwise_histogram(gatepro::view(s), VectorView<std::int64_t>(bins));
  EXPECT_EQ(bins, (Counts{1, 0, 2}));
}

TEST(SimilarityMetrics, BadInput) {
  const RowMatrix<float> s = RowMatrix<float>::Zero(3, 3), wide = RowMatrix<float>::Zero(2, 3);
  RowMatrix<std::int32_t> good = RowMatrix<std::int32_t>::Zero(3, 1), bad = good;
  bad(2, 0) = 3;
  Counts bins(4), none;
  const VectorView<std::int64_t> bins_B(bins), no_bins(none);
  const auto s_EE = gatepro::view(s);
  expect_error([&] { gatepro::pairwise_similarity(gatepro::view(wide)); },
               {"pairwise_similarity", "similarity_EE", "cols=3"});
  expect_error([&] { gatepro::pairwise_similarity(MatrixView<const float>()); }, {"num_experts=0"});
  expect_error([&] { gatepro::partner_similarity(s_EE, bad); },
               {"partner_similarity", "partners_EM", "id=3", "row=2"});
  expect_error([&] { gatepro::partner_similarity(s_EE, good.topRows(2)); }, {"rows=2"});
  expect_error([&] { gatepro::partner_similarity(s_EE, good.leftCols(0)); }, {"cols=0"});
  expect_error([&] { gatepro::add_pairwise_histogram(s_EE, no_bins); }, {"bins=0"});
  expect_error([&] { gatepro::add_partner_histogram(s_EE, bad, bins_B); }, {"id=3"});
  expect_error([&] { gatepro::add_partner_histogram(s_EE, good, no_bins); }, {"bins=0"});
  EXPECT_EQ(bins, Counts(4, 0));
}

}  // namespace
