// SPDX-License-Identifier: MIT
// Files of numbers with commas: a header, then rows whose cells hold no comma.
#ifndef STUDY_TABLE_FILE_HPP
#define STUDY_TABLE_FILE_HPP

#include <cstddef>
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

inline double value_of(const std::string& cell) {
  char* end = nullptr;
  const double value = std::strtod(cell.c_str(), &end);
  if (cell.empty() || *end != '\0') throw report::UserError("'" + cell + "' is not a number");
  return value;
}

/// A table by the names of its columns.
struct Table {
  Cells header;
  std::vector<Cells> rows;

  std::size_t column(const std::string& name) const {
    for (std::size_t c = 0; c < header.size(); ++c) {
      if (header[c] == name) return c;
    }
    throw report::UserError("there is no column " + name + ": run the study again");
  }
};

/// The table of a file; empty if there is none. A last row that was cut off is left out.
inline Table read_table(const std::filesystem::path& path) {
  Table table;
  std::ifstream file(path, std::ios::binary);
  for (std::string line; std::getline(file, line) && !file.eof();) {
    Cells cells = cells_of(line);
    if (table.header.empty()) {
      table.header = std::move(cells);
    } else if (cells.size() == table.header.size()) {
      table.rows.push_back(std::move(cells));
    }
  }
  return table;
}

/// Writes a file so that it is there as a whole or not at all.
inline void write_file(const std::filesystem::path& path, const std::string& text) {
  const std::filesystem::path partial = path.string() + ".partial";
  std::ofstream file(partial, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  std::error_code error;
  if (file) std::filesystem::rename(partial, path, error);
  if (!file || error) {
    throw report::UserError("cannot write " + path.string() + ": choose another folder");
  }
}

inline void write_table(const std::filesystem::path& path, const Table& table) {
  std::string text = line_of(table.header);
  for (const Cells& row : table.rows) text += line_of(row);
  write_file(path, text);
}

}  // namespace study

#endif  // STUDY_TABLE_FILE_HPP
