// SPDX-License-Identifier: MIT
// Every stage, shape and contestant as a Google Benchmark: <stage>/<shape>/<contestant>.
#include <benchmark/benchmark.h>

#include <iostream>
#include <memory>

#include "support/machine.hpp"
#include "support/stages.hpp"

namespace {

/// The contest of a stage and shape. Only the last one is kept, for memory's sake.
const bench::Contest& contest_of(const bench::Stage& stage, const bench::Shape& shape) {
  static std::string name;
  static std::unique_ptr<bench::Contest> contest;
  const std::string wanted = stage.name + "/" + shape.name;
  if (name != wanted) {
    contest.reset();
    contest = std::make_unique<bench::Contest>(stage.prepare(shape));
    name = wanted;
  }
  return *contest;
}

void run(benchmark::State& state, const bench::Stage& stage, const bench::Shape& shape,
         const std::string& contestant) {
  const bench::Run* contestant_run = contest_of(stage, shape).find(contestant);
  if (contestant_run == nullptr) {
    state.SkipWithError("missing: not found at configure time, or not in this instruction set");
    return;
  }
  (*contestant_run)();
  for (auto _ : state) (*contestant_run)();
}

}  // namespace

int main(int argc, char** argv) {
  bench::keep_freed_memory();
  std::cout << bench::describe_machine();
  for (const bench::Stage& stage : bench::all_stages()) {
    for (const bench::Shape& shape : stage.shapes) {
      for (const std::string& contestant : stage.contestants) {
        const std::string name = stage.name + "/" + shape.name + "/" + contestant;
        benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
          run(state, stage, shape, contestant);
        })->UseRealTime();
      }
    }
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
