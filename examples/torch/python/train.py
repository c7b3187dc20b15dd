# SPDX-License-Identifier: MIT
"""Trains a small mixture-of-experts transformer without competition, with it, and with it from the
middle on."""
import argparse
import pathlib

import torch
from torch.nn import functional as F

from moe_transformer import MoeTransformer


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", help="file to learn from [the headers of this library]")
    parser.add_argument("--arms", default="off,published,eliminate,swap",
                        help="off, published (1e-4), eliminate, swap (eliminate from the middle on)")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    options = parser.parse_args()
    options.arms = options.arms.split(",")
    for arm in options.arms:
        if arm not in ("off", "published", "eliminate", "swap"):
            parser.error(f"unknown arm '{arm}': choose from off, published, eliminate, swap")
    if options.steps < 1:
        parser.error("--steps must be 1 or more")
    return parser, options


def read(path):
    if path:
        return pathlib.Path(path).read_bytes()
    headers = pathlib.Path(__file__).resolve().parents[3] / "include/gatepro"
    return b"".join(path.read_bytes() for path in sorted(headers.rglob("*.hpp")))


def batch(text, generator, count=16, length=64):
    start = torch.randint(len(text) - length, (count,), generator=generator)
    rows = text[start[:, None] + torch.arange(length + 1)]
    return rows[:, :-1], rows[:, 1:]


def compete(model, arm, step, steps):
    on = arm == "published" or arm == "eliminate" or (arm == "swap" and step >= steps // 2)
    for router in model.routers():
        router.set_competition(1e-4 if on else 0, eliminate=on and arm != "published")


def load_balance(router_logits, blocks):
    """The Switch Transformer's loss, from raw logits: 1 for equal loads, mean over layers."""
    losses = []
    for logits, block in zip(router_logits, blocks):
        load = block.expert_ids.flatten().bincount(minlength=logits.size(1)) / block.expert_ids.numel()
        losses.append(logits.size(1) * (load * logits.softmax(1).mean(0)).sum())
    return sum(losses) / len(losses)


def together(block):
    """Of the choices, how many stand beside their partner."""
    partners = block.gate.partners[:, 0].long()
    ids = block.expert_ids
    return (partners[ids][:, :, None] == ids[:, None, :]).any(2).float().mean().item()


def train(arm, text, options):
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    model = MoeTransformer()
    blocks = [layer.moe for layer in model.layers]
    optimizer = torch.optim.AdamW(model.parameters(), options.learning_rate)
    for step in range(options.steps):
        compete(model, arm, step, options.steps)
        context, following = batch(text, generator)
        logits, router_logits = model(context)
        loss = F.cross_entropy(logits.flatten(0, 1), following.flatten())
        optimizer.zero_grad()
        (loss + 1e-2 * load_balance(router_logits, blocks)).backward()
        optimizer.step()
        if (step + 1) % max(1, options.steps // 4) == 0:
            idle = sum(block.gate.weight.size(0) - block.expert_ids.unique().numel()
                       for block in blocks)
            share = sum(together(block) for block in blocks) / len(blocks)
            print(f"{arm:10} step {step + 1:5}: loss {loss.item():.4f}, {idle} experts idle, "
                  f"{share:.3f} of choices beside their partner", flush=True)
        for router in model.routers():
            router.refresh()


def main():
    parser, options = parse()
    try:
        text = torch.tensor(list(read(options.text)), dtype=torch.long)
    except OSError as error:
        parser.error(str(error))
    if len(text) < 128:
        parser.error(f"the text has {len(text)} bytes: give 128 or more")
    for arm in options.arms:
        train(arm, text, options)


if __name__ == "__main__":
    main()
