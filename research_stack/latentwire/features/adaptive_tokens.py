"""Adaptive K: how many tokens of an answer carry loss grows while the readers learn to get the first ones right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from research_stack.latentwire.features.base import Feature, Step
from research_stack.require import require

if TYPE_CHECKING:
    from research_stack.latentwire.losses import Read
    from research_stack.latentwire.module import LatentWire


class AdaptiveTokens(Feature):
    """K from `least` to `most`; it never falls. Validation counts `method.tokens`, so that its losses can be compared.

    - by: schedule: K grows in equal steps over the first `share` of all steps. accuracy: by one whenever the running
      FirstTok@1 of every reader is at least `threshold`, and not sooner than `hold` steps after it last grew.
    - most: null for `method.tokens`.
    - momentum: of the running FirstTok@1, which starts at 0: a' = momentum a + (1 - momentum) (share of right ones in
      the batch).
    """

    def __init__(
        self,
        by: Literal["schedule", "accuracy"] = "schedule",
        least: int = 2,
        most: int | None = None,
        share: float = 0.5,
        threshold: float = 0.5,
        momentum: float = 0.95,
        hold: int = 20,
    ) -> None:
        require(by in ("schedule", "accuracy"), f"by={by} must be schedule or accuracy")
        require(least >= 1, f"least={least} must be at least 1")
        require(most is None or most >= least, f"most={most} must be at least least={least}")
        require(0 < share <= 1, f"share={share} must lie in (0, 1]")
        require(0 < threshold <= 1, f"threshold={threshold} must lie in (0, 1]")
        require(0 <= momentum < 1, f"momentum={momentum} must lie in [0, 1)")
        require(hold >= 1, f"hold={hold} must be at least 1")
        super().__init__()
        self.by, self.least, self.most, self.share, self.threshold, self.momentum, self.hold = (
            by,
            least,
            most,
            share,
            threshold,
            momentum,
            hold,
        )
        self.counted: dict[str, Tensor] = {}

    def build_modules(self, method: LatentWire) -> None:
        """No parameters, but a state: K, the running accuracies, the steps since K grew."""
        most = method.tokens if self.most is None else self.most
        require(most <= method.tokens, f"most={most} must be at most tokens={method.tokens} of the method")
        require(self.least <= most, f"least={self.least} must be at most tokens={method.tokens} of the method")
        self.last, self.names, self.total = most, list(method.readers), method.total_over_devices
        self.register_buffer("now", torch.tensor(self.least))
        self.register_buffer("running_R", torch.zeros(len(self.names)))
        self.register_buffer("since", torch.tensor(0))

    def on_batch_start(self, step: Step) -> None:
        """Set K."""
        if step.number is None:
            return
        self.counted = {}
        if self.by == "schedule":
            self.now.fill_(
                min(self.last, self.least + int((self.last - self.least + 1) * step.number / (self.share * step.total)))
            )
        step.tokens = int(self.now)

    @torch.no_grad()
    def on_loss_aggregate(self, read: Read) -> Mapping[str, Tensor]:
        """No loss: it counts how many first tokens are right, over all pieces of the batch."""
        if self.training and self.by == "accuracy":
            asked_B = read.counts_BA[:, 0]
            right_B = (read.logits_BAV[:, 0].argmax(-1) == read.target_BA[:, 0]) & asked_B
            found = torch.stack((right_B.sum(), asked_B.sum())).float()
            self.counted[read.name] = self.counted[read.name] + found if read.name in self.counted else found
        return {}

    def forget(self) -> None:
        """Count anew."""
        self.counted = {}

    def after_update(self) -> None:
        """The batch of all devices enters the running accuracies, and K may grow."""
        if self.by != "accuracy":
            return
        counts_R2 = self.total(torch.stack([self.counted[name] for name in self.names]))
        batch_R = counts_R2[:, 0] / counts_R2[:, 1].clamp_min(1)
        self.running_R.copy_(
            torch.where(
                counts_R2[:, 1] > 0, self.momentum * self.running_R + (1 - self.momentum) * batch_R, self.running_R
            )
        )
        self.since += 1
        if (
            int(self.now) < self.last
            and int(self.since) >= self.hold
            and bool((self.running_R >= self.threshold).all())
        ):
            self.now += 1
            self.since.zero_()

    def metrics_snapshot(self) -> dict[str, float]:
        """K of the next step by accuracy, of this one by schedule; and the running accuracies."""
        accuracies = {f"first1_{name}": float(value) for name, value in zip(self.names, self.running_R, strict=True)}
        return {"tokens": float(self.now), **(accuracies if self.by == "accuracy" else {})}
