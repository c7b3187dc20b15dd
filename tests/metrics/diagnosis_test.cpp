// SPDX-License-Identifier: MIT
// The diagnosis on made-up runs: each signature is found where it is, and nowhere else; healthy
// runs are silent.
#include <gatepro/diagnosis.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "support/errors.hpp"

namespace {

using gatepro::Competition;
using gatepro::diagnose;
using gatepro::Finding;
using gatepro::Index;
using gatepro::LayerSnapshot;
using gatepro::RunHistory;
using gatepro::Signature;
using gatepro::StepSnapshot;

constexpr Index layers = 3;
constexpr std::int64_t steps = 200;

/// Changes what a layer shows at the end of a run.
using Change = std::function<void(LayerSnapshot&)>;

/// A run as healthy ones are: a loss that falls and flutters, and metrics `end` that it comes to.
RunHistory run_of(const Competition& competition, const LayerSnapshot& end) {
  RunHistory run;
  run.competition = competition;
  for (std::int64_t i = 1; i <= steps; ++i) {
    const double t = static_cast<double>(i);
    StepSnapshot step;
    step.step = i;
    step.loss = 2 + 3.5 * std::exp(-t / 40) + 0.05 * std::sin(13 * t);
    if (i % 20 == 0) step.validation_loss = *step.loss + 0.1;
    for (Index l = 0; l < layers; ++l) {
      LayerSnapshot layer = end;
      if (i < 100) layer.inactive_share = 0.4;  // young: nothing that would count at the end
      if (i < 100) layer.stale_partners = 0.5;
      step.layers.push_back(layer);
    }
    run.steps.push_back(step);
  }
  return run;
}

/// What small models had with elimination, without and with a balance loss; off; and a penalty.
LayerSnapshot eliminating() { return {0.08, 0.03, 0.37, 0.63, 0.0, 0.0, 0.05, 0.35, 0.02, 0.0, 6}; }
LayerSnapshot balanced() { return {0.0, -0.03, 0.26, 0.5, 0.0, 0.003, 0.07, 0.32, 0.01, 0.0, 6}; }
LayerSnapshot off() { return {0.1, 0.06, 0.4, 0.0, 0.0, 0.0, 0.41, 0.41, 0.0, 0.0, 6}; }
LayerSnapshot penalised() { return {0.1, 0.06, 0.4, 0.44, 0.01, 0.0, 0.2, 0.41, 0.02, 0.0, 6}; }

void change_end(RunHistory& run, Index layer, const Change& change) {
  for (std::size_t i = run.steps.size() * 3 / 4; i < run.steps.size(); ++i) {
    change(run.steps[i].layers[static_cast<std::size_t>(layer)]);
  }
}

void expect_only(const std::vector<Finding>& findings, Signature signature) {
  ASSERT_EQ(findings.size(), 1U) << gatepro::describe(findings);
  EXPECT_EQ(findings[0].signature, signature);
  EXPECT_FALSE(findings[0].evidence.empty());
  EXPECT_NE(std::string(findings[0].remedy), "");
  const std::string text = gatepro::describe(findings);
  EXPECT_EQ(text.rfind(gatepro::signature_name(signature), 0), 0U) << text;
  EXPECT_NE(text.find("remedy: "), std::string::npos);
}

TEST(Diagnosis, HealthyRunsAreSilent) {
  const RunHistory baseline = run_of(Competition::off(), off());
  for (const auto& [competition, end] :
       {std::pair{Competition::eliminate(), eliminating()},
        std::pair{Competition::eliminate(), balanced()}, std::pair{Competition::off(), off()},
        std::pair{Competition::penalty(1), penalised()}}) {
    const RunHistory run = run_of(competition, end);
    EXPECT_EQ(gatepro::describe(diagnose(run)), "");
    if (end.changed_share.value() == 0 || end.mean_similarity.value() < 0.05) {
      EXPECT_EQ(gatepro::describe(diagnose(run, &baseline)), "");
    }
  }
  EXPECT_TRUE(diagnose({}).empty());
  const RunHistory nothing{};
  EXPECT_EQ(gatepro::describe(diagnose(run_of(Competition::eliminate(), {}), &nothing)), "");
}

TEST(Diagnosis, EachLayerSignatureIsFoundWhereItIs) {
  struct Case {
    Signature signature;
    Competition competition;
    Change change;
    double value;
  };
  const Case cases[] = {{Signature::expert_collapse, Competition::eliminate(),
                         [](auto& l) { l.inactive_share = 0.4; }, 0.4},
                        {Signature::no_diversity_gain, Competition::eliminate(),
                         [](auto& l) { l.coactivation = 0.35; }, 0},
                        {Signature::lambda_without_effect, Competition::penalty(1e-4),
                         [](auto& l) { l.changed_share = 1e-4; }, 1e-4},
                        {Signature::stale_partners, Competition::eliminate(),
                         [](auto& l) { l.stale_partners = 0.95; }, 0.95},
                        {Signature::short_of_survivors, Competition::eliminate(),
                         [](auto& l) { l.short_of_survivors = 0.6; }, 0.6},
                        {Signature::redundant_experts, Competition::eliminate(),
                         [](auto& l) { l.partner_similarity = 0.9; }, 0.9}};
  for (const Case& c : cases) {
    SCOPED_TRACE(gatepro::signature_name(c.signature));
    for (Index layer = 0; layer < layers; ++layer) {
      RunHistory run = run_of(c.competition, eliminating());
      change_end(run, layer, c.change);
      const auto findings = diagnose(run);
      expect_only(findings, c.signature);
      EXPECT_EQ(findings[0].layer, layer);
      EXPECT_EQ(findings[0].layers, 1);
      EXPECT_NEAR(findings[0].value, c.value, 1e-9);
      EXPECT_EQ(findings[0].first_step, 151);
      EXPECT_EQ(findings[0].last_step, 200);
      EXPECT_NE(findings[0].evidence.find("in layer " + std::to_string(layer)), std::string::npos);
      EXPECT_NE(findings[0].evidence.find("steps 151 to 200"), std::string::npos);
    }
  }
}

TEST(Diagnosis, NamesTheLayerThatIsWorstAndHowManyShowIt) {
  RunHistory run = run_of(Competition::eliminate(), eliminating());
  for (Index layer = 0; layer < layers; ++layer) {
    change_end(run, layer, [&](LayerSnapshot& l) { l.inactive_share = layer == 1 ? 0.7 : 0.3; });
  }
  const auto findings = diagnose(run);
  expect_only(findings, Signature::expert_collapse);
  EXPECT_EQ(findings[0].layer, 1);
  EXPECT_EQ(findings[0].layers, 3);
  EXPECT_NE(findings[0].evidence.find("the worst of 3"), std::string::npos);
  // The other way round for a number that is too low.
  RunHistory weak = run_of(Competition::penalty(1e-3), penalised());
  for (Index layer = 0; layer < layers; ++layer) {
    change_end(weak, layer, [&](LayerSnapshot& l) {
      l.changed_share = layer == 2 ? 1e-5 : 1e-3;
      l.lost_in_rounding = 0.975;
    });
  }
  const auto effects = diagnose(weak);
  expect_only(effects, Signature::lambda_without_effect);
  EXPECT_EQ(effects[0].layer, 2);
  EXPECT_NE(effects[0].evidence.find("0.975 vanish in rounding"), std::string::npos);
}

// Without a penalty nobody expects an effect; elimination has one, or there is nothing to change.
TEST(Diagnosis, RulesOfThePenaltyApplyWhereThereIsOne) {
  for (const Competition& competition : {Competition::off(), Competition::eliminate()}) {
    RunHistory run = run_of(competition, off());
    change_end(run, 0, [](LayerSnapshot& l) { l.changed_share = 0; });
    EXPECT_EQ(gatepro::describe(diagnose(run)), "");
  }
  EXPECT_EQ(gatepro::describe(diagnose(run_of(Competition::penalty(0), off()))), "");
  RunHistory frozen = run_of(Competition::off(), off());
  change_end(frozen, 0, [](LayerSnapshot& l) { l.stale_partners = 1; });
  EXPECT_EQ(gatepro::describe(diagnose(frozen)), "");
}

TEST(Diagnosis, InstabilityIsFoundWheneverItWas) {
  const auto with_loss = [](std::size_t at, double loss) {
    RunHistory run = run_of(Competition::eliminate(), eliminating());
    run.steps[at].loss = loss;
    return run;
  };
  for (const std::size_t at : {std::size_t{20}, std::size_t{100}, std::size_t{199}}) {
    const double before = *run_of(Competition::off(), off()).steps[at].loss;
    const auto findings = diagnose(with_loss(at, before + 1.5));
    expect_only(findings, Signature::instability);
    EXPECT_EQ(findings[0].first_step, static_cast<std::int64_t>(at) + 1);
    EXPECT_EQ(findings[0].layer, -1);
    EXPECT_EQ(gatepro::describe(diagnose(with_loss(at, before + 0.2))), "");
    EXPECT_EQ(gatepro::describe(diagnose(with_loss(at, before - 1))), "");
    for (const double bad :
         {gatepro::detail::value_of<double>(gatepro::detail::Order<double>::nan),
          gatepro::detail::value_of<double>(gatepro::detail::Order<double>::infinity)}) {
      expect_only(diagnose(with_loss(at, bad)), Signature::instability);
    }
  }
  RunHistory unmeasured = run_of(Competition::eliminate(), eliminating());
  for (StepSnapshot& step : unmeasured.steps) step.loss.reset();
  EXPECT_EQ(gatepro::describe(diagnose(unmeasured)), "");
  // A run that goes up and stays there.
  RunHistory diverged = run_of(Competition::eliminate(), eliminating());
  for (std::size_t i = 120; i < 200; ++i) diverged.steps[i].loss = 5.5;
  expect_only(diagnose(diverged), Signature::instability);
}

// Neither a loss that is noisy all along nor the first ones tell what a jump is.
TEST(Diagnosis, NoiseIsNoInstability) {
  const auto with_losses = [](const std::vector<double>& losses) {
    RunHistory run = run_of(Competition::eliminate(), eliminating());
    run.steps.resize(losses.size());
    for (std::size_t i = 0; i < losses.size(); ++i) {
      run.steps[i].loss = losses[i];
      for (LayerSnapshot& layer : run.steps[i].layers) layer = eliminating();
    }
    return run;
  };
  std::vector<double> noisy;
  for (int i = 0; i < 40; ++i) noisy.push_back(i % 2 == 0 ? 2 : 2.7);
  EXPECT_EQ(gatepro::describe(diagnose(with_losses(noisy))), "");
  EXPECT_EQ(gatepro::describe(diagnose(with_losses({3, 3, 3, 5}))), "");
  expect_only(diagnose(with_losses({3, 3, 3, 3, 5})), Signature::instability);
}

TEST(Diagnosis, ABaselineShowsSuppressionAndWhetherSimilaritiesFell) {
  const RunHistory baseline = run_of(Competition::off(), off());
  RunHistory worse = run_of(Competition::eliminate(), eliminating());
  for (StepSnapshot& step : worse.steps) {
    if (step.validation_loss) *step.validation_loss += 0.024;
  }
  EXPECT_EQ(gatepro::describe(diagnose(worse)), "");
  RunHistory unlucky = run_of(Competition::off(), off());  // nothing suppresses anyone
  for (StepSnapshot& step : unlucky.steps) {
    if (step.validation_loss) *step.validation_loss += 0.024;
  }
  EXPECT_EQ(gatepro::describe(diagnose(unlucky, &baseline)), "");
  const auto findings = diagnose(worse, &baseline);
  expect_only(findings, Signature::over_suppression);
  EXPECT_NEAR(findings[0].value, 0.024, 1e-9);

  LayerSnapshot same = eliminating();
  same.mean_similarity = off().mean_similarity;
  same.inactive_share = off().inactive_share;
  const RunHistory unchanged = run_of(Competition::eliminate(), same);
  EXPECT_EQ(gatepro::describe(diagnose(unchanged)), "");
  expect_only(diagnose(unchanged, &baseline), Signature::no_diversity_gain);
  // More experts in use are a gain, too.
  same.inactive_share = off().inactive_share.value() - 0.05;
  EXPECT_EQ(gatepro::describe(diagnose(run_of(Competition::eliminate(), same), &baseline)), "");
}

// Neither what was not measured nor a NaN is a finding, or takes one away.
TEST(Diagnosis, NothingIsToldByWhatIsNoNumber) {
  const double nan = gatepro::detail::value_of<double>(gatepro::detail::Order<double>::nan);
  RunHistory run = run_of(Competition::penalty(1), penalised());
  const RunHistory baseline = run_of(Competition::off(), off());
  for (StepSnapshot& step : run.steps) {
    if (step.validation_loss) step.validation_loss = nan;
  }
  for (Index layer = 0; layer < layers; ++layer) {
    change_end(run, layer, [&](LayerSnapshot& l) {
      l = {nan, nan, nan, nan, nan, nan, nan, nan, nan, nan, nan};
    });
  }
  EXPECT_EQ(gatepro::describe(diagnose(run)), "");
  EXPECT_EQ(gatepro::describe(diagnose(run, &baseline)), "");
  const double infinity =
      gatepro::detail::value_of<double>(gatepro::detail::Order<double>::infinity);
  RunHistory infinite = run_of(Competition::penalty(1), penalised());
  change_end(infinite, 1,
             [&](LayerSnapshot& l) { l.coactivation = l.unpenalised_coactivation = infinity; });
  EXPECT_EQ(gatepro::describe(diagnose(infinite)), "");
  change_end(run, 1, [&](LayerSnapshot& l) { l.inactive_share = 0.5; });
  expect_only(diagnose(run, &baseline), Signature::expert_collapse);
}

// Where a metric that a signature needs is missing it is not found; others may be missing.
TEST(Diagnosis, LooksForNothingThatWasNotMeasured) {
  LayerSnapshot layer;
  layer.mean_similarity = 0.06;
  const RunHistory baseline = run_of(Competition::off(), layer);
  const auto found = [&] {
    RunHistory run = run_of(Competition::eliminate(), layer);
    for (StepSnapshot& step : run.steps) {
      for (LayerSnapshot& each : step.layers) each.inactive_share = each.stale_partners = {};
    }
    return diagnose(run, &baseline);
  };
  EXPECT_EQ(gatepro::describe(found()), "");  // does the penalty change choices?
  layer.changed_share = 0.5;
  expect_only(found(), Signature::no_diversity_gain);
  layer.mean_similarity = {};
  layer.coactivation = 0.4;
  EXPECT_EQ(gatepro::describe(found()), "");
  layer.unpenalised_coactivation = 0.4;
  EXPECT_EQ(gatepro::describe(found()), "");
  layer.choices_per_token = 6;
  expect_only(found(), Signature::no_diversity_gain);
}

/// The first steps of a run, and what its end shows.
RunHistory young_run(const Competition& competition, const LayerSnapshot& end, std::size_t age) {
  RunHistory run = run_of(competition, end);
  run.steps.resize(age);
  for (Index layer = 0; layer < layers; ++layer) {
    change_end(run, layer, [&](LayerSnapshot& l) { l = end; });
  }
  return run;
}

// Few tokens leave many experts out, however even the routing is.
TEST(Diagnosis, IdleExpertsOfSmallBatchesAreNoCollapse) {
  LayerSnapshot small = off();
  small.chance_inactive_share = 0.37;
  for (const double inactive : {0.3, 0.37, 0.5}) {
    small.inactive_share = inactive;
    EXPECT_EQ(gatepro::describe(diagnose(run_of(Competition::off(), small))), "");
  }
  small.inactive_share = 0.6;
  const auto findings = diagnose(run_of(Competition::off(), small));
  expect_only(findings, Signature::expert_collapse);
  EXPECT_NEAR(findings[0].value, 0.23, 1e-9);
}

// A penalty that changes a tenth of the choices leaves most co-activations: it took what it could.
TEST(Diagnosis, APenaltyThatChangesLittleIsJudgedByWhatItChanges) {
  LayerSnapshot mild = penalised();
  mild.changed_share = 0.1;
  mild.choices_per_token = 8;
  mild.unpenalised_coactivation = 0.4;
  mild.coactivation = 0.4 - 1.5 * 0.1 / 8;  // 0.95 of them are still there
  EXPECT_EQ(gatepro::describe(diagnose(run_of(Competition::penalty(1), mild))), "");
  mild.coactivation = 0.4 - 0.15 * 0.1 / 8;  // what changed had little to do with partners
  const auto findings = diagnose(run_of(Competition::penalty(1), mild));
  expect_only(findings, Signature::no_diversity_gain);
  EXPECT_NEAR(findings[0].value, 0.15, 1e-9);
  mild.changed_share = 0.009;  // too few to tell
  mild.coactivation = mild.unpenalised_coactivation;
  EXPECT_EQ(gatepro::describe(diagnose(run_of(Competition::eliminate(), mild))), "");
  mild.changed_share = 0.1;
  // One expert per token has none to be selected with.
  mild.choices_per_token = 1;
  mild.coactivation = mild.unpenalised_coactivation = 0;
  EXPECT_EQ(gatepro::describe(diagnose(run_of(Competition::penalty(1), mild))), "");
}

// What training has yet to bring about is not missed; what a step shows is seen at once.
TEST(Diagnosis, YoungRunsAreNotBlamedForTheirAge) {
  LayerSnapshot idle = penalised();
  idle.inactive_share = 0.6;
  RunHistory baseline = young_run(Competition::off(), off(), 99);
  RunHistory young = young_run(Competition::penalty(1), idle, 99);
  for (StepSnapshot& step : young.steps) {
    if (step.validation_loss) *step.validation_loss += 0.1;
  }
  EXPECT_EQ(gatepro::describe(diagnose(young, &baseline)), "");
  for (StepSnapshot& step : young.steps) step.step += 1;  // its last is step 100
  for (StepSnapshot& step : baseline.steps) step.step += 1;
  EXPECT_EQ(diagnose(young, &baseline).size(), 3U);
  for (const std::size_t age : {std::size_t{1}, std::size_t{2}, std::size_t{5}}) {
    EXPECT_EQ(gatepro::describe(diagnose(young_run(Competition::eliminate(), eliminating(), age))),
              "");
    LayerSnapshot weak = penalised();
    weak.changed_share = 0;
    expect_only(diagnose(young_run(Competition::penalty(1e-9), weak, age)),
                Signature::lambda_without_effect);
  }
}

// A run that was stopped is as good as the baseline was then.
TEST(Diagnosis, ABaselineIsComparedInTheSameSteps) {
  RunHistory longer = run_of(Competition::off(), off());
  const auto cut = static_cast<std::ptrdiff_t>(longer.steps.size() * 7 / 10);
  RunHistory run = run_of(Competition::eliminate(), eliminating());
  run.steps.erase(run.steps.begin() + cut, run.steps.end());
  EXPECT_EQ(gatepro::describe(diagnose(run, &longer)), "");
  longer.steps.erase(longer.steps.begin(), longer.steps.begin() + cut);
  for (StepSnapshot& step : longer.steps) *step.loss = 1;
  EXPECT_EQ(gatepro::describe(diagnose(run, &longer)), "");  // none in common
}

TEST(Diagnosis, OnlyStepsMeasuredInBothRunsAreCompared) {
  RunHistory run = run_of(Competition::eliminate(), eliminating());
  RunHistory baseline = run_of(Competition::off(), off());
  for (std::size_t i = 0; i < run.steps.size(); ++i) {
    // A loss that falls steeply, the same in both runs, measured at other steps.
    const double loss = 10 - 0.01 * static_cast<double>(i);
    run.steps[i].validation_loss = loss;
    baseline.steps[i].validation_loss.reset();
    if (i % 10 == 0 && i + 20 > run.steps.size()) baseline.steps[i].validation_loss = loss;
  }
  EXPECT_EQ(gatepro::describe(diagnose(run, &baseline)), "");
  const auto is_between = [](const StepSnapshot& step) { return !step.validation_loss; };
  baseline.steps.erase(std::remove_if(baseline.steps.begin(), baseline.steps.end(), is_between),
                       baseline.steps.end());
  EXPECT_EQ(gatepro::describe(diagnose(run, &baseline)), "");
  for (StepSnapshot& step : baseline.steps) {
    if (step.validation_loss) *step.validation_loss -= 0.5;
  }
  const auto findings = diagnose(run, &baseline);
  ASSERT_EQ(findings.size(), 1U);
  EXPECT_EQ(findings[0].signature, Signature::over_suppression);
  EXPECT_NEAR(findings[0].value, 0.5, 1e-12);
}

TEST(Diagnosis, StepsHaveAnOrder) {
  const RunHistory good = run_of(Competition::off(), off());
  RunHistory bad = good;
  bad.steps[7].step = bad.steps[6].step;
  expect_error([&] { diagnose(bad); }, {"diagnose", "run", "ascending", "step=7"});
  expect_error([&] { diagnose(good, &bad); }, {"diagnose", "baseline", "ascending", "step=7"});
}

TEST(Diagnosis, SeveralFindingsKeepTheirOrder) {
  RunHistory run = run_of(Competition::penalty(1e-4), off());
  for (Index layer = 0; layer < layers; ++layer) {
    change_end(run, layer, [](LayerSnapshot& l) {
      l.inactive_share = 0.46;
      l.changed_share = 0;
    });
  }
  const auto findings = diagnose(run);
  ASSERT_EQ(findings.size(), 2U);
  EXPECT_EQ(findings[0].signature, Signature::expert_collapse);
  EXPECT_EQ(findings[1].signature, Signature::lambda_without_effect);
}

}  // namespace
