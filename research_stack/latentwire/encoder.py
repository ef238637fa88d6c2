"""The sender: the bytes of a context to M latents of d dimensions.

Bytes become vectors with hashed n-grams (as in the Byte Latent Transformer, Pagnoni et al. 2024), optionally in patches
by a strided convolution, and go through a bidirectional transformer (`ByteEncoder`). M learned queries pool what comes
out; a gated second pooling reads the bytes' own vectors, a shortcut around patches and blocks that lets the latents
learn before the blocks do (`Pooling`).

Shapes: B contexts, N bytes, T = ceil(N / patch) patches, D width, M latents, d dimensions of a latent, H heads of E
numbers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from research_stack.backbones.attention import StandardAttention
from research_stack.backbones.norm import RMSNorm
from research_stack.backbones.transformer import Transformer
from research_stack.require import require
from research_stack.streams import generator

BYTES = 257  # and one for the padding
MULTIPLIERS = (
    0x9E3779B1,
    0x85EBCA77,
    0xC2B2AE3D,
    0x27D4EB2F,
    0x165667B1,
    0x9E3779F9,
    0x7FEB352D,
    0x846CA68B,
)  # odd: a byte's in a hash


class HashedGrams(nn.Module):
    """Vectors of bytes and of the n-grams that end at them, which share `buckets` rows for each n.

    - grams: the n, 2 to 8; none: bytes alone.
    """

    def __init__(self, dim: int, grams: list[int], buckets: int) -> None:
        super().__init__()
        self.grams, self.buckets = grams, buckets
        self.byte = nn.Embedding(BYTES, dim)
        self.tables = nn.ModuleList(nn.Embedding(buckets, dim) for _ in grams)

    def forward(self, bytes_BN: Tensor) -> Tensor:
        """(B, N, D)."""
        x_BND = self.byte(bytes_BN)
        for n, table in zip(self.grams, self.tables, strict=True):
            x_BND = x_BND + table(self.hashes(bytes_BN, n))
        return x_BND

    def hashes(self, bytes_BN: Tensor, n: int) -> Tensor:
        """(B, N) int64 below `buckets`: the bucket of the n bytes up to each one; what is before the first counts
        as 0.
        """
        padded = F.pad(bytes_BN + 1, (n - 1, 0))
        mixed = sum(padded[:, i : i + bytes_BN.shape[1]] * MULTIPLIERS[i] for i in range(n))
        assert isinstance(mixed, Tensor)
        mixed = mixed ^ (mixed >> 15)
        return (mixed * MULTIPLIERS[0] >> 7) % self.buckets


class ByteEncoder(nn.Module):
    """Bytes to states.

    - dim, layers, heads: of the transformer. grams, buckets: of the hashed n-grams.
    - patch: bytes to a position of the transformer; above 1 by a convolution of twice that width.
    - max_length: longest context, in bytes.
    - seed: of the initial weights.
    """

    #: See research_stack.config.smoke.
    smoke = {"dim": 32, "layers": 1}

    def __init__(
        self,
        dim: int = 128,
        layers: int = 6,
        heads: int = 4,
        grams: list[int] | None = None,
        buckets: int = 4096,
        patch: int = 1,
        max_length: int = 1024,
        seed: int = 0,
    ) -> None:
        require(
            heads >= 1 and dim >= 1 and dim % (2 * heads) == 0,
            f"dim={dim} must be a multiple of 2 * heads={heads}, at least one",
        )
        require(layers >= 1, f"layers={layers} must be at least 1")
        require(patch >= 1, f"patch={patch} must be at least 1")
        require(max_length >= 1, f"max_length={max_length} must be at least 1")
        require(buckets >= 1, f"buckets={buckets} must be at least 1")
        grams = [2, 3, 4, 6] if grams is None else list(grams)
        if any(not 2 <= n <= 8 for n in grams):
            raise ValueError(f"grams={grams} must be numbers from 2 to 8")
        super().__init__()
        self.dim, self.patch, self.max_length = dim, patch, max_length
        self.embed = HashedGrams(dim, grams, buckets)
        self.patches = nn.Conv1d(dim, dim, 2 * patch, stride=patch) if patch > 1 else None
        self.transformer = Transformer(BYTES, dim, layers, heads, max_length=-(-max_length // patch), seed=seed)
        self.transformer.embedding = nn.Embedding(0, dim).requires_grad_(False)  # its tokens come as vectors
        stream = generator(seed, "encoder")
        for name, parameter in self.named_parameters():
            if name.startswith("embed."):
                nn.init.normal_(parameter, std=0.1, generator=stream)
            elif name.startswith("patches."):
                nn.init.normal_(
                    parameter, std=0.0 if parameter.ndim == 1 else parameter[0].numel() ** -0.5, generator=stream
                )

    @staticmethod
    def least_numbers(rows: int, dim: int, layers: int, grams: list[int] | None, buckets: int, patch: int) -> int:
        """Weights, and a few bytes of each context, at the very least; the check reads it."""
        return (
            len([2, 3, 4, 6] if grams is None else grams) * buckets * dim
            + 2 * layers * dim * dim
            + (2 * patch * dim * dim if patch > 1 else 0)
            + rows * dim * max(1, layers // 2)
        )

    def forward(self, bytes_BN: Tensor, mask_BN: Tensor) -> Encoded:
        """What was read, patch by patch.

        - bytes_BN: int64, 0 to 255, anything at padding. mask_BN: bool, False at padding, which changes nothing.

        Raises ValueError for more than max_length bytes.
        """
        require(
            bytes_BN.shape[1] <= self.max_length,
            f"max_length={self.max_length} is less than the {bytes_BN.shape[1]} bytes of a context",
        )
        entered_BND = self.embed(torch.where(mask_BN, bytes_BN, BYTES - 1)) * mask_BN.unsqueeze(-1)
        x_BTD, mask_BT = self._patched(entered_BND, mask_BN)
        states_BTD = self.transformer.forward_embeddings(
            x_BTD, slice(0, x_BTD.shape[1]), StandardAttention(mask_BT[:, None, None, :])
        )
        return Encoded(entered_BND, mask_BN, states_BTD, mask_BT)

    def _patched(self, x_BND: Tensor, mask_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (B, T, D) of the patches, and which of them are no padding (B, T)."""
        if self.patches is None:
            return x_BND, mask_BN
        rest = -x_BND.shape[1] % self.patch
        x_BDT = self.patches(F.pad(x_BND, (0, 0, 0, rest + self.patch)).transpose(1, 2))
        return x_BDT.transpose(1, 2), F.pad(mask_BN, (0, rest)).unflatten(1, (-1, self.patch)).any(-1)

    @property
    def blocks(self) -> nn.ModuleList:
        """Of the transformer."""
        return self.transformer.blocks

    def flops_per_token(self, length: int, logits: bool = True) -> float:
        """Of one byte of a context of `length` bytes, forward; there are no logits."""
        convolution = 0 if self.patches is None else 2 * self.patches.weight.numel() / self.patch
        return convolution + self.transformer.flops_per_token(-(-length // self.patch), logits=False) / self.patch


class Encoded(NamedTuple):
    """Vectors of the bytes before the blocks (B, N, D), states of the patches behind them (B, T, D), and where there is
    no padding.
    """

    entered_BND: Tensor
    mask_BN: Tensor
    states_BTD: Tensor
    mask_BT: Tensor


class AttentionPooling(nn.Module):
    """Attention of M learned queries over some vectors, heads side by side.

    - dim: D. latents: M. heads: H.
    """

    def __init__(self, dim: int, num_latents: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_MD = nn.Parameter(torch.empty(num_latents, dim))
        self.key, self.value = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """(B, M, D)."""
        key_BHTE, value_BHTE = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.key(x_BTD), self.value(x_BTD))
        )
        query_HME = self.query_MD.unflatten(-1, (self.heads, -1)).transpose(0, 1).to(key_BHTE.dtype)
        scores_BHMT = query_HME @ key_BHTE.transpose(-1, -2) / math.sqrt(key_BHTE.shape[-1])
        weights_BHMT = scores_BHMT.masked_fill(~mask_BT[:, None, None, :], torch.finfo(scores_BHMT.dtype).min).softmax(
            -1
        )
        return (weights_BHMT.to(value_BHTE.dtype) @ value_BHTE).transpose(1, 2).flatten(2)


class Pooling(nn.Module):
    """States to M latents of d dimensions: pooled states, plus a gate for each latent times what is pooled of the
    bytes' own vectors.

    - dim: D of the encoder. latents, numbers: M and d. heads: of the queries. seed: of the initial weights.
    """

    def __init__(self, dim: int, num_latents: int, latent_dim: int, heads: int, seed: int) -> None:
        super().__init__()
        require(heads >= 1 and dim % heads == 0, f"heads={heads} must divide the encoder's dim={dim}")
        self.after, self.before = AttentionPooling(dim, num_latents, heads), AttentionPooling(dim, num_latents, heads)
        self.gate_M1 = nn.Parameter(torch.ones(num_latents, 1))
        self.norm, self.out = RMSNorm(dim), nn.Linear(dim, latent_dim)
        stream = generator(seed, "pooling")
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2 and name != "gate_M1":
                nn.init.normal_(parameter, std=1.0 if name.endswith("query_MD") else dim**-0.5, generator=stream)
        nn.init.zeros_(self.out.bias)

    def forward(self, encoded: Encoded) -> Tensor:
        """(B, M, d)."""
        after_BMD, before_BMD = (
            self.after(encoded.states_BTD, encoded.mask_BT),
            self.before(encoded.entered_BND, encoded.mask_BN),
        )
        return self.out(self.norm(after_BMD + self.gate_M1 * before_BMD))


def as_bytes(texts: list[str]) -> tuple[Tensor, Tensor]:
    """(bytes int64 (B, N), seen bool (B, N)) of texts in UTF-8, padded on the right; N is at least 1."""
    raw = [text.encode() for text in texts]
    longest = max(1, *map(len, raw)) if raw else 1
    bytes_BN, mask_BN = (
        torch.zeros(len(raw), longest, dtype=torch.long),
        torch.zeros(len(raw), longest, dtype=torch.bool),
    )
    for row, own in enumerate(raw):
        bytes_BN[row, : len(own)] = (
            torch.frombuffer(bytearray(own), dtype=torch.uint8) if own else torch.zeros(0, dtype=torch.uint8)
        )
        mask_BN[row, : len(own)] = True
    return bytes_BN, mask_BN
