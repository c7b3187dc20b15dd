// SPDX-License-Identifier: MIT
// The arms of a comparison, by the names they have on the command line.
#ifndef TRAIN_MOE_ARMS_HPP
#define TRAIN_MOE_ARMS_HPP

#include <cmath>
#include <cstdlib>
#include <gatepro/router/config.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "error.hpp"

namespace train_moe {

struct Arm {
  std::string name;
  gatepro::Competition competition = gatepro::Competition::off();
  bool frozen_partners = false;
  bool balance = false;
};

/// The whole of `text` as a number that is finite and not negative.
inline bool parse_lambda(const std::string& text, double& lambda) {
  char* end = nullptr;
  lambda = std::strtod(text.c_str(), &end);
  return !text.empty() && *end == '\0' && std::isfinite(lambda) && lambda >= 0;
}

/// One arm: off, published, lambda=VALUE, eliminate or frozen-partners, with or without +balance.
inline Arm parse_arm(const std::string& name) {
  const std::string balance = "+balance";
  const std::string lambda = "lambda=";
  Arm arm;
  arm.name = name;
  std::string rule = name;
  if (rule.size() > balance.size() &&
      rule.compare(rule.size() - balance.size(), balance.size(), balance) == 0) {
    arm.balance = true;
    rule.resize(rule.size() - balance.size());
  }
  if (rule == "off") return arm;
  if (rule == "published") {
    arm.competition = gatepro::Competition{};  // the library's default is the printed lambda
  } else if (rule == "eliminate") {
    arm.competition = gatepro::Competition::eliminate();
  } else if (rule == "frozen-partners") {  // the control: rivals that are not similar for long
    arm.competition = gatepro::Competition::eliminate();
    arm.frozen_partners = true;
  } else if (double value = 0; rule.compare(0, lambda.size(), lambda) == 0 &&
                               parse_lambda(rule.substr(lambda.size()), value)) {
    arm.competition = gatepro::Competition::penalty(value);
  } else {
    throw UserError("unknown arm '" + name +
                    "': choose from off, published, lambda=VALUE (>= 0), "
                    "eliminate, frozen-partners, each also with +balance");
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
