"""Confidence heads: from a hidden state to the predicted future loss, in nats.

| name     | prediction                              | loss of a position against the target f |
| -------- | --------------------------------------- | --------------------------------------- |
| scalar   | w h + b                                 | (c - f)^2                                |
| softplus | log(1 + e^(w h + b)), never negative    | (c - f)^2                                |
| two_hot  | mean of a distribution over bin centres | cross entropy against f spread over its two nearest centres |

Future losses have two humps, one where the own token was right and one where it was not; `two_hot` (Hafner et al. 2023,
DreamerV3, appendix B) fits their distribution. Every head predicts 2.0 nats at the start (two_hot 2.04: its unit normal
around 2 is cut at 0).

Shapes: (...) positions, D width, N bins.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from research_stack.streams import generator

START = 2.0  # nats
TOP, BINS = 12.0, 49  # centres from 0 to TOP nats, a quarter of a nat apart


class Scalar(nn.Module):
    """w h + b, squared error.

    - dim: D. width: units of a hidden layer (GELU) between; 0: none. What a language model says of its own certainty is
      no linear function of its last hidden states, which makes a hidden layer worth its weights.
    """

    outputs = 1

    def __init__(self, dim: int, width: int = 0, seed: int = 0) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, width) if width else None
        if self.hidden is not None:
            nn.init.normal_(self.hidden.weight, std=dim**-0.5, generator=generator(seed, "init", "head"))
            nn.init.zeros_(self.hidden.bias)
        self.weight = nn.Parameter(torch.zeros(self.outputs, width or dim))
        self.bias = nn.Parameter(torch.full((1,), self.raw_start()))

    @staticmethod
    def raw_start() -> float:
        """The bias that predicts START."""
        return START

    def forward(self, hidden_xD: Tensor) -> Tensor:
        """(..., N) float32 numbers that `prediction` and `losses` read: in full precision, since c - f is a small
        difference.
        """
        accurate = torch.promote_types(hidden_xD.dtype, torch.float32)
        if self.hidden is not None:
            hidden_xD = F.gelu(self.hidden(hidden_xD))
        with torch.autocast(hidden_xD.device.type, enabled=False):
            return F.linear(hidden_xD.to(accurate), self.weight.to(accurate), self.bias.to(accurate))

    def prediction(self, raw_xN: Tensor) -> Tensor:
        """(...) predicted future loss in nats."""
        return raw_xN.squeeze(-1)

    def losses(self, raw_xN: Tensor, future_x: Tensor) -> Tensor:
        """(...) loss of each position; no gradient flows into the target."""
        return (self.prediction(raw_xN) - future_x.detach()).square()


class Softplus(Scalar):
    """log(1 + e^(w h + b)), squared error."""

    @staticmethod
    def raw_start() -> float:
        """The bias that predicts START."""
        return math.log(math.expm1(START))

    def prediction(self, raw_xN: Tensor) -> Tensor:
        """(...) predicted future loss in nats, positive."""
        return F.softplus(raw_xN.squeeze(-1))


class TwoHot(Scalar):
    """A distribution over BINS centres from 0 to TOP nats, cross entropy."""

    outputs = BINS

    def __init__(self, dim: int, width: int = 0, seed: int = 0) -> None:
        super().__init__(dim, width, seed)
        self.centres_N: Tensor
        self.register_buffer("centres_N", torch.linspace(0, TOP, BINS), persistent=False)
        self.bias = nn.Parameter(-0.5 * (self.centres_N - START).square())  # a unit normal around START, cut at 0

    def prediction(self, raw_xN: Tensor) -> Tensor:
        """(...) mean of the distribution, in nats."""
        return raw_xN.softmax(-1) @ self.centres_N.to(raw_xN.dtype)

    def losses(self, raw_xN: Tensor, future_x: Tensor) -> Tensor:
        """(...) cross entropy against the two centres around the target (those beyond TOP count as TOP)."""
        position_x = future_x.detach().clamp(0, TOP) * ((BINS - 1) / TOP)
        low_x = position_x.floor().clamp_max(BINS - 2).long()
        log_p_xN, upper_x = raw_xN.log_softmax(-1), position_x - low_x
        low, high = (log_p_xN.gather(-1, (low_x + step).unsqueeze(-1)).squeeze(-1) for step in (0, 1))
        return -(1 - upper_x) * low - upper_x * high


HEADS: dict[str, type[Scalar]] = {"scalar": Scalar, "softplus": Softplus, "two_hot": TwoHot}
