// SPDX-License-Identifier: MIT
// Counts of choices per expert.
#include <gatepro/routing/tokens_per_expert.hpp>

#include <cstdint>
#include <vector>

#include "support/ids.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::StridedView;
using gatepro::VectorView;
using Counts = std::vector<std::int64_t>;

template <class Id>
class TokensPerExpertTest : public ::testing::Test {};
using IdTypes = ::testing::Types<std::int32_t, std::int64_t, std::uint64_t>;
TYPED_TEST_SUITE(TokensPerExpertTest, IdTypes, TypeNames);

TYPED_TEST(TokensPerExpertTest, AddsToTheCountsInAnyLayout) {
  const RowMatrix<TypeParam> ids_TK = data::random_ids<TypeParam>(100, 9, 3, 1);
  Counts want{5, 0, 0, 0, -7, 0, 0, 0, 0};
  const Counts start = want;
  for (Index i = 0; i < ids_TK.size(); ++i) ++want[static_cast<std::size_t>(ids_TK.data()[i])];

  Counts counts = start;
  gatepro::add_tokens_per_expert(gatepro::strided_view(ids_TK), VectorView<std::int64_t>(counts));
  EXPECT_EQ(counts, want);

  const Eigen::Matrix<TypeParam, Eigen::Dynamic, Eigen::Dynamic> planes = ids_TK;
  counts = start;
  gatepro::add_tokens_per_expert(gatepro::strided_view(planes), VectorView<std::int64_t>(counts));
  EXPECT_EQ(counts, want);

  // Range by range.
  counts = start;
  const auto ids = gatepro::strided_view(ids_TK);
  for (Index first : {0, 1, 40}) {
    const Index count = first == 0 ? 1 : first == 1 ? 39 : 60;
    gatepro::add_tokens_per_expert(ids.middle_rows(first, count), VectorView<std::int64_t>(counts));
  }
  EXPECT_EQ(counts, want);
}

TYPED_TEST(TokensPerExpertTest, IdsOutOfRangeCountNothing) {
  for (TypeParam bad : {TypeParam(9), static_cast<TypeParam>(-2),
                        TypeParam(std::numeric_limits<TypeParam>::max() - 1),
                        std::numeric_limits<TypeParam>::min()}) {
    if (bad == TypeParam(0)) continue;
    RowMatrix<TypeParam> ids_TK = data::random_ids<TypeParam>(10, 9, 3, 2);
    ids_TK(9, 2) = bad;
    Counts counts(9, 4);
    EXPECT_THROW(gatepro::add_tokens_per_expert(gatepro::strided_view(ids_TK),
                                                VectorView<std::int64_t>(counts)),
                 gatepro::Error);
    EXPECT_EQ(counts, Counts(9, 4));
  }
}

TYPED_TEST(TokensPerExpertTest, NoExpertCountsNothing) {
  RowMatrix<TypeParam> ids_TK(2, 2);
  ids_TK << TypeParam(3), static_cast<TypeParam>(-1), static_cast<TypeParam>(-1), TypeParam(0);
  Counts counts(4, 0);
  gatepro::add_tokens_per_expert(gatepro::strided_view(ids_TK), VectorView<std::int64_t>(counts));
  EXPECT_EQ(counts, (Counts{1, 0, 0, 1}));
}

TYPED_TEST(TokensPerExpertTest, NoTokensCountNothing) {
  Counts counts(3, 1);
  gatepro::add_tokens_per_expert(StridedView<const TypeParam>(nullptr, 0, 2),
                                 VectorView<std::int64_t>(counts));
  EXPECT_EQ(counts, Counts(3, 1));
}

}  // namespace
