// SPDX-License-Identifier: MIT
// Logits against the double reference, and the same bits however the work is cut.
#include <gatepro/gate/logits.hpp>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "support/bits.hpp"
#include "support/conversions.hpp"
#include "support/errors.hpp"
#include "support/executors.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/reference/gate.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::Index;
using gatepro::MatrixView;
using gatepro::RowMatrix;
using gatepro::SerialExecutor;

template <class X, class W, class Executor = SerialExecutor>
auto gate(const RowMatrix<X>& x_TH, const RowMatrix<W>& w_EH, const Executor& executor = {}) {
  using A = gatepro::accumulator_t<X, W>;
  RowMatrix<A> logits_TE = RowMatrix<A>::Constant(x_TH.rows(), w_EH.rows(), A(77));
  auto memory = data::scratch(
      gatepro::gate_logits_workspace_bytes<X, W>(w_EH.rows(), w_EH.cols(), executor.workers()));
  gatepro::gate_logits(gatepro::view(x_TH), gatepro::view(w_EH), gatepro::view(logits_TE), memory,
                       executor);
  return logits_TE;
}

template <class Types>
RowMatrix<typename Types::X> tokens(Index count, Index hidden) {
  return data::random_matrix<typename Types::X>(count, hidden, 1);
}
template <class Types>
RowMatrix<typename Types::W> weights(Index experts, Index hidden) {
  return data::random_matrix<typename Types::W>(experts, hidden, 2);
}

template <class Types>
class GateLogitsTest : public ::testing::Test {};
using AllInputs =
    ::testing::Types<Inputs<float, float>, Inputs<double, double>, Inputs<gatepro::bfloat16, float>,
                     Inputs<gatepro::half, gatepro::bfloat16>, Inputs<float, double>>;
TYPED_TEST_SUITE(GateLogitsTest, AllInputs, InputNames);

/// |logit - exact| <= c sqrt(H) eps |x| |w|. A chain of H roundings of random sign errs by about
/// sqrt(H) / 2 of the largest partial sum, which is below |x| |w|: c = 1 leaves a factor of 2.
constexpr double c = 1;

template <class X, class W, class A>
void expect_close(const RowMatrix<X>& x_TH, const RowMatrix<W>& w_EH,
                  const RowMatrix<A>& logits_TE) {
  const reference::Matrix x = data::to_reference(x_TH), w = data::to_reference(w_EH);
  const reference::Matrix exact_TE = reference::gate_logits(x, w);
  const double scale = c * std::sqrt(static_cast<double>(x_TH.cols())) *
                       static_cast<double>(std::numeric_limits<A>::epsilon());
  const auto norm = [](const std::vector<double>& row) {
    return std::sqrt(std::inner_product(row.begin(), row.end(), row.begin(), 0.0));
  };
  std::vector<double> x_norms, w_norms;
  for (const auto& row : x) x_norms.push_back(norm(row));
  for (const auto& row : w) w_norms.push_back(norm(row));
  for (Index t = 0; t < x_TH.rows(); ++t) {
    for (Index e = 0; e < w_EH.rows(); ++e) {
      const double bound =
          scale * x_norms[static_cast<std::size_t>(t)] * w_norms[static_cast<std::size_t>(e)];
      const double error = static_cast<double>(logits_TE(t, e)) - data::at(exact_TE, t, e);
      ASSERT_LE(std::abs(error), bound)
          << "t " << t << " e " << e << ", E " << w_EH.rows() << " H " << x_TH.cols();
    }
  }
}

TYPED_TEST(GateLogitsTest, MatchesTheReference) {
  // Tiles of 48 tokens, rows of 6, 2 and 1 tokens, panels of 4, 2 and 1 vectors of experts, few
  // experts, blocks of 512 columns: each whole, short and over by one.
  const Index all_experts[] = {1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 60, 64, 65, 96, 160, 257};
  const Index all_hidden[] = {1, 3, 64, 511, 512, 513, 1025};
  const Index all_tokens[] = {1, 2, 3, 5, 6, 7, 47, 48, 49};
  for (Index experts : all_experts) {
    for (Index hidden : all_hidden) {
      if (hidden != 3 && hidden != 513 && experts != 2 && experts != 8 && experts != 17) continue;
      const auto x_TH = tokens<TypeParam>(100, hidden);
      const auto w_EH = weights<TypeParam>(experts, hidden);
      const auto logits_TE = gate(x_TH, w_EH);
      expect_close(x_TH, w_EH, logits_TE);
      // A token's logits do not depend on its company.
      if (hidden != 3 && experts != 17) continue;
      for (Index count : all_tokens) {
        using X = typename TypeParam::X;
        using A = typename TypeParam::A;
        const Index first = count % 3;
        const RowMatrix<X> some_TH = x_TH.middleRows(first, count);
        const RowMatrix<A> expected_TE = logits_TE.middleRows(first, count);
        ASSERT_TRUE(data::same_bits(gate(some_TH, w_EH), expected_TE)) << count;
      }
    }
  }
}

TYPED_TEST(GateLogitsTest, PackedWeightsGiveTheSameBits) {
  using X = typename TypeParam::X;
  using A = typename TypeParam::A;
  const RowMatrix<A> large_EH = data::random_matrix<A>(70, 1030, 3);
  gatepro::PackedWeights<A> packed(gatepro::view(large_EH));  // packed again below
  for (Index experts : {1, 2, 8, 17, 65}) {
    for (Index hidden : {3, 512, 1025}) {
      const auto x_TH = tokens<TypeParam>(53, hidden);
      const auto w_EH = weights<TypeParam>(experts, hidden);
      packed.pack(gatepro::view(w_EH));
      RowMatrix<A> logits_TE(53, experts);
      auto memory = data::scratch(gatepro::gate_logits_workspace_bytes<X, A>(experts, hidden));
      gatepro::gate_logits(gatepro::view(x_TH), packed, gatepro::view(logits_TE), memory);
      EXPECT_TRUE(data::same_bits(logits_TE, gate(x_TH, w_EH))) << experts << " x " << hidden;
    }
  }
}

TYPED_TEST(GateLogitsTest, RowStridesChangeNothing) {
  using X = typename TypeParam::X;
  using W = typename TypeParam::W;
  using A = typename TypeParam::A;
  for (Index experts : {2, 19}) {
    const auto x_TH = tokens<TypeParam>(50, 514);
    const auto w_EH = weights<TypeParam>(experts, 514);
    data::GuardedMatrix<X> x(x_TH, 5);
    data::GuardedMatrix<W> w(w_EH, 3);
    data::GuardedMatrix<A> logits(50, experts, 7);
    auto memory = data::scratch(gatepro::gate_logits_workspace_bytes<X, W>(experts, 514));
    gatepro::gate_logits(x.view(), w.view(), logits.view(), memory);
    EXPECT_TRUE(data::same_bits(logits.values(), gate(x_TH, w_EH)));
    EXPECT_TRUE(logits.intact());
  }
}

TYPED_TEST(GateLogitsTest, ExecutorsGiveTheSameBits) {
  for (Index experts : {2, 70}) {
    const auto x_TH = tokens<TypeParam>(48 * 17 + 5, 70);
    const auto w_EH = weights<TypeParam>(experts, 70);
    const auto expected_TE = gate(x_TH, w_EH);
    for (int workers : {2, 3, 7, 16}) {
      EXPECT_TRUE(data::same_bits(gate(x_TH, w_EH, ThreadExecutor(workers)), expected_TE));
      EXPECT_TRUE(data::same_bits(gate(x_TH, w_EH, LastWorkerFirst(workers)), expected_TE));
    }
  }
}

TYPED_TEST(GateLogitsTest, NoTokensWriteNothing) {
  using X = typename TypeParam::X;
  using A = typename TypeParam::A;
  const auto w_EH = weights<TypeParam>(5, 1025);
  auto memory =
      data::scratch(gatepro::gate_logits_workspace_bytes<X, typename TypeParam::W>(5, 1025));
  EXPECT_NO_THROW(gatepro::gate_logits(MatrixView<const X>(nullptr, 0, 1025), gatepro::view(w_EH),
                                       MatrixView<A>(nullptr, 0, 5), memory));
}

TYPED_TEST(GateLogitsTest, NoColumnsGiveZeros) {
  for (Index experts : {1, 2, 20}) {
    const auto logits_TE = gate(tokens<TypeParam>(7, 0), weights<TypeParam>(experts, 0));
    EXPECT_TRUE((logits_TE.array() == 0).all()) << experts;
    using X = typename TypeParam::X;
    using A = typename TypeParam::A;
    const auto w_EH = weights<TypeParam>(experts, 0);
    const gatepro::PackedWeights<A> packed(gatepro::view(w_EH));
    EXPECT_EQ(packed.num_experts(), experts);
    RowMatrix<A> again_TE = RowMatrix<A>::Constant(7, experts, A(77));
    auto memory = data::scratch(gatepro::gate_logits_workspace_bytes<X, A>(experts, 0));
    gatepro::gate_logits(MatrixView<const X>(nullptr, 7, 0), packed, gatepro::view(again_TE),
                         memory);
    EXPECT_TRUE(data::same_bits(again_TE, logits_TE)) << experts;
  }
}

TEST(PackedWeights, MovedFromIsEmptyAndRefused) {
  const auto w_EH = data::random_matrix<float>(5, 9, 2);
  const auto x_TH = data::random_matrix<float>(7, 9, 1);
  gatepro::PackedWeights<float> first(gatepro::view(w_EH));
  const gatepro::PackedWeights<float> second = std::move(first);
  gatepro::PackedWeights<float> third = second;
  first = std::move(third);
  RowMatrix<float> logits_TE(7, 5);
  auto memory = data::scratch(gatepro::gate_logits_workspace_bytes<float, float>(5, 9));
  EXPECT_EQ(third.num_experts(), 0);
  EXPECT_EQ(third.hidden_size(), 0);
  for (const MatrixView<const float>& x :
       {gatepro::view(x_TH), MatrixView<const float>(nullptr, 7, 0)}) {
    expect_error([&] { gatepro::gate_logits(x, third, gatepro::view(logits_TE), memory); },
                 {"gate_logits", "packed weights that were not moved from"});
  }
  gatepro::gate_logits(gatepro::view(x_TH), first, gatepro::view(logits_TE), memory);
  EXPECT_TRUE(data::same_bits(logits_TE, gate(x_TH, w_EH)));
  third.pack(gatepro::view(w_EH));
  EXPECT_EQ(third.num_experts(), 5);
}

// A row that is not finite spoils the logits that read it, and no others: padding is not read.
TYPED_TEST(GateLogitsTest, NonfiniteValuesStayInTheirRowAndColumn) {
  using X = typename TypeParam::X;
  using W = typename TypeParam::W;
  using A = typename TypeParam::A;
  for (Index experts : {2, 8, 21}) {
    for (Index hidden : {5, 515}) {
      const auto x_TH = tokens<TypeParam>(55, hidden);
      const auto w_EH = weights<TypeParam>(experts, hidden);
      const auto clean_TE = gate(x_TH, w_EH);
      RowMatrix<X> bad_x_TH = x_TH;
      bad_x_TH(6, hidden - 1) = std::numeric_limits<X>::quiet_NaN();
      bad_x_TH(54, 0) = std::numeric_limits<X>::infinity();
      RowMatrix<W> bad_w_EH = w_EH;
      bad_w_EH(1, hidden - 2) = -std::numeric_limits<W>::infinity();
      const auto logits_TE = gate(bad_x_TH, bad_w_EH);
      for (Index t = 0; t < 55; ++t) {
        for (Index e = 0; e < experts; ++e) {
          if (t == 6) {
            ASSERT_TRUE(std::isnan(logits_TE(t, e))) << e;
          } else if (t == 54 || e == 1) {
            ASSERT_FALSE(std::isfinite(logits_TE(t, e))) << t << " " << e;
          } else {
            ASSERT_TRUE(data::same_bits<A>(logits_TE(t, e), clean_TE(t, e))) << t << " " << e;
          }
        }
      }
    }
  }
}

template <class Narrow>
void expect_widened_bits() {
  for (Index experts : {2, 33}) {
    const RowMatrix<Narrow> x_TH = data::random_matrix<Narrow>(51, 530, 3);
    const RowMatrix<Narrow> w_EH = data::random_matrix<Narrow>(experts, 530, 4);
    const RowMatrix<float> wide_x_TH = x_TH.template cast<float>();
    const RowMatrix<float> wide_w_EH = w_EH.template cast<float>();
    const RowMatrix<float> expected_TE = gate(wide_x_TH, wide_w_EH);
    EXPECT_TRUE(data::same_bits(gate(x_TH, w_EH), expected_TE));
    EXPECT_TRUE(data::same_bits(gate(x_TH, wide_w_EH), expected_TE));
    EXPECT_TRUE(data::same_bits(gate(wide_x_TH, w_EH), expected_TE));
  }
}

TEST(GateLogits, SixteenBitInputGivesTheBitsOfItsFloat) {
  expect_widened_bits<gatepro::bfloat16>();
  expect_widened_bits<gatepro::half>();
}

// x and w swap their parts, so that similarity is symmetric to the bit.
TEST(GateLogits, ProductsAreSymmetricToTheBit) {
  for (Index experts : {2, 7, 8, 30}) {
    const RowMatrix<float> w_EH = data::random_matrix<float>(experts, 1030, 5);
    const RowMatrix<float> products_EE = gate(w_EH, w_EH);
    const RowMatrix<float> transposed_EE = products_EE.transpose();
    EXPECT_TRUE(data::same_bits(products_EE, transposed_EE)) << experts;
  }
}

}  // namespace
