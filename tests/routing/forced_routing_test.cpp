// SPDX-License-Identifier: MIT
// Routings that are made up: balanced, distinct, and the same however a batch is cut.
#include <gatepro/routing/forced_routing.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

#include "gatepro/routing/softmax.hpp"
#include "gatepro/routing/tokens_per_expert.hpp"
#include "gatepro/routing/top_k.hpp"
#include "support/bits.hpp"
#include "support/executors.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::Index;
using gatepro::MatrixView;
using gatepro::RowMatrix;
using gatepro::strided_view;
using gatepro::StridedView;
using gatepro::VectorView;
using gatepro::view;
using Counts = std::vector<std::int64_t>;

template <class Id>
Counts count(const RowMatrix<Id>& ids_TK, Index experts) {
  Counts counts(static_cast<std::size_t>(experts), 0);
  gatepro::add_tokens_per_expert(strided_view(ids_TK), VectorView<std::int64_t>(counts));
  return counts;
}

/// The selection of plain top-k.
template <class A>
RowMatrix<std::int32_t> top_k_of(const RowMatrix<A>& logits_TE, Index top_k) {
  RowMatrix<std::int32_t> ids_TK(logits_TE.rows(), top_k);
  RowMatrix<A> selected_TK(logits_TE.rows(), top_k);
  auto memory = data::scratch(gatepro::select_top_k_workspace_bytes<A>(logits_TE.cols(), top_k));
  gatepro::select_top_k(view(logits_TE), {}, strided_view(ids_TK), strided_view(selected_TK),
                        memory);
  return ids_TK;
}

template <class Id>
class RoundRobinTest : public ::testing::Test {};
using IdTypes = ::testing::Types<std::int32_t, std::int64_t, std::uint64_t>;
TYPED_TEST_SUITE(RoundRobinTest, IdTypes, TypeNames);

TYPED_TEST(RoundRobinTest, AnyRangeIsBalancedAndDistinct) {
  for (Index experts : {1, 2, 7, 8, 60}) {
    for (Index top_k : {Index{1}, (experts + 1) / 2, experts}) {
      for (Index tokens : {0, 1, 5, 64}) {
        for (Index first : {Index{0}, Index{13}, (Index{1} << 62) + 5}) {
          RowMatrix<TypeParam> ids_TK =
              RowMatrix<TypeParam>::Constant(tokens, top_k, TypeParam(77));
          gatepro::round_robin_ids(first, experts, strided_view(ids_TK));
          const Counts counts = count(ids_TK, experts);
          const auto [least, most] = std::minmax_element(counts.begin(), counts.end());
          ASSERT_LE(*most - *least, 1);
          for (Index t = 0; t < tokens; ++t) {
            std::vector<TypeParam> row(ids_TK.row(t).begin(), ids_TK.row(t).end());
            std::sort(row.begin(), row.end());
            ASSERT_EQ(std::unique(row.begin(), row.end()), row.end());
          }
        }
      }
    }
  }
}

TYPED_TEST(RoundRobinTest, ExpertsTakeTurns) {
  RowMatrix<TypeParam> ids_TK(3, 2), want(3, 2);
  gatepro::round_robin_ids(1, 5, strided_view(ids_TK));
  want << TypeParam(2), TypeParam(3), TypeParam(4), TypeParam(0), TypeParam(1), TypeParam(2);
  EXPECT_EQ(ids_TK, want);
  // The range from token 2 on, as planes.
  Eigen::Matrix<TypeParam, Eigen::Dynamic, Eigen::Dynamic> planes(2, 2);
  gatepro::round_robin_ids(2, 5, strided_view(planes));
  EXPECT_EQ(planes, ids_TK.bottomRows(2));
}

TYPED_TEST(RoundRobinTest, BadInputWritesNothing) {
  RowMatrix<TypeParam> ids_TK = RowMatrix<TypeParam>::Constant(3, 2, TypeParam(77));
  const auto refused = [&](Index first, Index experts, StridedView<TypeParam> ids) {
    EXPECT_THROW(gatepro::round_robin_ids(first, experts, ids), gatepro::Error);
    EXPECT_TRUE((ids_TK.array() == TypeParam(77)).all());
  };
  refused(-1, 5, strided_view(ids_TK));
  refused(std::numeric_limits<Index>::max() - 2, 5, strided_view(ids_TK));
  refused(0, 1, strided_view(ids_TK));
  refused(0, 0, strided_view(ids_TK));
  refused(0, Index{1} << 31, strided_view(ids_TK));
  refused(0, 5, {nullptr, 3, 2});
  refused(0, 5, {ids_TK.data(), 3, 0});
  refused(0, 5, {ids_TK.data(), 3, 2, 1, 1});
}

template <class A>
class ForcedLogitsTest : public ::testing::Test {};
using Accumulators = ::testing::Types<float, double>;
TYPED_TEST_SUITE(ForcedLogitsTest, Accumulators, TypeNames);

TYPED_TEST(ForcedLogitsTest, TopKOfRoundRobinLogitsAreTheRoundRobinIds) {
  for (Index experts : {1, 2, 7, 60}) {
    for (Index top_k : {Index{1}, (experts + 1) / 2, experts}) {
      data::GuardedMatrix<TypeParam> logits_TE(
          data::special_matrix<TypeParam>(50, experts, std::uint64_t(experts)), 3);
      gatepro::round_robin_logits(9, top_k, logits_TE.view());
      EXPECT_TRUE(logits_TE.intact());
      RowMatrix<std::int32_t> want(50, top_k);
      gatepro::round_robin_ids(9, experts, strided_view(want));
      for (Index t = 0; t < 50; ++t) std::sort(want.row(t).begin(), want.row(t).end());
      EXPECT_EQ(top_k_of(logits_TE.values(), top_k), want);
    }
  }
}

TYPED_TEST(ForcedLogitsTest, RandomLogitsAreBalancedOnAverage) {
  constexpr Index tokens = 4000, experts = 16, top_k = 4;
  RowMatrix<TypeParam> logits_TE(tokens, experts);
  gatepro::random_logits({1, 2}, view(logits_TE));
  EXPECT_NEAR(double(logits_TE.mean()), 0, 0.02);
  EXPECT_NEAR(double(logits_TE.squaredNorm()) / double(logits_TE.size()), 1, 0.03);
  // Binomial with p = K / E: five standard deviations.
  const double expected = double(tokens * top_k) / experts;
  const double bound = 5 * std::sqrt(expected * (1 - double(top_k) / experts));
  for (const std::int64_t n : count(top_k_of(logits_TE, top_k), experts)) {
    EXPECT_NEAR(double(n), expected, bound);
  }
}

TYPED_TEST(ForcedLogitsTest, BitsDoNotDependOnThreadsRangesOrContent) {
  constexpr Index tokens = 200, experts = 7;
  RowMatrix<TypeParam> want(tokens, experts);
  gatepro::random_logits({1, 2, 30}, view(want));
  data::GuardedMatrix<TypeParam> other(data::special_matrix<TypeParam>(tokens, experts, 3), 2);
  gatepro::random_logits({1, 2, 30}, other.view(), ThreadExecutor(4));
  EXPECT_TRUE(data::same_bits(other.values(), want));
  EXPECT_TRUE(other.intact());
  gatepro::random_logits({1, 2, 30 + 77}, other.view().middle_rows(77, tokens - 77));
  EXPECT_TRUE(data::same_bits(other.values(), want));

  // Not the noise that is added to logits.
  RowMatrix<TypeParam> noise = RowMatrix<TypeParam>::Zero(tokens, experts);
  gatepro::add_logit_noise(1, {1, 2, 30}, view(noise));
  EXPECT_EQ((noise.array() == want.array()).count(), 0);
}

TYPED_TEST(ForcedLogitsTest, BadInputWritesNothing) {
  RowMatrix<TypeParam> logits = RowMatrix<TypeParam>::Ones(3, 4);
  const auto refused = [&](Index first, Index top_k, MatrixView<TypeParam> to) {
    EXPECT_THROW(gatepro::round_robin_logits(first, top_k, to), gatepro::Error);
    EXPECT_TRUE((logits.array() == 1).all());
  };
  refused(-1, 2, view(logits));
  refused(0, 0, view(logits));
  refused(0, 5, view(logits));
  refused(0, 2, {nullptr, 3, 4});
  refused(0, 2, {logits.data(), 3, 4, 3});
  EXPECT_THROW(gatepro::random_logits({0, 0, -1}, view(logits)), gatepro::Error);
  EXPECT_THROW(gatepro::random_logits({}, MatrixView<TypeParam>(logits.data(), 3, 4, 3)),
               gatepro::Error);
  EXPECT_TRUE((logits.array() == 1).all());
}

}  // namespace
