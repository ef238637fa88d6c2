"""Adaptive K: how many tokens of an answer carry loss grows while the readers learn to get the first ones right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from research_stack.latentwire.features.base import Feature, StepSettings
from research_stack.require import require

if TYPE_CHECKING:
    from research_stack.latentwire.losses import LossInputs
    from research_stack.latentwire.module import LatentWire


class AdaptiveTokens(Feature):
    """K from `min_tokens` to `max_tokens`; it never falls. Validation counts `method.loss_tokens`, so that its losses
    can be compared.

    - by: schedule: K grows in equal steps over the first `share` of all steps. accuracy: by one whenever the running
      FirstTok@1 of every reader is at least `threshold`, and not sooner than `hold` steps after it last grew.
    - max_tokens: null for `method.loss_tokens`.
    - momentum: of the running FirstTok@1, which starts at 0: a' = momentum a + (1 - momentum) (share of right ones in
      the batch).
    """

    now: Tensor
    running_R: Tensor
    since: Tensor

    def __init__(
        self,
        by: Literal["schedule", "accuracy"] = "schedule",
        min_tokens: int = 2,
        max_tokens: int | None = None,
        share: float = 0.5,
        threshold: float = 0.5,
        momentum: float = 0.95,
        hold: int = 20,
    ) -> None:
        require(min_tokens >= 1, f"min_tokens={min_tokens} must be at least 1")
        require(
            max_tokens is None or max_tokens >= min_tokens,
            f"max_tokens={max_tokens} must be at least min_tokens={min_tokens}",
        )
        require(0 < share <= 1, f"share={share} must lie in (0, 1]")
        require(0 < threshold <= 1, f"threshold={threshold} must lie in (0, 1]")
        require(0 <= momentum < 1, f"momentum={momentum} must lie in [0, 1)")
        require(hold >= 1, f"hold={hold} must be at least 1")
        super().__init__()
        self.by, self.min_tokens, self.max_tokens, self.share, self.threshold, self.momentum, self.hold = (
            by,
            min_tokens,
            max_tokens,
            share,
            threshold,
            momentum,
            hold,
        )
        self.counted: dict[str, Tensor] = {}

    def build_modules(self, method: LatentWire) -> None:
        """No parameters, but a state: K, the running accuracies, the steps since K grew."""
        max_tokens = method.loss_tokens if self.max_tokens is None else self.max_tokens
        require(
            max_tokens <= method.loss_tokens,
            f"max_tokens={max_tokens} must be at most loss_tokens={method.loss_tokens} of the method",
        )
        require(
            self.min_tokens <= max_tokens,
            f"min_tokens={self.min_tokens} must be at most loss_tokens={method.loss_tokens} of the method",
        )
        self.last, self.names, self.total = max_tokens, list(method.readers), method.total_over_devices
        self.register_buffer("now", torch.tensor(self.min_tokens))
        self.register_buffer("running_R", torch.zeros(len(self.names)))
        self.register_buffer("since", torch.tensor(0))

    def on_batch_start(self, step: StepSettings) -> None:
        """Set K."""
        if step.number is None:
            return
        self.counted = {}
        if self.by == "schedule":
            self.now.fill_(
                min(
                    self.last,
                    self.min_tokens + int((self.last - self.min_tokens + 1) * step.number / (self.share * step.total)),
                )
            )
        step.tokens = int(self.now)

    @torch.no_grad()
    def on_loss_aggregate(self, inputs: LossInputs) -> Mapping[str, Tensor]:
        """No loss: it counts how many first tokens are right, over all pieces of the batch."""
        if self.training and self.by == "accuracy":
            asked_B = inputs.answer_mask_BA[:, 0]
            correct_B = (inputs.logits_BAV[:, 0].argmax(-1) == inputs.target_BA[:, 0]) & asked_B
            found = torch.stack((correct_B.sum(), asked_B.sum())).float()
            self.counted[inputs.name] = self.counted[inputs.name] + found if inputs.name in self.counted else found
        return {}

    def reset_step(self) -> None:
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
