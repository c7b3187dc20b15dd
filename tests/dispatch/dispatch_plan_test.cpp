// SPDX-License-Identifier: MIT
// The dispatch plan against a stable sort, and read by loops that work as other stacks' do.
#include <gatepro/dispatch/plan.hpp>

#include <algorithm>
#include <tuple>
#include <vector>

#include "support/errors.hpp"
#include "support/ids.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::DispatchOrder;
using gatepro::DispatchPlan;
using gatepro::DispatchRule;
using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::strided_view;
using gatepro::StridedView;
using gatepro::VectorView;
using gatepro::Workspace;
using Bytes = RowMatrix<std::uint8_t>;
using Counts = std::vector<std::int64_t>;
using Mask = std::vector<std::uint8_t>;

constexpr DispatchOrder orders[] = {DispatchOrder::token_major, DispatchOrder::choice_major};

/// A routing to be planned.
template <class Id>
struct Routed {
  RowMatrix<Id> ids_TK;
  Bytes kept_TK;  // empty: not given
  Mask mask_T;    // empty: not given
  Index experts = 1;

  bool counts(Index t, Index j) const {
    if (!mask_T.empty() && mask_T[static_cast<std::size_t>(t)] != 0) return false;
    return kept_TK.size() == 0 || kept_TK(t, j) != 0;
  }
};

template <class Id>
Routed<Id> random_routing(std::uint64_t seed) {
  const Index tokens = data::random_below(50, seed, 1);
  Routed<Id> routed;
  routed.experts = 1 + data::random_below(12, seed, 2);
  const Index top_k =
      seed % 5 == 0 ? routed.experts : 1 + data::random_below(routed.experts, seed, 3);
  routed.ids_TK = data::random_ids<Id>(tokens, routed.experts, top_k, seed);
  const auto coin = [&](Index i) { return data::random_below(3, seed + 1, std::uint64_t(i)) != 0; };
  if (seed % 2 == 0 && tokens > 0) {
    routed.kept_TK = Bytes(tokens, top_k);
    for (Index i = 0; i < tokens * top_k; ++i) routed.kept_TK.data()[i] = coin(i) ? 3 : 0;
  }
  if (seed % 3 == 0) {
    for (Index t = 0; t < tokens; ++t) routed.mask_T.push_back(coin(1000 + t) ? 0 : 9);
  }
  return routed;
}

/// A plan that owns its memory. It starts as garbage.
template <class Id>
struct OwnedPlan {
  OwnedPlan(Index tokens, Index top_k, Index experts, Index list_size)
      : counts(static_cast<std::size_t>(experts), 77),
        offsets(static_cast<std::size_t>(experts + 1), 77),
        choice_of_row(static_cast<std::size_t>(list_size), Id(77)),
        token_of_row(static_cast<std::size_t>(list_size), Id(77)),
        flat_index_of_row(static_cast<std::size_t>(list_size), Id(77)),
        row_TK(RowMatrix<Id>::Constant(tokens, top_k, Id(77))),
        position_TK(RowMatrix<Id>::Constant(tokens, top_k, Id(77))) {}

  DispatchPlan<Id> view() {
    DispatchPlan<Id> plan;
    plan.tokens_per_expert_E = counts;
    plan.offsets_E1 = offsets;
    plan.choice_of_row_N = choice_of_row;
    plan.token_of_row_N = token_of_row;
    plan.flat_index_of_row_N = flat_index_of_row;
    plan.row_TK = strided_view(row_TK);
    plan.position_TK = strided_view(position_TK);
    return plan;
  }
  bool operator==(const OwnedPlan& other) const {
    return counts == other.counts && offsets == other.offsets &&
           choice_of_row == other.choice_of_row && token_of_row == other.token_of_row &&
           flat_index_of_row == other.flat_index_of_row && row_TK == other.row_TK &&
           position_TK == other.position_TK && rows == other.rows;
  }

  Counts counts, offsets;
  std::vector<Id> choice_of_row, token_of_row, flat_index_of_row;
  RowMatrix<Id> row_TK, position_TK;
  Index rows = -1;
};

template <class Id, class In>
Index plan(const Routed<In>& routed, const DispatchRule& rule, const DispatchPlan<Id>& out) {
  StridedView<const std::uint8_t> kept;
  if (routed.kept_TK.size() != 0) kept = strided_view(routed.kept_TK);
  auto memory = data::scratch(gatepro::plan_dispatch_workspace_bytes(routed.experts));
  return gatepro::plan_dispatch(
      gatepro::Choices{strided_view(routed.ids_TK), data::optional(routed.mask_T), kept},
      routed.experts, rule, out, memory);
}

template <class Id, class In>
OwnedPlan<Id> make_plan(const Routed<In>& routed, const DispatchRule& rule, Index spare = 0) {
  const Index tokens = routed.ids_TK.rows(), top_k = routed.ids_TK.cols();
  const Index most = gatepro::max_dispatch_rows(tokens, routed.experts, top_k, rule);
  OwnedPlan<Id> owned(tokens, top_k, routed.experts, most + spare);
  owned.rows = plan(routed, rule, owned.view());
  return owned;
}

/// The same by std::stable_sort.
template <class Id, class In>
OwnedPlan<Id> reference_plan(const Routed<In>& routed, const DispatchRule& rule, Index list_size) {
  const Index tokens = routed.ids_TK.rows(), top_k = routed.ids_TK.cols();
  struct Choice {
    Index e, t, j;
  };
  std::vector<Choice> sorted;
  for (Index t = 0; t < tokens; ++t) {
    for (Index j = 0; j < top_k; ++j) {
      if (routed.counts(t, j)) sorted.push_back({static_cast<Index>(routed.ids_TK(t, j)), t, j});
    }
  }
  const bool by_choice = rule.order == DispatchOrder::choice_major;
  std::stable_sort(sorted.begin(), sorted.end(), [&](const Choice& a, const Choice& b) {
    return by_choice ? std::tie(a.e, a.j) < std::tie(b.e, b.j) : a.e < b.e;
  });
  const auto dropped = static_cast<Id>(rule.dropped_position);
  OwnedPlan<Id> want(tokens, top_k, routed.experts, list_size);
  std::fill(want.choice_of_row.begin(), want.choice_of_row.end(), Id(-1));
  std::fill(want.token_of_row.begin(), want.token_of_row.end(), Id(-1));
  std::fill(want.flat_index_of_row.begin(), want.flat_index_of_row.end(), Id(-1));
  want.row_TK.setConstant(Id(-1));
  want.position_TK.setConstant(dropped);
  Index row = 0;
  for (Index e = 0; e < routed.experts; ++e) {
    const auto at = static_cast<std::size_t>(e);
    want.offsets[at] = row;
    Index position = 0;
    for (const Choice& c : sorted) {
      if (c.e != e) continue;
      want.choice_of_row[static_cast<std::size_t>(row + position)] = Id(c.t * top_k + c.j);
      want.token_of_row[static_cast<std::size_t>(row + position)] = Id(c.t);
      want.flat_index_of_row[static_cast<std::size_t>(row + position)] =
          Id(c.t * routed.experts + e);
      want.row_TK(c.t, c.j) = Id(row + position);
      want.position_TK(c.t, c.j) = Id(position);
      ++position;
    }
    want.counts[at] = position;
    while (position % rule.alignment != 0) ++position;
    row += rule.rows_per_expert > 0 ? rule.rows_per_expert : position;
  }
  want.offsets.back() = want.rows = row;
  return want;
}

template <class Id>
class DispatchPlanTest : public ::testing::Test {};
using IdTypes = ::testing::Types<std::int32_t, std::int64_t, std::uint64_t>;
TYPED_TEST_SUITE(DispatchPlanTest, IdTypes, TypeNames);

TYPED_TEST(DispatchPlanTest, IsAStableSort) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    const auto routed = random_routing<TypeParam>(seed);
    const Index tokens = routed.ids_TK.rows();
    for (DispatchOrder order : orders) {
      for (Index alignment : {1, 4, 7}) {
        for (Index rows_per_expert : {Index{0}, (tokens / alignment + 1) * alignment}) {
          SCOPED_TRACE(::testing::Message() << "seed " << seed << ", order " << int(order) << ", "
                                            << alignment << ", " << rows_per_expert);
          const DispatchRule rule{order, alignment, rows_per_expert, seed % 2 == 0 ? -1 : 1000};
          // The id types of input and output are independent.
          const auto same = make_plan<TypeParam>(routed, rule);
          ASSERT_TRUE(same ==
                      (reference_plan<TypeParam>(routed, rule, Index(same.choice_of_row.size()))));
          const auto other = make_plan<std::int64_t>(routed, rule, 5);
          ASSERT_TRUE(other == (reference_plan<std::int64_t>(routed, rule,
                                                             Index(other.choice_of_row.size()))));
        }
      }
    }
  }
}

// -1 in place of a choice says as much as kept_TK and is_padding_T do.
TYPED_TEST(DispatchPlanTest, IdsSayWhatHasNoPlace) {
  for (std::uint64_t seed = 0; seed < 30; ++seed) {
    Routed<TypeParam> routed = random_routing<TypeParam>(seed);
    const auto want = make_plan<TypeParam>(routed, {});
    const Index tokens = routed.ids_TK.rows(), top_k = routed.ids_TK.cols();
    Routed<std::int64_t> marked{RowMatrix<std::int64_t>(tokens, top_k), {}, {}, routed.experts};
    const auto kept = routed.kept_TK.size() != 0 ? StridedView<const std::uint8_t>(routed.kept_TK)
                                                 : StridedView<const std::uint8_t>();
    gatepro::dispatched_ids(
        gatepro::Choices{strided_view(routed.ids_TK), data::optional(routed.mask_T), kept},
        strided_view(marked.ids_TK));
    for (Index t = 0; t < tokens; ++t) {
      for (Index j = 0; j < top_k; ++j) {
        const auto id = static_cast<std::int64_t>(routed.ids_TK(t, j));
        EXPECT_EQ(marked.ids_TK(t, j), routed.counts(t, j) ? id : -1);
      }
    }
    EXPECT_TRUE(make_plan<TypeParam>(marked, {}) == want);
    // The ids of padding may be anything.
    for (Index t = 0; t < tokens; ++t) {
      if (routed.mask_T.empty() || routed.mask_T[static_cast<std::size_t>(t)] == 0) continue;
      routed.ids_TK.row(t).setConstant(static_cast<TypeParam>(t % 2 == 0 ? routed.experts : 0));
    }
    EXPECT_TRUE(make_plan<TypeParam>(routed, {}) == want);
    // In place, where no backward needs the ids.
    gatepro::dispatched_ids(
        gatepro::Choices{strided_view(routed.ids_TK), data::optional(routed.mask_T), kept},
        strided_view(routed.ids_TK));
    routed.kept_TK.resize(0, 0);
    routed.mask_T.clear();
    EXPECT_TRUE(make_plan<TypeParam>(routed, {}) == want);
  }
  RowMatrix<TypeParam> ids_TK = RowMatrix<TypeParam>::Zero(3, 2);
  const auto refused = [&](StridedView<const std::uint8_t> kept, StridedView<TypeParam> out) {
    EXPECT_THROW(gatepro::dispatched_ids(gatepro::Choices{strided_view(ids_TK), {}, kept}, out),
                 gatepro::Error);
  };
  const Bytes few = Bytes::Ones(2, 2);
  refused(strided_view(few), strided_view(ids_TK));
  refused({}, {ids_TK.data(), 2, 2});
}

// Nor may ids that no router can have become others in a narrower type.
TEST(DispatchPlan, DispatchedIdsAreThoseOfTheRouting) {
  constexpr std::int64_t word = std::int64_t{1} << 32;
  RowMatrix<std::int64_t> ids_TK(3, 2);
  RowMatrix<std::int32_t> out_TK(3, 2);
  const Bytes kept = Bytes::Zero(3, 2);
  const Mask last_masked = {0, 0, 1};
  for (const std::int64_t bad : {word - 1, word + 5, std::int64_t{-7}, word / 2 - 1}) {
    ids_TK << 0, 1, 2, bad, bad, bad;
    out_TK.setConstant(77);
    for (const auto& kept_TK : {StridedView<const std::uint8_t>(), strided_view(kept)}) {
      EXPECT_THROW(gatepro::dispatched_ids(
                       gatepro::Choices{strided_view(ids_TK), data::optional(last_masked), kept_TK},
                       strided_view(out_TK)),
                   gatepro::Error);
    }
    EXPECT_TRUE((out_TK.array() == 77).all());
  }
  ids_TK(1, 1) = word / 2 - 2;  // the last expert of the most that there may be
  gatepro::dispatched_ids(gatepro::Choices{strided_view(ids_TK), data::optional(last_masked)},
                          strided_view(out_TK));
  EXPECT_EQ(out_TK(1, 1), ids_TK(1, 1));
  EXPECT_EQ(out_TK(2, 0), -1);
}

TYPED_TEST(DispatchPlanTest, NoTokensAndOneExpert) {
  Routed<TypeParam> none;
  none.ids_TK.resize(0, 2);
  none.experts = 3;
  EXPECT_EQ(make_plan<TypeParam>(none, {}).offsets, (Counts{0, 0, 0, 0}));
  EXPECT_EQ(make_plan<TypeParam>(none, {DispatchOrder::token_major, 4, 8}).rows, 24);

  Routed<TypeParam> one;
  one.ids_TK = RowMatrix<TypeParam>::Zero(5, 1);
  const auto all = make_plan<TypeParam>(one, {DispatchOrder::choice_major, 4});
  EXPECT_EQ(all.rows, 8);
  EXPECT_EQ(all.counts, (Counts{5}));
  EXPECT_EQ(all.offsets, (Counts{0, 8}));
  const auto none_id = static_cast<TypeParam>(-1);
  EXPECT_EQ(all.token_of_row, (std::vector<TypeParam>{0, 1, 2, 3, 4, none_id, none_id, none_id}));
}

TYPED_TEST(DispatchPlanTest, EveryOutputIsOptionalAndTakesAnyStrides) {
  const auto routed = random_routing<TypeParam>(6);
  const Index tokens = routed.ids_TK.rows(), top_k = routed.ids_TK.cols();
  const DispatchRule rule{DispatchOrder::choice_major, 4};
  const auto want = make_plan<TypeParam>(routed, rule);
  EXPECT_EQ(plan(routed, rule, DispatchPlan<TypeParam>()), want.rows);
  for (int wanted = 0; wanted < 7; ++wanted) {
    OwnedPlan<TypeParam> owned(tokens, top_k, routed.experts, Index(want.choice_of_row.size()));
    const OwnedPlan<TypeParam> untouched = owned;
    const DispatchPlan<TypeParam> all = owned.view();
    DispatchPlan<TypeParam> one;
    if (wanted == 0) one.tokens_per_expert_E = all.tokens_per_expert_E;
    if (wanted == 1) one.offsets_E1 = all.offsets_E1;
    if (wanted == 2) one.choice_of_row_N = all.choice_of_row_N;
    if (wanted == 3) one.token_of_row_N = all.token_of_row_N;
    if (wanted == 4) one.row_TK = all.row_TK;
    if (wanted == 5) one.position_TK = all.position_TK;
    if (wanted == 6) one.flat_index_of_row_N = all.flat_index_of_row_N;
    plan(routed, rule, one);
    EXPECT_EQ(owned.counts, wanted == 0 ? want.counts : untouched.counts);
    EXPECT_EQ(owned.offsets, wanted == 1 ? want.offsets : untouched.offsets);
    EXPECT_EQ(owned.choice_of_row, wanted == 2 ? want.choice_of_row : untouched.choice_of_row);
    EXPECT_EQ(owned.token_of_row, wanted == 3 ? want.token_of_row : untouched.token_of_row);
    EXPECT_EQ(owned.row_TK, wanted == 4 ? want.row_TK : untouched.row_TK);
    EXPECT_EQ(owned.position_TK, wanted == 5 ? want.position_TK : untouched.position_TK);
    EXPECT_EQ(owned.flat_index_of_row,
              wanted == 6 ? want.flat_index_of_row : untouched.flat_index_of_row);
  }
  Eigen::Matrix<TypeParam, Eigen::Dynamic, Eigen::Dynamic> row_planes(tokens, top_k);
  DispatchPlan<TypeParam> planes;
  planes.row_TK = strided_view(row_planes);
  plan(routed, rule, planes);
  EXPECT_EQ(RowMatrix<TypeParam>(row_planes), want.row_TK);
}

TYPED_TEST(DispatchPlanTest, BadInputWritesNothing) {
  constexpr Index tokens = 6, experts = 4, top_k = 2, rows = 12;
  auto ids_TK = data::random_ids<std::int32_t>(tokens, experts, top_k, 1);
  Bytes kept_TK = Bytes::Ones(tokens, top_k);
  const Mask mask(tokens, 0);
  OwnedPlan<TypeParam> owned(tokens, top_k, experts, rows);
  const OwnedPlan<TypeParam> untouched = owned;
  auto memory = data::scratch(gatepro::plan_dispatch_workspace_bytes(experts));
  const auto refused = [&](const DispatchRule& rule, const DispatchPlan<TypeParam>& out,
                           StridedView<const std::uint8_t> kept, Index num_experts,
                           Index masked_tokens, Workspace workspace) {
    EXPECT_THROW(
        gatepro::plan_dispatch(
            gatepro::Choices{strided_view(ids_TK),
                             VectorView<const std::uint8_t>(mask.data(), masked_tokens), kept},
            num_experts, rule, out, workspace),
        gatepro::Error);
    EXPECT_TRUE(owned == untouched);
  };
  const auto kept = strided_view(kept_TK);
  const auto token_major = DispatchOrder::token_major;
  const auto expect_bad_rule = [&](const DispatchRule& rule) {
    refused(rule, owned.view(), kept, experts, tokens, memory);
  };
  expect_bad_rule({token_major, 0});
  expect_bad_rule({token_major, -3});
  expect_bad_rule({token_major, 1, -1});
  expect_bad_rule({token_major, 4, 6});
  expect_bad_rule({token_major, 1, 1});  // more choices than rows
  expect_bad_rule({token_major, 5});     // the row lists are too short
  expect_bad_rule({token_major, 1, 0, -2});
  if (sizeof(TypeParam) == 4) {
    expect_bad_rule({token_major, 1, 0, std::int64_t{1} << 31});
  }
  expect_bad_rule({token_major, Index{1} << 62});
  expect_bad_rule({token_major, 1, Index{1} << 62});

  refused({}, owned.view(), kept, 0, tokens, memory);
  refused({}, owned.view(), kept, 1, tokens, memory);
  refused({}, owned.view(), kept, experts + 1, tokens, memory);
  refused({}, owned.view(), kept, experts, tokens - 1, memory);
  refused({}, owned.view(), {kept.data, tokens, 1}, experts, tokens, memory);
  refused({}, owned.view(), {nullptr, tokens, top_k}, experts, tokens, memory);
  refused({}, owned.view(), kept, experts, tokens, {memory.data(), memory.size() - 1});
  const auto expect_bad_plan = [&](const DispatchPlan<TypeParam>& out) {
    refused({}, out, kept, experts, tokens, memory);
  };
  DispatchPlan<TypeParam> out = owned.view();
  out.tokens_per_expert_E.size = experts - 1;
  expect_bad_plan(out);
  out = owned.view();
  out.offsets_E1.size = experts;
  expect_bad_plan(out);
  out = owned.view();
  out.choice_of_row_N.size = rows - 1;
  expect_bad_plan(out);
  out = owned.view();
  out.token_of_row_N.size = rows - 1;
  expect_bad_plan(out);
  out = owned.view();
  out.flat_index_of_row_N.size = rows - 1;
  expect_bad_plan(out);
  out = owned.view();
  out.row_TK.rows = tokens - 1;
  expect_bad_plan(out);
  out = owned.view();
  out.position_TK.cols = 1;
  expect_bad_plan(out);
  out = owned.view();
  out.position_TK = out.row_TK;
  expect_bad_plan(out);
  out = owned.view();
  out.token_of_row_N = out.choice_of_row_N;
  expect_bad_plan(out);

  const std::int32_t good = ids_TK(5, 1);
  for (std::int32_t bad : {ids_TK(5, 0), std::int32_t{experts}, std::int32_t{-2}}) {
    ids_TK(5, 1) = bad;
    expect_bad_plan(owned.view());
    ids_TK(5, 1) = good;
  }
  EXPECT_THROW(gatepro::max_dispatch_rows(-1, 1, 1, {}), gatepro::Error);
  EXPECT_THROW(gatepro::max_dispatch_rows(std::numeric_limits<Index>::max(), 2, 2, {}),
               gatepro::Error);
}

// Rows beyond the id type: as many as an alignment makes of one choice.
TEST(DispatchPlan, RowsMustFitTheIdType) {
  Routed<std::int64_t> routed;
  routed.ids_TK = RowMatrix<std::int64_t>::Zero(1, 1);
  const DispatchRule rule{DispatchOrder::token_major, Index{1} << 31};
  EXPECT_THROW(plan(routed, rule, DispatchPlan<std::int32_t>()), gatepro::Error);
  EXPECT_EQ(plan(routed, rule, DispatchPlan<std::int64_t>()), Index{1} << 31);
}

// t * E + e is more than rows and choices where experts are many.
TEST(DispatchPlan, FlatIndicesMustFitTheIdType) {
  constexpr Index tokens = 70000;
  Routed<std::int32_t> routed;
  routed.experts = 40000;
  routed.ids_TK = RowMatrix<std::int32_t>::Constant(tokens, 1, 39999);
  std::vector<std::int32_t> narrow(tokens, 77);
  DispatchPlan<std::int32_t> out;
  out.flat_index_of_row_N = narrow;
  expect_error([&] { plan(routed, {}, out); },
               {"plan_dispatch", "within the id type", "largest number=2800000000"});
  EXPECT_EQ(narrow, std::vector<std::int32_t>(tokens, 77));
  EXPECT_EQ(plan(routed, {}, DispatchPlan<std::int32_t>()), tokens);
  std::vector<std::int64_t> wide(tokens);
  DispatchPlan<std::int64_t> wide_out;
  wide_out.flat_index_of_row_N = wide;
  EXPECT_EQ(plan(routed, {}, wide_out), tokens);
  EXPECT_EQ(wide.back(), 2799999999);
}

// ---- What other stacks read ---------------------------------------------------------------------
// Each loop below works as the consumer does, on the memory that the plan wrote.

/// A routing of 40 tokens to 6 experts, 3 each.
Routed<std::int32_t> consumers_routing() {
  Routed<std::int32_t> routed;
  routed.experts = 6;
  routed.ids_TK = data::random_ids<std::int32_t>(40, 6, 3, 4);
  return routed;
}

// Tutel: one contiguous int32 plane of ids and of locations per choice; location >= capacity means
// dropped; tokens go to row id * capacity + location. Its locations are made choice after choice.
TEST(Consumers, TutelReadsPlanesAndCapacityBuffers) {
  Routed<std::int32_t> routed = consumers_routing();
  constexpr Index tokens = 40, experts = 6, top_k = 3, capacity = 15;
  Eigen::Matrix<std::int32_t, Eigen::Dynamic, Eigen::Dynamic> id_planes = routed.ids_TK;
  Eigen::Matrix<std::int32_t, Eigen::Dynamic, Eigen::Dynamic> location_planes(tokens, top_k);

  // Its own way: a running count per expert, one choice after the other.
  RowMatrix<std::int32_t> want(tokens, top_k);
  std::vector<std::int32_t> seen(experts, 0);
  routed.kept_TK = Bytes::Zero(tokens, top_k);
  for (Index j = 0; j < top_k; ++j) {
    for (Index t = 0; t < tokens; ++t) {
      want(t, j) = seen[static_cast<std::size_t>(routed.ids_TK(t, j))]++;
      routed.kept_TK(t, j) = want(t, j) < capacity ? 1 : 0;
    }
  }
  ASSERT_GT((want.array() >= capacity).count(), 0);

  DispatchPlan<std::int32_t> out;
  out.position_TK = strided_view(location_planes);
  std::vector<std::int32_t> token_of_row(experts * capacity);
  out.token_of_row_N = token_of_row;
  const DispatchRule rule{DispatchOrder::choice_major, 1, capacity, capacity};
  EXPECT_EQ(plan(routed, rule, out), experts * capacity);
  std::vector<std::int32_t> buffer(experts * capacity, -1);
  for (Index j = 0; j < top_k; ++j) {
    const std::int32_t* ids = id_planes.data() + j * tokens;
    const std::int32_t* locations = location_planes.data() + j * tokens;
    for (Index t = 0; t < tokens; ++t) {
      EXPECT_EQ(locations[t], std::min<std::int32_t>(want(t, j), capacity));
      if (locations[t] >= capacity || ids[t] < 0) continue;
      buffer[static_cast<std::size_t>(ids[t] * capacity + locations[t])] =
          static_cast<std::int32_t>(t);
    }
  }
  EXPECT_EQ(buffer, token_of_row);
}

// FastMoE: int64 `pos`, the flat index t * k + j of each row, and int64 counts; rows are contiguous
// by expert. It gathers rows at pos / k and scatters results back to pos.
TEST(Consumers, FastMoeReadsPosAndCounts) {
  const Routed<std::int32_t> routed = consumers_routing();
  constexpr Index top_k = 3;
  const auto made = make_plan<std::int64_t>(routed, {});
  ASSERT_EQ(made.rows, 120);
  std::vector<int> visits(120, 0);
  std::size_t row = 0;
  for (std::size_t e = 0; e < made.counts.size(); ++e) {
    for (std::int64_t i = 0; i < made.counts[e]; ++i, ++row) {
      const std::int64_t pos = made.choice_of_row[row];
      EXPECT_EQ(routed.ids_TK(pos / top_k, pos % top_k), static_cast<std::int32_t>(e));
      ++visits[static_cast<std::size_t>(pos)];
    }
  }
  EXPECT_EQ(row, 120U);
  EXPECT_EQ(visits, std::vector<int>(120, 1));
}

// ktransformers: int64 ids (qlen, k), uint64 in its former interface; its m_local_pos counts token
// after token.
template <class Id>
void expect_ktransformers_positions() {
  const Routed<std::int32_t> routed = consumers_routing();
  Routed<Id> wide;
  wide.experts = routed.experts;
  wide.ids_TK = routed.ids_TK.cast<Id>();
  const auto made = make_plan<Id>(wide, {});
  std::vector<Id> local_num(6, 0);
  for (Index i = 0; i < 40; ++i) {
    for (Index j = 0; j < 3; ++j) {
      EXPECT_EQ(made.position_TK(i, j), local_num[std::size_t(wide.ids_TK(i, j))]++);
    }
  }
}

TEST(Consumers, KtransformersLocalPositionsAreOurs) {
  expect_ktransformers_positions<std::int64_t>();
  expect_ktransformers_positions<std::uint64_t>();
}

// TransformerEngine: int row_id_map[top_k][tokens]: the row that choice j of token t goes to, or
// -1.
TEST(Consumers, TransformerEngineReadsTheRowIdMap) {
  Routed<std::int32_t> routed = consumers_routing();
  constexpr Index tokens = 40, top_k = 3;
  routed.kept_TK = Bytes::Ones(tokens, top_k);
  routed.kept_TK(7, 1) = routed.kept_TK(39, 2) = 0;
  std::vector<std::int32_t> row_id_map(tokens * top_k);
  std::vector<std::int32_t> token_of_row(118);
  DispatchPlan<std::int32_t> out;
  out.row_TK = {row_id_map.data(), tokens, top_k, 1, tokens};
  out.token_of_row_N = token_of_row;
  EXPECT_EQ(plan(routed, {}, out), 118);
  std::vector<std::int32_t> permuted(118, -1);
  for (Index j = 0; j < top_k; ++j) {
    for (Index t = 0; t < tokens; ++t) {
      const std::int32_t row = row_id_map[static_cast<std::size_t>(j * tokens + t)];
      EXPECT_EQ(row == -1, routed.kept_TK(t, j) == 0);
      if (row >= 0) permuted[static_cast<std::size_t>(row)] = static_cast<std::int32_t>(t);
    }
  }
  EXPECT_EQ(permuted, token_of_row);
}

}  // namespace
