// SPDX-License-Identifier: MIT
// Margins at the border of the choice, and the least lambda that changes a set.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "support/errors.hpp"
#include "support/executors.hpp"
#include "support/ids.hpp"
#include "support/memory.hpp"
#include "support/ranks.hpp"
#include "support/reference/partners.hpp"
#include "support/reference/routing.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::Competition;
using gatepro::Index;
using gatepro::MarginCounts;
using gatepro::MarginRule;
using gatepro::RivalTable;
using gatepro::RowMatrix;
using gatepro::TieRule;
using gatepro::VectorView;
using Counts = std::vector<std::int64_t>;
using Table = RowMatrix<std::int32_t>;
using Bins = gatepro::detail::LogBins;

constexpr double infinity = std::numeric_limits<double>::infinity();

template <class A, class Executor = gatepro::SerialExecutor>
MarginCounts count(const RowMatrix<A>& logits_TE, const RivalTable& rivals, const MarginRule& rule,
                   const std::vector<std::uint8_t>& mask = {}, const Executor& executor = {}) {
  MarginCounts counts;
  auto memory = data::scratch(
      gatepro::count_margins_workspace_bytes<A>(logits_TE.cols(), rule.top_k, executor));
  gatepro::count_margins(gatepro::view(logits_TE), rivals, rule, data::optional(mask), counts,
                         memory, executor);
  return counts;
}

/// The sets that the routing itself selects: sorted ids.
std::vector<int> set_of(const reference::Row& logits, const reference::Ids& rivals,
                        const Competition& competition, Index top_k) {
  const auto exact = [](double v) { return v; };
  std::vector<int> ids = reference::route(logits, rivals, competition, top_k, exact).ids;
  std::sort(ids.begin(), ids.end());
  return ids;
}

/// The least lambda that changes the set, by trying: all differences of two logits are where it may
/// be. Infinity if none does.
double least_lambda(const reference::Row& logits, const reference::Ids& rivals, TieRule ties,
                    Index top_k) {
  const std::vector<int> plain = set_of(logits, rivals, Competition::off(), top_k);
  std::vector<double> candidates{0};
  for (const double a : logits) {
    for (const double b : logits) {
      if (a > b) candidates.push_back(a - b);
    }
  }
  std::sort(candidates.begin(), candidates.end());
  for (const double candidate : candidates) {
    Competition competition = Competition::penalty(candidate + 1e-9);
    competition.ties = ties;
    if (set_of(logits, rivals, competition, top_k) != plain) return candidate;
  }
  return infinity;
}

template <class A>
class MarginsTest : public ::testing::Test {};
using Types = ::testing::Types<float, double>;
TYPED_TEST_SUITE(MarginsTest, Types, TypeNames);

TEST(LogBins, HoldWhatLiesBetweenTheirBorders) {
  EXPECT_EQ(Bins::bin_of(0), 0);
  EXPECT_EQ(Bins::bin_of(std::numeric_limits<double>::denorm_min()), 0);
  EXPECT_EQ(Bins::bin_of(std::numeric_limits<double>::max()), Bins::count - 1);
  EXPECT_EQ(Bins::bin_of(infinity), Bins::count - 1);
  EXPECT_EQ(Bins::begin_of(0), 0);
  EXPECT_EQ(Bins::begin_of(1), std::ldexp(1.0, -60));
  EXPECT_EQ(Bins::begin_of(Bins::count - 1), std::ldexp(1.0, 20));
  for (Index b = 1; b < Bins::count; ++b) {
    const double begin = Bins::begin_of(b);
    EXPECT_EQ(Bins::bin_of(begin), b);
    EXPECT_EQ(Bins::bin_of(std::nextafter(begin, 0.0)), b - 1);
    EXPECT_EQ(Bins::end_of(b - 1), begin);
    EXPECT_TRUE(b == 1 || begin / Bins::begin_of(b - 1) <= 1.125);
  }
}

// Experts 0 and 1 name each other, so do 2 and 3. k = 2 of 4, 3, 2.5, 1: 1 and 3 lose, 1 is
// selected, 2 survives, and takes its place from lambda = 0.5 on.
TYPED_TEST(MarginsTest, HandWorked) {
  using A = TypeParam;
  Table partners(4, 1);
  partners << 1, 0, 3, 2;
  const RivalTable rivals(partners, false);
  RowMatrix<A> logits(1, 4);
  logits << 4, 3, A(2.5), 1;
  const MarginCounts counts = count(logits, rivals, {2});
  EXPECT_EQ(counts.tokens(), 1);
  EXPECT_EQ(counts.tokens_with_margin(), 1);
  EXPECT_EQ(counts.tokens_to_change(), 1);
  EXPECT_EQ(counts.margin_histogram()[Bins::bin_of(0.5)], 1);
  EXPECT_EQ(counts.relative_histogram()[Bins::bin_of(0.5 / 3)], 1);
  EXPECT_EQ(counts.lambda_histogram()[Bins::bin_of(0.5)], 1);
  EXPECT_NEAR(counts.lambda_for_share(0.5), 0.5, 0.5 * 0.07);
  EXPECT_EQ(counts.changed_share(0.4), 0);
  EXPECT_EQ(counts.changed_share(0.6), 1);
  EXPECT_EQ(counts.largest_share(), 1);
  EXPECT_NEAR(counts.lambda_for_share(1), 0.5, 0.5 * 0.13);  // as many as elimination changes
  // 4, 3, 0, 2.5 with k = 3: 3 lost to nobody, and 2 lost, which is not selected. 1 falls behind no
  // survivor, for there is none.
  logits << 4, 3, 0, A(2.5);
  EXPECT_EQ(count(logits, rivals, {3}).tokens_to_change(), 0);
  EXPECT_EQ(count(logits, rivals, {3}).lambda_for_share(0.5), infinity);
  EXPECT_EQ(count(logits, rivals, {4}).tokens_with_margin(), 0);
  // A loser and a survivor that tie, and nobody else: any lambda that the logits notice.
  logits << 4, 3, 3, 1;
  EXPECT_EQ(count(logits, rivals, {2}).lambda_histogram()[0], 1);
  EXPECT_EQ(count(logits, rivals, {2}).lambda_for_share(0.5), 1);
  // Ties: an exact copy loses by rule only, and is then as close as can be.
  logits << 3, 3, 3, 1;
  EXPECT_EQ(count(logits, rivals, {2}).tokens_to_change(), 0);
  const MarginCounts tied = count(logits, rivals, {2, TieRule::higher_id_loses});
  EXPECT_EQ(tied.lambda_histogram()[0], 1);
  EXPECT_EQ(tied.margin_histogram()[0], 1);
}

TYPED_TEST(MarginsTest, LeastLambdasAreThoseThatChangeTheRouting) {
  using A = TypeParam;
  const Index experts = 10;
  for (const Index top_k : {1, 3, 7, 10}) {
    for (const Index m : {1, 2}) {
      for (const TieRule ties : {TieRule::nobody_loses, TieRule::higher_id_loses}) {
        const Table partners =
            data::random_partners(experts, m, 20 + static_cast<std::uint64_t>(m));
        const RivalTable rivals(partners, m == 2);
        reference::Ids ids(static_cast<std::size_t>(experts));
        for (Index i = 0; i < experts; ++i) {
          for (Index c = 0; c < m; ++c) ids[static_cast<std::size_t>(i)].push_back(partners(i, c));
        }
        RowMatrix<A> logits = data::random_matrix<A>(60, experts, 30);
        logits.bottomRows(20) = data::tied_matrix<A>(20, experts, 31);
        MarginCounts want;
        Counts sums(static_cast<std::size_t>(want.counts().size));
        const Index bins = Bins::count;
        for (Index t = 0; t < logits.rows(); ++t) {
          reference::Row row(static_cast<std::size_t>(experts));
          for (Index e = 0; e < experts; ++e)
            row[static_cast<std::size_t>(e)] = static_cast<double>(logits(t, e));
          const double lambda = least_lambda(row, reference::rivals(ids, m == 2), ties, top_k);
          ++sums[0];
          std::vector<double> sorted = row;
          std::sort(sorted.rbegin(), sorted.rend());
          if (top_k < experts) {
            const double last = sorted[static_cast<std::size_t>(top_k - 1)],
                         next = sorted[static_cast<std::size_t>(top_k)];
            const double size = std::max(std::abs(last), std::abs(next));
            ++sums[1];
            ++sums[static_cast<std::size_t>(3 + Bins::bin_of(last - next))];
            ++sums[static_cast<std::size_t>(3 + bins +
                                            Bins::bin_of(size > 0 ? (last - next) / size : 0))];
          }
          if (lambda < infinity) {
            ++sums[2];
            ++sums[static_cast<std::size_t>(3 + 2 * bins + Bins::bin_of(lambda))];
          }
        }
        SCOPED_TRACE(testing::Message() << "k=" << top_k << " m=" << m << " ties=" << int(ties));
        EXPECT_EQ(data::copy(count(logits, rivals, {top_k, ties}).counts()), sums);
      }
    }
  }
}

/// Partners of random weights, and logits that they make.
template <class A>
struct Layer {
  Layer(Index tokens, Index experts, double scale)
      : router({16, experts, 4}),
        w(data::random_matrix<A>(experts, 16, 40, scale)),
        x(data::random_matrix<A>(tokens, 16, 41)) {
    router.refresh_now(w, 0);
    logits = x * w.transpose();
  }
  double changed(double lambda) {
    router.set_competition(lambda < infinity ? Competition::penalty(lambda)
                                             : Competition::eliminate());
    gatepro::RoutingBuffers<gatepro::Router<A>> routed(router, x.rows());
    gatepro::PenaltyStatistics statistics;
    auto out = routed.view();
    out.statistics = &statistics;
    router.forward_logits(logits, out, routed.workspace());
    return statistics.changed_rate();
  }
  const RivalTable& rivals() const { return router.similarity_cache().rivals(); }

  gatepro::Router<A> router;
  RowMatrix<A> w, x, logits;
};

// The shares are those of the router, at every scale; quantiles and shares are inverse to each
// other.
TYPED_TEST(MarginsTest, SharesAreThoseOfTheRouter) {
  for (const double scale : {1e-6, 1.0, 1e3}) {
    Layer<TypeParam> layer(3000, 32, scale);
    const MarginCounts counts = count(layer.logits, layer.rivals(), {4});
    EXPECT_NEAR(counts.largest_share(), layer.changed(infinity), 1e-9);
    for (const double share : {0.01, 0.1, 0.2}) {
      const double lambda = counts.lambda_for_share(share);
      EXPECT_NEAR(layer.changed(lambda), share, 0.004) << "lambda=" << lambda;
      EXPECT_NEAR(counts.changed_share(lambda), share, 1e-9);
    }
    EXPECT_EQ(counts.lambda_for_share(1), infinity);
    EXPECT_GT(counts.margin(0.5), counts.margin(0.1));
    EXPECT_LT(counts.relative_margin(1), 2 + 1e-9);
  }
}

TYPED_TEST(MarginsTest, CountsDoNotDependOnThreadsPartsOrRanks) {
  using A = TypeParam;
  Layer<A> layer(1000, 24, 1);
  const std::vector<std::uint8_t> mask = data::random_mask(1000, 50);
  const Counts want = data::copy(count(layer.logits, layer.rivals(), {4}, mask).counts());
  EXPECT_EQ(data::copy(count(layer.logits, layer.rivals(), {4}, mask, ThreadExecutor(3)).counts()),
            want);
  EXPECT_EQ(data::copy(count(layer.logits, layer.rivals(), {4}, mask, LastWorkerFirst(5)).counts()),
            want);
  std::vector<MarginCounts> parts;
  MarginCounts merged;
  for (Index part = 0; part < 4; ++part) {
    const RowMatrix<A> rows = layer.logits.middleRows(part * 250, 250);
    parts.push_back(count(rows, layer.rivals(), {4},
                          {mask.begin() + part * 250, mask.begin() + part * 250 + 250}));
    merged.merge(parts.back());
  }
  EXPECT_EQ(data::copy(merged.counts()), want);
  run_ranks(4, [&](int rank, const auto& reduce) {
    parts[static_cast<std::size_t>(rank)].all_reduce(reduce);
  });
  for (const MarginCounts& part : parts) EXPECT_EQ(data::copy(part.counts()), want);
}

// Padding is as if it were not there.
TYPED_TEST(MarginsTest, MaskedTokensDoNotCount) {
  using A = TypeParam;
  Layer<A> layer(301, 24, 1);
  const std::vector<std::uint8_t> mask = data::random_mask(301, 51);
  RowMatrix<A> kept(301, 24);
  Index rows = 0;
  for (Index t = 0; t < 301; ++t) {
    if (mask[static_cast<std::size_t>(t)] == 0) kept.row(rows++) = layer.logits.row(t);
  }
  kept.conservativeResize(rows, 24);
  EXPECT_LT(rows, 301);
  EXPECT_EQ(data::copy(count(layer.logits, layer.rivals(), {4}, mask).counts()),
            data::copy(count(kept, layer.rivals(), {4}).counts()));
}

// Logits of 16 bits tie often. A lambda for fewer tokens than tie must not vanish in rounding.
TYPED_TEST(MarginsTest, ASmallShareOfRoundedLogitsBreaksAllTies) {
  using A = TypeParam;
  Layer<A> layer(4000, 32, 1);
  layer.logits =
      (layer.logits.array() + 60).matrix().template cast<gatepro::bfloat16>().template cast<A>();
  const MarginCounts counts = count(layer.logits, layer.rivals(), {4});
  const double ties = static_cast<double>(counts.lambda_histogram()[0]) / 4000;
  ASSERT_GT(ties, 0.02);
  for (const double share : {0.1 * ties, 0.9 * ties}) {
    const double lambda = counts.lambda_for_share(share);
    EXPECT_NEAR(layer.changed(lambda), ties, 1e-3) << lambda;
    EXPECT_NEAR(counts.changed_share(lambda), ties, 1e-3) << lambda;
    gatepro::LambdaEstimate estimate({share, 1});
    auto memory = data::scratch(gatepro::count_margins_workspace_bytes<A>(32, 4));
    estimate.observe(gatepro::view(layer.logits), layer.rivals(), {4}, {}, memory);
    estimate.step();
    EXPECT_EQ(estimate.lambda(), lambda);
  }
}

// Values that are not finite have no margin, and never end up in a wrong bin.
TYPED_TEST(MarginsTest, NumbersThatAreNotFiniteHaveNoMargin) {
  using A = TypeParam;
  const A nan = data::marked_nan<A>(), inf = data::infinity<A>();
  Table partners(4, 1);
  partners << 1, 0, 3, 2;
  const RivalTable rivals(partners, false);
  RowMatrix<A> logits(5, 4);
  logits << 1, nan, nan, nan,  //
      inf, inf, 0, 1,          //
      3, 2, -inf, -inf,        //
      nan, nan, nan, nan,      //
      -inf, -inf, -inf, 1;
  const MarginCounts counts = count(logits, rivals, {2});
  EXPECT_EQ(counts.tokens(), 5);
  EXPECT_EQ(counts.tokens_with_margin(), 0);
  EXPECT_EQ(counts.tokens_to_change(), 0);
  const RowMatrix<A> wild = data::special_matrix<A>(500, 9, 60);
  const Table names = data::random_partners(9, 1, 61);
  const RivalTable random(names, false);
  const MarginCounts all = count(wild, random, {3});
  std::int64_t margins = 0, lambdas = 0;
  for (Index b = 0; b < Bins::count; ++b) {
    margins += all.margin_histogram()[b];
    lambdas += all.lambda_histogram()[b];
  }
  EXPECT_EQ(margins, all.tokens_with_margin());
  EXPECT_EQ(lambdas, all.tokens_to_change());
  EXPECT_GT(lambdas, 0);
}

TEST(Margins, WithoutRivalsOrTokensThereAreNoLambdas) {
  const RowMatrix<float> logits = data::random_matrix<float>(50, 6, 70);
  const MarginCounts counts = count(logits, RivalTable(), {2});
  EXPECT_EQ(counts.tokens_with_margin(), 50);
  EXPECT_EQ(counts.tokens_to_change(), 0);
  EXPECT_EQ(counts.changed_share(1), 0);
  const Table alone = Table::Zero(1, 1);
  const MarginCounts one = count(data::random_matrix<float>(5, 1, 71), {alone, false}, {1});
  EXPECT_EQ(one.tokens(), 5);
  EXPECT_EQ(one.tokens_with_margin() + one.tokens_to_change(), 0);
  const MarginCounts none = count(RowMatrix<float>(0, 6), RivalTable(), {2});
  EXPECT_EQ(none.tokens(), 0);
  EXPECT_EQ(none.margin(0.5), 0);
  EXPECT_EQ(none.changed_share(1), 0);
  EXPECT_EQ(none.largest_share(), 0);
}

TEST(Margins, BadInput) {
  const RowMatrix<float> logits = data::random_matrix<float>(5, 6, 80);
  const Table names = data::random_partners(4, 1, 81);
  const RivalTable few(names, false);
  MarginCounts counts;
  auto memory = data::scratch(gatepro::count_margins_workspace_bytes<float>(6, 2));
  const auto call = [&](const RivalTable& rivals, Index top_k,
                        const std::vector<std::uint8_t>& mask, gatepro::Workspace workspace) {
    gatepro::count_margins(gatepro::view(logits), rivals, {top_k}, data::optional(mask), counts,
                           workspace);
  };
  expect_error([&] { call(few, 2, {}, memory); }, {"count_margins", "experts with partners=4"});
  expect_error([&] { call({}, 0, {}, memory); }, {"top_k=0"});
  expect_error([&] { call({}, 7, {}, memory); }, {"top_k=7", "num_experts=6"});
  expect_error([&] { call({}, 2, {1, 0}, memory); }, {"is_padding_T", "size=2"});
  expect_error([&] { call({}, 2, {}, {memory.data(), memory.size() - 1}); }, {"workspace"});
  expect_error([&] { counts.margin(1.5); }, {"MarginCounts", "share=1.5"});
  expect_error([&] { counts.lambda_for_share(-0.1); }, {"share=-0.1"});
  expect_error([&] { counts.changed_share(-1); }, {"lambda >= 0", "lambda=-1"});
  EXPECT_EQ(counts.tokens(), 0);
  // Of many threads' counts, too, all are added or none.
  Counts full(static_cast<std::size_t>(counts.counts().size));
  full[0] = std::numeric_limits<std::int64_t>::max() - 30000;
  counts.restore(full);
  const RowMatrix<float> more = data::random_matrix<float>(40000, 6, 80);
  const ThreadExecutor executor(2);
  auto room = data::scratch(gatepro::count_margins_workspace_bytes<float>(6, 2, executor));
  expect_error(
      [&] { gatepro::count_margins(gatepro::view(more), {}, {2}, {}, counts, room, executor); },
      {"MarginCounts", "fits int64"});
  EXPECT_EQ(data::copy(counts.counts()), full);
}

}  // namespace
