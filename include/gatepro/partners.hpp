// SPDX-License-Identifier: MIT
// Partners: which experts point the same way, and so compete (GatePro eq. 5-6).
//
//   W ─► cosine similarity, tile by tile ─► the best of each row ─► partners ─► rivals
//            └─► S, if it is kept
//
// similarity_cache.hpp owns all of it and knows when it is due: every step, every n steps, once, or
// on demand. Partners may also come from outside, from another rank or a checkpoint. Rivals are the
// partners as the competition reads them: one or several for each expert, from one side or both.
#ifndef GATEPRO_PARTNERS_HPP
#define GATEPRO_PARTNERS_HPP

#include "gatepro/partners/cosine_similarity.hpp"
#include "gatepro/partners/orthogonality_loss.hpp"
#include "gatepro/partners/pairing.hpp"
#include "gatepro/partners/search.hpp"
#include "gatepro/partners/settings.hpp"
#include "gatepro/partners/similarity_cache.hpp"

#endif  // GATEPRO_PARTNERS_HPP
