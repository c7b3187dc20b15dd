// SPDX-License-Identifier: MIT
// summary <file>: measures all figures that have keys, prints them in one table, judged by the bars
// of the instruction set in use, and writes them to a flat JSON object.
#include <exception>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "support/bars.hpp"
#include "support/machine.hpp"
#include "support/ours.hpp"
#include "support/stages.hpp"

namespace {

/// The instruction set and all keys of the summary; null for what could not be measured.
nlohmann::ordered_json to_json(const bench::Figures& figures) {
  nlohmann::ordered_json object = {{"instruction_set", bench::ours::instruction_set()}};
  for (const bench::Key& key : bench::summary_keys()) {
    const bench::Figure* figure = figures.find(key.name);
    object[key.name] = nullptr;
    if (figure != nullptr && figure->value) object[key.name] = *figure->value;
  }
  return object;
}

/// Names what is missing. False if any of it has no excuse.
bool is_complete(const bench::Figures& figures) {
  bool complete = true;
  for (const bench::Key& key : bench::summary_keys()) {
    const bench::Figure* figure = figures.find(key.name);
    if (figure != nullptr && figure->value) continue;
    std::cout << "no " << key.name << ": " << (figure != nullptr ? figure->note : "not measured")
              << '\n';
    complete = complete && figure != nullptr && figure->excused;
  }
  return complete;
}

int summarise(const char* path) {
  bench::keep_freed_memory();
  std::cout << bench::describe_machine() << "load average     " << bench::load_average() << '\n';
  bench::Figures figures;
  for (const bench::Stage& stage : bench::all_stages()) {
    std::cout << "measuring " << stage.name << std::endl;
    stage.summarise(figures);
  }
  std::cout << '\n';
  figures.print(std::cout, bench::ours::instruction_set());
  std::ofstream file(path);
  file << to_json(figures).dump(2) << '\n';
  if (!file.flush()) throw std::runtime_error(std::string("cannot write ") + path);
  std::cout << "load average " << bench::load_average() << "; written to " << path << '\n';
  return is_complete(figures) ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 2) {
    std::cerr << "usage: summary <file>\n";
    return 2;
  }
  return summarise(argv[1]);
} catch (const std::exception& error) {
  std::cerr << "summary: " << error.what() << '\n';
  return 1;
}
