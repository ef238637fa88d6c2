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


def quartic(s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """t = s^4 / (s^4 + (1-s)^4), 1 - t without cancellation, and dt/ds, for s in [0, 1]; any shape, float64 advised.

    Puts still more levels near both ends. Under hybrid noise a substituted token at a small t weighs 1/t and comes with
    probability sqrt(t): the variance of the bound is infinite with uniform t and, by a logarithm, with the arcsine
    one, and finite with any density steeper than t^(-1/2). Here it is t^(-3/4), the best power.
    """
    s = s.clamp(_EDGE, 1 - _EDGE)
    near, far = s**4, (1 - s) ** 4
    t, rest = near / (near + far), far / (near + far)
    return t, rest, 4 * t * rest / (s * (1 - s))


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
