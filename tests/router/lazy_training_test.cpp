// SPDX-License-Identifier: MIT
// A router that refreshes lazily trains as one that refreshes fully, to the bit.
#include <gatepro/router/router.hpp>

#include <gtest/gtest.h>

#include <cstdint>

#include "support/bits.hpp"
#include "support/inputs.hpp"

namespace {

using gatepro::Index;
using gatepro::RowMatrix;
using Router = gatepro::Router<float>;

constexpr Index tokens = 192, hidden = 48, experts = 40, top_k = 4;

/// Trains router weights so that tokens mix numbers, one of each expert, to a target.
class Training {
 public:
  Training(const gatepro::RefreshSchedule& schedule, Index m, float rate)
      : router_(config_of(schedule, m)), routing_(router_, tokens), rate_(rate) {}

  void step(std::int64_t step) {
    router_.refresh(w_EH, step);
    router_.forward(x_TH_, w_EH, routing_);
    for (Index t = 0; t < tokens; ++t) {
      const auto ids = routing_.expert_ids_TK().row(t);
      const auto weights = routing_.weights_TK().row(t);
      float mixed = -x_TH_.row(t).head(4).sum();
      for (Index j = 0; j < top_k; ++j) mixed += weights[j] * output_of(ids[j]);
      for (Index j = 0; j < top_k; ++j) {
        dweights_TK_(t, j) = 2 * mixed * output_of(ids[j]) / static_cast<float>(tokens);
      }
    }
    dw_EH_.setZero();
    router_.backward(x_TH_, w_EH, routing_, {dweights_TK_}, {{}, dw_EH_});
    velocity_EH_ = 0.9F * velocity_EH_ + dw_EH_;
    w_EH = (1 - 0.01F * rate_) * w_EH - rate_ * velocity_EH_;
  }

  const gatepro::SimilarityCache<float>& cache() const { return router_.similarity_cache(); }

  RowMatrix<float> w_EH = data::random_matrix<float>(experts, hidden, 1, 0.1);

 private:
  static gatepro::RouterConfig config_of(const gatepro::RefreshSchedule& schedule, Index m) {
    gatepro::RouterConfig config{hidden, experts, top_k};
    config.competition = gatepro::Competition::eliminate();
    config.pairing.partners_per_expert = m;
    config.refresh = schedule;
    return config;
  }
  static float output_of(std::int32_t expert) {
    return 4 * static_cast<float>(expert) / experts - 2;
  }

  RowMatrix<float> x_TH_ = data::random_matrix<float>(tokens, hidden, 2);
  RowMatrix<float> dw_EH_{experts, hidden}, dweights_TK_{tokens, top_k};
  RowMatrix<float> velocity_EH_ = RowMatrix<float>::Zero(experts, hidden);
  Router router_;
  gatepro::RoutingBuffers<Router> routing_;
  float rate_;
};

TEST(LazyTraining, EqualsFullTraining) {
  const auto every_step = gatepro::RefreshSchedule::every_step();
  for (const Index m : {1, 2}) {
    for (const float rate : {1e-5F, 1e-3F, 0.3F}) {
      Training lazy(every_step.lazily(), m, rate), full(every_step, m, rate);
      std::int64_t recomputed = 0;
      Index changes = 0;
      for (std::int64_t step = 0; step < 120; ++step) {
        lazy.step(step);
        full.step(step);
        const auto a = lazy.cache().partners(), b = full.cache().partners();
        ASSERT_TRUE(std::equal(a.data, a.data + experts * m, b.data)) << step;
        changes += step == 0 ? 0 : lazy.cache().partners_changed();
        recomputed = lazy.cache().total_rows_recomputed();
      }
      EXPECT_TRUE(data::same_bits(lazy.w_EH, full.w_EH));
      if (rate < 1e-4F) {
        EXPECT_LT(recomputed, 120 * experts / 4);
      } else {
        EXPECT_GT(changes, 0);
      }
    }
  }
}

// A checkpoint holds partners, not what a lazy refresh knows of them.
TEST(LazyTraining, GoesOnFromACheckpoint) {
  const auto lazily = gatepro::RefreshSchedule::every_step().lazily();
  const RowMatrix<float> w_EH = data::random_matrix<float>(experts, hidden, 3);
  gatepro::RouterConfig config{hidden, experts, top_k};
  config.refresh = lazily;
  Router saved(config), resumed(config);
  saved.refresh(w_EH, 0);
  resumed.set_partners(saved.similarity_cache().partners(), 0);
  EXPECT_FALSE(resumed.refresh(w_EH, 0));
  EXPECT_TRUE(resumed.refresh(w_EH, 1));
  EXPECT_EQ(resumed.similarity_cache().rows_recomputed(), experts);
  EXPECT_EQ(resumed.similarity_cache().partners_changed(), 0);
  EXPECT_TRUE(resumed.refresh(w_EH, 2));
  EXPECT_EQ(resumed.similarity_cache().rows_recomputed(), 0);
}

}  // namespace
