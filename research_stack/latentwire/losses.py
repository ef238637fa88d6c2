"""The losses of LatentWire, each a small class with a weight of its own.

A loss gets what one reader has read and gives the sum over its rows; what the sums are divided by, `count` says
beforehand, from the batch alone, so that a batch cut in pieces gives the same loss of the same latents.

Shapes: B rows, A tokens of an answer at most, V rows of the unembedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from research_stack.data.batches import Batch
from research_stack.latentwire.features.base import AdapterOutput
from research_stack.require import require

if TYPE_CHECKING:
    from research_stack.latentwire.module import LatentWire


@dataclass
class LossInputs:
    """What one reader made of the latents of some rows.

    - name: of the reader. adapted: what it was given; raw_BMd: the encoder's latents before the quantiser, its latents
      alone.
    - logits_BAV: of each token of the answer, from its latents. target_BA: those tokens. answer_mask_BA: bool, where
      there is one.
    - tokens: K, tokens of an answer that carry loss. rows: the whole of the batch's tensors.
    """

    name: str
    adapted: AdapterOutput
    raw_BMd: Tensor
    logits_BAV: Tensor
    target_BA: Tensor
    answer_mask_BA: Tensor
    tokens: int
    rows: Batch


class LatentWireLoss(ABC):
    """Base of the losses; `weight` 0 leaves one out, unless a stage of a curriculum gives it another.

    - needs_context: whether `rows` must hold the context's tokens for each reader, `context.<reader>` (B, C) and
      `context_mask.<reader>`.
    """

    weight: float
    needs_context: bool = False
    needs_vectors: bool = False  # whether it reads the adapters' input embeddings

    def prepare(self, method: LatentWire) -> None:  # noqa: B027  most have nothing to prepare
        """Called once, when readers and adapters are there."""

    def count(self, answer_mask_BA: Tensor, tokens: int) -> Tensor:
        """The denominator's share of one reader and these rows, (): rows."""
        return torch.tensor(float(len(answer_mask_BA)), device=answer_mask_BA.device)

    @abstractmethod
    def __call__(self, inputs: LossInputs) -> Tensor:
        """(): the sum over the rows, with gradient."""

    def after_update(self) -> None:  # noqa: B027
        """Called after each optimizer step."""

    def describe(self) -> dict[str, Any]:
        """What is kept with the run."""
        return {"weight": self.weight}


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32, or as it is where it is more exact."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class FirstToken(LatentWireLoss):
    """Cross entropy of the first token of the answer, in nats."""

    def __init__(self, weight: float = 1.0) -> None:
        require(weight >= 0, f"weight={weight} must not be negative; 0 leaves the loss out")
        self.weight = weight

    def count(self, answer_mask_BA: Tensor, tokens: int) -> Tensor:
        """Rows with an answer."""
        return answer_mask_BA[:, 0].sum()

    def __call__(self, inputs: LossInputs) -> Tensor:
        kept_B = inputs.answer_mask_BA[:, 0]
        return F.cross_entropy(inputs.logits_BAV[kept_B, 0].float(), inputs.target_BA[kept_B, 0], reduction="sum")


class AnswerTokens(LatentWireLoss):
    """Cross entropy of the first K tokens of the answer, its end included, in nats; the mean is over tokens."""

    def __init__(self, weight: float = 1.0) -> None:
        require(weight >= 0, f"weight={weight} must not be negative; 0 leaves the loss out")
        self.weight = weight

    def count(self, answer_mask_BA: Tensor, tokens: int) -> Tensor:
        """Tokens."""
        return answer_mask_BA[:, :tokens].sum()

    def __call__(self, inputs: LossInputs) -> Tensor:
        kept_BA = inputs.answer_mask_BA[:, : inputs.tokens]
        return F.cross_entropy(
            inputs.logits_BAV[:, : inputs.tokens][kept_BA].float(),
            inputs.target_BA[:, : inputs.tokens][kept_BA],
            reduction="sum",
        )


def unique_contexts(context_B: Tensor) -> tuple[Tensor, Tensor]:
    """(first_C: the row in which each context stands first, which_B: the number of each row's context among those) of
    the contexts' numbers.
    """
    _, which_B = context_B.unique(return_inverse=True)
    rows_B = torch.arange(len(which_B), device=which_B.device)
    return (
        torch.full((int(which_B.max()) + 1,), len(which_B), device=which_B.device).scatter_reduce(
            0, which_B, rows_B, "amin"
        ),
        which_B,
    )
