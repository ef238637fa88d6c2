"""Readings of "mask ratio and corruption rate": absolute, conditional and split."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from research_stack.corruption.base import Corruption, Rates
from research_stack.corruption.positions import Positional
from research_stack.corruption.protection import Protection
from research_stack.corruption.times import Times
from research_stack.require import high, is_rate, low, require


def between(value: float | Sequence[float], level_B: Tensor) -> Tensor:
    """The value, or the point of the range [low, high] that the level stands for."""
    return low(value) + (high(value) - low(value)) * level_B


class Absolute(Corruption):
    """A fraction of the positions becomes masks and a disjoint fraction other tokens, both exact in every sequence.

    - mask_ratio, corruption_rate: fractions of the eligible positions, or ranges [low, high]. One level per sequence
      moves both: level 0 is (low, low), level 1 is (high, high).
    - times, positions, protection: see `Corruption`.
    """

    def __init__(
        self,
        mask_ratio: float | Sequence[float] = 0.5,
        corruption_rate: float | Sequence[float] = 0.2,
        times: Times | None = None,
        positions: Positional | None = None,
        protection: Protection | None = None,
    ) -> None:
        require(is_rate(mask_ratio), f"mask_ratio={mask_ratio} must lie in [0, 1], or be a range [low, high] within it")
        require(
            is_rate(corruption_rate),
            f"corruption_rate={corruption_rate} must lie in [0, 1], or be a range [low, high] within it",
        )
        require(
            high(mask_ratio) + high(corruption_rate) <= 1 + 1e-9,
            f"mask_ratio={mask_ratio} plus corruption_rate={corruption_rate} must be at most 1",
        )
        super().__init__(times, positions, protection)
        self.mask_ratio, self.corruption_rate = mask_ratio, corruption_rate

    def rates(self, level_B: Tensor) -> Rates:
        mask_B = between(self.mask_ratio, level_B)
        return Rates(
            mask_B, torch.minimum(between(self.corruption_rate, level_B), 1 - mask_B), torch.zeros_like(level_B)
        )


class Conditional(Corruption):
    """Mask first; then a fraction of the positions left unmasked becomes other tokens.

    - mask_ratio: fraction of the eligible positions, or a range [low, high].
    - corruption_rate: fraction of those left unmasked, or a range. Both follow one level per sequence.
    - times, positions, protection: see `Corruption`.
    """

    def __init__(
        self,
        mask_ratio: float | Sequence[float] = 0.5,
        corruption_rate: float | Sequence[float] = 0.15,
        times: Times | None = None,
        positions: Positional | None = None,
        protection: Protection | None = None,
    ) -> None:
        require(is_rate(mask_ratio), f"mask_ratio={mask_ratio} must lie in [0, 1], or be a range [low, high] within it")
        require(
            is_rate(corruption_rate),
            f"corruption_rate={corruption_rate} must lie in [0, 1], or be a range [low, high] within it",
        )
        super().__init__(times, positions, protection)
        self.mask_ratio, self.corruption_rate = mask_ratio, corruption_rate

    def rates(self, level_B: Tensor) -> Rates:
        mask_B = between(self.mask_ratio, level_B)
        return Rates(mask_B, (1 - mask_B) * between(self.corruption_rate, level_B), torch.zeros_like(level_B))


class Split(Corruption):
    """A fraction r is selected; each selected position is masked, replaced or kept with fixed probabilities.

    Devlin et al. 2019 (BERT): r = 0.15 with 0.8 / 0.1 / 0.1.

    - select_ratio: r, or a range [low, high] for r ~ U(low, high).
    - mask, replace: probabilities for a selected position; it is kept as it is with what is left of 1.
    - times, positions, protection: see `Corruption`.
    """

    def __init__(
        self,
        select_ratio: float | Sequence[float] = (0.15, 0.99),
        mask: float = 0.8,
        replace: float = 0.1,
        times: Times | None = None,
        positions: Positional | None = None,
        protection: Protection | None = None,
    ) -> None:
        require(
            is_rate(select_ratio),
            f"select_ratio={select_ratio} must lie in [0, 1], or be a range [low, high] within it",
        )
        require(0 <= mask <= 1, f"mask={mask} must lie in [0, 1]")
        require(
            0 <= replace <= 1 and mask + replace <= 1 + 1e-9,
            f"replace={replace} must lie in [0, 1] and with mask={mask} be at most 1",
        )
        super().__init__(times, positions, protection)
        self.select_ratio, self.mask, self.replace = select_ratio, mask, replace

    def rates(self, level_B: Tensor) -> Rates:
        ratio_B = between(self.select_ratio, level_B)
        return Rates(ratio_B * self.mask, ratio_B * self.replace, ratio_B * max(1 - self.mask - self.replace, 0.0))
