// SPDX-License-Identifier: MIT
// Prints a hash of the bits of every kind of result. The build compiles it with many flags and
// compares the lines.
#include <gatepro/gatepro.hpp>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "support/checksums.hpp"

namespace {

using data::Hash;
using data::numbers;
using gatepro::Index;
using gatepro::MatrixView;
using gatepro::RowMatrix;
using gatepro::ScoreFunction;
using gatepro::StridedView;

/// A line for `what`; the hash starts anew.
void print(Hash& hash, const std::string& what) {
  std::printf("%-44s %016llx\n", what.c_str(), static_cast<unsigned long long>(hash.value()));
  hash = Hash();
}

const char* name_of(ScoreFunction function) {
  switch (function) {
    case ScoreFunction::softmax_after_top_k:
      return "softmax after top k";
    case ScoreFunction::softmax_before_top_k:
      return "softmax before top k";
    case ScoreFunction::sigmoid:
      return "sigmoid";
    default:
      return "sqrt softplus";
  }
}

/// A problem of one size.
template <class X, class A>
struct Case {
  Index tokens, hidden, experts, top_k;
  std::string name = std::string(sizeof(A) == 4 ? "float" : "double") +
                     (sizeof(X) == 2 ? " bfloat16" : "") + " E=" + std::to_string(experts) + " ";
  std::vector<X> x = numbers<X>(tokens * hidden, 1);
  std::vector<A> w = numbers<A>(experts * hidden, 2, 0.3);
  std::vector<A> dweights = numbers<A>(tokens * top_k, 3);
  std::vector<A> dlogits = numbers<A>(tokens * experts, 4);
  std::vector<A> dx = numbers<A>(tokens * hidden, 5);
  std::vector<A> dw = numbers<A>(experts * hidden, 6);

  MatrixView<const X> x_TH() const { return {x.data(), tokens, hidden}; }
  MatrixView<const A> w_EH() const { return {w.data(), experts, hidden}; }
  MatrixView<const A> dweights_TK() const { return {dweights.data(), tokens, top_k}; }
  MatrixView<const A> dlogits_TE() const { return {dlogits.data(), tokens, experts}; }
  MatrixView<A> dx_TH() { return {dx.data(), tokens, hidden}; }
  MatrixView<A> dw_EH() { return {dw.data(), experts, hidden}; }
};

/// True if a token's logits are those that it has alone, wherever it stands.
template <class X, class A>
bool tokens_stand_alone(const Case<X, A>& c) {
  std::vector<A> together(static_cast<std::size_t>(c.tokens * c.experts));
  std::vector<A> alone(static_cast<std::size_t>(c.experts));
  std::vector<std::byte> workspace(gatepro::gate_logits_workspace_bytes<X, A>(c.experts, c.hidden));
  const MatrixView<A> together_TE(together.data(), c.tokens, c.experts);
  gatepro::gate_logits(c.x_TH(), c.w_EH(), together_TE, workspace);
  bool same = true;
  for (Index t = 0; t < c.tokens; ++t) {
    gatepro::gate_logits(c.x_TH().middle_rows(t, 1), c.w_EH(),
                         MatrixView<A>(alone.data(), 1, c.experts), workspace);
    same &= std::memcmp(alone.data(), together_TE.row(t), alone.size() * sizeof(A)) == 0;
  }
  Hash hash;
  hash.add_rows(together_TE);
  print(hash, c.name + "logits");
  return same;
}

/// Similarity, routing and gradients of the plain router.
template <class A>
void route(Case<A, A> c) {
  gatepro::RouterConfig config{c.hidden, c.experts, c.top_k};
  config.competition = gatepro::Competition::penalty(0.25);
  config.pairing.partners_per_expert = 2;
  config.pairing.keep_similarity = true;
  gatepro::Router<A> router(config);
  router.refresh(c.w_EH(), 0);
  Hash hash;
  hash.add_rows(router.similarity_cache().similarity());
  print(hash, c.name + "similarity");
  gatepro::RoutingBuffers buffers(router, gatepro::BufferShape{c.tokens, 1, 1, true});
  router.forward(c.x_TH(), c.w_EH(), buffers);
  hash.add_rows(buffers.expert_ids_TK());
  hash.add_rows(buffers.weights_TK());
  print(hash, c.name + "routing");
  router.backward(c.x_TH(), c.w_EH(), buffers, {c.dweights_TK(), c.dlogits_TE()},
                  {c.dx_TH(), c.dw_EH()});
  router.backward(c.x_TH(), c.w_EH(), buffers, {c.dweights_TK()}, {c.dx_TH(), c.dw_EH()});
  hash.add_rows(c.dx_TH());
  hash.add_rows(c.dw_EH());
  print(hash, c.name + "gradients");
}

/// Every feature of the complete router, for one score function; experts are chosen by rounded
/// scores and a fixed bias, and fewer than K of them, only if asked to.
template <class A>
void route_completely(Case<A, A> c, ScoreFunction function, bool rounds = false) {
  gatepro::CompleteConfig config{{c.hidden, c.experts, c.top_k}};
  config.competition = gatepro::Competition::penalty(0.25);
  config.scores = {function, function != ScoreFunction::softmax_after_top_k, 2.5};
  config.bias = {function == ScoreFunction::sigmoid, 0.013, true};
  config.losses = {1e-2, 2e-2, 3e-2, 1e-3, gatepro::CountSource::dispatched};
  config.capacity = gatepro::CapacityRule{};
  config.capacity->factor = 1.1;
  config.capacity->renormalise = true;
  config.noise.jitter = 0.02;
  config.noise.logit_sigma = 0.1;
  config.noise.seed = 7;
  if (rounds) {
    config.choice = {0x1p-6, gatepro::ChoiceOrder::ascending_ids};
    config.fewer = gatepro::FewerChoices{0.9, 2.25, 1};
  }
  gatepro::CompleteRouter<A> router(config);
  gatepro::RoutingBuffers buffers(router, gatepro::BufferShape{c.tokens, 1, 2});
  const std::vector<std::int64_t> begin = {0, c.tokens / 3, c.tokens};
  typename gatepro::CompleteRouter<A>::Inputs in;
  in.sequence_begin_S1 = begin;
  const std::vector<A> correction_E = numbers<A>(c.experts, 7, 0.1);
  if (rounds) router.set_correction_bias(correction_E);
  router.refresh(c.w_EH(), 0);
  Hash hash;
  for (int step = 0; step < 2; ++step) {  // the second with a bias
    const auto losses = router.forward(c.x_TH(), c.w_EH(), in, buffers).losses;
    const auto out = buffers.view();
    hash.add_rows(out.logits_TE);
    hash.add_rows(out.expert_ids_TK);
    hash.add_rows(out.weights_TK);
    for (double loss : {losses.batch, losses.sequence, losses.global, losses.z}) hash.add(&loss, 1);
    router.backward(c.x_TH(), c.w_EH(), in, buffers, {c.dweights_TK()}, {c.dx_TH(), c.dw_EH()});
    router.end_step();
  }
  const std::string name = c.name + name_of(function) + (rounds ? ", rounded" : "");
  print(hash, name);
  hash.add_rows(c.dx_TH());
  hash.add_rows(c.dw_EH());
  print(hash, name + ", gradients");
}

/// Experts' results, and their gradients to rows and weights.
template <class A>
void combine(Case<A, A> c) {
  std::vector<std::int32_t> row(static_cast<std::size_t>(c.tokens));
  for (Index t = 0; t < c.tokens; ++t) row[static_cast<std::size_t>(t)] = int(t * 3 % c.tokens);
  const StridedView<const std::int32_t> row_TK(row.data(), c.tokens, 1);
  std::vector<A> weights = numbers<A>(c.tokens, 8);
  const StridedView<A> weights_TK(weights.data(), c.tokens, 1);
  gatepro::combine(row_TK, weights_TK, c.x_TH(), c.dx_TH());
  gatepro::combine_backward_weights(row_TK, c.x_TH(), c.dx_TH(), weights_TK);
  Hash hash;
  hash.add_rows(c.dx_TH());
  hash.add_rows(weights_TK);
  print(hash, c.name + "combine");
}

/// Logits with a bias, capped, and both ways back.
template <class A>
void change_logits(Case<A, A> c) {
  std::vector<A> logits(static_cast<std::size_t>(c.tokens * c.experts));
  std::vector<A> dbias(static_cast<std::size_t>(c.experts));
  const std::vector<A> bias = numbers<A>(c.experts, 9);
  const MatrixView<A> logits_TE(logits.data(), c.tokens, c.experts);
  std::vector<std::byte> workspace(gatepro::gate_logits_workspace_bytes<A, A>(c.experts, c.hidden));
  gatepro::gate_logits(c.x_TH(), gatepro::BiasedWeights<A>{c.w_EH(), bias}, logits_TE, workspace);
  gatepro::soft_cap_logits(2.5, logits_TE);
  Hash hash;
  hash.add_rows(logits_TE);
  std::vector<A> gradients = numbers<A>(c.tokens * c.experts, 10);
  const MatrixView<A> dlogits_TE(gradients.data(), c.tokens, c.experts);
  gatepro::soft_cap_backward(2.5, logits_TE, dlogits_TE);
  gatepro::gate_backward_bias(dlogits_TE, gatepro::VectorView<A>(dbias));
  hash.add_rows(dlogits_TE);
  hash.add(dbias.data(), c.experts);
  print(hash, c.name + "changed logits");
}

template <class A>
bool run_scalar() {
  bool stand_alone = true;
  for (Index experts : {5, 17, 257}) {
    const Case<A, A> c{7, 67, experts, 3};
    stand_alone &= tokens_stand_alone(c);
    route(c);
  }
  const Case<A, A> c{41, 37, 12, 3};
  for (ScoreFunction function :
       {ScoreFunction::softmax_after_top_k, ScoreFunction::softmax_before_top_k,
        ScoreFunction::sigmoid, ScoreFunction::sqrt_softplus}) {
    route_completely(c, function);
    route_completely(c, function, /*rounds=*/true);
  }
  combine(c);
  change_logits(c);
  return stand_alone;
}

}  // namespace

int main() {
  std::printf("instruction set %s\n", gatepro::instruction_set());
  bool stand_alone = run_scalar<float>();
  stand_alone &= run_scalar<double>();
  stand_alone &= tokens_stand_alone(Case<gatepro::bfloat16, float>{7, 67, 17, 3});
  if (!stand_alone) std::printf("a token's logits depend on the batch\n");
  return stand_alone ? 0 : 1;
}
