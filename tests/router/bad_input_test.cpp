// SPDX-License-Identifier: MIT
// Every precondition that a caller can break: an Error whose message names the function, the
// argument, the values and the rule, and outputs as they were.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <string>

#include "support/errors.hpp"
#include "support/function_ref.hpp"
#include "support/inputs.hpp"
#include "support/routing_data.hpp"

namespace {

using data::random_matrix;
using gatepro::Competition;
using gatepro::ExpertRange;
using gatepro::Index;
using gatepro::MatrixView;
using gatepro::Pairing;
using gatepro::RefreshSchedule;
using gatepro::RouterConfig;
using gatepro::RowMatrix;
using gatepro::strided_view;
using gatepro::StridedView;
using gatepro::VectorView;
using gatepro::view;
using gatepro::Workspace;
using Parts = std::initializer_list<const char*>;

constexpr Index most = std::numeric_limits<Index>::max();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr double inf = std::numeric_limits<double>::infinity();

struct NoWorkers {
  int workers() const { return 0; }
  template <class Body>
  void run(int, Body) const {}
};

TEST(BadInput, AnErrorIsAnInvalidArgument) {
  const auto call = [] { gatepro::Router<float>({8, 8, 9}); };
  EXPECT_THROW(call(), std::invalid_argument);
  try {
    call();
  } catch (const gatepro::Error& error) {
    EXPECT_STREQ(error.what(),
                 "gatepro::Router: need 1 <= top_k <= num_experts (got top_k=9, num_experts=8)");
  }
}

// ---- Settings ---------------------------------------------------------------------------------

void expect_bad_config(FunctionRef<void(RouterConfig&)> spoil, Parts parts) {
  RouterConfig config{10, 6, 2};
  spoil(config);
  expect_error([&] { gatepro::Router<float>{config}; }, parts);
}

TEST(BadInput, Sizes) {
  expect_bad_config([](auto& c) { c.top_k = 0; }, {"Router", "1 <= top_k", "top_k=0"});
  expect_bad_config([](auto& c) { c.top_k = -1; }, {"Router", "1 <= top_k", "top_k=-1"});
  expect_bad_config([](auto& c) { c.top_k = 7; },
                    {"Router", "top_k <= num_experts", "top_k=7", "num_experts=6"});
  expect_bad_config([](auto& c) { c.num_experts = 0; }, {"Router", "num_experts=0"});
  expect_bad_config([](auto& c) { c.num_experts = -5; }, {"Router", "num_experts=-5"});
  expect_bad_config([](auto& c) { c.num_experts = Index{1} << 31; },
                    {"Router", "num_experts <= 2^31 - 1", "num_experts=2147483648"});
  expect_bad_config([](auto& c) { c.hidden_size = 0; },
                    {"Router", "hidden_size >= 1", "hidden_size=0"});
  expect_bad_config([](auto& c) { c.hidden_size = -3; }, {"Router", "hidden_size=-3"});
  expect_bad_config([](auto& c) { c.hidden_size = most; }, {"address space"});
  expect_bad_config([](auto& c) { c.hidden_size = most / 6; }, {"address space"});
  // As elements they fit, as bytes they do not.
  expect_bad_config([](auto& c) { c.num_experts = 64, c.hidden_size = most / 64 - 64; },
                    {"address space"});
}

TEST(BadInput, Lambda) {
  for (double lambda : {-1.0, -1e-300, nan, -nan, inf, -inf, 1e300, 3.5e38}) {
    const Competition competition = Competition::penalty(lambda);
    expect_bad_config([&](auto& c) { c.competition = competition; },
                      {"Router", "lambda finite and >= 0", "lambda="});
    gatepro::Router<float> router({10, 6, 2});
    expect_error([&] { router.set_competition(competition); }, {"Router", "lambda"});
    EXPECT_EQ(router.config().competition.lambda, 1e-4);
  }
  // The range is that of the logits.
  EXPECT_NO_THROW(gatepro::Router<double>({10, 6, 2}).set_competition(Competition::penalty(1e300)));
  EXPECT_NO_THROW(gatepro::Router<float>({10, 6, 2}).set_competition(Competition::penalty(3.4e38)));
  EXPECT_NO_THROW(gatepro::Router<float>({10, 6, 2}).set_competition(Competition::penalty(1e-300)));
}

TEST(BadInput, PairingAndSchedule) {
  const auto cache = [](const Pairing& pairing, const RefreshSchedule& schedule) {
    return gatepro::SimilarityCache<float>(6, pairing, schedule);
  };
  for (Index m : {Index{0}, Index{-1}, Index{6}, most}) {
    const std::string value = "partners_per_expert=" + std::to_string(m);
    const Pairing pairing{m, -1, false};
    expect_bad_config([&](auto& c) { c.pairing = pairing; },
                      {"partners_per_expert <= num_experts - 1", value.c_str(), "num_experts=6"});
    expect_error([&] { cache(pairing, {}); }, {"SimilarityCache", value.c_str()});
  }
  for (double tau : {-1.5, 1.0001, nan, inf, -inf}) {
    const Pairing pairing{1, tau, false};
    expect_bad_config([&](auto& c) { c.pairing = pairing; },
                      {"min_similarity <= 1", "min_similarity="});
    expect_error([&] { cache(pairing, {}); }, {"SimilarityCache", "min_similarity"});
  }
  for (std::int64_t interval :
       {std::int64_t{0}, std::int64_t{-1}, std::numeric_limits<std::int64_t>::min()}) {
    const std::string value = "interval=" + std::to_string(interval);
    const RefreshSchedule schedule = RefreshSchedule::every(interval);
    expect_bad_config([&](auto& c) { c.refresh = schedule; }, {"interval >= 1", value.c_str()});
    expect_error([&] { cache({}, schedule); }, {"SimilarityCache", value.c_str()});
    gatepro::Router<float> router({10, 6, 2});
    expect_error([&] { router.set_refresh_schedule(schedule); }, {"interval >= 1", value.c_str()});
    EXPECT_EQ(router.config().refresh.interval, 1);
    EXPECT_EQ(router.similarity_cache().schedule().interval, 1);
  }
  // One expert alone may keep the default of one partner, which it will not find.
  EXPECT_NO_THROW(gatepro::Router<float>({10, 1, 1}));
}

// ---- Router::forward and forward_logits -------------------------------------------------------

/// A router that works, and arguments that one test after the other spoils.
class BadCall : public testing::Test {
 public:
  static constexpr Index tokens = 5, hidden = 10, experts = 6, top_k = 2;
  using TestedRouter = gatepro::Router<float>;
  using Outcome = routing_data::Outcome<TestedRouter>;

  struct Forward {
    MatrixView<const float> x, w;
    TestedRouter::Routing out;
    Workspace workspace;
    MatrixView<const float> logits;  // of forward_logits
  };
  struct Backward {
    MatrixView<const float> x, w;
    StridedView<const std::int32_t> ids;
    StridedView<const float> weights, dweights;
    MatrixView<const float> dlogits;
    MatrixView<float> dx, dw;
    Workspace workspace;
  };

  BadCall() { router.refresh(w, 0); }

  Forward forward_arguments() {
    return {x, w, outcome.view(), Workspace(memory.data(), router.forward_workspace_bytes()),
            logits};
  }
  Backward backward_arguments() {
    return {x,
            w,
            strided_view(ids),
            strided_view(weights),
            strided_view(dweights),
            dlogits,
            dx,
            dw,
            Workspace(memory.data(), router.backward_workspace_bytes(tokens))};
  }

  void expect_outputs_untouched() const {
    EXPECT_TRUE((outcome.ids_TK.array() == 77).all());
    EXPECT_TRUE((outcome.weights_TK.array() == 77).all());
    EXPECT_TRUE((outcome.logits_TE.array() == 77).all());
    EXPECT_EQ(outcome.tokens_per_expert_E, std::vector<std::int64_t>(experts, 77));
    EXPECT_EQ(outcome.statistics.tokens, 77);
    EXPECT_TRUE((dx.array() == 77).all());
    EXPECT_TRUE((dw.array() == 77).all());
  }

  /// Both forwards refuse `spoil`ed arguments that they share.
  void expect_bad_output(FunctionRef<void(Forward&)> spoil, Parts parts) {
    expect_bad_forward(spoil, parts);
    Forward f = forward_arguments();
    f.out.logits_TE = {};
    spoil(f);
    expect_error([&] { router.forward_logits(f.logits, f.out, f.workspace); }, parts);
    expect_error([&] { router.forward_logits(f.logits, f.out, f.workspace); },
                 {"Router::forward_logits"});
    expect_outputs_untouched();
  }
  void expect_bad_forward(FunctionRef<void(Forward&)> spoil, Parts parts) {
    Forward f = forward_arguments();
    spoil(f);
    expect_error([&] { router.forward(f.x, f.w, f.out, f.workspace); }, parts);
    expect_outputs_untouched();
  }
  void expect_bad_backward(FunctionRef<void(Backward&)> spoil, Parts parts) {
    Backward b = backward_arguments();
    spoil(b);
    expect_error(
        [&] {
          router.backward(b.x, b.w, {b.ids, b.weights}, {b.dweights, b.dlogits}, {b.dx, b.dw},
                          b.workspace);
        },
        parts);
    expect_outputs_untouched();
  }

  void SetUp() override { outcome.statistics.tokens = 77; }

  TestedRouter router{RouterConfig{hidden, experts, top_k}};
  RowMatrix<float> x = random_matrix<float>(tokens, hidden, 1);
  RowMatrix<float> w = random_matrix<float>(experts, hidden, 2);
  RowMatrix<float> logits = random_matrix<float>(tokens, experts, 3);
  RowMatrix<std::int32_t> ids = RowMatrix<std::int32_t>::Zero(tokens, top_k);
  RowMatrix<float> weights = RowMatrix<float>::Constant(tokens, top_k, 0.5F);
  RowMatrix<float> dweights = random_matrix<float>(tokens, top_k, 4);
  RowMatrix<float> dlogits = random_matrix<float>(tokens, experts, 5);
  RowMatrix<float> dx = RowMatrix<float>::Constant(tokens, hidden, 77);
  RowMatrix<float> dw = RowMatrix<float>::Constant(experts, hidden, 77);
  Outcome outcome{router, tokens};
  std::vector<std::byte> memory = std::vector<std::byte>(
      std::max(router.forward_workspace_bytes(), router.backward_workspace_bytes(tokens)));
};

TEST_F(BadCall, TheUnspoiltCallsWork) {
  Forward f = forward_arguments();
  EXPECT_NO_THROW(router.forward(f.x, f.w, f.out, f.workspace));
  f.out.logits_TE = {};
  EXPECT_NO_THROW(router.forward_logits(f.logits, f.out, f.workspace));
  const Backward b = backward_arguments();
  EXPECT_NO_THROW(router.backward(b.x, b.w, {b.ids, b.weights}, {b.dweights, b.dlogits},
                                  {b.dx, b.dw}, b.workspace));
}

TEST_F(BadCall, ForwardInput) {
  const char* where = "Router::forward: need x_TH";
  expect_bad_forward([](auto& f) { f.x.cols = 9; }, {where, "shape", "cols=9", "cols needed=10"});
  expect_bad_forward([](auto& f) { f.x.rows = 4; }, {"Router::forward", "shape", "rows needed=4"});
  expect_bad_forward([](auto& f) { f.x.row_stride = 9; },
                     {where, "row_stride >= cols", "row_stride=9", "cols=10"});
  expect_bad_forward([](auto& f) { f.x.row_stride = -10; }, {where, "row_stride=-10"});
  expect_bad_forward([](auto& f) { f.x.row_stride = most; }, {where, "address space"});
  expect_bad_forward([](auto& f) { f.x.data = nullptr; }, {where, "not null", "rows=5"});
  expect_bad_forward([](auto& f) { f.w.rows = 5; },
                     {"Router::forward", "w_EH", "rows=5", "rows needed=6"});
  expect_bad_forward([](auto& f) { f.w.cols = 11; }, {"Router", "w_EH", "cols=11"});
  expect_bad_forward([](auto& f) { f.w.row_stride = 2; }, {"Router", "w_EH", "row_stride=2"});
  expect_bad_forward([](auto& f) { f.w.data = nullptr; }, {"Router", "w_EH", "not null"});
}

TEST_F(BadCall, NegativeSizes) {
  expect_bad_output(
      [](auto& f) {
        f.x.rows = f.logits.rows = f.out.expert_ids_TK.rows = f.out.weights_TK.rows = -1;
        f.out.logits_TE = {};
      },
      {"Router::forward", "rows=-1"});
}

TEST_F(BadCall, ForwardLogitsInput) {
  const auto expect_bad = [&](FunctionRef<void(Forward&)> spoil, Parts parts) {
    Forward f = forward_arguments();
    f.out.logits_TE = {};
    spoil(f);
    expect_error([&] { router.forward_logits(f.logits, f.out, f.workspace); }, parts);
    expect_outputs_untouched();
  };
  const char* where = "Router::forward_logits: need logits_TE";
  expect_bad([](auto& f) { f.logits.cols = 5; }, {where, "cols=5", "cols needed=6"});
  expect_bad([](auto& f) { f.logits.rows = 6; }, {"Router::forward_logits", "rows needed=6"});
  expect_bad([](auto& f) { f.logits.row_stride = 5; }, {where, "row_stride=5"});
  expect_bad([](auto& f) { f.logits.data = nullptr; }, {where, "not null"});
  expect_bad([&](auto& f) { f.out.logits_TE = outcome.logits_TE; },
             {"Router::forward_logits", "it is the input"});
}

/// One byte further, where no element of more than a byte may stand.
template <class T>
void misplace(T*& data) {
  data = reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(data) + 1);
}

TEST_F(BadCall, ElementsThatAreNotAligned) {
  const Parts of_float = {"aligned", "address modulo alignment=1", "alignment=4"};
  expect_bad_forward([](auto& f) { misplace(f.x.data); }, {"Router::forward: need x_TH"});
  expect_bad_forward([](auto& f) { misplace(f.x.data); }, of_float);
  expect_bad_forward([](auto& f) { misplace(f.w.data); }, {"w_EH", "aligned"});
  expect_bad_forward([](auto& f) { misplace(f.out.logits_TE.data); }, {"logits_TE", "aligned"});
  expect_bad_output([](auto& f) { misplace(f.out.expert_ids_TK.data); },
                    {"expert_ids_TK", "aligned", "alignment=4"});
  expect_bad_output([](auto& f) { misplace(f.out.weights_TK.data); }, {"weights_TK", "aligned"});
  expect_bad_output([](auto& f) { misplace(f.out.tokens_per_expert_E.data); },
                    {"tokens_per_expert_E", "aligned", "alignment=8"});
  expect_bad_backward([](auto& b) { misplace(b.dweights.data); }, {"dweights_TK", "aligned"});
  expect_bad_backward([](auto& b) { misplace(b.dlogits.data); }, {"dlogits_TE", "aligned"});
  expect_bad_backward([](auto& b) { misplace(b.dx.data); }, {"dx_TH", "aligned"});
}

TEST_F(BadCall, ForwardOutputs) {
  expect_bad_output([](auto& f) { f.out.expert_ids_TK = {}; }, {"expert_ids_TK", "shape"});
  expect_bad_output([](auto& f) { f.out.expert_ids_TK.rows = 4; },
                    {"expert_ids_TK", "rows=4", "rows needed=5"});
  expect_bad_output([](auto& f) { f.out.expert_ids_TK.cols = 3; },
                    {"expert_ids_TK", "cols=3", "cols needed=2"});
  expect_bad_output([](auto& f) { f.out.expert_ids_TK.data = nullptr; },
                    {"expert_ids_TK", "not null"});
  expect_bad_output([](auto& f) { f.out.weights_TK = {}; }, {"weights_TK", "shape"});
  expect_bad_output([](auto& f) { f.out.weights_TK.cols = 1; }, {"weights_TK", "cols=1"});
  expect_bad_output([](auto& f) { f.out.weights_TK.data = nullptr; }, {"weights_TK", "not null"});
  struct Strides {
    Index row, col;
  };
  for (const Strides& s : {Strides{1, 1},
                           {2, 2},
                           {0, 1},
                           {2, 0},
                           {-2, 1},
                           {2, -1},
                           {1, 4},
                           {3, 3},
                           {most, 1},
                           {1, most},
                           {0, 0}}) {
    SCOPED_TRACE(testing::Message() << s.row << ", " << s.col);
    expect_bad_output(
        [&](auto& f) {
          f.out.expert_ids_TK.row_stride = s.row;
          f.out.expert_ids_TK.col_stride = s.col;
        },
        {"expert_ids_TK", "strides", "row_stride=", "col_stride="});
    expect_bad_output(
        [&](auto& f) {
          f.out.weights_TK.row_stride = s.row;
          f.out.weights_TK.col_stride = s.col;
        },
        {"weights_TK", "strides"});
  }
  expect_bad_output([](auto& f) { f.out.tokens_per_expert_E.size = 5; },
                    {"tokens_per_expert_E", "size=5", "size needed=6"});
  expect_bad_forward([](auto& f) { f.out.logits_TE.cols = 7; }, {"logits_TE", "cols=7"});
  expect_bad_forward([](auto& f) { f.out.logits_TE.rows = 6; }, {"logits_TE", "rows=6"});
  expect_bad_forward([](auto& f) { f.out.logits_TE.row_stride = 5; },
                     {"logits_TE", "row_stride=5"});
}

// Only `{}` means that an argument is not wanted: an object that nobody sized is a mistake.
TEST_F(BadCall, OptionalArgumentsThatNobodySized) {
  RowMatrix<float> none;
  RowMatrix<float> no_rows(0, hidden);
  std::vector<std::int64_t> no_counts;
  expect_bad_backward([&](auto& b) { b.dlogits = none; }, {"dlogits_TE", "rows=0", "cols=0"});
  expect_bad_backward([&](auto& b) { b.dx = none; }, {"dx_TH", "rows=0", "rows needed=5"});
  expect_bad_backward([&](auto& b) { b.dw = none; }, {"dw_EH", "rows=0", "rows needed=6"});
  expect_bad_backward([&](auto& b) { b.dw = no_rows; }, {"dw_EH", "rows=0", "cols=10"});
  expect_bad_backward([&](auto& b) { b.dw = {nullptr, 0, hidden}; }, {"dw_EH", "rows=0"});
  expect_bad_backward([&](auto& b) { b.dw = {nullptr, experts, 0}; }, {"dw_EH", "cols=0"});
  expect_bad_forward([&](auto& f) { f.out.logits_TE = none; }, {"logits_TE", "rows=0"});
  expect_bad_output([&](auto& f) { f.out.tokens_per_expert_E = no_counts; },
                    {"tokens_per_expert_E", "size=0", "size needed=6"});
}

// Without tokens, empty objects are what they should be.
TEST_F(BadCall, ObjectsWithoutTokens) {
  RowMatrix<float> x_none(0, hidden), logits_none(0, experts), weights_none(0, top_k);
  RowMatrix<std::int32_t> ids_none(0, top_k);
  const RowMatrix<float> before = dw;
  EXPECT_NO_THROW(router.backward(x_none, w, {ids_none, weights_none}, {weights_none, logits_none},
                                  {x_none, dw}, Workspace(memory.data(), memory.size())));
  EXPECT_EQ(dw, before);
  EXPECT_NO_THROW(gatepro::z_loss(gatepro::LossLogits{view(logits_none), {}, logits_none},
                                  {1, 0, 1}, Workspace(memory.data(), memory.size())));
}

// What is not wanted has no size: a null with a size is an allocation that went missing.
TEST_F(BadCall, OptionalArgumentsWithoutData) {
  expect_bad_output([](auto& f) { f.out.tokens_per_expert_E.data = nullptr; },
                    {"tokens_per_expert_E", "not null", "size=6"});
  expect_bad_forward([](auto& f) { f.out.logits_TE.data = nullptr; }, {"logits_TE", "not null"});
  expect_bad_backward([](auto& b) { b.dlogits.data = nullptr; }, {"dlogits_TE", "not null"});
  expect_bad_backward([](auto& b) { b.dx.data = nullptr; }, {"dx_TH", "not null"});
  expect_bad_backward([](auto& b) { b.dw.data = nullptr; }, {"dw_EH", "not null"});
}

TEST_F(BadCall, OutputsAtTheSameAddress) {
  const Parts parts = {"Router::forward", "outputs in different memory", " overlap (got "};
  expect_bad_output(
      [&](auto& f) {
        f.out.expert_ids_TK.data = reinterpret_cast<std::int32_t*>(f.out.weights_TK.data);
      },
      parts);
  expect_bad_output(
      [&](auto& f) {
        f.out.tokens_per_expert_E.data = reinterpret_cast<std::int64_t*>(f.out.expert_ids_TK.data);
      },
      parts);
  expect_bad_forward([](auto& f) { f.out.logits_TE.data = f.out.weights_TK.data; }, parts);
  expect_bad_output(
      [](auto& f) {
        f.out.statistics =
            reinterpret_cast<gatepro::PenaltyStatistics*>(f.out.tokens_per_expert_E.data);
      },
      parts);
  expect_bad_backward([](auto& b) { b.dx.data = b.dw.data; },
                      {"Router::backward", "outputs in different memory"});
}

TEST_F(BadCall, WorkspaceAndExecutor) {
  expect_bad_output([](auto& f) { f.workspace = {}; }, {"a workspace", "bytes needed="});
  expect_bad_output([](auto& f) { f.workspace.data = nullptr; }, {"a workspace", "bytes needed="});
  expect_bad_output([](auto& f) { --f.workspace.bytes; },
                    {"workspace as large as its query says", "bytes=", "bytes needed="});
  expect_bad_backward([](auto& b) { b.workspace = {}; }, {"Router::backward", "a workspace"});
  expect_bad_backward([](auto& b) { --b.workspace.bytes; },
                      {"Router::backward", "workspace as large as its query says"});
  Forward f = forward_arguments();
  expect_error([&] { router.forward(f.x, f.w, f.out, f.workspace, NoWorkers{}); },
               {"Router::forward", "workers() >= 1", "workers=0"});
  const Backward b = backward_arguments();
  expect_error(
      [&] {
        router.backward(b.x, b.w, {b.ids, b.weights}, {b.dweights, b.dlogits}, {b.dx, b.dw},
                        b.workspace, NoWorkers{});
      },
      {"Router::backward", "workers() >= 1", "workers=0"});
  expect_outputs_untouched();
}

TEST_F(BadCall, CompetitionWithoutPartners) {
  for (const Competition& competition : {Competition::penalty(1e-4), Competition::eliminate()}) {
    RouterConfig config{hidden, experts, top_k};
    config.competition = competition;
    router = TestedRouter(config);
    expect_bad_output([](auto&) {}, {"partners of all experts before competition",
                                     "experts with partners=0", "num_experts=6"});
  }
}

TEST_F(BadCall, PackedWeights) {
  const Forward f = forward_arguments();
  for (const auto& wrong : {random_matrix<float>(5, 10, 6), random_matrix<float>(6, 11, 7)}) {
    const gatepro::PackedWeights<float> packed(view(wrong));
    expect_error([&] { router.forward(f.x, packed, f.out, f.workspace); },
                 {"Router::forward", "packed weights of num_experts x hidden_size"});
  }
  expect_outputs_untouched();
  gatepro::PackedWeights<float> packed(view(w));
  expect_error([&] { packed.pack(MatrixView<const float>(nullptr, 6, 10)); },
               {"PackedWeights", "w_EH", "not null"});
  expect_error([&] { packed.pack(MatrixView<const float>(w.data(), 6, 10, 9)); },
               {"PackedWeights", "w_EH", "row_stride=9"});
  expect_error([&] { packed.pack(MatrixView<const float>(w.data(), 0, 10)); },
               {"PackedWeights", "num_experts=0"});
  EXPECT_EQ(packed.num_experts(), 6);
  EXPECT_EQ(packed.hidden_size(), 10);
  EXPECT_NO_THROW(router.forward(f.x, packed, f.out, f.workspace));
}

TEST_F(BadCall, Buffers) {
  expect_error([&] { gatepro::RoutingBuffers(router, -1); },
               {"RoutingBuffers", "max_tokens >= 0", "max_tokens=-1"});
  expect_error([&] { gatepro::RoutingBuffers(router, 4, 0); },
               {"RoutingBuffers", "workers >= 1", "workers=0"});
  expect_error([&] { gatepro::RoutingBuffers(router, most); }, {"address space"});
  expect_error([&] { gatepro::RoutingBuffers(router, most / 4); }, {"address space"});
  gatepro::RoutingBuffers buffers(router, 4);
  expect_error([&] { buffers.resize(5); }, {"RoutingBuffers", "tokens=5", "max_tokens=4"});
  expect_error([&] { buffers.resize(-1); }, {"RoutingBuffers", "tokens=-1"});
  expect_error([&] { router.forward(x, w, buffers); }, {"RoutingBuffers", "tokens=5"});
  // Made for one worker.
  gatepro::RoutingBuffers one(router, tokens);
  struct ManyWorkers : gatepro::SerialExecutor {
    int workers() const { return 4096; }
  };
  expect_error([&] { router.forward(x, w, one, ManyWorkers{}); },
               {"Router::forward", "workspace as large"});
}

// ---- Router::backward -------------------------------------------------------------------------

TEST_F(BadCall, BackwardInput) {
  const char* where = "Router::backward";
  expect_bad_backward([](auto& b) { b.x.cols = 9; }, {where, "x_TH", "cols=9"});
  expect_bad_backward([](auto& b) { b.x.data = nullptr; }, {where, "x_TH", "not null"});
  expect_bad_backward([](auto& b) { b.x.row_stride = 3; }, {where, "x_TH", "row_stride=3"});
  expect_bad_backward([](auto& b) { b.w.rows = 7; }, {"Router", "w_EH", "rows=7"});
  expect_bad_backward([](auto& b) { b.ids.rows = 6; }, {where, "expert_ids_TK", "rows=6"});
  expect_bad_backward([](auto& b) { b.ids.cols = 1; }, {where, "expert_ids_TK", "cols=1"});
  expect_bad_backward([](auto& b) { b.ids.data = nullptr; }, {where, "expert_ids_TK", "not null"});
  expect_bad_backward([](auto& b) { b.weights.cols = 3; }, {where, "weights_TK", "cols=3"});
  expect_bad_backward([](auto& b) { b.weights.data = nullptr; }, {where, "weights_TK", "not null"});
  expect_bad_backward([](auto& b) { b.weights.col_stride = 2; }, {where, "weights_TK", "strides"});
  expect_bad_backward([](auto& b) { b.dweights = {}; }, {where, "dweights_TK", "shape"});
  expect_bad_backward([](auto& b) { b.dweights.rows = 1; }, {where, "dweights_TK", "rows=1"});
  expect_bad_backward([](auto& b) { b.dlogits.cols = 5; }, {where, "dlogits_TE", "cols=5"});
  expect_bad_backward([](auto& b) { b.dlogits.row_stride = 1; },
                      {where, "dlogits_TE", "row_stride=1"});
  expect_bad_backward([](auto& b) { b.dx.rows = 4; }, {where, "dx_TH", "rows=4"});
  expect_bad_backward([](auto& b) { b.dx.row_stride = 9; }, {where, "dx_TH", "row_stride=9"});
  expect_bad_backward([](auto& b) { b.dw.cols = 12; }, {where, "dw_EH", "cols=12"});
  expect_bad_backward([](auto& b) { b.dw.row_stride = 9; }, {where, "dw_EH", "row_stride=9"});
}

TEST_F(BadCall, BackwardIds) {
  for (std::int32_t id : {-2, 6, 1000000, std::numeric_limits<std::int32_t>::min(),
                          std::numeric_limits<std::int32_t>::max()}) {
    ids(4, 1) = id;
    const std::string value = "id=" + std::to_string(id);
    expect_bad_backward([](auto&) {}, {"Router::backward", "expert_ids_TK", value.c_str(), "row=4",
                                       "column=1", "num_experts=6"});
  }
}

TEST_F(BadCall, BackwardOfOneChoice) {
  RouterConfig config{hidden, experts, 1};
  router = TestedRouter(config);
  router.refresh(w, 0);
  expect_bad_backward(
      [](auto& b) {
        b.ids.cols = b.weights.cols = b.dweights.cols = 1;
        b.dlogits = {};
      },
      {"Router::backward", "allow_zero_gradient", "top_k=1"});
}

TEST_F(BadCall, WorkspaceQueries) {
  const Parts parts = {"address space"};
  for (Index huge : {most, most / 2, most / 8, (Index{1} << 60) - 1, Index{1} << 59}) {
    SCOPED_TRACE(huge);
    expect_error([&] { router.backward_workspace_bytes(huge); }, parts);
  }
  EXPECT_THROW(router.backward_workspace_bytes(-1), gatepro::Error);
  gatepro::Router<double> wide({Index{1} << 29, Index{1} << 30, 1});
  expect_error([&] { wide.forward_workspace_bytes(1 << 30); }, parts);
  // Arrays that fit alone, but not together: the sum of two would be 2^64, that is 0.
  const gatepro::Router<double> one_choice({1, 1, 1});
  expect_error([&] { one_choice.backward_workspace_bytes((Index{1} << 60) - 1); }, parts);
}

// ---- Partners ---------------------------------------------------------------------------------

TEST_F(BadCall, RefreshAndSetPartners) {
  const auto before = router.similarity_cache().partners();
  const RowMatrix<float> narrow = random_matrix<float>(6, 9, 8),
                         low = random_matrix<float>(5, 10, 9);
  for (const auto& refresh :
       {std::function<void(MatrixView<const float>)>([&](auto bad) { router.refresh(bad, 1); }),
        std::function<void(MatrixView<const float>)>(
            [&](auto bad) { router.refresh_now(bad, 1); })}) {
    expect_error([&] { refresh(narrow); }, {"Router", "w_EH", "cols=9"});
    expect_error([&] { refresh(low); }, {"Router", "w_EH", "rows=5"});
    expect_error([&] { refresh({nullptr, 6, 10}); }, {"Router", "w_EH", "not null"});
    expect_error([&] { refresh({w.data(), 6, 10, 9}); }, {"Router", "w_EH", "row_stride=9"});
  }
  // The shape is checked although the step is not due.
  expect_error([&] { router.refresh(narrow, 0); }, {"w_EH"});
  expect_error([&] { router.refresh(w, 1, NoWorkers{}); }, {"workers() >= 1", "workers=0"});

  std::vector<std::int32_t> table(6, 0);
  const auto set = [&](StridedView<const std::int32_t> partners) {
    router.set_partners(partners, 1);
  };
  expect_error([&] { set({table.data(), 5, 1}); }, {"SimilarityCache", "partners_EM", "rows=5"});
  expect_error([&] { set({table.data(), 3, 2}); }, {"partners_EM", "cols=2", "cols needed=1"});
  expect_error([&] { set({nullptr, 6, 1}); }, {"partners_EM", "not null"});
  expect_error([&] { set({table.data(), 6, 1, -1, 1}); }, {"partners_EM", "strides"});
  for (std::int32_t id : {-2, 6, std::numeric_limits<std::int32_t>::min()}) {
    table[3] = id;
    const std::string value = "id=" + std::to_string(id);
    expect_error([&] { set({table.data(), 6, 1}); }, {"partners_EM", value.c_str(), "row=3"});
  }
  EXPECT_EQ(router.similarity_cache().partners().data, before.data);
  EXPECT_EQ(router.similarity_cache().last_refresh_step(), 0);
}

// ---- Stages -----------------------------------------------------------------------------------

/// The arguments of all stages, each valid.
class BadStage : public BadCall {
 public:
  BadStage() : penalised(outcome.logits_TE) {}

  Workspace workspace() { return memory; }
  Workspace no_workspace() { return {memory.data(), 1}; }

  MatrixView<const float> x_v = x, w_v = w, logits_v = logits;
  RowMatrix<float>& penalised;
  RowMatrix<std::uint8_t> losers = RowMatrix<std::uint8_t>::Constant(tokens, experts, 77);
  const gatepro::RivalTable& rivals() const { return router.similarity_cache().rivals(); }
  Competition competition = Competition::eliminate();

  void expect_losers_untouched() const {
    EXPECT_TRUE((losers.array() == 77).all());
    expect_outputs_untouched();
  }
};

TEST_F(BadStage, GateLogits) {
  const auto gate = [&](MatrixView<const float> x_TH, MatrixView<const float> w_EH,
                        MatrixView<float> out, Workspace scratch) {
    return [=] { gatepro::gate_logits(x_TH, w_EH, out, scratch); };
  };
  MatrixView<float> out = penalised;
  const char* where = "gate_logits";
  expect_error(gate({x.data(), 5, 9}, w_v, out, workspace()), {where, "w_EH", "cols needed=9"});
  expect_error(gate({nullptr, 5, 10}, w_v, out, workspace()), {where, "x_TH", "not null"});
  expect_error(gate({x.data(), 5, 10, 4}, w_v, out, workspace()), {where, "x_TH", "row_stride=4"});
  expect_error(gate(x_v, {w.data(), 0, 10}, out, workspace()), {where, "num_experts=0"});
  expect_error(gate(x_v, {nullptr, 6, 10}, out, workspace()), {where, "w_EH", "not null"});
  expect_error(gate(x_v, w_v, {out.data, 4, 6}, workspace()), {where, "logits_TE", "rows=4"});
  expect_error(gate(x_v, w_v, {out.data, 5, 6, 5}, workspace()),
               {where, "logits_TE", "row_stride=5"});
  expect_error(gate(x_v, w_v, {}, workspace()), {where, "logits_TE"});
  expect_error(gate(x_v, w_v, out, no_workspace()), {where, "workspace", "bytes=1"});
  expect_error([&] { gatepro::gate_logits(x_v, w_v, out, workspace(), NoWorkers{}); },
               {where, "workers=0"});
  const gatepro::PackedWeights<float> packed(w_v);
  expect_error(
      [&] {
        gatepro::gate_logits(MatrixView<const float>(x.data(), 5, 9), packed, out, workspace());
      },
      {where, "x_TH", "cols=9"});
  expect_error(
      [&] { gatepro::gate_logits(x_v, packed, MatrixView<float>(out.data, 5, 5), workspace()); },
      {where, "logits_TE", "cols=5"});
  expect_error([] { gatepro::gate_logits_workspace_bytes<float, float>(1 << 30, most / 8); },
               {"address space"});
  expect_outputs_untouched();
}

TEST_F(BadStage, CosineSimilarityAndPairing) {
  RowMatrix<float> s = RowMatrix<float>::Constant(6, 6, 77);
  RowMatrix<std::int32_t> partners = RowMatrix<std::int32_t>::Constant(6, 1, 77);
  const auto cosine = [&](MatrixView<const float> w_EH, MatrixView<float> out, Workspace scratch) {
    return [=] { gatepro::cosine_similarity(w_EH, out, scratch); };
  };
  const char* where = "cosine_similarity";
  expect_error(cosine({w.data(), 5, 10}, s, workspace()),
               {where, "similarity_EE", "rows needed=5"});
  expect_error(cosine({nullptr, 6, 10}, s, workspace()), {where, "w_EH", "not null"});
  expect_error(cosine({w.data(), 6, 10, 1}, s, workspace()), {where, "w_EH", "row_stride=1"});
  expect_error(cosine({w.data(), 0, 10}, s, workspace()), {where, "num_experts=0"});
  expect_error(cosine(w_v, {}, workspace()), {where, "similarity_EE"});
  expect_error(cosine(w_v, s, no_workspace()), {where, "workspace"});
  expect_error([&] { gatepro::cosine_similarity(w_v, view(s), workspace(), NoWorkers{}); },
               {where, "workers=0"});
  EXPECT_TRUE((s.array() == 77).all());

  const auto search = [&](const Pairing& pairing, MatrixView<std::int32_t> out,
                          MatrixView<float> similarity, Workspace scratch) {
    return [=] { gatepro::find_partners(w_v, pairing, {out, similarity}, scratch); };
  };
  const char* search_where = "find_partners";
  expect_error(search({6, -1, false}, partners, {}, workspace()),
               {search_where, "partners_per_expert=6"});
  expect_error(search({}, {}, {}, workspace()), {search_where, "partners_EM"});
  expect_error(search({2, -1, false}, partners, {}, workspace()),
               {search_where, "partners_EM", "cols needed=2"});
  expect_error(search({}, partners, {s.data(), 6, 5}, workspace()),
               {search_where, "similarity_EE", "cols=5"});
  expect_error(search({}, partners, s, no_workspace()), {search_where, "workspace"});
  EXPECT_TRUE((s.array() == 77).all());
  EXPECT_TRUE((partners.array() == 77).all());

  const auto pair = [&](MatrixView<const float> similarity, const Pairing& pairing,
                        MatrixView<std::int32_t> out) {
    return [=] { gatepro::pair_partners(similarity, pairing, out); };
  };
  const char* pair_where = "pair_partners";
  expect_error(pair({s.data(), 6, 5}, {}, partners), {pair_where, "similarity_EE", "cols=5"});
  expect_error(pair({nullptr, 6, 6}, {}, partners), {pair_where, "similarity_EE", "not null"});
  expect_error(pair({s.data(), 0, 0}, {}, partners), {pair_where, "num_experts=0"});
  expect_error(pair(s, {2, -1, false}, partners), {pair_where, "partners_EM", "cols needed=2"});
  expect_error(pair(s, {6, -1, false}, partners), {pair_where, "partners_per_expert=6"});
  expect_error(pair(s, {1, nan, false}, partners), {pair_where, "min_similarity"});
  EXPECT_TRUE((partners.array() == 77).all());
  partners.setZero();
  partners(2, 0) = 6;
  expect_error([&] { gatepro::RivalTable(partners, false); }, {"RivalTable", "id=6", "row=2"});
  expect_error([&] { gatepro::RivalTable(StridedView<const std::int32_t>(), false); },
               {"RivalTable", "num_experts=0"});
}

TEST_F(BadStage, ApplyCompetition) {
  const auto compete = [&](MatrixView<const float> in, MatrixView<float> out,
                           MatrixView<std::uint8_t> loser, Workspace scratch) {
    return [=] { gatepro::apply_competition(in, rivals(), competition, out, loser, scratch); };
  };
  const MatrixView<float> out = penalised;
  const MatrixView<std::uint8_t> loser = losers;
  const char* where = "apply_competition";
  expect_error(compete({logits.data(), 5, 5}, out, loser, workspace()), {where, "cols needed=5"});
  expect_error(compete({nullptr, 5, 6}, out, loser, workspace()), {where, "logits_TE", "not null"});
  expect_error(compete({logits.data(), 5, 6, 2}, out, loser, workspace()), {where, "row_stride=2"});
  expect_error(compete({logits.data(), 5, 0}, out, loser, workspace()), {where, "num_experts=0"});
  expect_error(compete(logits_v, {out.data, 4, 6}, loser, workspace()),
               {where, "penalised_TE", "rows=4"});
  expect_error(compete(logits_v, {}, loser, workspace()), {where, "penalised_TE"});
  expect_error(compete(logits_v, out, {}, workspace()), {where, "loser_TE"});
  expect_error(compete(logits_v, out, {loser.data, 5, 6, 3}, workspace()), {where, "loser_TE"});
  expect_error(
      compete(logits_v, out, {reinterpret_cast<std::uint8_t*>(out.data), 5, 6}, workspace()),
      {where, "outputs in different memory"});
  expect_error(compete(logits_v, out, loser, no_workspace()), {where, "workspace", "bytes=1"});
  competition = Competition::penalty(-1);
  expect_error(compete(logits_v, out, loser, workspace()), {where, "lambda=-1"});
  competition = Competition::penalty(1);
  expect_error(compete(logits_v, out, {nullptr, 5, 6}, workspace()),
               {where, "loser_TE", "not null"});
  expect_error(
      [&] {
        gatepro::apply_competition(logits_v, gatepro::RivalTable(), competition, out, loser,
                                   workspace());
      },
      {where, "partners of all experts before competition"});
  expect_error(
      [&] {
        gatepro::apply_competition(logits_v, rivals(), competition, out, loser, workspace(),
                                   NoWorkers{});
      },
      {where, "workers=0"});
  expect_losers_untouched();
}

TEST_F(BadStage, SelectTopK) {
  StridedView<std::int32_t> out_ids = outcome.ids_TK;
  StridedView<float> out_logits = outcome.weights_TK;
  const auto select = [&](MatrixView<const float> in, MatrixView<const std::uint8_t> loser,
                          StridedView<std::int32_t> id, StridedView<float> selected,
                          Workspace scratch) {
    return [=] {
      gatepro::select_top_k(in, gatepro::EliminatedExperts(loser), id, selected, scratch);
    };
  };
  const char* where = "select_top_k";
  expect_error(select({nullptr, 5, 6}, {}, out_ids, out_logits, workspace()), {where, "not null"});
  expect_error(select({logits.data(), 5, 6, 5}, {}, out_ids, out_logits, workspace()),
               {where, "logits_TE", "row_stride=5"});
  expect_error(select({logits.data(), 5, 1}, {}, out_ids, out_logits, workspace()),
               {where, "top_k=2", "num_experts=1"});
  expect_error(select(logits_v, {losers.data(), 4, 6}, out_ids, out_logits, workspace()),
               {where, "eliminated", "rows=4"});
  expect_error(select(logits_v, {nullptr, 5, 6}, out_ids, out_logits, workspace()),
               {where, "eliminated", "not null"});
  expect_error(select(logits_v, {}, {out_ids.data, 5, 0}, out_logits, workspace()),
               {where, "1 <= top_k", "top_k=0"});
  expect_error(select(logits_v, {}, {out_ids.data, 4, 2}, out_logits, workspace()),
               {where, "expert_ids_TK", "rows=4"});
  expect_error(select(logits_v, {}, {out_ids.data, 5, 2, 1, 1}, out_logits, workspace()),
               {where, "expert_ids_TK", "strides"});
  expect_error(select(logits_v, {}, out_ids, {out_logits.data, 5, 1}, workspace()),
               {where, "selected_logits_TK", "cols=1"});
  expect_error(
      select(logits_v, {}, out_ids, {reinterpret_cast<float*>(out_ids.data), 5, 2}, workspace()),
      {where, "outputs in different memory"});
  expect_error(select(logits_v, {}, out_ids, out_logits, no_workspace()), {where, "workspace"});
  expect_error(
      [&] { gatepro::select_top_k(logits_v, {}, out_ids, out_logits, workspace(), NoWorkers{}); },
      {where, "workers=0"});
  expect_outputs_untouched();
}

TEST_F(BadStage, Softmax) {
  const StridedView<const float> in = weights;
  const StridedView<float> out = outcome.weights_TK;
  const auto softmax = [&](StridedView<const float> selected, StridedView<float> to,
                           Workspace scratch) {
    return [=] { gatepro::softmax_selected(selected, to, scratch); };
  };
  const char* where = "softmax_selected";
  expect_error(softmax({weights.data(), 5, 0}, out, workspace()), {where, "1 <= top_k", "top_k=0"});
  expect_error(softmax({nullptr, 5, 2}, out, workspace()),
               {where, "selected_logits_TK", "not null"});
  expect_error(softmax({weights.data(), 5, 2, 1, 1}, out, workspace()), {where, "strides"});
  expect_error(softmax(in, {out.data, 6, 2}, workspace()), {where, "weights_TK", "rows=6"});
  expect_error(softmax(in, out, no_workspace()), {where, "workspace"});
  expect_error([&] { gatepro::softmax_selected(in, out, workspace(), NoWorkers{}); },
               {where, "workers=0"});

  const auto backward = [&](StridedView<const float> p, StridedView<const float> g,
                            StridedView<float> to) {
    return [=] { gatepro::softmax_backward(p, g, to); };
  };
  const char* back = "softmax_backward";
  expect_error(backward({nullptr, 5, 2}, dweights, out), {back, "weights_TK", "not null"});
  expect_error(backward(in, {dweights.data(), 5, 1}, out), {back, "dweights_TK", "cols=1"});
  expect_error(backward(in, dweights, {out.data, 4, 2}), {back, "dselected_logits_TK", "rows=4"});
  expect_outputs_untouched();
}

TEST_F(BadStage, GateBackward) {
  struct Arguments {
    StridedView<const std::int32_t> id;
    StridedView<const float> selected;
    MatrixView<const float> dense, source;
    MatrixView<float> out;
    ExpertRange range;
    Workspace scratch;
    VectorView<const std::uint8_t> mask{};
  };
  const auto expect_both = [&](FunctionRef<void(Arguments&)> spoil, Parts parts) {
    Arguments a{ids, dweights, dlogits, w, dx, {}, workspace()};
    spoil(a);
    expect_error(
        [&] {
          gatepro::gate_backward_tokens(gatepro::Choices{a.id, a.mask}, {a.selected, a.dense},
                                        a.source, a.out, a.scratch);
        },
        parts);
    Arguments b{ids, dweights, dlogits, x, dw, {0, experts}, workspace()};
    spoil(b);
    expect_error(
        [&] {
          gatepro::gate_backward_weights(gatepro::Choices{b.id, b.mask}, {b.selected, b.dense},
                                         b.source, b.out, b.scratch, gatepro::SerialExecutor{},
                                         b.range);
        },
        parts);
    expect_outputs_untouched();
  };
  expect_both([](auto& a) { a.id.rows = 4; }, {"gate_backward_", "expert_ids_TK", "rows=4"});
  expect_both([](auto& a) { a.id.cols = 0; }, {"gate_backward_", "top_k=0"});
  expect_both([](auto& a) { a.id.cols = 7; }, {"gate_backward_", "top_k=7"});
  expect_both([](auto& a) { a.id.data = nullptr; }, {"expert_ids_TK", "not null"});
  expect_both([](auto& a) { a.selected.cols = 1; }, {"dselected_logits_TK", "cols=1"});
  expect_both([](auto& a) { a.selected.data = nullptr; }, {"dselected_logits_TK", "not null"});
  expect_both([](auto& a) { a.dense.cols = 5; }, {"dlogits_TE", "cols=5"});
  expect_both([](auto& a) { a.dense.data = nullptr; }, {"dlogits_TE", "not null"});
  expect_both([](auto& a) { a.source.cols = 9; }, {"gate_backward_", "cols=9", "cols needed=10"});
  expect_both([](auto& a) { a.source.data = nullptr; }, {"gate_backward_", "not null"});
  expect_both([](auto& a) { a.source.row_stride = 9; }, {"gate_backward_", "row_stride=9"});
  expect_both([](auto& a) { a.out.data = nullptr; }, {"gate_backward_", "not null"});
  expect_both([](auto& a) { a.out.row_stride = 9; }, {"gate_backward_", "row_stride=9"});
  expect_both([](auto& a) { a.scratch.bytes = 1; }, {"gate_backward_", "workspace"});
  const std::uint8_t padding[] = {0, 0, 0};
  expect_both([&](auto& a) { a.mask = {padding, 3}; }, {"is_padding_T", "size=3"});
  ids(2, 1) = 6;
  expect_both([](auto&) {}, {"expert_ids_TK", "id=6", "row=2", "column=1"});
  ids(2, 1) = 1;
  for (const ExpertRange range : {ExpertRange{-1, 2}, {0, 7}, {3, 2}, {7, 7}}) {
    expect_error(
        [&] {
          gatepro::gate_backward_weights(gatepro::Choices{strided_view(ids)}, {dweights, dlogits},
                                         x_v, view(dw), workspace(), gatepro::SerialExecutor{},
                                         range);
        },
        {"gate_backward_weights", "range.begin <= range.end", "begin=", "end=", "num_experts=6"});
  }
  expect_error(
      [&] {
        gatepro::gate_backward_weights(gatepro::Choices{strided_view(ids)}, {dweights, dlogits},
                                       x_v, view(dw), workspace(), NoWorkers{});
      },
      {"gate_backward_weights", "workers=0"});
  expect_error(
      [&] {
        gatepro::gate_backward_tokens(gatepro::Choices{strided_view(ids)}, {dweights, dlogits}, w_v,
                                      view(dx), workspace(), NoWorkers{});
      },
      {"gate_backward_tokens", "workers=0"});
  expect_error([] { gatepro::gate_backward_weights_workspace_bytes<float>(most / 2, 8, 3); },
               {"gate_backward_weights", "address space"});
  expect_outputs_untouched();
}

TEST_F(BadStage, TokensPerExpert) {
  VectorView<std::int64_t> counts = outcome.tokens_per_expert_E;
  const char* where = "add_tokens_per_expert";
  expect_error(
      [&] {
        gatepro::add_tokens_per_expert(strided_view(ids), {counts.data, 0});
      },
      {where, "num_experts=0"});
  expect_error(
      [&] {
        gatepro::add_tokens_per_expert(strided_view(ids), {nullptr, 6});
      },
      {where, "tokens_per_expert_E", "not null"});
  expect_error(
      [&] { gatepro::add_tokens_per_expert(StridedView<std::int32_t>(nullptr, 5, 2), counts); },
      {where, "expert_ids_TK", "not null"});
  ids(4, 0) = -2;
  expect_error([&] { gatepro::add_tokens_per_expert(strided_view(ids), counts); },
               {where, "id=-2", "row=4"});
  // A 64-bit id is shown as what it is.
  const std::uint64_t huge = std::numeric_limits<std::uint64_t>::max() - 1;
  expect_error(
      [&] {
        gatepro::add_tokens_per_expert(StridedView<const std::uint64_t>(&huge, 1, 1), counts);
      },
      {where, "id=18446744073709551614"});
  expect_outputs_untouched();
}

}  // namespace
