// SPDX-License-Identifier: MIT
// Competition kernels: who loses, and what it pays.

/// The keys after competition with a rival.
template <class A, bool eliminate>
GATEPRO_FN Keys<A> key_after(Keys<A> own, Keys<A> rival, Lanes<A> penalty) {
  // A NaN, which ranks lower than all of these, keeps its key.
  Keys<A> lowered = Keys<A>::splat(Order<A>::loser);
  if constexpr (!eliminate) lowered = number_keys<A>(to_values<A>(own) - penalty);
  return select(own < rival, smaller(lowered, own), own);
}

template <class A, bool eliminate>
GATEPRO_FN void compete_with_one(const BitsOf<A>* keys_EL, Index experts,
                                 const CompetitionRule<A>& rule, BitsOf<A>* ranked_EL) {
  constexpr int L = lanes_v<A>;
  const std::int32_t* rival_E = rule.rivals.only;
  const Lanes<A> penalty = Lanes<A>::splat(rule.lambda);
  GATEPRO_UNROLL_2
  for (Index e = 0; e < experts; ++e) {
    const Keys<A> own = Keys<A>::load(keys_EL + e * L);
    const Keys<A> rival = Keys<A>::load(keys_EL + Index(rival_E[e]) * L);
    key_after<A, eliminate>(own, rival, penalty).store(ranked_EL + e * L);
  }
}

/// The same with the best of several rivals, for any rule: one of lower id that wins ties has a key
/// of one more.
template <class A>
GATEPRO_FN void compete_with_several(const BitsOf<A>* keys_EL, Index experts,
                                     const CompetitionRule<A>& rule, BitsOf<A>* ranked_EL) {
  constexpr int L = lanes_v<A>;
  const RivalView& rivals = rule.rivals;
  const Lanes<A> penalty = Lanes<A>::splat(rule.lambda);
  for (Index e = 0; e < experts; ++e) {
    const Keys<A> own = Keys<A>::load(keys_EL + e * L);
    Keys<A> best = Keys<A>::splat(Order<A>::lowest);
    for (std::int32_t i = rivals.begin[e]; i < rivals.begin[e + 1]; ++i) {
      const Index rival = rivals.ids[i];
      const Keys<A> wins_tie = Keys<A>::splat(rule.ties_lose & (rival < e));
      best = larger(best, Keys<A>::load(keys_EL + rival * L) + wins_tie);
    }
    const Keys<A> ranked = rule.eliminate ? key_after<A, true>(own, best, penalty)
                                          : key_after<A, false>(own, best, penalty);
    ranked.store(ranked_EL + e * L);
  }
}

/// ranked_EL = keys_EL, with the losers' keys lowered: to the key of their logit minus lambda, or
/// to Order::loser. An expert loses if its key is strictly below that of any rival, or with
/// `ties_lose` equal to that of a rival of lower id; NaNs never do.
template <class A>
GATEPRO_KERNEL void compete(const BitsOf<A>* keys_EL, Index experts, const CompetitionRule<A>& rule,
                            BitsOf<A>* ranked_EL) {
  if (rule.rivals.only == nullptr || rule.ties_lose) {
    compete_with_several<A>(keys_EL, experts, rule, ranked_EL);
  } else if (rule.eliminate) {
    compete_with_one<A, true>(keys_EL, experts, rule, ranked_EL);
  } else {
    compete_with_one<A, false>(keys_EL, experts, rule, ranked_EL);
  }
}

/// Row t of lost_TK = 1 where the expert that token t selected had lost to a rival, as in
/// `compete`, else 0; elements stand col_stride apart.
template <class A, bool several>
GATEPRO_FN void mark_losers_as(const BitsOf<A>* keys_EL, const BitsOf<A>* ids_KL, Index k,
                               const RivalView& rivals, bool ties_lose, Index tokens,
                               std::uint8_t* lost_TK, Index row_stride, Index col_stride) {
  constexpr Index L = lanes_v<A>;
  for (Index j = 0; j < k; ++j) {
    for (Index lane = 0; lane < tokens; ++lane) {
      const BitsOf<A>* keys_E = keys_EL + lane;  // every L-th element
      const auto e = Index(ids_KL[j * L + lane]);
      const BitsOf<A> own = keys_E[e * L];
      bool below = false;
      if constexpr (several) {
        for (std::int32_t r = rivals.begin[e]; r < rivals.begin[e + 1]; ++r) {
          const Index rival = rivals.ids[r];
          below |= own < keys_E[rival * L] + BitsOf<A>(ties_lose & (rival < e));
        }
      } else {
        below = own < keys_E[Index(rivals.only[e]) * L];
      }
      lost_TK[lane * row_stride + j * col_stride] = below & (own != Order<A>::nan);
    }
  }
}

template <class A>
GATEPRO_KERNEL void mark_losers(const BitsOf<A>* keys_EL, const BitsOf<A>* ids_KL, Index k,
                                const RivalView& rivals, bool ties_lose, Index tokens,
                                std::uint8_t* lost_TK, Index row_stride, Index col_stride) {
  if (rivals.only == nullptr || ties_lose) {
    mark_losers_as<A, true>(keys_EL, ids_KL, k, rivals, ties_lose, tokens, lost_TK, row_stride,
                            col_stride);
  } else {
    mark_losers_as<A, false>(keys_EL, ids_KL, k, rivals, ties_lose, tokens, lost_TK, row_stride,
                             col_stride);
  }
}

/// The penalised logits of up to L tokens: values of the ranked keys that differ from the logits',
/// elsewhere the logits' own bits.
template <class A>
GATEPRO_KERNEL void store_penalised(const BitsOf<A>* keys_EL, const BitsOf<A>* ranked_EL,
                                    Index experts, Index tokens, const A* logits,
                                    Index logits_stride, A* out, Index out_stride) {
  constexpr int L = lanes_v<A>;
  // No penalised logit is a NaN: NaNs pay nothing.
  const Lanes<A> not_paid = bit_cast<A>(Keys<A>::splat(Order<A>::quiet_nan_bits));
  for (Index e = 0; e < experts; e += L) {
    const int n = experts - e < L ? int(experts - e) : L;
    Lanes<A> block[std::size_t(L)];
    GATEPRO_UNROLL
    for (int i = 0; i < L; ++i) {
      const Index expert = i < n ? e + i : e;
      const Keys<A> ranked = Keys<A>::load(ranked_EL + expert * L);
      const auto same = ranked == Keys<A>::load(keys_EL + expert * L);
      block[i] = select(same, not_paid, to_values<A>(ranked));
    }
    transpose<A>(block);
    GATEPRO_UNROLL
    for (int r = 0; r < L; ++r) {
      if (r >= tokens) break;
      const Lanes<A> own = load_as<A>(logits + r * logits_stride + e, n);
      const auto paid_nothing = bit_cast<BitsOf<A>>(block[r]) == bit_cast<BitsOf<A>>(not_paid);
      store_first<A>(select(paid_nothing, own, block[r]), out + r * out_stride + e, n);
    }
  }
}
