// SPDX-License-Identifier: MIT
// What the router must not accept: each fault is one argument of a step that is right otherwise.
#include <gatepro/gatepro.hpp>

struct OwnExecutor {
  int workers() const { return 1; }
#if !defined(FAULT_executor_without_run)
  template <class Body>
  void run(int count, Body body) const {
    for (int w = 0; w < count; ++w) body(w);
  }
#endif
};

#if defined(FAULT_column_major)
using Tokens = Eigen::MatrixXf;
#elif defined(FAULT_wrong_scalar)
using Tokens = gatepro::RowMatrix<double>;
#else
using Tokens = gatepro::RowMatrix<float>;
#endif

#if defined(FAULT_id_type)
using Id = std::int16_t;
#else
using Id = std::int32_t;
#endif

#if defined(FAULT_const_output)
using Gradient = const gatepro::RowMatrix<float>;
#else
using Gradient = gatepro::RowMatrix<float>;
#endif

#if defined(FAULT_accumulator)
using Accumulator = double;
#else
using Accumulator = float;
#endif

void step(const Tokens& x_TH, const gatepro::RowMatrix<float>& w_EH,
          const gatepro::RowMatrix<float>& dweights_TK, Gradient& dx_TH,
          gatepro::RowMatrix<float>& dw_EH, gatepro::RowMatrix<Accumulator>& logits_TE,
          gatepro::Workspace workspace) {
  gatepro::Router<float, float, Id> router({8, 4, 2});
#if defined(FAULT_bool_for_workers)
  gatepro::RoutingBuffers buffers(router, x_TH.rows(), true);
#else
  gatepro::RoutingBuffers buffers(router, x_TH.rows(), 1);
#endif
#if defined(FAULT_expression)
  router.forward(2 * x_TH, w_EH, buffers, OwnExecutor{});
#elif defined(FAULT_temporary)
  router.forward(Tokens(x_TH), w_EH, buffers, OwnExecutor{});
#else
  router.forward(x_TH, w_EH, buffers, OwnExecutor{});
#endif
  router.backward(x_TH, w_EH, buffers, {dweights_TK}, {dx_TH, dw_EH});
#if defined(FAULT_narrow_gradient)
  gatepro::RowMatrix<gatepro::bfloat16> narrow_TH;
  router.backward(x_TH, w_EH, buffers, {dweights_TK},
                  gatepro::GateGradients<float, gatepro::bfloat16>{narrow_TH, dw_EH});
#endif
  gatepro::RowMatrix<float> penalised_TE, selected_TK;
  gatepro::RowMatrix<std::uint8_t> loser_TE;
  gatepro::RowMatrix<std::int32_t> ids_TK;
  [[maybe_unused]] const gatepro::EliminatedExperts eliminated = gatepro::apply_competition(
      gatepro::view(penalised_TE), router.similarity_cache().rivals(), router.config().competition,
      gatepro::view(penalised_TE), gatepro::view(loser_TE), workspace);
#if defined(FAULT_losers_as_eliminated)
  gatepro::select_top_k(gatepro::view(penalised_TE), gatepro::view(loser_TE),
                        gatepro::strided_view(ids_TK), gatepro::strided_view(selected_TK),
                        workspace);
#else
  gatepro::select_top_k(gatepro::view(penalised_TE), eliminated, gatepro::strided_view(ids_TK),
                        gatepro::strided_view(selected_TK), workspace);
#endif
#if defined(FAULT_view_of_temporary)
  gatepro::gate_logits(gatepro::view(Tokens(x_TH)), gatepro::view(w_EH), gatepro::view(logits_TE),
                       workspace);
#elif defined(FAULT_view_of_columns)
  gatepro::gate_logits(gatepro::view(x_TH.transpose()), gatepro::view(w_EH),
                       gatepro::view(logits_TE), workspace);
#elif defined(FAULT_stage_executor)
  gatepro::gate_logits(gatepro::view(x_TH), gatepro::view(w_EH), gatepro::view(logits_TE),
                       workspace, 4);
#else
  gatepro::gate_logits(gatepro::view(x_TH), gatepro::view(w_EH), gatepro::view(logits_TE),
                       workspace);
#endif
}
