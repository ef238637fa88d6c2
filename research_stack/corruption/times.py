"""Noise levels of a batch: how t is drawn for each sequence."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from research_stack.require import require
from research_stack.streams import Draws

_EDGE = 1e-12  # keeps sin^2 and its complement away from exact 0, where weights would be 0 times infinity


def arcsine(s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """t = sin^2(pi s / 2), 1 - t without cancellation, and dt/ds, for s in [0, 1]; any shape, float64 advised.

    An integral over t becomes one over s whose integrand is finite at both ends, so nothing has to be cut off.
    """
    angle = s.clamp(_EDGE, 1 - _EDGE) * (math.pi / 2)
    sine, cosine = angle.sin(), (math.pi / 2 - angle).sin()
    return sine**2, cosine**2, math.pi * sine * cosine


def heavy_ended(s: Tensor, share: float = 0.25) -> tuple[Tensor, Tensor, Tensor]:
    """t, 1 - t and dt/ds (1 over the density of t) of a mixture: `arcsine` with a `share` of levels still nearer the
    ends.

    Under hybrid noise a substituted token at a small t weighs 1/t and comes with probability sqrt(t), so the second
    moment of the bound needs a density of t steeper than t^(-1/2): with uniform t it is infinite, and with arcsine t
    by a logarithm. The share has t = r^4 / (r^4 + (1-r)^4), a density like t^(-3/4). Weighting by the density of the
    whole mixture (the balance heuristic of Veach and Guibas 1995) costs at most 1 / (1 - share) of arcsine's
    efficiency. s in [0, 1], any shape, float64; below `share` it goes to the steep part.
    """
    r = (s / share).clamp(_EDGE, 1 - _EDGE)
    near, far = r**4, (1 - r) ** 4
    t_arcsine, rest_arcsine, _ = arcsine((s - share) / (1 - share))
    t = torch.where(s < share, near / (near + far), t_arcsine)
    rest = torch.where(s < share, far / (near + far), rest_arcsine)
    low, high = t**0.25, rest**0.25
    steep = low * high / (4 * t * rest * (low + high) ** 2)
    return t, rest, 1 / (share * steep + (1 - share) / (math.pi * (t * rest).sqrt()))


class Times:
    """One noise level per sequence.

    - stratified: spread the batch's levels evenly over the interval (one in each of B equal strata, in random
      order) instead of independently. Each level keeps its law; averages over the batch vary less.
    - arcsine: t = sin^2(pi s / 2) with s drawn instead of t, which puts more levels near both ends. Losses with
      a weight multiply by dt/ds, so that their expectation stays the integral over uniform t.
    - low, high: the interval of t. LLaDA's p = (1 - 1e-3) t + 1e-3 is low=1e-3.
    """

    def __init__(self, stratified: bool = True, arcsine: bool = False, low: float = 0.0, high: float = 1.0) -> None:
        require(0 <= low <= high <= 1, f"low={low} must lie in [0, high={high}], within [0, 1]")
        self.stratified, self.arcsine, self.low, self.high = stratified, arcsine, low, high

    def __call__(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """(level_B in [low, high], dt/ds_B with mean 1), both float64."""
        s_B = draws.stratified() if self.stratified else draws.uniform(dtype=torch.float64)
        if not self.arcsine:
            return self.low + (self.high - self.low) * s_B, torch.ones_like(s_B)
        t_B, _, slope_B = arcsine(s_B)
        return self.low + (self.high - self.low) * t_B, slope_B
