// SPDX-License-Identifier: MIT
// Dense probabilities and routing maps, against plain loops, and their gradient.
#include <gatepro/dispatch/dense_routing.hpp>

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "support/bits.hpp"
#include "support/errors.hpp"
#include "support/executors.hpp"
#include "support/ids.hpp"
#include "support/inputs.hpp"
#include "support/reference/matrix.hpp"
#include "support/type_names.hpp"

namespace {

using data::random_matrix;
using gatepro::Choices;
using gatepro::DenseRouting;
using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::strided_view;
using gatepro::StridedView;
using gatepro::view;
using Bytes = RowMatrix<std::uint8_t>;

/// A routing, part of which was dropped, padded or never made.
template <class Id>
struct Routed {
  Routed(Index tokens, Index experts, Index top_k, std::uint64_t seed)
      : ids_TK(data::random_ids<Id>(tokens, experts, top_k, seed)), kept_TK(tokens, top_k) {
    for (Index i = 0; i < kept_TK.size(); ++i) {
      kept_TK.data()[i] = data::random_below(4, seed + 1, std::uint64_t(i)) == 0 ? 0 : 1;
      if (data::random_below(9, seed + 2, std::uint64_t(i)) == 0) ids_TK.data()[i] = Id(-1);
    }
    for (Index t = 0; t < tokens; ++t) padding_T.push_back(t % 7 == 3 ? 1 : 0);
    for (Index t = 3; t < tokens; t += 7) ids_TK.row(t).setConstant(Id(99));  // may be anything
  }
  Choices<const Id> choices() const {
    return {strided_view(ids_TK), padding_T, strided_view(kept_TK)};
  }
  bool counts(Index t, Index j) const {
    return padding_T[std::size_t(t)] == 0 && kept_TK(t, j) != 0 && ids_TK(t, j) != Id(-1);
  }

  RowMatrix<Id> ids_TK;
  Bytes kept_TK;
  std::vector<std::uint8_t> padding_T;
};

/// Dense outputs that start as garbage.
template <class A>
struct Dense {
  Dense(Index tokens, Index experts)
      : probs_TE(RowMatrix<A>::Constant(tokens, experts, A(77))),
        map_TE(Bytes::Constant(tokens, experts, 77)),
        bits_TB(Bytes::Constant(tokens, (experts + 7) / 8, 77)) {}
  DenseRouting<A> view() { return {probs_TE, map_TE, bits_TB}; }
  bool operator==(const Dense& other) const {
    return data::same_bits(probs_TE, other.probs_TE) && map_TE == other.map_TE &&
           bits_TB == other.bits_TB;
  }

  RowMatrix<A> probs_TE;
  Bytes map_TE, bits_TB;
};

template <class Id, class A>
Dense<A> reference(const Routed<Id>& routed, const RowMatrix<A>& weights_TK, Index experts) {
  const Index tokens = weights_TK.rows();
  Dense<A> want(tokens, experts);
  want.probs_TE.setZero();
  want.map_TE.setZero();
  want.bits_TB.setZero();
  for (Index t = 0; t < tokens; ++t) {
    for (Index j = 0; j < weights_TK.cols(); ++j) {
      if (!routed.counts(t, j)) continue;
      const auto e = static_cast<Index>(routed.ids_TK(t, j));
      want.probs_TE(t, e) = weights_TK(t, j);
      want.map_TE(t, e) = 1;
      want.bits_TB(t, e / 8) = std::uint8_t(want.bits_TB(t, e / 8) + (1 << (e % 8)));
    }
  }
  return want;
}

template <class Id>
class DenseRoutingTest : public testing::Test {};
using IdTypes = testing::Types<std::int32_t, std::int64_t, std::uint64_t>;
TYPED_TEST_SUITE(DenseRoutingTest, IdTypes, TypeNames);

TYPED_TEST(DenseRoutingTest, IsWhatTheChoicesSay) {
  for (const Index experts : {1, 3, 8, 9, 70}) {
    const Index top_k = experts == 1 ? 1 : 3;
    for (const Index tokens : {0, 1, 60, 300}) {
      const Routed<TypeParam> routed(tokens, experts, top_k, std::uint64_t(experts + tokens));
      RowMatrix<double> weights = random_matrix<double>(tokens, top_k, 5);
      if (tokens > 1) weights(0, 0) = 0;  // chosen, though it weighs nothing
      Dense<double> got(tokens, experts);
      gatepro::dense_routing(routed.choices(), experts, weights, got.view());
      EXPECT_TRUE(got == reference(routed, weights, experts)) << experts << ", " << tokens;
      Dense<double> threaded(tokens, experts);
      gatepro::dense_routing(routed.choices(), experts, weights, threaded.view(),
                             ThreadExecutor(3));
      EXPECT_TRUE(threaded == got);
    }
  }
}

TYPED_TEST(DenseRoutingTest, EveryOutputIsOptional) {
  const Routed<TypeParam> routed(50, 12, 2, 1);
  const auto weights = random_matrix<float>(50, 2, 2);
  const auto want = reference(routed, weights, 12);
  for (const int wanted : {0, 1, 2}) {
    Dense<float> got(50, 12);
    const Dense<float> untouched = got;
    DenseRouting<float> out;
    if (wanted == 0) out.probs_TE = got.probs_TE;
    if (wanted == 1) out.routing_map_TE = got.map_TE;
    if (wanted == 2) out.routing_bits_TB = got.bits_TB;
    gatepro::dense_routing(routed.choices(), 12, weights, out);
    EXPECT_EQ(got.probs_TE, wanted == 0 ? want.probs_TE : untouched.probs_TE);
    EXPECT_EQ(got.map_TE, wanted == 1 ? want.map_TE : untouched.map_TE);
    EXPECT_EQ(got.bits_TB, wanted == 2 ? want.bits_TB : untouched.bits_TB);
  }
}

// The loss is the sum of probs times dprobs.
TYPED_TEST(DenseRoutingTest, GradientAgainstFiniteDifferences) {
  constexpr Index tokens = 15, experts = 11, top_k = 3;
  const Routed<TypeParam> routed(tokens, experts, top_k, 3);
  RowMatrix<double> weights = random_matrix<double>(tokens, top_k, 4);
  RowMatrix<double> dprobs = random_matrix<double>(tokens, experts, 5);
  const auto start = random_matrix<double>(tokens, top_k, 6);
  RowMatrix<double> dweights = start;
  gatepro::dense_routing_backward(routed.choices(), dprobs, strided_view(dweights));
  for (Index i = 0; i < weights.size(); ++i) {
    const double kept = weights.data()[i];
    const double slope = reference::derivative(
        [&](double step) {
          weights.data()[i] = kept + step;
          Dense<double> dense(tokens, experts);
          gatepro::dense_routing(routed.choices(), experts, weights, dense.view());
          weights.data()[i] = kept;
          return dense.probs_TE.cwiseProduct(dprobs).sum();
        },
        1e-3);
    EXPECT_NEAR(dweights.data()[i] - start.data()[i], slope, 1e-9);
  }
}

TYPED_TEST(DenseRoutingTest, BadInputWritesNothing) {
  constexpr Index tokens = 4, experts = 9, top_k = 2;
  RowMatrix<TypeParam> ids(tokens, top_k);
  ids << 0, 1, 2, 3, 4, 5, 8, 0;
  const auto weights = random_matrix<float>(tokens, top_k, 1);
  Dense<float> dense(tokens, experts);
  const Dense<float> untouched = dense;
  using Parts = std::initializer_list<const char*>;
  const auto refused = [&](Index num_experts, StridedView<const float> given,
                           const DenseRouting<float>& out, Parts parts) {
    expect_error(
        [&] {
          gatepro::dense_routing(Choices{StridedView<const TypeParam>(strided_view(ids))},
                                 num_experts, given, out);
        },
        parts);
    EXPECT_TRUE(dense == untouched);
  };
  const auto good = strided_view(weights);
  refused(0, good, {}, {"dense_routing", "num_experts=0"});
  refused(1, good, {}, {"dense_routing", "top_k=2"});
  refused(8, good, {}, {"expert_ids_TK", "id=8", "row=3", "column=0"});
  refused(experts, good.middle_rows(0, 3), dense.view(), {"weights_TK", "rows=3"});
  auto out = dense.view();
  out.probs_TE.cols = 8;
  refused(experts, good, out, {"probs_TE", "cols=8", "cols needed=9"});
  out = dense.view();
  out.routing_map_TE.rows = 3;
  refused(experts, good, out, {"routing_map_TE", "rows=3"});
  out = dense.view();
  out.routing_bits_TB.cols = 1;
  refused(experts, good, out, {"routing_bits_TB", "cols=1", "cols needed=2"});
  out = dense.view();
  out.routing_bits_TB = out.routing_map_TE.middle_cols(3, 2);
  refused(experts, good, out, {"routing_map_TE and routing_bits_TB overlap"});
  ids(1, 1) = ids(1, 0);
  refused(experts, good, dense.view(), {"distinct ids", "id=2", "row=1", "column=1"});

  RowMatrix<float> dweights = random_matrix<float>(tokens, top_k, 2);
  const auto before = dweights;
  ids(1, 1) = 9;
  expect_error(
      [&] {
        gatepro::dense_routing_backward(Choices{strided_view(ids)}, dense.probs_TE,
                                        strided_view(dweights));
      },
      {"dense_routing_backward", "expert_ids_TK", "id=9", "row=1"});
  ids(1, 1) = 3;
  expect_error(
      [&] {
        gatepro::dense_routing_backward(Choices{strided_view(ids)},
                                        view(dense.probs_TE).middle_rows(0, 3),
                                        strided_view(dweights));
      },
      {"dense_routing_backward", "dprobs_TE", "rows=3"});
  EXPECT_EQ(dweights, before);
}

}  // namespace
