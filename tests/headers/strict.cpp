// SPDX-License-Identifier: MIT
// Every public template, instantiated for the warnings that its body may give.
#include <cstddef>
#include <cstdint>
#include <gatepro/diagnosis.hpp>
#include <gatepro/gatepro.hpp>
#include <gatepro/setup.hpp>
#include <vector>

namespace {

using gatepro::Index;
using gatepro::RowMatrix;

constexpr Index tokens = 8, hidden = 4, experts = 4, top_k = 2;

struct OwnExecutor {
  int workers() const { return 2; }
  template <class Body>
  void run(int count, Body body) const {
    for (int worker = count - 1; worker >= 0; --worker) body(worker);
  }
};

template <class T>
RowMatrix<T> zeros(Index rows, Index cols) {
  return RowMatrix<T>::Zero(rows, cols);
}

template <class X, class W>
void route() {
  using A = gatepro::accumulator_t<X, W>;
  const RowMatrix<X> x_TH = zeros<X>(tokens, hidden);
  const RowMatrix<W> w_EH = zeros<W>(experts, hidden);
  const RowMatrix<A> dweights_TK = zeros<A>(tokens, top_k);
  RowMatrix<A> dx_TH = zeros<A>(tokens, hidden);
  RowMatrix<A> dw_EH = zeros<A>(experts, hidden);
  const OwnExecutor executor;

  gatepro::Router<X, W> router({hidden, experts, top_k});
  gatepro::RoutingBuffers<gatepro::Router<X, W>> buffers(router, tokens);
  router.refresh(w_EH, 0, executor);
  router.refresh_with_loss(w_EH, 0, {}, dw_EH, executor);
  router.forward(x_TH, w_EH, buffers, executor);
  router.forward(x_TH, w_EH, buffers);
  const RowMatrix<A> logits_TE = zeros<A>(tokens, experts);
  router.forward_logits(logits_TE, buffers.view(), buffers.workspace(), executor);
  router.backward(x_TH, w_EH, buffers, {dweights_TK, logits_TE}, {dx_TH, dw_EH}, executor);
  RowMatrix<A> dlogits_TE = zeros<A>(tokens, experts);
  router.backward_logits({buffers.expert_ids_TK(), buffers.weights_TK()}, {dweights_TK}, dlogits_TE,
                         buffers.workspace(), executor);
}

template <class Id>
void hash() {
  const std::vector<std::int64_t> token_ids(tokens);
  RowMatrix<Id> ids_TK = zeros<Id>(tokens, top_k);
  gatepro::hash_ids(gatepro::balanced_hash_table(token_ids, experts, top_k, 1), token_ids, {},
                    gatepro::strided_view(ids_TK));
}

template <class W>
void start_weights() {
  RowMatrix<W> w_EH = zeros<W>(experts, hidden);
  std::vector<std::byte> memory(gatepro::orthogonal_weights_workspace_bytes(experts, hidden));
  gatepro::orthogonal_weights(1, 1.0, gatepro::view(w_EH), memory);
}

template <class X, class W>
void route_completely() {
  using A = gatepro::accumulator_t<X, W>;
  using Router = gatepro::CompleteRouter<X, W, std::int64_t>;
  const RowMatrix<X> x_TH = zeros<X>(tokens, hidden);
  const RowMatrix<W> w_EH = zeros<W>(experts, hidden);
  const RowMatrix<A> dweights_TK = zeros<A>(tokens, top_k);
  RowMatrix<A> dx_TH = zeros<A>(tokens, hidden);
  RowMatrix<A> dw_EH = zeros<A>(experts, hidden);
  RowMatrix<A> dlogits_TE = zeros<A>(tokens, experts);
  const OwnExecutor executor;

  Router router(gatepro::CompleteConfig{{hidden, experts, top_k}});
  gatepro::RoutingBuffers<Router> buffers(router, tokens);
  router.refresh(w_EH, 0, executor);
  const gatepro::NoReduce reduce;
  router.forward(x_TH, w_EH, {}, buffers, reduce, executor);
  router.forward_logits({}, buffers.view(), buffers.workspace(), reduce, executor);
  router.backward(x_TH, w_EH, {}, buffers, {dweights_TK}, {dx_TH, dw_EH}, executor);
  router.backward_logits({{}, buffers.view(), buffers.report()}, {dweights_TK}, dlogits_TE,
                         buffers.workspace(), executor);
  const std::vector<A> bias_E(experts);
  std::vector<A> dbias_E(experts);
  router.forward(x_TH, {w_EH, bias_E}, {}, buffers, reduce, executor);
  gatepro::GateGradients<A> gradients{dx_TH, dw_EH};
  gradients.dbias_E = dbias_E;
  router.backward(x_TH, w_EH, {}, buffers, {dweights_TK}, gradients, executor);
  router.end_step(reduce);
  router.restore(router.state());
}

template <class A>
void dispatch() {
  const std::vector<std::int32_t> zeros_TK(tokens * top_k);
  std::vector<std::int32_t> token_of_row_N(tokens * top_k), choice_of_row_N(tokens * top_k);
  std::vector<std::int64_t> offsets_E1(experts + 1);
  RowMatrix<std::int32_t> row_TK(tokens, top_k);
  std::vector<std::byte> scratch(gatepro::plan_dispatch_workspace_bytes(experts));
  gatepro::DispatchPlan<> plan;
  plan.offsets_E1 = offsets_E1;
  plan.token_of_row_N = token_of_row_N;
  plan.choice_of_row_N = choice_of_row_N;
  plan.row_TK = row_TK;
  const gatepro::StridedView<const std::int32_t> ids_TK(zeros_TK.data(), tokens, top_k);
  const Index rows = gatepro::plan_dispatch(gatepro::Choices{ids_TK}, experts,
                                            gatepro::DispatchRule{}, plan, scratch);

  RowMatrix<A> x_TH = zeros<A>(tokens, hidden), rows_NH = zeros<A>(rows, hidden);
  RowMatrix<A> weights_TK = zeros<A>(tokens, top_k);
  const auto drows_NH = gatepro::view(rows_NH);
  const auto dx_TH = gatepro::view(x_TH);
  const auto row_view_TK = gatepro::strided_view(row_TK);
  gatepro::permute(gatepro::VectorView<std::int32_t>(token_of_row_N), dx_TH, drows_NH);
  gatepro::permute_backward(row_view_TK, drows_NH, dx_TH);
  gatepro::combine(row_view_TK, gatepro::strided_view(weights_TK), drows_NH, dx_TH);
  gatepro::combine_backward_weights(row_view_TK, drows_NH, dx_TH,
                                    gatepro::strided_view(weights_TK));
  gatepro::permute_scaled(gatepro::VectorView<std::int32_t>(choice_of_row_N), weights_TK, dx_TH,
                          drows_NH);
  gatepro::permute_scaled_backward_weights(row_view_TK, dx_TH, drows_NH,
                                           gatepro::strided_view(weights_TK));
}

template <class A>
void measure() {
  const RowMatrix<A> similarity_EE = zeros<A>(experts, experts),
                     logits_TE = zeros<A>(tokens, experts);
  RowMatrix<std::int32_t> partners_EM = zeros<std::int32_t>(experts, 1);
  const RowMatrix<std::int32_t> ids_TK = RowMatrix<std::int32_t>::Constant(tokens, top_k, -1);
  std::vector<std::int64_t> counts_E(experts);
  const gatepro::VectorView<std::int64_t> counts(counts_E);
  const gatepro::NoReduce reduce;
  gatepro::LoadCounts loads(experts);
  loads.add(counts_E);
  loads.merge(loads);
  loads.all_reduce(reduce);
  gatepro::pairwise_similarity(gatepro::view(similarity_EE));
  gatepro::partner_similarity(gatepro::view(similarity_EE), partners_EM);
  gatepro::add_pairwise_histogram(gatepro::view(similarity_EE), counts);
  gatepro::add_partner_histogram(gatepro::view(similarity_EE), partners_EM, counts);
  gatepro::partner_graph(partners_EM, counts);
  gatepro::Coactivation pairs(experts);
  pairs.add(gatepro::Choices{gatepro::strided_view(ids_TK)});
  gatepro::MarginCounts margins;
  std::vector<std::byte> scratch(
      gatepro::count_margins_workspace_bytes<A>(experts, top_k, OwnExecutor()));
  gatepro::count_margins(gatepro::view(logits_TE), gatepro::RivalTable(partners_EM, true), {top_k},
                         {}, margins, scratch, OwnExecutor());
  gatepro::all_reduced(gatepro::PenaltyStatistics(), reduce);
  gatepro::LambdaEstimate lambda({0.1, 16});
  lambda.observe(gatepro::view(logits_TE), gatepro::RivalTable(), {top_k}, {}, scratch,
                 OwnExecutor());
  lambda.step(reduce);
  gatepro::describe(gatepro::diagnose({}));
}

}  // namespace

int main() {
  route<float, float>();
  route<double, double>();
  route<gatepro::bfloat16, float>();
  hash<std::int32_t>();
  hash<std::int64_t>();
  hash<std::uint64_t>();
  start_weights<float>();
  start_weights<double>();
  start_weights<gatepro::bfloat16>();
  start_weights<gatepro::half>();
  route_completely<float, float>();
  route_completely<double, double>();
  route_completely<gatepro::bfloat16, float>();
  dispatch<float>();
  dispatch<double>();
  measure<float>();
  measure<double>();
}
