// SPDX-License-Identifier: MIT
// The files of numbers: one row per step and layer, written step by step.
#ifndef TRAIN_MOE_CSV_HPP
#define TRAIN_MOE_CSV_HPP

#include <cmath>
#include <sstream>
#include <string>

#include "training.hpp"

namespace train_moe {

/// tokens_per_s comes last because it is the only column that another run does not repeat.
inline const char* csv_header() {
  return "arm,seed,step,layer,loss,val_loss,zero_token_experts,max_violation,mean_cosine,"
         "partner_cosine,changed,coactivation,coactivation_unpenalised,partners_changed,"
         "tokens_per_s\n";
}

/// The rows of one step.
inline std::string csv_rows(const StepRecord& record) {
  std::ostringstream rows;
  rows.precision(9);
  for (std::size_t l = 0; l < record.layers.size(); ++l) {
    const LayerMetrics& layer = record.layers[l];
    rows << record.arm << ',' << record.seed << ',' << record.step << ',' << l << ',' << record.loss
         << ',';
    if (!std::isnan(record.validation_loss)) rows << record.validation_loss;
    rows << ',' << layer.zero_token_experts << ',' << layer.max_violation << ','
         << layer.mean_cosine << ',' << layer.partner_cosine << ',' << layer.changed << ','
         << layer.coactivation << ',' << layer.coactivation_unpenalised << ','
         << layer.partners_changed << ',' << std::llround(record.tokens_per_second) << '\n';
  }
  return rows.str();
}

}  // namespace train_moe

#endif  // TRAIN_MOE_CSV_HPP
