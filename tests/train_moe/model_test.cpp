// SPDX-License-Identifier: MIT
// The trainer's mathematics: gradients against finite differences, and its small parts.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "adam.hpp"
#include "arms.hpp"
#include "diagnosis.hpp"
#include "history.hpp"
#include "model.hpp"
#include "settings.hpp"
#include "training.hpp"
#include "words.hpp"

namespace train_moe {
namespace {

Sizes small_sizes() {
  Sizes sizes;
  sizes.tokens = 24;
  sizes.context = 3;
  sizes.embedding = 4;
  sizes.hidden = 7;
  sizes.layers = 2;
  sizes.experts = 8;
  sizes.top_k = 3;
  sizes.expert_hidden = 5;
  return sizes;
}

/// Everything that a tiny step could make jump: who is selected.
std::vector<std::int32_t> selections(Model<double>& model) {
  std::vector<std::int32_t> all;
  for (auto& layer : model.layers()) {
    const auto ids_TK = layer.routed().expert_ids_TK();
    all.insert(all.end(), ids_TK.data, ids_TK.data + ids_TK.rows * ids_TK.cols);
  }
  return all;
}

double objective(Model<double>& model, const Batch& batch) {
  const double loss = model.forward(batch);
  return loss + model.auxiliary_loss();
}

struct GradientCase {
  const char* arm;
  Index window = 1;
  Index top_k = 3;
};

class Gradient : public testing::TestWithParam<GradientCase> {};

// Central differences in double: truncation h^2 and rounding eps / h both stay far below 1e-6 of
// the largest gradient of a parameter.
TEST_P(Gradient, OfEveryParameterEqualsFiniteDifferences) {
  const Text text(words(3 * Text::block_bytes));
  Sizes sizes = small_sizes();
  sizes.top_k = GetParam().top_k;
  sizes.window = GetParam().window;
  sizes.heads = 1;
  if (sizes.window > 1) sizes.hidden = 2 * (sizes.heads = 3);
  const Batch batch = text.training_batch(1, 1, sizes.tokens, sizes.context, sizes.window);
  Model<double> model(sizes, parse_arm(GetParam().arm).routing, 1, make_executor(1));
  for (auto& layer : model.layers()) {
    layer.gate().value *= 20;  // a router that has opinions: gradients of a useful size
    layer.router().refresh_now(layer.gate().value, 1);
  }

  objective(model, batch);
  const auto selected = selections(model);
  model.backward(batch);

  constexpr double h = 1e-6;
  constexpr Index stride = 11;  // prime to all sizes: every row and column has its turn
  for (Parameter<double>* parameter : model.parameters()) {
    const double largest = parameter->gradient.cwiseAbs().maxCoeff();
    ASSERT_GT(largest, 1e-5) << parameter->name;
    int checked = 0;
    for (Index i = 0; i < parameter->value.size(); i += stride) {
      double& value = parameter->value.data()[i];
      const double before = value;
      value = before + h;
      const double above = objective(model, batch);
      const bool same_above = selections(model) == selected;
      value = before - h;
      const double below = objective(model, batch);
      const bool same_below = selections(model) == selected;
      value = before;
      if (!same_above || !same_below) continue;
      ++checked;
      const double difference = (above - below) / (2 * h);
      ASSERT_NEAR(parameter->gradient.data()[i], difference, 1e-6 * largest)
          << parameter->name << " element " << i;
    }
    EXPECT_GT(checked, parameter->value.size() / stride * 9 / 10) << parameter->name;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Model, Gradient,
    testing::Values(GradientCase{"off"}, GradientCase{"off+balance=0.5"},
                    GradientCase{"lambda=0.3"}, GradientCase{"lambda=0.3+balance=0.5"},
                    GradientCase{"eliminate"}, GradientCase{"eliminate+balance=0.5"},
                    GradientCase{"eliminate+balance=0.5", 4}, GradientCase{"off+sequence=0.5", 4},
                    GradientCase{"off+sequence=0.5"}, GradientCase{"off+z=0.1"},
                    GradientCase{"eliminate+sigmoid+balance=0.5"},
                    GradientCase{"off+rounded=6+sigmoid"}, GradientCase{"off+gate-bias"},
                    GradientCase{"eliminate+gate-bias+softcap=0.5+balance=0.5"},
                    GradientCase{"off+simbal=0.01"}, GradientCase{"eliminate+orthogonal"},
                    GradientCase{"off+hash+balance=0.5"}, GradientCase{"off+orthogonal-start"},
                    GradientCase{"off+bias=0.1+capacity=1.1"}, GradientCase{"off+choices=2"},
                    GradientCase{"eliminate+sigmoid+quantile"}, GradientCase{"off", 1, 1},
                    GradientCase{"eliminate+balance=0.5", 1, 1},
                    GradientCase{"lambda=0.3+sigmoid", 1, 1},
                    GradientCase{"eliminate+top-p=0.6+balance=0.5"},
                    GradientCase{"off+sigmoid+budget=1.5+sequence=0.5", 4}));

// One step of Adam moves every parameter by the rate, against the sign of its gradient.
TEST(Adam, FirstStepMovesByTheRate) {
  Parameter<double> parameter("p", 2, 3, 1, Random(1, Stream::parameters));
  const RowMatrix<double> before = parameter.value;
  parameter.gradient << 1, -2, 3e3, -4e-3, 5, 6;
  const RowMatrix<double> sign = parameter.gradient.cwiseSign();
  Adam<double> adam({&parameter});
  adam.step(0.1, make_executor(1));
  EXPECT_LT((parameter.value - (before - 0.1 * sign)).cwiseAbs().maxCoeff(), 1e-6);
  EXPECT_EQ(parameter.gradient.cwiseAbs().maxCoeff(), 0);
}

TEST(LearningRate, FallsOverTheSecondHalf) {
  EXPECT_EQ(learning_rate(1, 1, 100), 1);
  EXPECT_EQ(learning_rate(1, 50, 100), 1);
  EXPECT_DOUBLE_EQ(learning_rate(1, 76, 100), 0.5);
  EXPECT_GT(learning_rate(1, 100, 100), 0);
}

TEST(Text, NeverMixesTrainingAndValidation) {
  // Each block is one letter, so a batch shows which blocks it comes from.
  std::string bytes;
  for (int block = 0; block < 60; ++block) {
    bytes += std::string(Text::block_bytes, static_cast<char>('0' + block));
  }
  const Text text(bytes);
  std::vector<int> seen(256);
  const auto visit = [&](const Batch& batch, int who) {
    for (Index t = 0; t < batch.context_TC.rows(); ++t) {
      const std::uint8_t target = batch.target_T[static_cast<std::size_t>(t)];
      for (Index c = 0; c < batch.context_TC.cols(); ++c) EXPECT_EQ(batch.context_TC(t, c), target);
      seen[target] |= who;
    }
  };
  visit(text.training_batch(1, 1, 2000, 16), 1);
  visit(text.validation_batch(2000, 16), 2);
  EXPECT_EQ(std::count(seen.begin(), seen.end(), 1), 57);
  EXPECT_EQ(std::count(seen.begin(), seen.end(), 2), 3);
}

TEST(Text, BatchesDependOnSeedAndStepOnly) {
  const Text text(words(5 * Text::block_bytes));
  const Batch batch = text.training_batch(3, 4, 50, 8);
  EXPECT_EQ(batch.context_TC, text.training_batch(3, 4, 50, 8).context_TC);
  EXPECT_NE(batch.context_TC, text.training_batch(3, 5, 50, 8).context_TC);
  EXPECT_NE(batch.context_TC, text.training_batch(4, 4, 50, 8).context_TC);
}

TEST(Text, WindowsAreConsecutivePlaces) {
  const Text text(words(5 * Text::block_bytes));
  const Batch batch = text.training_batch(3, 4, 48, 3, 8);
  for (Index t = 0; t < 48; ++t) {
    if (t % 8 == 0) continue;
    EXPECT_EQ(batch.context_TC.row(t).head(2), batch.context_TC.row(t - 1).tail(2));
    EXPECT_EQ(batch.context_TC(t, 2), batch.target_T[static_cast<std::size_t>(t - 1)]);
  }
  EXPECT_NE(batch.context_TC.row(8).head(2), batch.context_TC.row(7).tail(2));
}

// A token sees those before it in its window, and no others.
TEST(Attention, IsCausalWithinItsWindow) {
  Sizes sizes;
  sizes.hidden = 6;
  sizes.window = 4;
  sizes.heads = 2;
  const Executor executor = make_executor(1);
  Attention<double> attention(sizes, 0, 1);
  const auto run = [&](RowMatrix<double> x_TH) {
    attention.forward(x_TH, executor);
    return x_TH;
  };
  const RowMatrix<double> x_TH = RowMatrix<double>::Random(12, 6);
  const RowMatrix<double> before_TH = run(x_TH);
  RowMatrix<double> moved_TH = x_TH;
  moved_TH.row(5) *= -1;
  const RowMatrix<double> after_TH = run(moved_TH);
  for (Index t = 0; t < 12; ++t) {
    EXPECT_EQ(before_TH.row(t) != after_TH.row(t), 5 <= t && t < 8) << t;
  }
}

TEST(Arms, AreReadFromTheirNames) {
  const auto arms = parse_arms("off,published,lambda=0.5,eliminate+balance,frozen-partners");
  ASSERT_EQ(arms.size(), 5U);
  EXPECT_FALSE(arms[0].routing.config.competition.active());
  EXPECT_EQ(arms[1].routing.config.competition.lambda, 1e-4);
  EXPECT_EQ(arms[2].routing.config.competition.lambda, 0.5);
  EXPECT_EQ(arms[3].routing.config.competition.mode, gatepro::CompetitionMode::eliminate);
  EXPECT_EQ(arms[3].routing.config.losses.batch, 1e-2);
  EXPECT_FALSE(arms[3].routing.frozen_partners);
  EXPECT_TRUE(arms[4].routing.frozen_partners);
  for (const char* bad : {"",
                          "of",
                          "lambda",
                          "lambda=",
                          "lambda=-1",
                          "lambda=nan",
                          "lambda=inf",
                          "lambda=1x",
                          "+balance",
                          "off+",
                          "off+of",
                          "off+off",
                          "off=1",
                          "off+sigmoid=1",
                          "off+balance=",
                          "off+balance=0",
                          "off+z+balance+z=2",
                          "off,off",
                          "off,",
                          "off balance"}) {
    EXPECT_THROW(parse_arms(bad), UserError) << bad;
  }
}

// Every modifier changes the settings, with its preset and with a value of its own, and no other
// modifier's.
TEST(Arms, HaveModifiersThatAddUp) {
  const Arm arm = parse_arm("off+bias+sigmoid+z=0.5+sequence=2+balance=3+rounded+capacity");
  const gatepro::CompleteConfig& config = arm.routing.config;
  EXPECT_FALSE(config.competition.active());
  EXPECT_TRUE(config.bias.enabled);
  EXPECT_EQ(config.bias.update_rate, 1e-3);
  EXPECT_EQ(config.scores.function, gatepro::ScoreFunction::sigmoid);
  EXPECT_TRUE(config.scores.renormalise);
  EXPECT_EQ(config.losses.z, 0.5);
  EXPECT_EQ(config.losses.sequence, 2);
  EXPECT_EQ(config.losses.batch, 3);
  EXPECT_EQ(config.choice.step, 0x1p-14);
  EXPECT_EQ(parse_arm("off+softcap").routing.config.logit_soft_cap, 30);
  EXPECT_TRUE(parse_arm("off+gate-bias+softcap=2").routing.gate_bias);
  ASSERT_TRUE(config.capacity);
  EXPECT_EQ(config.capacity->factor, 1.25);
  EXPECT_EQ(arm.modifiers, (std::vector<std::string>{"bias", "sigmoid", "z", "sequence", "balance",
                                                     "rounded", "capacity"}));
}

TEST(Arms, MayMakeFewerChoices) {
  EXPECT_EQ(parse_arm("off+choices=2").routing.choices, 2);
  EXPECT_FALSE(parse_arm("off+choices=2").routing.config.fewer);
  const auto fewer = parse_arm("off+top-p+budget=1.5").routing.config.fewer;
  ASSERT_TRUE(fewer);
  EXPECT_EQ(fewer->top_p, 0.8);
  EXPECT_EQ(fewer->budget, 1.5);
}

TEST(Arms, KeepRowsApartAndHash) {
  const Routing simbal = parse_arm("off+simbal").routing;
  EXPECT_EQ(simbal.apart.kind, gatepro::OrthogonalityKind::simbal);
  EXPECT_EQ(simbal.apart.coefficient, 0.1);
  const Routing others = parse_arm("off+orthogonal=2+orthogonal-start+hash").routing;
  EXPECT_EQ(others.apart.kind, gatepro::OrthogonalityKind::frobenius);
  EXPECT_EQ(others.apart.coefficient, 2);
  EXPECT_TRUE(others.orthogonal_start);
  EXPECT_TRUE(others.hash);
  const Sizes sizes = small_sizes();
  MoeLayer<double> layer(sizes, others, 0, 1, make_executor(1));
  const RowMatrix<double>& w_EH = layer.gate().value;
  const double length = w_EH.row(0).norm();
  EXPECT_NEAR(length, sizes.router_deviation * std::sqrt(static_cast<double>(sizes.hidden)), 1e-12);
}

TEST(Arms, AreToldFromTheTables) {
  const std::string help = arms_help(arm_modifiers());
  for (const auto* parts : {&arm_bases(), &arm_modifiers()}) {
    for (const ArmPart& part : *parts) {
      EXPECT_NE(help.find(std::string(" ") + part.name), std::string::npos) << part.name;
    }
  }
  try {
    parse_arm("off+capacity=-1");
    FAIL();
  } catch (const UserError& error) {
    EXPECT_STREQ(error.what(),
                 "arm 'off+capacity=-1' has '-1' for VALUE: capacity[=VALUE]: experts drop what "
                 "exceeds VALUE times the mean load (0.001 to 1000, else 1.25)");
  }
}

// A bias moves once per step, by the training batch alone: validations do not count.
TEST(Training, MovesTheBiasOncePerStep) {
  Settings settings;
  settings.sizes = small_sizes();
  settings.steps = 3;
  settings.eval_every = 1;
  settings.validation_tokens = 100;
  const Text text(words(3 * Text::block_bytes));
  Training<float> training(settings, parse_arm("off+bias=0.5"), 1, text);
  auto& bias = training.model().layers()[0].router().bias();
  std::vector<float> before_E(static_cast<std::size_t>(bias.num_experts()));
  while (!training.done()) {
    training.step();
    double most = 0;
    for (Index e = 0; e < bias.num_experts(); ++e) {
      float& before = before_E[static_cast<std::size_t>(e)];
      most = std::max(most, std::abs(double(bias.values()[e] - before)));
      before = bias.values()[e];
      EXPECT_EQ(bias.counts()[e], 0);
    }
    EXPECT_EQ(most, 0.5);
  }
}

TEST(Swaps, HoldUntilTheOtherOne) {
  const auto steps = [](std::int64_t on, std::int64_t off) {
    const Swaps swaps{on, off};
    std::string result;
    for (int step = 1; step <= 6; ++step) result += competes_at(swaps, step) ? '1' : '0';
    return result;
  };
  EXPECT_EQ(steps(0, 0), "111111");
  EXPECT_EQ(steps(3, 0), "001111");
  EXPECT_EQ(steps(0, 3), "110000");
  EXPECT_EQ(steps(2, 5), "011100");
  EXPECT_EQ(steps(5, 2), "100011");
}

Settings small_settings() {
  Settings settings;
  settings.sizes = small_sizes();
  settings.steps = 12;
  return settings;
}

TEST(Training, AnArmSwapsAtItsOwnSteps) {
  Settings settings = small_settings();
  settings.swaps.off_at = 1;  // of arms without steps of their own
  const Text text(words(3 * Text::block_bytes));
  for (const auto& [name, competing] :
       {std::pair("eliminate", "000000000000"), std::pair("eliminate+until=4", "111000000000"),
        std::pair("eliminate+from=4", "000111111111")}) {
    Training<float> training(settings, parse_arm(name), 1, text);
    std::string seen;
    while (!training.done()) {
      training.step();
      seen += training.model().layers()[0].router().config().competition.active() ? '1' : '0';
    }
    EXPECT_EQ(seen, competing) << name;
  }
}

TEST(Training, LearnsABiasOfTheLogits) {
  const Text text(words(3 * Text::block_bytes));
  for (const char* name : {"off+gate-bias", "off+gate-bias+bf16"}) {
    Training<float> training(small_settings(), parse_arm(name), 1, text);
    while (!training.done()) training.step();
    const auto parameters = training.model().layers()[0].router_parameters();
    ASSERT_EQ(parameters.size(), 2);
    EXPECT_EQ(parameters[1]->name, "layer0.router_bias");
    const RowMatrix<float>& bias_1E = parameters[1]->value;
    EXPECT_GT(bias_1E.maxCoeff(), 0) << name;
    EXPECT_LT(bias_1E.minCoeff(), 0) << name;
  }
  Training<float> training(small_settings(), parse_arm("off"), 1, text);
  EXPECT_EQ(training.model().layers()[0].router_parameters().size(), 1);
}

TEST(Training, RoundsLogitsWhereAskedTo) {
  const Settings settings = small_settings();
  const Text text(words(3 * Text::block_bytes));
  for (const bool rounded : {false, true}) {
    Training<float> training(settings, parse_arm(rounded ? "off+bf16" : "off"), 1, text);
    training.step();
    const auto logits_TE = training.model().layers()[0].routed().logits_TE();
    bool exact = true;
    for (Index t = 0; t < logits_TE.rows; ++t) {
      for (Index e = 0; e < logits_TE.cols; ++e) {
        const float logit = logits_TE(t, e);
        exact = exact && static_cast<float>(static_cast<Eigen::bfloat16>(logit)) == logit;
      }
    }
    EXPECT_EQ(exact, rounded);
  }
}

// Expert 2 answers like expert 0, and expert 3 the opposite of expert 1.
TEST(OutputSimilarity, IsTheMeanCosineOfOutputs) {
  Sizes sizes = small_sizes();
  sizes.expert_hidden = 20;  // no output is zero
  auto networks = expert_networks<double>(sizes, "", 0, 1);
  const auto copy = [&](Index from, Index to, double factor) {
    auto& in = networks.in().value;
    auto& out = networks.out().value;
    const Index units = sizes.expert_hidden, hidden = sizes.hidden;
    in.middleRows(to * units, units) = in.middleRows(from * units, units);
    out.middleRows(to * hidden, hidden) = factor * out.middleRows(from * hidden, hidden);
  };
  copy(0, 2, 3);
  copy(1, 3, -1);
  const RowMatrix<double> x_TH = RowMatrix<double>::Random(10, sizes.hidden);
  const auto similarity_EE = output_similarity(networks, x_TH, make_executor(1));
  ASSERT_EQ(similarity_EE.rows(), sizes.experts);
  EXPECT_NEAR(similarity_EE(0, 2), 1, 1e-12);
  EXPECT_NEAR(similarity_EE(1, 3), -1, 1e-12);
  EXPECT_EQ(similarity_EE, similarity_EE.transpose());
  const auto partner_E1 = most_similar(similarity_EE);
  EXPECT_EQ(partner_E1(0, 0), 2);
  EXPECT_EQ(partner_E1(2, 0), 0);

  // Experts 4 and 5 by hand.
  double sum = 0;
  for (Index t = 0; t < x_TH.rows(); ++t) {
    const auto output = [&](Index e) -> Eigen::VectorXd {
      const auto in = networks.in().value.middleRows(e * sizes.expert_hidden, sizes.expert_hidden);
      const auto out = networks.out().value.middleRows(e * sizes.hidden, sizes.hidden);
      return out * (in * x_TH.row(t).transpose()).cwiseMax(0);
    };
    sum += output(4).dot(output(5)) / (output(4).norm() * output(5).norm());
  }
  EXPECT_NEAR(similarity_EE(4, 5), sum / 10, 1e-12);
}

TEST(Training, OutputPartnersFollowTheOutputs) {
  Settings settings = small_settings();
  const Text text(words(3 * Text::block_bytes));
  Training<float> training(settings, parse_arm("eliminate+outputs=3"), 1, text);
  while (!training.done()) {
    const StepRecord record = training.step();
    auto& layer = training.model().layers()[0];
    const auto& cache = layer.router().similarity_cache();
    EXPECT_EQ(cache.last_refresh_step(), record.step / 3 * 3);
    // The last step validates, and so has other tokens.
    if (record.step % 3 != 0 || training.done()) continue;
    const auto partner_E1 = most_similar(
        output_similarity<float>(layer.experts().networks(), layer.input(), training.executor()));
    for (Index e = 0; e < settings.sizes.experts; ++e) {
      EXPECT_EQ(cache.partners()(e, 0), partner_E1(e, 0)) << e;
    }
    // They are not those of the weights, and are not blamed for it.
    const gatepro::LayerSnapshot seen = snapshot(record.layers[0], settings.sizes);
    EXPECT_FALSE(seen.stale_partners || seen.coactivation || seen.unpenalised_coactivation);
    EXPECT_TRUE(seen.changed_share && seen.inactive_share);
  }
}

TEST(Diagnosis, KnowsWhatTheChoicesOfAStepCanReach) {
  const Settings settings = small_settings();
  const Text text(words(3 * Text::block_bytes));
  Training<float> training(settings, parse_arm("eliminate"), 1, text);
  const Sizes& sizes = settings.sizes;
  const gatepro::LayerSnapshot seen = snapshot(training.step().layers[1], sizes);
  EXPECT_EQ(seen.choices_per_token, static_cast<double>(sizes.top_k));
  EXPECT_EQ(seen.chance_inactive_share,
            gatepro::chance_inactive_share(sizes.tokens * sizes.top_k, sizes.experts));
  EXPECT_TRUE(seen.stale_partners && seen.coactivation && seen.unpenalised_coactivation);
}

TEST(Sample, HasMeanAndDeviation) {
  Sample sample;
  for (const double value : {1.0, 2.0, 6.0}) sample.add(value);
  EXPECT_DOUBLE_EQ(sample.mean(), 3);
  EXPECT_DOUBLE_EQ(sample.deviation(), std::sqrt(7.0));
}

// The control keeps its partners while the weights, and so the partners they would have, move on.
TEST(Training, FrozenPartnersStay) {
  Settings settings;
  settings.sizes = small_sizes();
  settings.steps = 30;
  settings.learning_rate = 0.05;
  const Text text(words(3 * Text::block_bytes));
  const auto changes = [&](const char* name) {
    Training<float> training(settings, parse_arm(name), 1, text);
    Index changed = 0;
    while (!training.done()) {
      for (const LayerMetrics& layer : training.step().layers) changed += layer.partners_changed;
    }
    return changed;
  };
  EXPECT_EQ(changes("frozen-partners"), 0);
  EXPECT_GT(changes("eliminate"), 0);
}

}  // namespace
}  // namespace train_moe
