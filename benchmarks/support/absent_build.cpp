// SPDX-License-Identifier: MIT
// Stands in for a build whose compiler was not found.
#include "support/build.hpp"

namespace bench {
namespace builds {

const Build BUILD{};

}  // namespace builds
}  // namespace bench
