// SPDX-License-Identifier: MIT
// Gradients of the logits to X and W: against the double reference and finite differences, and the
// same bits however the work is cut.
#include <gatepro/gate/gradient.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "gatepro/gate/logits.hpp"
#include "support/bits.hpp"
#include "support/executors.hpp"
#include "support/ids.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::ExpertRange;
using gatepro::Index;
using gatepro::MatrixView;
using gatepro::RowMatrix;
using gatepro::SerialExecutor;
using gatepro::StridedView;

/// A problem with X and W of one type. An empty dlogits_TE stands for none.
template <class Input, class Id = std::int32_t>
struct Problem {
  using A = gatepro::accumulator_t<Input>;

  RowMatrix<Id> ids_TK;
  RowMatrix<A> dselected_TK;
  RowMatrix<A> dlogits_TE;
  RowMatrix<Input> x_TH;
  RowMatrix<Input> w_EH;
  RowMatrix<A> dx_start_TH;
  RowMatrix<A> dw_start_EH;

  MatrixView<const A> dense() const {
    return dlogits_TE.size() == 0 ? MatrixView<const A>() : MatrixView<const A>(dlogits_TE);
  }
};

template <class Input, class Id = std::int32_t>
Problem<Input, Id> make_problem(Index tokens, Index experts, Index k, Index hidden, bool dense) {
  using A = gatepro::accumulator_t<Input>;
  Problem<Input, Id> p;
  p.ids_TK = data::random_ids<Id>(tokens, experts, k, 1);
  p.dselected_TK = data::random_matrix<A>(tokens, k, 2);
  if (dense) p.dlogits_TE = data::random_matrix<A>(tokens, experts, 3);
  p.x_TH = data::random_matrix<Input>(tokens, hidden, 4);
  p.w_EH = data::random_matrix<Input>(experts, hidden, 5);
  p.dx_start_TH = data::random_matrix<A>(tokens, hidden, 6);
  p.dw_start_EH = data::random_matrix<A>(experts, hidden, 7);
  return p;
}

template <class Input, class Id, class Executor = SerialExecutor>
auto to_tokens(const Problem<Input, Id>& p, const Executor& executor = {}) {
  using A = typename Problem<Input, Id>::A;
  RowMatrix<A> dx_TH = p.dx_start_TH;
  auto memory = data::scratch(
      gatepro::gate_backward_tokens_workspace_bytes<A>(p.w_EH.rows(), executor.workers()));
  gatepro::gate_backward_tokens(gatepro::Choices{gatepro::strided_view(p.ids_TK)},
                                {gatepro::strided_view(p.dselected_TK), p.dense()},
                                gatepro::view(p.w_EH), gatepro::view(dx_TH), memory, executor);
  return dx_TH;
}

template <class Input, class Id, class Executor = SerialExecutor>
auto to_weights(const Problem<Input, Id>& p, const Executor& executor = {}) {
  using A = typename Problem<Input, Id>::A;
  RowMatrix<A> dw_EH = p.dw_start_EH;
  auto memory = data::scratch(gatepro::gate_backward_weights_workspace_bytes<A>(
      p.x_TH.rows(), p.w_EH.rows(), p.ids_TK.cols(), executor.workers()));
  gatepro::gate_backward_weights(gatepro::Choices{gatepro::strided_view(p.ids_TK)},
                                 {gatepro::strided_view(p.dselected_TK), p.dense()},
                                 gatepro::view(p.x_TH), gatepro::view(dw_EH), memory, executor);
  return dw_EH;
}

/// A chain of n additions of products errs by at most (n + 1) eps of the sum of their magnitudes,
/// for any order of the first 1 / eps of them.
template <class A>
void expect_close(const RowMatrix<A>& got, const RowMatrix<double>& want,
                  const RowMatrix<double>& magnitude, Index chain) {
  const double eps = static_cast<double>(std::numeric_limits<A>::epsilon());
  for (Index r = 0; r < got.rows(); ++r) {
    for (Index c = 0; c < got.cols(); ++c) {
      ASSERT_LE(std::abs(static_cast<double>(got(r, c)) - want(r, c)),
                static_cast<double>(chain + 2) * eps * magnitude(r, c))
          << r << ", " << c;
    }
  }
}

template <class Input, class Id>
void expect_reference(const Problem<Input, Id>& p) {
  const Index tokens = p.x_TH.rows(), experts = p.w_EH.rows();
  RowMatrix<double> dlogits_TE = RowMatrix<double>::Zero(tokens, experts);
  if (p.dlogits_TE.size() != 0) dlogits_TE = p.dlogits_TE.template cast<double>();
  RowMatrix<double> magnitude_TE = dlogits_TE.cwiseAbs();
  for (Index t = 0; t < tokens; ++t) {
    for (Index j = 0; j < p.ids_TK.cols(); ++j) {
      const double g = static_cast<double>(p.dselected_TK(t, j));
      dlogits_TE(t, static_cast<Index>(p.ids_TK(t, j))) += g;
      magnitude_TE(t, static_cast<Index>(p.ids_TK(t, j))) += std::abs(g);
    }
  }
  const RowMatrix<double> x = p.x_TH.template cast<double>(), w = p.w_EH.template cast<double>();
  const RowMatrix<double> dx = p.dx_start_TH.template cast<double>();
  const RowMatrix<double> dw = p.dw_start_EH.template cast<double>();
  expect_close(to_tokens(p), dx + dlogits_TE * w, dx.cwiseAbs() + magnitude_TE * w.cwiseAbs(),
               experts);
  expect_close(to_weights(p), dw + dlogits_TE.transpose() * x,
               dw.cwiseAbs() + magnitude_TE.transpose() * x.cwiseAbs(), tokens);
}

template <class Input>
class GateBackwardTest : public ::testing::Test {};
using AllInputs = ::testing::Types<float, double, gatepro::bfloat16, gatepro::half>;
TYPED_TEST_SUITE(GateBackwardTest, AllInputs, TypeNames);

// Shapes on both sides of a vector, a panel, a slice, several slices of columns, a chunk of 256
// tokens, a depth block of 512 experts, and of the choice whether to copy a slice of W (from 2 E
// gradients in a block of tokens on).
TYPED_TEST(GateBackwardTest, MatchesTheReference) {
  struct Shape {
    Index tokens, experts, k, hidden;
  };
  for (const Shape& s :
       {Shape{1, 1, 1, 1}, Shape{3, 2, 2, 5}, Shape{7, 40, 1, 130}, Shape{19, 5, 5, 33},
        Shape{255, 3, 1, 64}, Shape{300, 9, 2, 129}, Shape{515, 17, 3, 17}, Shape{5, 300, 8, 260},
        Shape{270, 530, 2, 70}, Shape{50, 6, 2, 1100}}) {
    for (bool dense : {false, true}) {
      SCOPED_TRACE(testing::Message() << s.tokens << " tokens, E " << s.experts << ", K " << s.k
                                      << ", H " << s.hidden << ", dense " << dense);
      expect_reference(make_problem<TypeParam>(s.tokens, s.experts, s.k, s.hidden, dense));
    }
  }
}

// The start counts as the first link of the chain: -0.0 stays where nothing is added.
TYPED_TEST(GateBackwardTest, AddsToWhatIsThere) {
  using A = gatepro::accumulator_t<TypeParam>;
  auto p = make_problem<TypeParam>(4, 6, 1, 37, false);
  p.ids_TK.setConstant(2);
  p.dw_start_EH.setConstant(A(-0.0));
  p.dw_start_EH.row(5).setConstant(data::marked_nan<A>());
  RowMatrix<A> dw_EH = to_weights(p);
  for (Index e : {0, 1, 3, 4, 5}) {
    const RowMatrix<A> row = dw_EH.row(e), start = p.dw_start_EH.row(e);
    EXPECT_TRUE(data::same_bits(row, start)) << e;
  }
  EXPECT_FALSE((dw_EH.row(2).array() == 0).all());

  // Twice the same is one call after the other.
  const RowMatrix<A> once_TH = to_tokens(p);
  p.dx_start_TH = once_TH;
  const RowMatrix<A> twice_TH = to_tokens(p);
  EXPECT_GT((twice_TH - once_TH).norm(), 0);
}

TYPED_TEST(GateBackwardTest, ZeroGradientsSkipTheirRows) {
  using A = gatepro::accumulator_t<TypeParam>;
  const TypeParam nan = std::numeric_limits<TypeParam>::quiet_NaN();
  for (Index tokens : {5, 300}) {
    for (bool dense : {false, true}) {
      auto p = make_problem<TypeParam>(tokens, 6, 2, 70, dense);
      for (Index t = 0; t < tokens; ++t) {
        if (t % 3 == 1) {
          p.dselected_TK.row(t) << A(0), A(-0.0);
          if (dense) p.dlogits_TE.row(t).setZero();
        }
      }
      auto clean = p, poisoned = p;
      for (Index t = 0; t < tokens; ++t) {
        if (t % 3 != 1) continue;
        clean.x_TH.row(t).setZero();
        poisoned.x_TH.row(t).setConstant(nan);
      }
      const RowMatrix<A> dw_EH = to_weights(poisoned);
      EXPECT_TRUE(data::same_bits(dw_EH, to_weights(clean)));
      EXPECT_TRUE(dw_EH.allFinite());
      for (Index t = 1; t < tokens; t += 3) {
        const RowMatrix<A> row = to_tokens(p).row(t), start = p.dx_start_TH.row(t);
        EXPECT_TRUE(data::same_bits(row, start)) << t;
      }
      if (dense) continue;
      // Likewise W: nothing but zeros comes from expert 4.
      for (Index t = 0; t < tokens; ++t) {
        for (Index j = 0; j < 2; ++j) {
          if (p.ids_TK(t, j) == 4) p.dselected_TK(t, j) = A(-0.0);
        }
      }
      clean = p;
      poisoned = p;
      clean.w_EH.row(4).setZero();
      poisoned.w_EH.row(4).setConstant(nan);
      const RowMatrix<A> dx_TH = to_tokens(poisoned);
      EXPECT_TRUE(data::same_bits(dx_TH, to_tokens(clean)));
      EXPECT_TRUE(dx_TH.allFinite());
    }
  }
}

// -1 is no expert: whatever its gradient is, it adds nothing.
TYPED_TEST(GateBackwardTest, NoExpertAddsNothing) {
  using Input = TypeParam;
  for (const bool dense : {false, true}) {
    auto p = make_problem<Input>(300, 9, 3, 40, dense);
    auto without = p;
    for (Index t = 0; t < 300; t += 2) {
      without.dselected_TK(t, 1) = 0;
      p.dselected_TK(t, 1) = std::numeric_limits<typename Problem<Input>::A>::quiet_NaN();
      p.ids_TK(t, 1) = -1;
    }
    EXPECT_TRUE(data::same_bits(to_tokens(p), to_tokens(without)));
    EXPECT_TRUE(data::same_bits(to_weights(p), to_weights(without)));
  }
}

// A gradient that is not finite reaches its token and its expert, no others.
TYPED_TEST(GateBackwardTest, NonfiniteGradientsStayInTheirRow) {
  using A = gatepro::accumulator_t<TypeParam>;
  for (bool dense : {false, true}) {
    const auto clean = make_problem<TypeParam>(40, 7, 2, 20, dense);
    auto p = clean;
    p.dselected_TK(11, 0) = data::marked_nan<A>();
    const Index expert = p.ids_TK(11, 0);
    const RowMatrix<A> dx_TH = to_tokens(p), clean_dx_TH = to_tokens(clean);
    const RowMatrix<A> dw_EH = to_weights(p), clean_dw_EH = to_weights(clean);
    for (Index h = 0; h < 20; ++h) {
      for (Index t = 0; t < 40; ++t) {
        EXPECT_TRUE(t == 11 ? std::isnan(dx_TH(t, h)) : dx_TH(t, h) == clean_dx_TH(t, h));
      }
      for (Index e = 0; e < 7; ++e) {
        EXPECT_TRUE(e == expert ? std::isnan(dw_EH(e, h)) : dw_EH(e, h) == clean_dw_EH(e, h));
      }
    }
  }
}

/// The rows of `all` whose tokens are not masked.
template <class T>
RowMatrix<T> unmasked_rows(const RowMatrix<T>& all, const std::vector<std::uint8_t>& mask) {
  RowMatrix<T> some(all.rows(), all.cols());
  Index count = 0;
  for (Index t = 0; t < all.rows(); ++t) {
    if (mask[static_cast<std::size_t>(t)] == 0) some.row(count++) = all.row(t);
  }
  return some.topRows(count);
}

// What padding holds adds nothing, whatever it is; what was dropped after the gate does add.
TYPED_TEST(GateBackwardTest, PaddingAddsNothingAndDropsDo) {
  using A = gatepro::accumulator_t<TypeParam>;
  constexpr Index tokens = 300, experts = 9, k = 2, hidden = 40;
  for (bool dense : {false, true}) {
    auto p = make_problem<TypeParam>(tokens, experts, k, hidden, dense);
    std::vector<std::uint8_t> mask(tokens, 0);
    for (std::size_t t = 0; t < mask.size(); ++t) mask[t] = t % 3 == 1 ? 255 : 0;
    auto valid = p;
    for (auto* rows : {&valid.dselected_TK, &valid.dlogits_TE, &valid.dx_start_TH}) {
      if (rows->size() != 0) *rows = unmasked_rows(*rows, mask);
    }
    valid.ids_TK = unmasked_rows(valid.ids_TK, mask);
    valid.x_TH = unmasked_rows(valid.x_TH, mask);
    for (Index t = 1; t < tokens; t += 3) {
      p.ids_TK.row(t).setConstant(1000);
      p.dselected_TK.row(t).setConstant(data::marked_nan<A>());
      if (dense) p.dlogits_TE.row(t).setConstant(data::marked_nan<A>());
    }
    const RowMatrix<std::uint8_t> kept_TK = RowMatrix<std::uint8_t>::Zero(tokens, k);
    const gatepro::Choices choices{gatepro::strided_view(p.ids_TK), mask,
                                   gatepro::strided_view(kept_TK)};
    const gatepro::LogitGradients<A> gradients{gatepro::strided_view(p.dselected_TK), p.dense()};
    auto memory = data::scratch(
        std::max(gatepro::gate_backward_tokens_workspace_bytes<A>(experts),
                 gatepro::gate_backward_weights_workspace_bytes<A>(tokens, experts, k)));
    RowMatrix<A> dx_TH = p.dx_start_TH, dw_EH = p.dw_start_EH;
    gatepro::gate_backward_tokens(choices, gradients, gatepro::view(p.w_EH), gatepro::view(dx_TH),
                                  memory);
    gatepro::gate_backward_weights(choices, gradients, gatepro::view(p.x_TH), gatepro::view(dw_EH),
                                   memory);
    EXPECT_TRUE(data::same_bits(unmasked_rows(dx_TH, mask), to_tokens(valid)));
    EXPECT_TRUE(data::same_bits(dw_EH, to_weights(valid)));
    for (Index t = 1; t < tokens; t += 3) {
      const RowMatrix<A> row = dx_TH.row(t), start = p.dx_start_TH.row(t);
      ASSERT_TRUE(data::same_bits(row, start)) << t;
    }
  }
}

/// dX in ranges of tokens and dW in ranges of tokens, then experts, then columns.
template <class Input, class Id>
void expect_cuts_give_the_same_bits(const Problem<Input, Id>& p) {
  using A = typename Problem<Input, Id>::A;
  const Index tokens = p.x_TH.rows(), experts = p.w_EH.rows(), hidden = p.x_TH.cols();
  const Index k = p.ids_TK.cols();
  const auto ids = gatepro::strided_view(p.ids_TK);
  const auto dselected = gatepro::strided_view(p.dselected_TK);
  auto memory = data::scratch(
      std::max(gatepro::gate_backward_tokens_workspace_bytes<A>(experts),
               gatepro::gate_backward_weights_workspace_bytes<A>(tokens, experts, k)));

  RowMatrix<A> dx_TH = p.dx_start_TH, dw_EH = p.dw_start_EH;
  for (Index first = 0, count = 1; first < tokens; first += count, count = 3 * count + 1) {
    const Index rows = std::min(count, tokens - first);
    gatepro::gate_backward_tokens(
        gatepro::Choices{ids.middle_rows(first, rows)},
        {dselected.middle_rows(first, rows), p.dense().middle_rows(first, rows)},
        gatepro::view(p.w_EH), gatepro::view(dx_TH).middle_rows(first, rows), memory);
    gatepro::gate_backward_weights(
        gatepro::Choices{ids.middle_rows(first, rows)},
        {dselected.middle_rows(first, rows), p.dense().middle_rows(first, rows)},
        gatepro::view(p.x_TH).middle_rows(first, rows), gatepro::view(dw_EH), memory);
  }
  const RowMatrix<A> want_dw_EH = to_weights(p);
  EXPECT_TRUE(data::same_bits(dx_TH, to_tokens(p)));
  EXPECT_TRUE(data::same_bits(dw_EH, want_dw_EH));

  dw_EH = p.dw_start_EH;
  for (Index e = 0; e < experts; e += 2) {
    gatepro::gate_backward_weights(
        gatepro::Choices{ids}, {dselected, p.dense()}, gatepro::view(p.x_TH), gatepro::view(dw_EH),
        memory, gatepro::SerialExecutor{}, ExpertRange{e, std::min(e + 2, experts)});
    // The experts to come are untouched.
    for (Index later = e + 2; later < experts; ++later) {
      const RowMatrix<A> row = dw_EH.row(later), start = p.dw_start_EH.row(later);
      ASSERT_TRUE(data::same_bits(row, start));
    }
  }
  EXPECT_TRUE(data::same_bits(dw_EH, want_dw_EH));
  gatepro::gate_backward_weights(gatepro::Choices{ids}, {dselected, p.dense()},
                                 gatepro::view(p.x_TH), gatepro::view(dw_EH), memory,
                                 gatepro::SerialExecutor{}, ExpertRange{1, 1});
  EXPECT_TRUE(data::same_bits(dw_EH, want_dw_EH));

  dw_EH = p.dw_start_EH;
  for (Index first = 0, count = 1; first < hidden; first += count, count += 12) {
    const Index cols = std::min(count, hidden - first);
    gatepro::gate_backward_weights(gatepro::Choices{ids}, {dselected, p.dense()},
                                   gatepro::view(p.x_TH).middle_cols(first, cols),
                                   gatepro::view(dw_EH).middle_cols(first, cols), memory);
  }
  EXPECT_TRUE(data::same_bits(dw_EH, want_dw_EH));
}

TYPED_TEST(GateBackwardTest, CutsGiveTheSameBits) {
  for (bool dense : {false, true}) {
    expect_cuts_give_the_same_bits(make_problem<TypeParam>(300, 5, 2, 141, dense));
    expect_cuts_give_the_same_bits(make_problem<TypeParam>(600, 33, 3, 20, dense));
  }
}

TYPED_TEST(GateBackwardTest, ExecutorsGiveTheSameBits) {
  for (bool dense : {false, true}) {
    // Blocks of 256 tokens and slices of at most 128 columns: some of each for every worker.
    const auto p = make_problem<TypeParam>(256 * 4 + 1, 6, 2, 130, dense);
    const auto dx_TH = to_tokens(p);
    const auto dw_EH = to_weights(p);
    for (int workers : {2, 5}) {
      EXPECT_TRUE(data::same_bits(to_tokens(p, ThreadExecutor(workers)), dx_TH));
      EXPECT_TRUE(data::same_bits(to_weights(p, ThreadExecutor(workers)), dw_EH));
      EXPECT_TRUE(data::same_bits(to_tokens(p, LastWorkerFirst(workers)), dx_TH));
      EXPECT_TRUE(data::same_bits(to_weights(p, LastWorkerFirst(workers)), dw_EH));
    }
  }
}

// Whether a slice of W is copied depends on how many gradients a block has; the bits do not.
TYPED_TEST(GateBackwardTest, CompanyDoesNotChangeATokensBits) {
  using A = gatepro::accumulator_t<TypeParam>;
  const auto p = make_problem<TypeParam>(40, 6, 2, 300, false);
  const RowMatrix<A> together_TH = to_tokens(p);
  for (Index t = 0; t < 40; ++t) {
    auto alone = p;
    alone.ids_TK = p.ids_TK.row(t);
    alone.dselected_TK = p.dselected_TK.row(t);
    alone.dx_start_TH = p.dx_start_TH.row(t);
    const RowMatrix<A> row = together_TH.row(t);
    ASSERT_TRUE(data::same_bits(to_tokens(alone), row));
  }
}

TYPED_TEST(GateBackwardTest, SixteenBitInputGivesTheBitsOfItsFloat) {
  using A = gatepro::accumulator_t<TypeParam>;
  for (bool dense : {false, true}) {
    const auto p = make_problem<TypeParam>(70, 9, 2, 45, dense);
    Problem<A> wide;
    wide.ids_TK = p.ids_TK;
    wide.dselected_TK = p.dselected_TK;
    wide.dlogits_TE = p.dlogits_TE;
    wide.x_TH = p.x_TH.template cast<A>();
    wide.w_EH = p.w_EH.template cast<A>();
    wide.dx_start_TH = p.dx_start_TH;
    wide.dw_start_EH = p.dw_start_EH;
    EXPECT_TRUE(data::same_bits(to_tokens(p), to_tokens(wide)));
    EXPECT_TRUE(data::same_bits(to_weights(p), to_weights(wide)));
  }
}

TYPED_TEST(GateBackwardTest, NoTokensAddNothing) {
  using A = gatepro::accumulator_t<TypeParam>;
  const auto p = make_problem<TypeParam>(1, 3, 2, 1025, false);
  RowMatrix<A> dw_EH = p.dw_start_EH;
  auto memory = data::scratch(std::max(gatepro::gate_backward_tokens_workspace_bytes<A>(3),
                                       gatepro::gate_backward_weights_workspace_bytes<A>(0, 3, 2)));
  const StridedView<const std::int32_t> no_ids(nullptr, 0, 2);
  const StridedView<const A> no_gradients(nullptr, 0, 2);
  gatepro::gate_backward_weights(gatepro::Choices{no_ids}, {no_gradients},
                                 MatrixView<const TypeParam>(nullptr, 0, 1025),
                                 gatepro::view(dw_EH), memory);
  EXPECT_TRUE(data::same_bits(dw_EH, p.dw_start_EH));
  EXPECT_NO_THROW(gatepro::gate_backward_tokens(gatepro::Choices{no_ids}, {no_gradients},
                                                gatepro::view(p.w_EH),
                                                MatrixView<A>(nullptr, 0, 1025), memory));
}

template <class Id>
class GateBackwardIdTest : public ::testing::Test {};
using IdTypes = ::testing::Types<std::int64_t, std::uint64_t>;
TYPED_TEST_SUITE(GateBackwardIdTest, IdTypes, TypeNames);

TYPED_TEST(GateBackwardIdTest, EveryIdTypeAndLayoutGivesTheSameBits) {
  for (bool dense : {false, true}) {
    const auto p = make_problem<float>(290, 7, 3, 21, dense);
    const Eigen::Matrix<TypeParam, Eigen::Dynamic, Eigen::Dynamic> planes =
        p.ids_TK.template cast<TypeParam>();
    const Eigen::MatrixXf dselected = p.dselected_TK;
    data::GuardedMatrix<float> x(p.x_TH, 3), w(p.w_EH, 5), dx(p.dx_start_TH, 7);
    data::GuardedMatrix<float> dw(p.dw_start_EH, 9);
    data::GuardedMatrix<float> dlogits(dense ? p.dlogits_TE : RowMatrix<float>::Zero(290, 7), 2);
    const MatrixView<const float> dense_view =
        dense ? MatrixView<const float>(dlogits.view()) : MatrixView<const float>();
    auto memory =
        data::scratch(std::max(gatepro::gate_backward_tokens_workspace_bytes<float>(7),
                               gatepro::gate_backward_weights_workspace_bytes<float>(290, 7, 3)));
    gatepro::gate_backward_tokens(gatepro::Choices{gatepro::strided_view(planes)},
                                  {gatepro::strided_view(dselected), dense_view}, w.view(),
                                  dx.view(), memory);
    gatepro::gate_backward_weights(gatepro::Choices{gatepro::strided_view(planes)},
                                   {gatepro::strided_view(dselected), dense_view}, x.view(),
                                   dw.view(), memory);
    EXPECT_TRUE(data::same_bits(dx.values(), to_tokens(p)));
    EXPECT_TRUE(data::same_bits(dw.values(), to_weights(p)));
    EXPECT_TRUE(dx.intact() && dw.intact());
  }
}

// In double, with loss = sum of the gradients given times the logits that gate_logits makes.
TEST(GateBackward, AgreesWithFiniteDifferences) {
  for (bool dense : {false, true}) {
    auto p = make_problem<double>(5, 4, 2, 6, dense);
    p.dx_start_TH.setZero();
    p.dw_start_EH.setZero();
    const auto loss = [&](const RowMatrix<double>& x_TH, const RowMatrix<double>& w_EH) {
      RowMatrix<double> logits_TE(5, 4);
      auto memory = data::scratch(gatepro::gate_logits_workspace_bytes<double, double>(4, 6));
      gatepro::gate_logits(gatepro::view(x_TH), gatepro::view(w_EH), gatepro::view(logits_TE),
                           memory);
      double sum = dense ? p.dlogits_TE.cwiseProduct(logits_TE).sum() : 0;
      for (Index t = 0; t < 5; ++t) {
        for (Index j = 0; j < 2; ++j) sum += p.dselected_TK(t, j) * logits_TE(t, p.ids_TK(t, j));
      }
      return sum;
    };
    const double step = 1e-3;  // the loss is linear in either: no error but rounding
    const auto expect_slopes = [&](RowMatrix<double>& parameters,
                                   const RowMatrix<double>& gradient) {
      for (Index i = 0; i < parameters.size(); ++i) {
        const double value = parameters.data()[i];
        parameters.data()[i] = value + step;
        const double up = loss(p.x_TH, p.w_EH);
        parameters.data()[i] = value - step;
        const double down = loss(p.x_TH, p.w_EH);
        parameters.data()[i] = value;
        EXPECT_NEAR(gradient.data()[i], (up - down) / (2 * step), 1e-9);
      }
    };
    const RowMatrix<double> dx_TH = to_tokens(p), dw_EH = to_weights(p);
    expect_slopes(p.x_TH, dx_TH);
    expect_slopes(p.w_EH, dw_EH);
  }
}

// Float X with double W and the reverse: the accumulator is double.
TEST(GateBackward, TypesOfXAndWMayDifferFromTheGradients) {
  const auto p = make_problem<double>(30, 5, 2, 40, true);
  const RowMatrix<float> x_TH = p.x_TH.cast<float>(), w_EH = p.w_EH.cast<float>();
  auto wide = p;
  wide.x_TH = x_TH.cast<double>();
  wide.w_EH = w_EH.cast<double>();
  RowMatrix<double> dx_TH = p.dx_start_TH, dw_EH = p.dw_start_EH;
  auto memory =
      data::scratch(std::max(gatepro::gate_backward_tokens_workspace_bytes<double>(5),
                             gatepro::gate_backward_weights_workspace_bytes<double>(30, 5, 2)));
  gatepro::gate_backward_tokens(gatepro::Choices{gatepro::strided_view(p.ids_TK)},
                                {gatepro::strided_view(p.dselected_TK), p.dense()},
                                gatepro::view(w_EH), gatepro::view(dx_TH), memory);
  gatepro::gate_backward_weights(gatepro::Choices{gatepro::strided_view(p.ids_TK)},
                                 {gatepro::strided_view(p.dselected_TK), p.dense()},
                                 gatepro::view(x_TH), gatepro::view(dw_EH), memory);
  EXPECT_TRUE(data::same_bits(dx_TH, to_tokens(wide)));
  EXPECT_TRUE(data::same_bits(dw_EH, to_weights(wide)));
}

// Without columns there is no gradient to write, and nothing to trip over.
TEST(GateBackward, NoColumns) {
  for (const bool dense : {false, true}) {
    const auto p = make_problem<float>(30, 5, 2, 0, dense);
    EXPECT_EQ(to_tokens(p).size(), 0);
    EXPECT_EQ(to_weights(p).size(), 0);
  }
}

}  // namespace
