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
  const auto fail = [&](const std::string& why) {
    throw UserError("cannot write into " + folder.string() + " (" + why +
                    "): choose another folder with --out");
  };
  if (folder.empty()) fail("no name");
  std::error_code error;
  fs::path made = fs::absolute(folder);  // the topmost folder that does not exist yet
  while (!fs::exists(made.parent_path(), error) && made.has_relative_path()) {
    made = made.parent_path();
  }
  const bool existed = fs::exists(folder, error);
  if (existed && !fs::is_directory(folder, error)) fail("it is a file");
  fs::create_directories(folder, error);
  if (error) {
    const std::string why = error.message();
    if (!existed && fs::is_directory(made, error)) fs::remove_all(made, error);
    fail(why);
  }
}

}  // namespace train_moe

#endif  // TRAIN_MOE_CSV_HPP
