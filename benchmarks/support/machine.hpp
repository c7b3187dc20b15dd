// SPDX-License-Identifier: MIT
// The machine: what it can do at best, and whether we have it for ourselves.
#ifndef GATEPRO_BENCHMARKS_SUPPORT_MACHINE_HPP
#define GATEPRO_BENCHMARKS_SUPPORT_MACHINE_HPP

#include <string>

#include "support/jobs.hpp"

namespace bench {

/// Multiplications and additions in registers of the instruction set in use, nothing else.
Run fma_peak();
/// Floating-point operations of one such run.
double fma_peak_operations();

/// Keeps freed memory in the process, so that libraries that allocate their results in each call
/// do not pay for fresh pages each time.
void keep_freed_memory();

/// Processors that others keep busy, looked at while this process sleeps for half a second.
double processors_busy_elsewhere();

/// The load averages, as the system prints them.
std::string load_average();

/// Processor, compiler and instruction set, one per line.
std::string describe_machine();

}  // namespace bench

#endif  // GATEPRO_BENCHMARKS_SUPPORT_MACHINE_HPP
