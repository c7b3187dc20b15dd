// SPDX-License-Identifier: MIT
// Files of numbers with commas: a header, then rows whose cells hold no comma.
#ifndef STUDY_TABLE_FILE_HPP
#define STUDY_TABLE_FILE_HPP

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "support/error.hpp"

namespace study {

using Cells = std::vector<std::string>;

inline Cells cells_of(const std::string& line) {
  Cells cells;
  std::istringstream stream(line + ',');
  for (std::string cell; std::getline(stream, cell, ',');) cells.push_back(cell);
  return cells;
}

inline std::string line_of(const Cells& cells) {
  std::string line;
  for (const std::string& cell : cells) line += (line.empty() ? "" : ",") + cell;
  return line + '\n';
}

/// Seven digits: those of a float.
inline std::string text_of(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.7g", value);
  return text;
}

/// A table by the names of its columns. One that was read says in its errors where it stands, and
/// to name another folder with `option`.
struct Table {
  Cells header{};
  std::vector<Cells> rows{};
  std::string path{};
  std::string option = "--out";
  std::vector<std::size_t> lines{};  // of the rows, in the file

  std::size_t column(const std::string& name) const {
    for (std::size_t c = 0; c < header.size(); ++c) {
      if (header[c] == name) return c;
    }
    other_version("there is no column " + name);
  }
  double number(std::size_t row, std::size_t column) const {
    const std::string& cell = rows[row][column];
    char* end = nullptr;
    const double value = std::strtod(cell.c_str(), &end);
    if (cell.empty() || *end != '\0') damaged(row, cell, "a number");
    return value;
  }
  std::int64_t whole_number(std::size_t row, std::size_t column) const {
    const std::string& cell = rows[row][column];
    char* end = nullptr;
    errno = 0;
    const long long value = std::strtoll(cell.c_str(), &end, 10);
    if (cell.empty() || *end != '\0' || errno != 0) damaged(row, cell, "a whole number");
    return value;
  }

  /// Another version of the program wrote the file.
  [[noreturn]] void other_version(const std::string& what) const {
    throw report::UserError(path + ", line 1: " + what +
                            ", so another version of the study wrote it: remove it, or choose "
                            "another folder with " +
                            option);
  }

 private:
  [[noreturn]] void damaged(std::size_t row, const std::string& cell,
                            const std::string& wanted) const {
    const std::string line = row < lines.size() ? std::to_string(lines[row]) : "?";
    throw report::UserError(path + ", line " + line + ": '" + cell + "' is not " + wanted +
                            ": remove the line, or choose another folder with " + option);
  }
};

/// The table of a file; empty if there is none. Rows that were cut off are left out.
inline Table read_table(const std::filesystem::path& path, const std::string& option = "--out") {
  Table table;
  table.path = path.string();
  table.option = option;
  std::error_code error;
  if (!std::filesystem::exists(path, error) && !error) return table;
  std::ifstream file(path, std::ios::binary);
  std::size_t number = 0;
  for (std::string line; std::getline(file, line) && !file.eof();) {
    ++number;
    Cells cells = cells_of(line);
    if (table.header.empty()) {
      table.header = std::move(cells);
    } else if (cells.size() == table.header.size()) {
      table.rows.push_back(std::move(cells));
      table.lines.push_back(number);
    }
  }
  if (!file.is_open() || file.bad()) {
    throw report::UserError("cannot read " + path.string() +
                            ": check its permissions, or choose another folder with " + option);
  }
  return table;
}

/// Writes a file so that it is there as a whole or not at all. `option` names its folder.
inline void write_file(const std::filesystem::path& path, const std::string& text,
                       const std::string& option = "--out") {
  const std::filesystem::path partial = path.string() + ".partial";
  std::ofstream file(partial, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  std::error_code error;
  if (file) std::filesystem::rename(partial, path, error);
  if (!file || error) {
    throw report::UserError("cannot write " + path.string() + ": choose another folder with " +
                            option);
  }
}

inline void write_table(const std::filesystem::path& path, const Table& table) {
  std::string text = line_of(table.header);
  for (const Cells& row : table.rows) text += line_of(row);
  write_file(path, text);
}

}  // namespace study

#endif  // STUDY_TABLE_FILE_HPP
