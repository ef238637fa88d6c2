"""Attention from some states to others of another width, in few numbers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from research_stack.backbones.norm import RMSNorm


class CrossAttention(nn.Module):
    """What queries (B, L, D) take from states (B, P, H), as (B, L, D); the queries are normalised first.

    - dim, states_dim: D and H. width, heads: of the attention; heads divide width.
    - dropout: of what is taken, in training.
    - stream: of the initial weights.
    """

    def __init__(
        self, dim: int, states_dim: int, width: int, heads: int, dropout: float, stream: torch.Generator
    ) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.drop = RMSNorm(dim), nn.Dropout(dropout)
        self.query = nn.Linear(dim, width, bias=False)
        self.key, self.value = (nn.Linear(states_dim, width, bias=False) for _ in range(2))
        self.out = nn.Linear(width, dim, bias=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=stream)

    def forward(self, x_BLD: Tensor, states_BPH: Tensor) -> Tensor:
        """(B, L, D), to be added to the queries or not."""
        q_BGLE = self._heads(self.query(self.norm(x_BLD)))
        k_BGPE, v_BGPE = self._heads(self.key(states_BPH)), self._heads(self.value(states_BPH))
        taken_BGLE = F.scaled_dot_product_attention(q_BGLE, k_BGPE, v_BGPE)
        return self.drop(self.out(taken_BGLE.transpose(1, 2).flatten(2)))

    def _heads(self, x_BLW: Tensor) -> Tensor:
        """(B, heads, L, width of one)."""
        return x_BLW.unflatten(-1, (self.heads, -1)).transpose(1, 2)
