// SPDX-License-Identifier: MIT
// A lazy refresh finds the partners of a full one after any change of W, and recomputes few rows
// while they turn little.
#include <gatepro/partners/similarity_cache.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

#include "support/errors.hpp"
#include "support/executors.hpp"
#include "support/inputs.hpp"
#include "support/type_names.hpp"

namespace {

using data::random_matrix;
using gatepro::Index;
using gatepro::Pairing;
using gatepro::RefreshSchedule;
using gatepro::RowMatrix;
using gatepro::SerialExecutor;
using gatepro::view;

Pairing pairing_of(Index m, double least = -1) {
  Pairing pairing;
  pairing.partners_per_expert = m;
  pairing.min_similarity = least;
  return pairing;
}

template <class A>
std::vector<std::int32_t> partners_of(const gatepro::SimilarityCache<A>& cache) {
  const auto partners = cache.partners();
  return {partners.data, partners.data + partners.rows * partners.cols};
}

/// A lazy cache beside a full one.
template <class W>
class Twins {
 public:
  using Cache = gatepro::SimilarityCache<gatepro::accumulator_t<W>>;

  explicit Twins(Index experts, const Pairing& pairing = {})
      : lazy(experts, pairing, RefreshSchedule::every_step().lazily()),
        full(experts, pairing, RefreshSchedule::every_step()) {}

  /// Refreshes both and compares; the rows that the lazy one recomputed.
  template <class Executor = SerialExecutor>
  Index refresh(const RowMatrix<W>& w_EH, const Executor& executor = {}) {
    ++step_;
    lazy.refresh_now(view(w_EH), step_, executor);
    full.refresh_now(view(w_EH), step_);
    EXPECT_EQ(partners_of(lazy), partners_of(full)) << "step " << step_;
    EXPECT_EQ(lazy.partners_changed(), full.partners_changed());
    EXPECT_EQ(lazy.rivals().fingerprint(), full.rivals().fingerprint());
    EXPECT_EQ(lazy.report().degenerate_rows, full.report().degenerate_rows);
    EXPECT_EQ(lazy.report().nonfinite_rows, full.report().nonfinite_rows);
    EXPECT_EQ(full.rows_recomputed(), w_EH.rows());
    return lazy.rows_recomputed();
  }

  Cache lazy, full;

 private:
  std::int64_t step_ = 0;
};

/// Weights of high precision that are seen as W.
template <class W>
RowMatrix<W> rounded(const RowMatrix<double>& w_EH) {
  RowMatrix<W> result(w_EH.rows(), w_EH.cols());
  for (Index i = 0; i < w_EH.size(); ++i) {
    using Wide = std::conditional_t<std::is_same_v<W, double>, double, float>;
    result.data()[i] = static_cast<W>(static_cast<Wide>(w_EH.data()[i]));
  }
  return result;
}

/// How often the same weights are refreshed fully before nothing is recomputed.
template <class W>
int full_refreshes(Twins<W>& twins, const RowMatrix<W>& w_EH) {
  int times = 0;
  while (times < 100 && twins.refresh(w_EH) != 0) ++times;
  return times;
}

template <class W>
class LazyRefreshTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double, gatepro::bfloat16, gatepro::half>;
TYPED_TEST_SUITE(LazyRefreshTest, Scalars, TypeNames);

TYPED_TEST(LazyRefreshTest, RandomWalksOfAnyStep) {
  std::uint64_t seed = 1;
  for (const Index experts : {32, 61}) {
    for (const Index hidden : {3, 37, 600}) {
      for (const double size : {1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0}) {
        for (const Index m : {1, 2, 3}) {
          Twins<TypeParam> twins(experts, pairing_of(m, m == 2 ? 0.1 : -1));
          auto w_EH = random_matrix<double>(experts, hidden, ++seed);
          for (int step = 0; step < 12 && !this->HasFailure(); ++step) {
            twins.refresh(rounded<TypeParam>(w_EH));
            w_EH += random_matrix<double>(experts, hidden, ++seed, size);
          }
          ASSERT_FALSE(this->HasFailure())
              << experts << " x " << hidden << ", step " << size << ", m " << m;
        }
      }
    }
  }
}

// Steps of 1e-4 in a real size: few rows have to be recomputed.
TEST(LazyRefresh, SlowRowsCostLittle) {
  constexpr Index experts = 64, hidden = 1024, steps = 20;
  Twins<float> twins(experts);
  auto w_EH = random_matrix<float>(experts, hidden, 1);
  EXPECT_EQ(twins.refresh(w_EH), experts);
  Index recomputed = 0;
  for (Index step = 1; step <= steps; ++step) {
    w_EH += random_matrix<float>(experts, hidden, static_cast<std::uint64_t>(100 + step), 1e-4);
    recomputed += twins.refresh(w_EH);
  }
  EXPECT_LT(recomputed, steps * experts / 3);
  EXPECT_EQ(twins.lazy.total_rows_recomputed(), experts + recomputed);
  EXPECT_EQ(twins.full.total_rows_recomputed(), (steps + 1) * experts);
}

TEST(LazyRefresh, UnchangedRowsCostNothing) {
  for (const Index m : {1, 3}) {
    Twins<float> twins(40, pairing_of(m));
    auto w_EH = random_matrix<float>(40, 64, 2);
    w_EH.row(39) = w_EH.row(0);  // a tie
    EXPECT_EQ(twins.refresh(w_EH), 40);
    EXPECT_EQ(twins.refresh(w_EH), 0);
    // Powers of two scale away.
    for (Index i = 0; i < 40; ++i) w_EH.row(i) *= std::ldexp(1.0F, static_cast<int>(i % 60) - 30);
    EXPECT_EQ(twins.refresh(w_EH), 0);
    // Lengths do not matter, but what is computed may round differently.
    w_EH *= 3;
    EXPECT_LT(twins.refresh(w_EH), 40);
  }
}

/// Experts in pairs, i and i ^ 1, that are alike and at right angles to all others, but for 0, 1
/// and 2, which are `three` in the last coordinates.
RowMatrix<float> three_among_pairs(const RowMatrix<float>& three, Index experts = 40) {
  RowMatrix<float> w_EH = RowMatrix<float>::Zero(experts, experts + three.cols());
  for (Index i = 3; i < experts; ++i) {
    w_EH(i, i) = i == 3 ? 0.5F : 0.3F;
    w_EH(i, (i == 3 ? 4 : i / 2 * 2)) += 1;
  }
  w_EH.topRightCorner(3, three.cols()) = three;
  return w_EH;
}

// Experts 1 and 2 are as similar to 0 as rounding can tell: 2 hardly turns when its elements change
// in the last place, but what is computed changes by more.
TEST(LazyRefresh, OvertakingInTheLastPlace) {
  constexpr Index hidden = 3000;
  Index changes = 0;
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    auto three = random_matrix<float>(3, hidden, seed);
    three.row(1) = three.row(0) + 0.3F * three.row(1);
    const RowMatrix<float> row = three.row(1);
    Twins<float> twins(40);
    for (std::uint64_t step = 0; step < 30; ++step) {
      const auto signs = random_matrix<float>(1, hidden, 100 * seed + step);
      for (Index h = 0; h < hidden; ++h) three(2, h) = std::nextafter(row(h), 9 * signs(h));
      EXPECT_LE(twins.refresh(three_among_pairs(three)), step == 0 ? 40 : 3);
      changes += step == 0 ? 0 : twins.lazy.partners_changed();
    }
  }
  EXPECT_GE(changes, 20);
}

// Products of half a unit in the last place of their sum, and a little more or less: they all round
// up or all down, so the similarity of 0 and 2 changes by far more than 2 turns.
TEST(LazyRefresh, RoundingsThatAddUp) {
  constexpr Index hidden = 3000;
  const float half = std::ldexp(1.0F, -12);
  RowMatrix<float> three(3, hidden);
  three.row(0).setConstant(half);
  three.row(1).setConstant(std::nextafter(half, 0.0F));
  three.row(2).setConstant(std::nextafter(half, 1.0F));
  three.leftCols(1).setOnes();
  three.rightCols(1) << 1, 0, 0;
  Twins<float> twins(40);
  twins.refresh(three_among_pairs(three));
  EXPECT_EQ(partners_of(twins.lazy)[0], 2);
  three.row(2) = three.row(1);
  EXPECT_LE(twins.refresh(three_among_pairs(three)), 3);
  EXPECT_EQ(partners_of(twins.lazy)[0], 1);
}

/// Refreshes while `angle_of(expert, step)` turns experts 0, 1 and 2 in a plane, by degrees. The
/// partner of 0 is 1 at first and 2 in the end.
template <class AngleOf>
void expect_overtaking(const AngleOf& angle_of) {
  Twins<float> twins(40);
  constexpr int steps = 100;
  for (int step = 0; step <= steps; ++step) {
    RowMatrix<float> three(3, 2);
    for (int i = 0; i < 3; ++i) {
      const double radians = angle_of(i, step) * 3.14159265358979323846 / 180;
      three(i, 0) = static_cast<float>(std::cos(radians));
      three(i, 1) = static_cast<float>(std::sin(radians));
    }
    const Index recomputed = twins.refresh(three_among_pairs(three));
    EXPECT_LE(recomputed, step == 0 ? 40 : 3) << step;
    EXPECT_TRUE(step > 0 || partners_of(twins.lazy)[0] == 1);
  }
  EXPECT_EQ(partners_of(twins.lazy)[0], 2);
}

// Each step is far smaller than the lead, and most rows do not move at all.
TEST(LazyRefresh, SmallStepsAddUp) {
  expect_overtaking([](int i, int step) {  // the second-best comes nearer
    return i == 0 ? 0.0 : i == 1 ? 80.0 : -80.02 + 0.0005 * step;
  });
  expect_overtaking([](int i, int step) {  // the best goes away
    return i == 0 ? 0.0 : i == 1 ? 80.0 + 0.0005 * step : -80.02;
  });
  expect_overtaking([](int i, int step) {  // the row itself turns
    return i == 0 ? -0.0005 * step : i == 1 ? 80.0 : -80.02;
  });
  expect_overtaking([](int i, int step) {  // all of this at once
    return i == 0 ? -0.0005 * step : 0.0005 * step + (i == 1 ? 80.0 : -80.02);
  });
  expect_overtaking([](int i, int step) {  // all turn, which changes no angle but one
    return 0.003 * step + (i == 0 ? 0.0 : i == 1 ? 80.0 : -80.02 + 0.0005 * step);
  });
}

// The same similarity is or is not a partner's.
TEST(LazyRefresh, TheLeastSimilarityIsCrossed) {
  const double least = std::cos(80 * 3.14159265358979323846 / 180);
  for (const Index m : {1, 2}) {
    Twins<float> twins(40, pairing_of(m, least));
    std::int32_t partners_seen = 0;
    for (int step = -50; step <= 50; ++step) {
      const double radians = (80 - 0.0002 * step) * 3.14159265358979323846 / 180;
      RowMatrix<float> three = RowMatrix<float>::Identity(3, 3);
      three(1, 0) = static_cast<float>(std::cos(radians));
      three(1, 1) = static_cast<float>(std::sin(radians));
      const Index recomputed = twins.refresh(three_among_pairs(three));
      EXPECT_LE(recomputed, step == -50 ? 40 : 3);
      partners_seen += partners_of(twins.lazy)[0];
    }
    EXPECT_GT(partners_seen, 40);
    EXPECT_LT(partners_seen, 60);
  }
}

TYPED_TEST(LazyRefreshTest, CopiesSwapsAndSigns) {
  using W = TypeParam;
  for (const Index m : {1, 3}) {
    Twins<W> twins(48, pairing_of(m));
    auto w_EH = random_matrix<double>(48, 50, 7);
    for (Index i = 24; i < 48; ++i) w_EH.row(i) = w_EH.row(i % 24);
    for (int step = 0; step < 60; ++step) {
      const auto counter = static_cast<std::uint64_t>(step);
      const Index i = data::random_below(48, 8, counter), j = data::random_below(48, 9, counter);
      if (step % 4 == 0) w_EH.row(i) = w_EH.row(j);
      if (step % 4 == 1) w_EH.row(i).swap(w_EH.row(j));
      if (step % 4 == 2) w_EH.row(i) *= step % 8 == 2 ? -1 : 3;
      if (step % 4 == 3) w_EH.row(i) += random_matrix<double>(1, 50, counter, 1e-3);
      twins.refresh(rounded<W>(w_EH));
    }
  }
}

// No bound holds for rows without a direction: they come, stay and go.
TYPED_TEST(LazyRefreshTest, RowsWithoutADirection) {
  using W = TypeParam;
  using L = std::numeric_limits<W>;
  const RowMatrix<W> usual = rounded<W>(random_matrix<double>(40, 30, 10));
  const W values[] = {W(0), L::quiet_NaN(), L::infinity(), L::denorm_min(), L::max(), L::min()};
  for (const W value : values) {
    Twins<W> twins(40, pairing_of(2));
    twins.refresh(usual);
    RowMatrix<W> w_EH = usual;
    for (const bool whole_row : {false, true}) {
      if (whole_row) w_EH.row(5).setConstant(value);
      w_EH(5, 7) = value;
      w_EH(20, 1) = value;
      for (int repeat = 0; repeat < 3; ++repeat) twins.refresh(w_EH);
    }
    EXPECT_LE(full_refreshes(twins, usual), 18);
  }
}

// Tiny and huge rows are as good as others.
TEST(LazyRefresh, ExtremeSizesTurnToo) {
  for (const double size : {1e-44, 1e-38, 1e-20, 1e20, 1e38}) {
    Twins<float> twins(40);
    auto w_EH = random_matrix<double>(40, 30, 11);
    for (std::uint64_t step = 0; step < 10; ++step) {
      twins.refresh(rounded<float>(size * w_EH));
      w_EH += random_matrix<double>(40, 30, 20 + step, 1e-4);
    }
  }
}

// Rows that turn far for long are searched fully without a look at them, but not for ever.
TEST(LazyRefresh, ComesBackAfterFastSteps) {
  constexpr Index experts = 64;
  Twins<float> twins(experts);
  for (std::uint64_t step = 0; step < 100; ++step) {
    EXPECT_EQ(twins.refresh(random_matrix<float>(experts, 32, step)), experts);
  }
  const int times = full_refreshes(twins, random_matrix<float>(experts, 32, 0));
  EXPECT_GE(times, 1);
  EXPECT_LE(times, 18);
}

// What one thread finds, and which rows it recomputes, any number finds.
TEST(LazyRefresh, AnyExecutor) {
  Twins<float> serial(64, pairing_of(2)), threads(64, pairing_of(2)), reversed(64, pairing_of(2));
  auto w_EH = random_matrix<float>(64, 300, 12);
  for (std::uint64_t step = 0; step < 12; ++step) {
    const Index recomputed = serial.refresh(w_EH);
    EXPECT_EQ(threads.refresh(w_EH, ThreadExecutor(3)), recomputed);
    EXPECT_EQ(reversed.refresh(w_EH, LastWorkerFirst(2)), recomputed);
    w_EH += random_matrix<float>(64, 300, 100 + step, step == 6 ? 1 : 1e-4);
  }
}

TEST(LazyRefresh, AFailureChangesNothing) {
  Twins<float> twins(64);
  auto w_EH = random_matrix<float>(64, 300, 13);
  for (const double size : {1e-4, 1.0}) {  // a lazy one and a full one
    twins.refresh(w_EH);
    const auto before = partners_of(twins.lazy);
    const Index recomputed = twins.lazy.rows_recomputed();
    const auto total = twins.lazy.total_rows_recomputed();
    w_EH += random_matrix<float>(64, 300, 14, size);
    int failures = 0;
    for (bool succeeds = false; !succeeds; ++failures) {
      try {
        twins.lazy.refresh_now(view(w_EH), 1000, ThrowingExecutor(failures));
        succeeds = true;
      } catch (const std::runtime_error&) {
        ASSERT_EQ(partners_of(twins.lazy), before);
        ASSERT_EQ(twins.lazy.rows_recomputed(), recomputed);
        ASSERT_EQ(twins.lazy.total_rows_recomputed(), total);
      }
    }
    EXPECT_GE(failures, 4);
    twins.full.refresh_now(view(w_EH), 1000);
    EXPECT_EQ(partners_of(twins.lazy), partners_of(twins.full));
  }
}

TEST(LazyRefresh, IsFullAfterPartnersFromOutside) {
  Twins<float> twins(40);
  const auto w_EH = random_matrix<float>(40, 30, 15);
  twins.refresh(w_EH);
  EXPECT_EQ(twins.refresh(w_EH), 0);
  const RowMatrix<std::int32_t> table = RowMatrix<std::int32_t>::Constant(40, 1, 3);
  for (auto* cache : {&twins.lazy, &twins.full})
    cache->set_partners(gatepro::strided_view(table), 5);
  EXPECT_EQ(twins.lazy.rows_recomputed(), 0);
  EXPECT_EQ(twins.refresh(w_EH), 40);
  EXPECT_EQ(twins.refresh(w_EH), 0);
}

// Copies, another width and another type of W, and an eager refresh in between.
TEST(LazyRefresh, SurvivesChangesOfItsSurroundings) {
  Twins<float> twins(40);
  auto w_EH = random_matrix<float>(40, 30, 16);
  twins.refresh(w_EH);
  Twins<float> copy = twins;
  EXPECT_EQ(copy.refresh(w_EH), 0);
  EXPECT_EQ(twins.refresh(random_matrix<float>(40, 31, 17)), 40);
  EXPECT_EQ(twins.refresh(w_EH), 40);
  const auto same = rounded<gatepro::bfloat16>(random_matrix<double>(40, 30, 18));
  const RowMatrix<float> wide = same.cast<float>();
  EXPECT_EQ(twins.refresh(wide), 40);
  twins.lazy.refresh_now(view(same), 100);
  EXPECT_EQ(twins.lazy.rows_recomputed(), 0);
  twins.lazy.set_schedule(RefreshSchedule::every_step());
  EXPECT_EQ(twins.refresh(w_EH), 40);
  EXPECT_TRUE(twins.lazy.similarity().given());
  twins.lazy.set_schedule(RefreshSchedule::every_step().lazily());
  EXPECT_EQ(twins.refresh(wide), 0);
}

// What it compares with goes along.
TEST(LazyRefresh, IsMoved) {
  Twins<float> twins(40);
  const auto w_EH = random_matrix<float>(40, 30, 20);
  twins.refresh(w_EH);
  Twins<float> moved = std::move(twins);
  EXPECT_EQ(moved.refresh(w_EH), 0);
  twins = Twins<float>(40);
  EXPECT_EQ(twins.refresh(w_EH), 40);
  moved = std::move(twins);
  EXPECT_EQ(moved.refresh(w_EH), 0);
}

TEST(LazyRefresh, KeepsTheScheduleAndNoSimilarity) {
  const RefreshSchedule schedule = RefreshSchedule::every(3).lazily();
  EXPECT_TRUE(schedule.lazy);
  EXPECT_EQ(schedule.interval, 3);
  EXPECT_FALSE(RefreshSchedule{}.lazy);
  for (const Index experts : {4, 40}) {  // few are always refreshed fully
    gatepro::SimilarityCache<float> cache(experts, {}, schedule);
    const auto w_EH = random_matrix<float>(experts, 8, 19);
    EXPECT_TRUE(cache.refresh(view(w_EH), 0));
    EXPECT_FALSE(cache.refresh(view(w_EH), 2));
    EXPECT_TRUE(cache.refresh(view(w_EH), 3));
    EXPECT_EQ(cache.rows_recomputed(), experts == 4 ? 4 : 0);
    EXPECT_FALSE(cache.similarity().given());
    expect_error([&] { cache.mean_partner_similarity(); },
                 {"a similarity that a refresh has kept"});
  }
}

TEST(LazyRefresh, RefusesToKeepSimilarity) {
  Pairing pairing;
  pairing.keep_similarity = true;
  const auto lazy = RefreshSchedule::every_step().lazily();
  using Cache = gatepro::SimilarityCache<float>;
  expect_error([&] { Cache(40, pairing, lazy); }, {"SimilarityCache", "keep_similarity", "lazy"});
  Cache cache(40, pairing, RefreshSchedule::every(7));
  expect_error([&] { cache.set_schedule(lazy); }, {"SimilarityCache", "keep_similarity", "lazy"});
  EXPECT_EQ(cache.schedule().interval, 7);
  pairing.keep_similarity = false;
  EXPECT_NO_THROW(Cache(40, pairing, lazy));
}

}  // namespace
