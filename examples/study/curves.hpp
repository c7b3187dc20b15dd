// SPDX-License-Identifier: MIT
// curves.csv: what figures show over the steps, mean and spread of the first seeds.
#ifndef STUDY_CURVES_HPP
#define STUDY_CURVES_HPP

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "comparison.hpp"
#include "table_file.hpp"

namespace study {

/// What is drawn over the steps: model and arm.
inline const std::vector<std::pair<std::string, std::string>>& drawn_curves() {
  static const std::vector<std::pair<std::string, std::string>> all = [] {
    std::vector<std::pair<std::string, std::string>> curves;
    for (const char* model : {"tiny", "attention", "e128", "long"}) {
      for (const char* arm :
           {"off", "published", "eliminate", "off+balance", "eliminate+balance"}) {
        curves.emplace_back(model, arm);
      }
    }
    for (const char* arm : {"eliminate+until=150", "eliminate+from=150"}) {
      curves.emplace_back("tiny", arm);
    }
    return curves;
  }();
  return all;
}

/// Means over layers and seeds, from the rows of steps.csv.
inline Table curves_of(const Table& steps) {
  const std::size_t model = steps.column("model"), arm = steps.column("arm"),
                    seed = steps.column("seed"), step = steps.column("step"),
                    zero = steps.column("zero_token_experts"),
                    coactivation = steps.column("coactivation");
  struct Sum {
    double rows = 0, zero = 0, coactivation = 0;
  };
  // curve, step, seed
  std::map<std::tuple<std::size_t, std::int64_t, std::int64_t>, Sum> sums;
  for (std::size_t r = 0; r < steps.rows.size(); ++r) {
    const Cells& row = steps.rows[r];
    const std::int64_t of_seed = steps.whole_number(r, seed);
    if (of_seed >= first_fresh_seed) continue;
    for (std::size_t curve = 0; curve < drawn_curves().size(); ++curve) {
      if (drawn_curves()[curve] != std::pair(row[model], row[arm])) continue;
      Sum& sum = sums[{curve, steps.whole_number(r, step), of_seed}];
      ++sum.rows;
      sum.zero += steps.number(r, zero);
      sum.coactivation += steps.number(r, coactivation);
    }
  }
  std::map<std::pair<std::size_t, std::int64_t>, std::pair<Sample, Sample>> samples;
  for (const auto& [place, sum] : sums) {
    auto& [zeros, coactivations] = samples[{std::get<0>(place), std::get<1>(place)}];
    zeros.add(sum.zero / sum.rows);
    coactivations.add(sum.coactivation / sum.rows);
  }
  Table curves{cells_of("model,arm,step,seeds,unused,unused_sd,coactivation,coactivation_sd"), {}};
  for (const auto& [place, values] : samples) {
    const auto& [curve_model, curve_arm] = drawn_curves()[place.first];
    const auto& [zeros, coactivations] = values;
    curves.rows.push_back({curve_model, curve_arm, std::to_string(place.second),
                           std::to_string(zeros.size()), text_of(zeros.mean()),
                           text_of(zeros.deviation()), text_of(coactivations.mean()),
                           text_of(coactivations.deviation())});
  }
  return curves;
}

}  // namespace study

#endif  // STUDY_CURVES_HPP
