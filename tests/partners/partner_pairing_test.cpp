// SPDX-License-Identifier: MIT
// Partners: most similar first, lowest id on ties, i itself for none; and the rivals that follow.
#include <gatepro/partners/pairing.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

#include "support/bits.hpp"
#include "support/conversions.hpp"
#include "support/ids.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/reference/partners.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::Index;
using gatepro::Pairing;
using gatepro::RivalTable;
using gatepro::RowMatrix;
using Partners = RowMatrix<std::int32_t>;

template <class A>
Partners pair(const RowMatrix<A>& s_EE, const Pairing& pairing) {
  Partners partners_EM = Partners::Constant(s_EE.rows(), pairing.partners_per_expert, 77);
  gatepro::pair_partners(gatepro::view(s_EE), pairing, gatepro::view(partners_EM));
  return partners_EM;
}

template <class A>
void expect_reference(const RowMatrix<A>& s_EE, const Pairing& pairing) {
  const Partners got = pair(s_EE, pairing);
  const reference::Ids want = reference::pair_partners(data::to_reference(s_EE), pairing);
  for (Index i = 0; i < got.rows(); ++i) {
    for (Index m = 0; m < got.cols(); ++m) {
      ASSERT_EQ(got(i, m), data::at(want, i, m))
          << "expert " << i << " of\n"
          << s_EE << "\nm " << got.cols() << " tau " << pairing.min_similarity;
    }
  }
}

template <class A>
class PartnerPairingTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(PartnerPairingTest, Scalars, TypeNames);

// Every row of three candidates from the values that matter, at every place of i.
TYPED_TEST(PartnerPairingTest, SmallRowsExhaustively) {
  using A = TypeParam;
  const A values[] = {A(-1),
                      A(-0.0),
                      A(0),
                      A(0.5),
                      A(1),
                      -data::infinity<A>(),
                      data::infinity<A>(),
                      data::marked_nan<A>(),
                      std::nextafter(A(0.5), A(0))};
  constexpr Index count = 9;
  for (Index code = 0; code < count * count * count; ++code) {
    const A row[] = {values[code % count], values[code / count % count],
                     values[code / count / count]};
    RowMatrix<A> s_EE = RowMatrix<A>::Constant(4, 4, A(1));
    for (Index i = 0; i < 4; ++i) {
      for (Index j = 0; j < 4; ++j) {
        if (i != j) s_EE(i, j) = row[(j + 4 - i) % 4 - 1];
      }
    }
    for (Index m = 1; m <= 3; ++m) {
      for (double tau : {-1.0, -0.0, 0.5, 1.0}) {
        expect_reference(s_EE, Pairing{m, tau, false});
        if (this->HasFatalFailure()) return;
      }
    }
  }
}

TYPED_TEST(PartnerPairingTest, LargeMatricesWithTies) {
  using A = TypeParam;
  for (Index experts : {2, 5, 33, 64}) {
    RowMatrix<A> tied_EE = data::tied_matrix<A>(experts, experts, 1);
    RowMatrix<A> random_EE = data::random_matrix<A>(experts, experts, 2);
    for (Index i = 0; i < experts; ++i) {
      // Whatever stands on the diagonal: nobody is its own partner.
      tied_EE(i, i) = data::infinity<A>();
      random_EE(i, i) = 1;
      tied_EE(i, experts / 2) = data::marked_nan<A>();
    }
    for (Index m : {Index{1}, Index{2}, experts / 2, experts - 1}) {
      if (m < 1 || m > experts - 1) continue;
      for (double tau : {-1.0, 0.0, 0.25}) {
        expect_reference(tied_EE, Pairing{m, tau, false});
        expect_reference(random_EE, Pairing{m, tau, false});
      }
    }
  }
}

TYPED_TEST(PartnerPairingTest, ThresholdIsInclusive) {
  using A = TypeParam;
  RowMatrix<A> s_EE(2, 2);
  // 0.3 has no exact float: the threshold is the float that a similarity would be.
  for (double tau : {0.25, 0.3, -0.7}) {
    s_EE.setConstant(static_cast<A>(tau));
    EXPECT_EQ(pair(s_EE, Pairing{1, tau, false})(0, 0), 1);
    s_EE.setConstant(std::nextafter(static_cast<A>(tau), A(-2)));
    EXPECT_EQ(pair(s_EE, Pairing{1, tau, false})(0, 0), 0);
  }
}

TYPED_TEST(PartnerPairingTest, OneExpertHasNone) {
  RowMatrix<TypeParam> s_EE(1, 1);
  s_EE << 1;
  EXPECT_EQ(pair(s_EE, Pairing{})(0, 0), 0);
}

TYPED_TEST(PartnerPairingTest, NonfiniteMatrixHasNone) {
  const RowMatrix<TypeParam> s_EE =
      RowMatrix<TypeParam>::Constant(5, 5, data::marked_nan<TypeParam>());
  const Partners partners_EM = pair(s_EE, Pairing{2, -1, false});
  for (Index i = 0; i < 5; ++i) {
    EXPECT_EQ(partners_EM(i, 0), i);
    EXPECT_EQ(partners_EM(i, 1), i);
  }
}

TYPED_TEST(PartnerPairingTest, RowStridesChangeNothing) {
  using A = TypeParam;
  const RowMatrix<A> s_EE = data::tied_matrix<A>(20, 20, 3);
  data::GuardedMatrix<A> s(s_EE, 3);
  data::GuardedMatrix<std::int32_t> partners(20, 3, 2);
  const Pairing pairing{3, -1, false};
  gatepro::pair_partners(s.view(), pairing, partners.view());
  EXPECT_TRUE(data::same_bits(partners.values(), pair(s_EE, pairing)));
  EXPECT_TRUE(partners.intact());
}

/// The rivals of each expert, in ascending order.
reference::Ids rivals_of(const RivalTable& table) {
  const gatepro::detail::RivalView view = table.view();
  reference::Ids rivals;
  for (Index e = 0; e < table.num_experts(); ++e) {
    rivals.emplace_back(view.ids + view.begin[e], view.ids + view.begin[e + 1]);
    std::sort(rivals.back().begin(), rivals.back().end());
  }
  return rivals;
}

TEST(RivalTable, FollowsThePartners) {
  for (Index experts : {1, 2, 7, 40}) {
    for (Index m : {1, 2, 5}) {
      Partners partners_EM = data::random_partners(experts, m, 4);
      partners_EM.row(experts / 2).setConstant(static_cast<std::int32_t>(experts / 2));  // none
      for (bool both_sides : {false, true}) {
        reference::Ids want = reference::rivals(data::to_ids(partners_EM), both_sides);
        for (auto& list : want) std::sort(list.begin(), list.end());
        EXPECT_EQ(rivals_of(RivalTable(gatepro::view(partners_EM), both_sides)), want);
        // One plane per choice.
        const Eigen::Matrix<std::int32_t, Eigen::Dynamic, Eigen::Dynamic> planes = partners_EM;
        EXPECT_EQ(rivals_of(RivalTable(gatepro::strided_view(planes), both_sides)), want);
      }
    }
  }
}

TEST(RivalTable, OnlyTheNamingSideCompetesByDefault) {
  Partners partners_EM(3, 1);
  partners_EM << 1, 2, 2;
  EXPECT_EQ(rivals_of(RivalTable(gatepro::view(partners_EM), false)),
            (reference::Ids{{1}, {2}, {}}));
  EXPECT_EQ(rivals_of(RivalTable(gatepro::view(partners_EM), true)),
            (reference::Ids{{1}, {0, 2}, {1}}));
}

TEST(RivalTable, DefaultIsNobody) { EXPECT_EQ(RivalTable().num_experts(), 0); }

}  // namespace
