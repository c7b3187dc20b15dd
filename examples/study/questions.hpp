// SPDX-License-Identifier: MIT
// The questions: the claims of the paper, what it leaves open, and what a user has to decide.
#ifndef STUDY_QUESTIONS_HPP
#define STUDY_QUESTIONS_HPP

#include <string>
#include <vector>

#include "grid.hpp"

namespace study {

/// The published penalty and its limit, with and without the balance loss.
inline const ArmPairs& paper_arms() {
  static const ArmPairs arms{{"published", "off"},
                             {"eliminate", "off"},
                             {"published+balance", "off+balance"},
                             {"eliminate+balance", "off+balance"}};
  return arms;
}

/// What every claim about training is asked of.
inline std::vector<Trial> paper_trials() {
  return in_short(trials({"tiny", "attention", "e128"}, paper_arms())) +
         trials({"e256", "deep", "long", "init-zero"}, paper_arms());
}

inline std::vector<Trial> against_off(const std::string& model,
                                      const std::vector<std::string>& arms) {
  std::vector<Trial> all;
  for (const std::string& arm : arms) all.push_back({model, arm, "off"});
  return all;
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
  return {"lambda=1e-5", "published", "lambda=1e-3", "lambda=1e-2", "lambda=0.1",
          "lambda=1",    "lambda=10", "lambda=1e4",  "eliminate"};
}

inline std::vector<Trial> penalty_trials() {
  return in_short(against_off("tiny", penalties())) +
         against_off("tiny", {"share=0.01", "share=0.1", "share=0.5"}) +
         against_off("init-large", {"published", "lambda=1", "eliminate"}) +
         against_off("init-small", {"published", "lambda=1e-2", "eliminate"}) +
         against_off("init-zero", {"lambda=1e-5", "published", "lambda=1e-2", "eliminate"}) +
         trials({"tiny"}, {{"published+bf16", "off+bf16"}, {"eliminate+bf16", "off+bf16"}}) +
         trials({"init-zero"}, {{"published+bf16", "off+bf16"}, {"eliminate+bf16", "off+bf16"}});
}

inline std::vector<Trial> shape_trials() {
  return trials({"e16", "e16-k1", "e64-k1", "e256-k1", "e16-k2", "e64-k2", "e256-k2"},
                {{"eliminate", "off"}, {"eliminate+balance", "off+balance"}}) +
         trials({"tiny", "e128", "e256"},
                {{"eliminate", "off"}, {"eliminate+balance", "off+balance"}});
}

inline std::vector<Trial> rival_trials() {
  return trials({"tiny", "attention"}, {{"eliminate", "off"},
                                        {"off+balance", "off"},
                                        {"off+bias", "off"},
                                        {"off+quantile", "off"},
                                        {"off+orthogonal", "off"},
                                        {"off+simbal", "off"}}) +
         trials({"tiny"}, {{"eliminate+bias", "off+bias"},
                           {"eliminate+quantile", "off+quantile"},
                           {"eliminate+orthogonal", "off+orthogonal"},
                           {"off+orthogonal+balance", "off+balance"},
                           {"off+orthogonal-start", "off"}});
}

/// Every question that the report answers. Their trials are the grid.
inline const std::vector<Question>& questions() {
  static const std::vector<Question> all{
      {"loss", "Better models",
       "The paper reports better benchmark scores at every scale, with and without a balance loss. "
       "Here: a lower validation loss.",
       Metric::val_loss, -1, relevant_loss, Kind::effect, 4, 1, "nats per byte", paper_trials(),
       "Models of this size know no benchmark, and see less than a millionth of the paper's "
       "tokens. A gain that needs billions of tokens, or billions of weights, cannot show here."},
      {"unused-early", "Experts come into use sooner",
       "The paper sees experts without tokens vanish about twice as fast, with and without a "
       "balance loss.",
       Metric::unused_early, -1, 0.02, Kind::effect, 1, 100, "% of the experts, first half",
       paper_trials(),
       "A step has hundreds of tokens here and millions there, so more experts stay without a "
       "token by chance."},
      {"unused", "Fewer unused experts in the end",
       "The paper's unused experts come close to zero in every layer.", Metric::unused, -1, 0.02,
       Kind::effect, 1, 100, "% of the experts, last quarter", paper_trials(),
       "The runs end long before the paper's curves meet."},
      {"used-step", "Steps until no more than 20 of 128 experts stay unused",
       "Layer 7 of the paper's model: 2500 steps without GatePro and 1500 with it; with a balance "
       "loss 2000 and 1000.",
       Metric::used_step, -1, 0.05, Kind::effect, 1, 100, "% of the run; 100: never",
       paper_trials(),
       "Runs that never get there count as if they did at the end. Here experts start in use and "
       "fall out of it; the paper shows only the way back."},
      {"cosine", "Router rows grow less similar",
       "The paper's mean cosine falls from 0.25 to 0.15.", Metric::mean_cosine, -1, 0.01,
       Kind::effect, 3, 1, "mean cosine", paper_trials(),
       "Rows of 64 numbers trained for minutes start and stay far less similar than the paper's."},
      {"entropy", "Spectral entropy rises", "The paper's rises from 3.5 to 4.0.",
       Metric::spectral_entropy, 1, 0.02, Kind::effect, 3, 1, "nats", paper_trials(),
       "Which of two definitions the paper uses is not known; this is that of the eigenvalues of "
       "S."},
      {"coactivation", "Similar experts are selected together less often",
       "What the competition is for.", Metric::coactivation, -1, 0.02, Kind::effect, 3, 1,
       "P(partner selected | selected)", paper_trials(),
       "Mostly the mask itself. Whether the router has learnt it is the next question."},
      {"coactivation-learnt", "The router learns to keep similar experts apart",
       "The same, but counted before the penalty.", Metric::coactivation_free, -1, 0.02,
       Kind::effect, 3, 1, "P(partner selected | selected), no penalty", paper_trials(), ""},
      {"lambda-acts", "The penalty changes the choice of experts",
       "The paper prints lambda = 1e-4, and calls the loser effectively eliminated.",
       Metric::changed, 1, 0.01, Kind::effect, 2, 100, "% of the tokens", penalty_trials(),
       "It depends on the gap between the k-th logit and the next. An optimizer that makes router "
       "logits tiny for long, or far more experts, would shrink that gap."},
      {"lambda-loss", "A best lambda", "The paper names 1e-4 as the optimum of 1e-5, 1e-4, 1e-3.",
       Metric::val_loss, -1, relevant_loss, Kind::effect, 4, 1, "nats per byte", penalty_trials(),
       ""},
      {"persistence", "What it did stays after it is switched off",
       "The paper's training legacy: experts stay in use. Switched off after a quarter, half and "
       "three quarters of the steps; on from the middle.",
       Metric::unused, -1, 0.02, Kind::effect, 1, 100, "% of the experts, last quarter",
       against_off("tiny", {"eliminate+until=75", "eliminate+until=150", "eliminate+until=225",
                            "eliminate+from=150"}) +
           against_off("attention", {"eliminate+until=150"}),
       "The paper goes on for 100 billion tokens after switching off."},
      {"hot-swap", "Switching costs nothing",
       "The paper: 30.0 and 44.5 with GatePro for four fifths, 30.1 and 44.2 with it all the time.",
       Metric::val_loss, 1, relevant_loss, Kind::no_harm, 4, 1, "nats per byte",
       trials({"tiny", "attention"},
              {{"eliminate+until=150", "eliminate"}, {"eliminate+from=150", "eliminate"}}) +
           trials({"tiny"}, {{"eliminate+until=150+balance", "eliminate+balance"}}),
       ""},
      {"mismatch", "The penalty can be left out at inference",
       "A user's question: the same weights with the competition taken away after training.",
       Metric::mismatch, 1, 0.01, Kind::no_harm, 4, 1, "nats per byte",
       trials({"tiny", "attention", "e128"},
              {{"published", ""}, {"eliminate", ""}, {"eliminate+balance", ""}}),
       ""},
      {"depth", "Deeper layers gain more",
       "The paper: deep layers take longest, and gain most. Here: by how much the last layer's "
       "unused experts exceed the first's.",
       Metric::unused_depth, -1, 0.02, Kind::effect, 1, 100, "% of the experts, last less first",
       trials({"deep"}, paper_arms()), "Six layers are not twenty-eight."},
      {"outputs", "Similar router rows mean similar experts",
       "Open question 1: the method rests on it. Rank correlation, over all pairs of experts, of "
       "the cosine of their router rows and the cosine of their outputs on the same tokens.",
       Metric::output_correlation, 1, 0.1, Kind::effect, 3, 1, "rank correlation",
       trials({"tiny", "attention", "e128", "long"},
              {{"off", ""}, {"off+balance", ""}, {"eliminate", ""}}),
       "Experts of 32 hidden units, on bytes."},
      {"output-partners", "Partners by outputs do better than partners by router rows",
       "The other half of open question 1: partners whose outputs are most similar, found every "
       "10 steps.",
       Metric::val_loss, -1, relevant_loss, Kind::effect, 4, 1, "nats per byte",
       trials({"tiny"}, {{"eliminate+outputs", "eliminate"},
                         {"eliminate+outputs+balance", "eliminate+balance"}}),
       ""},
      {"output-partners-unused", "The same, by unused experts", "", Metric::unused, -1, 0.02,
       Kind::effect, 1, 100, "% of the experts, last quarter",
       trials({"tiny"}, {{"eliminate+outputs", "eliminate"},
                         {"eliminate+outputs+balance", "eliminate+balance"}}),
       ""},
      {"top-m", "More rivals do more",
       "Open question 2: compete with the two or three most similar experts, or with whoever names "
       "you.",
       Metric::unused, -1, 0.02, Kind::effect, 1, 100, "% of the experts, last quarter",
       against_eliminate({"+rivals=2", "+rivals=3", "+pair"}), ""},
      {"top-m-loss", "More rivals give better models", "Open question 2.", Metric::val_loss, -1,
       0.01, Kind::effect, 4, 1, "nats per byte",
       against_eliminate({"+rivals=2", "+rivals=3", "+pair"}) +
           against_eliminate({"+rivals=2", "+rivals=3", "+pair"}, "+balance"),
       ""},
      {"top-k", "Fewer unused experts at each shape", "Open question 3: the paper has k = 6 only.",
       Metric::unused, -1, 0.02, Kind::effect, 1, 100, "% of the experts, last quarter",
       shape_trials(), ""},
      {"top-k-loss", "Better models at each shape", "Open question 3.", Metric::val_loss, -1,
       relevant_loss, Kind::effect, 4, 1, "nats per byte", shape_trials(), ""},
      {"refresh", "Old partners do as well as fresh ones",
       "The paper says only that partners are updated periodically. Harm: more unused experts than "
       "with partners of every step.",
       Metric::unused, 1, 0.02, Kind::no_harm, 1, 100, "% of the experts, last quarter",
       against_eliminate({"+refresh=10", "+refresh=100", "+lazy"}) +
           trials({"tiny"}, {{"frozen-partners", "eliminate"}}),
       "Router rows turn slower in longer trainings, so partners keep longer."},
      {"control", "Any rivals would do",
       "The control: partners of the initial weights, which are not similar for long, against none "
       "at all.",
       Metric::unused, -1, 0.02, Kind::effect, 1, 100, "% of the experts, last quarter",
       against_off("tiny", {"frozen-partners"}), ""},
      {"rivals", "Other methods against unused experts",
       "Balance loss, expert bias, quantile bias and losses that keep router rows apart, alone and "
       "together with the competition.",
       Metric::unused, -1, 0.02, Kind::effect, 1, 100, "% of the experts, last quarter",
       rival_trials(), ""},
      {"rivals-cosine", "Other methods against similar router rows",
       "The same, by the mean cosine: the orthogonality losses act on what the competition looks "
       "at.",
       Metric::mean_cosine, -1, 0.01, Kind::effect, 3, 1, "mean cosine", rival_trials(), ""},
      {"rivals-loss", "Other methods for better models", "The same, by the loss.", Metric::val_loss,
       -1, 0.01, Kind::effect, 4, 1, "nats per byte", rival_trials(), ""},
      {"balance-hurt", "It does not disturb the balance loss",
       "The paper: a complement, not a replacement. Harm: a larger worst load.",
       Metric::max_violation, 1, 0.1, Kind::no_harm, 2, 1, "largest load over the mean, less 1",
       trials({"tiny", "attention", "e128"},
              {{"published+balance", "off+balance"}, {"eliminate+balance", "off+balance"}}),
       ""},
  };
  return all;
}

}  // namespace study

#endif  // STUDY_QUESTIONS_HPP
