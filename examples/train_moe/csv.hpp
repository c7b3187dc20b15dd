// SPDX-License-Identifier: MIT
// The files of numbers: one row per step and layer, written step by step.
#ifndef TRAIN_MOE_CSV_HPP
#define TRAIN_MOE_CSV_HPP

#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "training.hpp"

namespace train_moe {

/// A file that is flushed after each piece, so that an interrupted run leaves complete rows.
class OutputFile {
 public:
  explicit OutputFile(const std::filesystem::path& path)
      : path_(path), file_(path, std::ios::binary | std::ios::trunc) {
    if (!file_) {
      throw UserError("cannot write " + path.string() + ": choose another folder with --out");
    }
  }

  void write(const std::string& rows) {
    if (!(file_ << rows << std::flush)) {
      throw std::runtime_error("cannot write to " + path_.string() +
                               " any more: is the disk full?");
    }
  }

 private:
  std::filesystem::path path_;
  std::ofstream file_;
};

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

/// Makes the folder with its parents, or says why not and leaves nothing behind.
inline void make_folder(const std::filesystem::path& folder) {
  namespace fs = std::filesystem;
  std::error_code error;
  if (fs::is_directory(folder, error)) return;
  std::vector<fs::path> missing;  // the innermost first
  for (fs::path path = fs::absolute(folder, error);
       !fs::exists(path, error) && path.has_relative_path(); path = path.parent_path()) {
    missing.push_back(path);
  }
  if (!folder.empty()) fs::create_directories(folder, error);
  const std::string why = error ? error.message() : "not a folder";
  if (fs::is_directory(folder, error)) return;
  // Only what is empty can be removed, so nothing is lost that somebody else made meanwhile.
  for (const fs::path& path : missing) fs::remove(path, error);
  throw UserError("cannot write into '" + folder.string() + "' (" + why +
                  "): choose another folder with --out");
}

}  // namespace train_moe

#endif  // TRAIN_MOE_CSV_HPP
