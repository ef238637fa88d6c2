"""Corruption by a diffusion process: every position on its own, with the process's marginals at the row's t."""

from __future__ import annotations

import torch
from torch import Tensor

from research_stack.corruption.base import Corruption, Rates
from research_stack.corruption.positions import Positional
from research_stack.corruption.process import Process
from research_stack.corruption.protection import Protection
from research_stack.corruption.times import Times
from research_stack.streams import Draws


class Diffusion(Corruption):
    """Draws z ~ q_t(z|x) independently at every open position, t per sequence.

    - process: `Absorbing`, `Uniform` or `Hybrid`.
    - times, positions, protection: see `Corruption`. The bound of the process needs positions=None.
    """

    def __init__(
        self,
        process: Process,
        times: Times | None = None,
        positions: Positional | None = None,
        protection: Protection | None = None,
    ) -> None:
        super().__init__(times, positions, protection)
        self.process, self.exact = process, positions is None

    def process_over(self, n_real: int) -> Process:
        return self.process.bind(n_real)

    def rates(self, level_B: Tensor) -> Rates:
        parts, n = self.process.coefficients(level_B), self.process.n_real
        # A uniform token is the clean one with probability 1/N: that is no substitution.
        return Rates(parts.mask, parts.uniform * (n - 1) / n, torch.zeros_like(level_B))

    def time(self, level_B: Tensor, rates: Rates) -> Tensor:
        return level_B

    def choose(self, rates: Rates, p_BL: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Independent choices: masked below p * share of masks, replaced from there to p."""
        draw_BL = draws.uniform(p_BL.shape[1], dtype=torch.float64)
        share_B1 = (rates.mask / rates.total.clamp_min(1e-300)).unsqueeze(1)
        selected_BL = draw_BL < p_BL
        masked_BL = draw_BL < p_BL * share_B1
        return masked_BL, selected_BL & ~masked_BL, selected_BL
