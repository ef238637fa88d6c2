"""Heads that must find the context in the latents alone: losses that do not go through a reader.

Each looks at every reader's latents, shared and own ones, with the same weights; its loss is the mean over readers.

Shapes: B rows, N bytes, M latents of d dimensions, W width of the head, G buckets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from research_stack.backbones.norm import RMSNorm
from research_stack.backbones.transformer import SwiGLU
from research_stack.latentwire.features.base import AdapterOutput, Feature
from research_stack.latentwire.features.cross_attention import CrossAttention
from research_stack.require import require
from research_stack.streams import generator

if TYPE_CHECKING:
    from research_stack.latentwire.losses import LossInputs
    from research_stack.latentwire.module import LatentWire

MULTIPLIER = 0x9E3779B1  # odd, so that different grams are different before they are put in buckets


class Gist(Feature):
    """Which byte n-grams the context has, hashed into buckets, from the pooled latents: binary cross entropy in nats,
    the mean over buckets.

    The best answer that knows nothing of the context, the share of contexts that have each bucket, costs the mean
    entropy of these shares; of the last batch it is logged as `chance`. The gist says something where its loss is
    below.

    - weight: of the loss. grams: n, 1 to 7. buckets: G. width: of the hidden layer.
    """

    def __init__(self, weight: float = 0.1, grams: int = 4, buckets: int = 512, width: int = 128) -> None:
        require(weight > 0, f"weight={weight} must be positive; leave the feature out instead")
        require(1 <= grams <= 7, f"grams={grams} must lie in 1 .. 7")
        require(buckets >= 2, f"buckets={buckets} must be at least 2")
        require(buckets <= 100_000_000, f"buckets={buckets} must be at most 100,000,000")
        require(width >= 1, f"width={width} must be at least 1")
        require(width <= 100_000, f"width={width} must be at most 100,000")
        super().__init__()
        self.weight, self.grams, self.buckets, self.width = weight, grams, buckets, width
        self.chance = torch.zeros(())

    def build_modules(self, method: LatentWire) -> None:
        """A map of each latent, which are added, and one to the buckets."""
        num_latents, stream = num_all_latents(method), generator(method.seed, "gist")
        self.map_MdW = nn.Parameter(torch.empty(num_latents, method.latent_dim, self.width))
        self.out = nn.Linear(self.width, self.buckets)
        nn.init.normal_(self.map_MdW, generator=stream)
        nn.init.normal_(self.out.weight, std=self.width**-0.5, generator=stream)
        nn.init.zeros_(self.out.bias)

    def logits(self, adapted: AdapterOutput) -> Tensor:
        """(B, G)."""
        size = math.sqrt(adapted.latents_BMd.shape[1] * adapted.latents_BMd.shape[2])
        return self.out(F.gelu(torch.einsum("bmd,mdw->bw", adapted.latents_BMd, self.map_MdW[adapted.index_M]) / size))

    def on_loss_aggregate(self, inputs: LossInputs) -> Mapping[str, Tensor]:
        """The sum over rows."""
        has_BG = hashed_grams(*encoded(inputs.adapted), self.grams, self.buckets)
        self.chance = constant_cost(has_BG.mean(0)).mean()
        logits_BG = self.logits(inputs.adapted)
        return {
            "gist": F.binary_cross_entropy_with_logits(logits_BG, has_BG.to(logits_BG), reduction="none").mean(1).sum()
        }

    def weights(self) -> Mapping[str, float]:
        """Of the one loss."""
        return {"gist": self.weight}

    def metrics_snapshot(self) -> dict[str, float]:
        """What the best constant answer costs on the last rows."""
        return {"chance": float(self.chance)}


class Reconstruction(Feature):
    """The context's first bytes, all at once, each from its position and the latents: cross entropy in nats, the mean
    over a row's bytes.

    The best answer that knows nothing of the context, how often each byte comes, costs their entropy, logged as
    `chance`.

    - weight: of the loss. max_bytes: to be found. width, heads, layers: of the decoder, cross-attention and
      SwiGLU in turn.
    """

    def __init__(
        self, weight: float = 0.1, max_bytes: int = 256, width: int = 128, heads: int = 4, layers: int = 1
    ) -> None:
        require(weight > 0, f"weight={weight} must be positive; leave the feature out instead")
        require(max_bytes >= 1, f"max_bytes={max_bytes} must be at least 1")
        require(max_bytes <= 1_000_000, f"max_bytes={max_bytes} must be at most 1,000,000")
        require(heads >= 1 and width >= 1 and width % heads == 0, f"heads={heads} must divide width={width}")
        require(layers >= 1, f"layers={layers} must be at least 1")
        require(layers <= 10_000, f"layers={layers} must be at most 10,000")
        super().__init__()
        self.weight, self.max_bytes, self.width, self.heads, self.depth = weight, max_bytes, width, heads, layers
        self.chance = self.accuracy = torch.zeros(())

    def build_modules(self, method: LatentWire) -> None:
        """Vectors of latents and positions, and the decoder."""
        stream, width = generator(method.seed, "reconstruction"), self.width
        self.enter, self.out = nn.Linear(method.latent_dim, width), nn.Linear(width, 256)
        self.latent_MW, self.position_NW = (
            nn.Parameter(torch.empty(count, width)) for count in (num_all_latents(method), self.max_bytes)
        )
        self.attentions = nn.ModuleList(
            CrossAttention(width, width, width, self.heads, 0.0, stream) for _ in range(self.depth)
        )
        self.norms = nn.ModuleList(RMSNorm(width) for _ in range(self.depth + 1))
        self.ffns = nn.ModuleList(SwiGLU(width, -(-8 * width // 96) * 32) for _ in range(self.depth))
        for parameter in (*self.enter.parameters(), *self.ffns.parameters(), *self.out.parameters()):
            nn.init.normal_(parameter, std=0.0 if parameter.ndim == 1 else parameter.shape[1] ** -0.5, generator=stream)
        for parameter in (self.latent_MW, self.position_NW):
            nn.init.normal_(parameter, generator=stream)

    def logits(self, adapted: AdapterOutput, length: int) -> Tensor:
        """(B, N, 256), of the first `length` = N bytes."""
        states_BMW = self.enter(adapted.latents_BMd) + self.latent_MW[adapted.index_M]
        x_BNW = self.position_NW[:length].expand(len(states_BMW), -1, -1)
        for attention, norm, ffn in zip(self.attentions, self.norms, self.ffns, strict=False):
            x_BNW = x_BNW + attention(x_BNW, states_BMW)
            x_BNW = x_BNW + ffn(norm(x_BNW))
        return self.out(self.norms[-1](x_BNW))

    def on_loss_aggregate(self, inputs: LossInputs) -> Mapping[str, Tensor]:
        """The sum over rows."""
        bytes_BN, mask_BN = (tensor[:, : self.max_bytes] for tensor in encoded(inputs.adapted))
        logits_BNv = self.logits(inputs.adapted, bytes_BN.shape[1])
        cost_BN = (
            F.cross_entropy(logits_BNv.flatten(0, 1), bytes_BN.flatten(), reduction="none").view(bytes_BN.shape)
            * mask_BN
        )
        share_v = torch.bincount(bytes_BN[mask_BN], minlength=256) / mask_BN.sum().clamp_min(1)
        self.chance = torch.special.entr(share_v).sum()
        self.accuracy = ((logits_BNv.argmax(-1) == bytes_BN) & mask_BN).sum() / mask_BN.sum().clamp_min(1)
        return {"reconstruction": (cost_BN.sum(1) / mask_BN.sum(1).clamp_min(1)).sum()}

    def weights(self) -> Mapping[str, float]:
        """Of the one loss."""
        return {"reconstruction": self.weight}

    def metrics_snapshot(self) -> dict[str, float]:
        """The share of bytes that were the likeliest, and what the best constant answer costs, on the last rows."""
        return {"right": float(self.accuracy), "chance": float(self.chance)}


def num_all_latents(method: LatentWire) -> int:
    """Shared latents and those of every reader."""
    return method.num_shared + method.num_private * len(method.readers)


def encoded(adapted: AdapterOutput) -> tuple[Tensor, Tensor]:
    """The bytes (B, N) of the contexts and where there are any; only the sender has them."""
    assert adapted.bytes_BN is not None and adapted.mask_BN is not None, "losses are taken where the context is known"
    return adapted.bytes_BN, adapted.mask_BN


def hashed_grams(bytes_BN: Tensor, mask_BN: Tensor, n: int, buckets: int) -> Tensor:
    """(B, G) float32, 1 for a bucket that holds one of the row's n-grams; a row of fewer than n bytes has none."""
    short = max(0, n - bytes_BN.shape[1])
    grams_BTn, whole_BT = (
        F.pad(bytes_BN, (0, short)).unfold(1, n, 1),
        F.pad(mask_BN, (0, short)).unfold(1, n, 1).all(-1),
    )
    number_BT = (grams_BTn * 256 ** torch.arange(n - 1, -1, -1, device=bytes_BN.device)).sum(
        -1
    )  # below 2^56: another for each gram
    mixed_BT = (number_BT * MULTIPLIER) ^ (number_BT >> 17)
    bucket_BT = (mixed_BT ^ (mixed_BT >> 23)) % buckets
    found_BG = torch.zeros(len(bytes_BN), buckets, device=bytes_BN.device)
    return found_BG.scatter_reduce_(1, bucket_BT, whole_BT.float(), "amax")


def constant_cost(share_x: Tensor) -> Tensor:
    """Binary cross entropy of always saying the share itself, its entropy in nats; 0 where it is 0 or 1."""
    return torch.special.entr(share_x) + torch.special.entr(1 - share_x)
