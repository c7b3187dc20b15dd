// SPDX-License-Identifier: MIT
// Partners found tile by tile are those of the whole similarity matrix, which is written only if
// asked for.
#include <gatepro/partners/search.hpp>

#include <limits>
#include <vector>

#include "support/bits.hpp"
#include "support/executors.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::Index;
using gatepro::Pairing;
using gatepro::RowMatrix;
using gatepro::SerialExecutor;
using Partners = RowMatrix<std::int32_t>;

template <class W>
struct Found {
  Partners partners_EM;
  RowMatrix<gatepro::accumulator_t<W>> s_EE;
  gatepro::SimilarityReport report;
};

template <class W, class Executor = SerialExecutor>
Found<W> find(const RowMatrix<W>& w_EH, const Pairing& pairing, bool write_similarity,
              const Executor& executor = {}) {
  using A = gatepro::accumulator_t<W>;
  const Index experts = w_EH.rows();
  const Index m = pairing.partners_per_expert;
  Found<W> found{Partners::Constant(experts, m, 77), RowMatrix<A>(experts, experts), {}};
  gatepro::MatrixView<A> similarity_EE;
  if (write_similarity) similarity_EE = gatepro::view(found.s_EE);
  auto memory = data::scratch(
      gatepro::find_partners_workspace_bytes<W>(experts, w_EH.cols(), m, executor.workers()));
  found.report =
      gatepro::find_partners(gatepro::view(w_EH), pairing,
                             {gatepro::view(found.partners_EM), similarity_EE}, memory, executor);
  return found;
}

/// In two steps: S, then its rows.
template <class W>
Found<W> by_matrix(const RowMatrix<W>& w_EH, const Pairing& pairing) {
  using A = gatepro::accumulator_t<W>;
  const Index experts = w_EH.rows();
  Found<W> found{
      Partners(experts, pairing.partners_per_expert), RowMatrix<A>(experts, experts), {}};
  auto memory = data::scratch(gatepro::cosine_similarity_workspace_bytes<W>(experts, w_EH.cols()));
  found.report = gatepro::cosine_similarity(gatepro::view(w_EH), gatepro::view(found.s_EE), memory);
  gatepro::pair_partners(gatepro::view(found.s_EE), pairing, gatepro::view(found.partners_EM));
  return found;
}

template <class W>
void expect_same(const RowMatrix<W>& w_EH, const Pairing& pairing) {
  const Found<W> want = by_matrix(w_EH, pairing);
  const auto expect = [&](const Found<W>& got, const char* what) {
    ASSERT_EQ(got.partners_EM, want.partners_EM)
        << what << ", E " << w_EH.rows() << ", m " << pairing.partners_per_expert << ", tau "
        << pairing.min_similarity;
    ASSERT_EQ(got.report.nonfinite_rows, want.report.nonfinite_rows);
    ASSERT_EQ(got.report.degenerate_rows, want.report.degenerate_rows);
  };
  const Found<W> with_matrix = find(w_EH, pairing, true);
  expect(with_matrix, "with S");
  ASSERT_TRUE(data::same_bits(with_matrix.s_EE, want.s_EE));
  expect(find(w_EH, pairing, false), "without S");
  for (int workers : {2, 5}) {
    expect(find(w_EH, pairing, false, ThreadExecutor(workers)), "threads");
    expect(find(w_EH, pairing, true, LastWorkerFirst(workers)), "last worker first");
  }
}

template <class W>
class PartnerSearchTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double, gatepro::bfloat16, gatepro::half>;
TYPED_TEST_SUITE(PartnerSearchTest, Scalars, TypeNames);

TYPED_TEST(PartnerSearchTest, AnyNumberOfExperts) {
  for (Index experts : {1, 2, 3, 8, 9, 47, 48, 49, 130}) {
    const RowMatrix<TypeParam> w_EH = data::random_matrix<TypeParam>(experts, 11, 3);
    for (Index m : {1, 2, 7}) {
      if (m > 1 && m >= experts) continue;
      for (double least : {-1.0, 0.2}) expect_same(w_EH, Pairing{m, least, false});
    }
  }
}

// Copies of a few rows, scaled: the lowest ids win, in whichever tile a pair stands.
TYPED_TEST(PartnerSearchTest, TiesGoToTheLowestId) {
  using W = TypeParam;
  RowMatrix<W> w_EH = data::random_matrix<W>(150, 16, 4);
  for (Index i = 3; i < 150; ++i) w_EH.row(i) = w_EH.row(i % 3) * W(1 + i % 2);
  for (Index m : {1, 3}) expect_same(w_EH, Pairing{m, -1, false});
  const Partners partners_EM = find(w_EH, Pairing{}, false).partners_EM;
  for (Index i = 3; i < 150; ++i) ASSERT_EQ(partners_EM(i, 0), i % 3);
  for (Index i = 0; i < 3; ++i) ASSERT_EQ(partners_EM(i, 0), i + 3);
}

// Rows along the axes: similarities are exactly 0 or 1.
TYPED_TEST(PartnerSearchTest, SimilarityThatEqualsTheThresholdCompetes) {
  using W = TypeParam;
  RowMatrix<W> w_EH = RowMatrix<W>::Zero(60, 4);
  for (Index i = 0; i < 60; ++i) w_EH(i, i * i % 4) = W(1);
  for (double least : {0.0, 1.0}) {
    for (Index m : {1, 40}) expect_same(w_EH, Pairing{m, least, false});
  }
  EXPECT_EQ(find(w_EH, Pairing{1, 1, false}, false).partners_EM(0, 0), 2);
}

TYPED_TEST(PartnerSearchTest, RowsWithoutADirection) {
  using W = TypeParam;
  RowMatrix<W> w_EH = data::random_matrix<W>(100, 5, 5);
  w_EH.row(0).setZero();
  w_EH.row(60).setZero();
  w_EH(3, 1) = std::numeric_limits<W>::quiet_NaN();
  w_EH(99, 4) = std::numeric_limits<W>::infinity();
  for (Index m : {1, 98, 99}) expect_same(w_EH, Pairing{m, -1, false});
  const Partners partners_EM = find(w_EH, Pairing{}, false).partners_EM;
  EXPECT_EQ(partners_EM(3, 0), 3);
  EXPECT_EQ(partners_EM(99, 0), 99);
  EXPECT_EQ((partners_EM.array() == 3).count(), 1);
}

}  // namespace
