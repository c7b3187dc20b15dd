# SPDX-License-Identifier: MIT
"""A byte-level transformer whose feed-forward layers are mixtures of experts."""
import torch
from torch import nn
from torch.nn import functional as F

from gatepro_router import GateProRouter


class SparseMoeBlock(nn.Module):
    """A router in `gate` and its experts, as the blocks of Hugging Face's models are built."""

    def __init__(self, width, num_experts, top_k, expert_hidden):
        super().__init__()
        self.gate = GateProRouter(width, num_experts, top_k)
        self.up = nn.Parameter(torch.randn(num_experts, width, expert_hidden) / width**0.5)
        self.down = nn.Parameter(torch.randn(num_experts, expert_hidden, width) / expert_hidden**0.5)

    def forward(self, hidden_states):
        """hidden_states [B, S, H] -> the same shape, and the router's logits [B S, E]."""
        x = hidden_states.reshape(-1, hidden_states.size(-1))
        router_logits, weights, expert_ids = self.gate(x)
        self.expert_ids = expert_ids.detach()
        y = torch.zeros_like(x)
        for expert in expert_ids.unique().tolist():
            token, choice = (expert_ids == expert).nonzero(as_tuple=True)
            out = F.gelu(x[token] @ self.up[expert]) @ self.down[expert]
            y = y.index_add(0, token, (out * weights[token, choice, None]).to(y.dtype))
        return y.reshape(hidden_states.shape), router_logits


class Layer(nn.Module):
    def __init__(self, width, heads, **moe):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.moe = SparseMoeBlock(width, **moe)

    def forward(self, x, mask):
        normed = self.norm1(x)
        x = x + self.attention(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        y, router_logits = self.moe(self.norm2(x))
        return x + y, router_logits


class MoeTransformer(nn.Module):
    """context: the bytes that it sees at once."""

    def __init__(self, context=64, width=64, heads=4, layers=2, num_experts=16, top_k=2,
                 expert_hidden=64):
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, width), nn.Embedding(context, width)
        self.layers = nn.ModuleList(
            Layer(width, heads, num_experts=num_experts, top_k=top_k, expert_hidden=expert_hidden)
            for _ in range(layers))
        self.norm, self.output = nn.LayerNorm(width), nn.Linear(width, 256)

    def forward(self, text):
        """text [B, C] -> logits of the next bytes [B, C, 256], and each layer's router logits."""
        length = text.size(1)
        mask = torch.full((length, length), float("-inf"), device=text.device).triu(1)
        x = self.bytes(text) + self.places.weight[:length]
        router_logits = []
        for layer in self.layers:
            x, logits = layer(x, mask)
            router_logits.append(logits)
        return self.output(self.norm(x)), router_logits

    def routers(self):
        return [layer.moe.gate for layer in self.layers]
