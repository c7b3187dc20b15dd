// SPDX-License-Identifier: MIT
// The operators: gatepro's path on the CPU against plain ATen, and the gradients of both.
#include "ops.hpp"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "fallback.hpp"
#include "options.hpp"
#include "support/errors.hpp"
#include "support/reference/partners.hpp"

namespace gatepro_torch {

/// For messages of failed tests.
std::ostream& operator<<(std::ostream& out, const RouteOptions& o) {
  return out << o.score << (o.renormalise ? " renormalised" : "") << ", K=" << o.top_k
             << (o.eliminate ? ", eliminate" : ", penalty ") << o.penalty
             << (o.expert_bias.defined() ? ", bias" : "")
             << (o.is_padding.defined() ? ", padding" : "");
}

namespace {

using at::Tensor;

constexpr float infinite = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

Tensor normal(at::IntArrayRef shape, at::ScalarType dtype = at::kDouble) {
  return at::randn(shape, dtype);
}

/// Multiples of 1/8: sums of products of such numbers are exact, so that both paths have the same
/// logits, and many of them tie.
Tensor coarse(at::IntArrayRef shape, at::ScalarType dtype) {
  return at::randint(-8, 9, shape, at::TensorOptions(dtype)) / 8;
}

Tensor random_partners(std::int64_t experts, std::int64_t per_expert) {
  return at::randint(0, experts, {experts, per_expert}, at::TensorOptions(at::kInt));
}

bool same_bits(const Tensor& a, const Tensor& b) {
  const auto bits = a.element_size() == 8   ? at::kLong
                    : a.element_size() == 4 ? at::kInt
                                            : at::kShort;
  return a.scalar_type() == b.scalar_type() &&
         at::equal(a.contiguous().view(bits), b.contiguous().view(bits));
}
bool same_bits(const Routing& a, const Routing& b) {
  return same_bits(a.weights, b.weights) && at::equal(a.expert_ids, b.expert_ids) &&
         same_bits(a.logits, b.logits);
}

void expect_close(const Tensor& got, const Tensor& wanted, double tolerance) {
  ASSERT_EQ(got.sizes(), wanted.sizes());
  EXPECT_TRUE(at::allclose(got.to(at::kDouble), wanted.to(at::kDouble), tolerance, tolerance,
                           /*equal_nan=*/true))
      << got << wanted;
}

const std::vector<std::string> scores{"softmax_after_top_k", "softmax_before_top_k", "sigmoid",
                                      "sqrt_softplus"};

/// Every score, with and without the quotient, in every mode.
std::vector<RouteOptions> all_options(std::int64_t top_k, double penalty) {
  std::vector<RouteOptions> all;
  for (const std::string& score : scores) {
    for (const bool renormalise : {false, true}) {
      for (const auto& [lambda, eliminate] :
           {std::pair(0.0, false), std::pair(penalty, false), std::pair(penalty, true)}) {
        all.push_back({top_k, lambda, eliminate, score, renormalise, {}, {}});
      }
    }
  }
  return all;
}

/// The ATen path, on the CPU.
Routing plain_route(const Tensor& x, const Tensor& w, const Tensor& partners,
                    const RouteOptions& given) {
  return fallback::route(x, w, checked_options(Checks("route"), partners, given, x, w.size(0)));
}
Routing plain_route_logits(const Tensor& logits, const Tensor& partners,
                           const RouteOptions& given) {
  return fallback::route_logits(
      logits, checked_options(Checks("route_logits"), partners, given, logits, logits.size(1)));
}

/// A number that depends on all results that have gradients.
Tensor loss_of(const Routing& routing, const Tensor& dweights, const Tensor& dlogits) {
  Tensor loss = (routing.weights * dweights).sum();
  return dlogits.defined() ? loss + (routing.logits * dlogits).sum() : loss;
}

std::vector<Tensor> gradients(const Tensor& loss, const std::vector<Tensor>& inputs,
                              bool create_graph = false) {
  return torch::autograd::grad({loss}, inputs, {}, /*retain_graph=*/true, create_graph);
}

/// A forward and its backward.
struct Outcome {
  Routing routing;
  std::vector<Tensor> gradients;
};
bool same_bits(const Outcome& a, const Outcome& b) {
  return same_bits(a.routing, b.routing) && same_bits(a.gradients[0], b.gradients[0]) &&
         same_bits(a.gradients[1], b.gradients[1]);
}

class TorchOps : public testing::Test {
 protected:
  void SetUp() override {
    at::manual_seed(1);
    at::set_num_threads(1);
  }
};

TEST_F(TorchOps, OffIsLinearTopKAndSoftmax) {
  const Tensor x = normal({50, 24}).requires_grad_();
  const Tensor w = normal({12, 24}).requires_grad_();
  const Tensor dweights = normal({50, 4});
  const Tensor dlogits = normal({50, 12});
  RouteOptions options;
  options.top_k = 4;
  options.penalty = 0;
  const Routing ours = route(x, w, {}, options);
  const Tensor logits = at::linear(x, w);
  const auto [selected, ids] = at::topk(logits, 4);
  const Routing theirs{at::softmax(selected, 1), ids, logits};

  EXPECT_TRUE(at::equal(ours.expert_ids, ids));
  expect_close(ours.weights, theirs.weights, 1e-12);
  expect_close(ours.logits, theirs.logits, 1e-12);
  for (const Tensor& of_logits : {Tensor(), dlogits}) {
    const auto got = gradients(loss_of(ours, dweights, of_logits), {x, w});
    const auto wanted = gradients(loss_of(theirs, dweights, of_logits), {x, w});
    expect_close(got[0], wanted[0], 1e-11);
    expect_close(got[1], wanted[1], 1e-11);
  }
  // Partners play no part then, not even poisoned ones.
  EXPECT_TRUE(same_bits(route(x, w, at::full({12, 1}, -7, at::kInt), options), ours));
}

TEST_F(TorchOps, BothPathsChooseAlike) {
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    for (RouteOptions options : all_options(4, 0.25)) {
      SCOPED_TRACE(testing::Message() << dtype << ", " << options);
      const Tensor x = coarse({512, 16}, dtype);
      const Tensor w = coarse({16, 16}, dtype);
      const Tensor partners = options.eliminate ? random_partners(16, 3) : find_partners(w);
      options.is_padding = at::rand({512}) < 0.2;
      const Routing ours = route(x, w, partners, options);
      const Routing plain = plain_route(x, w, partners, options);
      EXPECT_TRUE(same_bits(ours.logits, plain.logits));
      EXPECT_TRUE(at::equal(ours.expert_ids, plain.expert_ids));
      expect_close(ours.weights, plain.weights, dtype == at::kFloat ? 2e-6 : 1e-13);
      EXPECT_TRUE(same_bits(route_logits(ours.logits, partners, options), ours));
    }
  }
}

TEST_F(TorchOps, BothPathsChooseAlikeByBias) {
  for (RouteOptions options : all_options(4, 0.25)) {
    SCOPED_TRACE(options);
    const Tensor logits = normal({512, 16});
    const Tensor partners = random_partners(16, 2);
    options.expert_bias = normal({16}) * 0.2;
    const Routing ours = route_logits(logits, partners, options);
    const Routing plain = plain_route_logits(logits, partners, options);
    EXPECT_TRUE(at::equal(ours.expert_ids, plain.expert_ids));
    expect_close(ours.weights, plain.weights, 1e-13);
    options.expert_bias = Tensor();
    EXPECT_FALSE(at::equal(route_logits(logits, partners, options).expert_ids, ours.expert_ids));
  }
}

/// A row for each way in which plain torch goes wrong, then random mixtures of their values.
Tensor hostile_logits() {
  const float x = not_a_number, i = infinite;
  const Tensor rows = at::tensor({
                                     1.F,   1.F,    1.F,   1.F,
                                     1.F,   1.F,  // equal: lowest ids
                                     0.F,   -0.F,   0.F,   -0.F,
                                     0.F,   -0.F,  // also of both signs
                                     x,     1.F,    2.F,   0.F,
                                     -1.F,  .5F,  // NaN: last, and it loses to nobody
                                     x,     x,      x,     x,
                                     1.F,   x,  // selected: the row's weights are NaN
                                     x,     x,      x,     x,
                                     x,     x,  //
                                     -i,    -i,     -i,    -i,
                                     -i,    -i,  // ids 0 to K - 1, NaN
                                     -i,    -i,     1.F,   -i,
                                     -i,    -i,  // weight 0
                                     1.F,   i,      2.F,   0.F,
                                     -1.F,  .5F,  // NaN
                                     i,     i,      -i,    -i,
                                     x,     x,  //
                                     -1.F,  1.F,    .5F,   2.F,
                                     -2.F,  -.5F,  // fewer survivors than K, if all meet the best
                                     3e38F, -3e38F, 3e38F, 0.F,
                                     1.F,   -1.F  //
                                 })
                          .view({-1, 6});
  const Tensor values = at::tensor({x, i, -i, 0.F, -0.F, 1.F, -1.F, .5F, 2.F, -2.F, 3e38F, -3e38F});
  const Tensor picks = at::randint(0, values.size(0), {2000, 6}, at::TensorOptions(at::kLong));
  return at::cat({rows, values.index({picks})});
}

TEST_F(TorchOps, BothPathsHandleHostileLogits) {
  const Tensor logits = hostile_logits();
  const Tensor all_meet_one = at::tensor({1, 3, 3, 1, 3, 3}, at::kInt).view({6, 1});
  const Tensor nobody = at::arange(6, at::kInt).view({6, 1});
  for (const RouteOptions& options : all_options(3, 0.5)) {
    for (const Tensor& partners : {all_meet_one, nobody, random_partners(6, 2)}) {
      SCOPED_TRACE(testing::Message() << options << partners);
      const Routing ours = route_logits(logits, partners, options);
      const Routing plain = plain_route_logits(logits, partners, options);
      EXPECT_TRUE(at::equal(ours.expert_ids, plain.expert_ids));
      expect_close(ours.weights, plain.weights, 2e-6);
    }
  }
  RouteOptions options;
  options.top_k = 3;
  options.eliminate = true;
  const Routing routing = route_logits(logits, all_meet_one, options);
  // The losers that fill up stand in order of their logits, and weigh nothing.
  EXPECT_TRUE(at::equal(routing.expert_ids[9], at::tensor({3, 1, 2}, at::kLong)));
  EXPECT_TRUE(at::equal(routing.weights[9], at::tensor({1.F, 0.F, 0.F})));
  EXPECT_TRUE(at::equal(routing.expert_ids[5], at::tensor({0, 1, 2}, at::kLong)));
  EXPECT_TRUE(routing.weights[5].isnan().all().item<bool>());
}

TEST_F(TorchOps, GradientsAreSlopes) {
  constexpr double step = 1e-6;  // small: weights have a kink where two experts change places
  for (RouteOptions options : all_options(3, 0.5)) {
    SCOPED_TRACE(options);
    const Tensor x = normal({9, 5}).requires_grad_();
    const Tensor w = normal({6, 5}).requires_grad_();
    const Tensor partners = find_partners(w);
    const Tensor dweights = normal({9, 3});
    const Tensor dlogits = normal({9, 6});
    options.is_padding = at::arange(9) >= 7;
    const Tensor dx = normal({9, 5});
    const Tensor dw = normal({6, 5});
    for (const Tensor& of_logits : {Tensor(), dlogits}) {
      const auto loss_at = [&](const Tensor& tokens, const Tensor& weights) {
        return loss_of(route(tokens, weights, partners, options), dweights, of_logits);
      };
      const auto got = gradients(loss_at(x, w), {x, w});
      const at::NoGradGuard no_graph;
      const auto along_x = [&](double s) { return loss_at(x + s * dx, w).item<double>(); };
      const auto along_w = [&](double s) { return loss_at(x, w + s * dw).item<double>(); };
      EXPECT_NEAR((got[0] * dx).sum().item<double>(), reference::derivative(along_x, step), 1e-7);
      EXPECT_NEAR((got[1] * dw).sum().item<double>(), reference::derivative(along_w, step), 1e-7);
    }
  }
}

TEST_F(TorchOps, BothPathsHaveTheSameGradients) {
  for (RouteOptions options : all_options(3, 0.5)) {
    SCOPED_TRACE(options);
    const Tensor logits = normal({40, 6}).requires_grad_();
    const Tensor partners = random_partners(6, 1);
    const Tensor dweights = normal({40, 3});
    options.is_padding = at::rand({40}) < 0.2;
    const auto ours =
        gradients(loss_of(route_logits(logits, partners, options), dweights, {}), {logits});
    const auto plain =
        gradients(loss_of(plain_route_logits(logits, partners, options), dweights, {}), {logits});
    expect_close(ours[0], plain[0], 1e-12);
    EXPECT_TRUE((ours[0].masked_select(options.is_padding.unsqueeze(1)) == 0).all().item<bool>());
  }
}

TEST_F(TorchOps, BothPathsHaveTheSameGradientsOfHostileLogits) {
  const Tensor logits = hostile_logits().requires_grad_();
  const Tensor partners = random_partners(6, 1);
  const Tensor dweights = normal({logits.size(0), 3}, at::kFloat);
  for (const RouteOptions& options : all_options(3, 0.5)) {
    SCOPED_TRACE(options);
    const Routing routing = route_logits(logits, partners, options);
    const Tensor ours = gradients(loss_of(routing, dweights, {}), {logits})[0];
    const Tensor plain = gradients(
        loss_of(plain_route_logits(logits, partners, options), dweights, {}), {logits})[0];
    const Tensor is_sound = routing.weights.sum(1).isfinite();
    EXPECT_TRUE(is_sound.any().item<bool>());
    expect_close(ours.index({is_sound}), plain.index({is_sound}), 2e-6);
    const Tensor of_chosen = ours.gather(1, routing.expert_ids);
    EXPECT_TRUE(of_chosen.index({~is_sound}).isnan().all().item<bool>());
  }
}

TEST_F(TorchOps, WhatPaddingHoldsReachesNoGradient) {
  const Tensor is_padding = at::arange(4) == 1;
  Tensor rows = normal({4, 5});
  rows[1] = not_a_number;
  for (RouteOptions options : all_options(2, 0.5)) {
    SCOPED_TRACE(options);
    const Tensor w = normal({6, 5}).requires_grad_();
    const Tensor logits = at::matmul(rows, w.detach().t()).requires_grad_();
    const Tensor partners = find_partners(w);
    options.is_padding = is_padding;
    const Tensor dweights = normal({4, 2});
    EXPECT_TRUE(gradients(loss_of(route(rows, w, partners, options), dweights, {}), {w})[0]
                    .isfinite()
                    .all()
                    .item<bool>());
    for (const Routing& routing :
         {route_logits(logits, partners, options), plain_route_logits(logits, partners, options)}) {
      EXPECT_TRUE((routing.weights[1] == 0).all().item<bool>());
      EXPECT_TRUE(
          (gradients(loss_of(routing, dweights, {}), {logits})[0][1] == 0).all().item<bool>());
    }
  }
}

TEST_F(TorchOps, LayoutDoesNotMatter) {
  const Tensor x = normal({7, 10}, at::kFloat);
  const Tensor w = normal({8, 10}, at::kFloat);
  const Tensor partners = random_partners(8, 2);
  const Tensor bias = normal({8}, at::kFloat);
  const Tensor is_padding = at::rand({7}) < 0.3;
  const auto strided = [](const Tensor& t) {  // every second column of something else
    return at::stack({t, at::ones_like(t)}, -1).select(-1, 0);
  };
  const auto run = [](const Tensor& tokens, const Tensor& weights, const Tensor& rivals,
                      const Tensor& expert_bias, const Tensor& mask) {
    const Tensor a = tokens.detach().requires_grad_();
    const Tensor b = weights.detach().requires_grad_();
    const Routing routing =
        route(a, b, rivals, {3, 0.5, false, "sigmoid", true, expert_bias, mask});
    const Tensor loss = routing.weights.square().sum() + routing.logits.square().sum();
    return Outcome{routing, gradients(loss, {a, b})};
  };
  const Outcome wanted = run(x, w, partners, bias, is_padding);
  const Tensor wide = at::cat({x, x}, 1).narrow(1, 10, 10);
  const Tensor tall = at::cat({x, x}, 0).narrow(0, 7, 7);
  for (const Tensor& tokens : {wide, tall, x.t().contiguous().t(), strided(x)}) {
    for (const Tensor& weights : {w, w.t().contiguous().t(), strided(w)}) {
      const Outcome got =
          run(tokens, weights, strided(partners), strided(bias), strided(is_padding));
      EXPECT_TRUE(same_bits(got, wanted));
    }
  }
}

TEST_F(TorchOps, OneRowRepeatedRowsAndNone) {
  const Tensor x = normal({7, 10}, at::kFloat);
  const Tensor w = normal({8, 10}, at::kFloat).requires_grad_();
  const Tensor partners = find_partners(w);
  RouteOptions options;
  options.top_k = 3;
  const Routing all = route(x, w, partners, options);
  const Tensor one = x.narrow(0, 2, 1);
  for (const Tensor& row : {one, one.as_strided({1, 10}, {1, 1}, 20), one.expand({5, 10})}) {
    const Routing got = route(row, w, partners, options);
    EXPECT_TRUE(same_bits(got.weights, all.weights.narrow(0, 2, 1).expand_as(got.weights)));
    // Incoming gradients of a sum are one number, shown everywhere.
    EXPECT_TRUE(gradients(got.weights.sum() + got.logits.sum(), {w})[0].defined());
  }
  const Routing overlapping = route(x.as_strided({3, 10}, {2, 1}), w, partners, options);
  EXPECT_TRUE(
      same_bits(overlapping, route(x.as_strided({3, 10}, {2, 1}).clone(), w, partners, options)));

  const Routing none = route(x.narrow(0, 0, 0), w, partners, options);
  EXPECT_EQ(none.weights.sizes(), at::IntArrayRef({0, 3}));
  EXPECT_EQ(none.logits.sizes(), at::IntArrayRef({0, 8}));
  EXPECT_TRUE((gradients(loss_of(none, none.weights.detach(), none.logits.detach()), {w})[0] == 0)
                  .all()
                  .item<bool>());
  EXPECT_EQ(plain_route(x.narrow(0, 0, 0), w, partners, options).weights.sizes(),
            at::IntArrayRef({0, 3}));
}

TEST_F(TorchOps, SixteenBitsAreThoseOfTheirFloats) {
  for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf}) {
    const Tensor x = normal({30, 16}).to(dtype).requires_grad_();
    const Tensor w = normal({8, 16}).to(dtype).requires_grad_();
    const Tensor wide_x = x.detach().to(at::kFloat).requires_grad_();
    const Tensor wide_w = w.detach().to(at::kFloat).requires_grad_();
    const Tensor partners = find_partners(w);
    EXPECT_TRUE(at::equal(partners, find_partners(wide_w)));
    RouteOptions options;
    options.top_k = 3;
    const auto run = [&](const Tensor& a, const Tensor& b) {
      const Routing routing = route(a, b, partners, options);
      return Outcome{routing, gradients(routing.weights.square().sum(), {a, b})};
    };
    const Outcome wide = run(wide_x, wide_w);
    EXPECT_EQ(wide.routing.weights.scalar_type(), at::kFloat);
    const Tensor dx = wide.gradients[0];
    const Tensor dw = wide.gradients[1];
    EXPECT_TRUE(same_bits(run(x, w), {wide.routing, {dx.to(dtype), dw.to(dtype)}}));
    // Tokens of 16 bits, a router of 32.
    EXPECT_TRUE(same_bits(run(x, wide_w), {wide.routing, {dx.to(dtype), dw}}));
  }
}

TEST_F(TorchOps, ThreadsDoNotChangeBits) {
  const Tensor x = normal({600, 300}, at::kFloat).requires_grad_();
  const Tensor w = normal({64, 300}, at::kFloat).requires_grad_();
  const Tensor dweights = normal({600, 6}, at::kFloat);
  const Tensor dlogits = normal({600, 64}, at::kFloat);
  RouteOptions options;
  options.top_k = 6;
  options.eliminate = true;
  const auto run = [&] {
    const Routing routing = route(x, w, find_partners(w), options);
    return Outcome{routing, gradients(loss_of(routing, dweights, dlogits), {x, w})};
  };
  const Outcome wanted = run();
  for (const int threads : {2, 3}) {
    at::set_num_threads(threads);
    EXPECT_TRUE(same_bits(run(), wanted));
  }
  // Two at a time, on threads of somebody else's loop.
  std::vector<Outcome> results(2);
  at::set_num_threads(2);
  at::parallel_for(0, 2, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) results[static_cast<std::size_t>(i)] = run();
  });
  EXPECT_TRUE(same_bits(results[0], wanted));
  EXPECT_TRUE(same_bits(results[1], wanted));
}

TEST_F(TorchOps, SecondDerivativesAreRefused) {
  const Tensor x = normal({4, 5}).requires_grad_();
  const Tensor w = normal({6, 5}).requires_grad_();
  RouteOptions options;
  options.top_k = 2;
  const Tensor loss = route(x, w, find_partners(w), options).weights.square().sum();
  const auto once = gradients(loss, {x, w}, /*create_graph=*/true);
  EXPECT_TRUE(same_bits(once[0], gradients(loss, {x, w})[0]));
  for (const Tensor& gradient : once) {
    expect_error([&] { gradients(gradient.square().sum(), {x}); }, {"gradients of first order"});
  }
  const Tensor logits = normal({4, 6}).requires_grad_();
  const Tensor weights = route_logits(logits, find_partners(w), options).weights;
  const Tensor dlogits = gradients(weights.square().sum(), {logits}, true)[0];
  expect_error([&] { gradients(dlogits.sum(), {logits}); }, {"gradients of first order"});
}

TEST_F(TorchOps, NothingIsDetachedUnasked) {
  RouteOptions options;
  options.top_k = 2;
  for (const at::Device device : {at::Device(at::kCPU), at::Device(at::kMeta)}) {
    for (const bool of_x : {false, true}) {
      const Tensor x = normal({4, 5}).to(device).requires_grad_(of_x);
      const Tensor w = normal({6, 5}).to(device).requires_grad_(!of_x);
      const Tensor partners = find_partners(w);
      const Routing routing = route(x, w, partners, options);
      EXPECT_TRUE(routing.weights.requires_grad());
      EXPECT_TRUE(routing.logits.requires_grad());
      EXPECT_FALSE(routing.expert_ids.requires_grad());
      EXPECT_TRUE(route_logits(routing.logits, partners, options).weights.requires_grad());
      const auto d = gradients(routing.weights.sum(), {of_x ? x : w});
      EXPECT_EQ(d[0].sizes(), of_x ? x.sizes() : w.sizes());
      const at::NoGradGuard asked_for;
      EXPECT_FALSE(route(x, w, partners, options).weights.requires_grad());
    }
  }
  const c10::InferenceMode inference;
  const Tensor x = normal({4, 5});
  EXPECT_EQ(route(x, x, find_partners(x), options).weights.sizes(), at::IntArrayRef({4, 2}));
}

TEST_F(TorchOps, PartnersMayChangeBeforeTheBackwardUnlessItNeedsThem) {
  const Tensor logits = normal({4, 6}).requires_grad_();
  const Tensor partners = random_partners(6, 1);
  RouteOptions options;
  options.top_k = 2;
  const Tensor free = route_logits(logits, partners, options).weights;
  options.score = "sigmoid";
  const Tensor bound = route_logits(logits, partners, options).weights;
  partners.fill_(0);
  EXPECT_TRUE(gradients(free.square().sum(), {logits})[0].defined());
  EXPECT_THROW(gradients(bound.square().sum(), {logits}), c10::Error);
}

TEST_F(TorchOps, PlainPathHasShapesWithoutDataAndNoAutocast) {
  const Tensor x = normal({4, 5}, at::kBFloat16).to(at::kMeta);
  const Tensor w = normal({6, 5}, at::kFloat).to(at::kMeta);
  const Tensor partners = find_partners(w, 2);
  EXPECT_EQ(partners.sizes(), at::IntArrayRef({6, 2}));
  for (const RouteOptions& options : all_options(2, 0.5)) {
    const Routing routing = route(x, w, partners, options);
    EXPECT_EQ(routing.weights.sizes(), at::IntArrayRef({4, 2}));
    EXPECT_EQ(routing.expert_ids.scalar_type(), at::kLong);
    EXPECT_EQ(routing.logits.scalar_type(), at::kFloat);
  }

  const Tensor tokens = normal({4, 5}, at::kFloat);
  RouteOptions options;
  options.top_k = 2;
  options.penalty = 0;
  const Routing wanted = plain_route(tokens, tokens, {}, options);
  at::autocast::set_cpu_enabled(true);
  const Routing got = plain_route(tokens, tokens, {}, options);
  const Routing ours = route(tokens, tokens, {}, options);
  at::autocast::set_cpu_enabled(false);
  EXPECT_TRUE(same_bits(got, wanted));
  expect_close(ours.logits, wanted.logits, 1e-5);
}

reference::Matrix matrix_of(const Tensor& tensor) {
  reference::Matrix matrix;
  const Tensor wide = tensor.to(at::kDouble);
  for (std::int64_t r = 0; r < wide.size(0); ++r) {
    matrix.emplace_back();
    for (std::int64_t c = 0; c < wide.size(1); ++c) {
      matrix.back().push_back(wide[r][c].item<double>());
    }
  }
  return matrix;
}

TEST_F(TorchOps, PartnersOfHardRowsAreTheReferences) {
  const Tensor w = normal({10, 8}, at::kFloat);
  w[3] = w[1];
  w[5] = w[1];
  w[6] = 0;
  w[7] = not_a_number;
  w[8] *= 1e30;
  w[9] *= 1e-30;
  for (const std::int64_t count : {1, 3}) {
    gatepro::Pairing pairing;
    pairing.partners_per_expert = count;
    const auto wanted =
        reference::pair_partners(reference::cosine_similarity(matrix_of(w)), pairing);
    const Tensor got = find_partners(w.requires_grad_(), count);
    EXPECT_EQ(got.scalar_type(), at::kInt);
    for (std::int64_t e = 0; e < 10; ++e) {
      for (std::int64_t m = 0; m < count; ++m) {
        EXPECT_EQ(got[e][m].item<int>(),
                  wanted[static_cast<std::size_t>(e)][static_cast<std::size_t>(m)])
            << e;
      }
    }
  }
  EXPECT_TRUE(at::equal(find_partners(w, 1, 1.0).select(1, 0).slice(0, 6, 10),
                        at::arange(6, 10, at::kInt)));
}

// From C++ as from Python: metrics of the layers, and what they say, alone and beside a baseline.
TEST_F(TorchOps, RunsAreDiagnosed) {
  const std::int64_t steps = 20, layers = 2;
  const Tensor w = at::randn({16, 24}), logits = at::randn({300, 24}).matmul(w.t());
  const Tensor partners = find_partners(w);
  RouteOptions o;
  o.top_k = 4;
  o.eliminate = true;
  const auto metrics = [&] {
    return layer_metrics(logits, w, partners, o).expand({steps, layers, 11});
  };
  const Tensor losses = at::linspace(3, 2.8, steps, at::kDouble);
  const Tensor numbers = at::arange(1, steps + 1) * 10;
  const RunTensors run{metrics(), losses, losses + 0.1, numbers};
  EXPECT_EQ(diagnose(run, o), "");
  RouteOptions off;
  off.top_k = 4;
  off.penalty = 0;
  o.eliminate = false;
  o.penalty = 1e-9;
  EXPECT_EQ(diagnose({metrics(), losses, losses}, o).rfind("lambda without effect", 0), 0U);
  const RunTensors baseline{layer_metrics(logits, w, partners, off).expand({steps, layers, 11}),
                            losses, losses, numbers};
  EXPECT_NE(diagnose(run, o, &baseline).find("over-suppression"), std::string::npos);
  EXPECT_NE(diagnose(run, o, &baseline).find("steps 160 to 200"), std::string::npos);
  expect_error([&] { diagnose({run.metrics, losses, losses, losses}, o); }, {"diagnose", "steps"});
  expect_error(
      [&] {
        diagnose({run.metrics, losses, losses, -numbers}, o);
      },
      {"diagnose", "ascending"});
}

TEST_F(TorchOps, BadArgumentsAreNamed) {
  const Tensor x = normal({4, 5}, at::kFloat);
  const Tensor w = normal({6, 5}, at::kFloat);
  const Tensor partners = find_partners(w);
  RouteOptions good;
  good.top_k = 2;
  const auto refuse = [&](std::initializer_list<const char*> parts, const auto& change) {
    Tensor tokens = x, weights = w, rivals = partners;
    RouteOptions options = good;
    change(tokens, weights, rivals, options);
    expect_error([&] { route(tokens, weights, rivals, options); }, parts);
  };
  using O = RouteOptions;
  refuse({"route", "partners of dtype Int", "[6, -1]", "dtype Long"},
         [](auto&, auto&, Tensor& p, O&) { p = p.to(at::kLong); });
  refuse({"partners", "shape [5, 1]"}, [](auto&, auto&, Tensor& p, O&) { p = p.narrow(0, 0, 5); });
  refuse({"partners", "on meta"}, [](auto&, auto&, Tensor& p, O&) { p = p.to(at::kMeta); });
  refuse({"partners", "got none"}, [](auto&, auto&, Tensor& p, O&) { p = Tensor(); });
  refuse({"every id in [0, num_experts)", "id=6"},
         [](auto&, auto&, Tensor& p, O&) { p = at::full_like(p, 6); });
  refuse({"is_padding of dtype Bool", "dtype Long"},
         [](auto&, auto&, auto&, O& o) { o.is_padding = at::zeros({4}, at::kLong); });
  refuse({"is_padding", "shape [4]"},
         [](auto&, auto&, auto&, O& o) { o.is_padding = at::zeros({5}, at::kBool); });
  refuse({"expert_bias of dtype Float", "dtype Double"},
         [](auto&, auto&, auto&, O& o) { o.expert_bias = at::zeros({6}, at::kDouble); });
  refuse({"expert_bias", "finite values"},
         [](auto&, auto&, auto&, O& o) { o.expert_bias = at::full({6}, infinite); });
  refuse({"x of shape [T, H]"}, [](Tensor& t, auto&, auto&, O&) { t = t.unsqueeze(0); });
  refuse({"x of shape [T, H]"}, [](Tensor& t, auto&, auto&, O&) { t = t.to(at::kInt); });
  refuse({"w of dtype Float", "dtype Double"},
         [](auto&, Tensor& v, auto&, O&) { v = v.to(at::kDouble); });
  refuse({"w of dtype Double"}, [](Tensor& t, auto&, auto&, O&) { t = t.to(at::kDouble); });
  refuse({"w", "shape [-1, 5]", "shape [6, 4]"},
         [](auto&, Tensor& v, auto&, O&) { v = v.narrow(1, 0, 4); });
  refuse({"w", "on meta", "on cpu"}, [](Tensor& t, auto&, auto&, O&) { t = t.to(at::kMeta); });
  refuse({"1 <= top_k <= num_experts", "top_k=7"}, [](auto&, auto&, auto&, O& o) { o.top_k = 7; });
  refuse({"top_k=0"}, [](auto&, auto&, auto&, O& o) { o.top_k = 0; });
  refuse({"penalty finite and >= 0"}, [](auto&, auto&, auto&, O& o) { o.penalty = -1; });
  refuse({"penalty=nan"}, [](auto&, auto&, auto&, O& o) { o.penalty = not_a_number; });
  refuse({"score=softmax"}, [](auto&, auto&, auto&, O& o) { o.score = "softmax"; });
  expect_error([&] { route_logits(x.to(at::kHalf), partners, good); },
               {"route_logits", "logits of shape [T, E] and dtype Float or Double", "Half"});
  expect_error([&] { find_partners(x[0]); }, {"find_partners", "w of shape [E, H]"});
  RouteOptions spoilt = good;
  spoilt.penalty = not_a_number;
  const Tensor metrics = at::zeros({2, 1, 11}, at::kDouble), losses = at::zeros({2}, at::kDouble);
  expect_error(
      [&] {
        diagnose({metrics, losses, losses, {}}, spoilt);
      },
      {"diagnose", "penalty=nan"});
  // Those without data take the plain path.
  for (const Tensor& weights : {w, w.to(at::kMeta)}) {
    const Tensor no_partners = at::empty({6, 0}, weights.options().dtype(at::kInt));
    const Tensor tokens = x.to(weights.device());
    const auto refuse_partners = [&](const auto& call) {
      expect_error(call, {"partners of one column or more", "partners=[6, 0]"});
    };
    refuse_partners([&] { route(tokens, weights, no_partners, good); });
    refuse_partners([&] { route_logits(weights.t(), no_partners, good); });
    for (const double least : {-1.5, 1.5, double{not_a_number}}) {
      expect_error([&] { find_partners(weights, 1, least); },
                   {"find_partners", "-1 <= min_similarity <= 1", "min_similarity="});
    }
    for (const std::int64_t count : {-1, 0, 6}) {
      expect_error([&] { find_partners(weights, count); },
                   {"find_partners", "1 <= partners_per_expert < num_experts", "num_experts=6"});
    }
  }
}

}  // namespace
}  // namespace gatepro_torch
