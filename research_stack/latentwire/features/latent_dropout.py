"""Latent dropout: steps that send only the first of the shared latents, so that the first ones learn to say the most.

Nested dropout (Rippel et al. 2014); as in Matryoshka representations (Kusupati et al. 2022) one checkpoint then serves
every number of latents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from research_stack.latentwire.features.base import Feature, StepSettings
from research_stack.require import require
from research_stack.streams import generator

if TYPE_CHECKING:
    from research_stack.latentwire.module import LatentWire


class LatentDropout(Feature):
    """How many shared latents a step sends is drawn, one number for all rows and readers; private latents are always
    sent.

    Where not all are kept, the number n is drawn from `min_shared` .. S, the shared latents of the step: uniformly, or
    geometrically with P(n) proportional to ratio^n. Validation and evaluation keep all.

    - keep_from, keep_to: probability that a step keeps all latents, at the first step and from the share `ramp` of all
      steps on; in a straight line between.
    - min_shared: shared latents that are kept at least. distribution: of the number that is kept. ratio: of the
      geometric distribution.
    """

    def __init__(
        self,
        keep_from: float = 1.0,
        keep_to: float = 0.5,
        ramp: float = 0.5,
        min_shared: int = 1,
        distribution: Literal["uniform", "geometric"] = "uniform",
        ratio: float = 0.8,
    ) -> None:
        require(0 <= keep_from <= 1, f"keep_from={keep_from} must lie in [0, 1]")
        require(0 <= keep_to <= 1, f"keep_to={keep_to} must lie in [0, 1]")
        require(0 <= ramp <= 1, f"ramp={ramp} must lie in [0, 1]: it is a share of the steps")
        require(min_shared >= 1, f"min_shared={min_shared} must be at least 1")
        require(0 < ratio < 1, f"ratio={ratio} must lie in (0, 1)")
        super().__init__()
        self.keep_from, self.keep_to, self.ramp, self.min_shared, self.distribution, self.ratio = (
            keep_from,
            keep_to,
            ramp,
            min_shared,
            distribution,
            ratio,
        )

    def build_modules(self, method: LatentWire) -> None:
        """No parameters. Raises ValueError for more latents than are shared."""
        require(
            self.min_shared <= method.num_shared,
            f"min_shared={self.min_shared} must be at most {method.num_shared}, the latents that readers share",
        )
        self.seed, self.num_private, self.kept = method.seed, method.num_private, method.num_latents

    def keep(self, number: int, total: int) -> float:
        """The probability that step `number` of `total` keeps all latents."""
        passed = 1.0 if self.ramp == 0 else min(1.0, number / (self.ramp * total))
        return self.keep_from + (self.keep_to - self.keep_from) * passed

    def on_batch_start(self, step: StepSettings) -> None:
        """Draw how many latents are sent, from the stream (seed, "latent_dropout", step)."""
        if step.number is None:
            return
        stream, num_shared = generator(self.seed, "latent_dropout", step.number), step.num_latents - self.num_private
        if num_shared > self.min_shared and float(torch.rand((), generator=stream)) >= self.keep(
            step.number, step.total
        ):
            step.num_latents = (
                self.num_private
                + self.min_shared
                + int(torch.multinomial(self.weights_of(num_shared - self.min_shared + 1), 1, generator=stream))
            )
        self.kept = step.num_latents

    def weights_of(self, count: int) -> torch.Tensor:
        """(count,): the distribution of how many latents more than `min_shared` are kept, not normalised."""
        return torch.full((count,), self.ratio if self.distribution == "geometric" else 1.0).pow(torch.arange(count))

    def metrics_snapshot(self) -> dict[str, float]:
        """Latents that the last step sent to a reader, private ones included."""
        return {"num_latents": float(self.kept)}
