"""RewardModel: what a reply to a prompt will earn, learned from what replies have earned.

Embeddings of prompt and reply come from a frozen encoder through the data; only the regressor on top is trained, by
least squares (or Huber's loss) on targets that are standardised with mean and deviation of the training side.

Shapes: B pairs, F inputs.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from research_stack.backbones.regressor import Regressor
from research_stack.data.batches import Batch
from research_stack.data.scored import ScoredPairs
from research_stack.require import require
from research_stack.streams import Draws
from research_stack.training.module import TrainingModule
from research_stack.training.optimization import Optimization


class RewardModel(TrainingModule):
    """A regressor of log(1 + engagement) from the embeddings of prompt and reply.

    - model: (B, F) -> (B,), the standardised target. What its dropout leaves out belongs to the pair: the pieces of a
      batch and the devices that share it change nothing.
    - loss: `mse`, the squared error, or `huber` (Huber 1964), linear beyond `delta`; the mean over the pairs of the
      batch.
    - delta: of Huber's loss, in standard deviations of the target.
    - target_mean, target_std: of the training side; the data give them, and checkpoints keep them.
    """

    counted = "pairs"

    def __init__(
        self,
        model: Regressor,
        optimization: Optimization,
        seed: int,
        loss: Literal["mse", "huber"] = "mse",
        delta: float = 1.0,
        target_mean: float = 0.0,
        target_std: float = 1.0,
    ) -> None:
        super().__init__(optimization, seed)
        require(0 < delta <= 1000, f"delta={delta} must be positive and at most 1000")
        require(math.isfinite(target_mean), f"target_mean={target_mean} must be finite")
        require(0 < target_std < math.inf, f"target_std={target_std} must be positive and finite")
        self.model, self.loss, self.delta = model, loss, delta
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(float(target_mean)))
        self.register_buffer("std", torch.tensor(float(target_std)))

    def check_data(self, data: Any) -> None:
        """Raise ValueError for data of another kind."""
        if not isinstance(data, ScoredPairs):
            raise ValueError(
                "data: method=reward needs prompts, replies and their engagement as embeddings; choose"
                " data=replies_scored"
            )

    def tokens_of(self, batch: Batch) -> int:
        """Pairs."""
        return len(batch["features"])

    def prepare(self, batch: Batch, draws: Draws) -> tuple[Batch, Tensor]:
        """Features, standardised targets and, in training, what dropout leaves out; the number of pairs."""
        target_B = (batch["target"] - self.mean) / self.std
        rows = {"features": batch["features"], "target": target_B}
        if self.training and self.model.dropout:
            rows["uniform"] = draws.uniform(sum(self.model.hidden))
        return rows, torch.tensor(float(len(target_B)), device=target_B.device)

    def loss_sum(self, rows: Batch) -> Tensor:
        """The summed loss of these pairs, in units of the standardised target."""
        output_B = self.model(rows["features"], rows.get("uniform"))
        if self.loss == "huber":
            return F.huber_loss(output_B, rows["target"].to(output_B.dtype), reduction="sum", delta=self.delta)
        return (output_B - rows["target"]).square().sum()

    def predict(self, features_BF: Tensor) -> Tensor:
        """(B,) the predicted log(1 + engagement), in nats."""
        return self.mean + self.std * self.model(features_BF)
