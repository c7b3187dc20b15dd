// SPDX-License-Identifier: MIT
// Real text that every build has: the headers of the Eigen that it was built with.
#ifndef TRAIN_MOE_DEFAULT_TEXT_HPP
#define TRAIN_MOE_DEFAULT_TEXT_HPP

#include <filesystem>
#include <sstream>
#include <string>

#include "error.hpp"
#include "text.hpp"

namespace train_moe {

/// The include folder of Eigen, of the folders that the build gives.
inline std::filesystem::path eigen_folder() {
  std::istringstream folders(TRAIN_MOE_EIGEN_FOLDERS);
  for (std::string folder; std::getline(folders, folder, ':');) {
    if (std::filesystem::exists(std::filesystem::path(folder) / "Eigen/Core")) return folder;
  }
  throw UserError(
      "the Eigen headers that it was built with are gone: give another text with --text");
}

/// The bytes of --text, or of Eigen's headers if it is empty.
inline std::string load_bytes(const std::string& path) {
  if (!path.empty()) return read_text(path);
  const std::filesystem::path eigen = eigen_folder();
  std::string bytes = read_text(eigen / "Eigen");
  if (std::filesystem::exists(eigen / "unsupported")) bytes += read_text(eigen / "unsupported");
  return bytes;
}

/// The same as a text.
inline Text load_text(const std::string& path) { return Text(load_bytes(path)); }

}  // namespace train_moe

#endif  // TRAIN_MOE_DEFAULT_TEXT_HPP
