// SPDX-License-Identifier: MIT
// States the version of gatepro, once: CMake and pkg-config read it from here.
#ifndef GATEPRO_CORE_VERSION_HPP
#define GATEPRO_CORE_VERSION_HPP

#define GATEPRO_VERSION_MAJOR 0
#define GATEPRO_VERSION_MINOR 1
#define GATEPRO_VERSION_PATCH 0

#endif  // GATEPRO_CORE_VERSION_HPP
