// SPDX-License-Identifier: MIT
// What a complete router tells about its penalty.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <cstdint>
#include <set>
#include <vector>

#include "support/complete_data.hpp"
#include "support/errors.hpp"

namespace {

using complete_data::Batch;
using complete_data::zeros;
using gatepro::Competition;
using gatepro::CompleteConfig;
using gatepro::CompleteRouter;
using gatepro::ForwardInputs;
using gatepro::GroupScore;
using gatepro::Index;
using gatepro::ScoreFunction;

struct Observed : Batch {
  std::vector<std::uint8_t> is_padding = std::vector<std::uint8_t>(T, 0);

  template <class R, class... In>
  gatepro::PenaltyStatistics operator()(R& router, const In&... in) const {
    gatepro::RoutingBuffers<R> buffers(router, gatepro::BufferShape{T, 1, 1, true, true});
    gatepro::PenaltyStatistics statistics;
    auto out = buffers.view();
    out.statistics = &statistics;
    router.forward(x_TH, w_EH, in..., out, buffers.workspace());
    return statistics;
  }
};

void expect_same(const gatepro::PenaltyStatistics& got, const gatepro::PenaltyStatistics& want) {
  EXPECT_EQ(got.tokens, want.tokens);
  EXPECT_EQ(got.penalised_pairs, want.penalised_pairs);
  EXPECT_EQ(got.tied_pairs, want.tied_pairs);
  EXPECT_EQ(got.penalties_lost_in_rounding, want.penalties_lost_in_rounding);
  EXPECT_EQ(got.tokens_changed, want.tokens_changed);
  EXPECT_EQ(got.tokens_short_of_survivors, want.tokens_short_of_survivors);
  EXPECT_EQ(got.partnered_selections, want.partnered_selections);
  EXPECT_EQ(got.coactivations, want.coactivations);
  EXPECT_EQ(got.unpenalised_partnered_selections, want.unpenalised_partnered_selections);
  EXPECT_EQ(got.unpenalised_coactivations, want.unpenalised_coactivations);
}

TEST(CompleteStatistics, AreThoseOfThePlainRouter) {
  const Observed observe;
  for (const Competition& competition : {Competition::penalty(0.3), Competition::eliminate()}) {
    const gatepro::RouterConfig config{Observed::H, Observed::E, Observed::K, competition};
    gatepro::Router<float> plain(config);
    CompleteConfig complete_config{config};
    CompleteRouter<float> complete(complete_config);
    complete_config.bias.enabled = true;  // of zeros, which takes another way
    CompleteRouter<float> biased(complete_config);
    plain.refresh(observe.w_EH, 0);
    complete.refresh(observe.w_EH, 0);
    biased.refresh(observe.w_EH, 0);
    const auto want = observe(plain);
    EXPECT_GT(want.tokens_changed, 0);
    EXPECT_GT(want.penalised_pairs, 0);
    for (const auto& got :
         {observe(complete, ForwardInputs<>()), observe(biased, ForwardInputs<>())}) {
      expect_same(got, want);
    }
  }
}

// Who would be chosen without a penalty follows from the same scores, bias and groups.
TEST(CompleteStatistics, CountChangesUnderEveryRule) {
  Observed observe;
  for (Index t = 0; t < Observed::T; t += 5) observe.is_padding[static_cast<std::size_t>(t)] = 1;
  ForwardInputs<> in;
  in.is_padding_T = observe.is_padding;
  CompleteConfig config{{Observed::H, Observed::E, Observed::K, Competition::penalty(0.3)}};
  config.groups = {4, 2, GroupScore::top_2};
  for (ScoreFunction function : {ScoreFunction::softmax_before_top_k, ScoreFunction::sigmoid,
                                 ScoreFunction::sqrt_softplus}) {
    config.scores = {function, true, 2};
    CompleteRouter<float> router(config);
    router.refresh(observe.w_EH, 0);
    const auto statistics = observe(router, in);
    const auto chosen_with = [&](const Competition& competition) {
      router.set_competition(competition);
      gatepro::RoutingBuffers<CompleteRouter<float>> buffers(router, Observed::T);
      router.forward(observe.x_TH, observe.w_EH, in, buffers);
      std::vector<std::set<int>> sets(Observed::T);
      for (Index t = 0; t < Observed::T; ++t) {
        for (Index j = 0; j < Observed::K; ++j) {
          sets[static_cast<std::size_t>(t)].insert(buffers.expert_ids_TK()(t, j));
        }
      }
      return sets;
    };
    const auto with = chosen_with(config.competition), without = chosen_with(Competition::off());
    std::int64_t valid = 0, changed = 0;
    for (std::size_t t = 0; t < with.size(); ++t) {
      if (observe.is_padding[t] != 0) continue;
      ++valid;
      changed += with[t] != without[t] ? 1 : 0;
    }
    EXPECT_GT(changed, 0);
    EXPECT_EQ(statistics.tokens, valid);
    EXPECT_EQ(statistics.tokens_changed, changed) << static_cast<int>(function);
  }
}

// Sets of equal size: all K of a call, whatever a threshold or a budget then leaves.
TEST(CompleteStatistics, CompareSetsOfEqualSize) {
  const Observed observe;
  const std::vector<std::int64_t> whole{0, Observed::T};
  const gatepro::FewerChoices none{1, 0, 1}, likely{0.5, 0, 1}, budgeted{1, 1.5, 0};
  for (const Competition& competition : {Competition::penalty(0.3), Competition::eliminate()}) {
    for (const Index most : {Observed::K, Index{2}}) {
      const gatepro::RouterConfig config{Observed::H, Observed::E, most, competition};
      gatepro::Router<float> plain(config);
      plain.refresh(observe.w_EH, 0);
      const auto want = observe(plain);
      EXPECT_GT(want.tokens_changed, 0);
      for (const auto& fewer : {none, likely, budgeted}) {
        CompleteConfig complete{{Observed::H, Observed::E, Observed::K, competition}};
        complete.fewer = fewer;
        CompleteRouter<float> router(complete);
        router.refresh(observe.w_EH, 0);
        ForwardInputs<> in;
        in.top_k = most;
        in.sequence_begin_S1 = whole;
        expect_same(observe(router, in), want);
      }
    }
  }
}

TEST(CompleteStatistics, AreRefusedWhereThePenaltyHadNoPart) {
  const Observed observe;
  CompleteConfig config{{Observed::H, Observed::E, Observed::K}};
  CompleteRouter<float> router(config);
  router.refresh(observe.w_EH, 0);
  gatepro::RoutingRecord<> record;
  ForwardInputs<> in;
  in.record = &record;
  EXPECT_NO_THROW(observe(router, in));
  in.record = nullptr;
  in.replay = &record;
  expect_error([&] { observe(router, in); }, {"CompleteRouter::forward", "no statistics"});
  config.noise.forced = gatepro::ForcedRouting::round_robin;
  CompleteRouter<float> forced(config);
  forced.refresh(observe.w_EH, 0);
  expect_error([&] { observe(forced, ForwardInputs<>()); }, {"no statistics"});
}

}  // namespace
