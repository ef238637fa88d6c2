"""Rates that depend on the position in the sequence, and how a fraction is spread over positions."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from research_stack.require import require


class Positional:
    """Relative rates along the positions that may be corrupted; the row's mean rate stays what it was.

    - start, end: relative rate at the first and at the last of them. 0 and 1: only later positions are hard.
    - shape: `linear`, or `cosine` (flat at both ends).
    """

    def __init__(self, start: float = 0.5, end: float = 1.5, shape: Literal["linear", "cosine"] = "linear") -> None:
        require(
            start >= 0 and end >= 0 and start + end > 0, f"start={start} and end={end} must not be negative, nor both 0"
        )
        self.start, self.end, self.shape = start, end, shape

    def __call__(self, open_BL: Tensor) -> Tensor:
        """(B, L) float64 weights, 0 where `open_BL` is False."""
        rank_BL = open_BL.cumsum(1) - 1
        place_BL = rank_BL.double() / (open_BL.sum(1, keepdim=True) - 1).clamp_min(1)
        if self.shape == "cosine":
            place_BL = (1 - torch.cos(math.pi * place_BL)) / 2
        return (self.start + (self.end - self.start) * place_BL) * open_BL


def spread(fraction_B: Tensor, weight_BL: Tensor, open_BL: Tensor) -> Tensor:
    """Probabilities p_BL = min(1, c_b * weight) whose sum over each row's open positions is fraction * their number.

    Where a probability would pass 1 the excess goes to the others, in proportion to their weights. Positions of
    weight 0 get none, so a row whose positive weights are too few stays below its fraction.
    """
    target_B1 = (fraction_B * open_BL.sum(1)).unsqueeze(1)
    p_BL = torch.zeros_like(weight_BL)
    for _ in range(16):  # each round saturates at least one position or ends; what is left shrinks geometrically
        free_BL = weight_BL * (p_BL < 1)
        missing_B1 = target_B1 - p_BL.sum(1, keepdim=True)
        p_BL = (p_BL + missing_B1 * free_BL / free_BL.sum(1, keepdim=True).clamp_min(1e-300)).clamp_max(1)
    return p_BL
