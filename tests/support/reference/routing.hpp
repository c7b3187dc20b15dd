// SPDX-License-Identifier: MIT
// The method once more, in double, as plainly as it can be written: what the tests compare with.
// It shares no code with the library but the enum of modes.
#ifndef GATEPRO_TESTS_SUPPORT_REFERENCE_HPP
#define GATEPRO_TESTS_SUPPORT_REFERENCE_HPP

#include <algorithm>
#include <cmath>
#include <gatepro/partners/settings.hpp>
#include <gatepro/routing/rules.hpp>
#include <limits>
#include <numeric>
#include <vector>

namespace reference {

using Matrix = std::vector<std::vector<double>>;  // rows of equal length
using Ids = std::vector<std::vector<int>>;

inline Matrix zeros(std::size_t rows, std::size_t cols) {
  return Matrix(rows, std::vector<double>(cols, 0.0));
}

// GatePro eq. 1.
inline Matrix gate_logits(const Matrix& x_TH, const Matrix& w_EH) {
  Matrix logits_TE = zeros(x_TH.size(), w_EH.size());
  for (std::size_t t = 0; t < x_TH.size(); ++t) {
    for (std::size_t e = 0; e < w_EH.size(); ++e) {
      logits_TE[t][e] = std::inner_product(x_TH[t].begin(), x_TH[t].end(), w_EH[e].begin(), 0.0);
    }
  }
  return logits_TE;
}

inline bool is_finite(const std::vector<double>& row) {
  return std::all_of(row.begin(), row.end(), [](double v) { return std::isfinite(v); });
}

// GatePro eq. 5. A zero row has similarity 0; a non-finite row has NaN. Rows are scaled by their
// largest element, so that squares of any float stay in the range of double.
inline Matrix cosine_similarity(Matrix w_EH) {
  const std::size_t experts = w_EH.size();
  std::vector<double> norms(experts);
  for (std::size_t i = 0; i < experts; ++i) {
    double largest = 0;
    for (double v : w_EH[i]) largest = std::max(largest, std::abs(v));
    if (is_finite(w_EH[i]) && largest > 0) {
      for (double& v : w_EH[i]) v /= largest;
    }
    norms[i] = std::sqrt(std::inner_product(w_EH[i].begin(), w_EH[i].end(), w_EH[i].begin(), 0.0));
  }
  Matrix similarity_EE = zeros(experts, experts);
  for (std::size_t i = 0; i < experts; ++i) {
    for (std::size_t j = 0; j < experts; ++j) {
      const double dot = std::inner_product(w_EH[i].begin(), w_EH[i].end(), w_EH[j].begin(), 0.0);
      double& s = similarity_EE[i][j];
      s = norms[i] == 0 || norms[j] == 0 ? 0 : dot / (norms[i] * norms[j]);
      if (!is_finite(w_EH[i]) || !is_finite(w_EH[j])) s = std::numeric_limits<double>::quiet_NaN();
    }
  }
  return similarity_EE;
}

// GatePro eq. 6, for the m best: most similar first, then lowest id; i itself for "none".
inline Ids pair_partners(const Matrix& similarity_EE, const gatepro::Pairing& pairing) {
  const int experts = static_cast<int>(similarity_EE.size());
  const auto m = static_cast<std::size_t>(pairing.partners_per_expert);
  Ids partners;
  for (int i = 0; i < experts; ++i) {
    const std::vector<double>& s = similarity_EE[static_cast<std::size_t>(i)];
    std::vector<int> candidates;
    for (int j = 0; j < experts; ++j) {
      const double similarity = s[static_cast<std::size_t>(j)];
      if (j != i && similarity >= pairing.min_similarity) candidates.push_back(j);
    }
    std::stable_sort(candidates.begin(), candidates.end(), [&](int a, int b) {
      return s[static_cast<std::size_t>(a)] > s[static_cast<std::size_t>(b)];
    });
    candidates.resize(m, i);
    partners.push_back(candidates);
  }
  return partners;
}

// Whom each expert must not be below.
inline Ids rivals(const Ids& partners, bool both_sides) {
  Ids rivals(partners.size());
  for (std::size_t i = 0; i < partners.size(); ++i) {
    for (int p : partners[i]) {
      if (p == static_cast<int>(i)) continue;
      rivals[i].push_back(p);
      if (both_sides) rivals[static_cast<std::size_t>(p)].push_back(static_cast<int>(i));
    }
  }
  return rivals;
}

// Eq. 7, strictly, or with ties that the higher id loses. False for NaN.
inline bool loses(const std::vector<double>& logits, std::size_t i, const std::vector<int>& rivals,
                  const gatepro::Competition& competition) {
  for (int rival : rivals) {
    const auto r = static_cast<std::size_t>(rival);
    if (logits[i] < logits[r]) return true;
    const bool ties_lose = competition.ties == gatepro::TieRule::higher_id_loses;
    if (ties_lose && logits[i] == logits[r] && r < i) return true;
  }
  return false;
}

struct Token {
  std::vector<double> logits;   // after competition; a loser keeps its own in elimination
  std::vector<bool> loses;      // eq. 7-8
  std::vector<int> ids;         // K, best first
  std::vector<double> weights;  // K
  bool nonfinite = false;       // the weights are NaN
  bool short_of_survivors = false;
};

// GatePro eq. 2-4 and 7-8 for one token, by one full sort. `round` turns a penalised logit into
// the scalar under test, so that rounding and ties come out the same.
template <class Round>
Token route(const std::vector<double>& logits, const Ids& rivals,
            const gatepro::Competition& competition, int top_k, const Round& round) {
  const auto at = [](const auto& v, int i) { return v[static_cast<std::size_t>(i)]; };
  const bool eliminate = competition.mode == gatepro::CompetitionMode::eliminate;
  Token token;
  token.logits = logits;
  token.loses.assign(logits.size(), false);
  if (competition.mode != gatepro::CompetitionMode::off) {
    for (std::size_t i = 0; i < logits.size(); ++i) {
      token.loses[i] = loses(logits, i, rivals[i], competition);
      if (token.loses[i] && !eliminate) token.logits[i] = round(logits[i] - competition.lambda);
    }
  }
  std::vector<int> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    const bool a_nan = std::isnan(at(token.logits, a)), b_nan = std::isnan(at(token.logits, b));
    if (a_nan != b_nan) return b_nan;
    if (a_nan) return false;
    if (eliminate && at(token.loses, a) != at(token.loses, b)) return bool(at(token.loses, b));
    return at(token.logits, a) > at(token.logits, b);
  });
  token.ids.assign(order.begin(), order.begin() + top_k);

  const double minus_infinity = -std::numeric_limits<double>::infinity();
  double top = minus_infinity;
  std::vector<double> selected;
  for (int id : token.ids) {
    const bool eliminated = eliminate && at(token.loses, id);
    token.short_of_survivors = token.short_of_survivors || eliminated;
    selected.push_back(eliminated ? minus_infinity : at(token.logits, id));
    if (std::isnan(selected.back())) token.nonfinite = true;
    top = std::max(top, selected.back());
  }
  token.nonfinite = token.nonfinite || std::isinf(top);
  double sum = 0;
  for (double v : selected) sum += std::exp(v - top);
  for (double v : selected) {
    token.weights.push_back(token.nonfinite ? std::numeric_limits<double>::quiet_NaN()
                                            : std::exp(v - top) / sum);
  }
  return token;
}

// Gradients of loss = sum of weights * dweights, plus dlogits_TE (empty for none).
struct Gradients {
  Matrix dx_TH;
  Matrix dw_EH;
};
inline Gradients backward(const Matrix& x_TH, const Matrix& w_EH, const Ids& ids_TK,
                          const Matrix& weights_TK, const Matrix& dweights_TK,
                          const Matrix& dlogits_TE) {
  const std::size_t hidden = w_EH[0].size();
  Gradients g{zeros(x_TH.size(), hidden), zeros(w_EH.size(), hidden)};
  for (std::size_t t = 0; t < x_TH.size(); ++t) {
    std::vector<double> dlogits =
        dlogits_TE.empty() ? std::vector<double>(w_EH.size(), 0.0) : dlogits_TE[t];
    const double mean =
        std::inner_product(weights_TK[t].begin(), weights_TK[t].end(), dweights_TK[t].begin(), 0.0);
    for (std::size_t j = 0; j < ids_TK[t].size(); ++j) {
      dlogits[static_cast<std::size_t>(ids_TK[t][j])] +=
          weights_TK[t][j] * (dweights_TK[t][j] - mean);
    }
    for (std::size_t e = 0; e < w_EH.size(); ++e) {
      for (std::size_t h = 0; h < hidden; ++h) {
        g.dx_TH[t][h] += dlogits[e] * w_EH[e][h];
        g.dw_EH[e][h] += dlogits[e] * x_TH[t][h];
      }
    }
  }
  return g;
}

}  // namespace reference

#endif  // GATEPRO_TESTS_SUPPORT_REFERENCE_HPP
