// SPDX-License-Identifier: MIT
// Stands in for a peer that was not found; built with ABSENT_PEER set to its name.
#include "peers/peer.hpp"

namespace bench {
namespace peers {

const Peer ABSENT_PEER{};

}  // namespace peers
}  // namespace bench
