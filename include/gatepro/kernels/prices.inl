// SPDX-License-Identifier: MIT
// Price kernels: what the shares of all experts cost, one token per lane.

template <class A>
GATEPRO_FN Lanes<A> price_of(const Prices<A>& prices, Index e) {
  return prices.prices_EL != nullptr ? Lanes<A>::load(prices.prices_EL + e * lanes_v<A>)
                                     : Lanes<A>::splat(prices.price_E[e]);
}

/// mean_L: the sum of share times price, in order of the experts.
template <class A>
GATEPRO_KERNEL void mean_prices(const A* shares_EL, Index experts, const Prices<A>& prices,
                                A* mean_L) {
  Lanes<A> mean = Lanes<A>::splat(A(0));
  for (Index e = 0; e < experts; ++e) {
    mean = mean + Lanes<A>::load(shares_EL + e * lanes_v<A>) * price_of<A>(prices, e);
  }
  mean.store(mean_L);
}

/// gradient_EL = factor * slope * (price - mean price).
template <class A>
GATEPRO_KERNEL void price_gradient(const A* slopes_EL, Index experts, const Prices<A>& prices,
                                   const A* mean_L, A factor, A* gradient_EL) {
  const Lanes<A> mean = Lanes<A>::load(mean_L);
  for (Index e = 0; e < experts; ++e) {
    const Lanes<A> slope = Lanes<A>::load(slopes_EL + e * lanes_v<A>);
    const Lanes<A> gradient = Lanes<A>::splat(factor) * slope * (price_of<A>(prices, e) - mean);
    gradient.store(gradient_EL + e * lanes_v<A>);
  }
}
