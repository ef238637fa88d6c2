"""Choosing the next token by what the model predicts its own choice to cost.

c is the predicted future loss in nats: at a position, the loss at the token behind the model's own next one (`module`).

Shapes: n texts, V tokens, k candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from research_stack.require import require
from research_stack.sampling.choosers import Choice, Chooser, ChooserInput
from research_stack.sampling.logits import scale_by_temperature


@dataclass(frozen=True)
class ConfidenceTemperature(Chooser):
    """Hot where a choice is predicted to cost little, cold where much: T = base exp(-slope tanh z).

    z is c at the last token in running deviations from its running mean; T lies between base e^-slope and base e^slope.
    A negative slope does the opposite.
    """

    base: float = 0.8
    slope: float = 0.4

    needs_confidence = True

    def __post_init__(self) -> None:
        require(self.base >= 0, f"base={self.base} must be at least 0")

    def temperature(self, zscore_n: Tensor) -> Tensor:
        """(n,) T for confidences in running deviations."""
        return self.base * torch.exp(-self.slope * torch.tanh(zscore_n))

    def log_weights(self, inputs: ChooserInput) -> Tensor:
        assert inputs.zscore_n is not None, "checked by the sampler"
        return scale_by_temperature(inputs.logits_nV, self.temperature(inputs.zscore_n))


@dataclass(frozen=True)
class BranchAndRank(Chooser):
    """Try k tokens, and take the one whose likelihood and predicted consequence are best.

    With Gumbel noise g on every token, the k tokens of largest log p / temperature + g are candidates: k distinct draws
    from the tempered distribution (Gumbel-top-k, Kool et al. 2019). All of them go through one pass as branches off the
    cache, and the largest log p / temperature + g - beta c(candidate) is written, c(candidate) being the confidence
    predicted at the candidate.

    With beta=0 that is the first draw: `Temperature(temperature)` in distribution (though not token by token under one
    seed), without the pass. With k = V the distribution is softmax(log p / temperature - beta c). At temperature 0
    there is no noise: of the k likeliest tokens the one with the largest log p - beta c.
    """

    candidates: int = 8
    beta: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        require(self.candidates >= 1, f"candidates={self.candidates} must be at least 1")
        require(self.temperature >= 0, f"temperature={self.temperature} must be at least 0")

    @property
    def needs_confidence(self) -> bool:  # type: ignore[override]
        """Only with a beta."""
        return self.beta != 0

    @property
    def calls(self) -> int:  # type: ignore[override]
        """The pass of the branches."""
        return int(self.beta != 0)

    def n_uniforms(self, vocab_size: int) -> int:
        return vocab_size if self.temperature > 0 else 0

    def __call__(self, inputs: ChooserInput, u_nU: Tensor) -> Choice:
        score_nV = inputs.logits_nV.log_softmax(-1).double()
        if self.temperature > 0:
            score_nV = score_nV / self.temperature + gumbel(u_nU)
        score_nk, token_nk = score_nV.topk(min(self.candidates, score_nV.shape[1]))
        if self.beta != 0:
            score_nk = score_nk - self.beta * inputs.confidence_at(token_nk)
        return Choice(token_nk.gather(1, score_nk.argmax(1, keepdim=True)).squeeze(1))


@dataclass(frozen=True)
class Abstain(Chooser):
    """The text ends where its next choice is predicted to cost more than `threshold` nats; until then `inner`
    chooses.
    """

    threshold: float
    inner: Chooser

    needs_confidence = True

    @property
    def calls(self) -> int:  # type: ignore[override]
        """Those of the inner one."""
        return self.inner.calls

    def n_uniforms(self, vocab_size: int) -> int:
        return self.inner.n_uniforms(vocab_size)

    def __call__(self, inputs: ChooserInput, u_nU: Tensor) -> Choice:
        assert inputs.confidence_n is not None, "checked by the sampler"
        token_n, ends_n = self.inner(inputs, u_nU)
        over_n = inputs.confidence_n > self.threshold
        return Choice(token_n, over_n if ends_n is None else over_n | ends_n)


def gumbel(u: Tensor) -> Tensor:
    """Standard Gumbel noise from numbers of [0, 1)."""
    return -torch.log(-torch.log(u.clamp_min(torch.finfo(u.dtype).tiny)))
