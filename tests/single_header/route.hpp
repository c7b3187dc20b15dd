// SPDX-License-Identifier: MIT
// What each of the two units does with the header: the same, so that they share inline functions.
#ifndef GATEPRO_TESTS_SINGLE_HEADER_ROUTE_HPP
#define GATEPRO_TESTS_SINGLE_HEADER_ROUTE_HPP

#include <cstdint>
#include <vector>

#include "gatepro_single.hpp"

#if defined(_OPENMP)
using Executor = gatepro::OpenMPExecutor;
#else
using Executor = gatepro::SerialExecutor;
#endif

using Ids = std::vector<std::int32_t>;

/// The other unit's.
Ids route_elsewhere(const gatepro::RowMatrix<float>& logits_TE);

/// The two experts of each token, by a router whose experts do not compete.
inline Ids route(const gatepro::RowMatrix<float>& logits_TE) {
  gatepro::RouterConfig config{/*hidden_size=*/1, logits_TE.cols(), /*top_k=*/2};
  config.competition = gatepro::Competition::off();
  const gatepro::Router<float> router(config);
  const Executor executor;
  gatepro::RoutingBuffers routing(router, logits_TE.rows(), executor.workers());
  router.forward_logits(logits_TE, routing.view(), routing.workspace(), executor);
  const auto ids_TK = routing.expert_ids_TK();
  return Ids(ids_TK.data, ids_TK.data + ids_TK.rows * ids_TK.cols);
}

#endif  // GATEPRO_TESTS_SINGLE_HEADER_ROUTE_HPP
