// SPDX-License-Identifier: MIT
// What clang-tidy reads the headers through.
#include <gatepro/gatepro.hpp>

template class gatepro::Router<float>;
template class gatepro::CompleteRouter<float>;
