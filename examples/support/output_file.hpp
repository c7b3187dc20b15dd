// SPDX-License-Identifier: MIT
// Files and folders that a program writes.
#ifndef EXAMPLES_SUPPORT_OUTPUT_FILE_HPP
#define EXAMPLES_SUPPORT_OUTPUT_FILE_HPP

#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "error.hpp"

namespace report {

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

/// Makes the folder with its parents, or says why not and leaves nothing behind. `option` names it.
inline void make_folder(const std::filesystem::path& folder, const std::string& option = "--out") {
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
                  "): choose another folder with " + option);
}

}  // namespace report

#endif  // EXAMPLES_SUPPORT_OUTPUT_FILE_HPP
