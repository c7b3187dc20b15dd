// SPDX-License-Identifier: MIT
// What the user can put right.
#ifndef TRAIN_MOE_ERROR_HPP
#define TRAIN_MOE_ERROR_HPP

#include "support/error.hpp"

namespace train_moe {

using report::UserError;

}  // namespace train_moe

#endif  // TRAIN_MOE_ERROR_HPP
