// SPDX-License-Identifier: MIT
// What the compiler takes: for the umbrella header, and for a small program.
#include <cstdlib>
#include <stdexcept>

#include "support/stages.hpp"

namespace bench {
namespace {

/// Runs g++ -O2 on a source; BENCH_COMPILE names the compiler with the include folders.
Run compile(const std::string& mode, const std::string& source) {
  const std::string command = BENCH_COMPILE " " + mode + " " + source;
  return [command] {
    if (std::system(command.c_str()) != 0) throw std::runtime_error("failed: " + command);
  };
}

Contest prepare(const Shape&) {
  const std::string sources = BENCH_SOURCE_DIR "/benchmarks/compile_time/";
  Contest contest;
  if (std::string(BENCH_COMPILE).empty()) return contest;  // no g++
  const std::string parse = "-fsyntax-only";
  const std::string build = "-c -o /dev/null";
  contest.add("include_gatepro", compile(parse, sources + "include_gatepro.cpp"));
  contest.add("include_eigen", compile(parse, sources + "include_eigen.cpp"));
  contest.add("hello_gatepro", compile(build, BENCH_SOURCE_DIR "/examples/1_hello_router.cpp"));
  contest.add("hello_eigen", compile(build, sources + "hello_eigen.cpp"));
  return contest;
}

void summarise(Figures& figures) {
  constexpr int rounds = 3;  // of many seconds each
  const Samples samples =
      measure(prepare({}), {"include_gatepro", "include_eigen", "hello_gatepro", "hello_eigen"},
              rounds, Clock::children);
  const auto add = [&](const char* name, const char* gatepro, const char* eigen) {
    figures.add(excused(over(name, samples, gatepro, eigen, 1), "no g++"));
  };
  add("include_over_eigen", "include_gatepro", "include_eigen");
  add("hello_over_eigen", "hello_gatepro", "hello_eigen");
}

}  // namespace

Stage compile_time_stage() {
  return {"compile_time",
          {Shape{"g++"}},
          {"include_gatepro", "include_eigen", "hello_gatepro", "hello_eigen"},
          prepare,
          summarise};
}

}  // namespace bench
