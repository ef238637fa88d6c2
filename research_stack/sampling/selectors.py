"""Where to write: which positions may change, and a score for each that would.

Standard selectors look at masks only; with `visible` they rank rewrites of visible tokens by the same score.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from research_stack.require import require
from research_stack.sampling.logits import sharpen
from research_stack.sampling.state import Positions, State


class Selector(ABC):
    """Base of the selectors.

    - visible: whether tokens that stand already may be rewritten.
    """

    def __init__(self, visible: bool = False) -> None:
        self.visible = visible

    def where(self, state: State) -> Tensor:
        """(B, G) bool: positions that may be written; nothing else gets logits."""
        return state.inside_BG if self.visible else state.mask_BG

    @abstractmethod
    def score(self, at: Positions, token_n: Tensor, p_token_n: Tensor, p_current_n: Tensor) -> Tensor:
        """(n,) scores of writing `token_n`, higher first; -inf forbids it.

        - p_token_n, p_current_n: probabilities of the proposed token and of the one in place (0 at masks).
        """


class Confidence(Selector):
    """The probability of the proposed token. What is not committed is LLaDA's low-confidence remasking (Nie et al.
    2025).
    """

    def score(self, at: Positions, token_n: Tensor, p_token_n: Tensor, p_current_n: Tensor) -> Tensor:
        return p_token_n


class Margin(Selector):
    """The likeliest token's lead over the second (Kim et al. 2025, "Train for the worst, plan for the best")."""

    def score(self, at: Positions, token_n: Tensor, p_token_n: Tensor, p_current_n: Tensor) -> Tensor:
        best_n2 = at.p_nV.topk(2, dim=1).values
        return best_n2[:, 0] - best_n2[:, 1]


class Entropy(Selector):
    """Minus the entropy of the prediction, in nats (Ye et al. 2025, Dream)."""

    def score(self, at: Positions, token_n: Tensor, p_token_n: Tensor, p_current_n: Tensor) -> Tensor:
        return torch.special.entr(at.p_nV).sum(1).neg()


class RandomOrder(Selector):
    """A random order."""

    def score(self, at: Positions, token_n: Tensor, p_token_n: Tensor, p_current_n: Tensor) -> Tensor:
        return at.coin_n


class AnyPosition(Selector):
    """FlowLM: (p_best - p_current) * prior(z_i), where p_current is 0 at a mask.

    - visible_prior: the prior that a visible token is wrong, relative to that of a mask, which is 1. 0: masks only.
    - min_gain: a visible token is rewritten only if its score exceeds this.
    """

    def __init__(self, visible_prior: float = 1.0, min_gain: float = 0.0) -> None:
        require(0 <= visible_prior <= 1, f"visible_prior={visible_prior} must lie in [0, 1]")
        require(0 <= min_gain < 1, f"min_gain={min_gain} must lie in [0, 1)")
        super().__init__(visible=visible_prior > 0)
        self.visible_prior, self.min_gain = visible_prior, min_gain

    def score(self, at: Positions, token_n: Tensor, p_token_n: Tensor, p_current_n: Tensor) -> Tensor:
        gain_n = (p_token_n - p_current_n) * torch.where(at.mask_n, 1.0, self.visible_prior)
        return torch.where(at.mask_n | (gain_n > self.min_gain), gain_n, -torch.inf)


class FillThenCorrect(Selector):
    """Masks by confidence while there are any; then visible tokens by p_best - p_current, where that is positive."""

    def __init__(self) -> None:
        super().__init__(visible=True)

    def where(self, state: State) -> Tensor:
        """Masks of the sequences that have some, every position of the others."""
        return torch.where(state.mask_BG.any(1, keepdim=True), state.mask_BG, state.inside_BG)

    def score(self, at: Positions, token_n: Tensor, p_token_n: Tensor, p_current_n: Tensor) -> Tensor:
        gain_n = p_token_n - p_current_n
        return torch.where(at.mask_n | (gain_n > 0), gain_n, -torch.inf)


class Resampled(Selector):
    """GIDD's self-correction (von Ruette et al. 2025, section 5.3): the probability of the drawn token after the
    temperature.

    - temperature: above 0, and the one that the tokens are drawn with.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        require(temperature > 0, f"temperature={temperature} must be above 0")
        super().__init__(visible=True)
        self.temperature = temperature

    def score(self, at: Positions, token_n: Tensor, p_token_n: Tensor, p_current_n: Tensor) -> Tensor:
        return sharpen(at.p_nV, self.temperature).gather(1, token_n.unsqueeze(1)).squeeze(1)


class AllPositions(Selector):
    """Every position the process can still change, all with the same score."""

    def __init__(self) -> None:
        super().__init__(visible=True)

    def where(self, state: State) -> Tensor:
        """Masks, and visible tokens where the process substitutes tokens."""
        return state.inside_BG if state.known_process().has_uniform else state.mask_BG

    def score(self, at: Positions, token_n: Tensor, p_token_n: Tensor, p_current_n: Tensor) -> Tensor:
        return torch.zeros_like(p_token_n)
