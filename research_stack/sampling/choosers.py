"""Which token is written: from what a model predicts for a position to a token.

A chooser is a distribution over tokens and how it is drawn from. Its random numbers are given to it, so that a text
comes out the same alone and in any batch. Temperatures are applied to the model's logits; 0 is greedy: the likeliest
token. `Temperature` serves both kinds of samplers: as `chooser` of those that write from left to right, and as
`proposer` of those that fill masks (`proposers`).

Shapes: n texts or positions, V tokens, U random numbers a choice takes, k candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from research_stack.require import require
from research_stack.sampling.categorical import draw, draw_from_probabilities
from research_stack.sampling.logits import keep_min_p, keep_top_p, scale_by_temperature, sharpen, sort_by_top_p
from research_stack.sampling.state import Positions, State


@dataclass
class ChooserInput:
    """What a choice is made from, for each of n texts.

    - logits_nV: of the next token, -inf at tokens that cannot come.
    - confidence_n, zscore_n: predicted future loss in nats and as a z-score (`causal.NextTokenPrediction`); None
      without.
    - confidence_at: (n, k) candidates to the confidences (n, k) there would be at each.
    """

    logits_nV: Tensor
    confidence_n: Tensor | None
    zscore_n: Tensor | None
    confidence_at: Callable[[Tensor], Tensor]


class Choice(NamedTuple):
    """The next tokens (n,), and where the text ends instead, before that token (None: nowhere)."""

    token_n: Tensor
    ends_n: Tensor | None = None


class Chooser:
    """Base of the choosers."""

    needs_confidence: bool = False  #: whether the model must predict its future loss
    calls: int = 0  #: model calls that a choice takes

    def n_uniforms(self, vocab_size: int) -> int:
        """U: how many numbers of [0, 1) a choice takes."""
        return 1

    def __call__(self, inputs: ChooserInput, u_nU: Tensor) -> Choice:
        """The choice; the same numbers give the same one. By default a draw from `log_weights`, by inversion."""
        return Choice(draw(self.log_weights(inputs), u_nU[:, 0]))

    def log_weights(self, inputs: ChooserInput) -> Tensor:
        """(n, V) unnormalised log-probabilities."""
        return inputs.logits_nV


@dataclass(frozen=True)
class Temperature(Chooser):
    """p^(1 / temperature), then the fewest tokens that together have probability `top_p` (nucleus, Holtzman et al.
    2020). Temperature 0 is greedy: the likeliest token, the first of equals.
    """

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        require(self.temperature >= 0, f"temperature={self.temperature} must be at least 0")
        require(0 < self.top_p <= 1, f"top_p={self.top_p} must lie in (0, 1]")

    def log_weights(self, inputs: ChooserInput) -> Tensor:
        return keep_top_p(scale_by_temperature(inputs.logits_nV, self.temperature), self.top_p)

    def propose(self, at: Positions, state: State) -> Tensor:
        """(n,) tokens for the positions of a denoising sampler."""
        return self.proposed(at, self.temperature)

    def proposed(self, at: Positions, temperature: float) -> Tensor:
        """(n,) tokens drawn at this temperature; those of a nucleus in the order of their probabilities."""
        if temperature == 0:
            return at.p_nV.argmax(1)
        p_nV = sharpen(at.p_nV, temperature)
        if self.top_p == 1:
            return draw_from_probabilities(p_nV, at.draw_n)
        sorted_nV, ids_nV, outside_nV = sort_by_top_p(p_nV, self.top_p)
        index_n = draw_from_probabilities(sorted_nV.masked_fill(outside_nV, 0), at.draw_n)
        return ids_nV.gather(1, index_n.unsqueeze(1)).squeeze(1)


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

    def log_weights(self, inputs: ChooserInput) -> Tensor:
        return keep_min_p(scale_by_temperature(inputs.logits_nV, self.temperature), self.min_p)


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
        smallest = torch.finfo(entropy_n.dtype).tiny
        return self.low + (self.high - self.low) * torch.exp(-self.scale / entropy_n.clamp_min(smallest))

    def log_weights(self, inputs: ChooserInput) -> Tensor:
        entropy_n = torch.special.entr(inputs.logits_nV.softmax(-1)).sum(-1)
        return scale_by_temperature(inputs.logits_nV, self.temperature(entropy_n))
