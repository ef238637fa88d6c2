"""The confidence before a token, as the model reads it: normalised, shifted by one position, spread over features.

a_0 = 0 and a_j = c_{j-1}, in units of the running deviation around the running mean of the confidences, so that 0 is
"as sure as usual". No confidence is passed on across the end of a document.

Shapes: B sequences, L positions, C features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

RATE = 0.01  # share of a step's statistics in the running ones, once there have been 100 steps
MIN_DEVIATION = 0.1  # nats: deviations below it are taken as this; a fresh head predicts a constant
MAX_DEVIATIONS = 3.0  # deviations: outermost feature centres


class Normaliser(nn.Module):
    """(c - mean) / deviation with running statistics that training updates once a step."""

    def __init__(self) -> None:
        super().__init__()
        self.mean: Tensor
        self.variance: Tensor
        self.steps: Tensor
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("variance", torch.ones(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def deviation(self) -> Tensor:
        """Of the confidences, in nats."""
        return self.variance.sqrt().clamp_min(MIN_DEVIATION)

    def forward(self, confidence_BL: Tensor) -> Tensor:
        """Confidences in running deviations from the running mean."""
        return (confidence_BL - self.mean) / self.deviation

    @torch.no_grad()
    def update(self, mean: Tensor, variance: Tensor) -> None:
        """Move towards the statistics of a step; the first 100 steps count alike."""
        rate = (1.0 / (self.steps + 1)).clamp_min(RATE)
        self.mean.lerp_(mean.to(self.mean), rate.to(self.mean))
        self.variance.lerp_(variance.to(self.variance), rate.to(self.variance))
        self.steps += 1


def zero_at_document_end(normalised_BL: Tensor, tokens_BL: Tensor, end: int) -> Tensor:
    """(B, L) what the token after each reads: its confidence, but 0 across the end of a document."""
    return normalised_BL.masked_fill(tokens_BL == end, 0.0)


def shift_right(normalised_BL: Tensor, first_B: Tensor, tokens_BL: Tensor, end: int) -> Tensor:
    """(B, L) a_0 = first, a_j = c_{j-1}."""
    return torch.cat(
        (first_B.unsqueeze(1).to(normalised_BL.dtype), zero_at_document_end(normalised_BL, tokens_BL, end)[:, :-1]),
        dim=1,
    )


def confidence_features(previous_BL: Tensor, count: int) -> Tensor:
    """(B, L, C) Gaussian bumps, evenly spaced up to MAX_DEVIATIONS on both sides, as wide as their distance: smooth,
    bounded, and enough for a linear layer to make any smooth function of the confidence.
    """
    centres_C = torch.linspace(
        -MAX_DEVIATIONS, MAX_DEVIATIONS, count, device=previous_BL.device, dtype=previous_BL.dtype
    )
    width = 2 * MAX_DEVIATIONS / max(1, count - 1)
    return torch.exp(
        -0.5 * ((previous_BL.clamp(-MAX_DEVIATIONS, MAX_DEVIATIONS).unsqueeze(-1) - centres_C) / width).square()
    )
