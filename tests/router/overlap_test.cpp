// SPDX-License-Identifier: MIT
// Outputs that share bytes with other arguments are refused, those that stand between them are not.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "support/errors.hpp"
#include "support/function_ref.hpp"
#include "support/inputs.hpp"

namespace {

using data::random_matrix;
using gatepro::Index;
using gatepro::MatrixView;
using gatepro::StridedView;
using gatepro::VectorView;
using gatepro::Workspace;

// ---- The predicate ----------------------------------------------------------------------------

template <class T>
std::set<Index> bytes_of(const StridedView<T>& view, const void* base) {
  std::set<Index> bytes;
  for (Index r = 0; r < view.rows; ++r) {
    for (Index c = 0; c < view.cols; ++c) {
      const auto first =
          reinterpret_cast<const char*>(&view(r, c)) - static_cast<const char*>(base);
      for (Index b = 0; b < Index(sizeof(T)); ++b) bytes.insert(first + b);
    }
  }
  return bytes;
}

template <class A, class B>
bool really_share(const StridedView<A>& a, const StridedView<B>& b, const void* base) {
  const auto of_a = bytes_of(a, base), of_b = bytes_of(b, base);
  for (const Index byte : of_a) {
    if (of_b.count(byte) != 0) return true;
  }
  return false;
}

template <class A, class B>
bool said_to_share(const StridedView<A>& a, const StridedView<B>& b) {
  using gatepro::detail::region_of;
  const bool forth = gatepro::detail::share_memory(region_of(a), region_of(b));
  EXPECT_EQ(forth, gatepro::detail::share_memory(region_of(b), region_of(a)));
  return forth;
}

/// A view whose elements do not overlap, with rows and columns in either order.
template <class T>
StridedView<T> random_view(std::mt19937& random, T* base, Index row_stride, Index col_stride) {
  const auto below = [&](Index n) { return static_cast<Index>(random() % unsigned(n)); };
  const Index inner = std::min(row_stride, col_stride), outer = std::max(row_stride, col_stride);
  const Index rows = 1 + below(4), cols = 1 + below((outer - 1) / inner + 1);
  StridedView<T> view{base + below(40), rows, cols, row_stride, col_stride};
  if (row_stride < col_stride) std::swap(view.rows, view.cols);
  return view;
}

TEST(Overlap, ViewsWithEqualStepsAreToldApartExactly) {
  std::mt19937 random(1);
  alignas(8) static std::int64_t memory[200];
  auto* ints = reinterpret_cast<std::int32_t*>(memory);
  int shared = 0, apart_within = 0;
  for (int i = 0; i < 20000; ++i) {
    const Index inner = 1 + static_cast<Index>(random() % 3);
    const Index outer = inner + 1 + static_cast<Index>(random() % 9);
    const bool by_column = random() % 2 != 0;
    const auto next = [&] {
      return by_column ? random_view(random, ints, inner, outer)
                       : random_view(random, ints, outer, inner);
    };
    const auto a = next(), b = next();
    const bool share = really_share(a, b, memory);
    ASSERT_EQ(said_to_share(a, b), share) << i;
    shared += share ? 1 : 0;
    const auto of_a = bytes_of(a, memory), of_b = bytes_of(b, memory);
    apart_within += !share && *of_a.begin() < *of_b.rbegin() && *of_b.begin() < *of_a.rbegin();
  }
  EXPECT_GT(shared, 2000);
  EXPECT_GT(apart_within, 2000);
}

TEST(Overlap, SharedBytesAreSeenWhateverTheStepsAre) {
  std::mt19937 random(2);
  alignas(8) static std::int64_t memory[200];
  const auto below = [&](unsigned n) { return static_cast<Index>(random() % n); };
  for (int i = 0; i < 20000; ++i) {
    const auto a =
        random_view(random, reinterpret_cast<std::int32_t*>(memory), 4 + below(9), 1 + below(3));
    const auto b = random_view(random, memory, 1 + below(3), 4 + below(5));
    const bool share = really_share(a, b, memory);
    const bool said = said_to_share(a, b);
    ASSERT_TRUE(said || !share) << i;
    const auto of_a = bytes_of(a, memory), of_b = bytes_of(b, memory);
    const bool ranges_meet = *of_a.begin() <= *of_b.rbegin() && *of_b.begin() <= *of_a.rbegin();
    ASSERT_TRUE(ranges_meet || !said) << i;
  }
}

TEST(Overlap, AVectorInTheGapsOfAMatrixIsApart) {
  float memory[64];
  const StridedView<float> matrix(memory, 4, 3, 16, 1);
  for (Index at = 0; at < 52; ++at) {
    const StridedView<float> vector(memory + at, 1, 12);
    EXPECT_EQ(said_to_share(matrix, vector), really_share(matrix, vector, memory)) << at;
  }
}

// ---- The stages -------------------------------------------------------------------------------

constexpr Index tokens = 5, hidden = 10, experts = 6, top_k = 2;

/// The arguments of a call as bytes in one block each, and which of them are written.
struct Slot {
  std::string name;
  std::size_t bytes;
  bool is_output;
  std::size_t alignment = 8;
};

/// Runs `call(addresses)` with all arguments apart, then with each output moved onto the last bytes
/// of each other argument, and that one onto the last bytes of the output.
void expect_overlaps_refused(const std::vector<Slot>& slots,
                             FunctionRef<void(const std::vector<std::byte*>&)> call) {
  std::size_t room = 0;
  for (const Slot& slot : slots) room = std::max(room, (slot.bytes / 64 + 2) * 64);
  std::vector<std::byte> memory(room * (slots.size() + 1));
  const auto base = reinterpret_cast<std::uintptr_t>(memory.data());
  std::vector<std::byte*> apart;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    apart.push_back(memory.data() + (64 - base % 64) + room * i);
  }
  EXPECT_NO_THROW(call(apart));
  std::fill(memory.begin(), memory.end(), std::byte{0});
  for (std::size_t i = 0; i < slots.size(); ++i) {
    for (std::size_t j = 0; j < slots.size(); ++j) {
      if (i == j || (!slots[i].is_output && !slots[j].is_output)) continue;
      SCOPED_TRACE(slots[i].name + " on " + slots[j].name);
      auto moved = apart;
      const std::size_t step = std::max(slots[i].alignment, slots[j].alignment);
      moved[i] = apart[j] + (slots[j].bytes - 1) / step * step;
      const auto before = memory;
      expect_error([&] { call(moved); },
                   {"outputs in different memory", slots[i].name.c_str(), slots[j].name.c_str()});
      EXPECT_EQ(std::memcmp(memory.data(), before.data(), memory.size()), 0);
    }
  }
}

template <class T>
T* as(std::byte* address) {
  return reinterpret_cast<T*>(address);
}

constexpr std::size_t bytes_of_TK = tokens * top_k * 4, bytes_of_TE = tokens * experts * 4;

TEST(Overlap, GateLogits) {
  const std::size_t needed = gatepro::gate_logits_workspace_bytes<float, float>(experts, hidden);
  expect_overlaps_refused({{"logits_TE", bytes_of_TE, true, 4},
                           {"x_TH", tokens * hidden * 4, false, 4},
                           {"w_EH", experts * hidden * 4, false, 4},
                           {"workspace", needed, true, 1}},
                          [&](const auto& at) {
                            gatepro::gate_logits(MatrixView(as<float>(at[1]), tokens, hidden),
                                                 MatrixView(as<float>(at[2]), experts, hidden),
                                                 MatrixView(as<float>(at[0]), tokens, experts),
                                                 Workspace(at[3], needed));
                          });
}

TEST(Overlap, Selection) {
  const std::size_t needed = gatepro::select_top_k_workspace_bytes<float>(experts, top_k);
  expect_overlaps_refused({{"expert_ids_TK", bytes_of_TK, true, 4},
                           {"selected_logits_TK", bytes_of_TK, true, 4},
                           {"logits_TE", bytes_of_TE, false, 4},
                           {"workspace", needed, true, 1}},
                          [&](const auto& at) {
                            gatepro::select_top_k(
                                MatrixView<const float>(as<float>(at[2]), tokens, experts), {},
                                StridedView(as<std::int32_t>(at[0]), tokens, top_k),
                                StridedView(as<float>(at[1]), tokens, top_k),
                                Workspace(at[3], needed));
                          });
}

TEST(Overlap, CompetitionIsInPlaceOrApart) {
  const std::size_t needed = gatepro::apply_competition_workspace_bytes<float>(experts);
  const auto call = [&](const auto& at) {
    gatepro::apply_competition(
        MatrixView<const float>(as<float>(at[2]), tokens, experts), gatepro::RivalTable(),
        gatepro::Competition::off(), MatrixView(as<float>(at[0]), tokens, experts),
        MatrixView(as<std::uint8_t>(at[1]), tokens, experts), Workspace(at[3], needed));
  };
  expect_overlaps_refused({{"penalised_TE", bytes_of_TE, true, 4},
                           {"loser_TE", tokens * experts, true, 1},
                           {"logits_TE", bytes_of_TE, false, 4},
                           {"workspace", needed, true, 1}},
                          call);
  std::vector<std::byte> memory(1 << 14);
  std::byte* base = memory.data();
  EXPECT_NO_THROW(call(std::vector<std::byte*>{base, base + 4096, base, base + 8192}));
}

TEST(Overlap, Softmax) {
  const std::size_t needed = gatepro::softmax_selected_workspace_bytes<float>(top_k);
  const auto softmax = [&](const auto& at) {
    gatepro::softmax_selected(StridedView<const float>(as<float>(at[1]), tokens, top_k),
                              StridedView(as<float>(at[0]), tokens, top_k),
                              Workspace(at[2], needed));
  };
  expect_overlaps_refused({{"weights_TK", bytes_of_TK, true, 4},
                           {"selected_logits_TK", bytes_of_TK, false, 4},
                           {"workspace", needed, true, 1}},
                          softmax);
  expect_overlaps_refused({{"dselected_logits_TK", bytes_of_TK, true, 4},
                           {"weights_TK", bytes_of_TK, false, 4},
                           {"dweights_TK", bytes_of_TK, false, 4}},
                          [&](const auto& at) {
                            gatepro::softmax_backward(
                                StridedView<const float>(as<float>(at[1]), tokens, top_k),
                                StridedView<const float>(as<float>(at[2]), tokens, top_k),
                                StridedView(as<float>(at[0]), tokens, top_k));
                          });
}

// The same bytes, but row by row and column by column: an element is written before it is read.
TEST(Overlap, ATransposedViewIsNotInPlace) {
  std::vector<float> weights(4, 0.5F), gradients{1, 2, 3, 4};
  const auto before = gradients;
  const StridedView<const float> weights_TK(weights.data(), 2, 2),
      dweights_TK(gradients.data(), 2, 2, 1, 2);
  EXPECT_THROW(
      gatepro::softmax_backward(weights_TK, dweights_TK, StridedView(gradients.data(), 2, 2)),
      gatepro::Error);
  EXPECT_EQ(gradients, before);
}

// In place is meant for one output only: here the gradient that comes in would be added to.
TEST(Overlap, InPlaceIsMeantForOneOutput) {
  constexpr Index T = 3, E = 4;
  const auto logits_TE = random_matrix<float>(T, E, 1);
  gatepro::RowMatrix<float> scores_TK = random_matrix<float>(T, E, 2), gradient = scores_TK;
  gatepro::RowMatrix<float> dselected_TK(T, E);
  const gatepro::RowMatrix<std::int32_t> ids_TK =
      gatepro::RowMatrix<std::int32_t>::NullaryExpr(T, E, [](Index, Index j) { return int(j); });
  gatepro::SelectionRule rule;
  rule.top_k = E;
  rule.scores.function = gatepro::ScoreFunction::softmax_before_top_k;
  rule.competition = gatepro::Competition::off();
  std::vector<std::byte> memory(gatepro::route_logits_backward_workspace_bytes<float>(E, rule));
  EXPECT_THROW(gatepro::route_logits_backward<float>(
                   {logits_TE}, {}, rule, gatepro::RecordedChoices<std::int32_t>{ids_TK},
                   {scores_TK, gradient, dselected_TK, gradient}, memory),
               gatepro::Error);
}

TEST(Overlap, InPlaceSoftmaxGivesTheSameBits) {
  const auto logits_TK = random_matrix<float>(300, 4, 7);
  gatepro::RowMatrix<float> apart_TK(300, 4), dapart_TK(300, 4), in_place_TK = logits_TK;
  auto din_place_TK = random_matrix<float>(300, 4, 8);
  std::vector<std::byte> memory(gatepro::softmax_selected_workspace_bytes<float>(4));
  gatepro::softmax_selected(logits_TK, gatepro::strided_view(apart_TK), memory);
  gatepro::softmax_selected(in_place_TK, gatepro::strided_view(in_place_TK), memory);
  EXPECT_EQ(apart_TK, in_place_TK);
  gatepro::softmax_backward(apart_TK, din_place_TK, gatepro::strided_view(dapart_TK));
  gatepro::softmax_backward(apart_TK, din_place_TK, gatepro::strided_view(din_place_TK));
  EXPECT_EQ(dapart_TK, din_place_TK);
}

TEST(Overlap, Similarity) {
  const std::size_t needed = gatepro::find_partners_workspace_bytes<float>(experts, hidden, 1);
  expect_overlaps_refused({{"partners_EM", experts * 4, true, 4},
                           {"similarity_EE", experts * experts * 4, true, 4},
                           {"w_EH", experts * hidden * 4, false, 4},
                           {"workspace", needed, true, 1}},
                          [&](const auto& at) {
                            gatepro::find_partners(MatrixView(as<float>(at[2]), experts, hidden),
                                                   gatepro::Pairing{},
                                                   {MatrixView(as<std::int32_t>(at[0]), experts, 1),
                                                    MatrixView(as<float>(at[1]), experts, experts)},
                                                   Workspace(at[3], needed));
                          });
}

TEST(Overlap, OrthogonalityLoss) {
  gatepro::OrthogonalityRule rule;
  rule.coefficient = 1;
  rule.only_partners = true;
  const std::size_t needed = gatepro::orthogonality_loss_workspace_bytes<float>(experts, hidden, 1);
  expect_overlaps_refused(
      {{"dw_EH", experts * hidden * 4, true, 4},
       {"w_EH", experts * hidden * 4, false, 4},
       {"partners_EM", experts * 4, false, 4},
       {"workspace", needed, true, 1}},
      [&](const auto& at) {
        gatepro::orthogonality_loss(
            MatrixView(as<float>(at[1]), experts, hidden), {as<std::int32_t>(at[2]), experts, 1},
            rule, MatrixView(as<float>(at[0]), experts, hidden), Workspace(at[3], needed));
      });
}

TEST(Overlap, RouterForward) {
  const gatepro::Router<float> router({hidden, experts, top_k, gatepro::Competition::off()});
  const std::size_t needed = router.forward_workspace_bytes();
  const auto routing = [](const auto& at) {
    gatepro::RoutingView<float> out;
    out.expert_ids_TK = {as<std::int32_t>(at[0]), tokens, top_k};
    out.weights_TK = {as<float>(at[1]), tokens, top_k};
    out.tokens_per_expert_E = {as<std::int64_t>(at[2]), experts};
    out.statistics = as<gatepro::PenaltyStatistics>(at[3]);
    return out;
  };
  expect_overlaps_refused({{"expert_ids_TK", bytes_of_TK, true, 4},
                           {"weights_TK", bytes_of_TK, true, 4},
                           {"tokens_per_expert_E", experts * 8, true},
                           {"statistics", sizeof(gatepro::PenaltyStatistics), true},
                           {"logits_TE", bytes_of_TE, true, 4},
                           {"x_TH", tokens * hidden * 4, false, 4},
                           {"w_EH", experts * hidden * 4, false, 4},
                           {"workspace", needed, true, 1}},
                          [&](const auto& at) {
                            auto out = routing(at);
                            out.logits_TE = {as<float>(at[4]), tokens, experts};
                            router.forward(
                                {as<float>(at[5]), tokens, hidden},
                                MatrixView<const float>(as<float>(at[6]), experts, hidden), out,
                                Workspace(at[7], needed));
                          });
  expect_overlaps_refused({{"expert_ids_TK", bytes_of_TK, true, 4},
                           {"weights_TK", bytes_of_TK, true, 4},
                           {"tokens_per_expert_E", experts * 8, true},
                           {"statistics", sizeof(gatepro::PenaltyStatistics), true},
                           {"logits_TE", bytes_of_TE, false, 4},
                           {"workspace", needed, true, 1}},
                          [&](const auto& at) {
                            router.forward_logits({as<float>(at[4]), tokens, experts}, routing(at),
                                                  Workspace(at[5], needed));
                          });
}

TEST(Overlap, RouterBackward) {
  const gatepro::Router<float> router({hidden, experts, top_k, gatepro::Competition::off()});
  const std::size_t needed = router.backward_workspace_bytes(tokens);
  expect_overlaps_refused(
      {{"dx_TH", tokens * hidden * 4, true, 4},
       {"dw_EH", experts * hidden * 4, true, 4},
       {"x_TH", tokens * hidden * 4, false, 4},
       {"w_EH", experts * hidden * 4, false, 4},
       {"expert_ids_TK", bytes_of_TK, false, 4},
       {"weights_TK", bytes_of_TK, false, 4},
       {"dweights_TK", bytes_of_TK, false, 4},
       {"dlogits_TE", bytes_of_TE, false, 4},
       {"workspace", needed, true, 1}},
      [&](const auto& at) {
        router.backward(
            {as<float>(at[2]), tokens, hidden}, {as<float>(at[3]), experts, hidden},
            {{as<std::int32_t>(at[4]), tokens, top_k}, {as<float>(at[5]), tokens, top_k}},
            {{as<float>(at[6]), tokens, top_k}, {as<float>(at[7]), tokens, experts}},
            {{as<float>(at[0]), tokens, hidden}, {as<float>(at[1]), experts, hidden}},
            Workspace(at[8], needed));
      });
}

TEST(Overlap, RouterBackwardOfLogits) {
  const gatepro::Router<float> router({hidden, experts, top_k, gatepro::Competition::off()});
  const std::size_t needed = router.backward_logits_workspace_bytes(tokens);
  expect_overlaps_refused(
      {{"dlogits_TE", bytes_of_TE, true, 4},
       {"expert_ids_TK", bytes_of_TK, false, 4},
       {"weights_TK", bytes_of_TK, false, 4},
       {"dweights_TK", bytes_of_TK, false, 4},
       {"incoming.dlogits_TE", bytes_of_TE, false, 4},
       {"workspace", needed, true, 1}},
      [&](const auto& at) {
        router.backward_logits(
            {{as<std::int32_t>(at[1]), tokens, top_k}, {as<float>(at[2]), tokens, top_k}},
            {{as<float>(at[3]), tokens, top_k}, {as<float>(at[4]), tokens, experts}},
            {as<float>(at[0]), tokens, experts}, Workspace(at[5], needed));
      });
}

TEST(Overlap, MergedLogitGradients) {
  expect_overlaps_refused(
      {{"dlogits_TE", bytes_of_TE, true, 4},
       {"expert_ids_TK", bytes_of_TK, false, 4},
       {"dselected_logits_TK", bytes_of_TK, false, 4},
       {"gradients.dlogits_TE", bytes_of_TE, false, 4}},
      [&](const auto& at) {
        gatepro::merge_logit_gradients(
            gatepro::Choices{StridedView(as<std::int32_t>(at[1]), tokens, top_k)},
            {StridedView(as<float>(at[2]), tokens, top_k), {as<float>(at[3]), tokens, experts}},
            MatrixView(as<float>(at[0]), tokens, experts));
      });
}

TEST(Overlap, CountNeededBias) {
  gatepro::QuantileRule rule;
  rule.bins = 3;
  const std::size_t needed =
      gatepro::count_needed_bias_workspace_bytes<float>(experts, top_k, rule);
  expect_overlaps_refused({{"counts_EB", experts * 4 * 8, true},
                           {"scores_TE", bytes_of_TE, false, 4},
                           {"bias_E", experts * 4, false, 4},
                           {"is_padding_T", tokens, false, 1},
                           {"workspace", needed, true, 1}},
                          [&](const auto& at) {
                            gatepro::count_needed_bias(
                                MatrixView(as<float>(at[1]), tokens, experts),
                                {as<float>(at[2]), experts}, {as<std::uint8_t>(at[3]), tokens},
                                top_k, rule, {as<std::int64_t>(at[0]), experts, 4},
                                {at[4], needed});
                          });
}

TEST(Overlap, RouteLogits) {
  gatepro::SelectionRule rule;
  rule.top_k = top_k;
  rule.competition = gatepro::Competition::off();
  const std::size_t needed = gatepro::route_logits_workspace_bytes<float>(experts, rule);
  expect_overlaps_refused({{"expert_ids_TK", bytes_of_TK, true, 4},
                           {"weights_TK", bytes_of_TK, true, 4},
                           {"scores_TK", bytes_of_TK, true, 4},
                           {"penalised_TK", tokens * top_k, true, 1},
                           {"tokens_per_expert_E", experts * 8, true},
                           {"logits_TE", bytes_of_TE, false, 4},
                           {"expert_bias_E", experts * 4, false, 4},
                           {"is_padding_T", tokens, false, 1},
                           {"workspace", needed, true, 1},
                           {"choice_values_TK", bytes_of_TK, true, 4}},
                          [&](const auto& at) {
                            gatepro::RoutingView<float> out;
                            out.choice_values_TK = {as<float>(at[9]), tokens, top_k};
                            out.expert_ids_TK = {as<std::int32_t>(at[0]), tokens, top_k};
                            out.weights_TK = {as<float>(at[1]), tokens, top_k};
                            out.scores_TK = {as<float>(at[2]), tokens, top_k};
                            out.penalised_TK = {as<std::uint8_t>(at[3]), tokens, top_k};
                            out.tokens_per_expert_E = {as<std::int64_t>(at[4]), experts};
                            gatepro::route_logits({{as<float>(at[5]), tokens, experts},
                                                   {as<float>(at[6]), experts},
                                                   {as<std::uint8_t>(at[7]), tokens}},
                                                  gatepro::RivalTable(), rule, out,
                                                  Workspace(at[8], needed));
                          });
}

TEST(Overlap, Metrics) {
  expect_overlaps_refused(
      {{"sorted_E", experts * 8, true}, {"tokens_per_expert_E", experts * 8, false}},
      [&](const auto& at) {
        gatepro::load_metrics({as<std::int64_t>(at[1]), experts},
                              {as<std::int64_t>(at[0]), experts});
      });
  expect_overlaps_refused(
      {{"in_degree_E", experts * 8, true}, {"partners_EM", experts * 4, false, 4}},
      [&](const auto& at) {
        gatepro::partner_graph({as<std::int32_t>(at[1]), experts, 1},
                               {as<std::int64_t>(at[0]), experts});
      });
  const std::size_t needed = gatepro::count_margins_workspace_bytes<float>(experts, top_k);
  gatepro::MarginCounts counts;
  expect_overlaps_refused(
      {{"logits_TE", bytes_of_TE, false, 4},
       {"is_padding_T", tokens, false, 1},
       {"workspace", needed, true, 1}},
      [&](const auto& at) {
        const gatepro::MatrixView<const float> logits_TE(as<float>(at[0]), tokens, experts);
        gatepro::count_margins(logits_TE, gatepro::RivalTable(), {top_k},
                               {as<std::uint8_t>(at[1]), tokens}, counts, Workspace(at[2], needed));
      });
}

TEST(Overlap, KeepFewerChoices) {
  gatepro::SelectionRule rule;
  rule.top_k = top_k;
  const std::vector<std::int64_t> begin_S1{0, tokens};
  const std::size_t needed = gatepro::keep_fewer_choices_workspace_bytes<float>(top_k);
  expect_overlaps_refused(
      {{"expert_ids_TK", bytes_of_TK, true, 4},
       {"weights_TK", bytes_of_TK, true, 4},
       {"scores_TK", bytes_of_TK, true, 4},
       {"penalised_TK", tokens * top_k, true, 1},
       {"tokens_per_expert_E", experts * 8, true},
       {"logits_TE", bytes_of_TE, false, 4},
       {"choice_values_TK", bytes_of_TK, true, 4},
       {"is_padding_T", tokens, false, 1},
       {"workspace", needed, true, 1}},
      [&](const auto& at) {
        gatepro::RoutingView<float> out;
        out.expert_ids_TK = {as<std::int32_t>(at[0]), tokens, top_k};
        out.weights_TK = {as<float>(at[1]), tokens, top_k};
        out.scores_TK = {as<float>(at[2]), tokens, top_k};
        out.penalised_TK = {as<std::uint8_t>(at[3]), tokens, top_k};
        out.tokens_per_expert_E = {as<std::int64_t>(at[4]), experts};
        out.choice_values_TK = {as<float>(at[6]), tokens, top_k};
        gatepro::keep_fewer_choices<float>(
            {{as<float>(at[5]), tokens, experts}, {}, {as<std::uint8_t>(at[7]), tokens}}, rule,
            gatepro::FewerChoices{0.5, 1}, begin_S1, out, Workspace(at[8], needed));
      });
}

TEST(Overlap, WeighChoicesAndBackward) {
  gatepro::SelectionRule rule;
  rule.top_k = 1;
  rule.competition = gatepro::Competition::off();
  const std::size_t needed = gatepro::weigh_choices_workspace_bytes<float>(experts, rule);
  expect_overlaps_refused(
      {{"weights_TK", tokens * 4, true, 4},
       {"scores_TK", tokens * 4, true, 4},
       {"logits_TE", bytes_of_TE, false, 4},
       {"is_padding_T", tokens, false, 1},
       {"expert_ids_TK", tokens * 4, false, 4},
       {"penalised_TK", tokens, false, 1},
       {"workspace", needed, true, 1}},
      [&](const auto& at) {
        gatepro::RoutingView<float> out;
        out.weights_TK = {as<float>(at[0]), tokens, 1};
        out.scores_TK = {as<float>(at[1]), tokens, 1};
        const gatepro::RecordedChoices<std::int32_t> chosen{{as<std::int32_t>(at[4]), tokens, 1},
                                                            {as<std::uint8_t>(at[5]), tokens, 1}};
        gatepro::weigh_choices(
            {{as<float>(at[2]), tokens, experts}, {}, {as<std::uint8_t>(at[3]), tokens}},
            gatepro::RivalTable(), rule, chosen, out, Workspace(at[6], needed));
      });
  expect_overlaps_refused(
      {{"dselected_logits_TK", tokens * 4, true, 4},
       {"dlogits_TE", bytes_of_TE, true, 4},
       {"logits_TE", bytes_of_TE, false, 4},
       {"scores_TK", tokens * 8 - 4, false, 4},
       {"dweights_TK", tokens * 8 - 4, false, 4},
       {"expert_ids_TK", tokens * 4, false, 4},
       {"workspace", needed, true, 1}},
      [&](const auto& at) {
        const gatepro::RecordedChoices<std::int32_t> chosen{{as<std::int32_t>(at[5]), tokens, 1}};
        gatepro::route_logits_backward<float>({{as<float>(at[2]), tokens, experts}},
                                              gatepro::RivalTable(), rule, chosen,
                                              {{as<float>(at[3]), tokens, 1, 2, 1},
                                               {as<float>(at[4]), tokens, 1, 2, 1},
                                               {as<float>(at[0]), tokens, 1},
                                               {as<float>(at[1]), tokens, experts}},
                                              Workspace(at[6], needed));
      });
}

TEST(Overlap, GateBackward) {
  const std::size_t to_tokens = gatepro::gate_backward_tokens_workspace_bytes<float>(experts);
  const std::size_t to_weights =
      gatepro::gate_backward_weights_workspace_bytes<float>(tokens, experts, top_k);
  const auto slots = [](const char* output, std::size_t rows, const char* input,
                        std::size_t input_rows, std::size_t needed) {
    return std::vector<Slot>{
        {output, rows * hidden * 4, true, 4},     {input, input_rows * hidden * 4, false, 4},
        {"expert_ids_TK", bytes_of_TK, false, 4}, {"dselected_logits_TK", bytes_of_TK, false, 4},
        {"dlogits_TE", bytes_of_TE, false, 4},    {"workspace", needed, true, 1},
        {"is_padding_T", tokens, false}};
  };
  const auto gradients = [](const auto& at, const auto& call) {
    call(gatepro::Choices{StridedView(as<std::int32_t>(at[2]), tokens, top_k),
                          {as<std::uint8_t>(at[6]), tokens}},
         gatepro::LogitGradients<float>{{as<float>(at[3]), tokens, top_k},
                                        {as<float>(at[4]), tokens, experts}});
  };
  expect_overlaps_refused(slots("dx_TH", tokens, "w_EH", experts, to_tokens), [&](const auto& at) {
    gradients(at, [&](const auto& choices, const auto& dlogits) {
      gatepro::gate_backward_tokens(choices, dlogits, MatrixView(as<float>(at[1]), experts, hidden),
                                    MatrixView(as<float>(at[0]), tokens, hidden),
                                    Workspace(at[5], to_tokens));
    });
  });
  expect_overlaps_refused(slots("dw_EH", experts, "x_TH", tokens, to_weights), [&](const auto& at) {
    gradients(at, [&](const auto& choices, const auto& dlogits) {
      gatepro::gate_backward_weights(choices, dlogits, MatrixView(as<float>(at[1]), tokens, hidden),
                                     MatrixView(as<float>(at[0]), experts, hidden),
                                     Workspace(at[5], to_weights));
    });
  });
  expect_overlaps_refused(
      {{"dbias_E", experts * 4, true, 4},
       {"expert_ids_TK", bytes_of_TK, false, 4},
       {"dselected_logits_TK", bytes_of_TK, false, 4},
       {"dlogits_TE", bytes_of_TE, false, 4},
       {"is_padding_T", tokens, false}},
      [&](const auto& at) {
        gatepro::gate_backward_bias(
            gatepro::Choices{StridedView(as<std::int32_t>(at[1]), tokens, top_k),
                             {as<std::uint8_t>(at[4]), tokens}},
            {{as<float>(at[2]), tokens, top_k}, {as<float>(at[3]), tokens, experts}},
            VectorView(as<float>(at[0]), experts));
      });
}

TEST(Overlap, SoftCap) {
  expect_overlaps_refused(
      {{"dlogits_TE", bytes_of_TE, true, 4}, {"capped_TE", bytes_of_TE, false, 4}},
      [&](const auto& at) {
        gatepro::soft_cap_backward(1, MatrixView<const float>(as<float>(at[1]), tokens, experts),
                                   MatrixView(as<float>(at[0]), tokens, experts));
      });
  expect_overlaps_refused(
      {{"dselected_logits_TK", bytes_of_TK, true, 4},
       {"capped_TE", bytes_of_TE, false, 4},
       {"expert_ids_TK", bytes_of_TK, false, 4},
       {"is_padding_T", tokens, false}},
      [&](const auto& at) {
        gatepro::soft_cap_backward(
            1, MatrixView<const float>(as<float>(at[1]), tokens, experts),
            gatepro::Choices{StridedView(as<std::int32_t>(at[2]), tokens, top_k),
                             {as<std::uint8_t>(at[3]), tokens}},
            StridedView(as<float>(at[0]), tokens, top_k));
      });
}

TEST(Overlap, Losses) {
  const std::size_t needed = gatepro::z_loss_workspace_bytes<float>(tokens, experts);
  expect_overlaps_refused({{"dlogits_TE", bytes_of_TE, true, 4},
                           {"logits_TE", bytes_of_TE, false, 4},
                           {"is_padding_T", tokens, false, 1},
                           {"workspace", needed, true, 1}},
                          [&](const auto& at) {
                            gatepro::z_loss(
                                gatepro::LossLogits{MatrixView(as<float>(at[1]), tokens, experts),
                                                    {as<std::uint8_t>(at[2]), tokens},
                                                    MatrixView(as<float>(at[0]), tokens, experts)},
                                {1, 0, 1}, Workspace(at[3], needed));
                          });
}

TEST(Overlap, BalanceLosses) {
  const auto function = gatepro::ScoreFunction::sigmoid;
  const std::size_t batch = gatepro::load_balancing_loss_workspace_bytes<float>(tokens, experts);
  expect_overlaps_refused({{"dlogits_TE", bytes_of_TE, true, 4},
                           {"logits_TE", bytes_of_TE, false, 4},
                           {"tokens_per_expert_E", experts * 8, false},
                           {"workspace", batch, true, 1}},
                          [&](const auto& at) {
                            gatepro::load_balancing_loss(
                                gatepro::LossLogits{MatrixView(as<float>(at[1]), tokens, experts),
                                                    {},
                                                    MatrixView(as<float>(at[0]), tokens, experts)},
                                {{as<std::int64_t>(at[2]), experts}, tokens}, {function, 1},
                                {1, 0, 1}, Workspace(at[3], batch));
                          });
  const std::vector<std::int64_t> begin_S1{0, tokens};
  const std::size_t sequence =
      gatepro::sequence_load_balancing_loss_workspace_bytes<float>(tokens, experts, 1);
  expect_overlaps_refused(
      {{"dlogits_TE", bytes_of_TE, true, 4},
       {"logits_TE", bytes_of_TE, false, 4},
       {"expert_ids_TK", tokens * 4, false, 4},
       {"workspace", sequence, true, 1}},
      [&](const auto& at) {
        gatepro::sequence_load_balancing_loss(
            gatepro::LossLogits{MatrixView(as<float>(at[1]), tokens, experts),
                                {},
                                MatrixView(as<float>(at[0]), tokens, experts)},
            gatepro::SequenceChoices{StridedView(as<std::int32_t>(at[2]), tokens, 1), begin_S1},
            function, {1, 0, 1}, Workspace(at[3], sequence));
      });
}

TEST(Overlap, CapacityAndDispatch) {
  const std::size_t drops = gatepro::drop_over_capacity_workspace_bytes<float>(
      tokens, experts, 1, gatepro::DropPolicy::probability);
  expect_overlaps_refused({{"weights_TK", tokens * 4, true, 4},
                           {"kept_TK", tokens, true, 1},
                           {"tokens_per_expert_E", experts * 8, true},
                           {"expert_ids_TK", tokens * 4, false, 4},
                           {"is_padding_T", tokens, false, 1},
                           {"workspace", drops, true, 1}},
                          [&](const auto& at) {
                            gatepro::drop_over_capacity(
                                gatepro::Choices{StridedView(as<std::int32_t>(at[3]), tokens, 1),
                                                 {as<std::uint8_t>(at[4]), tokens}},
                                {2, gatepro::DropPolicy::probability},
                                gatepro::KeptRouting{StridedView(as<float>(at[0]), tokens, 1),
                                                     {as<std::uint8_t>(at[1]), tokens, 1},
                                                     {as<std::int64_t>(at[2]), experts}},
                                Workspace(at[5], drops));
                          });
  const std::size_t plans = gatepro::plan_dispatch_workspace_bytes(experts);
  expect_overlaps_refused({{"tokens_per_expert_E", experts * 8, true},
                           {"offsets_E1", (experts + 1) * 8, true},
                           {"choice_of_row_N", tokens * 4, true, 4},
                           {"row_TK", tokens * 4, true, 4},
                           {"expert_ids_TK", tokens * 4, false, 4},
                           {"kept_TK", tokens, false, 1},
                           {"workspace", plans, true, 1},
                           {"flat_index_of_row_N", tokens * 4, true, 4}},
                          [&](const auto& at) {
                            gatepro::DispatchPlan<> plan;
                            plan.tokens_per_expert_E = {as<std::int64_t>(at[0]), experts};
                            plan.offsets_E1 = {as<std::int64_t>(at[1]), experts + 1};
                            plan.choice_of_row_N = {as<std::int32_t>(at[2]), tokens};
                            plan.row_TK = {as<std::int32_t>(at[3]), tokens, 1};
                            plan.flat_index_of_row_N = {as<std::int32_t>(at[7]), tokens};
                            gatepro::plan_dispatch(
                                gatepro::Choices{StridedView(as<std::int32_t>(at[4]), tokens, 1),
                                                 {},
                                                 {as<std::uint8_t>(at[5]), tokens, 1}},
                                experts, gatepro::DispatchRule{}, plan, Workspace(at[6], plans));
                          });
}

TEST(Overlap, DenseRouting) {
  expect_overlaps_refused(
      {{"probs_TE", bytes_of_TE, true, 4},
       {"routing_map_TE", tokens * experts, true, 1},
       {"routing_bits_TB", tokens, true, 1},
       {"expert_ids_TK", tokens * 4, false, 4},
       {"weights_TK", tokens * 4, false, 4}},
      [&](const auto& at) {
        gatepro::dense_routing(
            gatepro::Choices{StridedView(as<std::int32_t>(at[3]), tokens, 1)}, experts,
            StridedView<const float>(as<float>(at[4]), tokens, 1),
            gatepro::DenseRouting<float>{{as<float>(at[0]), tokens, experts},
                                         {as<std::uint8_t>(at[1]), tokens, experts},
                                         {as<std::uint8_t>(at[2]), tokens, 1}});
      });
}

TEST(Overlap, ARefusedPlanLeavesIdsAlone) {
  const std::size_t needed = gatepro::plan_dispatch_workspace_bytes(experts);
  std::vector<std::int32_t> memory(needed / sizeof(std::int32_t) + 16);
  std::iota(memory.begin(), memory.end(), 0);
  const auto before = memory;
  gatepro::DispatchPlan<> plan;
  const auto call = [&] {
    gatepro::plan_dispatch(gatepro::Choices{StridedView(memory.data(), experts, 1)}, experts,
                           gatepro::DispatchRule{}, plan, Workspace(memory.data(), needed));
  };
  EXPECT_THROW(call(), gatepro::Error);
  EXPECT_EQ(memory, before);
}

TEST(Overlap, PermuteAndNoise) {
  const std::size_t bytes_of_TH = tokens * hidden * 4;
  expect_overlaps_refused({{"rows_NH", bytes_of_TH, true, 4},
                           {"x_TH", bytes_of_TH, false, 4},
                           {"token_of_row_N", tokens * 4, false, 4}},
                          [&](const auto& at) {
                            gatepro::permute(
                                VectorView(as<std::int32_t>(at[2]), tokens),
                                MatrixView<const float>(as<float>(at[1]), tokens, hidden),
                                MatrixView(as<float>(at[0]), tokens, hidden));
                          });
  expect_overlaps_refused({{"y_TH", bytes_of_TH, true, 4},
                           {"rows_NH", bytes_of_TH, false, 4},
                           {"row_TK", tokens * 4, false, 4},
                           {"weights_TK", tokens * 4, false, 4}},
                          [&](const auto& at) {
                            gatepro::combine(StridedView(as<std::int32_t>(at[2]), tokens, 1),
                                             StridedView<const float>(as<float>(at[3]), tokens, 1),
                                             MatrixView(as<float>(at[1]), tokens, hidden),
                                             MatrixView(as<float>(at[0]), tokens, hidden));
                          });
  expect_overlaps_refused({{"rows_NH", bytes_of_TH, true, 4},
                           {"x_TH", bytes_of_TH, false, 4},
                           {"choice_of_row_N", tokens * 4, false, 4},
                           {"weights_TK", tokens * 4, false, 4}},
                          [&](const auto& at) {
                            gatepro::permute_scaled(
                                VectorView(as<std::int32_t>(at[2]), tokens),
                                StridedView<const float>(as<float>(at[3]), tokens, 1),
                                MatrixView<const float>(as<float>(at[1]), tokens, hidden),
                                MatrixView(as<float>(at[0]), tokens, hidden));
                          });
  expect_overlaps_refused({{"dweights_TK", tokens * 4, true, 4},
                           {"x_TH", bytes_of_TH, false, 4},
                           {"row_TK", tokens * 4, false, 4},
                           {"drows_NH", bytes_of_TH, false, 4}},
                          [&](const auto& at) {
                            gatepro::permute_scaled_backward_weights(
                                StridedView(as<std::int32_t>(at[2]), tokens, 1),
                                MatrixView(as<float>(at[1]), tokens, hidden),
                                MatrixView<const float>(as<float>(at[3]), tokens, hidden),
                                StridedView(as<float>(at[0]), tokens, 1));
                          });
  const auto jitter = [](const auto& at) {
    gatepro::jitter_tokens(MatrixView<const float>(as<float>(at[1]), tokens, hidden), 0.1, {},
                           MatrixView(as<float>(at[0]), tokens, hidden));
  };
  expect_overlaps_refused({{"out_TH", bytes_of_TH, true, 4}, {"x_TH", bytes_of_TH, false, 4}},
                          jitter);
  std::vector<std::byte> memory(bytes_of_TH);
  EXPECT_NO_THROW(jitter(std::vector<std::byte*>{memory.data(), memory.data()}));
}

TEST(Overlap, CompleteRouter) {
  gatepro::CompleteConfig config;
  static_cast<gatepro::RouterConfig&>(config) = {hidden, experts, top_k,
                                                 gatepro::Competition::off()};
  gatepro::CompleteRouter<float> router(config);
  gatepro::RoutingBuffers buffers(router, tokens);
  const auto x_TH = random_matrix<float>(tokens, hidden, 1);
  const auto w_EH = random_matrix<float>(experts, hidden, 2);
  const auto dweights_TK = random_matrix<float>(tokens, top_k, 3);
  auto out = buffers.view();
  out.weights_TK.data = out.scores_TK.data + 1;
  expect_error([&] { router.forward(x_TH, w_EH, {}, out, buffers.workspace()); },
               {"CompleteRouter::forward", "weights_TK and scores_TK overlap"});
  out = buffers.view();
  const MatrixView<const float> in_out(out.logits_TE.data, tokens, hidden, hidden);
  expect_error([&] { router.forward(in_out, w_EH, {}, out, buffers.workspace()); },
               {"CompleteRouter::forward", "logits_TE and x_TH overlap"});
  const auto report = router.forward(x_TH, w_EH, {}, out, buffers.workspace());
  // What an output already holds must not be added to it once more.
  gatepro::RowMatrix<float> dlogits_TE = random_matrix<float>(tokens, experts, 4);
  const auto before = dlogits_TE;
  gatepro::BackwardInputs<float> more;
  more.dweights_TK = dweights_TK;
  more.dlogits_TE = dlogits_TE;
  expect_error(
      [&] {
        router.backward_logits({{}, out, report}, more, dlogits_TE, buffers.workspace());
      },
      {"CompleteRouter::backward", "dlogits_TE and incoming.dlogits_TE overlap"});
  gatepro::RowMatrix<float> dw_EH = gatepro::RowMatrix<float>::Zero(experts, hidden);
  more.dlogits_TE = {};
  expect_error(
      [&] {
        router.backward(x_TH, w_EH, {{}, out, report}, more,
                        {{out.logits_TE.data, tokens, hidden}, dw_EH}, buffers.workspace());
      },
      {"CompleteRouter::backward", "logits_TE and dx_TH overlap"});
  EXPECT_EQ(dlogits_TE, before);
}

TEST(Overlap, WhatLossesTakeFromACompleteForward) {
  gatepro::CompleteConfig config;
  static_cast<gatepro::RouterConfig&>(config) = {hidden, experts, top_k,
                                                 gatepro::Competition::off()};
  config.losses.batch = config.losses.z = 0.1;
  gatepro::CompleteRouter<float> router(config);
  gatepro::RoutingBuffers buffers(router, tokens);
  const auto x_TH = random_matrix<float>(tokens, hidden, 1);
  const auto w_EH = random_matrix<float>(experts, hidden, 2);
  const auto refused = [&](const auto& spoil, const char* names) {
    auto out = buffers.view();
    spoil(out);
    expect_error([&] { router.forward(x_TH, w_EH, {}, out, buffers.workspace()); },
                 {"CompleteRouter::forward", names});
  };
  refused([](auto& out) { out.log_sum_exp_T.data = out.scores_TK.data + 1; },
          "scores_TK and log_sum_exp_T overlap");
  refused([](auto& out) { out.share_sums_E.data = reinterpret_cast<double*>(out.totals.data); },
          "totals and share_sums_E overlap");
}

// A forward writes into no record but by filling it.
TEST(Overlap, RecordsOfTheCompleteRouter) {
  gatepro::CompleteConfig config;
  static_cast<gatepro::RouterConfig&>(config) = {hidden, experts, top_k,
                                                 gatepro::Competition::off()};
  config.losses.z = 0.1;
  config.capacity = gatepro::CapacityRule{};
  gatepro::CompleteRouter<float> router(config);
  gatepro::RoutingBuffers buffers(router, gatepro::BufferShape{tokens, 1, 1, true, true});
  const auto x_TH = random_matrix<float>(tokens, hidden, 1);
  const auto w_EH = random_matrix<float>(experts, hidden, 2);
  gatepro::RoutingRecord<> record;
  gatepro::ForwardInputs<> first, again;
  first.record = &record;
  again.pass = gatepro::Pass::recompute;
  again.replay = &record;
  router.forward(x_TH, w_EH, first, buffers);
  const gatepro::RoutingRecord<> before = record;
  const auto refused = [&](const auto& spoil, const char* output, const char* member) {
    auto out = buffers.view();
    spoil(out);
    for (const bool replayed : {false, true}) {
      const std::string names =
          std::string(output) + " and " + (replayed ? "replay->" : "record->") + member;
      expect_error(
          [&] { router.forward(x_TH, w_EH, replayed ? again : first, out, buffers.workspace()); },
          {"CompleteRouter::forward", names.c_str()});
    }
  };
  refused(
      [&](auto& out) {
        out.weights_TK = {reinterpret_cast<float*>(record.expert_ids_TK.data()), tokens, top_k};
      },
      "weights_TK", "expert_ids_TK");
  refused([&](auto& out) { out.expert_ids_TK.data = record.expert_ids_TK.data(); }, "expert_ids_TK",
          "expert_ids_TK");
  refused([&](auto& out) { out.penalised_TK.data = record.penalised_TK.data(); }, "penalised_TK",
          "penalised_TK");
  refused([&](auto& out) { out.kept_TK.data = record.kept_TK.data(); }, "kept_TK", "kept_TK");
  refused([&](auto& out) { out.totals.data = record.totals.data(); }, "totals", "totals");
  EXPECT_EQ(record.expert_ids_TK, before.expert_ids_TK);
  EXPECT_EQ(record.kept_TK, before.kept_TK);
  EXPECT_EQ(record.totals, before.totals);
  again.record = &record;  // the same record may be followed and filled
  EXPECT_NO_THROW(router.forward(x_TH, w_EH, again, buffers));
  EXPECT_EQ(record.expert_ids_TK, before.expert_ids_TK);
}

// Halves of the columns of one matrix, and weights between the ids: rows and columns interleave.
TEST(Overlap, InterleavedOutputsGiveTheSameBits) {
  const auto x_TH = random_matrix<float>(tokens, hidden, 1);
  const auto w_EH = random_matrix<float>(experts, hidden, 2);
  const gatepro::Router<float> router({hidden, experts, top_k, gatepro::Competition::off()});
  std::vector<std::byte> memory(router.forward_workspace_bytes());
  gatepro::RowMatrix<std::int32_t> ids_TK(tokens, top_k);
  gatepro::RowMatrix<float> weights_TK(tokens, top_k);
  gatepro::RoutingView<float> out;
  out.expert_ids_TK = ids_TK;
  out.weights_TK = weights_TK;
  router.forward(x_TH, gatepro::view(w_EH), out, memory);
  gatepro::RowMatrix<float> both(tokens, 2 * top_k);
  auto* ids = reinterpret_cast<std::int32_t*>(both.data());
  const auto expect_same = [&] {
    router.forward(x_TH, gatepro::view(w_EH), out, memory);
    for (Index t = 0; t < tokens; ++t) {
      for (Index j = 0; j < top_k; ++j) {
        EXPECT_EQ(out.expert_ids_TK(t, j), ids_TK(t, j));
        EXPECT_EQ(out.weights_TK(t, j), weights_TK(t, j));
      }
    }
  };
  out.expert_ids_TK = {ids, tokens, top_k, 2 * top_k, 1};
  out.weights_TK = {both.data() + top_k, tokens, top_k, 2 * top_k, 1};
  expect_same();
  out.expert_ids_TK = {ids, tokens, top_k, 2 * top_k, 2};
  out.weights_TK = {both.data() + 1, tokens, top_k, 2 * top_k, 2};
  expect_same();
  out.expert_ids_TK = {ids, tokens, top_k, 1, 2 * tokens};
  out.weights_TK = {both.data() + tokens, tokens, top_k, 1, 2 * tokens};
  expect_same();
}

}  // namespace
