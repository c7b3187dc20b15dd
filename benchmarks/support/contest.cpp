// SPDX-License-Identifier: MIT
#include "support/contest.hpp"

#include <cmath>
#include <stdexcept>

namespace bench {
namespace {

void expect(bool agrees, const std::string& what) {
  if (!agrees) throw std::runtime_error(what + " disagrees with gatepro");
}

}  // namespace

void expect_close(const std::string& what, const Floats& a, const Floats& b, float tolerance) {
  bool close = a.size() == b.size();
  for (std::size_t i = 0; close && i < a.size(); ++i) close = std::abs(a[i] - b[i]) <= tolerance;
  expect(close, what);
}

void expect_near(const std::string& what, const Floats& a, const Floats& b, double tolerance) {
  expect(a.size() == b.size(), what);
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(double{a[i]} - double{b[i]}, 2);
    size += std::pow(double{b[i]}, 2);
  }
  expect(std::sqrt(difference) <= tolerance * std::sqrt(size), what);
}

void expect_same_choice(const std::string& what, const Floats& scores_TE, Index experts,
                        Index top_k, const Ids& a_TK, const Ids& b_TK, float tolerance) {
  const auto scores = [&](const Ids& ids_TK) {
    Floats chosen(ids_TK.size());
    for (std::size_t i = 0; i < chosen.size(); ++i) {
      const Index row = static_cast<Index>(i) / top_k;
      chosen[i] = scores_TE.at(static_cast<std::size_t>(row * experts + ids_TK[i]));
    }
    return chosen;
  };
  expect_close(what, scores(a_TK), scores(b_TK), tolerance);
}

}  // namespace bench
