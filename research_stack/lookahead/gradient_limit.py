"""Two losses on one trunk: the gradient of the second is held to a share of the first's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


@dataclass
class GradientNorms:
    """Sums of squares of the two gradients at the hidden states, before the limit; they add up over pieces of a
    batch.
    """

    squares_2: Tensor | None = None

    def add(self, first_B: Tensor, second_B: Tensor) -> None:
        """Count the rows' norms."""
        squares = torch.stack([first_B.square().sum(), second_B.square().sum()])
        self.squares_2 = squares if self.squares_2 is None else self.squares_2 + squares

    def take(self) -> Tensor | None:
        """(2,) the sums so far, which start again."""
        squares, self.squares_2 = self.squares_2, None
        return squares


class _LimitedGradient(Function):
    @staticmethod
    def forward(ctx: Any, hidden_BLD: Tensor, ratio: float | None, norms: GradientNorms) -> tuple[Tensor, Tensor]:
        ctx.ratio, ctx.norms = ratio, norms
        return hidden_BLD.view_as(hidden_BLD), hidden_BLD.view_as(hidden_BLD)

    @staticmethod
    def backward(ctx: Any, first_BLD: Tensor, second_BLD: Tensor) -> tuple[Tensor, None, None]:
        first_B, second_B = (
            torch.linalg.vector_norm(g, dim=(1, 2), dtype=torch.promote_types(g.dtype, torch.float32))
            for g in (first_BLD, second_BLD)
        )
        ctx.norms.add(first_B, second_B)
        if ctx.ratio is None:
            return first_BLD + second_BLD, None, None
        least = torch.finfo(second_B.dtype).tiny
        share_B = (ctx.ratio * first_B / second_B.clamp_min(least)).clamp_max(1).to(second_BLD.dtype)
        return torch.addcmul(first_BLD, share_B[:, None, None], second_BLD), None, None


def limit_gradient(hidden_BLD: Tensor, ratio: float | None, norms: GradientNorms) -> tuple[Tensor, Tensor]:
    """The hidden states twice, for two losses.

    On the way back each sequence's gradient of the second is scaled down to at most `ratio` times the norm of the
    first's (None: not at all), so that it cannot eat the budget of the clipping. A row's share depends on that row
    alone: any cut of the batch, over pieces or devices, gives the same gradient. `norms` learns both norms as they
    came.
    """
    return _LimitedGradient.apply(hidden_BLD, ratio, norms)
