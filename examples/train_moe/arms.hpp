// SPDX-License-Identifier: MIT
// The arms of a comparison, by the names they have on the command line.
#ifndef TRAIN_MOE_ARMS_HPP
#define TRAIN_MOE_ARMS_HPP

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "error.hpp"
#include "routing.hpp"

namespace train_moe {

/// A name on the command line: a base, and modifiers that change it from left to right.
struct Arm {
  std::string name;
  Routing routing;
  std::vector<std::string> modifiers;  // their names, without values
};

/// The number behind a part of a name: part=VALUE.
struct PartValue {
  double least = 0;
  double most = 0;
  std::optional<double> preset{};  // where none is given
};

/// A part of an arm's name. Options, help and errors know the parts from the tables below.
struct ArmPart {
  const char* name;
  std::optional<PartValue> value;
  const char* help;
  void (*apply)(Routing&, double value);
};

/// What an arm's name starts with.
inline const std::vector<ArmPart>& arm_bases() {
  using gatepro::Competition;
  static const std::vector<ArmPart> bases{
      {"off", {}, "plain top-k", [](Routing&, double) {}},
      {"published",
       {},
       "losers pay the printed lambda, 1e-4",
       [](Routing& r, double) { r.config.competition = Competition{}; }},
      {"lambda", PartValue{0, 1e30}, "losers pay VALUE",
       [](Routing& r, double lambda) { r.config.competition = Competition::penalty(lambda); }},
      {"share", PartValue{1e-6, 1, 0.1},
       "losers pay what changes the choice of a share VALUE of the tokens",
       [](Routing& r, double share) {
         r.config.competition = Competition{};
         r.config.adaptive_lambda.share = share;
       }},
      {"eliminate",
       {},
       "losers rank last and weigh 0",
       [](Routing& r, double) { r.config.competition = Competition::eliminate(); }},
      {"frozen-partners",
       {},
       "the control: eliminate, by the partners of the initial weights, which are not similar for "
       "long",
       [](Routing& r, double) {
         r.config.competition = Competition::eliminate();
         r.frozen_partners = true;
       }},
  };
  return bases;
}

/// The rule by which tokens make fewer choices, which then acts.
inline gatepro::FewerChoices& fewer_choices(Routing& routing) {
  if (!routing.config.fewer) routing.config.fewer.emplace();
  return *routing.config.fewer;
}

/// What may follow, each once, behind a '+'. A method of the trainer is a line here.
inline const std::vector<ArmPart>& arm_modifiers() {
  constexpr double tiny = 1e-12;
  static const std::vector<ArmPart> modifiers{
      {"balance", PartValue{tiny, 1e6, 1e-2}, "the load-balancing loss of the batch",
       [](Routing& r, double coefficient) { r.config.losses.batch = coefficient; }},
      {"sequence", PartValue{tiny, 1e6, 1e-2},
       "the load-balancing loss of each window, or of each 64 tokens",
       [](Routing& r, double coefficient) { r.config.losses.sequence = coefficient; }},
      {"z", PartValue{tiny, 1e6, 1e-3}, "the z-loss",
       [](Routing& r, double coefficient) { r.config.losses.z = coefficient; }},
      {"bias", PartValue{tiny, 1e3, gatepro::BiasRule{}.update_rate},
       "an expert bias that moves by the sign of the load's error",
       [](Routing& r, double rate) {
         r.config.bias.enabled = true;
         r.config.bias.update_rate = rate;
       }},
      {"quantile", PartValue{0, 0.999, 0.0},
       "an expert bias at quantiles of what choices need, VALUE of the bias before it",
       [](Routing& r, double memory) {
         r.config.quantile.enabled = true;
         r.config.quantile.memory = memory;
       }},
      {"sigmoid",
       {},
       "sigmoid scores, renormalised",
       [](Routing& r, double) {
         r.config.scores.function = gatepro::ScoreFunction::sigmoid;
         r.config.scores.renormalise = true;
       }},
      {"rounded", PartValue{1, 60, 14}, "experts are chosen by scores rounded to 2^-VALUE",
       [](Routing& r, double bits) { r.config.choice.step = std::exp2(-bits); }},
      {"gate-bias",
       {},
       "the logits have a learned bias",
       [](Routing& r, double) { r.gate_bias = true; }},
      {"softcap", PartValue{1e-3, 1e6, 30}, "logits l become VALUE tanh(l / VALUE)",
       [](Routing& r, double cap) { r.config.logit_soft_cap = cap; }},
      {"capacity", PartValue{1e-3, 1e3, 1.25},
       "experts drop what exceeds VALUE times the mean load",
       [](Routing& r, double factor) {
         r.config.capacity.emplace();
         r.config.capacity->factor = factor;
       }},
      {"choices", PartValue{1, 64}, "tokens make the best VALUE of their K choices",
       [](Routing& r, double count) { r.choices = static_cast<gatepro::Index>(count); }},
      {"top-p", PartValue{tiny, 1, 0.8},
       "tokens make no more choices than sum to VALUE of their scores",
       [](Routing& r, double share) { fewer_choices(r).top_p = share; }},
      {"budget", PartValue{1, 64},
       "the tokens of a sequence share VALUE choices each, the best of all",
       [](Routing& r, double choices) { fewer_choices(r).budget = choices; }},
      {"rivals", PartValue{1, 64}, "the VALUE most similar experts are rivals",
       [](Routing& r, double count) {
         r.config.pairing.partners_per_expert = static_cast<gatepro::Index>(count);
       }},
      {"pair",
       {},
       "the loser of a pair pays, whoever named whom",
       [](Routing& r, double) { r.config.pairing.both_sides = true; }},
      {"refresh", PartValue{1, 1e9}, "new partners every VALUE steps",
       [](Routing& r, double steps) { r.refresh_every = static_cast<std::int64_t>(steps); }},
      {"lazy",
       {},
       "a refresh looks only at rows that turned",
       [](Routing& r, double) { r.lazy_refresh = true; }},
      {"outputs", PartValue{1, 1e9, 10},
       "partners are those whose outputs are most similar, found every VALUE steps",
       [](Routing& r, double steps) {
         r.output_partners = true;
         r.refresh_every = static_cast<std::int64_t>(steps);
       }},
      {"from", PartValue{1, 1e9}, "competition starts at step VALUE",
       [](Routing& r, double step) { r.swaps.on_at = static_cast<std::int64_t>(step); }},
      {"until", PartValue{1, 1e9}, "competition stops at step VALUE",
       [](Routing& r, double step) { r.swaps.off_at = static_cast<std::int64_t>(step); }},
      {"bf16",
       {},
       "logits are rounded to bfloat16 before they decide",
       [](Routing& r, double) { r.bf16_logits = true; }},
      {"simbal", PartValue{tiny, 1e6, 0.1}, "SimBal: the sum of |W W^T - I|",
       [](Routing& r, double coefficient) {
         r.apart.kind = gatepro::OrthogonalityKind::simbal;
         r.apart.coefficient = coefficient;
       }},
      {"orthogonal", PartValue{tiny, 1e6, 1}, "the mean of the squared cosines of router rows",
       [](Routing& r, double coefficient) {
         r.apart.kind = gatepro::OrthogonalityKind::frobenius;
         r.apart.coefficient = coefficient;
       }},
      {"orthogonal-start",
       {},
       "a router that starts from orthogonal rows",
       [](Routing& r, double) { r.orthogonal_start = true; }},
      {"hash",
       {},
       "a random table chooses the experts of each byte, the router only weighs",
       [](Routing& r, double) { r.hash = true; }},
  };
  return modifiers;
}

/// "a", "b=VALUE" or "c[=VALUE]".
inline std::string written(const ArmPart& part) {
  if (!part.value) return part.name;
  return std::string(part.name) + (part.value->preset ? "[=VALUE]" : "=VALUE");
}

/// "a, b=VALUE"
inline std::string choices_of(const std::vector<ArmPart>& parts) {
  std::string text;
  for (const ArmPart& part : parts) text += (text.empty() ? "" : ", ") + written(part);
  return text;
}

/// "b=VALUE: what it does (0 to 1)"
inline std::string describe(const ArmPart& part) {
  std::ostringstream text;
  text << written(part) << ": " << part.help;
  if (!part.value) return text.str();
  text << " (" << part.value->least << " to " << part.value->most;
  if (part.value->preset) text << ", else " << *part.value->preset;
  text << ')';
  return text.str();
}

/// What an arm may be, a line for each part.
inline std::string arms_help(const std::vector<ArmPart>& modifiers) {
  std::string text = "BASE[+MODIFIER...], with commas between arms.\nBASE is one of";
  for (const ArmPart& part : arm_bases()) text += "\n  " + describe(part);
  text += "\nMODIFIER is one of";
  for (const ArmPart& part : modifiers) text += "\n  " + describe(part);
  return text;
}

/// The number in `text`, which is the whole of it, within the range of `part`.
inline double parse_value(const ArmPart& part, const std::string& text, const std::string& arm) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !(value >= part.value->least && value <= part.value->most)) {
    throw UserError("arm '" + arm + "' has '" + text + "' for VALUE: " + describe(part));
  }
  return value;
}

/// Applies NAME or NAME=VALUE, one of `parts`. Returns its name.
inline std::string apply_part(const std::string& text, const std::vector<ArmPart>& parts,
                              Arm& arm) {
  const std::size_t equals = text.find('=');
  const std::string name = text.substr(0, equals);
  const auto part = std::find_if(parts.begin(), parts.end(),
                                 [&](const ArmPart& each) { return each.name == name; });
  const bool has_value = equals != std::string::npos;
  if (part == parts.end() || (has_value && !part->value)) {
    throw UserError("unknown arm '" + arm.name + "': '" + text + "' is none of " +
                    choices_of(parts) + " (see --help)");
  }
  double value = 0;
  if (part->value) {
    const std::optional<double> preset = part->value->preset;
    value = has_value || !preset
                ? parse_value(*part, has_value ? text.substr(equals + 1) : "", arm.name)
                : *preset;
  }
  part->apply(arm.routing, value);
  return name;
}

/// One arm: BASE[+MODIFIER...].
inline Arm parse_arm(const std::string& name) {
  Arm arm;
  arm.name = name;
  std::istringstream parts(name + '+');
  std::string part;
  std::getline(parts, part, '+');
  apply_part(part, arm_bases(), arm);
  while (std::getline(parts, part, '+')) {
    const std::string modifier = apply_part(part, arm_modifiers(), arm);
    if (std::count(arm.modifiers.begin(), arm.modifiers.end(), modifier) != 0) {
      throw UserError("arm '" + name + "' has +" + modifier + " twice: once is enough");
    }
    arm.modifiers.push_back(modifier);
  }
  return arm;
}

/// A list with commas between the arms.
inline std::vector<Arm> parse_arms(const std::string& list) {
  std::vector<Arm> arms;
  std::istringstream names(list + ',');
  for (std::string name; std::getline(names, name, ',');) {
    for (const Arm& arm : arms) {
      if (arm.name == name) throw UserError("--arms names '" + name + "' twice: name it once");
    }
    arms.push_back(parse_arm(name));
  }
  return arms;
}

}  // namespace train_moe

#endif  // TRAIN_MOE_ARMS_HPP
