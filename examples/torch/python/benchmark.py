# SPDX-License-Identifier: MIT
"""CPU time of GateProRouter beside that of the plain router in torch, on one thread: the medians of
the ratios of runs that alternate."""
import argparse
import os
import statistics
import sys
import time

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"

import torch

from gatepro_router import GateProRouter


def plain(x, w, top_k):
    """linear, topk, softmax."""
    logits, expert_ids = torch.topk(torch.nn.functional.linear(x, w), top_k)
    return logits.softmax(1), expert_ids


def seconds(work):
    start = time.process_time()
    work()
    return time.process_time() - start


def median_ratio(theirs, ours, repeats):
    theirs(), ours()
    return statistics.median(seconds(theirs) / seconds(ours) for _ in range(repeats))


def measure(tokens, hidden, experts, top_k, repeats):
    """Ratios of forward, and of forward with backward to tokens and weights."""
    torch.manual_seed(0)
    router = GateProRouter(hidden, experts, top_k)
    x = torch.randn(tokens, hidden, requires_grad=True)
    upstream = torch.randn(tokens, top_k)

    def forward(route):
        with torch.no_grad():
            route()

    def learn(route):
        x.grad = router.weight.grad = None
        route().backward(upstream)

    def ours():
        return router(x)[1]

    def theirs():
        return plain(x, router.weight, top_k)[0]

    return [median_ratio(lambda: run(theirs), lambda: run(ours), repeats)
            for run in (forward, learn)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--bars", action="store_true", help="fail where a ratio misses its bar")
    options = parser.parse_args()
    torch.set_num_threads(1)
    missed = False
    for experts, bars in ((64, (2.0, 1.6)), (128, (1.7, 1.6))):
        ratios = measure(options.tokens, options.hidden, experts, options.top_k, options.repeats)
        missed = missed or any(ratio < bar for ratio, bar in zip(ratios, bars))
        print(f"E = {experts}: time of torch / ours: forward {ratios[0]:.2f} (bar {bars[0]}), "
              f"with backward {ratios[1]:.2f} (bar {bars[1]})")
    sys.exit(1 if missed and options.bars else 0)


if __name__ == "__main__":
    main()
