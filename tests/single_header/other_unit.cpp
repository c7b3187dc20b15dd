// SPDX-License-Identifier: MIT
#include "single_header/route.hpp"

Ids route_elsewhere(const gatepro::RowMatrix<float>& logits_TE) { return route(logits_TE); }
