// SPDX-License-Identifier: MIT
#include "support/machine.hpp"

#include <malloc.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <limits>
#include <sstream>
#include <thread>

#include "peers/peer.hpp"
#include "support/ours.hpp"

namespace bench {
namespace {

/// Seconds that all processors together spent neither idle nor waiting for disks.
double busy_seconds() {
  std::ifstream stat("/proc/stat");
  std::string name;
  double user = 0, nice = 0, system = 0, idle = 0, wait = 0, interrupt = 0, soft = 0, steal = 0;
  stat >> name >> user >> nice >> system >> idle >> wait >> interrupt >> soft >> steal;
  const auto ticks_per_second = static_cast<double>(sysconf(_SC_CLK_TCK));
  return (user + nice + system + interrupt + soft + steal) / ticks_per_second;
}

std::string processor() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

std::string compiler() {
#if defined(__clang__)
  return std::string("clang++ ") + __clang_version__;
#else
  return std::string("g++ ") + __VERSION__;
#endif
}

}  // namespace

void keep_freed_memory() {
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
}

double processors_busy_elsewhere() {
  const std::chrono::duration<double> window(0.5);
  const double before = busy_seconds();
  std::this_thread::sleep_for(window);
  return (busy_seconds() - before) / window.count();
}

std::string load_average() {
  std::ifstream file("/proc/loadavg");
  std::string one, five, fifteen;
  file >> one >> five >> fifteen;
  return one + " " + five + " " + fifteen;
}

std::string describe_machine() {
  std::ostringstream text;
  text << "processor        " << processor() << ", " << std::thread::hardware_concurrency()
       << " threads\n"
       << "compiler         " << compiler() << ", gatepro built with " BENCH_FLAGS "\n"
       << "instruction set  " << ours::instruction_set() << '\n'
       << "OpenBLAS core    "
       << (peers::openblas.core_name == nullptr ? "not found" : peers::openblas.core_name())
       << '\n';
  return text.str();
}

}  // namespace bench
