// SPDX-License-Identifier: MIT
// The same bits from the host compiler as from nvcc?
#include <cstdint>
#include <cstdio>

std::uint64_t route_host();
std::uint64_t route_nvcc();

int main() {
  const auto host = static_cast<unsigned long long>(route_host());
  const auto nvcc = static_cast<unsigned long long>(route_nvcc());
  std::printf("host %016llx, nvcc %016llx\n", host, nvcc);
  return host == nvcc ? 0 : 1;
}
