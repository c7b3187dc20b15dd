// SPDX-License-Identifier: MIT
// When the cache recomputes, what it knows about itself, and that a refresh that fails changes
// nothing.
#include <gatepro/partners/similarity_cache.hpp>

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <stdexcept>

#include "support/bits.hpp"
#include "support/conversions.hpp"
#include "support/errors.hpp"
#include "support/executors.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/reference/partners.hpp"

namespace {

using data::random_matrix;
using gatepro::Index;
using gatepro::Pairing;
using gatepro::RefreshSchedule;
using gatepro::RowMatrix;
using gatepro::view;
using Cache = gatepro::SimilarityCache<float>;

constexpr std::int64_t lowest_step = std::numeric_limits<std::int64_t>::min();
constexpr std::int64_t highest_step = std::numeric_limits<std::int64_t>::max();

/// Rows along directions of a plane: the angles say who is whose partner.
RowMatrix<float> rows_at(std::initializer_list<double> degrees) {
  RowMatrix<float> w(static_cast<Index>(degrees.size()), 2);
  Index i = 0;
  for (double angle : degrees) {
    const double radians = angle * 3.14159265358979323846 / 180;
    w(i, 0) = static_cast<float>(std::cos(radians));
    w(i, 1) = static_cast<float>(std::sin(radians));
    ++i;
  }
  return w;
}

std::vector<std::int32_t> partners_of(const Cache& cache) {
  const auto partners = cache.partners();
  return std::vector<std::int32_t>(partners.data, partners.data + partners.rows * partners.cols);
}

/// 0 and 1 are alike, and 2 is nearer to 1.
const RowMatrix<float>& first_weights() {
  static const RowMatrix<float> w = rows_at({0, 20, 60});
  return w;
}
/// 1 and 2 are alike, and 0 is nearer to 2.
const RowMatrix<float>& second_weights() {
  static const RowMatrix<float> w = rows_at({0, 50, 30});
  return w;
}

/// Means of what is not known are refused, not 0.
void expect_no_means(const Cache& cache) {
  const char* rule = "a similarity that a refresh has kept";
  expect_error([&] { cache.mean_pairwise_similarity(); }, {"SimilarityCache", rule});
  expect_error([&] { cache.mean_partner_similarity(); }, {"SimilarityCache", rule});
}

TEST(SimilarityCache, IsEmptyBeforeTheFirstRefresh) {
  const Cache cache(3, {}, RefreshSchedule::every_step());
  EXPECT_FALSE(cache.has_partners());
  EXPECT_FALSE(cache.partners().given());
  EXPECT_FALSE(cache.similarity().given());
  EXPECT_EQ(cache.rivals().num_experts(), 0);
  EXPECT_EQ(cache.partners_changed(), 0);
  expect_no_means(cache);
  EXPECT_TRUE(cache.is_due(0));
  EXPECT_TRUE(cache.is_due(lowest_step));
}

TEST(SimilarityCache, EveryStepRefreshesEachStepOnce) {
  Cache cache(3, {}, RefreshSchedule::every_step());
  EXPECT_TRUE(cache.refresh(view(first_weights()), 5));
  EXPECT_EQ(partners_of(cache), (std::vector<std::int32_t>{1, 0, 1}));
  EXPECT_EQ(cache.last_refresh_step(), 5);
  EXPECT_FALSE(cache.is_due(5));
  // The same step again: nothing happens, even with other weights.
  EXPECT_FALSE(cache.refresh(view(second_weights()), 5));
  EXPECT_EQ(partners_of(cache), (std::vector<std::int32_t>{1, 0, 1}));
  EXPECT_TRUE(cache.is_due(6));
  EXPECT_TRUE(cache.refresh(view(second_weights()), 6));
  EXPECT_EQ(partners_of(cache), (std::vector<std::int32_t>{2, 2, 1}));
  EXPECT_EQ(cache.last_refresh_step(), 6);
}

TEST(SimilarityCache, EveryNSteps) {
  Cache cache(3, {}, RefreshSchedule::every(10));
  EXPECT_TRUE(cache.refresh(view(first_weights()), 7));
  for (std::int64_t step = 7; step < 17; ++step) {
    EXPECT_EQ(cache.age(step), step - 7);
    EXPECT_FALSE(cache.is_due(step));
    EXPECT_FALSE(cache.refresh(view(first_weights()), step));
  }
  EXPECT_TRUE(cache.is_due(17));
  EXPECT_TRUE(cache.is_due(1000));
  // From the last refresh, not from a grid.
  EXPECT_TRUE(cache.refresh(view(first_weights()), 20));
  EXPECT_FALSE(cache.is_due(29));
  EXPECT_TRUE(cache.is_due(30));
}

TEST(SimilarityCache, GoingBackRefreshes) {
  Cache cache(3, {}, RefreshSchedule::every(100));
  cache.refresh(view(first_weights()), 50);
  EXPECT_TRUE(cache.is_due(49));
  EXPECT_TRUE(cache.refresh(view(second_weights()), 49));
  EXPECT_EQ(cache.last_refresh_step(), 49);
  EXPECT_EQ(partners_of(cache), (std::vector<std::int32_t>{2, 2, 1}));
  EXPECT_FALSE(cache.is_due(50));
}

TEST(SimilarityCache, OnDemandIsNeverDue) {
  Cache cache(3, {}, RefreshSchedule::on_demand());
  EXPECT_FALSE(cache.is_due(0));
  EXPECT_FALSE(cache.refresh(view(first_weights()), 0));
  EXPECT_FALSE(cache.has_partners());
  cache.refresh_now(view(first_weights()), 3);
  EXPECT_TRUE(cache.has_partners());
  EXPECT_EQ(cache.last_refresh_step(), 3);
  EXPECT_FALSE(cache.is_due(2));
  EXPECT_FALSE(cache.is_due(highest_step));
  cache.refresh_now(view(second_weights()), 3);  // the same step, because it was asked for
  EXPECT_EQ(partners_of(cache), (std::vector<std::int32_t>{2, 2, 1}));
}

TEST(SimilarityCache, FrozenIsDueOnce) {
  Cache cache(3, {}, RefreshSchedule::frozen());
  EXPECT_TRUE(cache.refresh(view(first_weights()), 3));
  for (std::int64_t step : {lowest_step, std::int64_t{2}, std::int64_t{3}, highest_step}) {
    EXPECT_FALSE(cache.refresh(view(second_weights()), step));
  }
  EXPECT_EQ(cache.last_refresh_step(), 3);
  EXPECT_EQ(partners_of(cache), (std::vector<std::int32_t>{1, 0, 1}));
  // Partners from outside count as well.
  Cache given(3, {}, RefreshSchedule::frozen());
  const std::vector<std::int32_t> table = {2, 0, 0};
  given.set_partners({table.data(), 3, 1, 1, 1}, 0);
  EXPECT_FALSE(given.is_due(1));
}

TEST(SimilarityCache, TheScheduleMayChange) {
  Cache cache(3, {}, RefreshSchedule::on_demand());
  cache.refresh_now(view(first_weights()), 10);
  cache.set_schedule(RefreshSchedule::every(5));
  EXPECT_EQ(cache.schedule().interval, 5);
  EXPECT_FALSE(cache.is_due(14));
  EXPECT_TRUE(cache.is_due(15));
  cache.set_schedule(RefreshSchedule::frozen());
  EXPECT_FALSE(cache.is_due(15));
}

TEST(SimilarityCache, ExtremeSteps) {
  Cache cache(3, {}, RefreshSchedule::every(highest_step));
  cache.refresh(view(first_weights()), lowest_step);
  EXPECT_FALSE(cache.is_due(-2));
  EXPECT_TRUE(cache.is_due(-1));  // highest_step later
  EXPECT_TRUE(cache.is_due(highest_step));
  EXPECT_EQ(cache.age(-1), highest_step);
  cache.refresh(view(first_weights()), highest_step);
  EXPECT_EQ(cache.last_refresh_step(), highest_step);
  EXPECT_FALSE(cache.is_due(highest_step));
  EXPECT_TRUE(cache.is_due(lowest_step));
  EXPECT_EQ(cache.age(highest_step), 0);
}

TEST(SimilarityCache, AnAgeBeyondTheRangeIsCapped) {
  Cache cache(3, {}, RefreshSchedule::every_step());
  cache.refresh(view(first_weights()), lowest_step);
  EXPECT_EQ(cache.age(highest_step), highest_step);
  cache.refresh(view(first_weights()), highest_step);
  EXPECT_EQ(cache.age(lowest_step), lowest_step);
}

TEST(SimilarityCache, PartnersChanged) {
  Cache cache(3, {}, RefreshSchedule::every_step());
  cache.refresh(view(first_weights()), 0);
  EXPECT_EQ(cache.partners_changed(), 3);  // all had none
  cache.refresh(view(first_weights()), 1);
  EXPECT_EQ(cache.partners_changed(), 0);
  cache.refresh(view(second_weights()), 2);  // 1 0 1 became 2 2 1
  EXPECT_EQ(cache.partners_changed(), 2);
  const std::vector<std::int32_t> table = {2, 2, 2};
  cache.set_partners({table.data(), 3, 1, 1, 1}, 3);
  EXPECT_EQ(cache.partners_changed(), 1);
  // Not due: the count is still that of the last refresh.
  EXPECT_FALSE(cache.refresh(view(second_weights()), 3));
  EXPECT_EQ(cache.partners_changed(), 1);
}

// An expert whose list changes in any place counts once; none at first is no change.
TEST(SimilarityCache, PartnersChangedCountsExperts) {
  Pairing pairing;
  pairing.partners_per_expert = 2;
  pairing.min_similarity = 0.9;
  Cache cache(4, pairing, RefreshSchedule::every_step());
  const auto two_pairs = rows_at({0, 10, 90, 200});
  cache.refresh(view(two_pairs), 0);
  EXPECT_EQ(partners_of(cache), (std::vector<std::int32_t>{1, 0, 0, 1, 2, 2, 3, 3}));
  EXPECT_EQ(cache.partners_changed(), 2);
  const auto three_alike = rows_at({0, 10, 15, 200});
  cache.refresh(view(three_alike), 1);
  EXPECT_EQ(partners_of(cache), (std::vector<std::int32_t>{1, 2, 2, 0, 1, 0, 3, 3}));
  EXPECT_EQ(cache.partners_changed(), 3);
}

// Among equals the lowest ids are the partners.
TEST(SimilarityCache, IdenticalRows) {
  Pairing pairing;
  pairing.partners_per_expert = 2;
  Cache cache(4, pairing, RefreshSchedule::every_step());
  const auto w = rows_at({30, 30, 30, 100});
  cache.refresh(view(w), 0);
  EXPECT_EQ(partners_of(cache), (std::vector<std::int32_t>{1, 2, 0, 2, 0, 1, 0, 1}));
}

TEST(SimilarityCache, SetPartners) {
  Cache cache(3, {}, RefreshSchedule::every(10));
  cache.refresh(view(first_weights()), 0);
  EXPECT_TRUE(cache.similarity().given());
  // Any strides: every second element of a column.
  const std::vector<std::int32_t> table = {2, -1, 0, -1, 2, -1};
  cache.set_partners({table.data(), 3, 1, 2, 1}, 4);
  EXPECT_EQ(partners_of(cache), (std::vector<std::int32_t>{2, 0, 2}));
  EXPECT_EQ(cache.last_refresh_step(), 4);
  EXPECT_FALSE(cache.similarity().given());
  expect_no_means(cache);
  EXPECT_EQ(cache.report().degenerate_rows, 0);
  EXPECT_FALSE(cache.is_due(13));
  EXPECT_TRUE(cache.is_due(14));
  // Its own table may be handed back.
  cache.set_partners(cache.partners(), 5);
  EXPECT_EQ(partners_of(cache), (std::vector<std::int32_t>{2, 0, 2}));
  EXPECT_EQ(cache.partners_changed(), 0);
  cache.refresh_now(view(first_weights()), 6);
  EXPECT_TRUE(cache.similarity().given());
}

TEST(SimilarityCache, MeansEqualTheReference) {
  for (const Index experts : {2, 7, 40}) {
    Pairing pairing;
    pairing.min_similarity = experts == 7 ? 0.1 : -1;
    Cache cache(experts, pairing, RefreshSchedule::every_step());
    const auto w = random_matrix<float>(experts, 20, static_cast<unsigned>(experts));
    cache.refresh(view(w), 0);
    const reference::Matrix similarity = reference::cosine_similarity(data::to_reference(w));
    const reference::Ids partners = reference::pair_partners(similarity, pairing);
    double pairwise = 0, partner = 0;
    int pairs = 0, partnered = 0;
    for (std::size_t i = 0; i < similarity.size(); ++i) {
      for (std::size_t j = 0; j < similarity.size(); ++j) {
        if (i != j) pairwise += similarity[i][j], ++pairs;
      }
      const auto j = static_cast<std::size_t>(partners[i][0]);
      if (j != i) partner += similarity[i][j], ++partnered;
    }
    EXPECT_NEAR(cache.mean_pairwise_similarity(), pairwise / pairs, 1e-6);
    ASSERT_GT(partnered, 0);
    EXPECT_NEAR(cache.mean_partner_similarity(), partner / partnered, 1e-6);
  }
}

TEST(SimilarityCache, MeansLeaveOutWhatHasNoSimilarity) {
  Cache cache(4, {}, RefreshSchedule::every_step());
  RowMatrix<float> w = rows_at({0, 60, 0, 0});
  w(2, 0) = std::numeric_limits<float>::quiet_NaN();
  w.row(3).setZero();
  cache.refresh(view(w), 0);
  EXPECT_EQ(cache.report().nonfinite_rows, 1);
  EXPECT_EQ(cache.report().degenerate_rows, 1);
  EXPECT_NEAR(cache.mean_pairwise_similarity(), 0.5 / 3, 1e-6);  // pairs 01, 03 and 13
  EXPECT_NEAR(cache.mean_partner_similarity(), (0.5 + 0.5 + 0) / 3, 1e-6);
  w.setConstant(std::numeric_limits<float>::infinity());
  cache.refresh(view(w), 1);
  EXPECT_EQ(cache.mean_pairwise_similarity(), 0);
  EXPECT_EQ(cache.mean_partner_similarity(), 0);
}

TEST(SimilarityCache, AFailedRefreshLeavesEverything) {
  Cache cache(3, {}, RefreshSchedule::every_step());
  cache.refresh(view(first_weights()), 1);
  cache.refresh(view(second_weights()), 2);
  const auto partners = partners_of(cache);
  const double mean = cache.mean_pairwise_similarity();
  const float similarity = cache.similarity()(0, 1);
  const Index changed = cache.partners_changed();
  const auto* begin = cache.rivals().view().begin;
  RowMatrix<float> spoilt = first_weights();
  spoilt.row(0).setZero();
  bool succeeded = false;
  int failures = 0;
  for (int bodies = 0; !succeeded; ++bodies) {
    ASSERT_LT(bodies, 100);
    try {
      succeeded = cache.refresh(view(spoilt), 3, ThrowingExecutor(bodies));
    } catch (const std::runtime_error&) {
      ++failures;
      ASSERT_EQ(partners_of(cache), partners);
      ASSERT_EQ(cache.last_refresh_step(), 2);
      ASSERT_EQ(cache.mean_pairwise_similarity(), mean);
      ASSERT_EQ(cache.similarity()(0, 1), similarity);
      ASSERT_EQ(cache.partners_changed(), changed);
      ASSERT_EQ(cache.report().degenerate_rows, 0);
      ASSERT_EQ(cache.rivals().view().begin, begin);
      ASSERT_TRUE(cache.is_due(3));
    }
  }
  EXPECT_GE(failures, 3);  // in every parallel part of a refresh
  EXPECT_EQ(cache.report().degenerate_rows, 1);
  EXPECT_EQ(cache.last_refresh_step(), 3);

  const auto after = partners_of(cache);
  const std::vector<std::int32_t> out_of_range = {0, 1, 3};
  EXPECT_THROW(cache.set_partners({out_of_range.data(), 3, 1, 1, 1}, 4), gatepro::Error);
  const auto too_few = rows_at({0, 1});
  EXPECT_THROW(cache.refresh_now(view(too_few), 4), gatepro::Error);
  EXPECT_EQ(partners_of(cache), after);
  EXPECT_EQ(cache.last_refresh_step(), 3);
  EXPECT_TRUE(cache.similarity().given());
}

// S is replaced in place: what a failure has overwritten comes back, to the bit.
TEST(SimilarityCache, AFailureAfterTheWorkLeavesTheOldSimilarity) {
  constexpr Index experts = 101;
  Cache cache(experts, {}, RefreshSchedule::every_step());
  const auto old_w = random_matrix<float>(experts, 20, 1);
  auto new_w = random_matrix<float>(experts, 20, 2);
  new_w.row(7).setZero();
  new_w(9, 1) = std::numeric_limits<float>::quiet_NaN();
  cache.refresh(view(old_w), 1);
  const auto kept = [&] { return data::copy<float>(cache.similarity()); };
  const RowMatrix<float> before = kept();
  int failures = 0;
  for (int bodies = 0; failures == bodies; ++bodies) {
    try {
      cache.refresh(view(new_w), 2, ThrowingExecutor(bodies));
    } catch (const std::runtime_error&) {
      ++failures;
      ASSERT_TRUE(data::same_bits(kept(), before)) << bodies;
    }
  }
  EXPECT_GE(failures, 3);
  Cache fresh(experts, {}, RefreshSchedule::every_step());
  fresh.refresh(view(new_w), 2);
  RowMatrix<float> want(experts, experts);
  std::vector<std::byte> memory(gatepro::cosine_similarity_workspace_bytes<float>(experts, 20));
  gatepro::cosine_similarity(view(new_w), view(want), memory);
  EXPECT_TRUE(data::same_bits(kept(), want));
  EXPECT_EQ(partners_of(cache), partners_of(fresh));
}

TEST(SimilarityCache, TheSizeDecidesWhetherSimilaritiesAreKept) {
  EXPECT_TRUE(Pairing{}.keeps_similarity(8192));
  EXPECT_FALSE(Pairing{}.keeps_similarity(8193));
  Pairing pairing;
  pairing.keep_similarity = true;
  EXPECT_TRUE(pairing.keeps_similarity(65536));
  pairing.keep_similarity = false;
  EXPECT_FALSE(pairing.keeps_similarity(2));
  Cache cache(8193, {}, RefreshSchedule::every_step());
  const RowMatrix<float> w = RowMatrix<float>::Ones(8193, 1);
  cache.refresh(view(w), 0);
  EXPECT_TRUE(cache.has_partners());
  EXPECT_FALSE(cache.similarity().given());
}

TEST(SimilarityCache, KeepsNoSimilarityIfToldSo) {
  Pairing pairing;
  pairing.keep_similarity = false;
  Cache cache(3, pairing, RefreshSchedule::every_step());
  Cache keeping(3, {}, RefreshSchedule::every_step());
  for (const RowMatrix<float>* w : {&first_weights(), &second_weights()}) {
    cache.refresh_now(view(*w), 1);
    keeping.refresh_now(view(*w), 1);
    EXPECT_EQ(partners_of(cache), partners_of(keeping));
    EXPECT_EQ(cache.partners_changed(), keeping.partners_changed());
    EXPECT_FALSE(cache.similarity().given());
    expect_no_means(cache);
  }
}

// The number of columns of W may change between refreshes; the scratch follows.
TEST(SimilarityCache, AnyHiddenSize) {
  Cache cache(5, {}, RefreshSchedule::every_step());
  for (const Index hidden : {3, 200, 1}) {
    const auto w = random_matrix<float>(5, hidden, 9);
    cache.refresh_now(view(w), hidden);
    const reference::Matrix s = reference::cosine_similarity(data::to_reference(w));
    EXPECT_NEAR(cache.similarity()(1, 4), s[1][4], 1e-5);
  }
}

TEST(SimilarityCache, CopiesAreIndependent) {
  Cache cache(3, {}, RefreshSchedule::every_step());
  cache.refresh(view(first_weights()), 0);
  Cache copy = cache;
  cache.refresh(view(second_weights()), 1);
  EXPECT_EQ(partners_of(copy), (std::vector<std::int32_t>{1, 0, 1}));
  EXPECT_EQ(copy.last_refresh_step(), 0);
}

}  // namespace
