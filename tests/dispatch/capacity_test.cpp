// SPDX-License-Identifier: MIT
// Capacity: exact slot counts, the three drop orders against a brute-force sort, renormalisation
// and the gradients of both.
#include <gatepro/dispatch/capacity.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

#include "support/bits.hpp"
#include "support/conversions.hpp"
#include "support/executors.hpp"
#include "support/ids.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/reference/drops.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::CapacityRule;
using gatepro::DropPolicy;
using gatepro::DropReport;
using gatepro::expert_capacity;
using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::strided_view;
using gatepro::StridedView;
using gatepro::VectorView;
using gatepro::Workspace;
using Counts = std::vector<std::int64_t>;
using Bytes = RowMatrix<std::uint8_t>;
using Mask = std::vector<std::uint8_t>;

constexpr DropPolicy policies[] = {DropPolicy::probability, DropPolicy::position,
                                   DropPolicy::choice_major};

// ---- expert_capacity ----------------------------------------------------------------------------

TEST(ExpertCapacity, RoundsTheExactProductUp) {
  for (Index percent : {1, 7, 50, 99, 100, 101, 110, 115, 125, 130, 200, 333, 1000}) {
    CapacityRule rule;
    rule.factor = static_cast<double>(percent) / 100;
    for (Index tokens = 0; tokens < 200; ++tokens) {
      for (Index experts : {1, 3, 7, 8, 64, 100}) {
        for (Index top_k : {Index{1}, std::min<Index>(experts, 3), experts}) {
          const Index exact = (percent * tokens * top_k + 100 * experts - 1) / (100 * experts);
          ASSERT_EQ(expert_capacity(tokens, experts, top_k, rule), std::min(exact, tokens))
              << percent << "% of " << tokens << " * " << top_k << " / " << experts;
        }
      }
    }
  }
}

TEST(ExpertCapacity, MinimumTokensAndAlignmentBoundIt) {
  const auto capacity = [](double factor, Index minimum, Index alignment, Index tokens) {
    return expert_capacity(tokens, 8, 2, {factor, minimum, alignment});
  };
  EXPECT_EQ(capacity(1.0, 0, 1, 32), 8);
  EXPECT_EQ(capacity(1.0, 9, 1, 32), 9);
  EXPECT_EQ(capacity(1.0, 9, 8, 32), 16);
  EXPECT_EQ(capacity(1.0, 16, 8, 32), 16);
  EXPECT_EQ(capacity(1.0, 0, 31, 32), 31);
  EXPECT_EQ(capacity(1.0, 9, 31, 20), 31);  // whole, though it has more slots than tokens
  EXPECT_EQ(capacity(4.0, 0, 8, 13), 16);
  EXPECT_EQ(capacity(1.0, 100, 8, 13), 16);
  EXPECT_EQ(capacity(1.0, 100, 8, 1), 8);
  EXPECT_EQ(capacity(100.0, 0, 1, 32), 32);
  EXPECT_EQ(capacity(1e300, 0, 1, 32), 32);
  EXPECT_EQ(capacity(1e-300, 0, 1, 32), 1);
  EXPECT_EQ(capacity(1.0, 100, 1, 32), 32);
  EXPECT_EQ(capacity(1.0, 100, 8, 0), 0);
  constexpr Index most = std::numeric_limits<Index>::max();
  EXPECT_EQ(capacity(1e-300, 3, most, most / 2), most);
  EXPECT_EQ(capacity(1.0, most, most, most / 2), most);
  // A mean bounds nothing, the sum over ranks does.
  EXPECT_EQ(expert_capacity(6, 8, 2, {4.0}, 12), 6);
  EXPECT_EQ(expert_capacity(6, 8, 2, {6.0}, 12), 9);
  EXPECT_EQ(expert_capacity(6, 8, 2, {1e300}, 12), 12);
  EXPECT_EQ(expert_capacity(6, 8, 2, {1.0, 100}, 12), 12);
}

TEST(ExpertCapacity, RefusesBadSettings) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (double factor : {0.0, -0.0, -1.0, nan, -nan, data::infinity<double>()}) {
    EXPECT_THROW(expert_capacity(8, 4, 2, {factor}), gatepro::Error) << factor;
  }
  EXPECT_THROW(expert_capacity(8, 4, 2, {1.0, -1}), gatepro::Error);
  EXPECT_THROW(expert_capacity(8, 4, 2, {1.0, 0, 0}), gatepro::Error);
  EXPECT_THROW(expert_capacity(-1, 4, 2, {}), gatepro::Error);
  EXPECT_THROW(expert_capacity(8, 4, 2, {}, 7), gatepro::Error);
  EXPECT_THROW(expert_capacity(8, 4, 0, {}), gatepro::Error);
  EXPECT_THROW(expert_capacity(8, 4, 5, {}), gatepro::Error);
  EXPECT_THROW(expert_capacity(8, 0, 0, {}), gatepro::Error);
  constexpr Index most = std::numeric_limits<Index>::max();
  EXPECT_THROW(expert_capacity(most, 4, 2, {}), gatepro::Error);
  EXPECT_THROW(expert_capacity(most, 1, 1, {2.0, 0, most - 1}), gatepro::Error);
}

// ---- drop_over_capacity -------------------------------------------------------------------------

/// What a drop leaves.
template <class A>
struct Dropped {
  RowMatrix<A> weights_TK;
  Bytes kept_TK;
  Counts counts_E;
  DropReport report;
};

template <class A, class Id, class Executor = gatepro::SerialExecutor>
Dropped<A> drop(const RowMatrix<Id>& ids_TK, const RowMatrix<A>& weights_TK, Index experts,
                const Mask& is_padding_T, Index capacity, DropPolicy policy,
                const Executor& executor = {}) {
  Dropped<A> out{weights_TK, Bytes::Constant(ids_TK.rows(), ids_TK.cols(), 77),
                 Counts(static_cast<std::size_t>(experts), 77), DropReport()};
  auto memory = data::scratch(gatepro::drop_over_capacity_workspace_bytes<A>(
      ids_TK.rows(), experts, ids_TK.cols(), policy));
  out.report = gatepro::drop_over_capacity(
      gatepro::Choices{strided_view(ids_TK), data::optional(is_padding_T)}, {capacity, policy},
      gatepro::KeptRouting{strided_view(out.weights_TK), strided_view(out.kept_TK),
                           VectorView<std::int64_t>(out.counts_E)},
      memory, executor);
  return out;
}

/// The same by brute force.
template <class A, class Id>
Dropped<A> reference_drop(const RowMatrix<Id>& ids_TK, const RowMatrix<A>& weights_TK,
                          Index experts, const Mask& is_padding_T, Index capacity,
                          DropPolicy policy) {
  Dropped<A> out{RowMatrix<A>::Zero(ids_TK.rows(), ids_TK.cols()),
                 Bytes::Zero(ids_TK.rows(), ids_TK.cols()),
                 Counts(static_cast<std::size_t>(experts), 0), DropReport()};
  const auto kept_TK =
      reference::kept(data::to_ids(ids_TK), data::to_reference(weights_TK), is_padding_T,
                      static_cast<int>(experts), static_cast<std::size_t>(capacity), policy);
  for (Index t = 0; t < ids_TK.rows(); ++t) {
    if (reference::masked(is_padding_T, static_cast<std::size_t>(t))) continue;
    bool chose = false, any = false;
    for (Index j = 0; j < ids_TK.cols(); ++j) {
      if (ids_TK(t, j) == static_cast<Id>(-1)) continue;
      chose = true;
      if (!data::at(kept_TK, t, j)) {
        ++out.report.dropped_choices;
        continue;
      }
      any = true;
      out.kept_TK(t, j) = 1;
      out.weights_TK(t, j) = weights_TK(t, j);
      ++out.counts_E[static_cast<std::size_t>(ids_TK(t, j))];
    }
    out.report.tokens_without_expert += chose && !any ? 1 : 0;
  }
  return out;
}

template <class A>
void expect_same(const Dropped<A>& a, const Dropped<A>& b) {
  EXPECT_TRUE(data::same_bits(a.weights_TK, b.weights_TK));
  EXPECT_TRUE(data::same_bits(a.kept_TK, b.kept_TK));
  EXPECT_EQ(a.counts_E, b.counts_E);
  EXPECT_EQ(a.report.dropped_choices, b.report.dropped_choices);
  EXPECT_EQ(a.report.tokens_without_expert, b.report.tokens_without_expert);
}

template <class A>
class CapacityTest : public ::testing::Test {};
using Accumulators = ::testing::Types<float, double>;
TYPED_TEST_SUITE(CapacityTest, Accumulators, TypeNames);

// NaN and ties among the weights, masks, capacities from nothing to more than there are tokens.
TYPED_TEST(CapacityTest, DropsAsABruteForceSortDoes) {
  for (std::uint64_t seed = 0; seed < 150; ++seed) {
    const Index tokens = data::random_below(60, seed, 1);
    const Index experts = 1 + data::random_below(9, seed, 2);
    const Index top_k = 1 + data::random_below(experts, seed, 3);
    const auto ids_TK = data::random_ids<std::int64_t>(tokens, experts, top_k, seed);
    const auto weights_TK = seed % 3 == 0   ? data::tied_matrix<TypeParam>(tokens, top_k, seed)
                            : seed % 3 == 1 ? data::special_matrix<TypeParam>(tokens, top_k, seed)
                                            : data::random_matrix<TypeParam>(tokens, top_k, seed);
    const Mask mask = seed % 2 == 0 ? Mask() : data::random_mask(tokens, seed);
    for (DropPolicy policy : policies) {
      for (Index capacity : {Index{0}, Index{1}, tokens * top_k / experts, tokens, tokens + 9}) {
        SCOPED_TRACE(::testing::Message()
                     << "seed " << seed << ", policy " << int(policy) << ", capacity " << capacity);
        expect_same(drop(ids_TK, weights_TK, experts, mask, capacity, policy),
                    reference_drop(ids_TK, weights_TK, experts, mask, capacity, policy));
        if (this->HasFailure()) return;
      }
    }
  }
}

TYPED_TEST(CapacityTest, AllToOneExpert) {
  const RowMatrix<std::int32_t> ids_TK = RowMatrix<std::int32_t>::Constant(100, 1, 3);
  RowMatrix<TypeParam> weights_TK(100, 1);
  for (Index t = 0; t < 100; ++t) weights_TK(t, 0) = TypeParam((t * 37) % 100);
  for (DropPolicy policy : policies) {
    const auto out = drop(ids_TK, weights_TK, 5, {}, 10, policy);
    EXPECT_EQ(out.counts_E, (Counts{0, 0, 0, 10, 0}));
    EXPECT_EQ(out.report.dropped_choices, 90);
    EXPECT_EQ(out.report.tokens_without_expert, 90);
    for (Index t = 0; t < 100; ++t) {
      const bool wins = policy == DropPolicy::probability ? (t * 37) % 100 >= 90 : t < 10;
      EXPECT_EQ(out.kept_TK(t, 0), wins ? 1 : 0) << t;
    }
  }
}

// A factor that asks for more slots than there are tokens neither fails nor drops.
TYPED_TEST(CapacityTest, MoreSlotsThanTokensDropNothing) {
  for (Index tokens : {0, 1, 3}) {
    const auto ids_TK = data::random_ids<std::int32_t>(tokens, 8, 2, 1);
    const auto weights_TK = data::random_matrix<TypeParam>(tokens, 2, 2);
    for (DropPolicy policy : policies) {
      const Index capacity = expert_capacity(tokens, 8, 2, {64.0, 4, 16, policy});
      EXPECT_EQ(capacity, tokens == 0 ? 0 : 16);
      const auto out = drop(ids_TK, weights_TK, 8, {}, capacity, policy);
      EXPECT_EQ(out.report.dropped_choices, 0);
      EXPECT_TRUE(data::same_bits(out.weights_TK, weights_TK));
      EXPECT_TRUE((out.kept_TK.array() == 1).all());
    }
  }
}

// The batch with masked tokens is the batch without them.
TYPED_TEST(CapacityTest, MaskedTokensChangeNothingForTheOthers) {
  constexpr Index tokens = 90, experts = 7, top_k = 3;
  const auto ids_TK = data::random_ids<std::int32_t>(tokens, experts, top_k, 5);
  auto weights_TK = data::random_matrix<TypeParam>(tokens, top_k, 6);
  const Mask mask = data::random_mask(tokens, 7);
  std::vector<Index> valid;
  for (Index t = 0; t < tokens; ++t) {
    if (mask[static_cast<std::size_t>(t)] == 0) valid.push_back(t);
    if (mask[static_cast<std::size_t>(t)] != 0) weights_TK.row(t).setConstant(TypeParam(NAN));
  }
  const RowMatrix<std::int32_t> valid_ids = ids_TK(valid, Eigen::all);
  const RowMatrix<TypeParam> valid_weights = weights_TK(valid, Eigen::all);
  for (DropPolicy policy : policies) {
    auto masked = drop(ids_TK, weights_TK, experts, mask, 9, policy);
    EXPECT_EQ(masked.weights_TK.array().isNaN().count(), 0);
    masked.weights_TK = RowMatrix<TypeParam>(masked.weights_TK(valid, Eigen::all));
    masked.kept_TK = Bytes(masked.kept_TK(valid, Eigen::all));
    expect_same(masked, drop(valid_ids, valid_weights, experts, {}, 9, policy));
  }
}

// Ids of -1 are choices that were not made; those of padding may be anything.
TYPED_TEST(CapacityTest, NoIdTakesNoSlot) {
  constexpr Index tokens = 90, experts = 7, top_k = 3;
  auto ids_TK = data::random_ids<std::int32_t>(tokens, experts, top_k, 5);
  auto weights_TK = data::random_matrix<TypeParam>(tokens, top_k, 6);
  const Mask mask = data::random_mask(tokens, 7);
  for (DropPolicy policy : policies) {
    const auto want = drop(ids_TK, weights_TK, experts, mask, 9, policy);
    auto marked_TK = ids_TK;
    for (Index t = 0; t < tokens; ++t) {
      if (mask[static_cast<std::size_t>(t)] != 0) marked_TK.row(t).setConstant(-1);
    }
    expect_same(drop(marked_TK, weights_TK, experts, mask, 9, policy), want);
    expect_same(drop(marked_TK, weights_TK, experts, {}, 9, policy), want);
    for (Index t = 0; t < tokens; ++t) {
      if (mask[static_cast<std::size_t>(t)] != 0) marked_TK.row(t) << experts, -7, experts;
    }
    expect_same(drop(marked_TK, weights_TK, experts, mask, 9, policy), want);
  }
}

TYPED_TEST(CapacityTest, ThreadsAndStridesDoNotMatter) {
  constexpr Index tokens = 300, experts = 12, top_k = 4;
  const auto ids_TK = data::random_ids<std::uint64_t>(tokens, experts, top_k, 8);
  const auto weights_TK = data::tied_matrix<TypeParam>(tokens, top_k, 9);
  for (DropPolicy policy : policies) {
    const auto want = drop(ids_TK, weights_TK, experts, {}, 70, policy);
    expect_same(want, drop(ids_TK, weights_TK, experts, {}, 70, policy, ThreadExecutor(5)));

    // One plane per choice.
    Eigen::Matrix<TypeParam, Eigen::Dynamic, Eigen::Dynamic> weight_planes = weights_TK;
    Eigen::Matrix<std::uint64_t, Eigen::Dynamic, Eigen::Dynamic> id_planes = ids_TK;
    Eigen::Matrix<std::uint8_t, Eigen::Dynamic, Eigen::Dynamic> kept_planes(tokens, top_k);
    Counts counts(experts);
    auto memory = data::scratch(
        gatepro::drop_over_capacity_workspace_bytes<TypeParam>(tokens, experts, top_k, policy));
    gatepro::drop_over_capacity(
        gatepro::Choices{strided_view(id_planes)}, {70, policy},
        gatepro::KeptRouting{strided_view(weight_planes), strided_view(kept_planes),
                             VectorView<std::int64_t>(counts)},
        memory);
    EXPECT_TRUE(data::same_bits(want.weights_TK, RowMatrix<TypeParam>(weight_planes)));
    EXPECT_TRUE(data::same_bits(want.kept_TK, Bytes(kept_planes)));
  }
}

TYPED_TEST(CapacityTest, WhatWasDroppedBeforeTakesPartAgain) {
  constexpr Index tokens = 30, experts = 5, top_k = 2;
  const auto ids_TK = data::random_ids<std::int32_t>(tokens, experts, top_k, 3);
  const auto weights_TK = data::random_matrix<TypeParam>(tokens, top_k, 4);
  for (DropPolicy policy : policies) {
    const auto want = drop(ids_TK, weights_TK, experts, {}, 7, policy);
    Dropped<TypeParam> out{weights_TK, Bytes::Zero(tokens, top_k), Counts(experts), DropReport()};
    auto memory = data::scratch(
        gatepro::drop_over_capacity_workspace_bytes<TypeParam>(tokens, experts, top_k, policy));
    out.report = gatepro::drop_over_capacity(
        gatepro::Choices{strided_view(ids_TK), {}, strided_view(out.kept_TK)}, {7, policy},
        gatepro::KeptRouting{strided_view(out.weights_TK), strided_view(out.kept_TK),
                             VectorView<std::int64_t>(out.counts_E)},
        memory);
    expect_same(out, want);
  }
}

TYPED_TEST(CapacityTest, BadInputWritesNothing) {
  constexpr Index tokens = 6, experts = 4, top_k = 2;
  auto ids_TK = data::random_ids<std::int32_t>(tokens, experts, top_k, 1);
  const auto start = data::random_matrix<TypeParam>(tokens, top_k, 2);
  RowMatrix<TypeParam> weights_TK = start;
  Bytes kept_TK = Bytes::Constant(tokens, top_k, 77);
  Counts counts_E(experts, 77);
  const Mask short_mask(tokens - 1, 0), mask(tokens, 0);
  auto memory = data::scratch(gatepro::drop_over_capacity_workspace_bytes<TypeParam>(
      tokens, experts, top_k, DropPolicy::probability));
  const auto expect_refused = [&](Index capacity, const Mask& padding, StridedView<TypeParam> w,
                                  StridedView<std::uint8_t> kept, Index num_experts,
                                  Workspace workspace) {
    EXPECT_THROW(
        gatepro::drop_over_capacity(
            gatepro::Choices{strided_view(ids_TK), VectorView<const std::uint8_t>(padding)},
            {capacity, DropPolicy::probability},
            gatepro::KeptRouting{w, kept, VectorView<std::int64_t>(counts_E.data(), num_experts)},
            workspace),
        gatepro::Error);
    EXPECT_TRUE(data::same_bits(weights_TK, start));
    EXPECT_TRUE((kept_TK.array() == 77).all());
    EXPECT_EQ(counts_E, Counts(experts, 77));
  };
  const auto w = strided_view(weights_TK);
  const auto kept = strided_view(kept_TK);
  expect_refused(-1, mask, w, kept, experts, memory);
  expect_refused(2, short_mask, w, kept, experts, memory);
  expect_refused(2, mask, {w.data, tokens - 1, top_k}, kept, experts, memory);
  expect_refused(2, mask, w, {kept.data, tokens, top_k + 1}, experts, memory);
  expect_refused(2, mask, w, {}, experts, memory);
  expect_refused(2, mask, w, kept, 1, memory);
  expect_refused(2, mask, w, kept, experts, {memory.data(), memory.size() - 1});
  expect_refused(2, mask, w, {reinterpret_cast<std::uint8_t*>(w.data), tokens, top_k}, experts,
                 memory);
  const std::int32_t good = ids_TK(5, 1);
  for (std::int32_t bad : {ids_TK(5, 0), std::int32_t{experts}, std::int32_t{-2}}) {
    ids_TK(5, 1) = bad;
    expect_refused(2, mask, w, kept, experts, memory);
    ids_TK(5, 1) = good;
  }
}

// ---- Gradients of drop and renormalisation ------------------------------------------------------

/// A renormalisation of weights whose dropped ones are 0 or not: the drop zeroes them.
template <class A>
struct Renormalised {
  Renormalised(const RowMatrix<A>& before, const Bytes& kept)
      : Renormalised(before, kept, RowMatrix<std::int64_t>::Zero(kept.rows(), kept.cols())) {}
  Renormalised(const RowMatrix<A>& before, const Bytes& kept, const RowMatrix<std::int64_t>& ids)
      : ids_TK(ids),
        weights(before),
        totals(static_cast<std::size_t>(before.rows())),
        sums(totals) {
    gatepro::total_weights<A>(strided_view(before), totals);
    for (Index i = 0; i < kept.size(); ++i) {
      if (kept.data()[i] == 0) weights.data()[i] = 0;
    }
    gatepro::renormalise_kept<A>(gatepro::Choices{strided_view(ids_TK), {}, strided_view(kept)},
                                 totals, strided_view(weights), sums);
  }
  RowMatrix<A> gradient(const Bytes& kept, RowMatrix<A> dweights) const {
    gatepro::renormalise_kept_backward<A>(
        gatepro::Choices{strided_view(ids_TK), {}, strided_view(kept)}, totals,
        strided_view(weights), sums, strided_view(dweights), strided_view(dweights));
    return dweights;
  }

  RowMatrix<std::int64_t> ids_TK;
  RowMatrix<A> weights;
  std::vector<A> totals, sums;
};

TYPED_TEST(CapacityTest, TheKeptTakeOverWhatWasDropped) {
  constexpr Index tokens = 40, top_k = 4;
  RowMatrix<TypeParam> before = data::random_matrix<TypeParam>(tokens, top_k, 1).cwiseAbs();
  Bytes kept = Bytes::Ones(tokens, top_k);
  for (Index i = 0; i < kept.size() / 2; ++i) {
    kept.data()[i] = data::random_below(3, 2, static_cast<std::uint64_t>(i)) == 0 ? 0 : 1;
  }
  kept.row(0).setZero();
  before(1, 1) = TypeParam(NAN);
  kept.row(1) << 1, 1, 0, 1;
  before.row(2) << 0, TypeParam(0.5), 0, TypeParam(0.25);
  kept.row(2) << 1, 0, 1, 0;  // what is kept weighs nothing
  const Renormalised<TypeParam> got(before, kept);
  EXPECT_TRUE((got.weights.row(0).array() == 0).all());
  EXPECT_TRUE(std::isnan(got.weights(1, 0)) && std::isnan(got.weights(1, 1)));
  EXPECT_EQ(got.weights(1, 2), 0);
  EXPECT_TRUE((got.weights.row(2).array() == 0).all());
  for (Index t = 3; t < tokens; ++t) {
    if ((kept.row(t).array() == 1).all()) {
      EXPECT_TRUE(data::same_bits(RowMatrix<TypeParam>(got.weights.row(t)),
                                  RowMatrix<TypeParam>(before.row(t))));
      continue;
    }
    double total = 0, sum = 0;
    for (Index j = 0; j < top_k; ++j) {
      total += double(before(t, j));
      sum += kept(t, j) != 0 ? double(before(t, j)) : 0;
    }
    for (Index j = 0; j < top_k; ++j) {
      const double want = kept(t, j) != 0 ? total * double(before(t, j)) / sum : 0;
      EXPECT_NEAR(double(got.weights(t, j)), want,
                  16 * double(std::numeric_limits<TypeParam>::epsilon()));
    }
  }
}

// What was not chosen is not lost: no bit changes, and the gradient passes unchanged.
TYPED_TEST(CapacityTest, NothingIsTakenOverFromChoicesThatWereNone) {
  constexpr Index tokens = 60, top_k = 3;
  RowMatrix<TypeParam> before = data::random_matrix<TypeParam>(tokens, top_k, 1).cwiseAbs();
  before.col(1).setZero();
  const auto dweights = data::random_matrix<TypeParam>(tokens, top_k, 2);
  RowMatrix<TypeParam> want = dweights;
  want.col(1).setZero();
  auto ids = data::random_ids<std::int64_t>(tokens, 8, top_k, 3);
  ids.col(1).setConstant(-1);
  Bytes kept = Bytes::Ones(tokens, top_k);
  kept.col(1).setZero();
  const Renormalised<TypeParam> got(before, kept, ids);
  EXPECT_TRUE(data::same_bits(got.weights, before));
  EXPECT_TRUE(data::same_bits(got.gradient(kept, dweights), want));
}

// However little the kept ones weigh, they take over the total, and no gradient is NaN.
TYPED_TEST(CapacityTest, TinyWeightsTakeOver) {
  RowMatrix<TypeParam> before(2, 2), dweights(2, 2);
  const TypeParam tiny = std::numeric_limits<TypeParam>::denorm_min();
  before << tiny, 1, TypeParam(1e-30), TypeParam(0.5);
  dweights << 3, 2, 3, 2;
  Bytes kept(2, 2);
  kept << 1, 0, 1, 0;
  const Renormalised<TypeParam> got(before, kept);
  EXPECT_EQ(got.weights(0, 0), 1);
  EXPECT_EQ(got.weights(1, 0), TypeParam(0.5));
  EXPECT_TRUE((got.gradient(kept, dweights).array() == 3).all());
}

TEST(CapacityGradient, RenormalisationAgainstFiniteDifferences) {
  constexpr Index tokens = 7, top_k = 3;
  const RowMatrix<double> before =
      data::random_matrix<double>(tokens, top_k, 3).cwiseAbs().array() + 0.1;
  const auto dweights = data::random_matrix<double>(tokens, top_k, 4);
  Bytes kept = Bytes::Ones(tokens, top_k);
  kept(1, 0) = kept(2, 1) = kept(2, 2) = 0;
  kept.row(3).setZero();
  const RowMatrix<double> dbefore = Renormalised<double>(before, kept).gradient(kept, dweights);
  for (Index i = 0; i < before.size(); ++i) {
    const auto at = [&](double offset) {
      RowMatrix<double> moved = before;
      moved.data()[i] += offset;
      return (Renormalised<double>(moved, kept).weights.array() * dweights.array()).sum();
    };
    const double slope = reference::derivative(at, 1e-4);
    EXPECT_NEAR(dbefore.data()[i], slope, 1e-9 * std::max(1.0, std::abs(slope))) << i;
  }
}

TYPED_TEST(CapacityTest, DroppedChoicesGetNoGradientNotEvenNaN) {
  Bytes kept(2, 2);
  kept << 1, 0, 0, 0;
  RowMatrix<TypeParam> dweights(2, 2);
  dweights << TypeParam(3), TypeParam(NAN), TypeParam(NAN), TypeParam(NAN);
  RowMatrix<TypeParam> dbefore(2, 2), want(2, 2);
  want << 3, 0, 0, 0;
  gatepro::drop_backward(strided_view(kept), strided_view(dweights), strided_view(dbefore));
  EXPECT_TRUE(data::same_bits(dbefore, want));

  // Nor does a token that lost everything.
  RowMatrix<TypeParam> before(2, 2);
  before << TypeParam(0.25), TypeParam(0.5), TypeParam(0.5), TypeParam(0.5);
  want << 3, 3, 0, 0;
  EXPECT_TRUE(
      data::same_bits(Renormalised<TypeParam>(before, kept).gradient(kept, dweights), want));
}

TYPED_TEST(CapacityTest, RenormalisationRefusesBadInput) {
  using A = TypeParam;
  const Bytes kept = Bytes::Ones(3, 2);
  const RowMatrix<std::int64_t> ids = RowMatrix<std::int64_t>::Zero(3, 2);
  RowMatrix<A> w = RowMatrix<A>::Ones(3, 2), d = w;
  std::vector<A> totals(3), sums(3), few(2);
  const auto forward = [&](VectorView<const A> total, StridedView<A> weights, VectorView<A> s) {
    gatepro::renormalise_kept<A>(gatepro::Choices{strided_view(ids), {}, strided_view(kept)}, total,
                                 weights, s);
  };
  const auto backward = [&](VectorView<const A> total, StridedView<A> weights,
                            VectorView<const A> s, StridedView<A> dw) {
    gatepro::renormalise_kept_backward<A>(
        gatepro::Choices{strided_view(ids), {}, strided_view(kept)}, total, weights, s, dw,
        strided_view(d));
  };
  const auto view = strided_view(w);
  EXPECT_THROW(gatepro::total_weights<A>(view, few), gatepro::Error);
  const StridedView<const std::int64_t> few_ids(ids.data(), 2, 2);
  EXPECT_THROW(gatepro::renormalise_kept<A>(gatepro::Choices{few_ids, {}, strided_view(kept)},
                                            totals, view, sums),
               gatepro::Error);
  EXPECT_THROW(
      gatepro::renormalise_kept_backward<A>(gatepro::Choices{few_ids, {}, strided_view(kept)},
                                            totals, view, sums, view, strided_view(d)),
      gatepro::Error);
  EXPECT_THROW(forward(few, view, sums), gatepro::Error);
  EXPECT_THROW(forward(totals, {w.data(), 2, 2}, sums), gatepro::Error);
  EXPECT_THROW(forward(totals, view, few), gatepro::Error);
  EXPECT_THROW(forward(totals, view, {w.data(), 3}), gatepro::Error);
  EXPECT_THROW(backward(few, view, sums, view), gatepro::Error);
  EXPECT_THROW(backward(totals, {w.data(), 2, 2}, sums, view), gatepro::Error);
  EXPECT_THROW(backward(totals, view, few, view), gatepro::Error);
  EXPECT_THROW(backward(totals, view, sums, {w.data(), 3, 1}), gatepro::Error);
  EXPECT_THROW(gatepro::drop_backward(strided_view(kept), view, StridedView<A>(d.data(), 2, 2)),
               gatepro::Error);
  EXPECT_TRUE((w.array() == 1).all());
}

}  // namespace
