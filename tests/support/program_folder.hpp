// SPDX-License-Identifier: MIT
// A folder for a program that a test starts, with what it is given to read.
#ifndef GATEPRO_TESTS_SUPPORT_PROGRAM_FOLDER_HPP
#define GATEPRO_TESTS_SUPPORT_PROGRAM_FOLDER_HPP

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace data {

/// The bytes of a file; none if there is no such file.
inline std::string read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Something to learn from: words that recur, and letters that do not.
inline void write_text(const std::filesystem::path& path) {
  std::ofstream text(path, std::ios::binary);
  for (unsigned i = 0, word = 1; i < 12000; ++i, word = word * 1103515245U + 12345U) {
    text << "the cat " << static_cast<char>('a' + (word >> 16) % 26);
  }
}

/// A test with a folder of its own, which is gone after it.
class ProgramFolder : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "program_test.XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(folder); }

  std::filesystem::path folder;
};

}  // namespace data

#endif  // GATEPRO_TESTS_SUPPORT_PROGRAM_FOLDER_HPP
