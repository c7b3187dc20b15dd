// SPDX-License-Identifier: MIT
// The files that this program writes, and the programs that it runs.
#ifndef TRAIN_MOE_OUTPUT_HPP
#define TRAIN_MOE_OUTPUT_HPP

#include "error.hpp"
#include "support/output_file.hpp"
#include "support/programs.hpp"

namespace train_moe {

using report::can_run;
using report::make_folder;
using report::OutputFile;
using report::quoted;

}  // namespace train_moe

#endif  // TRAIN_MOE_OUTPUT_HPP
