// SPDX-License-Identifier: MIT
// What the user's compiler and flags change: a forward, and the backward of the gate with a dense
// gradient, as g++ and clang++ build them with -O2 and with -O3 -march=native.
#include "support/build.hpp"

#include <stdexcept>

#include "support/stages.hpp"

namespace bench {
namespace {

struct Compiler {
  std::string name;
  const Build& baseline;
  const Build& native;
};

const std::vector<Compiler>& compilers() {
  static const std::vector<Compiler> all{{"gxx", builds::gxx_baseline, builds::gxx_native},
                                         {"clang", builds::clang_baseline, builds::clang_native}};
  return all;
}

std::string contestant(const Compiler& compiler, const std::string& flags,
                       const std::string& direction) {
  return compiler.name + "_" + flags + "_" + direction;
}

/// What one build makes.
struct Results {
  explicit Results(const Shape& shape)
      : ids(area(shape.tokens, shape.top_k)),
        weights(ids.size()),
        dx_TH(area(shape.tokens, shape.hidden)),
        dw_EH(area(shape.experts, shape.hidden)) {}
  Ids ids;
  Floats weights, dx_TH, dw_EH;
};

Contest prepare(const Shape& shape) {
  Contest contest;
  const GateInputs& inputs = contest.keep(GateInputs(shape));
  const Floats& dselected = contest.keep(random_floats(area(shape.tokens, shape.top_k), 7, 0.1f));
  const Floats& dense = contest.keep(random_floats(area(shape.tokens, shape.experts), 8, 0.1f));
  const auto forward = [&](const Build& build, Results& into) {
    return build.route(
        {shape, inputs.x_TH.data(), inputs.w_EH.data(), into.ids.data(), into.weights.data()},
        gatepro::Competition{}, 1);
  };
  const auto backward = [&](const Build& build, Results& into) {
    return build.gate_backward({shape, inputs.x_TH.data(), inputs.w_EH.data(), dense.data(),
                                into.dx_TH.data(), into.dw_EH.data()},
                               into.ids, dselected);
  };
  Results& ours = contest.keep(Results(shape));
  forward(builds::ours, ours)();
  backward(builds::ours, ours)();
  const auto add = [&](const Compiler& compiler, const std::string& flags, const Build& build) {
    if (build.route == nullptr) return;
    Results& theirs = contest.keep(Results(shape));
    const Run forwards = forward(build, theirs);
    const Run backwards = backward(build, theirs);
    forwards();
    backwards();
    const std::string what = "build by " + compiler.name + ", " + flags;
    if (theirs.ids != ours.ids) throw std::runtime_error(what + " chooses other experts");
    expect_close(what + ", weights", theirs.weights, ours.weights, 1e-6f);
    expect_near(what + ", dx", theirs.dx_TH, ours.dx_TH, 1e-6);
    expect_near(what + ", dw", theirs.dw_EH, ours.dw_EH, 1e-6);
    contest.add(contestant(compiler, flags, "forward"), forwards);
    contest.add(contestant(compiler, flags, "backward"), backwards);
  };
  for (const Compiler& compiler : compilers()) {
    add(compiler, "baseline", compiler.baseline);
    add(compiler, "native", compiler.native);
  }
  return contest;
}

std::vector<std::string> contestants() {
  std::vector<std::string> names;
  for (const Compiler& compiler : compilers()) {
    for (const char* direction : {"forward", "backward"}) {
      names.push_back(contestant(compiler, "baseline", direction));
      names.push_back(contestant(compiler, "native", direction));
    }
  }
  return names;
}

void summarise(Figures& figures) {
  const std::string no_compiler = "no such compiler";
  const Samples samples = measure(prepare(e128), contestants(), most_rounds);
  for (const Compiler& compiler : compilers()) {
    for (const std::string direction : {"forward", "backward"}) {
      figures.add(excused(over("native_over_baseline_" + compiler.name + "_" + direction, samples,
                               contestant(compiler, "native", direction),
                               contestant(compiler, "baseline", direction), e128.tokens),
                          no_compiler));
    }
  }
#if defined(__clang__)
  const Compiler& builder = compilers()[1];
#else
  const Compiler& builder = compilers()[0];
#endif
  figures.add(excused(
      over("baseline_flags_over_native_E128", samples, contestant(builder, "baseline", "forward"),
           contestant(builder, "native", "forward"), e128.tokens),
      no_compiler));
}

}  // namespace

Stage builds_stage() { return {"builds", {e128}, contestants(), prepare, summarise}; }

}  // namespace bench
