"""Losses on the latents themselves and on the input embeddings made of them: they keep what is sent near what a reader
knows.

All are means over rows and readers. The embeddings are those the adapter makes, also where a feature gives the reader
something else in their place. Statistics are a row's own, over its positions, so that the pieces of a batch give the
same loss as the whole.

Shapes: B rows, P positions, D width of the reader, M latents, d dimensions of a latent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from research_stack.latentwire.losses import LatentWireLoss, LossInputs, at_least_float32
from research_stack.latentwire.reader import FrozenReader
from research_stack.require import require

if TYPE_CHECKING:
    from research_stack.latentwire.module import LatentWire

EPS = 1e-8  # of a variance or a mean square


class EmbeddingStats(NamedTuple):
    """Of a reader's input embeddings over its tokens: mean_D and variance_D of each dimension, and the rms () of all
    numbers.
    """

    mean_D: Tensor
    variance_D: Tensor
    rms: Tensor


@torch.no_grad()
def embedding_stats(reader: FrozenReader) -> EmbeddingStats:
    """The statistics of a reader's table, the variance as the mean square deviation."""
    table_VD = at_least_float32(reader.embeddings.weight[: len(reader.tokenizer)])
    mean_D = table_VD.mean(0)
    return EmbeddingStats(
        mean_D, (table_VD - mean_D).square().mean(0).clamp_min(EPS), table_VD.square().mean().clamp_min(EPS).sqrt()
    )


class VectorLoss(LatentWireLoss):
    """Base of the losses on the adapters' input embeddings."""

    needs_vectors = True

    def __init__(self, weight: float = 1.0) -> None:
        require(weight >= 0, f"weight={weight} must not be negative; 0 leaves the loss out")
        self.weight = weight

    def prepare(self, method: LatentWire) -> None:
        """Read the tables."""
        self.method = method
        self.tables = {name: embedding_stats(reader) for name, reader in method.readers.items()}

    def vectors(self, inputs: LossInputs) -> Tensor:
        """(B, P, D)."""
        return at_least_float32(self.method.adapters[inputs.name].vectors(inputs.adapted.states_BPH))

    def table(self, inputs: LossInputs) -> EmbeddingStats:
        """Of the reader, where the latents are."""
        return EmbeddingStats(
            *(tensor.to(at_least_float32(inputs.adapted.states_BPH)) for tensor in self.tables[inputs.name])
        )


class Alignment(VectorLoss):
    """1 - cosine between the mean of a row's vectors and the mean embedding of its context's tokens: 0 where they point
    the same way.
    """

    needs_context = True

    def __call__(self, inputs: LossInputs) -> Tensor:
        mask_BC = inputs.rows[f"context_mask.{inputs.name}"].unsqueeze(-1)
        with torch.no_grad():
            text_BCD = at_least_float32(
                self.method.readers[inputs.name].embeddings(inputs.rows[f"context.{inputs.name}"])
            )
            text_BD = (text_BCD * mask_BC).sum(1) / mask_BC.sum(1).clamp_min(1)
        mean_BD = self.vectors(inputs).mean(1)
        return (1 - F.cosine_similarity(mean_BD, text_BD.to(mean_BD), dim=-1)).sum()


class Manifold(VectorLoss):
    """Mean and variance of each dimension over a row's positions against those of the reader's table, both in units of
    the table's variance:

    mean over the dimensions of (m - mean)^2 / variance + (v / variance - 1)^2; 0 where all agree. One position has
    variance 0.
    """

    def __call__(self, inputs: LossInputs) -> Tensor:
        vectors_BPD, table = self.vectors(inputs), self.table(inputs)
        mean_BD = vectors_BPD.mean(1)
        variance_BD = (vectors_BPD - mean_BD.unsqueeze(1)).square().mean(1)
        return (
            ((mean_BD - table.mean_D).square() / table.variance_D + (variance_BD / table.variance_D - 1).square())
            .mean(-1)
            .sum()
        )


class Scale(VectorLoss):
    """(rms of a row's vectors / rms of the reader's embeddings - 1)^2: 0 where the vectors are as large as
    embeddings.
    """

    def __call__(self, inputs: LossInputs) -> Tensor:
        return (_rms(self.vectors(inputs)) / self.table(inputs).rms - 1).square().sum()


class RawRMS(LatentWireLoss):
    """(rms of a row's numbers before the quantiser - target)^2: keeps them within the quantiser's reach.

    - target: in the quantiser's units.
    """

    def __init__(self, weight: float = 1.0, target: float = 1.0) -> None:
        require(weight >= 0, f"weight={weight} must not be negative; 0 leaves the loss out")
        require(target > 0, f"target={target} must be positive")
        self.weight, self.target = weight, target

    def __call__(self, inputs: LossInputs) -> Tensor:
        return (_rms(at_least_float32(inputs.raw_BMd)) - self.target).square().sum()


def _rms(x_Bxy: Tensor) -> Tensor:
    """(B,) root mean squares; at 0 the gradient is 0, not infinite."""
    return x_Bxy.square().mean((1, 2)).clamp_min(EPS).sqrt()
