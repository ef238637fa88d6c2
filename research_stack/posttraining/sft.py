"""Supervised fine-tuning: cross entropy of the reply's tokens, its end token included, behind the prompt.

The loss is the mean over all reply tokens of the whole batch. Several pairs may share a row (`data.pack`): each sees
itself alone and counts its positions from 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from research_stack.backbones.linear_loss import linear_loss
from research_stack.data.batches import Batch
from research_stack.posttraining.policy import Policy
from research_stack.streams import Draws

if TYPE_CHECKING:
    from research_stack.data.module import TokenData


class SFT(Policy):
    """Loss on the reply only."""

    loss_terms: Mapping[str, float] = {"reply": 1.0}
    isolates_packed_pairs = True  # of a packed row, see `alone`

    def check_data(self, data: TokenData) -> None:
        """The data must be pairs with replies."""
        if data.prompts_only or not bool((data.train.spans[:, 0] > 0).any()):
            raise ValueError(
                f"data={type(data.source).__name__} has no pairs of prompt and reply; choose data=expressions,"
                " docstrings, instructions or replies"
            )

    def prepare(self, batch: Batch, draws: Draws) -> tuple[Batch, Tensor]:
        """Where a next token is a reply's, and how many are."""
        counts_BL = (batch["attention_mask"] & ~batch["prompt"])[:, 1:]
        rows = {name: batch[name] for name in ("tokens", "position_ids", "seq_idx") if name in batch}
        return {**rows, "counts": counts_BL}, counts_BL.sum().unsqueeze(0)

    def loss_sum(self, rows: Batch) -> Tensor:
        """(1,) the summed cross entropy."""
        sums_P = torch.stack([self.reply(rows)])
        self.check_reply_gradient(rows, sums_P, {})
        return sums_P

    def check_reply_gradient(self, rows: Batch, sums_P: Tensor, may_vanish: Mapping[str, str]) -> None:
        """As `check_gradients`, once a piece holds tokens of replies: it may hold prompts alone."""
        if bool(self._unchecked_terms) and bool(rows["counts"].any()):
            self.check_gradients(sums_P, may_vanish)

    def reply(self, rows: Batch) -> Tensor:
        """The summed cross entropy of the replies, in nats."""
        hidden_BLD = self.model.read(rows["tokens"][:, :-1], *alone(rows))
        target_n = rows["tokens"][:, 1:][rows["counts"]]
        weight_n = torch.ones(len(target_n), device=target_n.device)

        def token_losses(logits_cV: Tensor, part: slice) -> Tensor:
            return F.cross_entropy(logits_cV, target_n[part], reduction="none")

        return linear_loss(hidden_BLD[rows["counts"]], self.model.unembedding, weight_n, token_losses, self.bias_V)

    def after_update(self) -> Mapping[str, Tensor]:
        """The weights of a new run must have moved."""
        self.check_weights_moved()
        return {}


def alone(rows: Batch) -> tuple[Tensor | None, Tensor | None]:
    """Positions and what is seen when each pair of a packed row sees itself alone; None for rows of one pair, padded on
    the right.
    """
    if "seq_idx" not in rows:
        return None, None
    sample_BL = rows["seq_idx"][:, :-1]
    length = sample_BL.shape[1]
    causal_LL = torch.ones(length, length, dtype=torch.bool, device=sample_BL.device).tril()
    return rows["position_ids"][:, :-1], (sample_BL.unsqueeze(2) == sample_BL.unsqueeze(1)) & causal_LL
