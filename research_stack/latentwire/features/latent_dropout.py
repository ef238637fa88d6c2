"""Latent dropout: steps that send only the first of the shared slots, so that the first ones learn to say the most.

Nested dropout (Rippel et al. 2014); as in Matryoshka representations (Kusupati et al. 2022) one checkpoint then serves
every number of slots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from research_stack.latentwire.features.base import Feature, Step
from research_stack.require import require
from research_stack.streams import generator

if TYPE_CHECKING:
    from research_stack.latentwire.module import LatentWire


class LatentDropout(Feature):
    """How many shared slots a step sends is drawn, one number for all rows and readers; private slots are always sent.

    Where not all are kept, the number n is drawn from `least` .. S, the shared slots of the step: uniformly, or
    geometrically with P(n) proportional to ratio^n. Validation and evaluation keep all.

    - keep_from, keep_to: probability that a step keeps all slots, at the first step and from the share `ramp` of all
      steps on; in a straight line between.
    - least: shared slots that are kept at least. law: of the number that is kept. ratio: of the geometric law.
    """

    def __init__(
        self,
        keep_from: float = 1.0,
        keep_to: float = 0.5,
        ramp: float = 0.5,
        least: int = 1,
        law: Literal["uniform", "geometric"] = "uniform",
        ratio: float = 0.8,
    ) -> None:
        require(0 <= keep_from <= 1, f"keep_from={keep_from} must lie in [0, 1]")
        require(0 <= keep_to <= 1, f"keep_to={keep_to} must lie in [0, 1]")
        require(0 <= ramp <= 1, f"ramp={ramp} must lie in [0, 1]: it is a share of the steps")
        require(least >= 1, f"least={least} must be at least 1")
        require(law in ("uniform", "geometric"), f"law={law} must be uniform or geometric")
        require(0 < ratio < 1, f"ratio={ratio} must lie in (0, 1)")
        super().__init__()
        self.keep_from, self.keep_to, self.ramp, self.least, self.law, self.ratio = (
            keep_from,
            keep_to,
            ramp,
            least,
            law,
            ratio,
        )

    def build_modules(self, method: LatentWire) -> None:
        """No parameters. Raises ValueError for more slots than are shared."""
        require(
            self.least <= method.shared,
            f"least={self.least} must be at most {method.shared}, the slots that readers share",
        )
        self.seed, self.private, self.kept = method.seed, method.private, method.slots

    def keep(self, number: int, total: int) -> float:
        """The probability that step `number` of `total` keeps all slots."""
        passed = 1.0 if self.ramp == 0 else min(1.0, number / (self.ramp * total))
        return self.keep_from + (self.keep_to - self.keep_from) * passed

    def on_batch_start(self, step: Step) -> None:
        """Draw how many slots are sent, from the stream (seed, "latent_dropout", step)."""
        if step.number is None:
            return
        stream, shared = generator(self.seed, "latent_dropout", step.number), step.slots - self.private
        if shared > self.least and float(torch.rand((), generator=stream)) >= self.keep(step.number, step.total):
            step.slots = (
                self.private
                + self.least
                + int(torch.multinomial(self.weights_of(shared - self.least + 1), 1, generator=stream))
            )
        self.kept = step.slots

    def weights_of(self, count: int) -> torch.Tensor:
        """(count,): the law of how many slots more than `least` are kept, not normalised."""
        return torch.full((count,), self.ratio if self.law == "geometric" else 1.0).pow(torch.arange(count))

    def metrics_snapshot(self) -> dict[str, float]:
        """Slots that the last step sent to a reader, private ones included."""
        return {"slots": float(self.kept)}
