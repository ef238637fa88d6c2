"""Which token comes next: from what a model says behind a text to the token that is written.

A chooser is a law over tokens and how it is drawn from. Its random numbers are given to it, so that a text comes out
the same alone and in any batch. Temperatures are applied to the model's logits; 0 is the likeliest token.

Shapes: n texts, V tokens, U random numbers a choice takes, k candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from research_stack.require import require
from research_stack.sampling.categorical import draw


@dataclass
class Here:
    """Where n texts stand.

    - logits_nV: of the next token, -inf at tokens that cannot come.
    - confidence_n, standing_n: predicted future loss in nats and in running deviations (`causal.Outlook`); None
      without.
    - weigh: (n, k) candidates to the confidences (n, k) there would be at each.
    """

    logits_nV: Tensor
    confidence_n: Tensor | None
    standing_n: Tensor | None
    weigh: Callable[[Tensor], Tensor]


class Choice(NamedTuple):
    """The next tokens (n,), and where the text ends instead, before that token (None: nowhere)."""

    token_n: Tensor
    ends_n: Tensor | None = None


class Chooser:
    """Base of the choosers."""

    needs_confidence: bool = False  #: whether the model must predict its future loss
    calls: int = 0  #: model calls that a choice takes

    def uniforms(self, vocab_size: int) -> int:
        """U: how many numbers of [0, 1) a choice takes."""
        return 1

    def __call__(self, here: Here, u_nU: Tensor) -> Choice:
        """The choice; the same numbers give the same one. By default a draw from `law`, by inversion."""
        return Choice(draw(self.law(here), u_nU[:, 0]))

    def law(self, here: Here) -> Tensor:
        """(n, V) unnormalised log-probabilities."""
        return here.logits_nV


@dataclass(frozen=True)
class Temperature(Chooser):
    """p^(1 / temperature), then the fewest tokens that together have probability `top_p` (nucleus, Holtzman et al.
    2020).
    """

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        require(self.temperature >= 0, f"temperature={self.temperature} must be at least 0")
        require(0 < self.top_p <= 1, f"top_p={self.top_p} must lie in (0, 1]")

    def law(self, here: Here) -> Tensor:
        return nucleus(tempered(here.logits_nV, self.temperature), self.top_p)


@dataclass(frozen=True)
class MinP(Chooser):
    """p^(1 / temperature) over the tokens that then have at least `min_p` of the likeliest one's probability (Nguyen et
    al. 2024, "Turning up the heat: min-p sampling"). The temperature comes first, as in Hugging Face's
    implementation."""

    min_p: float = 0.1
    temperature: float = 1.0

    def __post_init__(self) -> None:
        require(0 <= self.min_p <= 1, f"min_p={self.min_p} must lie in [0, 1]")
        require(self.temperature >= 0, f"temperature={self.temperature} must be at least 0")

    def law(self, here: Here) -> Tensor:
        logits_nV = tempered(here.logits_nV, self.temperature)
        least = math.log(self.min_p) if self.min_p > 0 else -math.inf
        return logits_nV.masked_fill(logits_nV < least, -torch.inf)


@dataclass(frozen=True)
class EntropyTemperature(Chooser):
    """Cold where the model is sure, hot where it is not: T = low + (high - low) exp(-scale / H).

    H is the entropy in nats of the model's own distribution, `scale` the entropy at which T has come 1/e of the way.
    With low=0 this is EDT (Zhang et al. 2024, arXiv 2403.14541): T = T0 N^(theta / H) with T0 = high and theta ln(1 /
    N) = scale.
    """

    low: float = 0.0
    high: float = 1.0
    scale: float = 0.3

    def __post_init__(self) -> None:
        require(0 <= self.low <= self.high, f"low={self.low} must lie between 0 and high={self.high}")
        require(self.scale >= 0, f"scale={self.scale} must be at least 0")

    def temperature(self, entropy_n: Tensor) -> Tensor:
        """(n,) T for entropies in nats."""
        least = torch.finfo(entropy_n.dtype).tiny
        return self.low + (self.high - self.low) * torch.exp(-self.scale / entropy_n.clamp_min(least))

    def law(self, here: Here) -> Tensor:
        entropy_n = torch.special.entr(here.logits_nV.softmax(-1)).sum(-1)
        return tempered(here.logits_nV, self.temperature(entropy_n))


def tempered(logits_nV: Tensor, temperature: float | Tensor) -> Tensor:
    """(n, V) logits / temperature, the largest of each row 0; where the temperature is 0 the (first) likeliest token
    alone is left.

    - temperature: one for all, or (n,).
    """
    over_nV = logits_nV - logits_nV.amax(-1, keepdim=True)
    t_n1 = torch.as_tensor(temperature, dtype=over_nV.dtype, device=over_nV.device).expand(len(over_nV)).unsqueeze(1)
    likeliest_nV = torch.full_like(over_nV, -torch.inf).scatter_(1, over_nV.argmax(-1, keepdim=True), 0.0)
    return torch.where(t_n1 > 0, over_nV / t_n1.clamp_min(torch.finfo(over_nV.dtype).tiny), likeliest_nV)


def nucleus(logits_nV: Tensor, top_p: float) -> Tensor:
    """The logits of the fewest tokens that together have probability `top_p`, the likeliest first; -inf elsewhere."""
    if top_p == 1:
        return logits_nV
    p_nV, ids_nV = logits_nV.softmax(-1).sort(dim=-1, descending=True, stable=True)
    out_nV = p_nV.cumsum(-1) - p_nV >= top_p
    return logits_nV.masked_fill(torch.zeros_like(out_nV).scatter(1, ids_nV, out_nV), -torch.inf)
