# SPDX-License-Identifier: MIT
"""A mixture-of-experts router in which similar experts compete for tokens."""
import torch
from torch import nn

import gatepro_ops

ops = gatepro_ops.load()


class GateProRouter(nn.Module):
    """Routes tokens [..., H]: returns raw logits [T, E], weights [T, K] and int64 ids [T, K].

    weight [E, H] is the router's matrix. Competition is off with penalty=0; set_competition changes
    it between any two forwards. Call refresh() after each optimizer step, or every few.
    """

    def __init__(self, hidden_size, num_experts, top_k, *, penalty=1e-4, eliminate=False,
                 score="softmax_after_top_k", renormalise=False, partners_per_expert=1):
        super().__init__()
        self.top_k, self.score, self.renormalise = top_k, score, renormalise
        self.weight = nn.Parameter(torch.randn(num_experts, hidden_size) * 0.02)
        partners = ops.find_partners(self.weight.detach(), partners_per_expert)
        self.register_buffer("partners", partners)  # int32: casts of the module leave it alone
        self.set_competition(penalty, eliminate)

    def set_competition(self, penalty=1e-4, eliminate=False):
        self.penalty, self.eliminate = penalty, eliminate

    def refresh(self):
        """Finds the partners of the present weights."""
        self.partners.copy_(ops.find_partners(self.weight.detach(), self.partners.size(1)))

    def forward(self, hidden_states, is_padding=None):
        x = hidden_states.reshape(-1, hidden_states.size(-1))
        weights, expert_ids, logits = ops.route(
            x, self.weight, self.partners, self.top_k, penalty=self.penalty,
            eliminate=self.eliminate, score=self.score, renormalise=self.renormalise,
            is_padding=is_padding)
        return logits, weights, expert_ids
