// SPDX-License-Identifier: MIT
// The questions: the claims of the paper, what it leaves open, and what a user has to decide.
#ifndef STUDY_QUESTIONS_HPP
#define STUDY_QUESTIONS_HPP

#include <stdexcept>
#include <string>
#include <vector>

#include "grid.hpp"

namespace study {

/// What is measured. Losses: half a percent of what these models reach is worth having.
namespace measures {

inline constexpr Measure loss{
    Metric::val_loss, "validation loss", "nats per byte", 4, 1, 0.01, false};
inline constexpr Measure mismatch{
    Metric::mismatch, "validation loss without it", "nats per byte", 4, 1, 0.01, false};
inline constexpr Measure unused{Metric::unused,
                                "experts without a token, last quarter of the steps",
                                "points",
                                1,
                                100,
                                0.02,
                                true};
inline constexpr Measure unused_early{Metric::unused_early,
                                      "experts without a token, first half of the steps",
                                      "points",
                                      1,
                                      100,
                                      0.02,
                                      true};
inline constexpr Measure unused_depth{Metric::unused_depth,
                                      "experts without a token, last layer less the first",
                                      "points",
                                      1,
                                      100,
                                      0.02,
                                      false};
inline constexpr Measure used_step{Metric::used_step,
                                   "steps until at most 20 of 128 experts stay unused",
                                   "% of the run",
                                   1,
                                   100,
                                   0.05,
                                   true};
inline constexpr Measure cosine{
    Metric::mean_cosine, "mean cosine of router rows", "", 3, 1, 0.01, false};
inline constexpr Measure entropy{
    Metric::spectral_entropy, "spectral entropy of S", "nats", 3, 1, 0.02, false};
inline constexpr Measure entropy_weights{
    Metric::spectral_entropy_weights, "spectral entropy of W itself", "nats", 3, 1, 0.02, false};
inline constexpr Measure load_entropy{
    Metric::load_entropy, "entropy of the loads, over that of even ones", "", 3, 1, 0.01, true};
inline constexpr Measure worst_load{
    Metric::max_violation, "largest load over the mean, less 1", "", 2, 1, 0.1, false};
inline constexpr Measure coactivation{
    Metric::coactivation, "P(partner selected | selected)", "", 3, 1, 0.02, true};
inline constexpr Measure coactivation_free{Metric::coactivation_free,
                                           "P(partner selected | selected) before the penalty",
                                           "",
                                           3,
                                           1,
                                           0.02,
                                           true};
inline constexpr Measure excess_lift{Metric::excess_lift,
                                     "co-activation with the partner over chance, less 1",
                                     "",
                                     2,
                                     1,
                                     0.1,
                                     false};
inline constexpr Measure changed{
    Metric::changed, "tokens with other experts, last quarter", "points", 3, 100, 0.01, true};
inline constexpr Measure changed_early{Metric::changed_early,
                                       "tokens with other experts, first ten steps",
                                       "points",
                                       2,
                                       100,
                                       0.01,
                                       true};
inline constexpr Measure output_cosine{
    Metric::output_cosine, "mean cosine of the outputs of two experts", "", 4, 1, 0.01, false};
inline constexpr Measure output_correlation{
    Metric::output_correlation, "rank correlation over all pairs of experts", "", 3, 1, 0.1, false};
inline constexpr Measure output_excess{Metric::output_excess,
                                       "cosine of the partners' outputs over that of any two",
                                       "",
                                       3,
                                       1,
                                       0.1,
                                       false};
inline constexpr Measure agreement{
    Metric::agreement_excess,
    "experts whose most similar one is the same by outputs, over chance",
    "points",
    1,
    100,
    0.1,
    false};

}  // namespace measures

/// The published penalty and its limit, with and without the balance loss.
inline const ArmPairs& paper_arms() {
  static const ArmPairs arms{{"published", "off"},
                             {"eliminate", "off"},
                             {"published+balance", "off+balance"},
                             {"eliminate+balance", "off+balance"}};
  return arms;
}

inline const std::vector<std::string>& paper_models() {
  static const std::vector<std::string> names{"tiny", "attention", "e128",     "e256",
                                              "deep", "long",      "init-zero"};
  return names;
}

/// What every claim about training is asked of.
inline std::vector<Trial> paper_trials() {
  return in_short(trials({"tiny", "attention", "e128"}, paper_arms())) +
         with_ten_seeds(trials({"e256", "deep", "long", "init-zero"}, paper_arms()));
}

inline std::vector<Trial> against_off(const std::vector<std::string>& model_names,
                                      const std::vector<std::string>& arms) {
  ArmPairs pairs;
  for (const std::string& arm : arms) pairs.emplace_back(arm, "off");
  return trials(model_names, pairs);
}

inline std::vector<Trial> against_eliminate(const std::vector<std::string>& modifiers,
                                            const std::string& balance = "") {
  std::vector<Trial> all;
  for (const std::string& modifier : modifiers) {
    all.push_back({"tiny", "eliminate" + modifier + balance, "eliminate" + balance});
  }
  return all;
}

inline std::vector<std::string> penalties() {
  return {"published", "lambda=1e-5", "lambda=1e-3", "lambda=1e-2", "lambda=0.1",
          "lambda=1",  "lambda=10",   "lambda=1e4",  "eliminate"};
}

inline std::vector<Trial> penalty_trials() {
  return in_short(against_off({"tiny"}, penalties())) +
         against_off({"tiny"}, {"share=0.01", "share=0.1", "share=0.5"}) +
         against_off({"init-large"}, {"published", "lambda=1", "eliminate"}) +
         against_off({"init-small"}, {"published", "lambda=1e-2", "eliminate"}) +
         against_off({"init-zero"}, {"published", "lambda=1e-5", "lambda=1e-2", "eliminate"}) +
         trials({"tiny", "init-zero"},
                {{"published+bf16", "off+bf16"}, {"eliminate+bf16", "off+bf16"}});
}

inline std::vector<Trial> shape_trials() {
  return trials(
      {"e16-k1", "e64-k1", "e256-k1", "e16-k2", "e64-k2", "e256-k2", "e16", "tiny", "e128", "e256"},
      {{"eliminate", "off"}, {"eliminate+balance", "off+balance"}});
}

/// Other methods, alone, against the balance loss, and below the competition.
inline std::vector<Trial> rival_trials() {
  return trials({"tiny", "attention"}, {{"eliminate", "off"},
                                        {"off+balance", "off"},
                                        {"off+bias", "off"},
                                        {"off+quantile", "off"},
                                        {"off+quantile", "off+balance"},
                                        {"off+orthogonal", "off"},
                                        {"off+simbal", "off"}}) +
         trials({"tiny"}, {{"off+orthogonal-start", "off"},
                           {"off+orthogonal+balance", "off+balance"},
                           {"eliminate+bias", "off+bias"},
                           {"eliminate+quantile", "off+quantile"},
                           {"eliminate+orthogonal", "off+orthogonal"},
                           {"eliminate+sigmoid", "off+sigmoid"}});
}

inline std::vector<Trial> output_trials() {
  return trials({"tiny", "attention", "e128", "long"},
                {{"off", ""}, {"off+balance", ""}, {"eliminate", ""}});
}

inline std::vector<Trial> output_partner_trials() {
  return trials({"tiny"}, {{"eliminate+outputs", "eliminate"},
                           {"eliminate+outputs+balance", "eliminate+balance"},
                           {"eliminate+outputs", "off"},
                           {"eliminate+outputs+balance", "off+balance"}});
}

inline std::vector<Trial> more_rivals() {
  return against_eliminate({"+rivals=2", "+rivals=3", "+pair"}) +
         against_eliminate({"+rivals=2", "+rivals=3", "+pair"}, "+balance");
}

/// What the paper says of training.
inline std::vector<Question> claims() {
  return {
      {"loss", "Better models",
       "The paper reports better benchmark scores at every scale, with and without a balance loss.",
       measures::loss, -1, Kind::effect, paper_trials(),
       "Models of this size know no benchmark, and see a few millionths of the paper's tokens. A "
       "gain that needs billions of tokens, or of weights, cannot show here."},
      {"unused-early", "Fewer unused experts in the first half",
       "The paper sees experts without tokens vanish about twice as fast, with and without a "
       "balance loss.",
       measures::unused_early, -1, Kind::effect, paper_trials(),
       "A step has hundreds of tokens here and millions there, so more experts stay without a "
       "token by chance."},
      {"unused", "Fewer unused experts in the end",
       "The paper's unused experts come close to zero in every layer.", measures::unused, -1,
       Kind::effect, paper_trials(), "The runs end long before the paper's curves meet."},
      {"used-step", "Experts all in use sooner",
       "Layer 7 of the paper's model: 2500 steps without GatePro and 1500 with it; with a balance "
       "loss 2000 and 1000.",
       measures::used_step, -1, Kind::effect, paper_trials(),
       "Runs that never get there count as if they did at the end, and if both sides never do, "
       "nothing can show. Here experts start in use and fall out of it; the paper shows only the "
       "way back."},
      {"load", "More even loads", "The paper: a more uniform distribution of the tokens.",
       measures::load_entropy, 1, Kind::effect, paper_trials(), ""},
      {"cosine", "Router rows grow less similar",
       "The paper's mean cosine falls from 0.25 to 0.15.", measures::cosine, -1, Kind::effect,
       paper_trials(),
       "Rows of 64 numbers trained for minutes start and stay far less similar than the paper's."},
      {"entropy", "Spectral entropy rises",
       "The paper's rises from 3.5 to 4.0; which of two definitions it uses is not known. This one "
       "is of the eigenvalues of S, the similarities.",
       measures::entropy, 1, Kind::effect, paper_trials(), ""},
      {"entropy-weights", "Spectral entropy rises, of W itself",
       "The other definition: of the singular values of W.", measures::entropy_weights, 1,
       Kind::effect, paper_trials(), ""},
      {"coactivation", "Similar experts are selected together less often",
       "What the competition is for.", measures::coactivation, -1, Kind::effect, paper_trials(),
       "Mostly the mask itself. Whether the router has learnt it is the next question."},
      {"coactivation-learnt", "The router learns to keep similar experts apart",
       "The same, but counted before the penalty.", measures::coactivation_free, -1, Kind::effect,
       paper_trials(), ""},
      {"distinct", "Experts become more distinct",
       "The paper: experts with distinct, complementary functions. Here: their outputs on the same "
       "tokens.",
       measures::output_cosine, -1, Kind::effect, paper_trials(),
       "Experts of 32 hidden units, on bytes."},
      {"depth", "Deeper layers gain more", "The paper: deep layers gain most.",
       measures::unused_depth, -1, Kind::effect, with_ten_seeds(trials({"deep"}, paper_arms())),
       "Six layers are not twenty-eight."},
  };
}

/// What the method assumes.
inline std::vector<Question> premises() {
  return {
      {"together", "Similar experts are selected together",
       "What the competition is against: without it, more often than their loads explain.",
       measures::excess_lift, 1, Kind::effect,
       trials(paper_models(), {{"off", ""}, {"off+balance", ""}}), ""},
      {"balance-cosine", "A balance loss alone keeps router rows apart",
       "The paper says that it does not.", measures::cosine, -1, Kind::effect,
       trials(paper_models(), {{"off+balance", "off"}}), ""},
      {"deep-unused", "Deep layers take longest",
       "The paper's deeper layers need two to three times as many steps, without the competition.",
       measures::unused_depth, 1, Kind::effect,
       trials({"tiny", "attention", "deep"}, {{"off", ""}, {"off+balance", ""}}), ""},
      {"outputs", "Similar router rows tell similar experts",
       "Open question 1: do pairs with similar rows have similar outputs on the same tokens?",
       measures::output_correlation, 1, Kind::effect, output_trials(),
       "Experts of 32 hidden units, on bytes. A rank correlation of 0.3 explains a tenth of the "
       "ranks' variance."},
      {"outputs-partner", "The partner is a redundant expert",
       "Open question 1: is the expert that the rows name closer by its outputs than any other?",
       measures::output_excess, 1, Kind::effect, output_trials(), ""},
      {"outputs-agree", "Rows and outputs name the same partner", "Open question 1.",
       measures::agreement, 1, Kind::effect, output_trials(), ""},
  };
}

/// What to set it to.
inline std::vector<Question> settings() {
  return {
      {"lambda-acts", "The penalty changes the choice of experts",
       "The paper prints lambda = 1e-4, and calls the loser effectively eliminated.",
       measures::changed, 1, Kind::effect,
       penalty_trials() + against_off({"attention", "e128", "e256", "deep", "long"}, {"published"}),
       "It depends on the gap between the k-th logit and the next. An optimizer that keeps router "
       "logits tiny for long would shrink that gap."},
      {"lambda-acts-early", "The penalty changes the choice at the start",
       "Where the router starts from tiny weights, 1e-4 may decide.", measures::changed_early, 1,
       Kind::effect,
       against_off({"tiny", "init-small", "init-zero"}, {"published"}) +
           against_off({"init-zero"}, {"lambda=1e-5", "lambda=1e-2"}),
       ""},
      {"lambda-loss", "A best lambda",
       "The paper names 1e-4 as the optimum of 1e-5, 1e-4, 1e-3, and 1e-3 as less stable.",
       measures::loss, -1, Kind::effect, penalty_trials(), ""},
      {"refresh", "Old partners do as well as fresh ones",
       "The paper says only that partners are updated periodically. Against partners of every "
       "step.",
       measures::unused, 1, Kind::no_harm,
       against_eliminate({"+refresh=10", "+refresh=100", "+lazy"}) +
           trials({"tiny"}, {{"frozen-partners", "eliminate"}}),
       "Router rows turn slower in longer trainings, so partners keep longer."},
      {"control", "Any rivals would do",
       "The control: partners of the initial weights, which are not similar for long, against none "
       "at all.",
       measures::unused, -1, Kind::effect, against_off({"tiny"}, {"frozen-partners"}), ""},
      {"top-m", "More rivals do more",
       "Open question 2: compete with the two or three most similar experts, or with whoever names "
       "you.",
       measures::unused, -1, Kind::effect, more_rivals(), ""},
      {"top-m-loss", "More rivals give better models", "Open question 2.", measures::loss, -1,
       Kind::effect, more_rivals(), ""},
      {"output-partners", "Partners by outputs do better than partners by router rows",
       "The other half of open question 1: partners whose outputs are most similar, found every "
       "10 steps.",
       measures::loss, -1, Kind::effect, output_partner_trials(),
       "They change the choice of fewer tokens (see the last table), so a lower loss than that of "
       "elimination may only mean less elimination: look at the rows against no competition."},
      {"output-partners-unused", "The same, by unused experts", "", measures::unused, -1,
       Kind::effect, output_partner_trials(), ""},
      {"top-k", "Fewer unused experts at each shape", "Open question 3: the paper has k = 6 only.",
       measures::unused, -1, Kind::effect, shape_trials(),
       "With k = 1 the weight of the expert is its softmax among all experts, as the Switch "
       "Transformer has it."},
      {"top-k-loss", "Better models at each shape", "Open question 3.", measures::loss, -1,
       Kind::effect, shape_trials(), ""},
  };
}

/// What happens when it is switched on or off.
inline std::vector<Question> switches() {
  return {
      {"persistence", "What it did stays after it is switched off",
       "The paper's training legacy: experts stay in use. Switched off after a quarter, half and "
       "three quarters of the steps.",
       measures::unused, -1, Kind::effect,
       against_off({"tiny"}, {"eliminate+until=75", "eliminate+until=150", "eliminate+until=225"}) +
           against_off({"attention"}, {"eliminate+until=150"}) +
           trials({"tiny"}, {{"eliminate+until=150+balance", "off+balance"}}),
       "The paper goes on for 100 billion tokens after switching off."},
      {"exposure", "The longer it was on, the better the end",
       "The paper: scores rise with the share of the training that had it, and with switching it "
       "on "
       "late.",
       measures::loss, -1, Kind::effect,
       against_off({"tiny"}, {"eliminate+until=75", "eliminate+until=150", "eliminate+until=225",
                              "eliminate+from=75", "eliminate+from=150", "eliminate+from=225"}) +
           against_off({"attention"}, {"eliminate+until=150", "eliminate+from=150"}),
       ""},
      {"hot-swap", "Switching costs nothing",
       "The paper: 30.0 and 44.5 with GatePro for four fifths, 30.1 and 44.2 with it all the time.",
       measures::loss, 1, Kind::no_harm,
       trials({"tiny", "attention"},
              {{"eliminate+until=150", "eliminate"}, {"eliminate+from=150", "eliminate"}}) +
           trials({"tiny"}, {{"eliminate+until=150+balance", "eliminate+balance"}}),
       ""},
      {"mismatch", "The penalty can be left out at inference",
       "A user's question: the same weights with the competition taken away after training.",
       measures::mismatch, 1, Kind::no_harm,
       trials({"tiny", "attention", "e128"},
              {{"published", ""}, {"eliminate", ""}, {"eliminate+balance", ""}}),
       ""},
  };
}

/// What else there is.
inline std::vector<Question> rivals() {
  return {
      {"rivals", "Other methods against unused experts",
       "Balance loss, expert bias, quantile bias and losses that keep router rows apart, alone and "
       "together with the competition.",
       measures::unused, -1, Kind::effect, rival_trials(), ""},
      {"rivals-cosine", "Other methods against similar router rows",
       "The orthogonality losses act on what the competition looks at.", measures::cosine, -1,
       Kind::effect, rival_trials(), ""},
      {"rivals-loss", "Other methods for better models", "", measures::loss, -1, Kind::effect,
       rival_trials(), ""},
      {"balance-hurt", "It does not disturb the balance loss",
       "The paper: a complement, not a replacement.", measures::worst_load, 1, Kind::no_harm,
       trials({"tiny", "attention", "e128"},
              {{"published+balance", "off+balance"}, {"eliminate+balance", "off+balance"}}),
       ""},
  };
}

/// Every question that the report answers. Their trials are the grid.
inline const std::vector<Question>& questions() {
  static const std::vector<Question> all = [] {
    std::vector<Question> joined;
    for (auto* part : {claims, premises, settings, switches, rivals}) {
      for (Question& question : part()) joined.push_back(std::move(question));
    }
    return joined;
  }();
  return all;
}

inline const Question& question_named(const std::string& id) {
  for (const Question& question : questions()) {
    if (question.id == id) return question;
  }
  throw std::invalid_argument("no question is named " + id);
}

}  // namespace study

#endif  // STUDY_QUESTIONS_HPP
